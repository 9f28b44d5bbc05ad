//! Storing a publication: one acknowledged publish, repeated with the same message id until it is answered.

use super::Core;
use super::api::{ATTEMPT, ApiError, code};
use super::headers::{self, Body};
use super::mux::RequestError;
use super::token::Token;
use crate::broker::{AppendError, Appended, Durability};
use crate::log_limit::limited;
use crate::protocol::{Epoch, Meta, Publication, StreamName};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::timeout;

/// NATS that has been away for longer fails publications at once; shorter absences (elections, a restart of the
/// server) are waited out.
const PATIENCE_WHEN_AWAY: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// What a refusal means for the publication.
enum Verdict {
    /// Nothing was stored; try again.
    Retry,
    /// This or an earlier attempt may be stored; try again.
    RetryUnknown,
    StorageFull,
    TooLarge,
}

fn verdict(err_code: u32, description: &str) -> Verdict {
    let says = |text: &str| description.contains(text);
    match err_code {
        code::STORE_FAILED | code::INSUFFICIENT_RESOURCES | code::STORAGE_EXCEEDED => Verdict::StorageFull,
        _ if says("maximum bytes") || says("insufficient") || says("no space left") || says("resource limits") => {
            Verdict::StorageFull
        }
        // The same id is being stored just now.
        10158 => Verdict::RetryUnknown,
        _ if says("in process") => Verdict::RetryUnknown,
        // "message size exceeds maximum allowed", "header size exceeds maximum allowed of 64k"
        10054 | 10097 => Verdict::TooLarge,
        _ => Verdict::Retry,
    }
}

/// It is the limit of the one stream or bucket that was written to, not of what holds all of them.
pub(super) fn is_own_limit(description: &str) -> bool {
    description.contains("maximum bytes")
}

/// How a stored write ended when it was not acknowledged.
pub(super) enum WriteError {
    NotStored(String),
    Unknown(String),
    StorageFull(String),
    TooLarge,
    /// The condition in its headers does not hold.
    Conflict,
}

/// One write that is repeated with the same message id.
///
/// The log knows that id for a while only, and that while passes while this machine is suspended, too. So the budget is
/// measured by a clock that goes on then, and looked at before each attempt: what was begun before is not handed over again.
pub(super) struct Write<'a> {
    core: &'a Core,
    /// By [`super::skew::Clocks::own`].
    ends: i64,
    pause: Duration,
    /// An attempt may have been stored without our knowing.
    unknown: bool,
    reason: String,
    /// How long NATS may have been away for the write still to wait for it.
    patience: Duration,
    /// It goes to a share of the store, whose limit may be reached while there is room for publications.
    own_share: bool,
}

impl<'a> Write<'a> {
    /// A write that fails at once when NATS has been away for a while: its sender is told to come again.
    pub fn new(core: &'a Core, budget: Duration) -> Self {
        let reason = String::from("NATS is not available");
        let ends = core.clocks.own().saturating_add(i64::try_from(budget.as_millis()).unwrap_or(i64::MAX));
        Self { core, ends, pause: PAUSE, unknown: false, reason, patience: PATIENCE_WHEN_AWAY, own_share: false }
    }

    /// A write that waits for NATS as long as its budget allows.
    pub fn patient(core: &'a Core, budget: Duration) -> Self {
        Self { patience: Duration::MAX, ..Self::new(core, budget) }
    }

    /// A write into the sessions' bucket.
    pub fn of_sessions(self) -> Self {
        Self { own_share: true, ..self }
    }

    pub fn end(self) -> WriteError {
        if self.unknown { WriteError::Unknown(self.reason) } else { WriteError::NotStored(self.reason) }
    }

    /// The connection to use, waiting for one within the budget; nothing waits for a store that has been away for long
    /// unless it may hold the write already.
    pub async fn connection(&mut self) -> Option<Arc<super::Generation>> {
        if self.left().is_zero() {
            return None;
        }
        if let Some(generation) = self.core.generation() {
            return Some(generation);
        }
        let found = match self.unknown || self.core.away_for() <= self.patience {
            true => timeout(self.left(), self.core.wait_for_generation()).await.ok(),
            false => None,
        };
        // The wait may have been longer than a timer of this process knows.
        let found = found.filter(|_| !self.left().is_zero());
        if found.is_none() {
            self.reason = self.core.status.borrow().reason.to_string();
        }
        found
    }

    fn left(&self) -> Duration {
        let left = self.ends.saturating_sub(self.core.clocks.own());
        Duration::from_millis(u64::try_from(left).unwrap_or(0))
    }

    /// Time for one attempt.
    pub fn attempt(&self) -> Duration {
        self.left().min(ATTEMPT)
    }

    /// Takes note of a failed attempt and waits before the next. `Err`: the write is over.
    pub async fn failed(&mut self, error: ApiError) -> Result<(), WriteError> {
        self.reason = error.to_string();
        match error {
            ApiError::Request(RequestError::NotSent(_)) => {}
            // The sizes were looked at before: another connection's limit may be lower.
            ApiError::Request(RequestError::Refused(_)) if !self.unknown => return Err(WriteError::TooLarge),
            ApiError::Request(RequestError::Refused(_)) => {}
            ApiError::Request(RequestError::NoAnswer(_)) | ApiError::Unreadable(_) => self.unknown = true,
            // Trying again does not help. An attempt from before the permission was taken away may be stored.
            ApiError::Request(RequestError::Denied(reason)) => return Err(WriteError::Unknown(reason)),
            // No log, or no leader just now: the check finds out.
            ApiError::NoResponders => self.core.nudge.notify_one(),
            ApiError::Refused { err_code: code::WRONG_LAST_SEQUENCE | code::WRONG_LAST_SEQUENCE_CONSTANT, .. } => {
                return Err(WriteError::Conflict);
            }
            ApiError::Refused { err_code: code::EXPECTED_STREAM, .. } => self.core.nudge.notify_one(),
            ApiError::Refused { err_code, description } => match verdict(err_code, &description) {
                Verdict::Retry => {}
                Verdict::RetryUnknown => self.unknown = true,
                Verdict::StorageFull => {
                    // A full disk, or an account at its limit, takes no publications either.
                    if !(self.own_share && is_own_limit(&description)) {
                        self.core.storage_full.store(true, Ordering::Relaxed);
                        self.core.nudge.notify_one();
                    }
                    if !self.unknown {
                        return Err(WriteError::StorageFull(description));
                    }
                }
                Verdict::TooLarge if !self.unknown => return Err(WriteError::TooLarge),
                Verdict::TooLarge => {}
            },
        }
        tokio::time::sleep(self.pause.min(self.left())).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }

    /// The attempt was stored, but elsewhere or under another epoch: ask again for its position.
    pub fn stored_elsewhere(&mut self, reason: &str) {
        self.unknown = true;
        self.reason = reason.into();
    }
}

impl Core {
    fn publish_budget(&self, stream: &StreamName) -> Duration {
        self.config.publish_budget(self.rules().table.policy(stream))
    }

    /// Stores a publication, or fans it out if its policy keeps nothing.
    pub(super) async fn store(&self, publication: Publication) -> Result<Appended, AppendError> {
        let token = Token::of(&publication.stream);
        let mut write = Write::new(self, self.publish_budget(&publication.stream));
        loop {
            let Some(generation) = write.connection().await else { return Err(write.end().into()) };
            // Held until the attempt is over.
            let rules = self.rules();
            if !Arc::ptr_eq(&rules.table, &generation.table) || rules.holds_back(&publication.stream) {
                drop(rules);
                write.failed(RequestError::NotSent("the history policies are being changed").into()).await?;
                continue;
            }
            let (policy, Some(log)) = generation.of(&publication.stream) else {
                let Publication { stream, meta, data, .. } = publication;
                return self.fan_out(&stream, &meta, data, Body::Data).await;
            };
            let subject = self.names.log_subject(&policy.name, &token.text);
            let epoch = log.epoch();
            let headers = headers::stored(&publication, &token, &log.name, epoch.as_str());
            let (size, max_payload) = (publication.data.len(), generation.connection.client.max_payload());
            headers::check_size(size, &headers, max_payload)?;
            let timeout = write.attempt();
            let outcome = generation.api().publish(subject, headers, publication.data.clone(), timeout).await;
            drop(rules);
            match outcome {
                Ok(ack) if ack.stream != log.name => {
                    let (stream, log) = (&*ack.stream, &*log.name);
                    limited!(WARN, PublicationElsewhere, stream, log, "another log took a publication");
                    self.nudge.notify_one();
                    write.stored_elsewhere("the log was replaced meanwhile");
                }
                // The position's epoch must be the one that held when it was given.
                Ok(_) if log.epoch() != epoch => write.stored_elsewhere("the log's epoch changed meanwhile"),
                Ok(ack) => {
                    log.witness.note(&log.name, epoch.as_str(), ack.seq, Some(publication.id), 0);
                    if ack.duplicate && generation.live.is_open(&publication.stream) {
                        // The first attempt may have been stored by a leader that died before it fed it.
                        self.feed.lagged(&publication.stream);
                    }
                    return Ok(Appended {
                        epoch,
                        offset: ack.seq,
                        duplicate: ack.duplicate,
                        durability: log.durability,
                    });
                }
                Err(error) => {
                    if let Err(end) = write.failed(error).await {
                        return Err(match end {
                            WriteError::TooLarge => AppendError::TooLarge { size, limit: max_payload },
                            end => end.into(),
                        });
                    }
                }
            }
        }
    }

    /// Sends a message to all nodes without storing it. Core NATS does not acknowledge: success means handed over.
    pub(super) async fn fan_out(
        &self,
        stream: &StreamName,
        meta: &Meta,
        data: Bytes,
        body: Body,
    ) -> Result<Appended, AppendError> {
        let token = Token::of(stream);
        let headers = headers::transient(stream, &token, meta, body);
        let mut write = Write::new(self, self.publish_budget(stream));
        loop {
            let Some(generation) = write.connection().await else { return Err(write.end().into()) };
            let (policy, log) = generation.of(stream);
            let subject = self.names.live_subject(&policy.name, &token.text);
            headers::check_size(data.len(), &headers, generation.connection.client.max_payload())?;
            let timeout = write.attempt();
            match generation.api().mux.publish(subject, headers.clone(), data.clone(), timeout).await {
                Ok(()) => {
                    let epoch = log.map_or_else(Epoch::none, |log| log.epoch());
                    return Ok(Appended { epoch, offset: 0, duplicate: false, durability: Durability::None });
                }
                Err(error) => write.failed(error.into()).await?,
            }
        }
    }
}

impl From<WriteError> for AppendError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::NotStored(reason) => Self::NotStored(reason),
            WriteError::Unknown(reason) => Self::Unknown(reason),
            WriteError::StorageFull(reason) => Self::StorageFull(reason),
            WriteError::TooLarge => Self::NotStored("larger than the store takes".into()),
            WriteError::Conflict => Self::NotStored("the log refused the write's condition".into()),
        }
    }
}
