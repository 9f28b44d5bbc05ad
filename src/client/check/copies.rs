//! Which second copies a retry may have stored after the limits had removed the first one: with it the store may have
//! forgotten the idempotency key.
//!
//! Everything that tells when the copies were stored must leave room for that: how long the message was tried, what was
//! acknowledged before and after it in the log, and when they arrived.

use super::alarms::{Limits, MARGIN};
use super::judge::Position;
use super::log::StreamLog;
use super::record::{Arrival, Had, Record};
use super::source::{Ack, Id};
use tokio::time::Instant;

/// One copy of a message.
pub(super) struct Copy<'a> {
    pub position: &'a Position,
    /// It was stored before.
    pub at: Instant,
    /// It arrived when it was stored.
    pub live: bool,
    /// How many messages at most have been stored after it in earlier turns of the run.
    pub after: u64,
}

impl<'a> Copy<'a> {
    /// As it arrived in this turn.
    pub fn of(record: &Record, arrival: &'a Arrival, log: &StreamLog) -> Self {
        Self { position: &arrival.position, at: arrival.at, live: came_live(record, arrival, log), after: 0 }
    }

    /// As it was acknowledged.
    pub fn acknowledged(ack: &'a Ack) -> Self {
        Self { position: &ack.position, at: ack.at, live: false, after: 0 }
    }
}

impl<'a> From<&'a Had> for Copy<'a> {
    fn from(Had { arrival, live, after }: &'a Had) -> Self {
        Self { position: &arrival.position, at: arrival.at, live: *live, after: *after }
    }
}

/// It came to a connection that stood before its first attempt, and nothing shows that it was held up: no later message
/// was acknowledged long before it came.
pub(super) fn came_live(record: &Record, arrival: &Arrival, log: &StreamLog) -> bool {
    let Some((begun, _)) = log.tried(arrival.id) else { return false };
    let Some((epoch, offset)) = &arrival.position else { return false };
    let stood = record.stay(arrival).and_then(|stay| stay.stood).is_some_and(|stood| stood < begun);
    stood && log.neighbours(epoch, *offset).1.is_none_or(|acked| arrival.at < acked + MARGIN)
}

/// The second copy, which lies at another position, may have been stored when the limits had removed the first.
pub(super) fn is_forgotten(log: &StreamLog, id: Id, first: &Copy<'_>, second: &Copy<'_>, limits: Limits) -> bool {
    let Some((begun, ended)) = log.tried(id) else { return false };
    let Some((epoch, offset)) = second.position else { return false };
    // Who did not get the acknowledgement of a copy knows of no message there.
    let is_its = |position: &Position| {
        let at = position.as_ref().and_then(|(epoch, offset)| log.at(epoch, *offset));
        at.is_none_or(|at| at == id)
    };
    if first.position == second.position || !is_its(first.position) || !is_its(second.position) {
        return false;
    }
    let before = first.position.as_ref().map(|(epoch, offset)| log.neighbours(epoch, *offset).0);
    let earliest = begun.max(before.flatten().unwrap_or(begun));
    let after = log.neighbours(epoch, *offset).1;
    let latest = ended.min(second.at).min(after.unwrap_or(ended));
    let expired = latest.saturating_duration_since(earliest) >= limits.ttl
        && (!first.live || (latest + MARGIN).saturating_duration_since(first.at) >= limits.ttl);
    let since = match first.at.checked_sub(MARGIN) {
        Some(stored) if first.live => earliest.max(stored),
        _ => earliest,
    };
    // Its own attempts are among them.
    let crowded_out = first.after.saturating_add(log.stored_between(since, latest)) > limits.messages;
    match first.position {
        Some((its_epoch, first_at)) if its_epoch == epoch => {
            let others = log.count_open() - u64::from(log.is_open(id));
            let between = first.after.saturating_add(log.acked_between(epoch, *first_at, *offset) + others);
            first_at < offset && (expired || crowded_out && between >= limits.messages)
        }
        _ => expired || crowded_out,
    }
}

/// The same without positions: that the first copy had been removed when the second was stored must show in the time
/// between their arrivals. No server knows an idempotency key for longer than it keeps the message.
pub(super) fn is_forgotten_between(log: &StreamLog, id: Id, first: Instant, second: Instant, limits: Limits) -> bool {
    let is_late = |(begun, ended): (Instant, Instant)| ended - begun > limits.ttl;
    log.tried(id).is_some_and(is_late) && second.saturating_duration_since(first) >= limits.ttl
}
