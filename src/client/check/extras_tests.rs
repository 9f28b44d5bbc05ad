//! Forged traces of what is not kept, not for everybody, or not for ever.

use super::judge::{Rules, judge};
use super::record::{Arrival, Disconnect, Record, Stay, Whisper};
use super::removal::Removal;
use super::roster::{Follow, Follower, Kind};
use super::source::{Ack, Excluded, FIRST_WHISPER_LANE, Id, Past, Published, TRANSIENT_LANE, Unacked};
use super::verdict::Verdict;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

fn follower(id: usize, kind: Kind) -> Follower {
    let follow = Follow { identifier: "i".to_owned(), stream: "s".to_owned() };
    Follower { id, kind, follows: vec![follow], seed: 0 }
}

/// Messages 1, 2, 3 of a lane, a second apart; stored ones at ten times their number.
fn published(lane: u16, start: Instant) -> Published {
    let ack = |n: u32| {
        let id = Id { lane, n: u64::from(n) };
        let position = id.is_stored().then(|| (Arc::from("e"), id.n * 10));
        let begun = start + SECOND * n;
        Ack { id, position, duplicate: false, excluded: None, begun, at: begun + SECOND / 100 }
    };
    Published::acknowledged("s", lane, (1..=3).map(ack).collect())
}

/// A client whose one connection of its first session stood all the time.
fn record(id: usize, kind: Kind, start: Instant) -> Record {
    let stay = Stay {
        welcomed: Some(start),
        stood: Some(start),
        ended: start + SECOND * 60,
        fresh: false,
        session: 1,
        sid: 7,
        by_client: None,
        positions: BTreeMap::new(),
    };
    Record { stays: vec![stay], ..Record::new(follower(id, kind)) }
}

fn arrival(lane: u16, n: u64, at: Instant) -> Arrival {
    let id = Id { lane, n };
    let position = id.is_stored().then(|| (Arc::from("e"), n * 10));
    Arrival { follow: 0, id, position, connection: 1, at }
}

fn arrivals(lane: u16, numbers: &[u64], start: Instant) -> Vec<Arrival> {
    numbers.iter().map(|n| arrival(lane, *n, start + SECOND * u32::try_from(*n).unwrap() + SECOND / 50)).collect()
}

fn verdict(published: &[Published], records: &[Record], removals: &[Removal]) -> Verdict {
    judge(published, records, removals, &Rules { live_within: SECOND * 5, ..Rules::default() })
}

#[test]
fn transient_messages_may_be_lost_and_nothing_else() {
    let start = Instant::now();
    let transient = [published(TRANSIENT_LANE, start)];
    let judged = |numbers: &[u64]| {
        let record = Record { arrivals: arrivals(TRANSIENT_LANE, numbers, start), ..record(0, Kind::Plain, start) };
        verdict(&transient, &[record], &[])
    };
    let lossy = judged(&[1, 3]);
    assert_eq!(lossy.failures(), Vec::<String>::new());
    assert_eq!((lossy.transient.expected, lossy.transient.arrived, lossy.transient.lost), (3, 2, 1));
    assert_eq!(judged(&[1, 2, 2]).misdirected.count, 1, "twice");
    let again = |connection| {
        let mut record = record(0, Kind::Plain, start);
        record.arrivals = arrivals(TRANSIENT_LANE, &[1, 2, 2], start);
        record.arrivals[2].connection = connection;
        verdict(&transient, &[record], &[]).misdirected.count
    };
    assert_eq!((again(1), again(2)), (1, 0), "again on another connection: from a node that stood still");
    assert_eq!(judged(&[4]).misdirected.count, 1, "nobody published it");
    let mut positioned = record(0, Kind::Plain, start);
    positioned.arrivals = arrivals(TRANSIENT_LANE, &[1], start);
    positioned.arrivals[0].position = Some((Arc::from("e"), 7));
    assert_eq!(verdict(&transient, &[positioned], &[]).misdirected.count, 1, "with a position");
}

/// A node that stood still brings it to whoever has come to it meanwhile.
#[test]
fn a_transient_message_may_come_again_on_a_later_connection_while_it_is_on_its_way() {
    let start = Instant::now();
    let transient = [published(TRANSIENT_LANE, start)];
    let judged = |connection: u32, after: Duration| {
        let mut record = record(0, Kind::Base, start);
        record.stays.push(record.stays[0].clone());
        let first = arrivals(TRANSIENT_LANE, &[1], start).remove(0);
        let again = Arrival { connection, at: first.at + after, ..first.clone() };
        record.arrivals = vec![first, again];
        verdict(&transient, &[record], &[]).misdirected.count
    };
    assert_eq!(judged(2, SECOND * 4), 0);
    assert_eq!(judged(2, SECOND * 6), 1, "it is kept somewhere");
    assert_eq!(judged(1, SECOND), 1, "on one connection");
}

#[test]
fn whispers_reach_others_once_and_never_their_sender() {
    let start = Instant::now();
    let mut sender = record(0, Kind::Plain, start);
    sender.whispers.push(Whisper { n: 1, stream: "s".to_owned(), session: 1, at: start + SECOND * 3 });
    let heard = |client: usize, numbers: &[u64]| {
        let mut records = [sender.clone(), record(1, Kind::Plain, start)];
        records[client].arrivals = arrivals(FIRST_WHISPER_LANE, numbers, start);
        verdict(&[], &records, &[])
    };
    let honest = heard(1, &[1]);
    assert_eq!((honest.misdirected.count, honest.whispers.arrived, honest.whispers.lost), (0, 1, 0));
    assert_eq!(heard(1, &[]).whispers.lost, 1);
    assert_eq!(heard(0, &[1]).misdirected.count, 1, "back to its sender");
    assert_eq!(heard(1, &[1, 1]).misdirected.count, 1, "twice");
    assert_eq!(heard(1, &[2]).misdirected.count, 1, "nobody whispered it");
    // A session that the sender got afterwards is another client to the server.
    let mut anew = sender.clone();
    (anew.arrivals, anew.stays[0].session) = (arrivals(FIRST_WHISPER_LANE, &[1], start), 2);
    assert_eq!(verdict(&[], &[anew], &[]).misdirected.count, 0);
}

#[test]
fn a_whisper_of_an_earlier_turn_may_still_arrive() {
    let start = Instant::now();
    let before = Record {
        whispers: (1..=2).map(|n| Whisper { n, stream: "s".to_owned(), session: 1, at: start }).collect(),
        ..record(0, Kind::Plain, start)
    };
    let sender = before.next(true);
    assert_eq!((sender.whispered_before, sender.next(true).whispered_before), (2, 2));
    for (n, misdirected) in [(1, 0), (2, 0), (3, 1)] {
        let listener = Record { arrivals: arrivals(FIRST_WHISPER_LANE, &[n], start), ..record(1, Kind::Plain, start) };
        assert_eq!(verdict(&[], &[sender.clone(), listener], &[]).misdirected.count, misdirected, "whisper {n}");
    }
}

/// Client 0 under its first session, by the fifth of its ids.
fn excluded(start: Instant) -> Excluded {
    Excluded { client: 0, session: 1, sid: 5, since: start - SECOND * 10 }
}

/// What is said to be unknown may be stored, and is still not for everybody.
#[test]
fn who_is_excluded_never_gets_what_was_not_acknowledged() {
    let start = Instant::now();
    for (client, session, found) in [(0, 1, 1), (1, 1, 0), (0, 2, 0)] {
        let mut source = published(0, start);
        let Ack { id, begun, at, .. } = source.acks.remove(1);
        let excluded = Some(Excluded { client, session, ..excluded(start) });
        let error = "503".to_owned();
        source.unacknowledged.push(Unacked { id, excluded, begun, ended: at, refused: false, error });
        let record = || Record { arrivals: arrivals(0, &[1, 2, 3], start), ..record(0, Kind::Plain, start) };
        assert_eq!(verdict(&[source.clone()], &[record()], &[]).not_excluded.count, found, "in its turn");
        // In the next turn it is open still.
        let mut next = published(0, start);
        (next.past.begun, next.past.open) = (3, source.unacknowledged.clone());
        next.acks.iter_mut().for_each(|ack| ack.id.n += 3);
        let later = Record { arrivals: arrivals(0, &[2], start), ..record() };
        assert_eq!(verdict(&[next], &[later], &[]).not_excluded.count, found, "in a later turn");
    }
}

#[test]
fn an_excluded_client_that_is_reached_is_described_by_place_and_sid() {
    let start = Instant::now();
    let mut source = published(0, start);
    source.acks[1].excluded = Some(excluded(start));
    let record = Record { arrivals: arrivals(0, &[1, 2, 3], start), ..record(0, Kind::Plain, start) };
    let verdict = verdict(&[source], &[record], &[]);
    let told = &verdict.not_excluded.examples[0];
    for part in [r#"at Some(("e", 20)), 0.0 s after"#, "of 2 sids ago, 12.0 s old"] {
        assert!(told.contains(part), "{told}");
    }
}

#[test]
fn the_excluded_client_never_gets_the_message_and_others_must() {
    let start = Instant::now();
    let mut source = published(0, start);
    source.acks[1].excluded = Some(excluded(start));
    let judged = |excluded: &[u64], other: &[u64]| {
        let of = |id, numbers| Record { arrivals: arrivals(0, numbers, start), ..record(id, Kind::Plain, start) };
        verdict(std::slice::from_ref(&source), &[of(0, excluded), of(1, other)], &[])
    };
    let honest = judged(&[1, 3], &[1, 2, 3]);
    assert_eq!((honest.failures(), honest.excluded, honest.expected), (vec![], 1, 5));
    assert_eq!(judged(&[1, 2, 3], &[1, 2, 3]).not_excluded.count, 1);
    assert_eq!(judged(&[1, 3], &[1, 3]).missing.count, 1);
    // Nobody knows the client by a session that it no longer has.
    let mut later = record(0, Kind::Plain, start);
    (later.arrivals, later.stays[0].session) = (arrivals(0, &[1, 2, 3], start), 2);
    assert_eq!(verdict(&[source.clone()], &[later], &[]).not_excluded.count, 0);
}

/// A remote disconnect of the first session of client 0.
fn removal(at: Instant) -> Removal {
    Removal { client: 0, session: 1, begun: at, ended: at, acknowledged: true, restored_at: vec![], counted: false }
}

#[test]
fn who_is_thrown_out_is_gone_and_stays_gone() {
    let start = Instant::now();
    let at = start + SECOND * 10;
    let removal = removal(at);
    let ended = |after: Duration| {
        let mut record = record(0, Kind::Plain, start);
        record.stays[0].ended = at + after;
        record.disconnects.push(Disconnect { session: 1, at: at + after });
        record
    };
    let obeyed = verdict(&[], &[ended(SECOND)], std::slice::from_ref(&removal));
    assert_eq!((obeyed.removals, obeyed.revived.count, obeyed.disconnects), (1, 0, 0));
    assert_eq!(verdict(&[], &[ended(SECOND)], &[]).disconnects, 1, "nobody asked for it");
    assert_eq!(verdict(&[], &[ended(SECOND * 6)], std::slice::from_ref(&removal)).revived.count, 1, "still there");
    let mut back = ended(SECOND);
    let again = Stay { welcomed: Some(at + SECOND * 2), ended: at + SECOND * 3, ..back.stays[0].clone() };
    back.stays.push(again);
    assert_eq!(verdict(&[], &[back], std::slice::from_ref(&removal)).revived.count, 1, "restored");
    let elsewhere = Removal { restored_at: vec!["node:1".to_owned()], ..removal };
    assert_eq!(verdict(&[], &[ended(SECOND)], &[elsewhere]).revived.count, 1, "restored elsewhere");
}

#[test]
fn a_connection_without_a_welcome_belongs_to_no_session() {
    let start = Instant::now();
    let at = start + SECOND * 10;
    let mut away = record(0, Kind::Plain, start);
    away.stays[0].ended = at - SECOND;
    // It still shows the number of the session before when it drops.
    away.stays.push(Stay { welcomed: None, stood: None, ended: at + SECOND * 30, ..away.stays[0].clone() });
    assert_eq!(verdict(&[], &[away], &[removal(at)]).revived.count, 0);
}

#[test]
fn who_was_welcomed_before_its_removal_did_not_come_back_after_it() {
    let start = Instant::now();
    let at = start + SECOND * 10;
    let mut slow = record(0, Kind::Plain, start);
    // Its history waited for the store.
    let stay = &mut slow.stays[0];
    (stay.welcomed, stay.stood, stay.ended) = (Some(at - SECOND), Some(at + SECOND * 2), at + SECOND * 3);
    assert_eq!(verdict(&[], &[slow], &[removal(at)]).revived.count, 0);
}

#[test]
fn a_removal_explains_a_disconnect_of_its_session_and_time_only() {
    let start = Instant::now();
    let at = start + SECOND * 10;
    let sent_away = |session: u32, at: Instant| {
        let mut record = record(0, Kind::Plain, start);
        record.stays[0].ended = at;
        record.disconnects.push(Disconnect { session, at });
        record
    };
    let unasked = |record: Record, removal: Removal| verdict(&[], &[record], &[removal]).disconnects;
    assert_eq!(unasked(sent_away(1, at + SECOND * 4), removal(at)), 0);
    assert_eq!(unasked(sent_away(1, at - SECOND), removal(at)), 1, "before it");
    assert_eq!(unasked(sent_away(1, at + SECOND * 6), removal(at)), 1, "long after it");
    assert_eq!(unasked(sent_away(2, at + SECOND), removal(at)), 1, "of another session");
    let unanswered = Removal { acknowledged: false, ended: at + SECOND * 20, ..removal(at) };
    assert_eq!(unasked(sent_away(1, at + SECOND * 22), unanswered), 0, "it may have happened");
    // A client that is named by its identifiers came back while it was being thrown out.
    let mut returned = sent_away(2, at + SECOND * 2);
    returned.stays.push(Stay { session: 2, welcomed: Some(at + SECOND), fresh: true, ..returned.stays[0].clone() });
    let slow = Removal { ended: at + SECOND * 3 / 2, ..removal(at) };
    assert_eq!(unasked(returned, slow), 0);
}

#[test]
fn a_removal_of_the_turn_before_is_judged_by_what_comes_after() {
    let start = Instant::now();
    let at = start + SECOND * 10;
    let earlier = Removal { counted: true, ..removal(at) };
    let judged = |record: Record| verdict(&[], &[record], std::slice::from_ref(&earlier));
    let mut obeys = record(0, Kind::Plain, start);
    obeys.stays[0].ended = at + SECOND;
    obeys.disconnects.push(Disconnect { session: 1, at: at + SECOND });
    let verdict = judged(obeys);
    assert_eq!((verdict.removals, verdict.disconnects, verdict.revived.count), (0, 0, 0));
    assert_eq!(judged(record(0, Kind::Plain, start)).revived.count, 1, "it stands for long");
}

#[test]
fn a_base_client_gets_what_is_published_while_its_connection_stands() {
    let start = Instant::now();
    let source = [published(0, start)];
    let judged = |numbers: &[u64], ended: Duration| {
        let mut record = record(0, Kind::Base, start);
        (record.arrivals, record.stays[0].ended) = (arrivals(0, numbers, start), start + ended);
        verdict(&source, &[record], &[])
    };
    assert_eq!(judged(&[1, 2, 3], SECOND * 60).failures(), Vec::<String>::new());
    assert_eq!(judged(&[1, 3], SECOND * 60).base_missing.count, 1);
    assert_eq!(judged(&[1], SECOND * 3 / 2).base_missing.count, 0, "it was away");
    assert_eq!(
        judged(&[1, 3], SECOND * 4).base_missing.count,
        1,
        "it was overtaken, however soon the connection ended"
    );
    assert_eq!(judged(&[1, 2], SECOND * 4).base_missing.count, 0, "it may have been on its way");
    assert_eq!(judged(&[1, 2, 2, 3], SECOND * 60).doubled.count, 1);
    assert_eq!(judged(&[2, 1, 3], SECOND * 60).disordered.count, 1);
}

#[test]
fn what_an_earlier_turn_has_judged_must_not_come_again() {
    let start = Instant::now();
    let mut source = published(0, start);
    source.acks.iter_mut().for_each(|ack| ack.id.n += 10);
    let error = "503".to_owned();
    let id = Id { lane: 0, n: 5 };
    let open = Unacked { id, excluded: None, begun: start, ended: start, refused: false, error };
    source.past = Past { begun: 10, open: vec![open], ..Past::default() };
    for (n, doubled) in [(4, 1), (5, 0)] {
        let mut record = record(0, Kind::Plain, start);
        record.arrivals.push(arrival(0, n, start + SECOND));
        assert_eq!(verdict(&[source.clone()], &[record], &[]).doubled.count, doubled, "message {n}");
    }
}

#[test]
fn batches_keep_their_order() {
    let start = Instant::now();
    let mut source = published(1, start);
    // All of one request.
    let (begun, at) = (source.acks[0].begun, source.acks[0].at);
    source.acks.iter_mut().for_each(|ack| (ack.begun, ack.at) = (begun, at));
    let judged = |source: &Published, numbers: &[u64]| {
        let record = Record { arrivals: arrivals(1, numbers, start), ..record(0, Kind::Plain, start) };
        verdict(std::slice::from_ref(source), &[record], &[])
    };
    assert_eq!(judged(&source, &[1, 2, 3]).failures(), Vec::<String>::new());
    assert_eq!(judged(&source, &[2, 1, 3]).disordered.count, 1);
    source.acks[0].position = Some((Arc::from("e"), 25));
    assert_eq!(judged(&source, &[1, 2, 3]).positions.count, 2, "acknowledged out of order, and at another place");
}
