//! Stock clients that drop and come back, and write down everything they get.

use super::progress::{Progress, Silent};
use super::record::{Arrival, Disconnect, Record, Reject, Stay, Whisper};
use super::roster::{Dice, Follower, Kind};
use super::source::{FIRST_WHISPER_LANE, Id};
use super::{Drops, Phase};
use crate::client::connection::url_with_sid;
use crate::client::frame::Data;
use crate::client::{Connection, EXT_JSON, Received, StockClient, StockEvent, Trust, command, now_secs};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use url::Url;

/// Stock clients of both protocols take a connection for dead after two ping intervals without a frame.
pub(super) const SILENCE: Duration = Duration::from_secs(6);
pub(super) const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// When members stay and leave.
#[derive(Clone, Debug)]
pub struct Habits {
    pub drops: Drops,
    /// How long a member stays, and how long it is away.
    pub stay: Range<Duration>,
    pub away: Range<Duration>,
    /// The server answers requests for history.
    pub history: bool,
    /// Members whisper now and then.
    pub whispers: bool,
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
    turns: watch::Receiver<u64>,
    records: mpsc::Sender<Record>,
    stock: StockClient,
    record: Record,
    connection: u32,
    /// When it began to come back; `None` on the first connection and once it is back.
    returning_since: Option<Instant>,
    /// When the session was named, on the present connection.
    welcomed: Option<Instant>,
    /// When every subscription stood, on the present connection.
    stood: Option<Instant>,
    /// The present connection came back to a session that was gone.
    fresh: bool,
    /// Number of the present session.
    session: u32,
    /// Which of the client's ids the present one is.
    sid: u32,
    /// Whispers so far.
    whispered: u64,
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
    /// At each turn of the run what was written down is handed over.
    pub turns: watch::Receiver<u64>,
    pub records: mpsc::Sender<Record>,
}

impl Member {
    pub fn new(follower: Follower, habits: Habits, surroundings: Surroundings) -> Self {
        let Surroundings { urls, trust, phase, waves, skew, silent, progress, turns, records } = surroundings;
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
            turns,
            records,
            stock,
            record,
            connection: 0,
            returning_since: None,
            welcomed: None,
            stood: None,
            fresh: false,
            session: 0,
            sid: 0,
            whispered: 0,
            answered: BTreeSet::new(),
            epoch: Arc::from(""),
        }
    }

    /// Lives until the run stops.
    pub async fn run(mut self) -> Record {
        let mut first_absence = self.record.follower.kind == Kind::Silent;
        let mut phase = self.phase.clone();
        loop {
            let mut turns = self.turns.clone();
            let link = tokio::select! {
                link = self.open() => link,
                () = stopped(&mut phase) => return self.record,
                Ok(()) = turns.changed() => {
                    self.hand_over(false).await;
                    continue;
                }
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
                self.progress.cuts.fetch_add(1, Ordering::AcqRel);
            }
            if by_client {
                self.returning_since = None;
            } else {
                self.returning_since.get_or_insert_with(Instant::now);
            }
            let away =
                if by_client { self.dice.within(&self.habits.away) } else { self.dice.within(&(PAUSE.0..PAUSE.1)) };
            let silent = self.silent.clone().filter(|_| first_absence && by_client);
            let absence = absence(away, silent);
            tokio::pin!(absence);
            loop {
                let mut turns = self.turns.clone();
                tokio::select! {
                    () = &mut absence => break,
                    () = stopped(&mut phase) => return self.record,
                    Ok(()) = turns.changed() => self.hand_over(false).await,
                }
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
        let (welcomed, stood, fresh) = (self.welcomed.take(), self.stood.take(), std::mem::take(&mut self.fresh));
        let (session, sid, ended) = (self.session, self.sid, Instant::now());
        self.record.stays.push(Stay { welcomed, stood, ended, fresh, session, sid, by_client, positions });
    }

    /// Hands over what was written down so far, and goes on with an empty record.
    async fn hand_over(&mut self, connected: bool) {
        self.turns.mark_unchanged();
        if connected {
            let (welcomed, stood) = (self.welcomed, self.stood);
            self.note_stay(&End::Stop);
            (self.welcomed, self.stood) = (welcomed, stood);
        }
        self.connection = u32::from(connected);
        let next = self.record.next(connected);
        let record = std::mem::replace(&mut self.record, next);
        // Nobody takes it once the run has ended.
        let _ = self.records.send(record).await;
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
        let mut turns = self.turns.clone();
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
            let mut may_whisper = false;
            let mut frames = tokio::select! {
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
                Ok(()) = turns.changed() => {
                    self.hand_over(true).await;
                    Vec::new()
                }
                Ok(()) = waves.changed(), if drops == Drops::AllAtOnce => return End::Dropped,
                () = tokio::time::sleep_until(tick) => {
                    tick += Duration::from_secs(1);
                    if heard.elapsed() > SILENCE {
                        self.record.silences += 1;
                        return End::Lost;
                    }
                    may_whisper = true;
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
            let settled = self.stock.is_settled();
            self.progress.settled.store(settled, Ordering::Release);
            // Who stays for less than a second has no other time for it.
            may_whisper |= self.note_return(settled);
            if may_whisper {
                frames.extend(self.whisper(*phase.borrow()));
            }
            for frame in frames {
                if link.send(frame).await.is_err() {
                    return End::Lost;
                }
            }
        }
    }

    /// At the first occasion and then at one in five seconds and returns, where all subscriptions stand.
    fn whisper(&mut self, phase: Phase) -> Option<String> {
        let wanted = self.habits.whispers && phase == Phase::Run && self.stood.is_some();
        if !wanted || self.whispered > 0 && self.dice.below(5) > 0 {
            return None;
        }
        let follower = &self.record.follower;
        self.whispered += 1;
        let (n, lane) = (self.whispered, FIRST_WHISPER_LANE.checked_add(u16::try_from(follower.id).ok()?)?);
        let follow = &follower.follows[0];
        let whisper = Whisper { n, stream: follow.stream.clone(), session: self.session, at: Instant::now() };
        let command = command::whisper(&follow.identifier, &serde_json::json!({"lane": lane, "n": n, "size": 0}));
        self.record.whispers.push(whisper);
        Some(command)
    }

    /// Back is who has every subscription and the history of each. Answers whether that has just come true.
    fn note_return(&mut self, settled: bool) -> bool {
        let complete = !self.habits.history || self.answered.len() >= self.record.follower.follows.len();
        if !(settled && complete) || self.stood.is_some() {
            return false;
        }
        self.stood = Some(Instant::now());
        if let Some(since) = self.returning_since.take() {
            self.record.resumes.push(since.elapsed());
        }
        true
    }

    fn write_down(&mut self, returning: bool) {
        while let Some(event) = self.stock.poll_event() {
            match event {
                StockEvent::Delivery(data) => self.arrived(&data),
                StockEvent::Welcome { restored } => {
                    self.welcomed = Some(Instant::now());
                    (self.session, self.sid) =
                        self.progress.welcome(self.stock.url_sid().unwrap_or_default(), restored);
                    self.fresh = returning && !restored;
                    self.record.restored += u32::from(restored);
                    self.record.fresh += u32::from(self.fresh);
                }
                StockEvent::HistoryNotFound(identifier) => {
                    // Without a broker that is the answer to everything, and the first connection has missed nothing.
                    if self.habits.history
                        && let Some(follow) = self.follow(&identifier)
                    {
                        let after = self.record.arrivals.len();
                        let (connection, at) = (self.connection, Instant::now());
                        self.record.rejects.push(Reject { follow, after, connection, at });
                    }
                    self.answered.insert(identifier);
                }
                StockEvent::HistoryReceived(identifier) => {
                    self.answered.insert(identifier);
                }
                StockEvent::Disconnect { reason, reconnect } => {
                    self.record.disconnects.push(Disconnect { session: self.session, at: Instant::now() });
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
        let (Some(follow), Some(id)) = (self.follow(&data.identifier), read_id(&data.message)) else {
            let some: String = format!("{data:?}").chars().take(300).collect();
            self.record.surprises.push(format!("message that nobody published: {some}"));
            return;
        };
        let position = data.position.as_ref().map(|at| {
            if *self.epoch != *at.epoch {
                self.epoch = Arc::from(at.epoch.as_str());
            }
            (Arc::clone(&self.epoch), at.offset)
        });
        if id.is_stored() {
            self.progress.arrived[follow].note(id);
        }
        self.record.arrivals.push(Arrival { follow, id, position, connection: self.connection, at: Instant::now() });
    }
}

/// The name of a message, if all of it has come as it was published.
pub(super) fn read_id(message: &str) -> Option<Id> {
    #[derive(Deserialize)]
    struct Whole {
        #[serde(flatten)]
        id: Id,
        /// Length of the text; 0: not known.
        size: usize,
    }
    let whole: Whole = serde_json::from_str(message).ok()?;
    (whole.size == 0 || whole.size == message.len()).then_some(whole.id)
}

/// The first absence of a silent client lasts until its stream has a message.
async fn absence(away: Duration, silent: Option<Arc<Silent>>) {
    if let Some(silent) = silent {
        silent.away.fetch_add(1, Ordering::AcqRel);
        // The sender lives as long as the run.
        let _ = silent.published.subscribe().wait_for(|published| *published).await;
    }
    tokio::time::sleep(away).await;
}

/// Pause between attempts to connect.
pub(super) const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(400));

pub(super) async fn stopped(phase: &mut watch::Receiver<Phase>) {
    // An error means that the run is gone, which is a stop too.
    let _ = phase.wait_for(|phase| *phase == Phase::Stop).await;
}
