//! Finished frames of messages that were replayed a moment ago. Clients that come back together catch up on the same part
//! of a stream: each message is encoded once for all of them, and they hold one frame of it instead of one each.

use super::fanout::GroupId;
use super::frames::Frame;
use super::stream::CursorId;
use crate::metrics;

/// Frames of one stream. More than clients that catch up together are apart from each other.
const PLACES: usize = 1 << PLACES_BITS;
const PLACES_BITS: u32 = 10;

/// Bytes that all streams together keep: beyond them frames are made anew for each client.
const MOST: i64 = 16 << 20;

/// Which frame of a stream's present life.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key {
    pub offset: u64,
    pub group: GroupId,
    pub positioned: bool,
}

/// Odd, with bits of both kinds everywhere.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

impl Key {
    /// A place that neighbouring messages do not share, whatever lies between them in the log.
    fn place(self) -> usize {
        let mixed = (self.offset ^ (u64::from(self.group) << 40)).wrapping_mul(MIX);
        let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(MIX);
        usize::try_from(mixed >> (u64::BITS - PLACES_BITS)).unwrap_or_default()
    }
}

/// The cursors of a stream that catch up, and what they are sent.
#[derive(Default)]
pub struct Herd {
    /// The last one that was sent something.
    last: Option<CursorId>,
    /// Another one was sent something a moment before.
    many: bool,
    /// One is being sent something now.
    replaying: bool,
    recent: Option<Box<Recent>>,
}

impl Herd {
    /// A cursor is sent what it has not had, until [`Self::end`].
    pub fn begin(&mut self, id: CursorId) {
        let former = self.last.replace(id);
        self.many |= former.is_some_and(|former| former != id);
        self.replaying = true;
    }

    pub fn end(&mut self) {
        self.replaying = false;
    }

    /// Nothing is kept for one cursor alone, nor of what is sent live.
    fn shares(&self) -> bool {
        self.replaying && self.many
    }

    pub fn get(&self, key: Key) -> Option<Frame> {
        self.recent.as_ref().filter(|_| self.shares())?.get(key)
    }

    pub fn keep(&mut self, key: Key, frame: &Frame) {
        if self.shares() {
            self.recent.get_or_insert_default().keep(key, frame);
        }
    }

    /// What is kept means something else from now on.
    pub fn clear(&mut self) {
        self.recent = None;
    }

    /// Called from time to time.
    pub fn forget(&mut self) {
        // Whoever still catches up has been sent something since the last time.
        if self.last.take().is_none() {
            *self = Self::default();
        }
    }
}

/// Each frame has one place, and takes it from the frame that was there before.
#[derive(Default)]
struct Recent {
    /// Empty until there is something to keep.
    places: Vec<Option<(Key, Frame)>>,
    bytes: i64,
}

const TABLE: i64 = (PLACES * size_of::<Option<(Key, Frame)>>()) as i64;

impl Recent {
    fn get(&self, key: Key) -> Option<Frame> {
        let (held, frame) = self.places.get(key.place())?.as_ref()?;
        (*held == key).then(|| frame.clone())
    }

    fn keep(&mut self, key: Key, frame: &Frame) {
        let table = if self.places.is_empty() { TABLE } else { 0 };
        let room = MOST - metrics::REPLAY_FRAMES.get();
        if table + frame.held() > room {
            return;
        }
        if self.places.is_empty() {
            self.places.resize_with(PLACES, || None);
        }
        let former = self.places[key.place()].replace((key, frame.clone()));
        self.count(table + frame.held() - former.map_or(0, |(_, frame)| frame.held()));
    }

    fn count(&mut self, bytes: i64) {
        self.bytes += bytes;
        metrics::REPLAY_FRAMES.add(bytes);
    }
}

impl Drop for Recent {
    fn drop(&mut self) {
        metrics::REPLAY_FRAMES.add(-self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn key(offset: u64) -> Key {
        Key { offset, group: 0, positioned: true }
    }

    fn frame(bytes: usize) -> Frame {
        Frame::new(Bytes::from(vec![b'x'; bytes]))
    }

    #[test]
    fn a_frame_is_found_under_its_key_alone() {
        let mut recent = Recent::default();
        recent.keep(key(7), &frame(10));
        assert_eq!(recent.get(key(7)).map(|frame| frame.len()), Some(10));
        for other in [key(8), Key { group: 1, ..key(7) }, Key { positioned: false, ..key(7) }] {
            assert!(recent.get(other).is_none());
        }
    }

    /// A stream has some of its log's offsets, at any distance.
    #[test]
    fn neighbours_have_places_of_their_own() {
        for distance in [1, 2, 3, 7, 64, 1_000, 1_024, 4_096, 1 << 20] {
            let mut recent = Recent::default();
            let keys: Vec<_> = (1..=PLACES as u64 / 4).map(|number| key(number * distance)).collect();
            keys.iter().for_each(|key| recent.keep(*key, &frame(1)));
            let found = keys.iter().filter(|key| recent.get(**key).is_some()).count();
            assert!(found * 10 >= keys.len() * 8, "{found} of {} at a distance of {distance}", keys.len());
        }
    }

    #[test]
    fn frames_are_kept_for_those_who_catch_up_together_and_not_for_long() {
        let mut herd = Herd::default();
        let send = |herd: &mut Herd, id| {
            herd.begin(id);
            let known = herd.get(key(1)).is_some();
            herd.keep(key(1), &frame(1));
            herd.end();
            known
        };
        assert_eq!([1, 1, 2, 1, 2].map(|id| send(&mut herd, id)), [false, false, false, true, true]);
        assert!(herd.get(key(1)).is_none(), "what is sent live is not looked for");
        herd.forget();
        assert!(send(&mut herd, 1), "it still catches up");
        herd.forget();
        herd.forget();
        assert_eq!([1, 1].map(|id| send(&mut herd, id)), [false, false], "it is alone again");
    }

    #[test]
    fn what_is_kept_is_bounded_and_counted() {
        let mut recent = Recent::default();
        for offset in 0..100 {
            recent.keep(key(offset), &frame(1 << 20));
        }
        assert!((10 << 20..=MOST).contains(&recent.bytes), "{} bytes", recent.bytes);
        let held: i64 = recent.places.iter().flatten().map(|(_, frame)| frame.held()).sum();
        assert_eq!(recent.bytes, TABLE + held);
    }
}
