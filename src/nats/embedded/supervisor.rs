//! One process of an embedded server: its start, and what is done while it runs. What comes after it is in
//! [`super::restarts`].

use super::binary::Binary;
use super::conf::{self, Runtime};
use super::config::{Credentials, EmbeddedConfig, ListenAddr};
use super::ending::Stop;
use super::full_disk::FIRST_PATIENCE;
use super::lock::StoreLock;
use super::output::Heard;
use super::own::RunDir;
use super::room::{self, Limit, Room};
use super::server::{State, Status, reachable};
use super::{EmbeddedError, current, growth, output, probe, spawn};
use crate::critical::critical;
use crate::nats::mark::StoreMark;
use crate::secret::{Secret, bare_url};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often the ports file is looked for.
const PORTS_PERIOD: Duration = Duration::from_millis(5);
/// How long a restart waits for the look at a large store.
const LOOK_PATIENCE: Duration = Duration::from_secs(2);

/// One process of the server.
pub(super) struct Process {
    pub(super) child: Child,
    pub(super) pid: u32,
    pub(super) since: Instant,
    /// Passes on its log; ends with the process, with its last warnings and errors.
    pub(super) output: JoinHandle<Vec<String>>,
    pub(super) heard: watch::Receiver<Heard>,
    pub(super) told: Told,
}

/// What the configuration of one process says of its own.
pub(super) struct Told {
    /// Where its files are.
    pub run: RunDir,
    pub addr: ListenAddr,
    pub limit: Limit,
}

impl Told {
    /// The configuration, as the server names it.
    pub fn file(&self) -> PathBuf {
        self.run.path().join("nats-server.conf")
    }
}

impl Process {
    /// Bytes that JetStream may take.
    pub(super) fn store_limit(&self) -> u64 {
        self.told.limit.bytes
    }
}

/// Keeps one server running.
pub(super) struct Supervisor {
    pub(super) config: EmbeddedConfig,
    pub(super) server_name: String,
    /// With the real port, once it is known.
    pub(super) addr: ListenAddr,
    pub(super) lock: StoreLock,
    pub(super) mark: Arc<StoreMark>,
    pub(super) binary: Binary,
    pub(super) credentials: Credentials,
    pub(super) status: watch::Sender<Status>,
    /// [`room::look`], but for tests, and how long a restart waits for it.
    pub(super) look: fn(&Path, &CancellationToken) -> std::io::Result<Room>,
    pub(super) look_patience: Duration,
    /// [`room::free`] and [`FIRST_PATIENCE`], but for tests.
    pub(super) free: fn(&Path) -> std::io::Result<u64>,
    pub(super) first_patience: Duration,
}

/// Why a process is no longer watched.
pub(super) enum End {
    Died(std::io::Result<ExitStatus>),
    SpaceIsBack,
    /// There is no room yet. The next process lets expire what should have.
    StillFull,
    Stop,
}

impl Supervisor {
    /// `config.store_dir` is absolute and locked by `lock`.
    pub(super) fn new(
        config: EmbeddedConfig,
        lock: StoreLock,
        mark: Arc<StoreMark>,
        binary: Binary,
        credentials: Credentials,
        status: watch::Sender<Status>,
    ) -> Self {
        let (server_name, addr) = (config.server_name(), config.addr.clone());
        Self {
            server_name,
            addr,
            config,
            lock,
            mark,
            binary,
            credentials,
            status,
            look: room::look,
            look_patience: LOOK_PATIENCE,
            free: room::free,
            first_patience: FIRST_PATIENCE,
        }
    }

    /// Starts the first process, and waits for its client listener.
    pub(super) async fn start(&mut self) -> Result<Process, EmbeddedError> {
        let store = &self.config.store_dir;
        let measured = self.measure().await.map_err(EmbeddedError::store(store, "measuring it"))?;
        let mut process = self.launch(Limit::of(measured)).await?;
        tokio::select! {
            port = self.first_port(process.pid, process.told.run.path()) => self.addr.port = Some(port?),
            status = process.child.wait() => {
                let status = status.map_err(EmbeddedError::Spawn)?;
                let lines = process.output.await.unwrap_or_default();
                return Err(EmbeddedError::Died { status, lines });
            }
        }
        Ok(process)
    }

    /// Tells the operator what runs and where it keeps its data.
    pub(super) fn announce(&self) {
        let mut details = format!("server_name: {}", self.server_name);
        if let Some(cluster) = &self.config.cluster {
            details.push_str(&format!(", cluster: {} at {}", cluster.name, cluster.addr));
            if !cluster.routes.is_empty() {
                // Without credentials that a URL may carry.
                let bare = |url: &Secret| bare_url(url.expose()).replace("nats://", "");
                let routes: Vec<String> = cluster.routes.iter().map(bare).collect();
                details.push_str(&format!(", routes: {}", routes.join(" ")));
            }
        }
        if let Some(gateway) = &self.config.gateway {
            details.push_str(&format!(", gateway: {} at {}", gateway.name, gateway.addr));
        }
        let (store, version) = (self.config.store_dir.display(), &self.binary.version);
        tracing::info!(context = "enats", %store, version, "Embedded NATS server started: {} ({details})", self.addr);
        if self.config.cluster.is_some() && self.config.jetstream {
            tracing::info!(
                context = "enats",
                "JetStream stores nothing until a majority of at least three members is up"
            );
        }
    }

    /// Starts one process with a configuration of its own.
    pub(super) async fn launch(&mut self, limit: Limit) -> Result<Process, EmbeddedError> {
        let told = Told { run: RunDir::fresh(&self.config.store_dir)?, addr: self.addr.clone(), limit };
        let file = told.file();
        write_new(&file, &self.configuration(&told)).map_err(EmbeddedError::store(&file, "writing it"))?;
        told.run.check().map_err(EmbeddedError::store(&file, "finding it again"))?;

        self.binary.check().await?;
        let mut command = Command::new(&self.binary.program);
        command.arg0(&self.binary.path);
        command.as_std_mut().env_clear();
        // Settings of Carrick, secrets among them, are none of the server's business; its Go runtime's are.
        command.envs(std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("GO")));
        command.arg("-c").arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let inherited = [self.lock.descriptor(), told.run.descriptor()];
        let mut child = spawn::spawn(command, inherited).await.map_err(EmbeddedError::Spawn)?;
        let pid = child.id().expect("a child that was not waited for has an id");
        if let Err(error) = self.lock.note(Some(pid)) {
            tracing::warn!(context = "enats", %error, "cannot write the lock file of the store");
        }
        let stderr = child.stderr.take().expect("its standard error is a pipe");
        let (said, heard) = watch::channel(Heard::default());
        let output = tokio::spawn(critical(
            "enats.output",
            output::forward(stderr, self.config.debug || self.config.trace, said),
        ));
        self.status.send_modify(|status| {
            status.state = State::Starting;
            status.pid = Some(pid);
        });
        growth::show(limit.bytes);
        Ok(Process { child, pid, since: Instant::now(), output, heard, told })
    }

    pub(super) fn configuration(&self, told: &Told) -> String {
        let runtime = Runtime {
            server_name: &self.server_name,
            store_dir: &self.config.store_dir,
            ports_dir: told.run.path(),
            credentials: &self.credentials,
            addr: &told.addr,
            max_store: told.limit.bytes,
        };
        conf::generate(&self.config, &runtime)
    }

    /// The port of the first process. JetStream recovers its store before the listener is up: that is not waited for beyond
    /// `listen_timeout` where the port is known anyway.
    async fn first_port(&self, pid: u32, run: &Path) -> Result<u16, EmbeddedError> {
        let begun = Instant::now();
        let mut port = pin!(self.wait_for_port(pid, run));
        if let Ok(port) = tokio::time::timeout(self.config.listen_timeout, &mut port).await {
            return Ok(port);
        }
        let seconds = begun.elapsed().as_secs();
        if !self.config.jetstream {
            return Err(EmbeddedError::NotListening { addr: self.addr.to_string(), seconds });
        }
        if let Some(port) = self.addr.port {
            tracing::warn!(context = "enats", seconds, "nats-server is still recovering its store");
            return Ok(port);
        }
        probe::client_port(run, pid).map_err(EmbeddedError::store(run, "reading it"))?;
        Ok(port.await)
    }

    /// Waits until the client listener is up and answers with its port.
    pub(super) async fn wait_for_port(&self, pid: u32, run: &Path) -> u16 {
        let period = self.config.listen_timeout.max(Duration::from_secs(1));
        let started = Instant::now();
        let (mut recovers_at, mut fails_at) = (started + self.config.listen_timeout, started);
        loop {
            let now = Instant::now();
            match probe::client_port(run, pid) {
                Ok(Some(port)) => return port,
                Ok(None) if now >= recovers_at => {
                    recovers_at = now + period;
                    let seconds = started.elapsed().as_secs();
                    tracing::warn!(context = "enats", seconds, "nats-server is still recovering its store");
                }
                // It may pass: there are moments without a descriptor to spare.
                Err(error) if now >= fails_at => {
                    fails_at = now + period;
                    tracing::error!(context = "enats", %error, "cannot read the ports of nats-server, trying again");
                }
                Ok(None) | Err(_) => {}
            }
            tokio::time::sleep(PORTS_PERIOD).await;
        }
    }

    /// Follows one process until something has to be done.
    pub(super) async fn watch(&self, process: &mut Process, stop: &Stop, patience: Duration) -> End {
        let pid = process.pid;
        let (heard, mut full) = (process.heard.clone(), process.heard.clone());
        let filled = async move {
            if full.wait_for(|heard| heard.out_of_space).await.map(drop).is_err() {
                // The server has closed its log: it has ended, which is seen below.
                std::future::pending::<()>().await;
            }
        };
        let Process { child, told, .. } = process;
        let run = told.run.path().to_owned();
        let observe = async {
            tokio::pin!(filled);
            tokio::select! {
                () = async {
                    self.become_ready(pid, &run).await;
                    let member = conf::system_credentials(&self.config).filter(|_| self.config.jetstream);
                    let Some(system) = member else { return std::future::pending().await };
                    current::stay_current(&reachable(&self.addr), &self.credentials, &system, &self.status).await;
                } => {}
                () = async {
                    // It reads no configuration again before it has started.
                    let mut status = self.status.subscribe();
                    let ready = status.wait_for(|status| status.state == State::Ready).await.is_ok();
                    if !ready || !self.config.jetstream {
                        return std::future::pending().await;
                    }
                    self.follow_room(pid, told, heard).await
                } => {}
                () = async {
                    // JetStream answers: it has recovered its store, and removes what has expired.
                    let mut status = self.status.subscribe();
                    let answers = |status: &Status| matches!(status.state, State::CatchingUp | State::Ready);
                    if status.wait_for(answers).await.is_ok() {
                        self.until_something_fits().await;
                    }
                    std::future::pending().await
                } => {}
                () = &mut filled => {}
            }
            self.wait_for_space(patience).await
        };
        tokio::select! {
            // A stop that was asked for is not a death, even if the server is gone already.
            biased;
            _ = stop.asked() => End::Stop,
            status = child.wait() => End::Died(status),
            end = observe => end,
        }
    }

    /// Waits for JetStream and publishes that; complains once if it takes too long.
    async fn become_ready(&self, pid: u32, run: &Path) {
        let ready = async {
            // Not before the listener is up: until then another process could have the port.
            self.wait_for_port(pid, run).await;
            if self.config.jetstream {
                probe::jetstream_ready(&reachable(&self.addr), &self.credentials).await;
                if let Some(system) = conf::system_credentials(&self.config) {
                    self.status.send_modify(|status| status.state = State::CatchingUp);
                    current::until_current(&reachable(&self.addr), &self.credentials, &system).await;
                }
            }
        };
        tokio::pin!(ready);
        let started = Instant::now();
        if tokio::time::timeout(self.config.ready_timeout, &mut ready).await.is_err() {
            let seconds = started.elapsed().as_secs();
            if self.status.borrow().state == State::CatchingUp {
                tracing::warn!(context = "enats", seconds, "the copies on this member are still catching up");
            } else {
                let hint = if self.config.cluster.is_some() {
                    "; a cluster needs a majority of its (at least three) members"
                } else {
                    ""
                };
                tracing::error!(context = "enats", seconds, "JetStream does not answer yet{hint}");
            }
            ready.await;
        }
        tracing::debug!(context = "enats", pid, ms = started.elapsed().as_millis() as u64, "nats-server is ready");
        self.status.send_modify(|status| status.state = State::Ready);
    }
}

/// A file that only this user may read, and that is not there yet.
pub(super) fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}
