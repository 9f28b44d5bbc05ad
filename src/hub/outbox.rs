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

use super::frames::{Frame, FrameQueue};
use crate::broker::Overflow;
use crate::metrics;
use crate::protocol::{Close, Encoding, reply};
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

/// So many times its limit may wait for a client at the most.
pub const HARD: usize = 8;

/// Bytes taken for one write; one frame at least.
const BYTES_PER_TAKE: usize = 64 << 10;

/// A client without a limit of its own counts as over it from here on where the process holds too much.
const NO_LIMIT: usize = 1 << 20;

/// Where the process holds too much, no client gets stored messages beyond this.
const SCARCE: usize = 64 << 10;

/// A client that is closed gets so many write timeouts for what is still queued.
const DRAIN_TIMEOUTS: u32 = 10;

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

    /// At or over the limit.
    pub fn is_full(&self) -> bool {
        self.pending() >= self.limits.pending
    }

    /// Ready when it is below its limit, or nothing more can be sent.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_below(cx, self.limits.pending)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::encoding::pong_frame;
    use std::task::Waker;

    const PATIENCE: Duration = Duration::from_secs(2);

    fn bytes(number: usize) -> Bytes {
        Bytes::from(vec![b'x'; number])
    }

    fn frame(number: usize) -> Frame {
        Frame::new(bytes(number))
    }

    fn take_frames(outbox: &Outbox, most: usize) -> Vec<Frame> {
        let mut frames = VecDeque::new();
        let _ = outbox.poll_take(&mut Context::from_waker(Waker::noop()), &mut frames, most);
        frames.into()
    }

    fn take(outbox: &Outbox) -> Vec<String> {
        take_frames(outbox, 100).iter().map(|frame| String::from_utf8_lossy(&frame[2..]).into_owned()).collect()
    }

    fn signal(outbox: &Outbox) -> Option<Signal> {
        match outbox.poll_signal(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(signal) => Some(signal),
            Poll::Pending => None,
        }
    }

    const TOO_SLOW: &str = r#"{"type":"disconnect","reason":"too_slow","reconnect":true}"#;

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

    #[test]
    fn row_04_what_one_step_queues_makes_nobody_slow() {
        let outbox = Outbox::new(Encoding::Json, 10_000);
        for _ in 0..50 {
            outbox.push(bytes(1_000));
        }
        assert_eq!(outbox.closing(), None);
        assert_eq!(take_frames(&outbox, 100).len(), 50);
    }

    #[test]
    fn row_04_eight_times_the_limit_is_too_much_at_once() {
        let outbox = Outbox::new(Encoding::Json, 10_000);
        for _ in 0..100 {
            outbox.push(bytes(1_000));
        }
        assert_eq!(outbox.closing(), Some(Close::TooSlow));
        let frames = take(&outbox);
        assert_eq!(frames[0], TOO_SLOW);
        assert_eq!(frames.len(), 2, "message and close frame: {frames:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn row_04_slow_is_who_stays_over_the_limit() {
        let outbox = Outbox::new(Encoding::Json, 10_000);
        let start = Instant::now();
        for _ in 0..20 {
            outbox.push(bytes(1_000));
        }
        assert_eq!(outbox.deadline(PATIENCE), Some(start + PATIENCE));
        assert!(!outbox.judge(start + PATIENCE - Duration::from_millis(1), PATIENCE));
        // Reads, and is over the limit all the time.
        take_frames(&outbox, 5);
        assert_eq!(outbox.deadline(PATIENCE), Some(start + PATIENCE), "15 frames of 1,128 bytes are still over it");
        // Is below it once: the time begins anew.
        take_frames(&outbox, 10);
        assert_eq!(outbox.deadline(PATIENCE), None);
        tokio::time::advance(PATIENCE).await;
        for _ in 0..10 {
            outbox.push(bytes(1_000));
        }
        assert_eq!(outbox.deadline(PATIENCE), Some(Instant::now() + PATIENCE));
        assert!(outbox.judge(Instant::now() + PATIENCE, PATIENCE));
        assert_eq!((outbox.closing(), take(&outbox)[0].as_str()), (Some(Close::TooSlow), TOO_SLOW));
    }

    #[test]
    fn row_04_stored_messages_stay_where_they_are() {
        let outbox = Outbox::new(Encoding::Json, 10_000);
        let taken = (0..50).filter(|_| outbox.push_stored(frame(1_000))).count();
        assert_eq!(taken, 9, "of 1,128 bytes each, over the limit by less than one");
        assert_eq!((signal(&outbox), signal(&outbox)), (Some(Signal::Stalled), None));
        // Replies still find their way.
        outbox.push(bytes(10));
        take_frames(&outbox, 2);
        assert!(outbox.push_stored(frame(1_000)));
        assert_eq!(outbox.closing(), None);
    }

    #[test]
    fn row_04_frames_count_with_their_overhead() {
        let outbox = Outbox::new(Encoding::Json, 0);
        outbox.push(bytes(2));
        assert_eq!(outbox.pending(), 2 + super::super::frames::FRAME_OVERHEAD);
        take_frames(&outbox, 1);
        assert_eq!(outbox.pending(), 0);
    }

    #[test]
    fn row_04_one_pong_waits_the_newest() {
        let outbox = Outbox::new(Encoding::Json, 1_000);
        outbox.push(Encoding::Json.text("data"));
        for number in 0..10_000u32 {
            outbox.pong(pong_frame(&number.to_be_bytes()));
        }
        let frames = take_frames(&outbox, 100);
        assert_eq!(frames.len(), 2);
        assert_eq!(*frames[0], *pong_frame(&9_999u32.to_be_bytes()));
    }

    #[test]
    fn row_18_what_may_be_lost_is_left_out_and_makes_nobody_slow() {
        let outbox = Outbox::new(Encoding::Json, 10_000);
        for _ in 0..500 {
            outbox.push_unstored(frame(1_000), Overflow::Drop);
        }
        assert_eq!((outbox.closing(), outbox.pending(), outbox.is_full()), (None, 0, false));
        assert!(outbox.push_stored(frame(1_000)), "what is stored has room of its own");
        let mut read = 0;
        while let taken @ 1.. = take_frames(&outbox, 100).len() {
            read += taken;
        }
        assert_eq!(read, 71 + 1, "8 times the limit");
    }

    /// Whispers that wait in front of stored messages do not count against who could read the messages.
    #[tokio::test(start_paused = true)]
    async fn row_18_what_may_be_lost_goes_before_the_connection_does() {
        let outbox = Outbox::new(Encoding::Json, 10_000);
        for _ in 0..60 {
            outbox.push_unstored(frame(1_000), Overflow::Drop);
        }
        while outbox.push_stored(frame(1_000)) {}
        let due = Instant::now() + PATIENCE;
        assert!(!outbox.judge(due, PATIENCE));
        outbox.push_unstored(frame(1_000), Overflow::Drop);
        assert_eq!(outbox.deadline(PATIENCE), Some(due + PATIENCE), "a second time for what must be sent");
        assert_eq!(take_frames(&outbox, 100).len(), 9, "the rest was left out");
        assert_eq!((outbox.deadline(PATIENCE), outbox.closing()), (None, None));
    }

    #[test]
    fn where_the_process_holds_too_much_whoever_is_over_its_limit_goes_first() {
        // Tests share the gauge: this one's bytes alone are over the total.
        let limits = OutboxLimits { pending: 10_000, total: 1 };
        let outbox = Outbox::within(Encoding::Json, limits);
        while outbox.pending() < 10_000 {
            outbox.push(bytes(1_000));
        }
        assert_eq!(outbox.closing(), None, "it was not over its own limit");
        outbox.push_unstored(frame(1_000), Overflow::Drop);
        assert_eq!(outbox.closing(), None, "that one was left out");
        outbox.push(bytes(1_000));
        assert_eq!(outbox.closing(), Some(Close::TooSlow));
        let unlimited = Outbox::within(Encoding::Json, OutboxLimits { pending: 0, ..limits });
        let taken = (0..100).filter(|_| unlimited.push_stored(frame(10_000))).count();
        assert_eq!(taken, 7, "64 KiB");
    }
}
