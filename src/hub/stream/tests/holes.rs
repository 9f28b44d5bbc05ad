//! What was not heard is fetched, and what waits behind it.

use super::*;

/// A message that had no predecessor, where the last look at the log is too old to tell whether others have come and
/// gone before it.
#[test]
fn row_06_a_hole_that_was_filled_is_not_filled_again() {
    let now = Instant::now();
    let late = |offset| {
        let payload = Payload::from_json(Bytes::from_static(b"{}"));
        Arc::new(Message { offset, time: 600_000, payload, meta: Meta::default() })
    };
    let mut stream = stream();
    let gap = stream.live(0, late(10), now).expect("the last look was 10 minutes ago");
    let behind = Behind { kept: false, after: 1, next: Some(10), facts: facts() };
    assert_eq!(stream.repaired(gap, &[], &behind, now), None);
    assert_eq!(stream.complete_to(), 10);
}

/// What has been released makes room for what arrives behind the next hole.
#[test]
fn row_06_only_what_waits_behind_a_hole_counts() {
    let now = Instant::now();
    let large = |offset: u64| {
        let payload = Payload::from_json(Bytes::from(vec![b'1'; 1 << 20]));
        Arc::new(Message { offset, time: 1_000, payload, meta: Meta::default() })
    };
    let hear = |stream: &mut Stream, offsets: std::ops::RangeInclusive<u64>| {
        for offset in offsets {
            assert_eq!(stream.live(offset - 1, large(offset), now), None);
        }
    };
    let mut stream = stream();
    let behind = Behind { kept: true, after: 0, next: None, facts: facts() };
    let first = stream.live(1, large(2), now).expect("1 is missing");
    hear(&mut stream, 3..=4);
    // 5 is missing, too.
    stream.live(5, message(6), now);
    let second = stream.repaired(first, &[message(1)], &behind, now).expect("a second hole");
    assert_eq!(stream.complete_to(), 4);
    hear(&mut stream, 7..=8);
    assert_eq!(stream.repaired(second, &[message(5)], &behind, now), None);
    assert_eq!((stream.complete_to(), stream.take_left_out()), (8, false));
    // More than may wait.
    let third = stream.live(9, large(10), now).expect("9 is missing");
    hear(&mut stream, 11..=15);
    assert!(!stream.take_left_out(), "not before the hole is closed");
    assert_eq!(stream.repaired(third, &[message(9)], &behind, now), None);
    let left_out = 15 - stream.complete_to();
    assert!((1..5).contains(&left_out), "{left_out} were left out");
    assert_eq!([stream.take_left_out(), stream.take_left_out()], [true, false]);
}

/// The leader dies, and its successor answers before it has taken in what had been acknowledged; by the next look that has
/// aged out.
#[test]
fn row_03_what_a_new_leader_takes_in_late_was_not_stored_after_it_was_asked() {
    let now = Instant::now();
    let time = |millis| StoreTime { millis, clock: 1 };
    let looked = |up_to, first_seq, stored, now| {
        let facts = Facts { first_seq, last_seq: up_to, stored: time(stored), now: time(now), ..facts() };
        Looked::at_once(Head { newest: 0, up_to }, facts)
    };
    let mut stream = stream();
    let outbox = Arc::new(Outbox::new(Encoding::Json, 0));
    let receiver = Receiver::new(outbox.clone(), Vec::new(), true);
    stream.compare(&looked(5, 6, 1_000, 1_000), now);
    stream.attach(None, &receiver, &Identifier::new("i".into()), &stream.position(5), false);
    // A minute without a leader. 6 to 9 were stored right before, and it does not show them.
    assert_eq!(stream.compare(&looked(5, 6, 1_000, 70_000), now), None);
    assert_eq!(stream.proof().time, time(1_000), "it proves nothing about the time since");
    assert_eq!(stream.compare(&looked(9, 10, 1_200, 71_000), now), None);
    assert_eq!(rejections(&outbox), 1, "some of them may have been of this stream");
}

/// A look at the log that was under way when the hole came says how far the log had come before, and nothing of the hole.
#[test]
fn row_03_a_look_while_a_hole_is_read_does_not_shorten_what_is_judged() {
    let now = Instant::now();
    let mut stream = trimmed(10);
    let outbox = Arc::new(Outbox::new(Encoding::Json, 0));
    let receiver = Receiver::new(outbox.clone(), Vec::new(), true);
    stream.attach(None, &receiver, &Identifier::new("i".into()), &stream.position(10), false);
    // One message is kept. 16 and 17 were not heard, and are gone.
    let gap = stream.live(17, message(18), now).expect("17 is missing");
    let facts = Facts { limit: 1, last_seq: 15, ..facts() };
    let before_them = Looked::at_once(Head { newest: 10, up_to: 15 }, facts.clone());
    assert_eq!(stream.compare(&before_them, now), None);
    let behind = Behind { kept: false, after: 1, next: Some(18), facts: Facts { last_seq: 18, ..facts } };
    assert_eq!(stream.repaired(gap, &[], &behind, now), None);
    assert_eq!((rejections(&outbox), stream.complete_to()), (1, 18));
}

/// The log may have come further than the hole and what waits behind it.
#[test]
fn what_a_look_shows_behind_a_hole_is_asked_for_once_that_is_closed() {
    let now = Instant::now();
    let look = |newest| Looked::at_once(Head { newest, up_to: newest }, Facts { last_seq: newest, ..facts() });
    let kept = Behind { kept: true, after: 0, next: None, facts: facts() };
    for (newest, is_asked) in [(19, false), (20, true)] {
        let mut stream = trimmed(10);
        let gap = stream.live(17, message(18), now).expect("17 is missing");
        assert_eq!(stream.live(18, message(19), now), None);
        assert_eq!(stream.compare(&look(newest), now), None);
        assert!(!stream.take_left_out(), "not before the hole is closed");
        assert_eq!(stream.repaired(gap, &[message(17)], &kept, now), None);
        assert_eq!((stream.complete_to(), stream.take_left_out()), (19, is_asked));
    }
}

/// The log was silent for longer than messages live, and then others are published to.
#[test]
fn row_06_a_stream_that_keeps_nothing_is_read_once_after_a_silence() {
    let now = Instant::now();
    let time = |millis| StoreTime { millis, clock: 1 };
    let look = |seq, millis| {
        let facts = Facts { last_seq: seq, stored: time(millis), now: time(millis), ..facts() };
        Looked::at_once(Head { newest: 0, up_to: seq }, facts)
    };
    let mut stream = stream();
    stream.compare(&look(5, 1_000), now);
    let gap = stream.compare(&look(6, 600_000), now).expect("messages may have come and gone since");
    let none = Behind { kept: true, after: 0, next: None, facts: facts() };
    assert_eq!(stream.repaired(gap, &[], &none, now), None);
    assert_eq!(stream.compare(&look(7, 605_000), now), None, "it was looked at 5 s ago");
    assert_eq!(stream.complete_to(), 7);
}
