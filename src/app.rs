//! Composition root: configuration → parts → listeners → drain. Only this file reads the whole configuration.

pub mod operator;
mod store;

use crate::auth::jwt::{Jwt, JwtConfig};
use crate::auth::{Access, Authenticator, Secrets, StreamsConfig};
use crate::broker::{Broker, Limits, Policy, Storage, Table};
use crate::config::{
    self, BroadcastAdapter, BroadcastListener, BrokerKind, Config, HistoryPolicy, HistoryStorage, Network,
    ShutdownMode, TimePrecision,
};
use crate::critical::critical;
use crate::hub::{Hub, HubConfig, HubFeed};
use crate::ingest::http::{HttpBroadcast, HttpBroadcastConfig};
use crate::log_limit::Summaries;
use crate::node::{Deciders, DisconnectMode, FarewellConfig, Node, NodeConfig, PingPrecision, Registry};
use crate::ops::files;
use crate::ops::health::{Health, HealthConfig};
use crate::ops::metrics_page;
use crate::ops::shutdown::{Phases, Signals};
use crate::ops::{machine, memory};
use crate::rpc::{self, RpcConfig};
use crate::secret::bare_url;
use crate::session::SubscriptionLimits;
use crate::transport::asked::AskedConfig;
use crate::transport::connections::{ConnectionLimits, Connections};
use crate::transport::listener::{self, ListenConfig, Listener, TlsConfig};
use crate::transport::origin::AllowedOrigins;
use crate::transport::proxies::TrustedProxies;
use crate::transport::ws::{WebSockets, WsConfig};
use anyhow::Context;
use axum::Router;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
pub use store::cluster_secret;
use store::{Store, start_broker};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Part of the shutdown budget that is kept for the store: stopping it cleanly is what makes the next start quick.
const STORE_SHARE: Duration = Duration::from_secs(3);

/// Bytes of a client's commands that may wait, however small its messages must be.
const MIN_QUEUED: usize = 64 * 1024;

/// Runs the server until a signal ends it.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let mut signals = Signals::new().context("cannot listen for signals")?;
    let budget = config.app.shutdown_timeout;
    let delay = config.app.shutdown_delay;
    let _summaries = Summaries::start();
    let app = App::start(config).await?;
    let signal = tokio::select! {
        signal = signals.next() => signal,
        error = app.failed() => return Err(error),
    };
    tracing::info!(signal, "shutting down gracefully within {} s (a second signal stops at once)", budget.as_secs());
    let _second = signals.exit_on_next();
    let mut phases = Phases::new(budget);
    phases.delay(delay).await;
    app.stop(&mut phases).await;
    Ok(())
}

/// A running server.
pub struct App {
    node: Arc<Node>,
    hub: Arc<Hub>,
    store: Store,
    /// Where the main listener really is.
    addr: SocketAddr,
    /// Where publications over HTTP are accepted.
    broadcast_addr: SocketAddr,
    /// Cancelled when the shutdown begins.
    draining: CancellationToken,
    listeners: TaskTracker,
    connections: TaskTracker,
    websockets: TaskTracker,
}

impl App {
    /// Starts everything; what cannot work is an error before the first client is let in.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let files = files::raise_limit();
        announce(&config, files);
        let deciders = deciders(&config)?;
        // Bound first: a port in use must not leave a store behind.
        let publishing = config.broadcast_adapters.contains(&BroadcastAdapter::Http);
        let own = match config.http_broadcast.listener {
            BroadcastListener::Own(port) if publishing => Some(port),
            BroadcastListener::Main | BroadcastListener::Own(_) => None,
        };
        let connections = Connections::new(connection_limits(&config, files, 1 + usize::from(own.is_some())));
        let main = bind(&config, config.server.port, &connections).await?;
        let own = match own {
            Some(port) => Some(bind(&config, port, &connections).await?),
            None => None,
        };
        let hub = Hub::new(hub_config(&config));
        let feed = Arc::new(HubFeed(hub.clone()));
        let (broker, mut store) = start_broker(&config, feed, main.local_addr()).await?;
        let registry = Registry::new(config.broker.reauth_spread);
        hub.start(broker.clone(), registry.clone());
        let node = Node::with(
            node_config(&config, &*broker),
            hub.clone(),
            access(&config),
            if config.noauth || config.public { Authenticator::NoAuth } else { Authenticator::Refuse },
            registry,
            deciders,
        );
        let draining = CancellationToken::new();
        let (listeners, connections, websockets) = (TaskTracker::new(), TaskTracker::new(), TaskTracker::new());

        let (addr, scheme) = (main.local_addr(), if main.is_tls() { "https" } else { "http" });
        let base = |addr: SocketAddr| format!("{scheme}://{addr}");
        let broadcast_addr = own.as_ref().map_or(addr, Listener::local_addr);
        let broadcast = if publishing {
            announce_broadcast(&config, &base(broadcast_addr));
            http_broadcast(&config, broker.clone(), broadcast_addr)
        } else {
            Router::new()
        };
        let sockets = WebSockets::new(ws_config(&config), node.clone(), websockets.clone());
        for path in &config.ws.paths {
            tracing::info!(context = "ws", "Handle WebSocket connections at {}{path}", base(addr));
        }
        let health = HealthConfig {
            health_path: config.server.health_path.clone(),
            ready_path: config.server.ready_path.clone(),
        };
        tracing::info!(context = "http", "Handle health requests at {}{}", base(addr), health.health_path);
        let mut router: Router =
            sockets.router().merge(Health::new(store.readiness(&*broker), draining.clone()).router(&health));
        if let Some(path) = &config.metrics.http_path {
            router = router.merge(metrics_page::router(path, &[]));
            tracing::info!(context = "metrics", "Serve metrics at {}{path}", base(addr));
        }
        match own {
            None => router = router.merge(broadcast),
            Some(own) => {
                listeners.spawn(critical("http.listener", own.serve(broadcast, draining.clone(), connections.clone())));
            }
        }
        listeners.spawn(critical("app.memory", memory::give_back(draining.clone())));
        listeners.spawn(critical("http.listener", main.serve(router, draining.clone(), connections.clone())));
        if let Some(path) = &config.server.port_file {
            let ports = serde_json::json!({ "http": addr.to_string(), "broadcast": broadcast_addr.to_string() });
            write_port_file(path, &ports.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(Self { node, hub, store, addr, broadcast_addr, draining, listeners, connections, websockets })
    }

    /// Where clients connect.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where applications publish over HTTP.
    pub fn broadcast_addr(&self) -> SocketAddr {
        self.broadcast_addr
    }

    /// Resolves when the server cannot go on.
    async fn failed(&self) -> anyhow::Error {
        match &self.store.nats {
            Some(nats) => nats.fatal().await.into(),
            None => std::future::pending().await,
        }
    }

    /// Stops in the order that loses nothing: no new work, clients sent away with their sessions saved, then the store.
    pub async fn stop(self, phases: &mut Phases) {
        phases.reserve(STORE_SHARE.min(phases.remaining() / 2));
        self.draining.cancel();
        self.listeners.close();
        phases.run("closing listeners", self.listeners.wait()).await;
        let clients = self.node.registry.len();
        tracing::info!(context = "node", num = clients, "closing active connections");
        self.node.close_all();
        self.websockets.close();
        match phases.run("closing clients", self.websockets.wait()).await {
            Some(()) => tracing::info!(context = "node", "all active connections closed"),
            None => tracing::warn!(
                context = "node",
                num = self.node.registry.len(),
                "terminated while disconnecting active sessions"
            ),
        }
        if let Some(farewells) = &self.node.farewells {
            tracing::info!(context = "disconnector", num = farewells.len(), "invoking remaining disconnects");
            let patience = phases.remaining() / 2;
            phases.run("telling the application who left", farewells.drain(patience)).await;
        }
        self.connections.close();
        phases.run("finishing requests", self.connections.wait()).await;
        self.node.registry.stop().await;
        self.node.tasks.close();
        phases.run("deleting revoked sessions", self.node.tasks.wait()).await;
        phases.reserve(Duration::ZERO);
        phases.run("closing streams", self.hub.stop()).await;
        self.store.stop(phases).await;
    }
}

/// Clients may have what the limit of open files leaves them, or less where that is wanted. The listeners share the reserve
/// out among them.
fn connection_limits(config: &Config, files: u64, listeners: usize) -> ConnectionLimits {
    let shares = files::shares(files);
    let wanted = config.server.max_conn;
    if wanted > shares.connections {
        tracing::warn!(
            context = "config",
            "max_conn is {wanted}, but the open file limit of {files} leaves {} for connections: raise it (ulimit -n, \
             LimitNOFILE)",
            shares.connections
        );
    }
    ConnectionLimits {
        max: if wanted == 0 { shares.connections } else { wanted.min(shares.connections) },
        reserve: (shares.reserve / listeners).max(1),
        per_address: config.server.max_conn_per_address,
    }
}

fn trusted_proxies(config: &Config) -> TrustedProxies {
    TrustedProxies::new(config.server.trusted_proxies.iter().filter_map(|text| Network::parse(text)).collect())
}

async fn bind(config: &Config, port: u16, connections: &Arc<Connections>) -> anyhow::Result<Listener> {
    let listen = ListenConfig {
        host: config.server.host.clone(),
        port,
        tls: config.server.ssl().map(|(cert, key)| TlsConfig { cert: cert.to_owned(), key: key.to_owned() }),
        write_timeout: listener::WRITE_TIMEOUT,
        keepalive: Some(config.server.tcp_keepalive).filter(|silence| !silence.is_zero()),
        proxies: trusted_proxies(config),
    };
    Ok(Listener::bind(&listen, connections.clone()).await?)
}

/// Written whole or not at all: whoever waits for it never reads half of it.
fn write_port_file(path: &std::path::Path, text: &str) -> std::io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let mut file = tempfile::NamedTempFile::new_in(directory.unwrap_or(std::path::Path::new(".")))?;
    std::io::Write::write_all(&mut file, text.as_bytes())?;
    file.persist(path)?;
    Ok(())
}

/// Bytes of saved sessions in memory, unless another limit is given.
const SESSIONS_IN_MEMORY: u64 = 256 << 20;

fn limits(config: &Config) -> Limits {
    let broker = &config.broker;
    let policy = |history: &HistoryPolicy| Policy {
        name: history.name.as_str().into(),
        pattern: history.pattern.clone(),
        limit: history.limit.unwrap_or(broker.history_limit),
        ttl: history.ttl.unwrap_or(broker.history_ttl),
        storage: match history.storage {
            HistoryStorage::File => Storage::File,
            HistoryStorage::Memory => Storage::Memory,
        },
        replicas: usize::from(history.replicas),
    };
    let policies = config.history.0.iter().map(policy).collect();
    Limits {
        table: Table::new(policies, broker.history_limit, broker.history_ttl),
        sessions_ttl: broker.sessions_ttl,
        sessions_budget: match (broker.adapter, broker.sessions_budget) {
            (BrokerKind::Memory, 0) => SESSIONS_IN_MEMORY,
            (_, budget) => budget,
        },
    }
}

fn hub_config(config: &Config) -> HubConfig {
    HubConfig {
        snapshot_budget: usize::try_from(config.broker.snapshot_budget).unwrap_or(usize::MAX),
        linger: config.broker.stream_linger,
        head_check: config.broker.head_check_interval,
        broker_timeout: config.broker.timeout,
        max_streams: match config.streams.max_streams {
            0 => machine::streams(machine::memory()),
            wanted => wanted,
        },
    }
}

fn node_config(config: &Config, broker: &dyn Broker) -> NodeConfig {
    let features = broker.features();
    NodeConfig {
        ping_interval: config.app.ping_interval,
        ping_precision: match config.app.ping_timestamp_precision {
            TimePrecision::Seconds => PingPrecision::Seconds,
            TimePrecision::Milliseconds => PingPrecision::Milliseconds,
            TimePrecision::Nanoseconds => PingPrecision::Nanoseconds,
        },
        pong_timeout: config.app.pong_timeout,
        native_pings: config.app.enable_native_ping,
        sessions_ttl: config.broker.sessions_ttl,
        history_hold: config.broker.history_hold,
        broker_timeout: config.broker.timeout,
        max_pending: config.ws.max_pending_size,
        max_pending_total: config.ws.max_pending_total,
        max_whisper_rate: config.streams.max_whisper_rate,
        // One that executes, and what has come meanwhile.
        max_queued: config.ws.max_message_size.saturating_mul(2).max(MIN_QUEUED),
        max_queued_all: config.ws.max_queued_size,
        auth_timeout: config.ws.auth_timeout,
        subscriptions: SubscriptionLimits {
            number: config.ws.max_subscriptions,
            identifier: config.ws.max_identifier_size,
            total: match config.ws.subscriptions_budget {
                0 => machine::subscriptions(machine::memory()),
                wanted => wanted,
            },
        },
        max_session_size: config.broker.max_session_size,
        max_commands_rate: config.ws.max_commands_rate,
        handover: match config.app.shutdown_mode {
            ShutdownMode::Auto => features.shared && features.sessions,
            ShutdownMode::Resume => features.sessions,
            ShutdownMode::Disconnect => false,
        },
    }
}

/// Who decides about clients. Fails where a file cannot be used.
fn deciders(config: &Config) -> anyhow::Result<Deciders> {
    let jwt = match config.jwt.is_on() {
        true => Some(Jwt::new(jwt_config(config)).context("tokens cannot be verified")?),
        false => None,
    };
    let rpc_config = RpcConfig::from(&config.rpc);
    let concurrency = rpc_config.concurrency();
    let application = rpc::start(rpc_config).context("the application cannot be called")?;
    match &application {
        None => tracing::info!(context = "rpc", "no RPC configured"),
        Some(_) => announce_application(&config.rpc, concurrency),
    }
    Ok(Deciders { application, jwt, farewells: farewell_config(config) })
}

fn farewell_config(config: &Config) -> FarewellConfig {
    FarewellConfig {
        mode: match config.app.disconnect_mode {
            config::DisconnectMode::Always => DisconnectMode::Always,
            config::DisconnectMode::Never => DisconnectMode::Never,
            config::DisconnectMode::Auto => DisconnectMode::Auto,
        },
        rate: config.disconnector.rate,
        backlog: config.disconnector.backlog,
        grace: config.disconnector.grace,
        tell_restores: config.rpc.restore,
    }
}

fn jwt_config(config: &Config) -> JwtConfig {
    let jwt = &config.jwt;
    JwtConfig {
        secrets: jwt.secret.as_ref().map_or_else(Secrets::default, |secret| Secrets::parse(secret.expose())),
        key_file: jwt.key_file.clone(),
        jwks_file: jwt.jwks_file.clone(),
        param: jwt.param.clone(),
        enforced: jwt.force,
        restore_expired: jwt.restore_expired,
    }
}

fn asked_config(config: &Config) -> AskedConfig {
    AskedConfig {
        token_param: config.jwt.is_on().then(|| config.jwt.param.clone()),
        application: config.rpc.implementation != config::RpcKind::None,
        tls: config.server.ssl().is_some(),
        headers: config.rpc.proxy_headers.clone(),
        cookies: config.rpc.proxy_cookies.clone(),
    }
}

fn ws_config(config: &Config) -> WsConfig {
    WsConfig {
        paths: config.ws.paths.clone(),
        allowed_origins: AllowedOrigins::new(&config.server.allowed_origins),
        proxies: trusted_proxies(config),
        asked: asked_config(config),
        max_message_size: config.ws.max_message_size,
        read_buffer_size: config.ws.read_buffer_size,
        write_timeout: config.ws.write_timeout,
    }
}

fn access(config: &Config) -> Access {
    let secrets = |secret: &Option<crate::config::Secret>| {
        secret.as_ref().map_or_else(Secrets::default, |secret| Secrets::parse(secret.expose()))
    };
    let streams = &config.streams;
    Access::new(StreamsConfig {
        secrets: secrets(&streams.secret),
        public: streams.public || config.public,
        whisper: streams.whisper,
        presence: streams.presence,
        pubsub_channel: streams.pubsub_channel.clone(),
        turbo: streams.turbo,
        turbo_secrets: Some(secrets(&streams.turbo_secret)),
        cable_ready: streams.cable_ready,
        cable_ready_secrets: Some(secrets(&streams.cable_ready_secret)),
    })
}

fn http_broadcast(config: &Config, broker: Arc<dyn Broker>, addr: SocketAddr) -> Router {
    let broadcast = HttpBroadcastConfig {
        path: config.http_broadcast.path.clone(),
        keys: config.broadcast_key.as_ref().map(|keys| Secrets::parse(keys.expose())),
        cors: config.http_broadcast.cors_headers,
        allowed_origins: AllowedOrigins::new(&config.server.allowed_origins),
        loopback: addr.ip().is_loopback().then(|| config.server.host.clone()),
        max_body: config.http_broadcast.max_body,
        max_pending: config.http_broadcast.max_pending,
    };
    HttpBroadcast::new(broadcast, broker).router()
}

/// What an operator wants to know first.
fn announce(config: &Config, files: u64) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    tracing::info!(
        "Starting Carrick {} (pid: {}, open file limit: {files}, gomaxprocs: {threads})",
        crate::config::VERSION,
        std::process::id(),
    );
    if let Some(file) = &config.loaded.file {
        tracing::info!("Using configuration from file: {}", file.display());
    }
    if config.public {
        tracing::warn!("Server is running in the public mode");
    }
    if config.public || config.noauth {
        tracing::info!("connection authentication is disabled");
    }
    if !config.streams.pubsub_channel.is_empty() {
        tracing::info!("Using channels router: {}", config.streams.pubsub_channel);
    }
}

fn announce_application(rpc: &config::Rpc, concurrency: rpc::Concurrency) {
    let (implementation, tls) = match rpc.implementation {
        config::RpcKind::Http => ("http", rpc.host.starts_with("https://")),
        _ => ("grpc", rpc.enable_tls || rpc.tls_root_ca.is_some()),
    };
    let list = |names: &[String], none: &str| if names.is_empty() { none.to_owned() } else { names.join(",") };
    tracing::info!(
        context = "rpc",
        "RPC controller initialized: {} (concurrency: {concurrency}, impl: {implementation}, enable_tls: {tls}, \
         proto_versions: v1, proxy_headers: {}, proxy_cookies: {})",
        bare_url(&rpc.host),
        list(&rpc.proxy_headers, "<none>"),
        list(&rpc.proxy_cookies, "<all>"),
    );
}

fn announce_broadcast(config: &Config, base: &str) {
    let authorization = if config.broadcast_key.is_some() { "authorization required" } else { "no authorization" };
    let cors = if config.http_broadcast.cors_headers { ", CORS enabled" } else { "" };
    tracing::info!(
        context = "broadcast",
        "Accept broadcast requests at {base}{} ({authorization}{cors})",
        config.http_broadcast.path
    );
    if config.http_broadcast.key_derived {
        tracing::info!("auto-generated authorization secret from the application secret");
    }
}
