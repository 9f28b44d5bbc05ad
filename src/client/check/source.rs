//! Sources: some per stream, one message at a time, each with a key, tried again until it is acknowledged.

use super::Phase;
use super::member::Silent;
use crate::client::publisher::{OutgoingMeta, PublishError};
use crate::client::{Outgoing, Publisher, Trust};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Pause before the next server is asked, where there are several.
const TURN: Duration = Duration::from_millis(100);
/// For all followers of a silent stream to leave.
const LEAVING: Duration = Duration::from_secs(20);

/// Names a message within its stream; part of its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Id {
    /// The source.
    pub lane: u16,
    /// Counts the source's messages from 1.
    pub n: u64,
}

/// What an acknowledgement said.
#[derive(Clone, Debug)]
pub struct Ack {
    pub id: Id,
    /// Epoch and offset; `None` from servers that do not tell.
    pub position: Option<(Arc<str>, u64)>,
    pub duplicate: bool,
    /// When its first attempt began.
    pub begun: Instant,
    pub at: Instant,
}

/// A message without an acknowledgement in time.
#[derive(Clone, Debug)]
pub struct Unacked {
    pub id: Id,
    pub begun: Instant,
    pub ended: Instant,
    /// Every attempt was answered "not stored", or reached nobody: it must never arrive.
    pub refused: bool,
    pub error: String,
}

/// Everything that one source published to its stream.
#[derive(Clone, Debug)]
pub struct Published {
    pub stream: String,
    /// Messages begun.
    pub begun: u64,
    pub acks: Vec<Ack>,
    pub retries: u64,
    /// Not acknowledged in time: nothing was promised.
    pub unacknowledged: Vec<Unacked>,
    /// Refusals and strange answers.
    pub errors: Vec<String>,
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

pub struct Source {
    pub outlet: Outlet,
    pub stream: String,
    pub lane: u16,
    pub interval: Duration,
    /// Of the first message, so that publishers do not march in step.
    pub delay: Duration,
    pub phase: watch::Receiver<Phase>,
    pub silent: Option<Arc<Silent>>,
    /// Counts acknowledgements of the whole run.
    pub acknowledged: Arc<AtomicU64>,
}

impl Source {
    /// Publishes through the run's [`Phase::Run`].
    pub async fn run(mut self) -> Published {
        let mut published = Published {
            stream: self.stream.clone(),
            begun: 0,
            acks: Vec::new(),
            retries: 0,
            unacknowledged: Vec::new(),
            errors: Vec::new(),
        };
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
            published.begun += 1;
            let n = published.begun;
            self.publish(&mut publishers, Id { lane: self.lane, n }, &mut published).await;
            if let (1, Some(silent)) = (n, &self.silent) {
                silent.published.send_replace(true);
            }
            // By schedule, not by pause: what an outage held up is made up for.
            let next = started + self.interval.saturating_mul(u32::try_from(n).unwrap_or(u32::MAX));
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                _ = self.phase.wait_for(|phase| *phase > Phase::Run) => {}
            }
        }
        published.retries = publishers.retries();
        published
    }

    async fn publish(&self, publishers: &mut Publishers, id: Id, published: &mut Published) {
        let Id { lane, n } = id;
        let data = format!(
            r#"{{"lane":{lane},"n":{n},"text":"the quick brown fox jumps over the lazy dog, again and again and again"}}"#
        );
        let message = Outgoing { stream: &self.stream, data: &data, meta: OutgoingMeta::default() };
        let begun = Instant::now();
        let key = format!("{}-{}-{lane}-{n}", self.outlet.run, self.stream);
        let answer = match publishers.publish(&message, &key, self.outlet.retry_for).await {
            Ok(answer) => answer,
            Err(error @ PublishError::GaveUp { .. }) => {
                let refused = matches!(error, PublishError::GaveUp { unknown: false, .. });
                let error = error.to_string();
                let unacked = Unacked { id, begun, ended: Instant::now(), refused, error };
                return published.unacknowledged.push(unacked);
            }
            Err(error) => return published.errors.push(format!("{} {id:?}: {error}", self.stream)),
        };
        let (position, duplicate) = match answer.as_slice() {
            [] => (None, false),
            [one] if one.stream == self.stream => match (&one.epoch, one.offset) {
                (Some(epoch), Some(offset)) if offset > 0 => (Some((Arc::from(epoch.as_str()), offset)), one.duplicate),
                _ => (None, one.duplicate),
            },
            other => return published.errors.push(format!("{} {id:?}: strange answer {other:?}", self.stream)),
        };
        published.acks.push(Ack { id, position, duplicate, begun, at: Instant::now() });
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
    }
}

/// One publisher per server; the next one takes over where one fails.
struct Publishers {
    all: Vec<Publisher>,
    turn: usize,
    retries: u64,
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
        Ok(Self { all: all?, turn: first, retries: 0 })
    }

    async fn publish(
        &mut self,
        message: &Outgoing<'_>,
        key: &str,
        retry_for: Duration,
    ) -> Result<Vec<crate::client::Published>, PublishError> {
        let started = Instant::now();
        let mut any_unknown = false;
        loop {
            let count = self.all.len();
            match self.all[self.turn % count].publish(message.to_body(), key).await {
                Err(PublishError::GaveUp { attempts, waited, unknown, last }) => {
                    any_unknown |= unknown;
                    if started.elapsed() >= retry_for {
                        return Err(PublishError::GaveUp { attempts, waited, unknown: any_unknown, last });
                    }
                }
                answer => return answer,
            }
            self.turn += 1;
            self.retries += 1;
            tokio::time::sleep(TURN).await;
        }
    }

    fn retries(&self) -> u64 {
        self.retries + self.all.iter().map(Publisher::retries).sum::<u64>()
    }
}
