//! Stock clients that drop and come back, and write down everything they get.

use crate::plan::{Dice, Follower, Kind, Plan};
use crate::publishers::Id;
use carrick::client::connection::url_with_sid;
use carrick::client::frame::Data;
use carrick::client::{Connection, EXT_JSON, Received, StockClient, StockEvent, now_secs};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use url::Url;

/// The stock client takes a connection for dead after two ping intervals without a frame.
const SILENCE: Duration = Duration::from_secs(6);
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the round stands; told to every task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Connect, subscribe, stay.
    Setup,
    /// Drop and return.
    Run,
    /// Return and stay.
    Finish,
    Stop,
}

/// A message as it reached a client.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Index in [`Follower::follows`].
    pub follow: usize,
    pub id: Id,
    /// Epoch and offset.
    pub position: Option<(String, u64)>,
    /// Counts the client's connections.
    pub connection: u32,
}

/// A connection that ended: the position on each stream at that time.
#[derive(Clone, Debug)]
pub struct Ended {
    pub by_client: bool,
    /// Stream ⇒ offset.
    pub positions: BTreeMap<String, u64>,
}

/// Everything a client saw.
#[derive(Clone, Debug)]
pub struct Record {
    pub follower: Follower,
    pub arrivals: Vec<Arrival>,
    pub ended: Vec<Ended>,
    pub restored: u32,
    /// Returns with a session id that was not restored.
    pub fresh: u32,
    /// What a healthy server never does: refused subscriptions, rejected history, `disconnect`, frames out of the protocol.
    pub surprises: Vec<String>,
    pub reject_history: u32,
    pub disconnects: u32,
    /// Connections that heard nothing for two ping intervals.
    pub silences: u32,
}

/// What the round watches while it runs.
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

pub struct Client {
    url: Url,
    dice: Dice,
    plan: Plan,
    phase: watch::Receiver<Phase>,
    silent: Option<Arc<Silent>>,
    progress: Arc<Progress>,
    stock: StockClient,
    record: Record,
    connection: u32,
}

enum End {
    /// The client lets go.
    Dropped,
    Lost,
    Stop,
}

impl Client {
    pub fn new(
        url: Url,
        plan: Plan,
        follower: Follower,
        phase: watch::Receiver<Phase>,
        silent: Option<Arc<Silent>>,
        progress: Arc<Progress>,
    ) -> Self {
        let stock = StockClient::new(follower.follows.iter().map(|follow| follow.identifier.clone()));
        let record = Record {
            arrivals: Vec::new(),
            ended: Vec::new(),
            restored: 0,
            fresh: 0,
            surprises: Vec::new(),
            reject_history: 0,
            disconnects: 0,
            silences: 0,
            follower: follower.clone(),
        };
        Self { url, dice: Dice::new(follower.seed), plan, phase, silent, progress, stock, record, connection: 0 }
    }

    /// Lives until the round stops.
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
            let positions = self.stock.positions().iter().map(|(stream, seen)| (stream.clone(), seen.offset)).collect();
            self.stock.on_close();
            let by_client = match end {
                End::Stop => return self.record,
                End::Dropped => true,
                End::Lost => false,
            };
            if self.record.follower.kind == Kind::Double {
                self.progress.excusable.fetch_add(1, Ordering::AcqRel);
            }
            self.record.ended.push(Ended { by_client, positions });
            let away =
                if by_client { self.dice.within(&self.plan.away) } else { self.dice.within(&(PAUSE.0..PAUSE.1)) };
            tokio::select! {
                () = self.absence(away, first_absence && by_client) => {}
                () = stopped(&mut phase) => return self.record,
            }
            first_absence &= !by_client;
        }
    }

    /// The first absence of a silent client lasts until its stream has a message.
    async fn absence(&self, away: Duration, first: bool) {
        if let (true, Some(silent)) = (first, &self.silent) {
            silent.away.fetch_add(1, Ordering::AcqRel);
            // The sender lives as long as the round.
            let _ = silent.published.subscribe().wait_for(|published| *published).await;
        }
        tokio::time::sleep(away).await;
    }

    async fn open(&mut self) -> Connection {
        let url = url_with_sid(&self.url, self.stock.url_sid());
        loop {
            match Connection::open(&url, &[EXT_JSON], OPEN_TIMEOUT).await {
                Ok(link) => return link,
                // Nobody listens while the server is away.
                Err(_) => tokio::time::sleep(self.dice.within(&(PAUSE.0..PAUSE.1))).await,
            }
        }
    }

    async fn stay(&mut self, mut link: Connection, first_absence: bool) -> End {
        self.connection += 1;
        let returning = self.stock.url_sid().is_some_and(|sid| !sid.is_empty());
        self.stock.on_open(now_secs());
        let mut heard = Instant::now();
        let mut tick = Instant::now();
        // A silent client leaves at once, before anything is published to its stream.
        let span = if first_absence {
            self.dice.within(&(Duration::ZERO..PAUSE.1))
        } else {
            self.dice.within(&self.plan.stay)
        };
        let mut phase = self.phase.clone();
        let mut leave_at = (*phase.borrow_and_update() == Phase::Run).then(|| Instant::now() + span);
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
                        (_, Phase::Run) => leave_at = Some(Instant::now() + span),
                        (_, Phase::Setup | Phase::Finish) => leave_at = None,
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
            self.progress.settled.store(self.stock.is_settled(), Ordering::Release);
        }
    }

    fn write_down(&mut self, returning: bool) {
        while let Some(event) = self.stock.poll_event() {
            match event {
                StockEvent::Delivery(data) => self.arrived(&data),
                StockEvent::Welcome { restored: true } => self.record.restored += 1,
                StockEvent::Welcome { restored: false } => self.record.fresh += u32::from(returning),
                StockEvent::HistoryNotFound(identifier) => {
                    self.record.reject_history += 1;
                    self.record.surprises.push(format!("reject_history for {identifier}"));
                }
                StockEvent::Disconnect { reason, .. } => {
                    self.record.disconnects += 1;
                    self.record.surprises.push(format!("disconnect {reason}"));
                }
                StockEvent::Confirmed(_) | StockEvent::Restored(_) | StockEvent::HistoryReceived(_) => {}
                other => self.record.surprises.push(format!("{other:?}")),
            }
        }
    }

    fn arrived(&mut self, data: &Data) {
        let follow = self.record.follower.follows.iter().position(|follow| follow.identifier == data.identifier);
        let (Some(follow), Ok(id)) = (follow, serde_json::from_str::<Id>(&data.message)) else {
            self.record.surprises.push(format!("message that nobody published: {data:?}"));
            return;
        };
        let position = data.position.as_ref().map(|at| (at.epoch.clone(), at.offset));
        self.progress.arrived[follow].fetch_add(1, Ordering::AcqRel);
        self.record.arrivals.push(Arrival { follow, id, position, connection: self.connection });
    }
}

/// Pause between attempts to connect.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(400));

async fn stopped(phase: &mut watch::Receiver<Phase>) {
    // An error means that the round is gone, which is a stop too.
    let _ = phase.wait_for(|phase| *phase == Phase::Stop).await;
}
