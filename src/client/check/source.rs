//! Sources: some per stream, one request at a time, each with a key, tried again until it is acknowledged.

use super::Phase;
use super::numbers::Numbers;
use super::progress::{Progress, Silent};
use super::roster::Dice;
use crate::boottime;
use crate::client::publisher::{OutgoingMeta, PublishError};
use crate::client::{Outgoing, Publisher, Trust};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Pause before the next server is asked, where there are several.
const TURN: Duration = Duration::from_millis(100);
/// For all followers of a silent stream to leave.
const LEAVING: Duration = Duration::from_secs(20);
/// A request that was given up may be carried out so much later.
pub(super) const CARRIED_OUT: Duration = Duration::from_secs(60);
/// And then be on its way for as long as a server stands still.
const STANDS_STILL: Duration = Duration::from_secs(60);

/// Names a message within its stream; part of its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Id {
    /// The source.
    pub lane: u16,
    /// Counts the source's messages from 1.
    pub n: u64,
}

/// Lanes from here on carry what is not stored: first the transient messages of publishers …
pub const TRANSIENT_LANE: u16 = 1_000;
/// … then whispers, by the client that sent them.
pub const FIRST_WHISPER_LANE: u16 = 2_000;

impl Id {
    /// Stored messages have positions and are never lost.
    pub fn is_stored(self) -> bool {
        self.lane < TRANSIENT_LANE
    }

    /// The client that whispered it.
    pub fn whisperer(self) -> Option<usize> {
        self.lane.checked_sub(FIRST_WHISPER_LANE).map(usize::from)
    }
}

/// The client that must not get a message, as it was when the message was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Excluded {
    pub client: usize,
    /// Number of its session.
    pub session: u32,
    /// Which of its ids was named, as [`super::record::Stay::sid`] counts them.
    pub sid: u32,
    /// When it had been given that one.
    pub since: Instant,
}

/// What an acknowledgement said.
#[derive(Clone, Debug)]
pub struct Ack {
    pub id: Id,
    /// Epoch and offset; `None` from servers that do not tell.
    pub position: Option<(Arc<str>, u64)>,
    pub duplicate: bool,
    /// Who must not get it.
    pub excluded: Option<Excluded>,
    /// When its first attempt began.
    pub begun: Instant,
    pub at: Instant,
}

/// A message without an acknowledgement in time.
#[derive(Clone, Debug)]
pub struct Unacked {
    pub id: Id,
    /// Who must not get it, if it is stored after all.
    pub excluded: Option<Excluded>,
    pub begun: Instant,
    pub ended: Instant,
    /// Every attempt was answered "not stored", or reached nobody: it must never arrive.
    pub refused: bool,
    pub error: String,
}

/// What a source did in earlier turns of the run.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// Messages begun.
    pub begun: u64,
    /// Those of them that may yet be stored.
    pub open: Vec<Unacked>,
    /// Those of them that were not acknowledged, and too long ago to be stored now.
    pub given_up: Numbers,
    /// Those of them that must never arrive.
    pub refused: Numbers,
    /// The last one with a position.
    pub last: Option<Ack>,
}

impl Past {
    /// A turn is over.
    pub fn add(&mut self, turn: &Published, now: Instant) {
        self.begun = turn.past.begun + turn.begun;
        for unacked in &turn.unacknowledged {
            if unacked.refused {
                self.refused.insert(unacked.id.n);
            } else {
                self.open.push(unacked.clone());
            }
        }
        let (open, over) = std::mem::take(&mut self.open)
            .into_iter()
            .partition(|unacked| now < unacked.ended + CARRIED_OUT + STANDS_STILL);
        self.open = open;
        let over: Vec<Unacked> = over;
        over.iter().for_each(|unacked| self.given_up.insert(unacked.id.n));
        if let Some(last) = turn.acks.iter().rev().find(|ack| ack.position.is_some()) {
            self.last = Some(last.clone());
        }
    }
}

/// Everything that one source published to its stream in one turn of the run.
#[derive(Clone, Debug)]
pub struct Published {
    pub stream: String,
    pub lane: u16,
    pub past: Past,
    /// Messages begun.
    pub begun: u64,
    pub acks: Vec<Ack>,
    /// Acknowledged requests that carried several messages.
    pub batches: u64,
    pub retries: u64,
    /// Not acknowledged in time: nothing was promised.
    pub unacknowledged: Vec<Unacked>,
    /// Refusals and strange answers.
    pub errors: Vec<String>,
}

impl Published {
    /// Nothing yet.
    fn new(stream: String, lane: u16, past: Past) -> Self {
        Self {
            stream,
            lane,
            past,
            begun: 0,
            acks: Vec::new(),
            batches: 0,
            retries: 0,
            unacknowledged: Vec::new(),
            errors: Vec::new(),
        }
    }

    /// In the first turn, without any trouble.
    #[cfg(test)]
    pub(super) fn acknowledged(stream: &str, lane: u16, acks: Vec<Ack>) -> Self {
        Self { begun: acks.len() as u64, acks, ..Self::new(stream.to_owned(), lane, Past::default()) }
    }

    /// Its messages have positions, and must arrive.
    pub fn is_stored(&self) -> bool {
        self.lane < TRANSIENT_LANE
    }
}

/// How a run publishes.
#[derive(Clone, Debug)]
pub struct Outlet {
    /// Broadcast endpoints; a source moves on to the next one after a failure.
    pub urls: Vec<String>,
    /// Bearer key.
    pub key: Option<String>,
    /// Authorities to trust, of clients too; `None`: the system's.
    pub trust: Option<Trust>,
    /// Makes idempotency keys differ between runs.
    pub run: String,
    /// How long one publication is tried. Zero: once.
    pub retry_for: Duration,
}

/// What a source publishes.
pub enum Sort {
    Plain,
    /// So many messages per request.
    Batch(u32),
    /// Messages that are not stored.
    Transient,
    /// Messages of which one of these followers is excluded.
    Excluding(Vec<(usize, Arc<Progress>)>),
}

pub struct Source {
    pub outlet: Outlet,
    pub stream: String,
    pub lane: u16,
    pub sort: Sort,
    /// Bytes of data per message; most are small.
    pub payload: Range<usize>,
    pub dice: Dice,
    /// Between two messages.
    pub interval: Duration,
    /// Of the first message, so that publishers do not march in step.
    pub delay: Duration,
    pub past: Past,
    pub phase: watch::Receiver<Phase>,
    pub silent: Option<Arc<Silent>>,
    /// Counts acknowledgements of the whole run.
    pub acknowledged: Arc<AtomicU64>,
}

impl Source {
    /// Publishes through the run's [`Phase::Run`].
    pub async fn run(mut self) -> Published {
        let mut published = Published::new(self.stream.clone(), self.lane, self.past.clone());
        let mut publishers = match Publishers::new(&self.outlet, usize::from(self.lane)) {
            Ok(publishers) => publishers,
            Err(error) => {
                published.errors.push(error.to_string());
                return published;
            }
        };
        if self.phase.wait_for(|phase| *phase >= Phase::Run).await.is_err() {
            return published;
        }
        if let Some(silent) = &self.silent {
            let deadline = Instant::now() + LEAVING;
            while silent.away.load(Ordering::Acquire) < silent.followers {
                if Instant::now() > deadline {
                    published.errors.push(format!("{}: its followers did not leave", self.stream));
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        let started = Instant::now() + self.delay;
        tokio::time::sleep_until(started).await;
        while *self.phase.borrow() == Phase::Run || published.begun == 0 {
            let first = self.past.begun + published.begun + 1;
            let count = if let Sort::Batch(count) = self.sort { u64::from(count) } else { 1 };
            published.begun += count;
            let ids = (first..first + count).map(|n| Id { lane: self.lane, n }).collect();
            self.publish(&mut publishers, ids, &mut published).await;
            if let (1, Some(silent)) = (first, &self.silent) {
                silent.published.send_replace(true);
            }
            // By schedule, not by pause: what an outage held up is made up for.
            let next = started + self.interval.saturating_mul(u32::try_from(published.begun).unwrap_or(u32::MAX));
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                _ = self.phase.wait_for(|phase| *phase > Phase::Run) => {}
            }
        }
        published.retries = publishers.retries();
        published
    }

    /// JSON that names the message; its length is part of it.
    fn data(&mut self, id: Id) -> String {
        let start = format!(r#"{{"lane":{},"n":{},"size":"#, id.lane, id.n);
        let size = self.size().max(start.len() + 24);
        let end = r#","text":""#;
        let filling = size - start.len() - digits(size) - end.len() - 2;
        format!(r#"{start}{size}{end}{}"}}"#, "x".repeat(filling))
    }

    /// As many messages between 100 and 200 bytes as between 100,000 and 200,000.
    fn size(&mut self) -> usize {
        let Range { start, end } = self.payload;
        let share = self.dice.below(1 << 20) as f64 / f64::from(1 << 20);
        let ratio = end.max(start) as f64 / start.max(1) as f64;
        (start.max(1) as f64 * ratio.powf(share)) as usize
    }

    async fn publish(&mut self, publishers: &mut Publishers, ids: Vec<Id>, published: &mut Published) {
        let excluded = match &self.sort {
            Sort::Excluding(followers) if !followers.is_empty() => {
                let (client, progress) = &followers[self.dice.below(followers.len() as u64) as usize];
                progress.session().map(|session| (*client, session))
            }
            _ => None,
        };
        let meta = OutgoingMeta {
            exclude_socket: excluded.as_ref().map(|(_, session)| session.sid.as_str()),
            transient: matches!(self.sort, Sort::Transient),
            ..OutgoingMeta::default()
        };
        let data: Vec<String> = ids.iter().map(|id| self.data(*id)).collect();
        let messages: Vec<Outgoing<'_>> =
            data.iter().map(|data| Outgoing { stream: &self.stream, data, meta: meta.clone() }).collect();
        let body = match (&self.sort, messages.as_slice()) {
            (Sort::Batch(_), all) => {
                Bytes::from(serde_json::to_vec(all).expect("strings and booleans are always JSON"))
            }
            (_, [one]) => one.to_body(),
            (_, several) => unreachable!("{} messages in one request that is no batch", several.len()),
        };
        let (first, count, begun) = (ids[0], ids.len() as u64, Instant::now());
        let named = excluded.as_ref().map(|(client, session)| session.excluded(*client));
        let key = format!("{}-{}-{}-{}", self.outlet.run, self.stream, first.lane, first.n);
        let answer = match publishers.publish(&body, &key, self.outlet.retry_for).await {
            Ok(answer) => answer,
            Err(error @ PublishError::GaveUp { .. }) => {
                let refused = matches!(error, PublishError::GaveUp { unknown: false, .. });
                let (error, ended) = (error.to_string(), Instant::now());
                let unacked = |id| Unacked { id, excluded: named, begun, ended, refused, error: error.clone() };
                return published.unacknowledged.extend(ids.into_iter().map(unacked));
            }
            Err(error) => return published.errors.push(format!("{} {first:?}: {error}", self.stream)),
        };
        let ours = answer.iter().all(|one| one.stream == self.stream);
        if !(answer.is_empty() || ours && answer.len() == ids.len()) {
            return published.errors.push(format!("{} {first:?}: strange answer {answer:?}", self.stream));
        }
        let at = Instant::now();
        published.batches += u64::from(count > 1);
        for (index, id) in ids.into_iter().enumerate() {
            let one = answer.get(index);
            let position = one.and_then(|one| {
                let offset = one.offset.filter(|offset| *offset > 0)?;
                Some((Arc::from(one.epoch.as_deref()?), offset))
            });
            let duplicate = one.is_some_and(|one| one.duplicate);
            published.acks.push(Ack { id, position, duplicate, excluded: named, begun, at });
        }
        self.acknowledged.fetch_add(count, Ordering::Relaxed);
    }
}

fn digits(number: usize) -> usize {
    number.to_string().len()
}

/// One publisher per server; the next one takes over where one fails.
struct Publishers {
    all: Vec<Publisher>,
    turn: usize,
    retries: u64,
    /// As a publisher's own: the server forgets the key while the machine is suspended, too.
    clock: fn() -> Duration,
}

impl Publishers {
    fn new(outlet: &Outlet, first: usize) -> Result<Self, PublishError> {
        // A single server is asked again by its publisher; several are asked once each, in turn.
        let retry_for = if outlet.urls.len() == 1 { outlet.retry_for } else { Duration::ZERO };
        let publisher = |url: &String| {
            let publisher = Publisher::new(url, outlet.key.as_deref(), retry_for)?;
            Ok(publisher.trusting(outlet.trust.clone()))
        };
        let all: Result<Vec<_>, PublishError> = outlet.urls.iter().map(publisher).collect();
        Ok(Self { all: all?, turn: first, retries: 0, clock: boottime::now })
    }

    async fn publish(
        &mut self,
        body: &Bytes,
        key: &str,
        retry_for: Duration,
    ) -> Result<Vec<crate::client::Published>, PublishError> {
        let started = (self.clock)();
        let (mut any_unknown, mut all_attempts) = (false, 0);
        loop {
            let count = self.all.len();
            let until = (all_attempts > 0).then(|| started + retry_for);
            match self.all[self.turn % count].publish_until(body.clone(), key, until).await {
                Err(PublishError::GaveUp { attempts, unknown, last, .. }) => {
                    any_unknown |= unknown;
                    all_attempts += attempts;
                    let waited = || (self.clock)().saturating_sub(started);
                    let goes_on = waited() < retry_for && {
                        tokio::time::sleep(TURN).await;
                        // The pause may have outlasted the time, all the more if the machine was suspended.
                        waited() < retry_for
                    };
                    if !goes_on {
                        let (attempts, waited, unknown) = (all_attempts, waited(), any_unknown);
                        return Err(PublishError::GaveUp { attempts, waited, unknown, last });
                    }
                }
                answer => return answer,
            }
            self.turn += 1;
            self.retries += 1;
        }
    }

    fn retries(&self) -> u64 {
        self.retries + self.all.iter().map(Publisher::retries).sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Answers 503 to everything, and counts.
    async fn unavailable(asked: Arc<AtomicU64>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/_broadcast", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut tcp, _)) = listener.accept().await {
                let mut buffer = [0; 4_096];
                while tcp.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                    asked.fetch_add(1, Ordering::Relaxed);
                    let answer = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
                    tcp.write_all(answer).await.unwrap();
                }
            }
        });
        url
    }

    /// An hour passes between any two looks at it.
    fn clock_of_a_laptop() -> Duration {
        static HOURS: AtomicU64 = AtomicU64::new(0);
        Duration::from_secs(3_600 * HOURS.fetch_add(1, Ordering::Relaxed))
    }

    #[tokio::test]
    async fn row_01_no_server_is_asked_again_after_a_suspension() {
        let asked = Arc::<AtomicU64>::default();
        let urls = vec![unavailable(Arc::clone(&asked)).await, unavailable(Arc::clone(&asked)).await];
        let retry_for = Duration::from_secs(5_400);
        let outlet = Outlet { urls, key: None, trust: None, run: "r".to_owned(), retry_for };
        let mut publishers = Publishers::new(&outlet, 0).unwrap();
        publishers.clock = clock_of_a_laptop;
        // One hour at the first look, which leaves some time; two at the second.
        let body = Bytes::from_static(b"{}");
        let publishing = publishers.publish(&body, "k", retry_for);
        let ended = tokio::time::timeout(Duration::from_secs(20), publishing).await.expect("it gives up");
        let error = ended.unwrap_err();
        assert!(matches!(error, PublishError::GaveUp { attempts: 1, unknown: true, .. }), "{error}");
        assert_eq!((asked.load(Ordering::Relaxed), publishers.retries()), (1, 0));
    }
}
