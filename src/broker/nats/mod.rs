//! The broker on NATS JetStream: streams as subjects of a few logs, read without consumers.
//!
//! * Publishing (`publish`): an acknowledged publish with a message id, repeated until it is answered.
//! * The live feed (`live`): the log republishes each stored message as a core message; one subscription per open
//!   stream.
//! * History (`read`, `heads`, and `range` for many streams at once): direct gets that any replica may answer, believed
//!   only as far as a copy that is up to date, or a leader that a majority follows, confirms.
//! * Sessions (`sessions`) are keys of a bucket, remote commands (`commands`, `followed`) a log of their own. What is newest in
//!   each is read from a copy that says how far it has come (`fresh`).
//! * Connections (`generation`): each lives once. Before a new one is used, the log is compared with what this node
//!   remembers of it (`witness`, `epoch`); as long as it lives it is looked after (`maintain`). Requests are repeated until
//!   they are answered (`attempts`).
//! * Leaders of a cluster are kept together (`gather`), so that the death of most servers costs nothing.
//! * Readiness: whether the live feed brings messages by itself (`pulse`), what NATS refuses this node (`permissions`,
//!   `probe`).
//! * Policies (`policies`, `logs`): one log each; who may change them, and how running nodes follow.
//! * Places for reads (`slots`): clients who wait first, repairs never starved.
//! * The contract itself (`contract`): each call handed to the part that carries it out.
//! * What all of it looks like inside NATS (`layout`) is described in `nats/STREAMS.md`.
//!
//! Callers are dropped at any await, and a connection may be over after one. A request holds what it began with: its
//! `Generation`, its `Log` with the epoch, the `Rules` that it follows. What it leaves behind is held by guards: places of
//! reads, entries of the multiplexer, subscriptions of the live feed (`live`), the end of the connection itself.

mod admin;
mod api;
mod attempts;
mod clock;
mod commands;
mod config;
mod contract;
mod distrust;
mod epoch;
mod find;
mod followed;
mod fresh;
mod gather;
mod generation;
mod headers;
mod heads;
mod layout;
mod lease;
mod live;
mod logs;
mod maintain;
mod mux;
mod owed;
mod peers;
mod permissions;
mod policies;
mod probe;
mod publish;
mod pulse;
mod range;
mod read;
mod sessions;
mod skew;
mod slots;
mod token;
mod witness;

#[cfg(test)]
mod tests;

pub use admin::{Admin, AdminError, Overview, Shown};
pub use config::{NatsBrokerConfig, StartError};
pub use policies::Change;

use super::{Feed, Logs, Status, Unavailable};
use crate::critical::critical;
use api::{ApiError, code};
use attempts::Attempts;
use config::Names;
use generation::Generation;
use logs::Rules;
use slots::Slots;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use witness::Witness;

/// How long [`NatsBroker::start`] waits for a verdict on the NATS server; it does not wait for the server itself.
const START_PATIENCE: Duration = Duration::from_secs(2);

/// The handle that the node holds. See the module's documentation.
pub struct NatsBroker {
    core: Arc<Core>,
}

/// What all parts share.
struct Core {
    config: NatsBrokerConfig,
    names: Names,
    feed: Arc<dyn Feed>,
    status: watch::Sender<Status>,
    /// The verified connection, if there is one.
    current: watch::Sender<Option<Arc<Generation>>>,
    /// Since when there is none.
    away_since: Mutex<Instant>,
    /// By log.
    witnesses: Mutex<Vec<(String, Arc<Witness>)>>,
    rules: Mutex<Arc<Rules>>,
    clocks: Arc<skew::Clocks>,
    /// Sequence of the newest proposal of other policies that this node is prepared for.
    prepared: AtomicU64,
    commands: Mutex<Option<followed::Followed>>,
    /// Highest revision of a saved session that was acknowledged to this node, and when.
    saved: Mutex<Option<(u64, Instant)>>,
    /// What was done to bring leaders together.
    gathering: tokio::sync::Mutex<gather::Gathering>,
    fatal: watch::Sender<Option<StartError>>,
    /// Errors of NATS that were logged.
    errors_logged: Mutex<BTreeSet<String>>,
    /// Counts failed attempts to become ready.
    attempts: watch::Sender<u64>,
    /// The configured policies have been applied (or were there); from now on those in the store hold.
    settled: AtomicBool,
    /// The store refused a write for want of space; cleared by a write that succeeds.
    storage_full: AtomicBool,
    /// The disk under the store is full, as whoever runs the server says: it does not answer writes itself then.
    disk_full: watch::Sender<bool>,
    /// This node stops and has taken back its lease. Held while a lease is written, so that they stay in order.
    leaving: tokio::sync::Mutex<bool>,
    /// Look at the log now.
    nudge: Notify,
    /// Batch reads under way.
    slots: Slots,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Why a connection did not become usable.
#[derive(Clone, Debug, thiserror::Error)]
enum SetupError {
    #[error("{0}")]
    Fatal(StartError),
    #[error("{0}")]
    Retry(String),
    /// As many copies as asked for need more servers.
    #[error("{0}: the copies of nats_replicas need as many servers, up and with JetStream")]
    TooFewServers(String),
    /// The log, or a bucket, that this connection works with is not there any more.
    #[error("{0}")]
    LogGone(String),
    /// Other policies hold than those that this connection works with.
    #[error("the history policies have changed")]
    PoliciesChanged,
}

impl SetupError {
    fn fatal(text: impl Into<String>) -> Self {
        Self::Fatal(StartError(text.into()))
    }

    fn retry(text: impl Into<String>) -> Self {
        Self::Retry(text.into())
    }
}

impl From<ApiError> for SetupError {
    fn from(error: ApiError) -> Self {
        if error.is(code::NOT_ENABLED) || error.is(code::NOT_ENABLED_FOR_ACCOUNT) {
            return Self::fatal("JetStream is not enabled for this NATS account: enable it on the server");
        }
        if error.is(code::REPLICAS_NOT_SUPPORTED) {
            return Self::fatal("this NATS server is not part of a cluster: set nats_replicas to 1");
        }
        if error.is(code::STREAM_NOT_FOUND) {
            return Self::LogGone("a log or bucket is not there".into());
        }
        Self::Retry(error.to_string())
    }
}

impl NatsBroker {
    /// Starts connecting. NATS need not be there: the broker comes up by itself, see [its status](super::Broker::status). If NATS
    /// answers within two seconds that it cannot serve this configuration, that is the error; later such verdicts
    /// show in the status, the log and [`NatsBroker::fatal`].
    pub async fn start(config: NatsBrokerConfig, feed: Arc<dyn Feed>) -> Result<Arc<Self>, StartError> {
        config.check()?;
        let core = Core::new(config, feed);
        for mark in core.config.witness_file.as_deref().map(witness::read_file).unwrap_or_default() {
            core.witness(&mark.log.clone()).set(mark);
        }
        let mut attempts = core.attempts.subscribe();
        let mut current = core.current.subscribe();
        core.tasks.spawn(critical("broker.connection", core.clone().supervise()));
        if core.config.witness_file.is_some() {
            core.tasks.spawn(critical("broker.witness", core.clone().keep_witness()));
        }
        let broker = Arc::new(Self { core });
        // Whichever comes first: ready, a verdict, or a failed attempt (then nobody is there to give one).
        let _ = tokio::time::timeout(START_PATIENCE, async {
            tokio::select! {
                _ = current.wait_for(Option::is_some) => {}
                _ = attempts.wait_for(|count| *count > 0) => {}
            }
        })
        .await;
        let verdict = broker.core.fatal.borrow().clone();
        if let Some(error) = verdict {
            broker.shutdown().await;
            return Err(error);
        }
        Ok(broker)
    }

    /// Resolves with a misfit that only an operator can mend, also one found after the start.
    pub async fn fatal(&self) -> StartError {
        let mut fatal = self.core.fatal.subscribe();
        let found = fatal.wait_for(Option::is_some).await.map(|error| error.clone());
        match found {
            Ok(Some(error)) => error,
            // The sender lives as long as this handle.
            _ => std::future::pending().await,
        }
    }

    /// Says that the disk under the store is full, or that there is room again. nats-server leaves writes unanswered then.
    pub fn set_disk_full(&self, full: bool) {
        self.core.disk_full.send_replace(full);
        self.core.nudge.notify_one();
    }

    /// Ends all tasks and the connection. Calls under way fail.
    pub async fn shutdown(&self) {
        let core = &self.core;
        if let Some(generation) = core.generation()
            && let Err(error) = core.leave(&generation.connection).await
        {
            tracing::debug!(%error, "cannot end this node's lease");
        }
        core.stop.cancel();
        if let Some(generation) = core.current.send_replace(None) {
            generation.dead().cancel();
        }
        core.tasks.close();
        core.tasks.wait().await;
        core.write_witness().await;
        core.status.send_modify(|status| {
            status.ready = false;
            status.readable = false;
            status.reason = Arc::from("stopped");
        });
    }
}

impl Drop for NatsBroker {
    /// Without [`NatsBroker::shutdown`] the tasks end too, only nobody waits for them.
    fn drop(&mut self) {
        self.core.stop.cancel();
        if let Some(generation) = self.core.current.send_replace(None) {
            generation.dead().cancel();
        }
    }
}

impl Core {
    fn new(config: NatsBrokerConfig, feed: Arc<dyn Feed>) -> Arc<Self> {
        let status = Status {
            ready: false,
            readable: false,
            generation: 0,
            logs: Logs::unknown(config.limits.table.clone()),
            reason: Arc::from("connecting to NATS"),
        };
        Arc::new(Self {
            names: Names::new(&config),
            feed,
            status: watch::Sender::new(status),
            current: watch::Sender::new(None),
            away_since: Mutex::new(Instant::now()),
            witnesses: Mutex::default(),
            rules: Mutex::new(Arc::new(Rules { table: config.limits.table.clone(), next: None })),
            clocks: Arc::default(),
            prepared: AtomicU64::new(0),
            commands: Mutex::default(),
            saved: Mutex::default(),
            gathering: tokio::sync::Mutex::default(),
            fatal: watch::Sender::new(None),
            errors_logged: Mutex::default(),
            attempts: watch::Sender::new(0),
            settled: AtomicBool::new(false),
            storage_full: AtomicBool::new(false),
            disk_full: watch::Sender::new(false),
            leaving: tokio::sync::Mutex::default(),
            nudge: Notify::new(),
            slots: Slots::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            config,
        })
    }

    fn generation(&self) -> Option<Arc<Generation>> {
        self.current.borrow().clone()
    }

    async fn wait_for_generation(&self) -> Arc<Generation> {
        let mut current = self.current.subscribe();
        let found = current.wait_for(Option::is_some).await.map(|found| found.clone());
        match found {
            Ok(Some(generation)) => generation,
            // The sender lives as long as `self`.
            _ => std::future::pending().await,
        }
    }

    fn away(&self) {
        *self.away_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn away_for(&self) -> Duration {
        self.away_since.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    fn saves_sessions(&self) -> Result<(), Unavailable> {
        let refused = || Unavailable("sessions are not saved: sessions_ttl is 0".into());
        self.config.sessions().then_some(()).ok_or_else(refused)
    }

    fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Relaxed)
    }

    fn settle(&self) {
        self.settled.store(true, Ordering::Relaxed);
    }

    /// Writes the witness beside the store, at most every second.
    async fn keep_witness(self: Arc<Self>) {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut written = Vec::new();
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.stop.cancelled() => return,
            }
            let marks = self.marks();
            if marks != written {
                self.write_witness().await;
                written = marks;
            }
        }
    }

    fn marks(&self) -> Vec<witness::Mark> {
        self.witnesses().iter().filter_map(|witness| witness.get()).collect()
    }

    async fn write_witness(&self) {
        let (Some(path), marks) = (self.config.witness_file.clone(), self.marks()) else { return };
        if marks.is_empty() {
            return;
        }
        let outcome = tokio::task::spawn_blocking(move || witness::write_file(&path, &marks)).await;
        if let Ok(Err(error)) = outcome {
            tracing::warn!(%error, "cannot write the witness of the log");
        }
    }
}

fn unix_millis() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
