//! The life of an embedded server: restart, recovery from a full disk, stop.

use super::binary::Binary;
use super::conf::{self, Runtime};
use super::config::{Credentials, EmbeddedConfig, ListenAddr};
use super::lock::StoreLock;
use super::output::Heard;
use super::own::RunDir;
use super::room::{self, Room};
use super::server::{DEFAULT_STOP, State, Status, reachable};
use super::{EmbeddedError, current, growth, output, probe, spawn};
use crate::critical::critical;
use crate::log_limit::limited;
use crate::metrics;
use crate::nats::mark::StoreMark;
use crate::secret::{Secret, bare_url};
use rustix::process::{Pid, Signal};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
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
/// How long a server that ran out of space is left alone: it lets no message expire any more, a new one does. Doubled for
/// each restart that did not help.
const FIRST_PATIENCE: Duration = Duration::from_secs(5);
const LONGEST_PATIENCE: Duration = Duration::from_secs(300);
/// How long a restart waits for the look at a large store.
const LOOK_PATIENCE: Duration = Duration::from_secs(2);

/// One process of the server.
pub(super) struct Process {
    child: Child,
    pub(super) pid: u32,
    since: Instant,
    /// Passes on its log; ends with the process, with its last warnings and errors.
    output: JoinHandle<Vec<String>>,
    pub(super) heard: watch::Receiver<Heard>,
    pub(super) told: Told,
}

/// What the configuration of one process says of its own.
pub(super) struct Told {
    /// Where its files are.
    pub run: RunDir,
    pub addr: ListenAddr,
    pub max_store: u64,
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
        self.told.max_store
    }
}

/// Keeps one server running.
pub(super) struct Supervisor {
    pub(super) config: EmbeddedConfig,
    pub(super) server_name: String,
    /// With the real port, once it is known.
    pub(super) addr: ListenAddr,
    lock: StoreLock,
    mark: Arc<StoreMark>,
    pub(super) binary: Binary,
    pub(super) credentials: Credentials,
    status: watch::Sender<Status>,
    /// [`room::look`], but for tests, and how long a restart waits for it.
    pub(super) look: fn(&Path, &CancellationToken) -> std::io::Result<Room>,
    pub(super) look_patience: Duration,
}

/// Why a process is no longer watched.
enum End {
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
        let (look, look_patience) = (room::look as fn(&Path, &CancellationToken) -> _, LOOK_PATIENCE);
        Self { server_name, addr, config, lock, mark, binary, credentials, status, look, look_patience }
    }

    /// Starts the first process, and waits for its client listener.
    pub(super) async fn start(&mut self) -> Result<Process, EmbeddedError> {
        let store = &self.config.store_dir;
        let measured = self.measure().await.map_err(EmbeddedError::store(store, "measuring it"))?;
        let mut process = self.launch(measured.limit).await?;
        tokio::select! {
            port = self.wait_for_port(process.pid, process.told.run.path(), true) => self.addr.port = Some(port?),
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
    async fn launch(&mut self, max_store: u64) -> Result<Process, EmbeddedError> {
        let told = Told { run: RunDir::fresh(&self.config.store_dir)?, addr: self.addr.clone(), max_store };
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
        growth::show(max_store);
        Ok(Process { child, pid, since: Instant::now(), output, heard, told })
    }

    pub(super) fn configuration(&self, told: &Told) -> String {
        let runtime = Runtime {
            server_name: &self.server_name,
            store_dir: &self.config.store_dir,
            ports_dir: told.run.path(),
            credentials: &self.credentials,
            addr: &told.addr,
            max_store: told.max_store,
        };
        conf::generate(&self.config, &runtime)
    }

    /// Waits until the client listener is up and answers with its port. JetStream recovers its store before that: `first`
    /// gives up waiting after `listen_timeout` where the port is known anyway.
    async fn wait_for_port(&self, pid: u32, run: &Path, first: bool) -> Result<u16, EmbeddedError> {
        let started = Instant::now();
        let mut warn_at = started + self.config.listen_timeout;
        loop {
            if let Some(port) = probe::client_port(run, pid).map_err(EmbeddedError::store(run, "reading it"))? {
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

    /// Watches `first` and its successors until `stop`; `timeout` is read then.
    pub(super) async fn run(mut self, first: Process, stop: CancellationToken, timeout: watch::Receiver<Duration>) {
        let mut limit = first.store_limit();
        let mut process = Some(first);
        let mut pause = FIRST_PAUSE;
        let mut patience = FIRST_PATIENCE;
        let mut no_room = false;
        loop {
            if let Some(mut running) = process.take() {
                let end = self.watch(&mut running, &stop, patience).await;
                let healthy = running.since.elapsed();
                limit = running.store_limit();
                if healthy >= HEALTHY {
                    pause = FIRST_PAUSE;
                }
                match end {
                    End::Stop => {
                        let timeout = *timeout.borrow();
                        if self.finish(running, timeout).await {
                            self.close_store().await;
                        }
                        break;
                    }
                    End::SpaceIsBack => {
                        tracing::info!(
                            context = "enats",
                            "nats-server met a full disk, and there is room on it again: it is restarted"
                        );
                        self.finish(running, DEFAULT_STOP).await;
                        patience = FIRST_PATIENCE;
                    }
                    End::StillFull => {
                        let served = healthy.saturating_sub(patience) >= HEALTHY;
                        patience = if served { FIRST_PATIENCE } else { patience * 2 }.min(LONGEST_PATIENCE);
                        tracing::warn!(
                            context = "enats",
                            "the store's disk is still full: nats-server is restarted, so that it removes expired messages"
                        );
                        self.finish(running, DEFAULT_STOP).await;
                        pause = FIRST_PAUSE;
                    }
                    End::Died(status) => {
                        let said = running.output.await.unwrap_or_default();
                        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
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
                status.state = if no_room { State::StorageFull } else { State::Restarting };
                status.pid = None;
            });
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => break,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
            limit = tokio::select! {
                measured = self.limit_at_restart(limit) => measured,
                () = stop.cancelled() => break,
            };
            match self.launch(limit).await {
                Ok(started) => {
                    metrics::EMBEDDED_NATS_RESTARTS.inc();
                    self.status.send_modify(|status| status.restarts += 1);
                    process = Some(started);
                    no_room = false;
                }
                Err(error) if error.is_out_of_space() => {
                    (no_room, pause) = (true, SPACE_PERIOD);
                    limited!(ERROR, DiskFull, %error, "nats-server cannot be restarted before there is room");
                }
                Err(error) => {
                    no_room = false;
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
    async fn watch(&self, process: &mut Process, stop: &CancellationToken, patience: Duration) -> End {
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
                () = &mut filled => {}
            }
            self.wait_for_space(patience).await
        };
        tokio::select! {
            // A stop that was asked for is not a death, even if the server is gone already.
            biased;
            () = stop.cancelled() => End::Stop,
            status = child.wait() => End::Died(status),
            end = observe => end,
        }
    }

    /// Waits for JetStream and publishes that; complains once if it takes too long.
    async fn become_ready(&self, pid: u32, run: &Path) {
        let ready = async {
            // Not before the listener is up: until then another process could have the port.
            if let Err(error) = self.wait_for_port(pid, run, false).await {
                tracing::error!(context = "enats", %error, "the ports of nats-server are unknown");
                return std::future::pending().await;
            }
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

    /// The server has met a full disk and stays off until it is restarted: waits until that makes sense. What fills the disk
    /// may be messages that have expired since.
    async fn wait_for_space(&self, patience: Duration) -> End {
        let store = &self.config.store_dir;
        // The server says that it was full, and does not come back by itself. What is said now is what is so now.
        if room::free(store).is_ok_and(|free| free >= room::ENOUGH) {
            return End::SpaceIsBack;
        }
        self.status.send_modify(|status| status.state = State::StorageFull);
        tracing::error!(
            context = "enats", store = %store.display(), restart_s = patience.as_secs(),
            "the disk of the store is full: nothing is stored until there is room; nothing but expired messages is removed \
             to make some. Make room on this disk, or lower history_limit or history_ttl"
        );
        let patience_ends = Instant::now() + patience;
        loop {
            tokio::time::sleep(SPACE_PERIOD).await;
            match room::free(store) {
                Ok(free) if free >= room::ENOUGH => return End::SpaceIsBack,
                _ if Instant::now() >= patience_ends => return End::StillFull,
                Ok(_) => {}
                Err(error) => tracing::warn!(context = "enats", %error, "the disk of the store cannot be measured"),
            }
        }
    }

    /// Notes that the store was left in order. Whoever is cut short before that leaves it suspect, should the machine be
    /// started anew.
    async fn close_store(&self) {
        let mark = self.mark.clone();
        let closed = tokio::task::spawn_blocking(move || mark.close()).await;
        let closed = closed.unwrap_or_else(|panicked| Err(std::io::Error::other(panicked)));
        if let Err(error) = closed {
            tracing::warn!(context = "enats", %error, "cannot flush the store and note its clean end");
        }
    }

    /// Ends a process: asks, and kills it when its time is over. True if it ended by itself.
    async fn finish(&self, mut process: Process, timeout: Duration) -> bool {
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
        let ended = tokio::time::timeout_at(deadline, process.child.wait()).await.is_ok();
        if !ended {
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
        ended
    }
}

/// A file that only this user may read, and that is not there yet.
pub(super) fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

/// To a child that was not waited for, so the id cannot belong to another process.
pub(super) fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid as i32).expect("a process id is positive");
    if let Err(error) = rustix::process::kill_process(pid, signal) {
        tracing::warn!(context = "enats", %error, "nats-server cannot be signalled");
    }
}
