//! The connection's side of an outbox: what its tasks wait for, take, and conclude from how long it lies there.

use super::{Outbox, Signal};
use crate::hub::Frame;
use crate::metrics;
use std::collections::VecDeque;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

/// Frames taken for one write at the most: each has a place in the system call.
pub const FRAMES_PER_WRITE: usize = 64;

/// Bytes taken for one write; one frame at least.
pub(super) const BYTES_PER_TAKE: usize = 64 << 10;

/// A client that is closed gets so many write timeouts for what is still queued.
const DRAIN_TIMEOUTS: u32 = 10;

impl Outbox {
    /// Ready when there is something for the driver to see to. [`Signal::Stalled`] is answered once for each time that the
    /// queue was found full.
    pub fn poll_signal(&self, cx: &mut Context<'_>) -> Poll<Signal> {
        self.driver.register(cx.waker());
        let mut queue = self.queue();
        if queue.is_over() {
            Poll::Ready(Signal::Over)
        } else if std::mem::take(&mut queue.stalled) {
            Poll::Ready(Signal::Stalled)
        } else {
            Poll::Pending
        }
    }

    /// Ready when nothing more can be sent.
    pub fn poll_over(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.driver.register(cx.waker());
        if self.is_over() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Bytes that wait and must be sent, overhead included.
    pub fn pending(&self) -> usize {
        self.queue().frames.bytes
    }

    /// Bytes of answers that may be asked for now: to half of the limit. A client must never be too slow because of what it
    /// asked for while it read, and how much of what is on its way it has read is not known here.
    pub fn room_for_answers(&self) -> usize {
        (self.limits.pending / 2).max(1).saturating_sub(self.pending())
    }

    /// Ready when there is room for answers, or nothing more can be sent.
    pub fn poll_room_for_answers(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_below(cx, (self.limits.pending / 2).max(1))
    }

    /// Ready when fewer than `bytes` wait, or nothing more can be sent.
    pub fn poll_below(&self, cx: &mut Context<'_>, bytes: usize) -> Poll<()> {
        self.pacer.register(cx.waker());
        let mut queue = self.queue();
        if queue.frames.bytes < bytes || queue.is_over() {
            return Poll::Ready(());
        }
        queue.pacing = true;
        Poll::Pending
    }

    /// Takes up to `most` frames into `into`, about [`BYTES_PER_TAKE`]. Ready with `true` when some were taken, with `false`
    /// when the end was reached (closing and drained, or dead).
    pub fn poll_take(&self, cx: &mut Context<'_>, into: &mut VecDeque<Frame>, most: usize) -> Poll<bool> {
        self.writer.register(cx.waker());
        let mut queue = self.queue();
        if queue.dead {
            return Poll::Ready(false);
        }
        if queue.is_empty() {
            queue.frames.give_back_places();
            return if queue.closing.is_some() { Poll::Ready(false) } else { Poll::Pending };
        }
        let before = into.len();
        into.extend(queue.pong.take().map(|pong| Frame::new(*pong)));
        if !queue.frames.take_all(into, most, BYTES_PER_TAKE) {
            let mut bytes = 0;
            while into.len() - before < most && bytes < BYTES_PER_TAKE {
                let Some(frame) = queue.frames.pop() else { break };
                bytes += frame.len();
                into.push_back(frame);
            }
        }
        if queue.since.is_some() && queue.closing.is_none() && queue.total() < self.limits.pending {
            queue.since = None;
            queue.strict = false;
        }
        let pacing = std::mem::take(&mut queue.pacing);
        drop(queue);
        if pacing {
            self.pacer.wake();
        }
        Poll::Ready(true)
    }

    /// When the client must have read more, as things stand: `patience` after it came over its limit; where it is being
    /// closed, when the last of it must be written. `None`: nothing is due.
    pub fn deadline(&self, patience: Duration) -> Option<Instant> {
        let queue = self.queue();
        let patience = if queue.closing.is_some() { patience * DRAIN_TIMEOUTS } else { patience };
        queue.since.map(|since| since + patience)
    }

    /// The socket takes nothing now. Closes a client that has been at or over its limit for `patience` without being below
    /// it once, and returns true. What may be left out goes first: it may be what stands in the way.
    pub fn judge(&self, now: Instant, patience: Duration) -> bool {
        let mut queue = self.queue();
        let Some(since) = queue.since.filter(|_| !queue.is_over()) else { return false };
        if now < since + patience {
            return false;
        }
        let dropped = queue.frames.drop_droppable();
        metrics::UNSTORED_DROPPED.add(dropped as u64);
        let is_slow = queue.frames.bytes >= self.limits.pending && dropped == 0;
        if is_slow {
            self.too_slow(&mut queue);
        } else {
            queue.strict = queue.frames.bytes >= self.limits.pending;
            queue.since = queue.strict.then_some(now);
        }
        drop(queue);
        if is_slow {
            self.wake_all();
        }
        is_slow
    }
}
