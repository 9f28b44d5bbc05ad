//! Which rejections of history were false: the client's position was provably complete.

use super::judge::{Position, Rules};
use super::record::{Arrival, Record, Reject};
use super::source::{Ack, Id, Published, TRANSIENT_LANE, Unacked};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// For the way of a message and the resolution of expiry.
const MARGIN: Duration = Duration::from_millis(500);
/// A request that was given up may be carried out so much later.
const CARRIED_OUT: Duration = Duration::from_secs(60);

/// What a deployment keeps of each stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub messages: u64,
    pub ttl: Duration,
}

/// What the publishers know of one stream.
#[derive(Default)]
pub(super) struct StreamLog {
    pub acks: BTreeMap<Id, Ack>,
    /// Transient messages, and how many of them were begun.
    pub transient: BTreeMap<Id, Ack>,
    pub transient_begun: u64,
    /// Numbers of each lane that an earlier turn of the run has judged.
    judged: HashMap<u16, u64>,
    /// Messages that were not acknowledged and may be stored later, of earlier turns and of this one.
    open: HashMap<Id, Unacked>,
    /// The last message of the earlier turns.
    last: Option<Ack>,
    /// When each lane's last message of the earlier turns was acknowledged.
    judged_at: HashMap<u16, Instant>,
    /// Said to be not stored by every attempt.
    pub refused: HashSet<Id>,
    /// From the first attempt to its answer, of all messages that are or may be stored.
    spans: Vec<(Instant, Instant)>,
    /// When the last message of an epoch was begun.
    epochs: HashMap<Arc<str>, Instant>,
    /// Position ⇒ message.
    places: HashMap<(Arc<str>, u64), Id>,
}

impl StreamLog {
    pub fn note(&mut self, source: &Published) {
        if source.lane == TRANSIENT_LANE {
            self.transient.extend(source.acks.iter().map(|ack| (ack.id, ack.clone())));
            self.transient_begun = source.past.begun + source.begun;
            return;
        }
        self.judged.insert(source.lane, source.past.begun);
        self.refused.extend(&source.past.refused);
        self.note_last(source.past.last.as_ref());
        self.judged_at.extend(source.past.last.iter().map(|last| (source.lane, last.at)));
        for ack in &source.acks {
            self.spans.push((ack.begun, ack.at));
            if let Some((epoch, offset)) = &ack.position {
                let last = self.epochs.entry(Arc::clone(epoch)).or_insert(ack.begun);
                *last = ack.begun.max(*last);
                self.places.insert((Arc::clone(epoch), *offset), ack.id);
            }
            self.acks.insert(ack.id, ack.clone());
        }
        for unacked in source.past.open.iter().chain(&source.unacknowledged) {
            if unacked.refused {
                self.refused.insert(unacked.id);
            } else {
                self.spans.push((unacked.begun, unacked.ended + CARRIED_OUT));
                self.open.insert(unacked.id, unacked.clone());
            }
        }
    }

    fn note_last(&mut self, of_lane: Option<&Ack>) {
        let Some(Ack { position: Some((epoch, offset)), begun, .. }) = of_lane else { return };
        let is_later = |last: &Ack| match &last.position {
            Some((its_epoch, its_offset)) if its_epoch == epoch => offset > its_offset,
            _ => *begun > last.begun,
        };
        if self.last.as_ref().is_none_or(is_later) {
            self.last = of_lane.cloned();
        }
    }

    /// The message at this position, if what was stored after it is known: one of this turn, or the last one before.
    fn known(&self, epoch: &Arc<str>, offset: u64) -> Option<&Ack> {
        let is_there = |ack: &&Ack| ack.position.as_ref().is_some_and(|at| at.0 == *epoch && at.1 == offset);
        let of_turn = self.places.get(&(Arc::clone(epoch), offset)).and_then(|id| self.acks.get(id));
        of_turn.or_else(|| self.last.as_ref().filter(is_there))
    }

    /// It was published in an earlier turn.
    pub fn is_of_an_earlier_turn(&self, id: Id) -> bool {
        self.judged.get(&id.lane).is_some_and(|judged| id.n <= *judged)
    }

    /// It was not acknowledged, in this turn or before, and may have been stored since.
    pub fn is_open(&self, id: Id) -> bool {
        self.open.contains_key(&id)
    }

    /// All that an earlier turn had acknowledged of this lane was acknowledged before this.
    pub fn judged_at(&self, lane: u16) -> Option<Instant> {
        self.judged_at.get(&lane).copied()
    }

    /// The limits may have removed it before a connection that stands could get it, or its log's life has ended.
    pub fn may_be_removed(&self, ack: &Ack, rules: &Rules) -> bool {
        let Some(limits) = rules.limits else { return false };
        let until = ack.at + rules.live_within;
        limits.ttl <= rules.live_within + MARGIN
            || self.stored_between(ack.begun, until) >= limits.messages
            || self.epochs.len() > 1
    }

    /// How many messages at most were stored after `since` and before `until`.
    fn stored_between(&self, since: Instant, until: Instant) -> u64 {
        self.spans.iter().filter(|(begun, ended)| *begun < until && *ended > since).count() as u64
    }

    /// The message at this position was certainly kept at this time: says why.
    fn keeps(&self, epoch: &Arc<str>, offset: u64, at: Instant, limits: Limits) -> Option<String> {
        // A message of the same life of the log was begun later: its past was still there.
        if self.epochs.get(epoch).is_none_or(|last| *last <= at) {
            return None;
        }
        let ack = self.known(epoch, offset)?;
        let age = at.saturating_duration_since(ack.begun);
        let after = self.stored_between(ack.begun, at);
        (age + MARGIN < limits.ttl && after < limits.messages)
            .then(|| format!("offset {offset} was {age:.1?} old, with {after} messages after it at most"))
    }

    /// A second copy at another position, stored by a retry after the limits had removed the first: with it the store
    /// may have forgotten the idempotency key.
    pub fn is_forgotten(&self, arrival: &Arrival, first: Option<&Position>, limits: Limits) -> bool {
        let id = arrival.id;
        let (begun, ended) = match (self.acks.get(&id), self.open.get(&id)) {
            (Some(ack), _) => (ack.begun, ack.at),
            (None, Some(unacked)) => (unacked.begun, unacked.ended + CARRIED_OUT),
            (None, None) => return false,
        };
        let differs = first.is_none_or(|first| *first != arrival.position) && arrival.position.is_some();
        let stored_at = arrival.position.as_ref().and_then(|(epoch, offset)| {
            let id = self.places.get(&(Arc::clone(epoch), *offset));
            // Who did not get the acknowledgement of this copy knows of no message there.
            id.is_none_or(|id| *id == arrival.id).then_some(())
        });
        // What else was stored while an earlier turn tried it is not known any more.
        let removed = self.is_of_an_earlier_turn(id)
            || self.stored_between(begun, ended) > limits.messages
            || ended - begun > limits.ttl;
        differs && stored_at.is_some() && removed
    }
}

/// Why a rejection was false: the last message that the client had of this stream was kept when it was told.
pub(super) fn is_false_alarm(record: &Record, reject: &Reject, log: &StreamLog, limits: Limits) -> Option<String> {
    let stream = &record.follower.follows[reject.follow].stream;
    // What another subscription gets on the same connection came after this one had asked.
    let counts = |arrival: &&Arrival| {
        let same = arrival.follow == reject.follow;
        same || arrival.connection < reject.connection && record.follower.follows[arrival.follow].stream == *stream
    };
    let before = record.earlier.iter().chain(&record.arrivals[..reject.after]).rev().filter(counts);
    let (epoch, offset) = before.filter_map(|arrival| arrival.position.as_ref()).next()?;
    log.keeps(epoch, *offset, reject.at, limits)
}
