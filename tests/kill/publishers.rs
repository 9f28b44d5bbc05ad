//! Publishers: some per stream, one message at a time, each with a key, tried again until it is acknowledged.

use crate::clients::{Phase, Silent};
use carrick::client::publisher::OutgoingMeta;
use carrick::client::{Outgoing, Publisher};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Longer than any outage of a round.
const RETRY_FOR: Duration = Duration::from_secs(60);

/// Names a message within its stream; part of its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Id {
    /// The publisher.
    pub lane: u16,
    /// Counts the publisher's messages from 1.
    pub n: u64,
}

/// What an acknowledgement said.
#[derive(Clone, Debug)]
pub struct Ack {
    pub id: Id,
    pub epoch: String,
    pub offset: u64,
    pub duplicate: bool,
    pub at: Instant,
}

/// Everything that one publisher published to its stream.
#[derive(Clone, Debug)]
pub struct Published {
    pub stream: String,
    pub acks: Vec<Ack>,
    pub retries: u64,
    pub errors: Vec<String>,
}

pub struct Source {
    pub url: String,
    pub stream: String,
    pub lane: u16,
    /// Makes keys differ between rounds.
    pub seed: u64,
    pub interval: Duration,
    /// Of the first message, so that publishers do not march in step.
    pub delay: Duration,
    pub phase: watch::Receiver<Phase>,
    pub silent: Option<Arc<Silent>>,
}

impl Source {
    /// Publishes through the round's [`Phase::Run`].
    pub async fn run(mut self) -> Published {
        let mut published = Published { stream: self.stream.clone(), acks: Vec::new(), retries: 0, errors: Vec::new() };
        let mut publisher = match Publisher::new(&self.url, None, RETRY_FOR) {
            Ok(publisher) => publisher,
            Err(error) => {
                published.errors.push(error.to_string());
                return published;
            }
        };
        if self.phase.wait_for(|phase| *phase >= Phase::Run).await.is_err() {
            return published;
        }
        if let Some(silent) = &self.silent {
            let deadline = Instant::now() + Duration::from_secs(20);
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
        let mut n = 0;
        while *self.phase.borrow() == Phase::Run || n == 0 {
            n += 1;
            self.publish(&mut publisher, Id { lane: self.lane, n }, &mut published).await;
            if let (1, Some(silent)) = (n, &self.silent) {
                silent.published.send_replace(true);
            }
            // By schedule, not by pause: what an outage held up is made up for.
            tokio::time::sleep_until(started + self.interval.saturating_mul(u32::try_from(n).unwrap_or(u32::MAX)))
                .await;
        }
        published.retries = publisher.retries();
        published
    }

    async fn publish(&self, publisher: &mut Publisher, id: Id, published: &mut Published) {
        let Id { lane, n } = id;
        let data = format!(
            r#"{{"lane":{lane},"n":{n},"text":"the quick brown fox jumps over the lazy dog, again and again and again"}}"#
        );
        let body = Outgoing { stream: &self.stream, data: &data, meta: OutgoingMeta::default() }.to_body();
        let key = format!("{}-{}-{lane}-{n}", self.seed, self.stream);
        let answer = match publisher.publish(body, &key).await {
            Ok(answer) => answer,
            Err(error) => return published.errors.push(format!("{} {id:?}: {error}", self.stream)),
        };
        match answer.as_slice() {
            [one] if one.stream == self.stream => match (&one.epoch, one.offset) {
                (Some(epoch), Some(offset)) if offset > 0 => {
                    let ack = Ack { id, epoch: epoch.clone(), offset, duplicate: one.duplicate, at: Instant::now() };
                    published.acks.push(ack);
                }
                _ => published.errors.push(format!("{} {id:?}: acknowledged without a position", self.stream)),
            },
            other => published.errors.push(format!("{} {id:?}: strange answer {other:?}", self.stream)),
        }
    }
}
