//! The judge finds what it is there to find.

use crate::clients::{Arrival, Ended, Record};
use crate::judge::{Verdict, judge};
use crate::plan::{Fault, Follower, Kind, Plan};
use crate::publishers::{Ack, Id, Published};
use std::collections::{BTreeMap, BTreeSet};

/// Three messages to each stream, at ten times their number.
fn published(follower: &Follower) -> Vec<Published> {
    let streams: BTreeSet<_> = follower.follows.iter().map(|follow| follow.stream.clone()).collect();
    let ack = |n| Ack {
        id: Id { lane: 0, n },
        epoch: "e".into(),
        offset: n * 10,
        duplicate: false,
        at: tokio::time::Instant::now(),
    };
    let acks: Vec<_> = (1..=3).map(ack).collect();
    streams.into_iter().map(|stream| Published { stream, acks: acks.clone(), retries: 0, errors: vec![] }).collect()
}

fn record(follower: &Follower, arrivals: &[(usize, u64)]) -> Record {
    let arrival = |&(follow, n): &(usize, u64)| {
        let position = Some(("e".to_owned(), n * 10));
        Arrival { follow, id: Id { lane: 0, n }, position, connection: 1 }
    };
    Record {
        follower: follower.clone(),
        arrivals: arrivals.iter().map(arrival).collect(),
        ended: vec![],
        restored: 0,
        fresh: 0,
        surprises: vec![],
        reject_history: 0,
        disconnects: 0,
        silences: 0,
    }
}

/// A client of the wanted kind, with its first stream only.
fn follower(kind: Kind) -> Follower {
    let all = Plan::short(Fault::None, 1).followers();
    let mut one = all.into_iter().find(|follower| follower.kind == kind).expect("the plan has every kind");
    let first = one.follows[0].stream.clone();
    one.follows.retain(|follow| follow.stream == first);
    one
}

fn verdict(follower: &Follower, arrivals: &[(usize, u64)]) -> Verdict {
    judge(&published(follower), &[record(follower, arrivals)])
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
    strange.surprises.push("reject_history".into());
    let verdict = judge(&published(&plain), &[strange]);
    assert_eq!((verdict.positions.count, verdict.surprises.count), (1, 1));
    assert_eq!(verdict.failures().len(), 2);
}

#[test]
fn a_cut_between_two_copies_excuses_one_copy_of_that_message() {
    let double = follower(Kind::Double);
    let arrivals = [(0, 1), (1, 1), (0, 2), (0, 3), (1, 3)];
    assert_eq!(verdict(&double, &arrivals).missing.count, 1, "without a drop nothing is excused");
    let ended =
        |offset| Ended { by_client: true, positions: BTreeMap::from([(double.follows[0].stream.clone(), offset)]) };
    for (dropped_at, missing, excused) in [(20, 0, 1), (10, 1, 0)] {
        let mut cut = record(&double, &arrivals);
        cut.ended.push(ended(dropped_at));
        let verdict = judge(&published(&double), &[cut]);
        assert_eq!((verdict.missing.count, verdict.excused), (missing, excused), "dropped at {dropped_at}");
    }
    let mut both_missing = record(&double, &[(0, 1), (1, 1), (0, 3), (1, 3)]);
    both_missing.ended.push(ended(20));
    assert_eq!(judge(&published(&double), &[both_missing]).missing.count, 1, "one copy, not two");
}

#[test]
fn an_unreached_publisher_is_a_failure() {
    let plain = follower(Kind::Plain);
    let mut sources = published(&plain);
    sources[0].errors.push("gave up".into());
    assert_eq!(judge(&sources, &[]).publishing.count, 1);
}
