//! What one client is still to be sent: finished frames, shared with other clients, bounded in bytes.
//!
//! Pushing never waits: a client that does not read is told so and closed. The connection's task drains the frames to
//! the socket, many per write.

use crate::metrics;
use crate::protocol::{Close, Encoding, reply};
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::task::{Context, Poll};

/// The queue of one client.
pub struct Outbox {
    queue: Mutex<Queue>,
    /// Woken when there is something to write.
    writer: AtomicWaker,
    /// Woken when frames were taken out: a paced replay may go on.
    pacer: AtomicWaker,
    /// Woken when nothing more can be sent: whoever drives the connection stops.
    driver: AtomicWaker,
    encoding: Encoding,
    /// Bytes that may wait before the client counts as too slow; 0: no limit.
    limit: usize,
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<Bytes>,
    bytes: usize,
    /// Nothing is accepted any more; what is queued is the end.
    closing: Option<Close>,
    /// The socket is gone.
    dead: bool,
    /// Nothing is accepted but signs of life and the end.
    suspended: bool,
}

impl Outbox {
    pub fn new(encoding: Encoding, limit: usize) -> Self {
        Self {
            queue: Mutex::default(),
            writer: AtomicWaker::new(),
            pacer: AtomicWaker::new(),
            driver: AtomicWaker::new(),
            encoding,
            limit,
        }
    }

    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Nothing is delivered any more until the connection is closed.
    pub fn suspend(&self) {
        self.queue().suspended = true;
    }

    /// Queues a frame that says that the connection lives.
    pub fn push_sign_of_life(&self, frame: Bytes) {
        self.push_to(self.queue(), frame);
    }

    /// Queues a frame. A queue that already holds the limit is emptied and the client told that it is too slow.
    pub fn push(&self, frame: Bytes) {
        let queue = self.queue();
        if !queue.suspended {
            self.push_to(queue, frame);
        }
    }

    fn push_to(&self, mut queue: std::sync::MutexGuard<'_, Queue>, frame: Bytes) {
        if queue.closing.is_some() || queue.dead {
            return;
        }
        if self.limit > 0 && queue.bytes >= self.limit {
            metrics::SLOW_CLIENTS.inc();
            queue.frames.clear();
            queue.bytes = 0;
            self.end(&mut queue, Close::TooSlow);
            self.driver.wake();
            self.pacer.wake();
        } else {
            queue.bytes += frame.len();
            queue.frames.push_back(frame);
        }
        drop(queue);
        self.writer.wake();
    }

    /// Queues the farewell behind everything queued so far; later pushes are dropped. The first reason stands.
    pub fn close(&self, close: Close) {
        let mut queue = self.queue();
        if queue.closing.is_none() && !queue.dead {
            self.end(&mut queue, close);
        }
        drop(queue);
        self.writer.wake();
        self.pacer.wake();
        self.driver.wake();
    }

    /// The client said goodbye: what is queued is still written, nothing is accepted any more.
    pub fn finish(&self) {
        self.queue().closing.get_or_insert(Close::ClientClosed);
        self.writer.wake();
        self.pacer.wake();
        self.driver.wake();
    }

    fn end(&self, queue: &mut Queue, close: Close) {
        for frame in reply::farewell(self.encoding, close) {
            queue.bytes += frame.len();
            queue.frames.push_back(frame);
        }
        queue.closing = Some(close);
    }

    /// The socket is gone: drop everything, accept nothing.
    pub fn kill(&self) {
        let mut queue = self.queue();
        *queue = Queue { dead: true, closing: queue.closing, ..Queue::default() };
        drop(queue);
        self.writer.wake();
        self.pacer.wake();
        self.driver.wake();
    }

    /// Why it was closed by the server, if it was.
    pub fn closing(&self) -> Option<Close> {
        self.queue().closing
    }

    /// Nothing more can be sent: closing or dead.
    pub fn is_over(&self) -> bool {
        let queue = self.queue();
        queue.closing.is_some() || queue.dead
    }

    /// Ready when nothing more can be sent.
    pub fn poll_over(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.driver.register(cx.waker());
        if self.is_over() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Bytes that wait.
    pub fn pending(&self) -> usize {
        self.queue().bytes
    }

    /// Takes up to `most` frames into `into`. Ready with `true` when some were taken, with `false` when the end was
    /// reached (closing and drained, or dead).
    pub fn poll_take(&self, cx: &mut Context<'_>, into: &mut VecDeque<Bytes>, most: usize) -> Poll<bool> {
        self.writer.register(cx.waker());
        let mut queue = self.queue();
        if queue.dead {
            return Poll::Ready(false);
        }
        let n = queue.frames.len().min(most);
        if n == 0 {
            return if queue.closing.is_some() { Poll::Ready(false) } else { Poll::Pending };
        }
        for frame in queue.frames.drain(..n) {
            into.push_back(frame);
        }
        queue.bytes -= into.iter().rev().take(n).map(Bytes::len).sum::<usize>();
        if queue.frames.is_empty() && queue.frames.capacity() > 16 {
            queue.frames = VecDeque::new();
        }
        drop(queue);
        self.pacer.wake();
        Poll::Ready(true)
    }

    /// Ready when fewer than `bytes` wait, or nothing more can be sent.
    pub fn poll_below(&self, cx: &mut Context<'_>, bytes: usize) -> Poll<()> {
        self.pacer.register(cx.waker());
        let queue = self.queue();
        let ready = queue.bytes < bytes || queue.closing.is_some() || queue.dead;
        if ready { Poll::Ready(()) } else { Poll::Pending }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    fn take(outbox: &Outbox) -> Vec<String> {
        let mut frames = VecDeque::new();
        let _ = outbox.poll_take(&mut Context::from_waker(Waker::noop()), &mut frames, 100);
        frames.iter().map(|frame| String::from_utf8_lossy(&frame[2..]).into_owned()).collect()
    }

    #[test]
    fn overflow_empties_the_queue_and_says_too_slow() {
        let outbox = Outbox::new(Encoding::Json, 10);
        outbox.push(Encoding::Json.text("0123456789"));
        outbox.push(Encoding::Json.text("x"));
        outbox.push(Encoding::Json.text("y"));
        let frames = take(&outbox);
        assert_eq!(frames[0], r#"{"type":"disconnect","reason":"too_slow","reconnect":true}"#);
        assert_eq!(frames.len(), 2, "message and close frame: {frames:?}");
        assert_eq!(outbox.closing(), Some(Close::TooSlow));
    }

    #[test]
    fn a_farewell_follows_what_was_queued() {
        let outbox = Outbox::new(Encoding::Json, 0);
        outbox.push(Encoding::Json.text("last words"));
        outbox.close(Close::Remote { reconnect: true });
        outbox.push(Encoding::Json.text("too late"));
        let frames = take(&outbox);
        assert_eq!(frames[0], "last words");
        assert_eq!(frames[1], r#"{"type":"disconnect","reason":"remote","reconnect":true}"#);
        assert_eq!(frames.len(), 3);
    }
}
