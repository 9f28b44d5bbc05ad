//! Catching up, and waiting for room.

use super::*;

/// However much is published while a restored client is held, nothing waits in its own queue.
#[test]
fn ruling_10_the_hold_is_a_cursor_not_a_buffer() {
    let now = Instant::now();
    let mut stream = stream();
    let outbox = Arc::new(Outbox::new(Encoding::Json, 0));
    let receiver = Receiver::new(outbox.clone(), Vec::new(), true);
    let cursor = stream.attach(None, &receiver, &Identifier::new("i".into()), &stream.position(0), true);
    for offset in 1..=1_000 {
        stream.live(offset - 1, message(offset), now);
    }
    assert_eq!((outbox.pending(), stream.pump(cursor, 1 << 20, Which::All)), (0, Pump::Held));
    stream.release(cursor);
    assert_eq!(stream.pump(cursor, 1_000, Which::All), Pump::Paced { within_page: false });
    assert!((1_000..2_000).contains(&outbox.pending()), "{} bytes wait", outbox.pending());
}

/// Live messages beyond the limit stay in the stream, between the copies of one message too; each copy comes once, in
/// order, with its position.
#[test]
fn row_04_live_messages_wait_in_the_stream_between_copies_too() {
    let now = Instant::now();
    let mut stream = stream();
    let outbox = Arc::new(Outbox::new(Encoding::Json, 1_000));
    let receiver = Receiver::new(outbox.clone(), Vec::new(), true);
    let mut cursor = None;
    for name in ["a", "b", "c"] {
        cursor = Some(stream.attach(cursor, &receiver, &Identifier::new(name.into()), &stream.position(0), false));
    }
    let cursor = cursor.unwrap();
    for offset in 1..=100 {
        stream.live(offset - 1, message(offset), now);
    }
    assert!((1_000..1_300).contains(&outbox.pending()), "{} bytes wait", outbox.pending());
    assert!(!stream.is_live(cursor));
    let mut got = Vec::new();
    loop {
        let frames = read(&outbox, 2);
        if frames.is_empty() {
            break;
        }
        got.extend(frames);
        assert_ne!(stream.pump(cursor, 500, Which::Paced), Pump::Held);
        assert!(outbox.pending() < 1_300, "{} bytes wait", outbox.pending());
    }
    let wanted = (1..=100).flat_map(|offset| ["a", "b", "c"].map(|name| (format!("{name:?}"), Some(offset))));
    assert_eq!(got, wanted.collect::<Vec<_>>());
    assert!(stream.is_live(cursor));
}

/// The log has come further than the stream's newest message when a client's queue is full.
#[test]
fn row_04_whoever_waits_for_room_stands_at_a_message_of_the_stream() {
    let now = Instant::now();
    let mut stream = stream();
    let outbox = Arc::new(Outbox::new(Encoding::Json, 300));
    let receiver = Receiver::new(outbox.clone(), Vec::new(), true);
    let cursor = stream.attach(None, &receiver, &Identifier::new("i".into()), &stream.position(0), false);
    for offset in 1..=5 {
        stream.live(offset - 1, message(offset), now);
        read(&outbox, 100);
    }
    assert!(stream.is_live(cursor));
    stream.compare(&Looked::at_once(Head { newest: 5, up_to: 10 }, facts()), now);
    // Without room at all.
    while outbox.pending() < 300 {
        outbox.push(Bytes::from_static(b"{}"));
    }
    stream.live(5, message(11), now);
    stream.live(11, message(12), now);
    stream.tail_mut().trim(0, 0);
    read(&outbox, 100);
    let needs = Pump::NeedPage { after: stream.position(10), newest: 5 };
    assert_eq!(stream.pump(cursor, 1 << 20, Which::Paced), needs);
}

/// What a client that begins at offset 0 is sent of 50 messages, each one with its identifier.
fn catch_up(stream: &mut Stream, name: &str) -> (CursorId, Vec<Frame>) {
    let outbox = Arc::new(Outbox::new(Encoding::Json, 0));
    let receiver = Receiver::new(outbox.clone(), Vec::new(), true);
    let cursor = stream.attach(None, &receiver, &Identifier::new(name.into()), &stream.position(0), false);
    assert_eq!(stream.pump(cursor, 1 << 20, Which::All), Pump::Live);
    let mut frames = std::collections::VecDeque::new();
    let _ = outbox.poll_take(&mut Context::from_waker(Waker::noop()), &mut frames, 100);
    let named = |frame: &&Frame| String::from_utf8_lossy(frame).contains(&format!("{{\"identifier\":\"{name}\""));
    assert_eq!((frames.len(), frames.iter().filter(named).count()), (50, 50), "for {name}");
    (cursor, frames.into())
}

#[test]
fn clients_that_catch_up_together_share_frames_and_nobody_gets_those_of_another_identifier() {
    let now = Instant::now();
    let mut stream = stream();
    for offset in 1..=50 {
        stream.live(offset - 1, message(offset), now);
    }
    let shared = |one: &[Frame], other: &[Frame]| {
        one.iter().zip(other).filter(|(one, other)| one.as_ptr() == other.as_ptr()).count()
    };
    let (_, first) = catch_up(&mut stream, "a");
    let (_, second) = catch_up(&mut stream, "a");
    let (_, third) = catch_up(&mut stream, "a");
    assert_eq!(shared(&first, &second), 0, "the first was alone");
    // Some take each other's places.
    let found = shared(&second, &third);
    assert!(found > 40, "{found} of 50");
    let (cursor, _) = catch_up(&mut stream, "b");
    stream.remove(cursor);
    // It gets the number of the group that has just ended.
    catch_up(&mut stream, "c");
    let (_, fourth) = catch_up(&mut stream, "a");
    stream.expire_pages(now);
    stream.expire_pages(now);
    let (_, fifth) = catch_up(&mut stream, "a");
    assert_eq!(shared(&fourth, &fifth), 0, "the herd has passed");
}

/// A page that is read for one command must not be taken for what another one needs.
#[test]
fn row_05_a_page_comes_too_late_for_a_replay_that_has_begun_further_back() {
    let mut stream = trimmed(20);
    let receiver = Receiver::new(Arc::new(Outbox::new(Encoding::Json, 0)), Vec::new(), true);
    let identifier = Identifier::new("i".into());
    let cursor = stream.attach(None, &receiver, &identifier, &stream.position(20), true);
    let at = |stream: &Stream, after| Start { after: stream.position(after), claimed: None };
    let job = || HistoryJob::new(receiver.clone(), identifier.clone(), 1);
    stream.history(cursor, "i", at(&stream, 10), job());
    let needs = |stream: &Stream, after| Pump::NeedPage { after: stream.position(after), newest: after };
    assert_eq!(stream.pump(cursor, 1_000, Which::All), needs(&stream, 10));
    // Meanwhile the client asks for more.
    stream.history(cursor, "i", at(&stream, 5), job());
    let page = SharedPage { from: 10, to: 20, messages: vec![message(15)], since: None };
    stream.supply(cursor, 10, page.into(), |_| true);
    assert_eq!(stream.pump(cursor, 1_000, Which::All), needs(&stream, 5), "6 to 10 are not skipped");
}

/// Its head was taken before another one was sent half a page, and it joins after that.
#[test]
fn row_03_whoever_joins_behind_a_page_that_is_half_sent_gets_what_lies_between() {
    for (held, released) in [(false, false), (true, false), (true, true)] {
        let mut stream = trimmed(20);
        let outbox = Arc::new(Outbox::new(Encoding::Json, 0));
        let receiver = Receiver::new(outbox.clone(), Vec::new(), true);
        let (a, b) = (Identifier::new("a".into()), Identifier::new("b".into()));
        let cursor = stream.attach(None, &receiver, &a, &stream.position(20), true);
        let start = Start { after: stream.position(8), claimed: None };
        stream.history(cursor, "a", start, HistoryJob::new(receiver.clone(), a.clone(), 1));
        assert!(matches!(stream.pump(cursor, 1_000, Which::All), Pump::NeedPage { .. }));
        stream.supply(cursor, 8, page(8, 20), |_| true);
        assert_eq!(stream.pump(cursor, 1_000, Which::All), Pump::Paced { within_page: true });
        let mut got = read(&outbox, 100);
        assert!((4..12).contains(&got.len()), "half a page: {got:?}");
        stream.attach(Some(cursor), &receiver, &b, &stream.position(10), held);
        match (held, released) {
            (true, true) => stream.release(cursor),
            (true, false) => stream.reject(cursor, "b"),
            _ => {}
        }
        while let Pump::NeedPage { after, .. } = stream.pump(cursor, 1 << 20, Which::All) {
            stream.supply(cursor, after.offset, page(after.offset, 20), |_| true);
        }
        got.extend(read(&outbox, 100));
        let of = |name: &str| got.iter().filter(|(one, _)| *one == format!("{name:?}")).count();
        assert_eq!((of("a"), of("b")), (12 + 1, 10), "9 to 20 and the answer, 11 to 20: {got:?}");
        assert!(stream.is_live(cursor));
    }
}

/// The hole reaches beyond where the first of them stands.
#[test]
fn row_03_everybody_before_the_end_of_a_hole_is_told() {
    let mut stream = trimmed(20);
    let outbox = Arc::new(Outbox::new(Encoding::Json, 0));
    let receiver = Receiver::new(outbox.clone(), Vec::new(), true);
    let cursor = ["a", "b", "c"].into_iter().fold(None, |cursor, name| {
        Some(stream.attach(cursor, &receiver, &Identifier::new(name.into()), &stream.position(20), true))
    });
    let cursor = cursor.unwrap();
    for (name, after) in [("a", 8), ("b", 11), ("c", 16)] {
        let start = Start { after: stream.position(after), claimed: None };
        let job = HistoryJob::new(receiver.clone(), Identifier::new(name.into()), 1);
        stream.history(cursor, name, start, job);
    }
    assert!(matches!(stream.pump(cursor, 1_000, Which::All), Pump::NeedPage { .. }));
    stream.supply(cursor, 8, page(14, 20), |_| false);
    assert_eq!(rejections(&outbox), 2, "a and b");
    // c asks once more, for what lies before the page: it is dropped, and read again.
    let job = HistoryJob::new(receiver.clone(), Identifier::new("c".into()), 1);
    let start = Start { after: stream.position(5), claimed: None };
    stream.history(cursor, "c", start, job);
    assert!(matches!(stream.pump(cursor, 1_000, Which::All), Pump::NeedPage { after, .. } if after.offset == 5));
    stream.supply(cursor, 5, page(14, 20), |_| false);
    assert_eq!(rejections(&outbox), 2, "c, for both of its commands; the others know it");
    assert_eq!(stream.pump(cursor, 1 << 20, Which::All), Pump::Live);
}
