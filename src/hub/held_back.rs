//! Live messages of a stream that came behind a hole, and wait until it is filled.

use crate::metrics;
use crate::protocol::Message;
use std::collections::VecDeque;
use std::sync::Arc;

/// What may wait. Beyond it messages are dropped, and the stream is compared with the log once the hole is closed.
struct Limits {
    /// Messages of one stream.
    messages: usize,
    /// Bytes of them, overhead included.
    bytes: usize,
    /// Bytes of all streams: after a connection to the store was lost there are thousands of holes at once.
    bytes_of_all: usize,
}

const LIMITS: Limits = Limits { messages: 10_000, bytes: 4 << 20, bytes_of_all: 64 << 20 };

/// Ascending, each with the offset of the message that the store had before it.
#[derive(Default)]
pub struct HeldBack {
    messages: VecDeque<(u64, Arc<Message>)>,
    bytes: usize,
}

impl HeldBack {
    /// `false`: there is no room.
    pub fn push(&mut self, previous: u64, message: Arc<Message>) -> bool {
        self.push_within(&LIMITS, previous, message)
    }

    fn push_within(&mut self, limits: &Limits, previous: u64, message: Arc<Message>) -> bool {
        let room = self.messages.len() < limits.messages
            && self.bytes < limits.bytes
            && metrics::HELD_BACK_BYTES.get() < limits.bytes_of_all as i64;
        if room {
            self.count(self.bytes + message.footprint());
            self.messages.push_back((previous, message));
        }
        room
    }

    pub fn front(&self) -> Option<&(u64, Arc<Message>)> {
        self.messages.front()
    }

    /// Offset of the last one, 0 if there is none.
    pub fn newest(&self) -> u64 {
        self.messages.back().map_or(0, |(_, message)| message.offset)
    }

    pub fn pop(&mut self) -> Option<Arc<Message>> {
        let (_, message) = self.messages.pop_front()?;
        self.count(self.bytes - message.footprint());
        Some(message)
    }

    /// Nothing waits any more; the room for it is given back.
    pub fn clear(&mut self) {
        self.messages = VecDeque::new();
        self.count(0);
    }

    fn count(&mut self, bytes: usize) {
        if bytes != self.bytes {
            metrics::HELD_BACK_BYTES.add(bytes as i64 - self.bytes as i64);
            self.bytes = bytes;
        }
    }
}

impl Drop for HeldBack {
    fn drop(&mut self) {
        self.count(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Meta, Payload};
    use bytes::Bytes;

    fn message(offset: u64) -> Arc<Message> {
        let payload = Payload::from_json(Bytes::from_static(b"{}"));
        Arc::new(Message { offset, time: 1_000, payload, meta: Meta::default() })
    }

    #[test]
    fn the_first_that_came_are_kept_and_leave_in_order() {
        let mut held = HeldBack::default();
        let limits = Limits { messages: 2, ..LIMITS };
        assert!(held.push_within(&limits, 0, message(1)));
        assert!(held.push_within(&limits, 1, message(2)));
        assert!(!held.push_within(&limits, 2, message(3)));
        assert_eq!(held.front().map(|(previous, next)| (*previous, next.offset)), Some((0, 1)));
        assert_eq!(held.pop().map(|one| one.offset), Some(1));
        assert!(held.push_within(&limits, 2, message(3)), "there is room again");
        assert_eq!([held.pop(), held.pop(), held.pop()].map(|one| one.map(|one| one.offset)), [Some(2), Some(3), None]);
        assert_eq!(held.bytes, 0);
    }

    #[test]
    fn the_bytes_of_a_stream_are_bounded() {
        let mut held = HeldBack::default();
        let limits = Limits { bytes: 3 * message(1).footprint(), ..LIMITS };
        let kept = (1..=10).filter(|offset| held.push_within(&limits, offset - 1, message(*offset))).count();
        assert_eq!(kept, 3);
    }

    /// Streams of other tests count as well, so that this one sees a sum that is at its limit at any rate.
    #[test]
    fn the_bytes_of_all_streams_are_bounded() {
        let mut one = HeldBack::default();
        assert!(one.push(0, message(1)));
        let full = Limits { bytes_of_all: message(1).footprint(), ..LIMITS };
        let mut another = HeldBack::default();
        assert!(!another.push_within(&full, 0, message(1)), "another stream has taken the room");
        let wider = Limits { bytes_of_all: usize::MAX >> 1, ..LIMITS };
        assert!(another.push_within(&wider, 0, message(1)));
    }
}
