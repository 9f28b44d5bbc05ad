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
