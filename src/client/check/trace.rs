//! Traces of runs as tests make them up: what one client saw of a stream, and what its publishers know.
//!
//! Histories are generated: a stream with limits, and a client that comes, goes and is told what is true.

use super::alarms::Limits;
use super::judge::{Rules, judge};
use super::record::{Arrival, Record, Reject, Stay};
use super::roster::{Dice, Follow, Follower, Kind};
use super::source::{Ack, Id, Published};
use super::verdict::Verdict;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

pub(super) const STREAM: &str = "s";
/// Between two publications.
pub(super) const BEAT: Duration = Duration::from_millis(100);
/// From the beginning of a publication to its acknowledgement.
pub(super) const STORING: Duration = Duration::from_millis(10);
pub(super) const MESSAGES: u64 = 400;

/// What one client saw of a stream, and what its publishers know.
#[derive(Clone)]
pub(super) struct Trace {
    pub start: Instant,
    pub published: Published,
    /// Of another source.
    pub beside: Option<Published>,
    pub record: Record,
    pub rules: Rules,
}

impl Trace {
    /// A client under these limits; its times away are decided by the seed.
    pub fn honest(seed: u64, limits: Limits) -> Self {
        let start = Instant::now();
        let mut trace = Self::quiet(start, limits);
        let mut dice = Dice::new(seed);
        let mut next = 1;
        let mut position = 0;
        let mut at = start;
        while next <= MESSAGES {
            // Away for a while, but for the first time.
            let away = if position == 0 { 0 } else { dice.below(60) };
            at += BEAT * u32::try_from(away).unwrap();
            let due = trace.begun_before(at);
            let ages: Vec<Duration> = (1..=due).map(|n| trace.age(n, at)).collect();
            let kept = |n: u64| due - n < limits.messages && ages[n as usize - 1] < limits.ttl;
            // Told only where neither the position nor all after it is kept.
            if due > position && !kept(position.max(1)) && !kept(position + 1) {
                trace.reject(at);
            }
            let replayed: Vec<u64> = (position + 1..=due).filter(|n| kept(*n)).collect();
            replayed.iter().for_each(|n| trace.arrive(*n, at));
            position = due.max(position);
            let stood = at;
            let stay = 1 + dice.below(80);
            for n in (position + 1..=(position + stay)).take_while(|n| *n <= MESSAGES) {
                trace.arrive(n, trace.acked_at(n) + Duration::from_millis(1));
                position = n;
            }
            next = position + 1;
            at = at.max(trace.acked_at(position.max(1))) + Duration::from_millis(20);
            trace.end_stay(Some(stood), at);
        }
        trace
    }

    pub fn quiet(start: Instant, limits: Limits) -> Self {
        let ack = |n: u64| {
            let begun = start + BEAT * u32::try_from(n).unwrap();
            let position = Some((Arc::from("e"), n * 10));
            Ack { id: Id { lane: 0, n }, position, duplicate: false, excluded: None, begun, at: begun + STORING }
        };
        let published = Published::acknowledged(STREAM, 0, (1..=MESSAGES).map(ack).collect());
        let follow = Follow { identifier: "i".to_owned(), stream: STREAM.to_owned() };
        let follower = Follower { id: 7, kind: Kind::Plain, follows: vec![follow], seed: 0 };
        let rules = Rules { limits: Some(limits), live_within: Duration::from_secs(2) };
        Self { start, published, beside: None, record: Record::new(follower), rules }
    }

    pub fn begun_before(&self, at: Instant) -> u64 {
        let beats = at.saturating_duration_since(self.start + STORING).as_millis() / BEAT.as_millis();
        u64::try_from(beats).unwrap().min(MESSAGES)
    }

    pub fn acked_at(&self, n: u64) -> Instant {
        self.published.acks[usize::try_from(n - 1).unwrap()].at
    }

    pub fn age(&self, n: u64, at: Instant) -> Duration {
        at.saturating_duration_since(self.acked_at(n))
    }

    pub fn arrive(&mut self, n: u64, at: Instant) {
        let position = Some((Arc::from("e"), n * 10));
        let connection = u32::try_from(self.record.stays.len()).unwrap() + 1;
        self.record.arrivals.push(Arrival { follow: 0, id: Id { lane: 0, n }, position, connection, at });
    }

    pub fn reject(&mut self, at: Instant) {
        self.record.rejects.push(Reject { follow: 0, after: self.record.arrivals.len(), connection: 1, at });
    }

    /// Takes an arrival away.
    pub fn lose(&mut self, index: usize) -> Arrival {
        self.record.rejects.iter_mut().filter(|reject| reject.after > index).for_each(|reject| reject.after -= 1);
        self.record.arrivals.remove(index)
    }

    /// The run turns after the first connection: what was published and seen until then is over.
    pub fn turn(mut self) -> Self {
        let ended = self.record.stays[0].ended;
        let (mut before, mut after) = (self.published.clone(), self.published.clone());
        let until = self.begun_before(ended);
        before.acks.retain(|ack| ack.id.n <= until);
        before.begun = until;
        after.acks.retain(|ack| ack.id.n > until);
        after.past.add(&before, ended);
        let (mut first, mut rest) = (self.record.clone(), self.record.clone());
        first.arrivals.retain(|arrival| arrival.connection == 1);
        first.stays.truncate(1);
        rest.arrivals.retain(|arrival| arrival.connection > 1);
        rest.arrivals.iter_mut().for_each(|arrival| arrival.connection -= 1);
        rest.stays.remove(0);
        rest.rejects.iter_mut().for_each(|reject| reject.after -= first.arrivals.len());
        rest.earlier = first.next(false).earlier;
        (self.published, self.record) = (after, rest);
        self
    }

    pub fn end_stay(&mut self, stood: Option<Instant>, ended: Instant) {
        self.record.stays.push(Stay {
            welcomed: stood,
            stood,
            ended,
            fresh: false,
            session: 1,
            sid: 1,
            by_client: Some(true),
            positions: BTreeMap::new(),
        });
    }

    pub fn verdict(&self) -> Verdict {
        let published: Vec<Published> = [&self.published].into_iter().chain(&self.beside).cloned().collect();
        judge(&published, std::slice::from_ref(&self.record), &[], &self.rules)
    }
}

/// What is held against a server whose losses by limits are told.
pub(super) fn charges(verdict: &Verdict) -> Vec<&'static str> {
    let charges = [
        ("unsignalled", verdict.unsignalled.count),
        ("doubled", verdict.doubled.count),
        ("disordered", verdict.disordered.count),
        ("positions", verdict.positions.count),
        ("false alarms", verdict.false_alarms.count),
        ("unstored", verdict.unstored.count),
        ("late", verdict.late.count),
        ("surprises", verdict.surprises.count),
    ];
    charges.into_iter().filter_map(|(name, count)| (count > 0).then_some(name)).collect()
}

pub(super) fn limits(messages: u64, seconds: u64) -> Limits {
    Limits { messages, ttl: Duration::from_secs(seconds) }
}
