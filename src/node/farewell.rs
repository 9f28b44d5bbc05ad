//! Telling the application who has left and, where it wants to know, who came back: in the background, so that neither a
//! slow application nor a mass departure delays anybody.

use super::client::Client;
use crate::broker::{SaveError, SessionKey};
use crate::hub::Hub;
use crate::metrics;
use crate::rpc::{Application, DisconnectCall, RpcError};
use bytes::Bytes;
use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
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

/// How long the store may take to note or to tell that a session was restored.
const NOTE_WAIT: Duration = Duration::from_secs(2);

enum Kind {
    Left,
    /// Not before the note was looked for: the session may have been restored elsewhere.
    LeftUnlessRestored,
    Restored,
}

struct Notice {
    kind: Kind,
    sid: Arc<str>,
    call: DisconnectCall,
}

#[derive(Default)]
struct Queue {
    ready: VecDeque<Notice>,
    /// In their grace period, in the order in which it ends.
    waiting: VecDeque<(Instant, Notice)>,
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
    tasks: TaskTracker,
}

impl Farewells {
    pub fn start(config: FarewellConfig, application: Arc<dyn Application>, hub: Arc<Hub>) -> Arc<Self> {
        let this = Arc::new(Self {
            config,
            application,
            hub,
            queue: Mutex::default(),
            changed: Notify::new(),
            knows_no_restores: AtomicBool::new(false),
            tasks: TaskTracker::new(),
        });
        this.tasks.spawn(this.clone().run());
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
        // Only what can be restored is waited for.
        if self.config.grace.is_zero() || !client.handle.is_resumable() {
            self.push(Notice { kind: Kind::Left, sid, call });
            return;
        }
        let notice = Notice { kind: Kind::LeftUnlessRestored, sid, call };
        let mut queue = self.queue();
        if queue.waiting.len() >= self.config.backlog {
            queue.waiting.pop_front();
            dropped();
        }
        queue.waiting.push_back((Instant::now() + self.config.grace, notice));
        metrics::FAREWELLS.add(1);
        drop(queue);
        self.changed.notify_one();
    }

    /// A session goes on under a new sid. Returns when every node can see it, or after a bounded wait.
    pub async fn restored(&self, old_sid: &str, client: &Client) {
        if self.config.tell_restores && !self.knows_no_restores.load(Ordering::Relaxed) {
            let (sid, call) = about(client);
            self.push(Notice { kind: Kind::Restored, sid, call });
        }
        if self.config.grace.is_zero() {
            return;
        }
        // Whoever saw the old connection end may be another node, and may not have seen it end yet.
        let key = note(old_sid);
        let noting = self.hub.broker().save_session(&key, Bytes::from_static(b"restored"), None);
        match tokio::time::timeout(NOTE_WAIT, noting).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(context = "disconnector", %error, "a restore could not be noted"),
            Err(_) => tracing::warn!(context = "disconnector", "a restore could not be noted in time"),
        }
    }

    fn push(&self, notice: Notice) {
        let mut queue = self.queue();
        if queue.ready.len() >= self.config.backlog {
            queue.ready.pop_front();
            dropped();
        }
        queue.ready.push_back(notice);
        metrics::FAREWELLS.add(1);
        drop(queue);
        self.changed.notify_one();
    }

    /// Calls that wait.
    pub fn len(&self) -> usize {
        let queue = self.queue();
        queue.ready.len() + queue.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Shutdown: makes every call that waits. Those in their grace period get at most `patience` more of it.
    pub async fn drain(&self, patience: Duration) {
        self.queue().end = Some(Instant::now() + patience);
        self.changed.notify_one();
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn run(self: Arc<Self>) {
        let spacing = Duration::from_secs(1).checked_div(self.config.rate).unwrap_or_default();
        let mut calls: JoinSet<Arc<str>> = JoinSet::new();
        // Calls about one session keep their order.
        let mut busy: HashSet<Arc<str>> = HashSet::new();
        let mut next_call = Instant::now();
        loop {
            let now = Instant::now();
            let (notice, wake_at, ending) = self.take(now, next_call, &busy, calls.len());
            if let Some(notice) = notice {
                if !ending && !matches!(notice.kind, Kind::Restored) {
                    next_call = now + spacing;
                }
                busy.insert(notice.sid.clone());
                calls.spawn(self.clone().tell(notice));
                continue;
            }
            if ending && calls.is_empty() && self.is_empty() {
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
        busy: &HashSet<Arc<str>>,
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
        if end.is_none() && now < next_call && !matches!(front.kind, Kind::Restored) {
            let soonest = grace_ends.map_or(next_call, |at| at.min(next_call));
            return (None, Some(soonest), false);
        }
        metrics::FAREWELLS.add(-1);
        (queue.ready.pop_front(), None, end.is_some())
    }

    async fn tell(self: Arc<Self>, notice: Notice) -> Arc<str> {
        let Notice { kind, sid, call } = notice;
        let told = match kind {
            Kind::Restored if self.knows_no_restores.load(Ordering::Relaxed) => Ok(()),
            Kind::Restored => self.application.restore(&sid, call).await,
            Kind::LeftUnlessRestored if self.was_restored(&sid).await => {
                metrics::FAREWELLS_SPARED.inc();
                Ok(())
            }
            Kind::Left | Kind::LeftUnlessRestored => self.application.disconnect(&sid, call).await,
        };
        match told {
            Ok(()) => {}
            Err(RpcError::Unimplemented(method)) if matches!(kind, Kind::Restored) => {
                if !self.knows_no_restores.swap(true, Ordering::Relaxed) {
                    tracing::info!(
                        context = "disconnector",
                        method,
                        "the application is not told of restores: it has no such method"
                    );
                }
            }
            Err(error) => {
                let about = if matches!(kind, Kind::Restored) { "restore" } else { "disconnect" };
                tracing::warn!(context = "disconnector", %error, about, "the application could not be told");
            }
        }
        sid
    }

    /// Claims the right to say that this session ended; a note that it was restored is in the way. A store that cannot
    /// be asked leaves it open: rather one call too many than none.
    async fn was_restored(&self, sid: &str) -> bool {
        let key = note(sid);
        let claiming = self.hub.broker().save_session(&key, Bytes::from_static(b"left"), Some(0));
        matches!(tokio::time::timeout(NOTE_WAIT, claiming).await, Ok(Err(SaveError::Conflict)))
    }
}

/// Where it is noted that a session ended or was restored: an entry beside the saved session, with the same life.
fn note(sid: &str) -> SessionKey {
    SessionKey::of(&format!("{sid}/end"))
}

fn about(client: &Client) -> (Arc<str>, DisconnectCall) {
    let env = client.env();
    let state = client.state();
    (state.session.sid.clone(), state.session.call_about_all(env))
}

fn dropped() {
    metrics::FAREWELLS.add(-1);
    metrics::FAREWELLS_DROPPED.inc();
    tracing::debug!(context = "disconnector", "too many calls wait for the application; the oldest was dropped");
}
