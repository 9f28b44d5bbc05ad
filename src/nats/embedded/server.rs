//! The handle on an embedded server.

use super::EmbeddedError;
use super::config::{ClusterConfig, Credentials, EmbeddedConfig, GatewayConfig, ListenAddr};
use super::ending::{self, DEFAULT_STOP, Stop};
use super::lock::StoreLock;
use super::supervisor::Supervisor;
use super::{SyncMode, binary, conf};
use crate::critical::critical;
use crate::nats::mark::{self, StoreMark};
use crate::nats::private::PrivateError;
use crate::secret::Secret;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// What the server is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// The process runs; JetStream may still recover its store.
    #[default]
    Starting,
    /// A member of a cluster: JetStream answers, but what this member keeps is not up to date yet.
    CatchingUp,
    /// JetStream has answered, and in a cluster this member's copies are up to date (with JetStream off: clients can connect).
    Ready,
    /// The server met a full disk, or cannot be started for want of room. It is restarted when there is room; after a while
    /// also without, because expired messages are only removed by a new process, which may make some. Such a restart goes
    /// through the other states, see [`Status::disk_full`].
    StorageFull,
    /// The process has ended; the next one follows after a pause.
    Restarting,
    /// Ended for good.
    Stopped,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub state: State,
    /// Process id, while there is one.
    pub pid: Option<u32>,
    /// Starts after the first.
    pub restarts: u64,
    /// Nothing can be stored until there is room on the disk. It stays so through restarts that bring no room.
    pub disk_full: bool,
}

/// A running nats-server that is kept running. Dropping it stops the server in the background; [`EmbeddedServer::stop`]
/// waits for that. The server's process never outlives this one.
#[derive(Debug)]
pub struct EmbeddedServer {
    addr: ListenAddr,
    server_name: String,
    version: String,
    credentials: Credentials,
    mark: Arc<StoreMark>,
    /// Bytes that JetStream may take, as of the start.
    store_limit: u64,
    status: watch::Receiver<Status>,
    /// Asks for a stop: by when.
    stop: watch::Sender<Option<Instant>>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl EmbeddedServer {
    /// Starts a server and waits until clients can connect. A large store that takes longer to recover is not an error:
    /// with a fixed port this returns after `listen_timeout`, and the broker finds the server when it is ready.
    ///
    /// # Errors
    ///
    /// What will not get better by itself: an address in use, a locked or unusable store, no executable, a server that
    /// ends at once.
    pub async fn start(mut config: EmbeddedConfig) -> Result<Self, EmbeddedError> {
        validate(&config)?;
        if let (Some(gateway), None) = (&config.gateway, &config.cluster) {
            config.cluster = Some(alone(gateway)?);
        }
        let given = config.store_dir.clone();
        config.store_dir = std::path::absolute(&given).map_err(EmbeddedError::store(given, "finding it"))?;
        let lock = StoreLock::acquire(&config.store_dir, config.lock_timeout).await?;
        // Before the store is recovered, which may take a while; the server itself would find out only afterwards.
        check_free(&config.addr, "--enats_addr").await?;
        if let Some(cluster) = &config.cluster {
            check_free(&cluster.addr, "--enats_cluster").await?;
        }
        if let Some(gateway) = &config.gateway {
            check_free(&gateway.addr, "--enats_gateway").await?;
        }
        let binary = binary::obtain(config.bin.as_deref(), &config.store_dir).await?;
        let credentials = conf::client_credentials(&config).map_err(|e| EmbeddedError::Config(e.to_string()))?;
        let mark = open_mark(&config).await?;
        let (status, watched) = watch::channel(Status::default());
        let mut supervisor = Supervisor::new(config, lock, mark.clone(), binary, credentials, status);
        let process = supervisor.start().await?;
        supervisor.announce();
        let store_limit = process.store_limit();

        let (stop, asked) = Stop::new();
        let (addr, server_name) = (supervisor.addr.clone(), supervisor.server_name.clone());
        let (version, credentials) = (supervisor.binary.version.clone(), supervisor.credentials.clone());
        let task = tokio::spawn(critical("enats.supervisor", supervisor.run(process, asked)));
        Ok(Self {
            addr,
            server_name,
            version,
            credentials,
            mark,
            store_limit,
            status: watched,
            stop,
            task: Mutex::new(Some(task)),
        })
    }

    /// Where our own clients connect, credentials included: not for logs. async-nats itself ignores credentials in a URL,
    /// so they must be taken out of it, or from [`EmbeddedServer::credentials`].
    pub fn client_url(&self) -> String {
        let Credentials { user, password } = &self.credentials;
        let mut url =
            url::Url::parse(&reachable(&self.addr)).expect("made of a host that could be listened on and a port");
        url.set_username(user).expect("a URL with a host takes a user");
        url.set_password(Some(password.expose())).expect("a URL with a host takes a password");
        url.to_string()
    }

    /// User and password, for clients that take them apart from the URL.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The client listener, with its real port; the same after restarts.
    pub fn addr(&self) -> &ListenAddr {
        &self.addr
    }

    pub fn server_name(&self) -> &str {
        &self.server_name
    }

    /// Version of the nats-server that runs.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether the store can have lost what it had acknowledged, see [`crate::nats::mark`].
    pub fn mark(&self) -> &Arc<StoreMark> {
        &self.mark
    }

    /// Bytes that the store could take when the server was started. It may be more since.
    pub fn store_limit(&self) -> u64 {
        self.store_limit
    }

    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Process id of the server, while there is one.
    pub fn pid(&self) -> Option<u32> {
        self.status.borrow().pid
    }

    /// Stops the server: a clean end, in a cluster one that lets its clients move on first; after `timeout` it is killed.
    /// Returns when the process is gone. Stopping again waits for the first stop, or returns at once.
    pub async fn stop(&self, timeout: Duration) {
        ending::ask(&self.stop, timeout);
        let task = self.task.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::error!(context = "enats", %error, "the supervisor of nats-server failed; the server was killed with it");
        }
        // A concurrent second caller has no task to wait for.
        let mut status = self.status.clone();
        let _ = status.wait_for(|status| status.state == State::Stopped).await;
    }
}

impl Drop for EmbeddedServer {
    fn drop(&mut self) {
        ending::ask(&self.stop, DEFAULT_STOP);
    }
}

fn validate(config: &EmbeddedConfig) -> Result<(), EmbeddedError> {
    let fail = |text: &str| Err(EmbeddedError::Config(text.to_owned()));
    if config.server_name().is_empty() || config.server_name().contains([' ', '\t', '\n']) {
        return fail("--enats_server_name must not be empty and must not contain white space");
    }
    let with_port = ListenAddr { port: Some(1), ..config.addr.clone() };
    if url::Url::parse(&reachable(&with_port)).is_err() {
        return fail("--enats_addr: the host is not valid");
    }
    // The server's own ceiling.
    if config.max_payload > 64 << 20 {
        return fail("--enats_max_payload must not exceed 67108864 (64 MiB)");
    }
    if let (Some(cluster), Some(gateway)) = (&config.cluster, &config.gateway)
        && cluster.name != gateway.name
    {
        return fail("the gateway's name must be the cluster's");
    }
    Ok(())
}

/// JetStream does not start behind a gateway without a cluster: one of a single member, whose only route is itself.
fn alone(gateway: &GatewayConfig) -> Result<ClusterConfig, EmbeddedError> {
    let addr = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let port = addr.map_err(EmbeddedError::Spawn)?.port();
    let addr = ListenAddr { host: "127.0.0.1".to_owned(), port: Some(port) };
    let routes = vec![Secret::new(format!("nats://{addr}"))];
    Ok(ClusterConfig { addr, name: gateway.name.clone(), routes, secret: gateway.secret.clone() })
}

async fn open_mark(config: &EmbeddedConfig) -> Result<Arc<StoreMark>, EmbeddedError> {
    let (store, always) = (config.store_dir.clone(), config.sync == Some(SyncMode::Always));
    let opened = tokio::task::spawn_blocking(move || StoreMark::open(&store, always)).await;
    let opened = opened.unwrap_or_else(|panicked| Err(std::io::Error::other(panicked)));
    let path = || config.store_dir.join(mark::FILE);
    opened.map(Arc::new).map_err(|error| match error.downcast::<PrivateError>() {
        Ok(unsafe_file) => unsafe_file.into(),
        Err(source) => EmbeddedError::store(path(), "writing it")(source),
    })
}

/// A URL that this machine can connect to.
pub fn reachable(addr: &ListenAddr) -> String {
    let host = match addr.host.as_str() {
        _ if !addr.is_unspecified() => addr.host.clone(),
        host if host.contains(':') => "::1".to_owned(),
        _ => "127.0.0.1".to_owned(),
    };
    format!("nats://{}", ListenAddr { host, port: addr.port })
}

async fn check_free(addr: &ListenAddr, option: &'static str) -> Result<(), EmbeddedError> {
    let Some(port) = addr.port else { return Ok(()) };
    match tokio::net::TcpListener::bind((addr.host.as_str(), port)).await {
        Ok(_) => Ok(()),
        Err(source) => Err(EmbeddedError::Listen { addr: addr.to_string(), option, source }),
    }
}
