//! What one client is still to be sent: finished frames, shared with other clients, bounded in bytes.
//!
//! Pushing never waits. What happens at the limit depends on what is pushed:
//!
//! * A *stored* message is not taken: it stays in the log, and the connection fetches it when there is room again.
//! * What *cannot be read again* (replies, signals, what the application transmits, messages of a broker that keeps nothing)
//!   waits here beyond the limit. A client that stays at or over the limit for as long as a write may take, without being
//!   below it once, is too slow; at once where [`HARD`] times the limit wait, or where all clients together hold what the
//!   process may hold for them.
//! * A message that *may be lost* is left out beyond [`HARD`] times the limit. It never makes its client slow.
//!
//! How many bytes one step queues says nothing about the client: the time until they are read does. The connection's task
//! drains the frames to the socket, many per write, and is the judge of that time, because it alone knows that the socket
//! takes no more.

mod drain;

pub use drain::FRAMES_PER_WRITE;

use super::frames::{Frame, FrameQueue};
use crate::broker::Overflow;
use crate::metrics;
use crate::protocol::{Close, Encoding, reply};
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use std::sync::Mutex;
use tokio::time::Instant;

/// So many times its limit may wait for a client at the most.
pub const HARD: usize = 8;

/// A client without a limit of its own counts as over it from here on where the process holds too much.
const NO_LIMIT: usize = 1 << 20;

/// Where the process holds too much, no client gets stored messages beyond this.
const SCARCE: usize = 64 << 10;

/// How much may wait for clients.
#[derive(Clone, Copy, Debug, Default)]
pub struct OutboxLimits {
    /// Bytes for one client, overhead included; 0: no limit.
    pub pending: usize,
    /// Bytes of the process for all of them; 0: no limit.
    pub total: usize,
}

/// The queue of one client.
pub struct Outbox {
    queue: Mutex<Queue>,
    /// Woken when there is something to write.
    writer: AtomicWaker,
    /// Woken when frames were taken out: a paced replay may go on.
    pacer: AtomicWaker,
    /// Woken when nothing more can be sent, or when a stored message found no room: whoever drives the connection acts.
    driver: AtomicWaker,
    encoding: Encoding,
    limits: OutboxLimits,
}

#[derive(Default)]
struct Queue {
    frames: FrameQueue,
    /// The answer to the client's newest ping; the earlier ones need none (RFC 6455 §5.5.3). It goes before the rest.
    pong: Option<Box<Bytes>>,
    /// Somebody waits for room.
    pacing: bool,
    /// Since when it has been at or over its limit; once closing: since when it has been that.
    since: Option<Instant>,
    /// What could be left out was, and the client has not come below its limit yet: no more of the kind.
    strict: bool,
    /// A stored message found no room and waits in the log.
    stalled: bool,
    /// Nothing is accepted any more; what is queued is the end.
    closing: Option<Close>,
    /// The socket is gone.
    dead: bool,
    /// Nothing is accepted but signs of life and the end.
    suspended: bool,
}

impl Queue {
    fn is_over(&self) -> bool {
        self.closing.is_some() || self.dead
    }

    fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.pong.is_none()
    }

    fn total(&self) -> usize {
        self.frames.bytes + self.frames.droppable
    }
}

/// What whoever drives the connection must see to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Nothing more can be sent.
    Over,
    /// A stored message waits in the log for room.
    Stalled,
}

impl Outbox {
    /// With a limit for this client only; 0: none.
    pub fn new(encoding: Encoding, limit: usize) -> Self {
        Self::within(encoding, OutboxLimits { pending: limit, total: 0 })
    }

    pub fn within(encoding: Encoding, limits: OutboxLimits) -> Self {
        let or_none = |limit| if limit == 0 { usize::MAX } else { limit };
        Self {
            queue: Mutex::default(),
            writer: AtomicWaker::new(),
            pacer: AtomicWaker::new(),
            driver: AtomicWaker::new(),
            encoding,
            limits: OutboxLimits { pending: or_none(limits.pending), total: or_none(limits.total) },
        }
    }

    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn process_is_full(&self) -> bool {
        usize::try_from(metrics::PENDING_BYTES.get()).is_ok_and(|waiting| waiting >= self.limits.total)
    }

    /// Nothing is delivered any more until the connection is closed.
    pub fn suspend(&self) {
        self.queue().suspended = true;
    }

    /// Queues a frame that says that the connection lives.
    pub fn push_sign_of_life(&self, frame: Bytes) {
        self.push_to(self.queue(), Frame::new(frame), Overflow::Disconnect);
    }

    /// Queues a frame of this client's own, which cannot be made again.
    pub fn push(&self, frame: Bytes) {
        self.push_unstored(Frame::new(frame), Overflow::Disconnect);
    }

    /// Queues a message that is stored nowhere.
    pub fn push_unstored(&self, frame: Frame, overflow: Overflow) {
        let queue = self.queue();
        if !queue.suspended {
            self.push_to(queue, frame, overflow);
        }
    }

    fn push_to(&self, mut queue: std::sync::MutexGuard<'_, Queue>, frame: Frame, overflow: Overflow) {
        if queue.is_over() {
            return;
        }
        let hard = self.limits.pending.saturating_mul(HARD);
        let own = if self.limits.pending == usize::MAX { NO_LIMIT } else { self.limits.pending };
        if overflow == Overflow::Drop {
            let total = queue.total();
            if total >= hard || (total >= own && (queue.strict || self.process_is_full())) {
                metrics::UNSTORED_DROPPED.inc();
                return;
            }
        } else if queue.frames.bytes >= hard || (queue.frames.bytes >= own && self.process_is_full()) {
            self.too_slow(&mut queue);
            drop(queue);
            self.wake_all();
            return;
        }
        self.enqueue(queue, if overflow == Overflow::Drop { frame.droppable() } else { frame });
    }

    /// Queues a stored message, unless there is no room: then it stays where it is, and the driver hears of it.
    pub fn push_stored(&self, frame: Frame) -> bool {
        let mut queue = self.queue();
        if queue.is_over() || queue.suspended {
            return true;
        }
        let bytes = queue.frames.bytes;
        if bytes >= self.limits.pending || (bytes >= SCARCE && self.process_is_full()) {
            let known = std::mem::replace(&mut queue.stalled, true);
            drop(queue);
            if !known {
                self.driver.wake();
            }
            return false;
        }
        self.enqueue(queue, frame);
        true
    }

    /// The answer to a WebSocket ping: only the newest one waits.
    pub fn pong(&self, frame: Bytes) {
        let mut queue = self.queue();
        if queue.is_over() {
            return;
        }
        let wake = queue.is_empty();
        queue.pong = Some(Box::new(frame));
        drop(queue);
        if wake {
            self.writer.wake();
        }
    }

    fn enqueue(&self, mut queue: std::sync::MutexGuard<'_, Queue>, frame: Frame) {
        // A writer that has something to take comes back by itself.
        let wake = queue.is_empty();
        queue.frames.push(frame);
        if queue.since.is_none() && queue.total() >= self.limits.pending {
            queue.since = Some(Instant::now());
        }
        drop(queue);
        if wake {
            self.writer.wake();
        }
    }

    /// Empties the queue but for the farewell.
    fn too_slow(&self, queue: &mut Queue) {
        metrics::SLOW_CLIENTS.inc();
        queue.frames = FrameQueue::default();
        queue.pong = None;
        self.end(queue, Close::TooSlow);
    }

    fn wake_all(&self) {
        self.writer.wake();
        self.pacer.wake();
        self.driver.wake();
    }

    /// Queues the farewell behind everything queued so far; later pushes are dropped. The first reason stands.
    pub fn close(&self, close: Close) {
        let mut queue = self.queue();
        if !queue.is_over() {
            self.end(&mut queue, close);
        }
        drop(queue);
        self.wake_all();
    }

    /// The client said goodbye: what is queued is still written, nothing is accepted any more.
    pub fn finish(&self) {
        let mut queue = self.queue();
        if queue.closing.is_none() {
            queue.closing = Some(Close::ClientClosed);
            queue.since = Some(Instant::now());
        }
        drop(queue);
        self.wake_all();
    }

    fn end(&self, queue: &mut Queue, close: Close) {
        for frame in reply::farewell(self.encoding, close) {
            queue.frames.push(Frame::new(frame));
        }
        queue.closing = Some(close);
        queue.since = Some(Instant::now());
    }

    /// The socket is gone: drop everything, accept nothing.
    pub fn kill(&self) {
        let mut queue = self.queue();
        *queue = Queue { dead: true, closing: queue.closing, ..Queue::default() };
        drop(queue);
        self.wake_all();
    }

    /// Why it was closed by the server, if it was.
    pub fn closing(&self) -> Option<Close> {
        self.queue().closing
    }

    /// Nothing more can be sent: closing or dead.
    pub fn is_over(&self) -> bool {
        self.queue().is_over()
    }
}

#[cfg(test)]
mod tests;
