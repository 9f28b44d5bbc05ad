//! Finished frames that wait for clients, and what they hold of the process's memory: a frame that many clients share
//! counts once, the places that it takes in their queues count for each.

use crate::metrics;
use bytes::Bytes;
use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::Arc;

/// What a frame costs beside its bytes in a client's account: its place in the queue (which grows by doubling), the
/// handle, and its share of the allocator's. Two-byte frames cost as much as this, not two bytes.
pub const FRAME_OVERHEAD: usize = 128;

/// What an encoded frame holds beside its bytes.
const OWNER: usize = 96;

/// A finished frame, shared by all clients that are sent it. It counts from the first handle to the last.
///
/// A handle is small, because thousands of queues have a place for each message.
#[derive(Clone)]
pub struct Frame {
    encoded: Arc<Encoded>,
    /// It may be left out for a client that does not keep up.
    droppable: bool,
}

struct Encoded(Bytes);

impl Drop for Encoded {
    fn drop(&mut self) {
        metrics::PENDING_BYTES.add(-held(&self.0));
    }
}

fn held(frame: &Bytes) -> i64 {
    i64::try_from(frame.len() + OWNER).unwrap_or(i64::MAX)
}

impl Frame {
    pub fn new(frame: Bytes) -> Self {
        metrics::PENDING_BYTES.add(held(&frame));
        Self { encoded: Arc::new(Encoded(frame)), droppable: false }
    }

    /// Bytes of memory that it holds, whoever shares it.
    pub fn held(&self) -> i64 {
        held(&self.encoded.0)
    }

    /// The same frame; it may be left out for a client that does not keep up.
    pub fn droppable(mut self) -> Self {
        self.droppable = true;
        self
    }

    /// Its part of the client's account.
    pub fn cost(&self) -> usize {
        self.len() + FRAME_OVERHEAD
    }
}

impl Deref for Frame {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.encoded.0
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

/// Places that a queue begins with.
const FIRST_PLACES: usize = 8;

impl FrameQueue {
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub fn push(&mut self, frame: Frame) {
        *self.account(frame.droppable) += frame.cost();
        if self.frames.len() == self.frames.capacity() {
            self.grow();
        }
        self.frames.push_back(frame);
    }

    #[cold]
    fn grow(&mut self) {
        let before = self.frames.capacity();
        self.frames.reserve_exact(before.max(FIRST_PLACES));
        metrics::PENDING_BYTES.add(places(self.frames.capacity() - before));
    }

    pub fn pop(&mut self) -> Option<Frame> {
        let frame = self.frames.pop_front()?;
        *self.account(frame.droppable) -= frame.cost();
        Some(frame)
    }

    /// Takes all frames at once, if they are so many and have so many bytes of their own at the most. `into` must be empty:
    /// its places are used from here on. `false`: they are to be taken one by one.
    pub fn take_all(&mut self, into: &mut VecDeque<Frame>, most: usize, bytes: usize) -> bool {
        // What is written has no overhead.
        let own = self.bytes + self.droppable - self.frames.len() * FRAME_OVERHEAD;
        if self.frames.len() > most || own > bytes || !into.is_empty() {
            return false;
        }
        let before = self.frames.capacity();
        std::mem::swap(&mut self.frames, into);
        metrics::PENDING_BYTES.add(places(self.frames.capacity()) - places(before));
        (self.bytes, self.droppable) = (0, 0);
        true
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
        if self.frames.is_empty() && self.frames.capacity() > 0 {
            *self = Self::default();
        }
    }

    fn account(&mut self, droppable: bool) -> &mut usize {
        if droppable { &mut self.droppable } else { &mut self.bytes }
    }
}

impl Drop for FrameQueue {
    fn drop(&mut self) {
        if self.frames.capacity() > 0 {
            metrics::PENDING_BYTES.add(-places(self.frames.capacity()));
        }
    }
}

fn places(number: usize) -> i64 {
    i64::try_from(number * size_of::<Frame>()).unwrap_or(i64::MAX)
}
