//! What the publishers know of one stream: the judge's side of the story.

use super::alarms::{Limits, MARGIN};
use super::judge::Rules;
use super::numbers::Numbers;
use super::source::{Ack, CARRIED_OUT, Excluded, Id, Published, TRANSIENT_LANE, Unacked};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::time::Instant;

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
    /// Those of each lane that may not, any more.
    given_up: HashMap<u16, Numbers>,
    /// The last message of the earlier turns.
    last: Option<Ack>,
    /// When each lane's last message of the earlier turns was acknowledged.
    judged_at: HashMap<u16, Instant>,
    /// Of each lane, said to be not stored by every attempt.
    refused: HashMap<u16, Numbers>,
    /// From the first attempt to its answer, of all messages that are or may be stored.
    spans: Vec<(Instant, Instant)>,
    /// When the last message of an epoch was begun.
    epochs: HashMap<Arc<str>, Instant>,
    /// Position ⇒ message.
    places: HashMap<(Arc<str>, u64), Id>,
}

impl StreamLog {
    /// Of all streams that these sources published to.
    pub fn of_all(published: &[Published]) -> HashMap<&str, Self> {
        let mut all: HashMap<&str, Self> = HashMap::new();
        for source in published {
            all.entry(&source.stream).or_default().note(source);
        }
        all
    }

    fn note(&mut self, source: &Published) {
        if source.lane == TRANSIENT_LANE {
            self.transient.extend(source.acks.iter().map(|ack| (ack.id, ack.clone())));
            self.transient_begun = source.past.begun + source.begun;
            return;
        }
        self.judged.insert(source.lane, source.past.begun);
        self.refused.insert(source.lane, source.past.refused.clone());
        self.given_up.insert(source.lane, source.past.given_up.clone());
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
                self.refused.entry(source.lane).or_default().insert(unacked.id.n);
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
    pub fn known(&self, epoch: &Arc<str>, offset: u64) -> Option<&Ack> {
        let is_there = |ack: &&Ack| ack.position.as_ref().is_some_and(|at| at.0 == *epoch && at.1 == offset);
        let of_turn = self.at(epoch, offset).and_then(|id| self.acks.get(&id));
        of_turn.or_else(|| self.last.as_ref().filter(is_there))
    }

    /// What was acknowledged at this position in this turn.
    pub fn at(&self, epoch: &Arc<str>, offset: u64) -> Option<Id> {
        self.places.get(&(Arc::clone(epoch), offset)).copied()
    }

    /// When the last message of an epoch was begun.
    pub fn last_begun(&self, epoch: &Arc<str>) -> Option<Instant> {
        self.epochs.get(epoch).copied()
    }

    /// It was published in an earlier turn.
    pub fn is_of_an_earlier_turn(&self, id: Id) -> bool {
        self.judged.get(&id.lane).is_some_and(|judged| id.n <= *judged)
    }

    /// Its publisher was told that it is not stored, by every attempt.
    pub fn is_refused(&self, id: Id) -> bool {
        self.refused.get(&id.lane).is_some_and(|refused| refused.contains(id.n))
    }

    /// It was not acknowledged, in this turn or before, and may have been stored since.
    pub fn is_open(&self, id: Id) -> bool {
        self.open.contains_key(&id)
    }

    /// How many such messages there are.
    pub fn count_open(&self) -> u64 {
        self.open.len() as u64
    }

    /// It was not acknowledged, so long ago that nothing may store it now.
    pub fn is_given_up(&self, id: Id) -> bool {
        self.given_up.get(&id.lane).is_some_and(|given_up| given_up.contains(id.n))
    }

    /// Who must not get it, whether it was acknowledged or not.
    pub fn excluded(&self, id: Id) -> Option<Excluded> {
        match (self.acks.get(&id), self.open.get(&id)) {
            (Some(ack), _) => ack.excluded,
            (None, Some(unacked)) => unacked.excluded,
            (None, None) => None,
        }
    }

    /// From the first attempt to publish a message until no further copy of it can be stored.
    pub fn tried(&self, id: Id) -> Option<(Instant, Instant)> {
        match (self.acks.get(&id), self.open.get(&id)) {
            (Some(ack), _) => Some((ack.begun, ack.at)),
            (None, Some(unacked)) => Some((unacked.begun, unacked.ended + CARRIED_OUT)),
            (None, None) => None,
        }
    }

    /// All that an earlier turn had acknowledged of this lane was acknowledged before this.
    pub fn judged_at(&self, lane: u16) -> Option<Instant> {
        self.judged_at.get(&lane).copied()
    }

    /// The limits may have removed it before a connection that stands could get it, or its log's life has ended. `after`:
    /// how many messages at most earlier turns have stored after it.
    pub fn may_be_removed(&self, ack: &Ack, after: u64, rules: &Rules) -> bool {
        let Some(limits) = rules.limits else { return false };
        let until = ack.at + rules.live_within;
        let is_of_this_life = |(epoch, _): &(Arc<str>, u64)| self.epochs.is_empty() || self.epochs.contains_key(epoch);
        limits.ttl <= rules.live_within + MARGIN
            || after.saturating_add(self.stored_between(ack.begun, until)) >= limits.messages
            || self.epochs.len() > 1
            || !ack.position.as_ref().is_none_or(is_of_this_life)
    }

    /// How many messages at most were stored after `since` and before `until`.
    pub fn stored_between(&self, since: Instant, until: Instant) -> u64 {
        self.spans.iter().filter(|(begun, ended)| *begun < until && *ended > since).count() as u64
    }

    /// How many messages at most were stored after `since`.
    pub fn stored_since(&self, since: Instant) -> u64 {
        self.spans.iter().filter(|(_, ended)| *ended > since).count() as u64
    }

    /// How many messages were acknowledged between two positions of one epoch.
    pub fn acked_between(&self, epoch: &Arc<str>, first: u64, second: u64) -> u64 {
        let is_between =
            |(its_epoch, offset): &&(Arc<str>, u64)| its_epoch == epoch && first < *offset && *offset < second;
        self.places.keys().filter(is_between).count() as u64
    }

    /// When a message at this position can have been stored, by what was acknowledged before and after it: not before this
    /// was begun, and not after this was acknowledged.
    pub fn neighbours(&self, epoch: &Arc<str>, offset: u64) -> (Option<Instant>, Option<Instant>) {
        let (mut begun, mut acked): (Option<Instant>, Option<Instant>) = (None, None);
        for ((_, at), id) in self.places.iter().filter(|((its_epoch, _), _)| its_epoch == epoch) {
            let Some(ack) = self.acks.get(id) else { continue };
            if *at < offset {
                begun = begun.max(Some(ack.begun));
            } else if *at > offset {
                acked = Some(acked.map_or(ack.at, |acked| acked.min(ack.at)));
            }
        }
        (begun, acked)
    }

    /// The message at this position was certainly kept at this time: says why.
    pub fn keeps(&self, epoch: &Arc<str>, offset: u64, at: Instant, limits: Limits) -> Option<String> {
        // A message of the same life of the log was begun later: its past was still there.
        if self.last_begun(epoch).is_none_or(|last| last <= at) {
            return None;
        }
        let ack = self.known(epoch, offset)?;
        let age = at.saturating_duration_since(ack.begun);
        let after = self.stored_between(ack.begun, at);
        (age + MARGIN < limits.ttl && after < limits.messages)
            .then(|| format!("offset {offset} was {age:.1?} old, with {after} messages after it at most"))
    }
}
