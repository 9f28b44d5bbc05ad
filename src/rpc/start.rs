//! From the configuration to the application: which wire, with which limits.

use super::Application;
use super::calls::{CallRules, Calls};
pub use super::capacity::{Concurrency, ConcurrencyRange};
use super::dial::{Dialer, HostPort};
use super::grpc::{Balancer, DEFAULT_MAX_RECV, Grpc, Target};
use super::http::{Breaker, Http, Pool};
use super::remote::Remote;
pub use super::tls::{TlsError, TlsFiles};
use crate::config;
use crate::secret::{Secret, bare_url};
use http::HeaderValue;
use std::sync::Arc;
use std::time::Duration;

/// Limit of one attempt over HTTP where none is given.
const HTTP_REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// Which wire is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Implementation {
    /// HTTP for `http://` and `https://`, else gRPC.
    #[default]
    ByScheme,
    Grpc,
    Http,
    /// There is no application.
    None,
}

/// How to reach the application.
#[derive(Clone, Debug)]
pub struct RpcConfig {
    pub implementation: Implementation,
    /// `host:port`, `dns:///host:port`, `grpc-list://h1:p,h2:p`, or a URL for HTTP.
    pub host: String,
    /// Calls in flight at the same time; 0: adaptive, within `range`.
    pub concurrency: usize,
    pub range: ConcurrencyRange,
    /// Limit of one attempt; zero: none over gRPC, 3 s over HTTP.
    pub request_timeout: Duration,
    /// Limit of all attempts of a call; zero: none.
    pub command_timeout: Duration,
    /// Try a call again that the application may have executed before its connection broke.
    pub retry_sent: bool,
    /// Ask applications over gRPC whether they serve.
    pub health_watch: bool,
    /// Bearer token over HTTP.
    pub http_secret: Option<Secret>,
    pub tls: TlsFiles,
    /// Largest answer in bytes; 0: 4 MiB.
    pub max_recv_size: usize,
    /// Largest request in bytes; 0: no limit.
    pub max_send_size: usize,
}

impl Default for RpcConfig {
    fn default() -> Self {
        Self::from(&config::Rpc::default())
    }
}

impl From<&config::Rpc> for RpcConfig {
    fn from(rpc: &config::Rpc) -> Self {
        Self {
            implementation: match rpc.implementation {
                config::RpcKind::ByScheme => Implementation::ByScheme,
                config::RpcKind::Grpc => Implementation::Grpc,
                config::RpcKind::Http => Implementation::Http,
                config::RpcKind::None => Implementation::None,
            },
            host: rpc.host.clone(),
            concurrency: rpc.concurrency,
            range: ConcurrencyRange {
                initial: rpc.concurrency_initial,
                min: rpc.concurrency_min,
                max: rpc.concurrency_max,
            },
            request_timeout: rpc.request_timeout,
            command_timeout: rpc.command_timeout,
            retry_sent: rpc.retry_sent,
            health_watch: rpc.health_watch,
            http_secret: rpc.secret.clone(),
            tls: TlsFiles {
                enabled: rpc.enable_tls,
                verify: rpc.tls_verify,
                root_ca: rpc.tls_root_ca.clone(),
                client_cert: rpc.tls_client_cert.clone(),
                client_key: rpc.tls_client_key.clone(),
            },
            max_recv_size: rpc.max_recv_size,
            max_send_size: rpc.max_send_size,
        }
    }
}

impl RpcConfig {
    /// How many calls may be in flight.
    pub fn concurrency(&self) -> Concurrency {
        match self.concurrency {
            0 => Concurrency::Adaptive(self.range),
            fixed => Concurrency::Fixed(fixed),
        }
    }

    fn calls(&self, request_timeout: Duration) -> Calls {
        Calls::new(CallRules {
            concurrency: self.concurrency(),
            command_timeout: self.command_timeout,
            request_timeout,
            retry_sent: self.retry_sent,
            secret: self.http_secret.clone(),
        })
    }
}

/// The application cannot be reached the way it is configured.
#[derive(Debug, thiserror::Error)]
pub enum RpcStartError {
    #[error("rpc_host {0:?} is no gRPC address: use host:port, dns:///host:port or grpc-list://host1:port,host2:port")]
    GrpcHost(String),
    #[error("rpc_host {0:?} is no URL for HTTP RPC: use http://host:port/path or https://host:port/path")]
    HttpHost(String),
    #[error(
        "rpc_host holds a user or a password, which is not sent: calls over HTTP carry http_rpc_secret as a bearer token"
    )]
    Credentials,
    #[error("http_rpc_secret cannot be sent: it may only contain printable ASCII characters")]
    Secret,
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The configured application; `None`: there is none. Must be called within a Tokio runtime. Nothing is connected before
/// the first call, so the application may start later. Dropping the application closes its connections.
///
/// # Errors
///
/// What no application could mend: malformed addresses, unusable TLS files.
pub fn start(config: RpcConfig) -> Result<Option<Arc<dyn Application>>, RpcStartError> {
    let is_url = config.host.starts_with("http://") || config.host.starts_with("https://");
    match config.implementation {
        Implementation::None => Ok(None),
        Implementation::Http => http(config).map(Some),
        Implementation::ByScheme if is_url => http(config).map(Some),
        Implementation::Grpc | Implementation::ByScheme => grpc(config).map(Some),
    }
}

fn grpc(config: RpcConfig) -> Result<Arc<dyn Application>, RpcStartError> {
    let bad = || RpcStartError::GrpcHost(bare_url(&config.host));
    let target = Target::parse(&config.host).ok_or_else(bad)?;
    let with_tls = config.tls.enabled || config.tls.root_ca.is_some();
    let scheme = if with_tls { "https" } else { "http" };
    let origin: http::Uri = format!("{scheme}://{}", target.authority()).parse().map_err(|_| bad())?;
    let tls = if with_tls { Some(config.tls.client(b"h2")?) } else { None };
    let wire = Grpc {
        balancer: Balancer::start(target, Dialer { tls }, config.health_watch.then(|| origin.clone())),
        origin,
        max_recv: or_default(config.max_recv_size),
        max_send: limit(config.max_send_size),
    };
    let calls = config.calls(config.request_timeout);
    Ok(Arc::new(Remote::new(calls, wire)))
}

fn http(config: RpcConfig) -> Result<Arc<dyn Application>, RpcStartError> {
    let bad = || RpcStartError::HttpHost(bare_url(&config.host));
    let url = url::Url::parse(&config.host).map_err(|_| bad())?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(RpcStartError::Credentials);
    }
    let host = url.host_str().filter(|_| matches!(url.scheme(), "http" | "https")).ok_or_else(bad)?;
    let port = url.port_or_known_default().ok_or_else(bad)?;
    let named = &url[url::Position::BeforeHost..url::Position::AfterPort];
    let tls = if url.scheme() == "https" { Some(config.tls.client(b"http/1.1")?) } else { None };
    let to = HostPort { host: host.trim_matches(['[', ']']).to_owned(), port };
    let authorization = match &config.http_secret {
        Some(secret) => {
            let mut value =
                HeaderValue::try_from(format!("Bearer {}", secret.expose())).map_err(|_| RpcStartError::Secret)?;
            value.set_sensitive(true);
            Some(value)
        }
        None => None,
    };
    let wire = Http {
        pool: Pool::new(Dialer { tls }, to, or_default(config.max_recv_size)),
        breaker: Breaker::new(),
        base: url.path().trim_end_matches('/').to_owned(),
        host: HeaderValue::try_from(named).map_err(|_| bad())?,
        authorization,
        max_send: limit(config.max_send_size),
    };
    let request_timeout = if config.request_timeout.is_zero() { HTTP_REQUEST_TIMEOUT } else { config.request_timeout };
    let calls = config.calls(request_timeout);
    Ok(Arc::new(Remote::new(calls, wire)))
}

fn or_default(size: usize) -> usize {
    limit(size).unwrap_or(DEFAULT_MAX_RECV)
}

fn limit(size: usize) -> Option<usize> {
    (size != 0).then_some(size)
}
