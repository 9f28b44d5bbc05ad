use super::drain::BYTES_PER_TAKE;
use super::*;
use crate::protocol::encoding::pong_frame;
use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

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
    assert_eq!(outbox.pending(), 2 + crate::hub::frames::FRAME_OVERHEAD);
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
    assert_eq!((outbox.closing(), outbox.pending()), (None, 0));
    assert!(outbox.room_for_answers() > 0);
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

/// Frames count with their overhead for the client. One write takes by their own bytes.
#[test]
fn a_burst_of_small_frames_is_taken_at_once() {
    let mut queue = FrameQueue::default();
    let mut taken = VecDeque::new();
    let mut taken_at_once = |frames: usize, bytes: usize| {
        (0..frames).for_each(|_| queue.push(frame(bytes)));
        let counted = queue.bytes;
        taken.clear();
        let at_once = queue.take_all(&mut taken, FRAMES_PER_WRITE, BYTES_PER_TAKE);
        assert_eq!((taken.len(), queue.bytes), if at_once { (frames, 0) } else { (0, counted) });
        queue = FrameQueue::default();
        (at_once, counted)
    };
    let (at_once, counted) = taken_at_once(FRAMES_PER_WRITE, 1_000);
    assert!(at_once && counted > BYTES_PER_TAKE, "{counted}");
    assert!(!taken_at_once(FRAMES_PER_WRITE, 1_025).0, "more bytes than that");
    assert!(!taken_at_once(FRAMES_PER_WRITE + 1, 250).0, "more frames than that");
}
