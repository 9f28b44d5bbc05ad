//! Forged traces in which a message comes twice: it is forgiven where the limits had removed the first copy, and nowhere
//! else.

use super::alarms::Limits;
use super::record::Arrival;
use super::roster::Kind;
use super::source::{Ack, Id, Published, Unacked};
use super::trace::{BEAT, MESSAGES, STREAM, Trace, charges, limits};
use super::unsettled::Unsettled;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The message of another source.
const TWICE: Id = Id { lane: 1, n: 1 };

#[test]
fn a_second_copy_is_forgiven_only_where_the_limits_had_removed_the_first() {
    for (tried, forgiven) in [(BEAT, false), (BEAT * 50, true)] {
        let mut trace = Trace::honest(9, limits(20, 300));
        let again = trace.record.arrivals[3].clone();
        let ack = &mut trace.published.acks[usize::try_from(again.id.n - 1).unwrap()];
        ack.at = ack.begun + tried;
        ack.position = Some((Arc::from("e"), 7_777));
        let mut copy = again;
        copy.position = Some((Arc::from("e"), 7_777));
        copy.at += tried;
        trace.record.arrivals.push(copy);
        let verdict = trace.verdict();
        assert_eq!((verdict.doubled.count > 0, verdict.forgotten > 0), (!forgiven, forgiven), "{verdict:?}");
        assert_eq!(verdict.disordered.count, 0, "the first copy came where it was stored first: {verdict:?}");
    }
}

/// The fourth message is of another source. It comes live and then once more, so much later, where it lies behind everything
/// acknowledged until then. It was tried until then.
fn stored_twice(limits: Limits, after: Duration, acknowledged: bool) -> Trace {
    let mut trace = Trace::quiet(Instant::now(), limits);
    let start = trace.start;
    (1..=MESSAGES).for_each(|n| trace.arrive(n, trace.acked_at(n) + Duration::from_millis(1)));
    trace.end_stay(Some(start), trace.acked_at(MESSAGES) + Duration::from_secs(60));
    assert_eq!(charges(&trace.verdict()), Vec::<&str>::new());
    let at = trace.record.arrivals[3].at + after;
    // Offsets are ten times the numbers.
    let place = Some((Arc::from("e"), trace.begun_before(at) * 10 + 5));
    let copy = Arrival { position: place.clone(), at, ..trace.record.arrivals[3].clone() };
    let index = trace.record.arrivals.iter().position(|arrival| arrival.at > at).unwrap();
    trace.record.arrivals.insert(index, copy);
    trace.record.arrivals.iter_mut().filter(|arrival| arrival.id.n == 4).for_each(|arrival| arrival.id = TWICE);
    let ack = Ack { id: TWICE, position: place, at, ..trace.published.acks.remove(3) };
    let beside = if acknowledged {
        Published::acknowledged(STREAM, TWICE.lane, vec![ack])
    } else {
        let Ack { id, begun, .. } = ack;
        let error = "stored: unknown".to_owned();
        let unacknowledged = vec![Unacked { id, excluded: None, begun, ended: at, refused: false, error }];
        Published { begun: 1, unacknowledged, ..Published::acknowledged(STREAM, TWICE.lane, vec![]) }
    };
    trace.beside = Some(beside);
    trace
}

/// A server that tries again by itself stores it twice within a moment. Nobody knows when a request that was given up was
/// carried out, but both copies have arrived, and have their places among what else was stored.
#[test]
fn row_01_a_second_copy_is_forgiven_only_where_the_first_had_been_removed_when_it_was_stored() {
    for (limits, after, forgiven) in [
        // All its messages expire, and soon, but not so soon.
        (limits(10_000, 5), 100, false),
        (limits(10_000, 5), 4_000, false),
        (limits(10_000, 5), 5_500, true),
        (limits(10_000, 2), 100, false),
        (limits(10_000, 2), 1_200, false),
        (limits(10_000, 2), 2_500, true),
        // Ten more a second push it out.
        (limits(20, 300), 100, false),
        (limits(20, 300), 1_500, false),
        (limits(20, 300), 2_500, true),
        (limits(10_000, 300), 30_000, false),
    ] {
        for acknowledged in [true, false] {
            let trace = stored_twice(limits, Duration::from_millis(after), acknowledged);
            let verdict = trace.verdict();
            let said = format!("{limits:?}, after {after} ms, acknowledged: {acknowledged}: {verdict:?}");
            let mut expected = if forgiven { vec![] } else { vec!["doubled"] };
            if acknowledged && !forgiven {
                // The first copy lies elsewhere than was said.
                expected.push("positions");
            }
            assert_eq!((charges(&verdict), verdict.forgotten), (expected, u64::from(forgiven)), "{said}");
        }
    }
}

/// Its node stood still: it comes late, and may have expired long before the second copy was stored.
#[test]
fn what_was_held_up_on_its_way_was_stored_when_its_place_in_the_log_says() {
    let ttl = Duration::from_secs(5);
    for (held, forgiven) in [(Duration::from_secs(8), true), (Duration::ZERO, false)] {
        let mut trace = stored_twice(limits(10_000, 5), Duration::from_secs(8), false);
        // Everything from the first copy on comes so much later, up to the second.
        let until = trace.record.arrivals[3].at + held;
        if held.is_zero() {
            // Nothing but the second copy has been early: right behind the first.
            let second = trace.record.arrivals.iter().rposition(|arrival| arrival.id == TWICE).unwrap();
            let mut copy = trace.record.arrivals.remove(second);
            copy.at = until;
            copy.position = Some((Arc::from("e"), 45));
            trace.record.arrivals.insert(4, copy);
        }
        for arrival in &mut trace.record.arrivals[3..] {
            arrival.at = arrival.at.max(until);
        }
        let verdict = trace.verdict();
        assert_eq!((verdict.doubled.count, verdict.forgotten), (u64::from(!forgiven), u64::from(forgiven)), "{ttl:?}");
    }
}

#[test]
fn row_01_a_copy_in_a_later_turn_is_forgiven_only_where_the_first_had_been_removed() {
    for (limits, after, forgiven) in [
        (limits(10_000, 5), 1_000, false),
        (limits(10_000, 5), 5_500, true),
        (limits(20, 300), 1_500, false),
        (limits(20, 300), 3_000, true),
        (limits(10_000, 300), 10_000, false),
    ] {
        let whole = stored_twice(limits, Duration::from_millis(after), false);
        // The turn ends half a second after the first copy.
        let ended = whole.record.arrivals[3].at + Duration::from_millis(500);
        let until = whole.begun_before(ended);
        let (mut before, mut now) = (whole.clone(), whole);
        let is_earlier = |n: u64| n <= until;
        before.published.acks.retain(|ack| is_earlier(ack.id.n));
        before.published.begun = until;
        before.record.arrivals.retain(|arrival| arrival.at <= ended);
        before.record.stays[0].ended = ended;
        let mut unsettled = Unsettled::default();
        let beside = before.beside.clone().unwrap();
        unsettled.note(&[before.published.clone(), beside.clone()], std::slice::from_ref(&before.record), &now.rules);
        now.published.acks.retain(|ack| !is_earlier(ack.id.n));
        now.beside = Some(Published::acknowledged(STREAM, TWICE.lane, vec![]));
        now.beside.as_mut().unwrap().past.add(&beside, ended);
        now.published.past.add(&before.published, ended);
        now.record.arrivals.retain(|arrival| arrival.at > ended);
        now.record.earlier = before.record.next(true).earlier;
        unsettled.remind(std::slice::from_mut(&mut now.record));
        let verdict = now.verdict();
        let expected: &[&str] = if forgiven { &[] } else { &["doubled"] };
        let said = format!("{limits:?}, after {after} ms: {verdict:?}");
        assert_eq!((charges(&verdict).as_slice(), verdict.forgotten), (expected, u64::from(forgiven)), "{said}");
    }
}

/// A base client has no positions: its arrivals must show that the first copy had been removed.
#[test]
fn a_second_copy_at_a_base_client_is_forgiven_only_where_it_came_when_the_first_had_expired() {
    let (ttl, moment) = (Duration::from_secs(5), Duration::from_millis(10));
    let told = Some(limits(10_000, 5));
    for (limits, acked_after, copy_after, forgiven) in [
        (told, ttl + moment, ttl, true),
        // The store still had the first one.
        (told, ttl + moment, ttl - moment, false),
        // All attempts ended while it had it.
        (told, ttl, ttl + moment, false),
        // What it keeps is not known.
        (None, ttl + moment, ttl, false),
    ] {
        let mut trace = Trace::quiet(Instant::now(), super::alarms::Limits { messages: 10_000, ttl });
        trace.rules.limits = limits;
        trace.record.follower.kind = Kind::Base;
        let start = trace.start;
        (1..=MESSAGES).for_each(|n| trace.arrive(n, trace.acked_at(n)));
        trace.record.arrivals.iter_mut().for_each(|arrival| arrival.position = None);
        trace.end_stay(Some(start), trace.acked_at(MESSAGES) + ttl);
        assert_eq!(charges(&trace.verdict()), Vec::<&str>::new());
        let mut copy = trace.record.arrivals[3].clone();
        let ack = &mut trace.published.acks[3];
        ack.at = ack.begun + acked_after;
        copy.at += copy_after;
        trace.record.arrivals.push(copy);
        let verdict = trace.verdict();
        let expected: &[&str] = if forgiven { &[] } else { &["doubled"] };
        assert_eq!(
            charges(&verdict),
            expected,
            "acked after {acked_after:?}, copied after {copy_after:?}: {verdict:?}"
        );
        assert_eq!(verdict.forgotten, u64::from(forgiven));
    }
}
