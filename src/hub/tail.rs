//! The newest part of a stream in memory: every message ever stored behind `floor`, as far as the stream has come.

use crate::metrics;
use crate::protocol::Message;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Bounds of one stream's tail.
#[derive(Clone, Copy, Debug)]
pub struct TailLimits {
    /// Messages; as many as the log keeps.
    pub messages: usize,
    /// Bytes of memory.
    pub bytes: usize,
    /// Age since this node got the message.
    pub ttl: Duration,
}

struct Entry {
    message: Arc<Message>,
    received: Instant,
}

pub struct Tail {
    limits: TailLimits,
    /// Everything stored above it is here.
    floor: u64,
    entries: VecDeque<Entry>,
    bytes: usize,
    /// The log was read from this second on: all kept messages stored then or later are here.
    covered_since: Option<u64>,
}

impl Tail {
    pub fn new(limits: TailLimits) -> Self {
        Self { limits, floor: 0, entries: VecDeque::new(), bytes: 0, covered_since: None }
    }

    pub fn floor(&self) -> u64 {
        self.floor
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The policy has changed: what is too much now goes at the next message or expiry.
    pub fn set_limits(&mut self, limits: TailLimits) {
        self.limits = limits;
    }

    pub fn limits(&self) -> TailLimits {
        self.limits
    }

    pub fn ttl(&self) -> Duration {
        self.limits.ttl
    }

    /// Starts over with nothing, from `floor` on.
    pub fn restart(&mut self, floor: u64) {
        self.entries.clear();
        self.count(0);
        self.covered_since = None;
        self.floor = floor;
    }

    /// The next message of the stream.
    pub fn append(&mut self, message: Arc<Message>, now: Instant) {
        self.count(self.bytes + message.footprint());
        self.entries.push_back(Entry { message, received: now });
        self.trim(self.limits.messages, self.limits.bytes);
        self.expire(now);
    }

    /// Puts what the log keeps in `(x, floor]` before the rest, if it still joins and fits. `since`: it was read from this
    /// second on. Answers whether it did.
    pub fn prepend(&mut self, x: u64, floor: u64, messages: &[Arc<Message>], since: Option<u64>, now: Instant) -> bool {
        let bytes = self.bytes + messages.iter().map(|message| message.footprint()).sum::<usize>();
        let fits = self.entries.len() + messages.len() <= self.limits.messages && bytes <= self.limits.bytes;
        if floor != self.floor || x > floor || !fits {
            return false;
        }
        for message in messages.iter().rev() {
            self.entries.push_front(Entry { message: message.clone(), received: now });
        }
        self.count(bytes);
        self.floor = x;
        if since.is_some() {
            self.covered_since = since;
        }
        true
    }

    /// Keeps at most so many messages and bytes; what is dropped can be read from the log again.
    pub fn trim(&mut self, messages: usize, bytes: usize) {
        while self.entries.len() > messages || (self.bytes > bytes && !self.entries.is_empty()) {
            self.drop_oldest();
        }
    }

    /// Drops what is older than the history's life.
    pub fn expire(&mut self, now: Instant) {
        while self.entries.front().is_some_and(|entry| now.duration_since(entry.received) >= self.limits.ttl) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.count(self.bytes - entry.message.footprint());
            self.floor = entry.message.offset;
            self.covered_since = self.covered_since.map(|since| since.max(entry.message.time / 1000 + 1));
        }
    }

    /// The position after which everything stored at `since` (Unix seconds) or later follows. `Err`: the log must be
    /// asked for what is below this floor.
    pub fn position_at(&self, since: u64) -> Result<u64, u64> {
        let covered = self.covered_since.is_some_and(|covered| covered <= since)
            || self.entries.front().is_some_and(|entry| entry.message.time / 1000 < since);
        if !covered {
            return Err(self.floor);
        }
        let at = self.entries.partition_point(|entry| entry.message.time / 1000 < since);
        Ok(if at == 0 { self.floor } else { self.entries[at - 1].message.offset })
    }

    /// The messages behind an offset that is not below the floor.
    pub fn after(&self, offset: u64) -> impl ExactSizeIterator<Item = &Arc<Message>> {
        let start = self.entries.partition_point(|entry| entry.message.offset <= offset);
        self.entries.range(start..).map(|entry| &entry.message)
    }

    fn count(&mut self, bytes: usize) {
        metrics::SNAPSHOT_BYTES.add(bytes as i64 - self.bytes as i64);
        self.bytes = bytes;
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.count(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Meta, Payload};
    use bytes::Bytes;

    fn message(offset: u64, second: u64) -> Arc<Message> {
        let payload = Payload::from_json(Bytes::from_static(b"1234"));
        Arc::new(Message { offset, time: second * 1000, payload, meta: Meta::default() })
    }

    fn tail(offsets: &[(u64, u64)]) -> Tail {
        let limits = TailLimits { messages: 3, bytes: 10_000, ttl: Duration::from_secs(60) };
        let mut tail = Tail::new(limits);
        for (offset, second) in offsets {
            tail.append(message(*offset, *second), Instant::now());
        }
        tail
    }

    fn offsets(tail: &Tail, after: u64) -> Vec<u64> {
        tail.after(after).map(|message| message.offset).collect()
    }

    #[test]
    fn what_is_dropped_raises_the_floor() {
        let tail = tail(&[(2, 10), (5, 11), (6, 12), (9, 13)]);
        let bytes = 3 * message(0, 0).footprint();
        assert_eq!((tail.floor(), offsets(&tail, 2), tail.bytes()), (2, vec![5, 6, 9], bytes));
        assert_eq!(offsets(&tail, 5), [6, 9]);
    }

    #[test]
    fn a_time_is_found_only_where_the_tail_reaches_back_to_it() {
        let mut tail = tail(&[(5, 11), (6, 12)]);
        assert_eq!(tail.position_at(12), Ok(5));
        assert_eq!(tail.position_at(11), Err(0), "there may be more in that second");
        assert!(tail.prepend(0, 0, &[], Some(11), Instant::now()));
        assert_eq!(tail.position_at(11), Ok(0));
    }

    #[test]
    fn only_what_joins_is_put_before_it() {
        let mut tail = tail(&[(5, 11)]);
        tail.restart(4);
        tail.append(message(5, 11), Instant::now());
        assert!(!tail.prepend(1, 3, &[message(3, 9)], None, Instant::now()), "the floor has moved since it was read");
        assert_eq!(tail.floor(), 4);
        assert!(tail.prepend(1, 4, &[message(3, 9), message(4, 10)], None, Instant::now()));
        assert_eq!((tail.floor(), offsets(&tail, 1)), (1, vec![3, 4, 5]));
    }
}
