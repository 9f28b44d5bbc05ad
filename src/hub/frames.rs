//! Finished frames that wait for clients, and what they hold of the process's memory: a frame that many clients share
//! counts once, the places that it takes in their queues count for each.

use crate::metrics;
use bytes::Bytes;
use std::collections::VecDeque;

/// What a frame costs beside its bytes in a client's account: its place in the queue (which grows by doubling), the
/// handle, and its share of the allocator's. Two-byte frames cost as much as this, not two bytes.
pub const FRAME_OVERHEAD: usize = 128;

/// What an encoded frame holds beside its bytes.
const OWNER: usize = 96;

/// An encoded frame that gives its bytes back to the account when the last client lets go of it.
struct Waiting(Bytes);

impl AsRef<[u8]> for Waiting {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        metrics::PENDING_BYTES.add(-held(&self.0));
    }
}

fn held(frame: &Bytes) -> i64 {
    i64::try_from(frame.len() + OWNER).unwrap_or(i64::MAX)
}

/// Counts a frame from here on until the last copy of the handle is gone.
pub fn counted(frame: Bytes) -> Bytes {
    metrics::PENDING_BYTES.add(held(&frame));
    Bytes::from_owner(Waiting(frame))
}

/// One place in a client's queue.
pub struct Frame {
    pub bytes: Bytes,
    /// It may be left out for a client that does not keep up.
    pub droppable: bool,
}

impl Frame {
    /// Its part of the client's account.
    pub fn cost(&self) -> usize {
        self.bytes.len() + FRAME_OVERHEAD
    }
}

/// The frames of one client in order. Its places count for the process.
#[derive(Default)]
pub struct FrameQueue {
    frames: VecDeque<Frame>,
    /// Bytes of those that must be sent, with their overhead.
    pub bytes: usize,
    /// Bytes of those that may be dropped.
    pub droppable: usize,
}

/// Places that an empty queue may keep.
const SPARE: usize = 16;

impl FrameQueue {
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub fn push(&mut self, frame: Frame) {
        *self.account(frame.droppable) += frame.cost();
        let before = self.frames.capacity();
        self.frames.push_back(frame);
        let grown = self.frames.capacity() - before;
        if grown > 0 {
            metrics::PENDING_BYTES.add(places(grown));
        }
    }

    pub fn pop(&mut self) -> Option<Bytes> {
        let frame = self.frames.pop_front()?;
        *self.account(frame.droppable) -= frame.cost();
        Some(frame.bytes)
    }

    /// Leaves out what may be left out. Returns how many frames that were.
    pub fn drop_droppable(&mut self) -> usize {
        let before = self.frames.len();
        if self.droppable > 0 {
            self.frames.retain(|frame| !frame.droppable);
            self.droppable = 0;
        }
        before - self.frames.len()
    }

    /// An idle client holds no places.
    pub fn give_back_places(&mut self) {
        if self.frames.is_empty() && self.frames.capacity() > SPARE {
            *self = Self::default();
        }
    }

    fn account(&mut self, droppable: bool) -> &mut usize {
        if droppable { &mut self.droppable } else { &mut self.bytes }
    }
}

impl Drop for FrameQueue {
    fn drop(&mut self) {
        metrics::PENDING_BYTES.add(-places(self.frames.capacity()));
    }
}

fn places(number: usize) -> i64 {
    i64::try_from(number * size_of::<Frame>()).unwrap_or(i64::MAX)
}
