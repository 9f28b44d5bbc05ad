//! The log of one policy in memory: one sequence, a ring per stream. What it holds depends on what is kept, never on what
//! has passed: there is one entry per stream that keeps something, and one per idempotency key within the window.

use super::super::policy::Policy;
use super::super::{Facts, StoreTime};
use super::lock;
use super::room::Room;
use crate::protocol::{Epoch, Message, MessageId, Meta, Payload, StreamName};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a stream that keeps something holds beside its name and its messages.
const RING_OVERHEAD: usize = 320;

/// What the id of a message with a key holds while a retry may come.
const ID_OVERHEAD: usize = 96;

/// There is one clock only.
const OWN_CLOCK: u64 = 1;

pub(super) struct Log {
    pub limit: u64,
    pub ttl: Duration,
    pub keeps: bool,
    pub epoch: Epoch,
    dedup_window: Duration,
    room: Arc<Room>,
    /// A stream's lock is held while a message gets its sequence and is fanned out: that is the stream's order.
    rings: Mutex<HashMap<StreamName, Arc<Mutex<Ring>>>>,
    /// Locked after a ring, if both are.
    sequence: Mutex<Sequence>,
}

#[derive(Default)]
pub(super) struct Ring {
    pub messages: VecDeque<Arc<Message>>,
    /// It is in [`Sequence::oldest`].
    indexed: bool,
}

#[derive(Default)]
struct Sequence {
    last: u64,
    /// Highest sequence that was removed by age.
    aged: u64,
    /// Each ring that keeps something, by a message that is its oldest one or was: its time (Unix milliseconds).
    oldest: BTreeMap<u64, (u64, StreamName)>,
    /// Of messages with a key only: others are never published again under the same id.
    ids: HashMap<MessageId, u64>,
    ids_order: VecDeque<(u64, MessageId)>,
}

/// What became of a message.
pub(super) enum Stored {
    At(u64),
    /// It was there already.
    Duplicate(u64),
    /// There is no room; nothing is discarded to make some.
    Full,
}

impl Log {
    pub fn new(policy: &Policy, dedup_window: Duration, room: Arc<Room>) -> Self {
        Self {
            limit: policy.limit,
            ttl: policy.ttl,
            keeps: policy.keeps(),
            dedup_window: dedup_window.min(policy.ttl),
            epoch: if policy.keeps() { Epoch::random() } else { Epoch::none() },
            room,
            rings: Mutex::default(),
            sequence: Mutex::default(),
        }
    }

    pub fn ring(&self, stream: &StreamName) -> Option<Arc<Mutex<Ring>>> {
        lock(&self.rings).get(stream).cloned()
    }

    /// Stores a message and hands it to `deliver` with the offset that preceded it in its stream. `clock`: Unix milliseconds,
    /// read when it is this message's turn in its stream.
    pub fn append(
        &self,
        stream: &StreamName,
        id: MessageId,
        (payload, meta): (Payload, Meta),
        clock: impl Fn() -> u64,
        deliver: impl FnOnce(u64, Arc<Message>),
    ) -> Stored {
        let shared = lock(&self.rings).entry(stream.clone()).or_default().clone();
        let mut ring = lock(&shared);
        let now = clock();
        let mut message = Message { offset: 0, time: now, payload, meta };
        let removed = if ring.messages.len() as u64 >= self.limit { ring.messages.front() } else { None };
        let freed = removed.map_or(0, |message| message.footprint());
        let needed = message.footprint()
            + if ring.indexed { 0 } else { ring_footprint(stream) }
            + if id.is_unique() { 0 } else { ID_OVERHEAD };
        let stored = {
            let mut sequence = lock(&self.sequence);
            match sequence.ids.get(&id) {
                Some(offset) => Stored::Duplicate(*offset),
                None if !self.room.exchange(needed, freed) => Stored::Full,
                None => {
                    sequence.last += 1;
                    let offset = sequence.last;
                    if !id.is_unique() {
                        sequence.ids.insert(id, offset);
                        sequence.ids_order.push_back((now, id));
                    }
                    if !std::mem::replace(&mut ring.indexed, true) {
                        sequence.oldest.insert(offset, (now, stream.clone()));
                    }
                    Stored::At(offset)
                }
            }
        };
        if let Stored::At(offset) = stored {
            message.offset = offset;
            let message = Arc::new(message);
            let previous = ring.messages.back().map_or(0, |message| message.offset);
            ring.messages.push_back(message.clone());
            if freed > 0 {
                ring.messages.pop_front();
            }
            deliver(previous, message);
            return stored;
        }
        drop(ring);
        drop(shared);
        self.forget_if_unused(stream);
        stored
    }

    /// Removes what is older than the log's ttl. Called by every access and once a second. `now`: Unix milliseconds.
    pub fn expire(&self, now: u64) {
        let (ttl, window) = (millis(self.ttl), millis(self.dedup_window));
        loop {
            let stream = {
                let mut sequence = lock(&self.sequence);
                sequence.forget_ids(now, window, &self.room);
                match sequence.oldest.first_entry() {
                    Some(oldest) if now.saturating_sub(oldest.get().0) > ttl => oldest.remove().1,
                    _ => return,
                }
            };
            if let Some(ring) = self.ring(&stream) {
                self.expire_ring(&stream, &mut lock(&ring), now, ttl);
            }
            self.forget_if_unused(&stream);
        }
    }

    fn expire_ring(&self, stream: &StreamName, ring: &mut Ring, now: u64, ttl: u64) {
        let (mut aged, mut freed) = (0, 0);
        while let Some(oldest) = ring.messages.front().filter(|oldest| now.saturating_sub(oldest.time) > ttl) {
            aged = oldest.offset;
            freed += oldest.footprint();
            ring.messages.pop_front();
        }
        if ring.messages.len() < ring.messages.capacity() / 4 {
            ring.messages.shrink_to_fit();
        }
        // Known before anybody can see the ring without them.
        let mut sequence = lock(&self.sequence);
        sequence.aged = sequence.aged.max(aged);
        ring.indexed = false;
        if let Some(oldest) = ring.messages.front() {
            ring.indexed = true;
            sequence.oldest.insert(oldest.offset, (oldest.time, stream.clone()));
        } else {
            freed += ring_footprint(stream);
        }
        self.room.give(freed);
    }

    /// Streams that keep nothing leave nothing behind.
    fn forget_if_unused(&self, stream: &StreamName) {
        let mut rings = lock(&self.rings);
        if rings.get(stream).is_some_and(|ring| Arc::strong_count(ring) == 1 && lock(ring).messages.is_empty()) {
            rings.remove(stream);
            if rings.len() < rings.capacity() / 8 {
                rings.shrink_to_fit();
            }
        }
    }

    pub fn facts(&self, millis: u64) -> Facts {
        let sequence = lock(&self.sequence);
        Facts {
            first_seq: sequence.aged + 1,
            last_seq: sequence.last,
            limit: self.limit,
            ttl: self.ttl,
            revision: 1,
            raised_at: 0,
            now: StoreTime { millis, clock: OWN_CLOCK },
            // Whoever stores holds the lock that is held here.
            stored: StoreTime { millis, clock: OWN_CLOCK },
            skew: Duration::ZERO,
        }
    }
}

impl Sequence {
    fn forget_ids(&mut self, now: u64, window: u64, room: &Room) {
        let before = self.ids_order.len();
        while self.ids_order.front().is_some_and(|(at, _)| now.saturating_sub(*at) > window) {
            let (_, id) = self.ids_order.pop_front().expect("just seen");
            self.ids.remove(&id);
        }
        let forgotten = before - self.ids_order.len();
        if forgotten > 0 {
            room.give(forgotten * ID_OVERHEAD);
            if self.ids.len() < self.ids.capacity() / 8 {
                self.ids.shrink_to_fit();
                self.ids_order.shrink_to_fit();
            }
        }
    }
}

fn ring_footprint(stream: &StreamName) -> usize {
    RING_OVERHEAD + stream.as_str().len()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    const TTL: Duration = Duration::from_secs(60);

    fn log(limit: u64, room: usize) -> (Log, Arc<Room>) {
        let room = Arc::new(Room::new(room));
        (Log::new(&Policy::default_with(limit, TTL), Duration::from_secs(30), room.clone()), room)
    }

    fn append(log: &Log, stream: &str, id: MessageId, bytes: usize, now: u64) -> Stored {
        let payload = Payload::from_json(Bytes::from(vec![b'1'; bytes]));
        log.expire(now);
        log.append(&stream.into(), id, (payload, Meta::default()), || now, |_, _| {})
    }

    #[test]
    fn row_15_memory_depends_on_what_is_kept_not_on_what_passed() {
        let (log, room) = log(1, 0);
        assert!(matches!(append(&log, "chat", MessageId::random(), 10, 0), Stored::At(1)));
        let kept = room.used();
        for n in 0..100_000 {
            append(&log, "chat", MessageId::random(), 10, n);
        }
        let sequence = lock(&log.sequence);
        assert_eq!((room.used(), sequence.oldest.len(), sequence.ids.len()), (kept, 1, 0));
    }

    #[test]
    fn row_15_what_has_expired_leaves_nothing_behind() {
        let (log, room) = log(100, 0);
        for n in 0..1_000 {
            let stream = format!("chat/{}", n % 100);
            append(&log, &stream, MessageId::from_key(&stream.as_str().into(), &n.to_string(), 0), 10, n);
        }
        assert!(room.used() > 1_000 * ID_OVERHEAD);
        log.expire(1_000 + 60_000);
        let sequence = lock(&log.sequence);
        assert_eq!((room.used(), sequence.oldest.len(), sequence.ids.len()), (0, 0, 0));
        assert_eq!((sequence.aged, lock(&log.rings).len()), (1_000, 0));
        assert!(lock(&log.rings).capacity() < 10 && sequence.ids.capacity() < 10);
    }

    #[test]
    fn what_ages_is_known_to_have_been_there() {
        let (log, _) = log(100, 0);
        append(&log, "a", MessageId::random(), 10, 0);
        append(&log, "b", MessageId::random(), 10, 10_000);
        append(&log, "a", MessageId::random(), 10, 20_000);
        log.expire(60_000);
        assert_eq!(log.facts(60_000).first_seq, 1);
        log.expire(60_001);
        assert_eq!(log.facts(60_001).first_seq, 2);
        assert_eq!(lock(&log.ring(&"a".into()).unwrap()).messages.len(), 1);
        log.expire(80_001);
        assert_eq!(log.facts(80_001).first_seq, 4);
    }

    #[test]
    fn row_15_a_full_log_refuses_and_keeps_what_it_has() {
        let (log, room) = log(2, 10_000);
        let mut stored = 0;
        for n in 0..50 {
            let stream = format!("chat/{n}");
            stored += usize::from(matches!(append(&log, &stream, MessageId::random(), 1_000, n), Stored::At(_)));
        }
        assert!((5..10).contains(&stored), "{stored} messages of 1,000 bytes in 10,000");
        assert!(room.used() <= 10_000);
        assert_eq!(lock(&log.rings).len(), stored, "refused messages leave no stream behind");
        for n in 0..stored {
            assert_eq!(lock(&log.ring(&format!("chat/{n}").as_str().into()).unwrap()).messages.len(), 1);
        }
        // What replaces a message needs no room; what has aged gives some.
        let full = |n| matches!(append(&log, "chat/0", MessageId::random(), 1_000, n), Stored::Full);
        assert!(full(100));
        assert!(!full(70_000) && !full(70_000) && !full(70_000));
    }

    #[test]
    fn a_key_is_known_within_its_window_whatever_passes() {
        let (log, _) = log(1, 0);
        let id = MessageId::from_key(&"chat".into(), "key", 0);
        assert!(matches!(append(&log, "chat", id, 10, 0), Stored::At(1)));
        for n in 0..10_000 {
            append(&log, "chat", MessageId::random(), 10, n);
        }
        assert!(matches!(append(&log, "chat", id, 10, 30_000), Stored::Duplicate(1)));
        assert!(matches!(append(&log, "chat", id, 10, 30_001), Stored::At(_)));
    }
}
