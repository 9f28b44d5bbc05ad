//! Stock clients that drop and come back, and write down everything they get.

use super::roster::{Dice, Follower, Kind};
use super::source::Id;
use super::{Drops, Phase};
use crate::client::connection::url_with_sid;
use crate::client::frame::Data;
use crate::client::{Connection, EXT_JSON, Received, StockClient, StockEvent, Trust, now_secs};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use url::Url;

/// The stock client takes a connection for dead after two ping intervals without a frame.
const SILENCE: Duration = Duration::from_secs(6);
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// A message as it reached a client.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Index in [`Follower::follows`].
    pub follow: usize,
    pub id: Id,
    /// Epoch and offset.
    pub position: Option<(Arc<str>, u64)>,
    /// Counts the client's connections.
    pub connection: u32,
    pub at: Instant,
}

/// The server said that messages of a subscription are lost.
#[derive(Clone, Copy, Debug)]
pub struct Reject {
    /// Index in [`Follower::follows`].
    pub follow: usize,
    /// Arrivals of the member before it.
    pub after: usize,
    pub at: Instant,
}

/// A connection, once it has ended.
#[derive(Clone, Debug)]
pub struct Stay {
    /// When every subscription stood and had its history; `None` if it never came to that.
    pub stood: Option<Instant>,
    pub ended: Instant,
    /// A return whose session was not restored.
    pub fresh: bool,
    /// `None`: the run ended it.
    pub by_client: Option<bool>,
    /// Stream ⇒ offset of the client's position at the end, for clients with two identifiers on one stream.
    pub positions: BTreeMap<String, u64>,
}

/// Everything a member saw.
#[derive(Clone, Debug)]
pub struct Record {
    pub follower: Follower,
    pub arrivals: Vec<Arrival>,
    /// In order; [`Arrival::connection`] counts them from 1.
    pub stays: Vec<Stay>,
    pub restored: u32,
    /// Returns with a session id that was not restored.
    pub fresh: u32,
    /// What a healthy server never does: refused subscriptions, being sent away, frames out of the protocol.
    pub surprises: Vec<String>,
    pub rejects: Vec<Reject>,
    /// From the first attempt to come back until every subscription stood and had its history.
    pub resumes: Vec<Duration>,
    pub disconnects: u32,
    /// Connections that heard nothing for two ping intervals.
    pub silences: u32,
    /// Returns with a clock that is wrong.
    pub skewed: u32,
}

impl Record {
    /// Of somebody who has seen nothing yet.
    pub fn new(follower: Follower) -> Self {
        Self {
            follower,
            arrivals: Vec::new(),
            stays: Vec::new(),
            restored: 0,
            fresh: 0,
            surprises: Vec::new(),
            rejects: Vec::new(),
            resumes: Vec::new(),
            disconnects: 0,
            silences: 0,
            skewed: 0,
        }
    }
}

/// What the run watches while it runs.
#[derive(Debug, Default)]
pub struct Progress {
    /// All subscriptions are confirmed or restored now.
    pub settled: AtomicBool,
    /// Messages that arrived, per subscription.
    pub arrived: Vec<AtomicU64>,
    /// Connections that ended where two identifiers share a stream: as many messages may be missing.
    pub excusable: AtomicU64,
}

/// A stream that gets its first message while its followers are away.
#[derive(Debug)]
pub struct Silent {
    pub followers: usize,
    pub away: AtomicUsize,
    /// Becomes true when the first message is acknowledged.
    pub published: watch::Sender<bool>,
}

/// When members stay and leave.
#[derive(Clone, Debug)]
pub struct Habits {
    pub drops: Drops,
    /// How long a member stays, and how long it is away.
    pub stay: Range<Duration>,
    pub away: Range<Duration>,
    /// The server answers requests for history.
    pub history: bool,
}

/// One client of a run.
pub struct Member {
    /// It comes back through any of them.
    urls: Vec<Url>,
    trust: Option<Trust>,
    dice: Dice,
    habits: Habits,
    phase: watch::Receiver<Phase>,
    /// Counts the moments in which all drop.
    waves: watch::Receiver<u64>,
    /// By how many seconds its clock is wrong, from the next connection on.
    skew: watch::Receiver<i64>,
    silent: Option<Arc<Silent>>,
    progress: Arc<Progress>,
    stock: StockClient,
    record: Record,
    connection: u32,
    /// When it began to come back; `None` on the first connection and once it is back.
    returning_since: Option<Instant>,
    /// When every subscription stood, on the present connection.
    stood: Option<Instant>,
    /// The present connection came back to a session that was gone.
    fresh: bool,
    /// Identifiers whose history came on the present connection.
    answered: BTreeSet<String>,
    /// The epoch seen last: messages share its text.
    epoch: Arc<str>,
}

enum End {
    /// The client lets go.
    Dropped,
    Lost,
    Stop,
}

/// What a [`Member`] is given to work with.
pub struct Surroundings {
    pub urls: Vec<Url>,
    pub trust: Option<Trust>,
    pub phase: watch::Receiver<Phase>,
    pub waves: watch::Receiver<u64>,
    pub skew: watch::Receiver<i64>,
    pub silent: Option<Arc<Silent>>,
    pub progress: Arc<Progress>,
}

impl Member {
    pub fn new(follower: Follower, habits: Habits, surroundings: Surroundings) -> Self {
        let Surroundings { urls, trust, phase, waves, skew, silent, progress } = surroundings;
        let stock = StockClient::new(follower.follows.iter().map(|follow| follow.identifier.clone()));
        let dice = Dice::new(follower.seed);
        let record = Record::new(follower);
        Self {
            urls,
            trust,
            dice,
            habits,
            phase,
            waves,
            skew,
            silent,
            progress,
            stock,
            record,
            connection: 0,
            returning_since: None,
            stood: None,
            fresh: false,
            answered: BTreeSet::new(),
            epoch: Arc::from(""),
        }
    }

    /// Lives until the run stops.
    pub async fn run(mut self) -> Record {
        let mut first_absence = self.record.follower.kind == Kind::Silent;
        let mut phase = self.phase.clone();
        loop {
            let link = tokio::select! {
                link = self.open() => link,
                () = stopped(&mut phase) => return self.record,
            };
            let end = self.stay(link, first_absence).await;
            self.progress.settled.store(false, Ordering::Release);
            self.note_stay(&end);
            self.stock.on_close();
            let by_client = match end {
                End::Stop => return self.record,
                End::Dropped => true,
                End::Lost => false,
            };
            if self.record.follower.kind == Kind::Double {
                self.progress.excusable.fetch_add(1, Ordering::AcqRel);
            }
            if by_client {
                self.returning_since = None;
            } else {
                self.returning_since.get_or_insert_with(Instant::now);
            }
            let away =
                if by_client { self.dice.within(&self.habits.away) } else { self.dice.within(&(PAUSE.0..PAUSE.1)) };
            tokio::select! {
                () = self.absence(away, first_absence && by_client) => {}
                () = stopped(&mut phase) => return self.record,
            }
            self.returning_since.get_or_insert_with(Instant::now);
            first_absence &= !by_client;
        }
    }

    fn note_stay(&mut self, end: &End) {
        let by_client = match end {
            End::Stop => None,
            End::Dropped => Some(true),
            End::Lost => Some(false),
        };
        let positions = match self.record.follower.kind {
            Kind::Double => self.stock.positions().iter().map(|(stream, seen)| (stream.clone(), seen.offset)).collect(),
            _ => BTreeMap::new(),
        };
        let (stood, fresh) = (self.stood.take(), std::mem::take(&mut self.fresh));
        self.record.stays.push(Stay { stood, ended: Instant::now(), fresh, by_client, positions });
    }

    /// The first absence of a silent client lasts until its stream has a message.
    async fn absence(&self, away: Duration, first: bool) {
        if let (true, Some(silent)) = (first, &self.silent) {
            silent.away.fetch_add(1, Ordering::AcqRel);
            // The sender lives as long as the run.
            let _ = silent.published.subscribe().wait_for(|published| *published).await;
        }
        tokio::time::sleep(away).await;
    }

    async fn open(&mut self) -> Connection {
        loop {
            let url = &self.urls[self.dice.below(self.urls.len() as u64) as usize];
            let url = url_with_sid(url, self.stock.url_sid());
            match Connection::open_trusting(&url, &[EXT_JSON], self.trust.as_ref(), OPEN_TIMEOUT).await {
                Ok(link) => return link,
                // Nobody listens while the server is away.
                Err(_) => tokio::time::sleep(self.dice.within(&(PAUSE.0..PAUSE.1))).await,
            }
        }
    }

    async fn stay(&mut self, mut link: Connection, first_absence: bool) -> End {
        self.connection += 1;
        let returning = self.stock.url_sid().is_some_and(|sid| !sid.is_empty());
        // Read once: the stock client measures its waiting by another clock, which does not jump.
        let skew = *self.skew.borrow() * self.record.follower.clock();
        let now_secs = || now_secs().saturating_add_signed(skew);
        self.record.skewed += u32::from(returning && skew != 0);
        self.stock.on_open(now_secs());
        let mut heard = Instant::now();
        let mut tick = Instant::now();
        // A silent client leaves at once, before anything is published to its stream.
        let span = if first_absence {
            self.dice.within(&(Duration::ZERO..PAUSE.1))
        } else {
            self.dice.within(&self.habits.stay)
        };
        let mut phase = self.phase.clone();
        let mut waves = self.waves.clone();
        waves.mark_unchanged();
        let drops = self.habits.drops;
        let leave_if = |phase: Phase| (phase == Phase::Run && drops == Drops::Random).then(|| Instant::now() + span);
        let mut leave_at = leave_if(*phase.borrow_and_update());
        self.answered.clear();
        loop {
            let leave = async move {
                match leave_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let frames = tokio::select! {
                received = link.next() => {
                    heard = Instant::now();
                    match received {
                        Some(Ok(Received::Text(text))) => self.stock.on_frame(&text, now_secs()),
                        Some(Ok(Received::Binary(_))) => {
                            self.record.surprises.push("binary frame".to_owned());
                            Vec::new()
                        }
                        Some(Ok(Received::Close { .. }) | Err(_)) | None => {
                            self.write_down(returning);
                            return End::Lost;
                        }
                    }
                }
                () = leave => return End::Dropped,
                Ok(()) = waves.changed(), if drops == Drops::AllAtOnce => return End::Dropped,
                () = tokio::time::sleep_until(tick) => {
                    tick += Duration::from_secs(1);
                    if heard.elapsed() > SILENCE {
                        self.record.silences += 1;
                        return End::Lost;
                    }
                    self.stock.on_tick(now_secs())
                }
                changed = phase.changed() => {
                    match (changed.is_ok(), *phase.borrow_and_update()) {
                        (false, _) | (_, Phase::Stop) => return End::Stop,
                        (_, now) => leave_at = leave_if(now),
                    }
                    Vec::new()
                }
            };
            self.write_down(returning);
            for frame in frames {
                if link.send(frame).await.is_err() {
                    return End::Lost;
                }
            }
            let settled = self.stock.is_settled();
            self.progress.settled.store(settled, Ordering::Release);
            self.note_return(settled);
        }
    }

    /// Back is who has every subscription and the history of each.
    fn note_return(&mut self, settled: bool) {
        let complete = !self.habits.history || self.answered.len() >= self.record.follower.follows.len();
        if !(settled && complete) {
            return;
        }
        self.stood.get_or_insert_with(Instant::now);
        if let Some(since) = self.returning_since.take() {
            self.record.resumes.push(since.elapsed());
        }
    }

    fn write_down(&mut self, returning: bool) {
        while let Some(event) = self.stock.poll_event() {
            match event {
                StockEvent::Delivery(data) => self.arrived(&data),
                StockEvent::Welcome { restored: true } => self.record.restored += 1,
                StockEvent::Welcome { restored: false } => {
                    self.fresh = returning;
                    self.record.fresh += u32::from(returning);
                }
                StockEvent::HistoryNotFound(identifier) => {
                    // Without a broker that is the answer to everything, and the first connection has missed nothing.
                    if self.habits.history
                        && let Some(follow) = self.follow(&identifier)
                    {
                        let after = self.record.arrivals.len();
                        self.record.rejects.push(Reject { follow, after, at: Instant::now() });
                    }
                    self.answered.insert(identifier);
                }
                StockEvent::HistoryReceived(identifier) => {
                    self.answered.insert(identifier);
                }
                StockEvent::Disconnect { reason, reconnect } => {
                    self.record.disconnects += 1;
                    if !reconnect {
                        self.record.surprises.push(format!("sent away for good: {reason}"));
                    }
                }
                StockEvent::Confirmed(_) | StockEvent::Restored(_) => {}
                other => self.record.surprises.push(format!("{other:?}")),
            }
        }
    }

    fn follow(&self, identifier: &str) -> Option<usize> {
        self.record.follower.follows.iter().position(|follow| follow.identifier == identifier)
    }

    fn arrived(&mut self, data: &Data) {
        let (Some(follow), Ok(id)) = (self.follow(&data.identifier), serde_json::from_str::<Id>(&data.message)) else {
            self.record.surprises.push(format!("message that nobody published: {data:?}"));
            return;
        };
        let position = data.position.as_ref().map(|at| {
            if *self.epoch != *at.epoch {
                self.epoch = Arc::from(at.epoch.as_str());
            }
            (Arc::clone(&self.epoch), at.offset)
        });
        self.progress.arrived[follow].fetch_add(1, Ordering::AcqRel);
        self.record.arrivals.push(Arrival { follow, id, position, connection: self.connection, at: Instant::now() });
    }
}

/// Pause between attempts to connect.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(400));

async fn stopped(phase: &mut watch::Receiver<Phase>) {
    // An error means that the run is gone, which is a stop too.
    let _ = phase.wait_for(|phase| *phase == Phase::Stop).await;
}
