//! The judge finds what it is there to find.

use super::credentials::Credentials;
use super::judge::{Rules, judge};
use super::record::{Arrival, Record, Reject, Stay};
use super::roster::{Follower, Kind, Roster};
use super::source::{Ack, Id, Published};
use super::verdict::Verdict;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Three messages to each stream, at ten times their number.
fn published(follower: &Follower) -> Vec<Published> {
    let streams: BTreeSet<_> = follower.follows.iter().map(|follow| follow.stream.clone()).collect();
    let ack = |n| Ack {
        id: Id { lane: 0, n },
        position: Some((Arc::from("e"), n * 10)),
        duplicate: false,
        excluded: None,
        begun: tokio::time::Instant::now(),
        at: tokio::time::Instant::now(),
    };
    let acks: Vec<_> = (1..=3).map(ack).collect();
    streams.into_iter().map(|stream| Published::acknowledged(&stream, 0, acks.clone())).collect()
}

fn record(follower: &Follower, arrivals: &[(usize, u64)]) -> Record {
    let arrival = |&(follow, n): &(usize, u64)| {
        let position = Some((Arc::from("e"), n * 10));
        Arrival { follow, id: Id { lane: 0, n }, position, connection: 1, at: tokio::time::Instant::now() }
    };
    let arrivals = arrivals.iter().map(arrival).collect();
    Record { arrivals, ..Record::new(follower.clone()) }
}

/// A client of the wanted kind, with its first stream only.
fn follower(kind: Kind) -> Follower {
    let roster = Roster {
        prefix: String::new(),
        seed: 1,
        streams: 5,
        members: 20,
        doubles: 5,
        silents: 5,
        bases: 2,
        secret: None,
        credentials: Credentials::Common,
    };
    let all = roster.followers();
    let mut one = all.into_iter().find(|follower| follower.kind == kind).expect("the roster has every kind");
    let first = one.follows[0].stream.clone();
    one.follows.retain(|follow| follow.stream == first);
    one
}

fn verdict(follower: &Follower, arrivals: &[(usize, u64)]) -> Verdict {
    judge(&published(follower), &[record(follower, arrivals)], &[], &Rules::default())
}

#[test]
fn everything_once_and_in_order_passes() {
    let plain = follower(Kind::Plain);
    let verdict = verdict(&plain, &[(0, 1), (0, 2), (0, 3)]);
    assert_eq!(verdict.failures(), Vec::<String>::new());
    assert_eq!((verdict.acknowledged, verdict.expected, verdict.arrived), (3, 3, 3));
}

#[test]
fn loss_repetition_and_disorder_are_found() {
    let plain = follower(Kind::Plain);
    assert_eq!(verdict(&plain, &[(0, 1), (0, 3)]).missing.count, 1);
    assert_eq!(verdict(&plain, &[(0, 1), (0, 2), (0, 2), (0, 3)]).doubled.count, 1);
    assert_eq!(verdict(&plain, &[(0, 2), (0, 1), (0, 3)]).disordered.count, 1);
    assert_eq!(verdict(&plain, &[]).missing.count, 3);
}

#[test]
fn wrong_positions_and_surprises_are_found() {
    let plain = follower(Kind::Plain);
    let mut strange = record(&plain, &[(0, 1), (0, 2), (0, 3)]);
    strange.arrivals[1].position = Some(("other".into(), 20));
    strange.surprises.push("disconnect".into());
    let verdict = judge(&published(&plain), &[strange], &[], &Rules::default());
    assert_eq!((verdict.positions.count, verdict.surprises.count), (1, 1));
    assert_eq!(verdict.failures().len(), 3, "with a second epoch");
}

#[test]
fn a_cut_between_two_copies_excuses_one_copy_of_that_message() {
    let double = follower(Kind::Double);
    let arrivals = [(0, 1), (1, 1), (0, 2), (0, 3), (1, 3)];
    assert_eq!(verdict(&double, &arrivals).missing.count, 1, "without a drop nothing is excused");
    let ended = |offset| Stay {
        welcomed: None,
        stood: None,
        ended: tokio::time::Instant::now(),
        fresh: false,
        session: 1,
        sid: 1,
        by_client: Some(true),
        positions: BTreeMap::from([(double.follows[0].stream.clone(), offset)]),
    };
    for (dropped_at, missing, excused) in [(20, 0, 1), (10, 1, 0)] {
        let mut cut = record(&double, &arrivals);
        cut.stays.push(ended(dropped_at));
        let verdict = judge(&published(&double), &[cut], &[], &Rules::default());
        assert_eq!((verdict.missing.count, verdict.excused), (missing, excused), "dropped at {dropped_at}");
    }
    let mut both_missing = record(&double, &[(0, 1), (1, 1), (0, 3), (1, 3)]);
    both_missing.stays.push(ended(20));
    assert_eq!(
        judge(&published(&double), &[both_missing], &[], &Rules::default()).missing.count,
        1,
        "one copy, not two"
    );
}

#[test]
fn a_loss_is_signalled_by_a_rejection_in_its_place_only() {
    let plain = follower(Kind::Plain);
    let published = published(&plain);
    for (after, unsignalled) in [(0, 1), (1, 0), (2, 1)] {
        let mut lossy = record(&plain, &[(0, 1), (0, 3)]);
        lossy.rejects.push(Reject { follow: 0, after, connection: 1, at: tokio::time::Instant::now() });
        let verdict = judge(&published, &[lossy], &[], &Rules::default());
        assert_eq!((verdict.missing.count, verdict.unsignalled.count), (1, unsignalled), "rejected after {after}");
        assert_eq!(verdict.rejects.count, 1);
    }
}

/// The client's request came when the hold was over: what was published meanwhile went out without a position, and what the
/// client had asked for came after it.
#[test]
fn what_is_let_out_without_a_position_has_an_order_among_its_like_of_a_connection_only() {
    let plain = follower(Kind::Plain);
    let judged = |released: &[usize], arrivals: &[(usize, u64)]| {
        let mut late = record(&plain, arrivals);
        released.iter().for_each(|index| late.arrivals[*index].position = None);
        let verdict = judge(&published(&plain), std::slice::from_ref(&late), &[], &Rules::default());
        // The same on a connection each.
        late.arrivals.iter_mut().zip(1..).for_each(|(arrival, connection)| arrival.connection = connection);
        let apart = judge(&published(&plain), &[late], &[], &Rules::default());
        (verdict.disordered.count, apart.disordered.count)
    };
    assert_eq!(judged(&[0], &[(0, 3), (0, 1), (0, 2)]), (0, 0));
    assert_eq!(judged(&[0, 1], &[(0, 2), (0, 3), (0, 1)]), (0, 0));
    assert_eq!(judged(&[0], &[(0, 3), (0, 2), (0, 1)]), (1, 1), "a replay has its own order");
    assert_eq!(judged(&[0, 1], &[(0, 3), (0, 2), (0, 1)]), (1, 0), "and so has what is let out");
}

/// The other identifier has the client's position moved: what this one asks for late comes without positions, once.
#[test]
fn where_a_stream_is_followed_twice_what_was_asked_for_late_has_no_positions_either() {
    let double = follower(Kind::Double);
    for (order, disordered) in [([3, 1, 2], 0), ([3, 2, 1], 1), ([2, 1, 3], 0)] {
        let mut late = record(&double, &[(0, 1), (0, 2), (0, 3), (1, order[0]), (1, order[1]), (1, order[2])]);
        late.arrivals[3..].iter_mut().for_each(|arrival| arrival.position = None);
        // It has had positions before.
        late.earlier = vec![Arrival { follow: 1, position: Some((Arc::from("e"), 5)), ..late.arrivals[3].clone() }];
        let verdict = judge(&published(&double), &[late], &[], &Rules::default());
        assert_eq!(verdict.disordered.count, disordered, "{order:?}");
    }
}

/// What had been let out was there when the rejection was sent.
#[test]
fn a_rejection_excuses_nothing_behind_the_first_message_that_was_released_before_it() {
    let plain = follower(Kind::Plain);
    for (arrivals, lost, unsignalled) in [
        ([(0, 2), (0, 3), (0, 4)].as_slice(), 1, 0),
        (&[(0, 1), (0, 3), (0, 4)], 1, 1),
        (&[(0, 3), (0, 4)], 2, 0),
        // Told behind what precedes it, and before what follows.
        (&[(0, 2), (0, 4)], 2, 0),
    ] {
        let mut sources = published(&plain);
        let last = sources[0].acks[2].clone();
        let id = Id { n: 4, ..last.id };
        sources[0].acks.push(Ack { id, position: Some((Arc::from("e"), 40)), ..last });
        let mut late = record(&plain, arrivals);
        late.arrivals[..arrivals.len() - 1].iter_mut().for_each(|arrival| arrival.position = None);
        let reject = Reject { follow: 0, after: arrivals.len() - 1, connection: 1, at: tokio::time::Instant::now() };
        late.rejects.push(reject);
        // The last one comes live after the rejection.
        let verdict = judge(&sources, &[late], &[], &Rules::default());
        assert_eq!((verdict.missing.count, verdict.unsignalled.count), (lost, unsignalled), "{arrivals:?}");
    }
}

/// The client's request came when the hold was over: what had been held went out without positions before it. Or no request
/// came before the connection ended: on the next one the client asks from where it was.
#[test]
fn a_rejection_tells_of_what_precedes_messages_that_were_released_before_it() {
    let plain = follower(Kind::Plain);
    let published = published(&plain);
    for (connection, positioned, unsignalled) in [(1, false, 0), (2, false, 0), (1, true, 1), (2, true, 1)] {
        let mut late = record(&plain, &[(0, 1), (0, 3)]);
        if !positioned {
            late.arrivals[1].position = None;
        }
        late.rejects.push(Reject { follow: 0, after: 2, connection, at: tokio::time::Instant::now() });
        let verdict = judge(&published, &[late], &[], &Rules::default());
        assert_eq!(verdict.unsignalled.count, unsignalled, "on connection {connection}, positioned: {positioned}");
    }
}

#[test]
fn without_positions_each_source_is_still_kept_in_order() {
    let plain = follower(Kind::Plain);
    let mut sources = published(&plain);
    sources[0].acks.iter_mut().for_each(|ack| ack.position = None);
    let judge_arrivals = |arrivals: &[(usize, u64)]| {
        let mut record = record(&plain, arrivals);
        record.arrivals.iter_mut().for_each(|arrival| arrival.position = None);
        judge(&sources, &[record], &[], &Rules::default())
    };
    assert_eq!(judge_arrivals(&[(0, 1), (0, 2), (0, 3)]).failures(), Vec::<String>::new());
    assert_eq!(judge_arrivals(&[(0, 1), (0, 3), (0, 2)]).disordered.count, 1);
    assert_eq!(judge_arrivals(&[(0, 1), (0, 3), (0, 3)]).doubled.count, 1);
}

#[test]
fn an_unreached_publisher_is_a_failure() {
    let plain = follower(Kind::Plain);
    let mut sources = published(&plain);
    sources[0].errors.push("gave up".into());
    assert_eq!(judge(&sources, &[], &[], &Rules::default()).publishing.count, 1);
}
