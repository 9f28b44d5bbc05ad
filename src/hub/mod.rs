//! All local clients: which streams are open, who follows them, what is missing.
//!
//! [`stream::Stream`] and [`cursor::Cursor`] hold the rules and are pure; this file gives them a broker: it opens streams
//! (many at a time), repairs holes, reads history on demand, checks heads, closes what nobody follows. Ordering, the gap
//! check and the proofs live here once, over any backend.
//!
//! # What an await may change
//!
//! Callers are dropped at any await: by a time-out, by a client that leaves, by the end of the process. And what was read
//! before an await may be over after it. So:
//!
//! * Nothing that others depend on belongs to a future that can be dropped. Openings belong to [`queue::Queue`] and holes to
//!   [`repair::Repairs`], which are entered without waiting and served by a task of the hub; who opens a stream only waits
//!   for the result. Counts are held by guards ([`Open`]).
//! * Whoever has asked the store compares before it uses the answer: the logs and the connection (`generation`) are those
//!   of the question, the stream's epoch is the one that was read, and the cell is still the one in the map. What the store
//!   has opened for a cell without a place in the map is closed again.
//! * A stream is open *on a connection*: [`Cell::is_open_in`] compares. A list of cells is a list of what was there.
//! * The process may have stood still at any place. Whoever is told that nothing was lost is told so of a stream that was
//!   compared since then ([`Hub::is_compared`]).

mod backlog;
mod clock;
pub mod cursor;
mod fanout;
mod frames;
mod held;
mod held_back;
mod herd;
mod history;
mod members;
mod open;
pub mod outbox;
mod pages;
pub mod proof;
mod queue;
pub mod receiver;
mod repair;
pub mod sabotage;
pub mod stream;
mod tail;
#[cfg(test)]
mod tests;

pub use cursor::Start;
pub use frames::Frame;
pub use held::{Held, SubscriptionBudget};
pub use history::{From, Located};
pub use outbox::{FRAMES_PER_WRITE, Outbox, OutboxLimits, Signal};
pub use proof::{Proof, SavedProof};
pub use receiver::{HistoryJob, Identifier, Receiver};
pub use stream::{CursorId, Pump, Stream, Which};

use crate::broker::{Broker, Over, Overflow, RemoteDisconnect, SessionKey, Status, Table, Unavailable};
use crate::critical::{critical, end_process};
use crate::log_limit::limited;
use crate::metrics;
use crate::protocol::{Close, Message, StreamName};
use clock::Clock;
use queue::{Place, Queue};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Tunables of the hub.
#[derive(Clone, Debug)]
pub struct HubConfig {
    /// Bytes of messages that all tails together may hold before they are trimmed.
    pub snapshot_budget: usize,
    /// How long a stream stays open after its last follower left.
    pub linger: Duration,
    /// Period of the head check, the deadline for a lost last message of a burst. Shortened to a quarter of the
    /// shortest ttl.
    pub head_check: Duration,
    /// How long history and opening wait for the store.
    pub broker_timeout: Duration,
    /// Streams that may be open at a time; 0: no limit.
    pub max_streams: usize,
}

/// Bytes of one stream's tail: beyond them the oldest are read from the log again when somebody asks.
const TAIL_BYTES: usize = 4 << 20;

/// An open stream: the pure core and what the tasks around it share.
pub struct Cell {
    core: Mutex<Stream>,
    opened: Notify,
    /// Users that are between opening the stream and attaching to it.
    users: AtomicUsize,
    /// One reader of the log at a time; the others find its result in the tail.
    gate: tokio::sync::Mutex<()>,
    /// Connection to the store (its generation) that it was opened on last; 0: none.
    opened_in: AtomicU64,
    /// When the store was asked for the head that it was compared with last, by the hub's clock.
    asked: AtomicU64,
    place: Mutex<Place>,
    idle_since: Mutex<Option<Instant>>,
}

impl Cell {
    pub fn lock(&self) -> MutexGuard<'_, Stream> {
        // A panic in the middle of a change leaves a stream that may hide a hole.
        self.core.lock().unwrap_or_else(|_| end_process("hub.stream"))
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its feed runs on this connection to the store, and it has been compared there.
    fn is_open_in(&self, generation: u64) -> bool {
        self.opened_in.load(Ordering::Acquire) == generation && self.lock().is_open()
    }
}

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum NotOpened {
    #[error("{0} streams are open, which is max_streams")]
    TooMany(usize),
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl NotOpened {
    /// How the connection ends that needed the stream.
    pub fn close(&self) -> Close {
        match self {
            Self::TooMany(_) => Close::StreamsFull,
            Self::Unavailable(_) => Close::StoreUnavailable,
        }
    }
}

impl std::convert::From<NotOpened> for Unavailable {
    fn from(error: NotOpened) -> Self {
        match error {
            NotOpened::TooMany(_) => Self(error.to_string()),
            NotOpened::Unavailable(unavailable) => unavailable,
        }
    }
}

/// Keeps a stream open while somebody is about to attach.
pub struct Open(Arc<Cell>);

impl std::ops::Deref for Open {
    type Target = Arc<Cell>;

    fn deref(&self) -> &Arc<Cell> {
        &self.0
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.users.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Hears of remote disconnects.
pub trait Commands: Send + Sync + 'static {
    fn disconnect(&self, mark: u64, command: RemoteDisconnect);
    fn commands_lost(&self);
    /// This session is over.
    fn session_over(&self, key: &SessionKey, over: Over);
}

const SHARDS: usize = 64;

pub struct Hub {
    config: HubConfig,
    tail_bytes: usize,
    broker: OnceLock<Arc<dyn Broker>>,
    commands: OnceLock<Arc<dyn Commands>>,
    status: OnceLock<watch::Receiver<Status>>,
    shards: Vec<RwLock<HashMap<StreamName, Arc<Cell>>>>,
    /// Cells in the shards.
    streams: AtomicUsize,
    clock: Clock,
    queue: Queue,
    repairs: repair::Repairs,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl Hub {
    /// A hub without a broker yet: the broker needs the hub as its feed, so it comes with [`Self::start`].
    pub fn new(config: HubConfig) -> Arc<Self> {
        sabotage::check();
        Arc::new(Self {
            tail_bytes: TAIL_BYTES.min(config.snapshot_budget),
            config,
            broker: OnceLock::new(),
            commands: OnceLock::new(),
            status: OnceLock::new(),
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            streams: AtomicUsize::new(0),
            clock: Clock::new(),
            queue: Queue::default(),
            repairs: repair::Repairs::default(),
            tasks: TaskTracker::new(),
            cancel: CancellationToken::new(),
        })
    }

    /// Gives the hub its broker and starts its tasks. Once.
    pub fn start(self: &Arc<Self>, broker: Arc<dyn Broker>, commands: Arc<dyn Commands>) {
        let status = broker.status();
        let fresh = self.broker.set(broker).is_ok()
            && self.commands.set(commands).is_ok()
            && self.status.set(status.clone()).is_ok();
        assert!(fresh, "the hub is started once");
        self.spawn("hub.open", open::open_streams(self.clone()));
        self.spawn("hub.status", open::follow_status(self.clone(), status));
        self.spawn("hub.heads", open::check_heads(self.clone()));
        self.spawn("hub.repair", repair::repair_holes(self.clone()));
        self.spawn("hub.idle", open::close_idle(self.clone()));
        let hub = self.clone();
        self.spawn("hub.clock", async move { hub.clock.run().await });
    }

    /// Ends the hub's tasks.
    pub async fn stop(&self) {
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn spawn(self: &Arc<Self>, part: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let cancel = self.cancel.clone();
        self.tasks.spawn(async move {
            cancel.run_until_cancelled(critical(part, task)).await;
        });
    }

    pub fn broker(&self) -> &Arc<dyn Broker> {
        self.broker.get().expect("the hub is started before it is used")
    }

    /// The broker's state right now.
    pub fn status(&self) -> Status {
        self.status.get().expect("the hub is started before it is used").borrow().clone()
    }

    pub fn config(&self) -> &HubConfig {
        &self.config
    }

    fn shard(&self, stream: &StreamName) -> &RwLock<HashMap<StreamName, Arc<Cell>>> {
        use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(stream);
        &self.shards[(hash as usize) % SHARDS]
    }

    fn find(&self, stream: &StreamName) -> Option<Arc<Cell>> {
        self.shard(stream).read().unwrap_or_else(PoisonError::into_inner).get(stream).cloned()
    }

    fn cells(&self) -> Vec<Arc<Cell>> {
        let shards = self.shards.iter();
        shards
            .flat_map(|shard| {
                shard.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect::<Vec<_>>()
            })
            .collect()
    }

    /// Opens a stream, or finds it open: from here on its feed runs and its head is known. Concurrent openers share one
    /// opening. Waits for the store at most the broker timeout; not at all where as many streams are open as may be.
    pub async fn open(self: &Arc<Self>, stream: &StreamName) -> Result<Open, NotOpened> {
        let open = self.enter(stream)?;
        let opened = async {
            loop {
                let notified = open.opened.notified();
                if open.is_open_in(self.generation()) {
                    return;
                }
                self.queue.await_opening(&open);
                notified.await;
            }
        };
        tokio::time::timeout(self.config.broker_timeout, opened)
            .await
            .map_err(|_| Unavailable(self.status().reason.to_string()))?;
        Ok(open)
    }

    /// The stream's cell, made if it is not there; it stays as long as the answer is held.
    fn enter(&self, stream: &StreamName) -> Result<Open, NotOpened> {
        let mut shard = self.shard(stream).write().unwrap_or_else(PoisonError::into_inner);
        if self.is_full() && !shard.contains_key(stream) {
            drop(shard);
            return Err(self.refuse());
        }
        let cell = shard.entry(stream.clone()).or_insert_with(|| {
            self.streams.fetch_add(1, Ordering::Relaxed);
            metrics::STREAMS.add(1);
            let core = Stream::new(stream.clone(), self.status().logs, self.tail_bytes);
            Arc::new(Cell {
                core: Mutex::new(core),
                opened: Notify::new(),
                users: AtomicUsize::new(0),
                gate: tokio::sync::Mutex::new(()),
                opened_in: AtomicU64::new(0),
                asked: AtomicU64::new(0),
                place: Mutex::default(),
                idle_since: Mutex::new(None),
            })
        });
        cell.users.fetch_add(1, Ordering::AcqRel);
        Ok(Open(cell.clone()))
    }

    /// As many streams are open as may be; a few more where several are opened at the same moment.
    fn is_full(&self) -> bool {
        self.config.max_streams != 0 && self.open_streams() >= self.config.max_streams
    }

    fn refuse(&self) -> NotOpened {
        metrics::STREAMS_REFUSED.inc();
        let limit = self.config.max_streams;
        limited!(
            WARN,
            StreamsFull,
            limit,
            "as many streams are open as may be: who needs another one is told to try again; see max_streams"
        );
        NotOpened::TooMany(limit)
    }

    /// The stream is open on the present connection and was compared since this process stood still last.
    fn is_compared(&self, cell: &Cell) -> bool {
        cell.opened_in.load(Ordering::Acquire) == self.generation()
            && cell.asked.load(Ordering::Acquire) >= self.clock.trusted_since()
    }

    /// Queues a comparison of a stream's head with what this node holds.
    fn compare_soon(&self, cell: &Arc<Cell>) {
        self.queue.doubt(cell);
    }

    /// This cell is the one in the map.
    fn owns(&self, cell: &Arc<Cell>) -> bool {
        let name = cell.lock().name().clone();
        self.find(&name).is_some_and(|found| Arc::ptr_eq(&found, cell))
    }

    /// Ends the feed of a stream that has no cell. Another cell of the same name has been queued, or will be, and takes the
    /// feed over.
    fn close_if_unowned(&self, name: &StreamName) {
        // Held meanwhile: whoever opens the stream again does so after this.
        let shard = self.shard(name).read().unwrap_or_else(PoisonError::into_inner);
        if !shard.contains_key(name) {
            self.broker().close(name);
        }
    }

    /// The connection to the store.
    fn generation(&self) -> u64 {
        self.status.get().expect("the hub is started before it is used").borrow().generation
    }

    /// Brings a stream to its log's present epoch before anything of it is used.
    fn settle_epoch(&self, core: &mut Stream) -> bool {
        core.settle(&self.status.get().expect("the hub is started before it is used").borrow().logs)
    }

    /// The history policies in effect.
    pub fn table(&self) -> Arc<Table> {
        self.status.get().expect("the hub is started before it is used").borrow().logs.table().clone()
    }

    /// Messages of this stream are stored, under the policies in effect.
    pub fn keeps(&self, stream: &StreamName) -> bool {
        self.status.get().expect("the hub is started before it is used").borrow().logs.keeps(stream)
    }

    fn trim_if_over_budget(&self, core: &mut Stream) {
        if metrics::SNAPSHOT_BYTES.get() > self.config.snapshot_budget as i64 {
            let half = core.tail().bytes() / 2;
            core.tail_mut().trim(usize::MAX, half);
        }
    }

    /// Streams open on this node.
    pub fn open_streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }
}

/// The feed's end: the broker calls it through this handle, because repairs need the hub's own `Arc`.
pub struct HubFeed(pub Arc<Hub>);

impl crate::broker::Feed for HubFeed {
    fn live(&self, stream: &StreamName, previous: u64, message: Arc<Message>) {
        let hub = &self.0;
        let Some(cell) = hub.find(stream) else { return };
        let mut core = cell.lock();
        if hub.settle_epoch(&mut core) {
            hub.compare_soon(&cell);
        }
        let gap = core.live(previous, message, Instant::now());
        hub.trim_if_over_budget(&mut core);
        if let Some(gap) = gap {
            hub.repairs.push(&cell, gap, core.epoch().clone());
        }
    }

    fn transient(&self, stream: &StreamName, message: Arc<Message>, overflow: Overflow) {
        if let Some(cell) = self.0.find(stream) {
            cell.lock().transient(&message, overflow);
        }
    }

    fn lagged(&self, stream: &StreamName) {
        if let Some(cell) = self.0.find(stream) {
            self.0.compare_soon(&cell);
        }
    }

    fn disconnect(&self, mark: u64, command: RemoteDisconnect) {
        if let Some(commands) = self.0.commands.get() {
            commands.disconnect(mark, command);
        }
    }

    fn commands_lost(&self) {
        if let Some(commands) = self.0.commands.get() {
            commands.commands_lost();
        }
    }

    fn session_over(&self, key: &SessionKey, over: Over) {
        if let Some(commands) = self.0.commands.get() {
            commands.session_over(key, over);
        }
    }
}
