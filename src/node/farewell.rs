//! Telling the application who has left and, where it wants to know, who came back: in the background, so that neither a
//! slow application nor a mass departure delays anybody.

mod book;
mod tell;
#[cfg(test)]
mod tests;

use super::client::Client;
use crate::broker::{Life, SessionKey};
use crate::critical::critical;
use crate::hub::Hub;
use crate::log_limit::limited;
use crate::metrics;
use crate::protocol::Sid;
use crate::rpc::{Application, DisconnectCall};
use book::Book;
use bytes::Bytes;
use futures_util::FutureExt;
use std::collections::{HashMap, HashSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Which leaving clients the application is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DisconnectMode {
    /// Every authenticated one.
    Always,
    Never,
    /// Those that the application has something to do with: it let them in, or answered one of their subscriptions.
    Auto,
}

#[derive(Clone, Debug)]
pub struct FarewellConfig {
    pub mode: DisconnectMode,
    /// Disconnect calls per second; 0: as fast as the application answers.
    pub rate: u32,
    /// Calls that may wait; another one drops the oldest. Those in their grace period are counted apart.
    pub backlog: usize,
    /// How long a call waits for the session to be restored, on whichever node. Zero: it does not.
    pub grace: Duration,
    /// Tell the application of restored sessions.
    pub tell_restores: bool,
}

impl Default for FarewellConfig {
    fn default() -> Self {
        Self { mode: DisconnectMode::Auto, rate: 100, backlog: 4_096, grace: Duration::ZERO, tell_restores: false }
    }
}

/// Calls in flight: few, because they share the application with clients who wait for an answer.
const IN_FLIGHT: usize = 8;

/// Calls in flight when the server shuts down and nobody else waits.
const IN_FLIGHT_AT_THE_END: usize = 16;

/// Calls keep to their rate as long as they are late by less.
const CATCH_UP: Duration = Duration::from_millis(50);

/// How long the store may take to note or to tell that a session was restored.
const NOTE_WAIT: Duration = Duration::from_secs(2);

/// How much longer than its grace another node's call stands in the book before it is taken over.
const MARGIN: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Left,
    /// Not before the note was looked for: the session may have been restored elsewhere.
    LeftUnlessRestored,
    /// Claimed with this revision of the note, and not made yet: the node seems to have died, or could not reach the
    /// application.
    Claimed(u64),
    Restored,
}

struct Notice {
    kind: Kind,
    sid: Sid,
    call: DisconnectCall,
}

#[derive(Default)]
struct Queue {
    ready: VecDeque<Notice>,
    /// In their grace period, in the order in which it ends.
    waiting: VecDeque<(Instant, Notice)>,
    /// The application could not be reached: not before then.
    resume_at: Option<Instant>,
    /// How often in a row it could not.
    outages: u32,
    /// Shutdown: no rate limit, and no grace beyond this moment.
    end: Option<Instant>,
}

pub struct Farewells {
    config: FarewellConfig,
    application: Arc<dyn Application>,
    hub: Arc<Hub>,
    queue: Mutex<Queue>,
    changed: Notify,
    /// The application answered that it has no such method.
    knows_no_restores: AtomicBool,
    /// There where calls wait and the store outlives this process.
    book: Option<Book>,
    /// Ends what looks after the book.
    closed: CancellationToken,
    tasks: TaskTracker,
}

impl Farewells {
    pub fn start(config: FarewellConfig, application: Arc<dyn Application>, hub: Arc<Hub>) -> Arc<Self> {
        let features = hub.broker().features();
        let has_book = !config.grace.is_zero() && features.sessions && features.shared;
        let this = Arc::new(Self {
            config,
            application,
            book: has_book.then(|| Book::new(hub.clone())),
            closed: CancellationToken::new(),
            hub,
            queue: Mutex::default(),
            changed: Notify::new(),
            knows_no_restores: AtomicBool::new(false),
            tasks: TaskTracker::new(),
        });
        this.tasks.spawn(critical("disconnector.run", this.clone().run()));
        if has_book {
            this.tasks.spawn(critical("disconnector.book", this.clone().keep_the_book()));
            this.tasks.spawn(critical("disconnector.take_over", this.clone().take_over()));
        }
        this
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client has left.
    pub fn left(&self, client: &Client) {
        let wanted = match self.config.mode {
            DisconnectMode::Always => true,
            DisconnectMode::Never => false,
            DisconnectMode::Auto => client.state().session.interest(),
        };
        if !wanted {
            return;
        }
        let (sid, call) = about(client);
        if self.config.grace.is_zero() || !client.handle.has_session() {
            self.push(Notice { kind: Kind::Left, sid, call });
            return;
        }
        if let Some(book) = &self.book {
            book.add(&sid, call.clone());
        }
        let notice = Notice { kind: Kind::LeftUnlessRestored, sid, call };
        // Only what can be restored is waited for. What was restored before it was ended is told of under its later sid.
        if !client.handle.is_resumable() {
            self.push(notice);
            return;
        }
        let mut queue = self.queue();
        if queue.waiting.len() >= self.config.backlog {
            let dropped = queue.waiting.pop_front();
            self.dropped(dropped.map(|(_, notice)| notice));
        }
        queue.waiting.push_back((Instant::now() + self.config.grace, notice));
        metrics::FAREWELLS.add(1);
        drop(queue);
        self.changed.notify_one();
    }

    /// A session goes on under a new sid.
    pub fn restored(&self, client: &Client) {
        if self.config.tell_restores && !self.knows_no_restores.load(Ordering::Relaxed) {
            let (sid, call) = about(client);
            self.push(Notice { kind: Kind::Restored, sid, call });
        }
    }

    /// A session whose connection has left, or will leave, goes on under another sid. Returns when every node can see it,
    /// or after a bounded wait.
    pub async fn goes_on(&self, session: &SessionKey) {
        if self.config.grace.is_zero() {
            return;
        }
        // Whoever saw the old connection end may be another node, and may not have seen it end yet.
        let key = end_of(session);
        let noting = self.hub.broker().save_session(&key, Bytes::from_static(b"restored"), None, Life::Last);
        match tokio::time::timeout(NOTE_WAIT, noting).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => limited!(WARN, RestoreNotNoted, %error, "a restore could not be noted"),
            Err(_) => limited!(WARN, RestoreNotNoted, "a restore could not be noted in time"),
        }
    }

    fn push(&self, notice: Notice) {
        let mut queue = self.queue();
        if queue.ready.len() >= self.config.backlog {
            let dropped = queue.ready.pop_front();
            self.dropped(dropped);
        }
        queue.ready.push_back(notice);
        metrics::FAREWELLS.add(1);
        drop(queue);
        self.changed.notify_one();
    }

    fn dropped(&self, notice: Option<Notice>) {
        metrics::FAREWELLS.add(-1);
        metrics::FAREWELLS_DROPPED.inc();
        if let (Some(book), Some(notice)) = (&self.book, notice) {
            book.remove(&notice.sid);
        }
        tracing::debug!(context = "disconnector", "too many calls wait for the application; the oldest was dropped");
    }

    /// Calls that wait.
    pub fn len(&self) -> usize {
        let queue = self.queue();
        queue.ready.len() + queue.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Shutdown: makes every call that waits. Those in their grace period are left to the other nodes, or to the next
    /// process, where the store keeps them; elsewhere they get at most `patience` more of it.
    pub async fn drain(&self, patience: Duration) {
        let left_to_others = match &self.book {
            Some(book) => book.write().await.is_ok(),
            None => false,
        };
        {
            let mut queue = self.queue();
            if left_to_others {
                metrics::FAREWELLS.add(-(queue.waiting.len() as i64));
                queue.waiting.clear();
            }
            queue.end = Some(Instant::now() + patience);
        }
        self.changed.notify_one();
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn run(self: Arc<Self>) {
        let spacing = Duration::from_secs(1).checked_div(self.config.rate).unwrap_or_default();
        let mut calls: JoinSet<Sid> = JoinSet::new();
        // Calls about one session keep their order.
        let mut busy: HashSet<Sid> = HashSet::new();
        let mut next_call = Instant::now();
        loop {
            let now = Instant::now();
            let (notice, wake_at, ending) = self.take(now, next_call, &busy, calls.len());
            if let Some(notice) = notice {
                if !ending && !matches!(notice.kind, Kind::Restored) {
                    // A timer that was late does not lower the rate; a long pause does not raise it.
                    let late = now.saturating_duration_since(next_call);
                    next_call = if late < CATCH_UP { next_call + spacing } else { now + spacing };
                }
                busy.insert(notice.sid.clone());
                let (this, sid) = (self.clone(), notice.sid.clone());
                calls.spawn(async move {
                    // A panic is in the log; the next call about the session must not wait for this one.
                    let _ = AssertUnwindSafe(this.tell(notice)).catch_unwind().await;
                    sid
                });
                continue;
            }
            if ending && calls.is_empty() && self.is_empty() {
                self.closed.cancel();
                return;
            }
            tokio::select! {
                () = self.changed.notified() => {}
                () = tokio::time::sleep_until(wake_at.unwrap_or(now)), if wake_at.is_some() => {}
                Some(done) = calls.join_next(), if !calls.is_empty() => match done {
                    Ok(sid) => {
                        busy.remove(&sid);
                    }
                    Err(error) => tracing::error!(context = "disconnector", %error, "a call ended by itself"),
                },
            }
        }
    }

    /// The next call that may be made now, or else when to look again without being told; and whether this is the end.
    fn take(
        &self,
        now: Instant,
        next_call: Instant,
        busy: &HashSet<Sid>,
        calls: usize,
    ) -> (Option<Notice>, Option<Instant>, bool) {
        let mut queue = self.queue();
        let end = queue.end;
        while queue.waiting.front().is_some_and(|(due, _)| end.map_or(*due, |end| end.min(*due)) <= now) {
            let (_, notice) = queue.waiting.pop_front().expect("just seen");
            queue.ready.push_back(notice);
        }
        let grace_ends = queue.waiting.front().map(|(due, _)| end.map_or(*due, |end| end.min(*due)));
        let most = if end.is_some() { IN_FLIGHT_AT_THE_END } else { IN_FLIGHT };
        let Some(front) = queue.ready.front() else { return (None, grace_ends, end.is_some()) };
        if calls >= most || busy.contains(&front.sid) {
            return (None, grace_ends, end.is_some());
        }
        let by_rate = (!matches!(front.kind, Kind::Restored)).then_some(next_call);
        if let Some(then) = by_rate.max(queue.resume_at).filter(|then| end.is_none() && now < *then) {
            return (None, Some(grace_ends.map_or(then, |at| at.min(then))), false);
        }
        metrics::FAREWELLS.add(-1);
        (queue.ready.pop_front(), None, end.is_some())
    }

    async fn keep_the_book(self: Arc<Self>) {
        let Some(book) = &self.book else { return };
        loop {
            let closing = self.closed.run_until_cancelled(tokio::time::sleep(book::GATHER)).await.is_none();
            if let Err(error) = book.write().await {
                tracing::debug!(context = "disconnector", %error, "waiting calls are not in the store yet");
            }
            if closing {
                return;
            }
        }
    }

    /// Looks for calls that another node should have made.
    async fn take_over(self: Arc<Self>) {
        let Some(book) = &self.book else { return };
        let every = (self.config.grace / 2).clamp(Duration::from_secs(1), Duration::from_secs(5));
        // What stands in the book: when it is looked at again, and the claim that was seen then.
        let mut seen: HashMap<Sid, (Instant, u64)> = HashMap::new();
        while self.closed.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
            let Ok(foreign) = book.foreign().await else { continue };
            let mut still: HashMap<Sid, (Instant, u64)> = HashMap::with_capacity(foreign.len());
            for (sid, call) in foreign {
                let now = Instant::now();
                let (mut due, mut claim) =
                    seen.get(&sid).copied().unwrap_or((now + self.config.grace + MARGIN, NO_CLAIM));
                if due <= now {
                    due = now + MARGIN;
                    match self.hub.broker().load_session(&note(&sid)).await {
                        Ok(Some(note)) if note.body == LEFT && note.revision == claim => {
                            // Whoever claimed it has had time enough for the call, and it still stands in the book.
                            self.push(Notice { kind: Kind::Claimed(claim), sid: sid.clone(), call });
                        }
                        Ok(Some(note)) if note.body == LEFT => claim = note.revision,
                        Ok(_) => self.push(Notice { kind: Kind::LeftUnlessRestored, sid: sid.clone(), call }),
                        Err(error) => tracing::debug!(context = "disconnector", %error, "not taken over yet"),
                    }
                }
                still.insert(sid, (due, claim));
            }
            seen = still;
        }
    }
}

/// No write of the store has this revision.
const NO_CLAIM: u64 = 0;

const LEFT: &[u8] = b"left";

/// Where it is noted that a session ended or was restored: an entry beside the saved session, which lives for
/// `sessions_ttl`.
fn end_of(session: &SessionKey) -> SessionKey {
    session.derived("end")
}

fn note(sid: &Sid) -> SessionKey {
    end_of(&SessionKey::of(sid.expose()))
}

fn about(client: &Client) -> (Sid, DisconnectCall) {
    let env = client.env();
    let state = client.state();
    (state.session.sid.clone(), state.session.call_about_all(env))
}
