//! The life of an embedded server: start, restart, recovery from a full disk, stop.

use super::binary::{self, Binary};
use super::conf::{self, Runtime};
use super::config::{Credentials, EmbeddedConfig, ListenAddr};
use super::lock::{self, StoreLock};
use super::{EmbeddedError, output, probe, spawn};
use rustix::process::{Pid, Signal};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Pause before the first restart; doubled for each that follows.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A server that ran this long was healthy: its end starts a new series of pauses.
const HEALTHY: Duration = Duration::from_secs(30);
/// How often the ports file is looked for.
const PORTS_PERIOD: Duration = Duration::from_millis(5);
/// How often a full disk is looked at.
const SPACE_PERIOD: Duration = Duration::from_secs(1);
/// Free bytes at which a server that ran out of space is restarted: some blocks of the log.
const ENOUGH_SPACE: u64 = 32 << 20;
/// How long a stop takes that nobody set a limit for (the handle was dropped).
const DEFAULT_STOP: Duration = Duration::from_secs(5);

/// What the server is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The process runs; JetStream may still recover its store.
    Starting,
    /// JetStream has answered (with JetStream off: clients can connect).
    Ready,
    /// JetStream has switched itself off: nothing can be stored until there is room.
    StorageFull,
    /// The process has ended; the next one follows after a pause.
    Restarting,
    /// Ended for good.
    Stopped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    pub state: State,
    /// Process id, while there is one.
    pub pid: Option<u32>,
    /// Starts after the first.
    pub restarts: u64,
}

/// A running nats-server that is kept running. Dropping it stops the server in the background; [`EmbeddedServer::stop`]
/// waits for that. The server's process never outlives this one.
#[derive(Debug)]
pub struct EmbeddedServer {
    addr: ListenAddr,
    server_name: String,
    version: String,
    credentials: Credentials,
    status: watch::Receiver<Status>,
    stop: CancellationToken,
    /// How long a stop may take; read when `stop` fires.
    stop_timeout: watch::Sender<Duration>,
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
        let (status, watched) = watch::channel(Status { state: State::Starting, pid: None, restarts: 0 });
        let mut supervisor = Supervisor {
            server_name: config.server_name(),
            addr: config.addr.clone(),
            config,
            lock,
            binary,
            credentials,
            status,
        };

        let mut process = supervisor.launch().await?;
        let pid = process.pid;
        tokio::select! {
            port = supervisor.wait_for_port(pid, true) => supervisor.addr.port = Some(port?),
            status = process.child.wait() => {
                let status = status.map_err(EmbeddedError::Spawn)?;
                let lines = process.output.await.unwrap_or_default();
                return Err(EmbeddedError::Died { status, lines });
            }
        }

        let stop = CancellationToken::new();
        let (stop_timeout, timeout) = watch::channel(DEFAULT_STOP);
        let (addr, server_name) = (supervisor.addr.clone(), supervisor.server_name.clone());
        let (version, credentials) = (supervisor.binary.version.clone(), supervisor.credentials.clone());
        let task = tokio::spawn(supervisor.run(process, stop.clone(), timeout));
        Ok(Self {
            addr,
            server_name,
            version,
            credentials,
            status: watched,
            stop,
            stop_timeout,
            task: Mutex::new(Some(task)),
        })
    }

    /// Where our own clients connect, credentials included: not for logs.
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
        self.stop_timeout.send_replace(timeout);
        self.stop.cancel();
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
        self.stop.cancel();
    }
}

fn validate(config: &EmbeddedConfig) -> Result<(), EmbeddedError> {
    let fail = |text: &str| Err(EmbeddedError::Config(text.to_owned()));
    if config.server_name().is_empty() || config.server_name().contains([' ', '\t', '\n']) {
        return fail("--enats_server_name must not be empty and must not contain white space");
    }
    if url::Url::parse(&reachable(&config.addr)).is_err() {
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

/// A URL that this machine can connect to.
fn reachable(addr: &ListenAddr) -> String {
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

/// One process of the server.
struct Process {
    child: Child,
    pid: u32,
    since: Instant,
    /// Passes on its log; ends with the process, with its last warnings and errors.
    output: JoinHandle<Vec<String>>,
    out_of_space: watch::Receiver<bool>,
}

struct Supervisor {
    config: EmbeddedConfig,
    server_name: String,
    /// With the real port, once it is known.
    addr: ListenAddr,
    lock: StoreLock,
    binary: Binary,
    credentials: Credentials,
    status: watch::Sender<Status>,
}

/// Why a process is no longer watched.
enum End {
    Died(std::io::Result<ExitStatus>),
    SpaceIsBack,
    Stop,
}

impl Supervisor {
    /// Starts one process with a configuration of its own.
    async fn launch(&mut self) -> Result<Process, EmbeddedError> {
        let store = &self.config.store_dir;
        let run = lock::fresh_run_dir(store)?;
        let disk = rustix::fs::statvfs(store).map_err(|e| EmbeddedError::store(store, "measuring it")(e.into()))?;
        let text = conf::generate(
            &self.config,
            &Runtime {
                server_name: &self.server_name,
                store_dir: store,
                ports_dir: &run,
                credentials: &self.credentials,
                addr: &self.addr,
                // The whole disk but for a rest, so that the server refuses messages before writing fails.
                max_store: disk.f_blocks.saturating_mul(disk.f_frsize) / 100 * 95,
            },
        );
        let file = run.join("nats-server.conf");
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&file)
            .and_then(|mut open| open.write_all(text.as_bytes()))
            .map_err(EmbeddedError::store(&file, "writing it"))?;

        let mut command = Command::new(&self.binary.path);
        command.as_std_mut().env_clear();
        // Settings of Carrick, secrets among them, are none of the server's business; its Go runtime's are.
        command.envs(std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("GO")));
        command.arg("-c").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = spawn::spawn(command, self.lock.descriptor()).await.map_err(EmbeddedError::Spawn)?;
        let pid = child.id().expect("a child that was not waited for has an id");
        if let Err(error) = self.lock.note(Some(pid)) {
            tracing::warn!(context = "enats", %error, "cannot write the lock file of the store");
        }
        let stderr = child.stderr.take().expect("its standard error is a pipe");
        let (full, out_of_space) = watch::channel(false);
        let output = tokio::spawn(output::forward(stderr, self.config.debug || self.config.trace, full));
        self.status.send_modify(|status| {
            status.state = State::Starting;
            status.pid = Some(pid);
        });
        Ok(Process { child, pid, since: Instant::now(), output, out_of_space })
    }

    /// Waits until the client listener is up and answers with its port. JetStream recovers its store before that: `first`
    /// gives up waiting after `listen_timeout` where the port is known anyway.
    async fn wait_for_port(&self, pid: u32, first: bool) -> Result<u16, EmbeddedError> {
        let run = self.config.store_dir.join("run");
        let started = Instant::now();
        let mut warn_at = started + self.config.listen_timeout;
        loop {
            if let Some(port) = probe::client_port(&run, pid).map_err(EmbeddedError::store(&run, "reading it"))? {
                return Ok(port);
            }
            if Instant::now() >= warn_at {
                warn_at += self.config.listen_timeout.max(Duration::from_secs(1));
                let seconds = started.elapsed().as_secs();
                if !self.config.jetstream && first {
                    return Err(EmbeddedError::NotListening { addr: self.addr.to_string(), seconds });
                }
                tracing::warn!(context = "enats", seconds, "nats-server is still recovering its store");
                if let (Some(port), true) = (self.addr.port, first) {
                    return Ok(port);
                }
            }
            tokio::time::sleep(PORTS_PERIOD).await;
        }
    }

    async fn run(mut self, first: Process, stop: CancellationToken, timeout: watch::Receiver<Duration>) {
        let mut process = Some(first);
        let mut pause = FIRST_PAUSE;
        loop {
            if let Some(mut running) = process.take() {
                match self.watch(&mut running, &stop).await {
                    End::Stop => {
                        let timeout = *timeout.borrow();
                        self.finish(running, timeout).await;
                        break;
                    }
                    End::SpaceIsBack => {
                        tracing::info!(
                            context = "enats",
                            "there is room on the store's disk again, nats-server is restarted"
                        );
                        self.finish(running, DEFAULT_STOP).await;
                    }
                    End::Died(status) => {
                        let said = running.output.await.unwrap_or_default();
                        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
                        if running.since.elapsed() >= HEALTHY {
                            pause = FIRST_PAUSE;
                        }
                        tracing::error!(
                            context = "enats",
                            pid = running.pid,
                            status,
                            said = said.join("; "),
                            pause_ms = pause.as_millis() as u64,
                            "nats-server ended, it is restarted"
                        );
                    }
                }
            }
            self.status.send_modify(|status| {
                status.state = State::Restarting;
                status.pid = None;
            });
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => break,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
            match self.launch().await {
                Ok(started) => {
                    self.status.send_modify(|status| status.restarts += 1);
                    process = Some(started);
                }
                Err(error) => {
                    tracing::error!(context = "enats", %error, pause_ms = pause.as_millis() as u64, "nats-server cannot be restarted");
                }
            }
        }
        // The lock goes with `self`: whoever sees this can start another server on the store.
        let Self { status, lock, .. } = self;
        drop(lock);
        status.send_modify(|status| {
            status.state = State::Stopped;
            status.pid = None;
        });
    }

    /// Follows one process until something has to be done.
    async fn watch(&self, process: &mut Process, stop: &CancellationToken) -> End {
        let pid = process.pid;
        let mut out_of_space = process.out_of_space.clone();
        let filled = async move {
            if out_of_space.wait_for(|full| *full).await.map(drop).is_err() {
                // The server has closed its log: it has ended, which is seen below.
                std::future::pending::<()>().await;
            }
        };
        let observe = async {
            tokio::pin!(filled);
            tokio::select! {
                () = self.become_ready(pid) => filled.await,
                () = &mut filled => {}
            }
            self.wait_for_space().await;
        };
        tokio::select! {
            // A stop that was asked for is not a death, even if the server is gone already.
            biased;
            () = stop.cancelled() => End::Stop,
            status = process.child.wait() => End::Died(status),
            () = observe => End::SpaceIsBack,
        }
    }

    /// Waits for JetStream and publishes that; complains once if it takes too long.
    async fn become_ready(&self, pid: u32) {
        let ready = async {
            // Not before the listener is up: until then another process could have the port.
            if let Err(error) = self.wait_for_port(pid, false).await {
                tracing::error!(context = "enats", %error, "the ports of nats-server are unknown");
                return std::future::pending().await;
            }
            if self.config.jetstream {
                probe::jetstream_ready(&reachable(&self.addr), &self.credentials).await;
            }
        };
        tokio::pin!(ready);
        let started = Instant::now();
        if tokio::time::timeout(self.config.ready_timeout, &mut ready).await.is_err() {
            let hint = if self.config.cluster.is_some() {
                "; a cluster needs a majority of its (at least three) members"
            } else {
                ""
            };
            tracing::error!(
                context = "enats",
                seconds = started.elapsed().as_secs(),
                "JetStream does not answer yet{hint}"
            );
            ready.await;
        }
        tracing::debug!(context = "enats", pid, ms = started.elapsed().as_millis() as u64, "nats-server is ready");
        self.status.send_modify(|status| status.state = State::Ready);
    }

    /// JetStream has switched itself off for want of space: waits until there is some.
    async fn wait_for_space(&self) {
        let store = &self.config.store_dir;
        self.status.send_modify(|status| status.state = State::StorageFull);
        tracing::error!(
            context = "enats", store = %store.display(),
            "the disk of the store is full: nothing is stored until there is room; nothing was deleted to make some"
        );
        loop {
            tokio::time::sleep(SPACE_PERIOD).await;
            match rustix::fs::statvfs(store) {
                Ok(disk) if disk.f_bavail.saturating_mul(disk.f_frsize) >= ENOUGH_SPACE => return,
                Ok(_) => {}
                Err(errno) => {
                    tracing::warn!(context = "enats", error = %errno, "the disk of the store cannot be measured")
                }
            }
        }
    }

    /// Ends a process: asks, and kills it when its time is over.
    async fn finish(&self, mut process: Process, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut asked = Signal::TERM;
        if self.config.cluster.is_some() {
            // Lame duck: leadership and clients move on first. What takes too long is cut short.
            signal(process.pid, Signal::USR2);
            if tokio::time::timeout(timeout / 2, process.child.wait()).await.is_ok() {
                asked = Signal::USR2;
            }
        }
        if asked == Signal::TERM {
            signal(process.pid, Signal::TERM);
        }
        if tokio::time::timeout_at(deadline, process.child.wait()).await.is_err() {
            tracing::warn!(
                context = "enats",
                pid = process.pid,
                seconds = timeout.as_secs(),
                "nats-server did not stop in time, it is killed"
            );
            if let Err(error) = process.child.kill().await {
                tracing::error!(context = "enats", pid = process.pid, %error, "nats-server cannot be killed");
            }
        }
        // Its log has ended with it.
        let _ = process.output.await;
    }
}

/// To a child that was not waited for, so the id cannot belong to another process.
fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid as i32).expect("a process id is positive");
    if let Err(error) = rustix::process::kill_process(pid, signal) {
        tracing::warn!(context = "enats", %error, "nats-server cannot be signalled");
    }
}
