//! Forged traces of two turns of a run: what the first one has seen counts in the second.

use super::alarms::Limits;
use super::judge::{Rules, judge};
use super::record::{Arrival, Record, Stay};
use super::roster::{Follow, Follower, Kind};
use super::source::{Ack, Id, Past, Published, Unacked};
use super::unsettled::Unsettled;
use super::verdict::Verdict;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const TENTH: Duration = Duration::from_millis(100);
const LIVE_WITHIN: Duration = Duration::from_secs(5);
/// Messages of the first turn, but for [`OPEN`] acknowledged at ten times their number.
const BEFORE: u64 = 10;
/// Not acknowledged; stored after all others of its turn, if at all.
const OPEN: u64 = 5;
const OPEN_AT: u64 = 105;

/// The first turn of a source and a client.
struct First {
    start: Instant,
    published: Published,
    record: Record,
}

fn ack(start: Instant, n: u64) -> Ack {
    let begun = start + TENTH * u32::try_from(n).unwrap();
    let position = Some((Arc::from("e"), n * 10));
    Ack { id: Id { lane: 0, n }, position, duplicate: false, excluded: None, begun, at: begun + TENTH / 10 }
}

/// On the connection that stood from the first turn on, or else on the first one after it.
fn arrival(kind: Kind, n: u64, offset: u64, at: Instant) -> Arrival {
    let position = (kind != Kind::Base).then(|| (Arc::from("e"), offset));
    Arrival { follow: 0, id: Id { lane: 0, n }, position, connection: 1, at }
}

fn stay(stood: Instant, ended: Instant) -> Stay {
    Stay {
        welcomed: Some(stood),
        stood: Some(stood),
        ended,
        fresh: false,
        session: 1,
        sid: 1,
        by_client: None,
        positions: BTreeMap::new(),
    }
}

impl First {
    /// The client has these messages of it.
    fn of(kind: Kind, refused: bool, had: &[u64]) -> Self {
        let start = Instant::now();
        let acks: Vec<Ack> = (1..=BEFORE).filter(|n| *n != OPEN).map(|n| ack(start, n)).collect();
        let Ack { id, begun, at, .. } = ack(start, OPEN);
        let open = Unacked { id, excluded: None, begun, ended: at, refused, error: "503".to_owned() };
        let published =
            Published { begun: BEFORE, unacknowledged: vec![open], ..Published::acknowledged("s", 0, acks) };
        let follow = |identifier: &str| Follow { identifier: identifier.to_owned(), stream: "s".to_owned() };
        let mut follower = Follower { id: 0, kind, follows: vec![follow("i")], seed: 0 };
        if kind == Kind::Double {
            follower.follows.push(follow("j"));
        }
        let mut record = Record::new(follower);
        let came = |n: u64| {
            let (offset, at) = if n == OPEN { (OPEN_AT, BEFORE) } else { (n * 10, n) };
            arrival(kind, n, offset, ack(start, at).at + TENTH / 10)
        };
        record.arrivals = had.iter().map(|n| came(*n)).collect();
        record.stays.push(stay(start, start + TENTH * 12));
        Self { start, published, record }
    }

    /// The second turn, with its messages 11, 12, 13 acknowledged and nothing seen yet. The client's connection goes on, or
    /// it is back on another one.
    fn next(&self, goes_on: bool) -> (Published, Record) {
        self.next_under(goes_on, &RULES)
    }

    fn next_under(&self, goes_on: bool, rules: &Rules) -> (Published, Record) {
        let mut past = Past::default();
        past.add(&self.published, self.start + TENTH * 12);
        let acks = (BEFORE + 1..=BEFORE + 3).map(|n| ack(self.start, n)).collect();
        let published = Published { past, begun: 3, ..Published::acknowledged("s", 0, acks) };
        let mut unsettled = Unsettled::default();
        let mut before = self.record.clone();
        if !goes_on {
            before.stays[0].by_client = Some(true);
        }
        unsettled.note(std::slice::from_ref(&self.published), std::slice::from_ref(&before), rules);
        let mut records = [self.record.next(goes_on)];
        unsettled.remind(&mut records);
        let [mut record] = records;
        record.stays.push(stay(self.start + TENTH * 12, self.start + TENTH * 600));
        (published, record)
    }

    /// Judges the second turn if this comes before its own messages: number, offset, and tenths of a second after the
    /// start.
    fn then(&self, goes_on: bool, late: &[(u64, u64, u32)]) -> Verdict {
        let (published, mut record) = self.next(goes_on);
        let kind = record.follower.kind;
        let late = late.iter().map(|(n, offset, at)| arrival(kind, *n, *offset, self.start + TENTH * *at));
        let own = published.acks.iter().map(|ack| arrival(kind, ack.id.n, ack.id.n * 10, ack.at + TENTH / 10));
        record.arrivals = late.chain(own).collect();
        judged(published, record)
    }
}

const RULES: Rules = Rules { limits: None, live_within: LIVE_WITHIN };

fn judged(published: Published, record: Record) -> Verdict {
    judge(&[published], &[record], &[], &RULES)
}

const ALL_BUT_OPEN: [u64; 9] = [1, 2, 3, 4, 6, 7, 8, 9, 10];
const ALL: [u64; 10] = [1, 2, 3, 4, 6, 7, 8, 9, 10, OPEN];

fn charges(verdict: &Verdict) -> [u64; 3] {
    [verdict.doubled.count, verdict.disordered.count, verdict.unstored.count]
}

#[test]
fn what_was_left_open_may_come_in_a_later_turn_once() {
    let open = (OPEN, OPEN_AT, 11);
    for goes_on in [true, false] {
        let first = First::of(Kind::Plain, false, &ALL_BUT_OPEN);
        let honest = first.then(goes_on, &[open]);
        assert_eq!((honest.failures(), honest.doubled.count), (vec![], 0), "connected: {goes_on}");
        assert_eq!(charges(&first.then(goes_on, &[open, open])), [1, 0, 0], "twice in this turn");
        let had = First::of(Kind::Plain, false, &ALL);
        assert_eq!(charges(&had.then(goes_on, &[open])), [1, 0, 0], "once in each turn");
    }
    // It is remembered for longer than one turn.
    let had = First::of(Kind::Plain, false, &ALL);
    let mut unsettled = Unsettled::default();
    unsettled.note(std::slice::from_ref(&had.published), std::slice::from_ref(&had.record), &RULES);
    let (quiet, record) = had.next(true);
    unsettled.note(std::slice::from_ref(&quiet), std::slice::from_ref(&record), &RULES);
    let mut later = [record.next(true)];
    unsettled.remind(&mut later);
    assert_eq!(later[0].open.iter().map(|had| had.arrival.id.n).collect::<Vec<_>>(), [OPEN]);
}

#[test]
fn what_was_left_open_comes_in_the_order_of_positions() {
    let first = First::of(Kind::Plain, false, &ALL_BUT_OPEN);
    assert_eq!(charges(&first.then(true, &[(OPEN, 50, 11)])), [0, 1, 0], "behind what came in the turn before");
}

#[test]
fn a_copy_of_what_was_left_open_is_excused_by_a_cut_at_its_place_only() {
    for (offset, doubled, excused) in [(OPEN_AT, 0, 1), (OPEN_AT + 2, 1, 0)] {
        let first = First::of(Kind::Double, false, &ALL_BUT_OPEN);
        let (published, mut record) = first.next(true);
        record.stays[0].by_client = Some(true);
        record.stays[0].positions = BTreeMap::from([("s".to_owned(), offset)]);
        let copy = arrival(Kind::Double, OPEN, OPEN_AT, first.start + TENTH * 11);
        record.arrivals = vec![copy.clone(), copy];
        let verdict = judged(published, record);
        assert_eq!((verdict.doubled.count, verdict.excused), (doubled, excused), "cut at {offset}");
    }
}

#[test]
fn what_was_refused_in_an_earlier_turn_is_not_stored_and_nothing_else() {
    for kind in [Kind::Plain, Kind::Base] {
        let first = First::of(kind, true, &ALL_BUT_OPEN);
        assert_eq!(charges(&first.then(true, &[(OPEN, OPEN_AT, 11)])), [0, 0, 1], "{kind:?}");
    }
}

#[test]
fn order_goes_on_from_turn_to_turn() {
    for position in [95, 105] {
        let expected = u64::from(position == 95);
        let first = First::of(Kind::Plain, false, &ALL_BUT_OPEN);
        let (mut published, mut record) = first.next(true);
        published.acks.truncate(1);
        published.acks[0].position = Some((Arc::from("e"), position));
        record.arrivals = vec![arrival(Kind::Plain, BEFORE + 1, position, published.acks[0].at)];
        let verdict = judged(published, record);
        assert_eq!((verdict.disordered.count, verdict.positions.count), (expected, expected), "at {position}");
    }
}

#[test]
fn a_base_client_is_not_sent_again_what_its_connection_had_in_an_earlier_turn() {
    // Nobody waits for base clients: message 9 and 10 may be on their way when the turn is over.
    let first = First::of(Kind::Base, false, &ALL_BUT_OPEN[..7]);
    let on_its_way = [(9, 90, 12), (10, 100, 12)];
    assert_eq!(first.then(true, &on_its_way).failures(), Vec::<String>::new());
    assert_eq!(charges(&first.then(true, &[(4, 40, 12)])), [1, 0, 0], "it had it");
    assert_eq!(charges(&first.then(true, &[(9, 90, 12), (9, 90, 12)])), [1, 0, 0], "twice in this turn");
    for goes_on in [true, false] {
        let late = first.then(goes_on, &[(9, 90, 70)]);
        assert_eq!((charges(&late), late.late.count), ([0, 0, 0], 1), "long after it was due, and not double");
        assert_eq!(charges(&first.then(goes_on, &[(9, 90, 70), (9, 90, 71)])), [1, 0, 0], "and then again");
    }
    // What was given up may be stored, and come, at any time.
    assert_eq!(charges(&first.then(true, &[(OPEN, OPEN_AT, 70)])), [0, 0, 0]);
}

#[test]
fn what_was_given_up_has_no_place_in_the_order_of_a_base_clients_messages() {
    for (acknowledged, disordered) in [(false, 0), (true, 1)] {
        let mut turn = First::of(Kind::Base, false, &[1, 2, 3, 4, 6, OPEN, 7]);
        if acknowledged {
            turn.published.unacknowledged.clear();
            turn.published.acks.push(ack(turn.start, OPEN));
        }
        assert_eq!(judged(turn.published, turn.record).disordered.count, disordered);
    }
}

/// Nobody waits for base clients: a message may be on its way when the turn is over, for as long as in any other.
#[test]
fn what_a_base_client_has_not_been_brought_when_a_turn_ends_is_judged_in_the_next() {
    // Everything but message 10, the last one before the turn.
    let first = First::of(Kind::Base, false, &ALL_BUT_OPEN[..8]);
    assert_eq!(judged(first.published.clone(), first.record.clone()).base_missing.count, 0, "it may be on its way");
    let lost = |goes_on: bool, late: &[(u64, u64, u32)]| first.then(goes_on, late).base_missing.count;
    assert_eq!(lost(true, &[(10, 100, 12)]), 0);
    assert_eq!(lost(true, &[]), 1, "it has been overtaken");
    assert_eq!(lost(false, &[]), 0, "its connection ended with the turn");
    // Without anything behind it the time that it may take goes on, through several turns if they are short.
    for (ended, lost) in [(11 + 49, 0), (10 + 51, 1)] {
        let (mut published, mut record) = first.next(true);
        published.acks.clear();
        record.stays[0].ended = first.start + TENTH * ended;
        assert_eq!(judged(published.clone(), record.clone()).base_missing.count, lost, "after {ended} tenths");
        let mut unsettled = Unsettled::default();
        unsettled.note(&[published], std::slice::from_ref(&record), &RULES);
        let mut later = [record.next(true)];
        unsettled.remind(&mut later);
        assert_eq!(later[0].undelivered.len() as u64, 1 - lost, "after {ended} tenths");
    }
    // The limits may have removed it: with what may have been stored after it in both turns.
    for (messages, removed) in [(7, 0), (6, 1)] {
        let limits = Some(Limits { messages, ttl: LIVE_WITHIN * 10 });
        let rules = Rules { limits, ..RULES };
        let (published, mut record) = first.next_under(true, &rules);
        record.arrivals = published.acks.iter().map(|ack| arrival(Kind::Base, ack.id.n, 0, ack.at)).collect();
        let verdict = judge(&[published], &[record], &[], &rules);
        assert_eq!((verdict.base_missing.count, verdict.base_removed), (1 - removed, removed), "{messages} kept");
    }
}

#[test]
fn what_a_turn_has_given_up_as_missing_is_late_in_the_next_one_and_then_double() {
    let first = First::of(Kind::Plain, false, &ALL_BUT_OPEN[..8]);
    for (late, expected) in
        [(&[(10, 100, 12)][..], (1, 0)), (&[(10, 100, 12), (10, 100, 13)], (1, 1)), (&[(9, 90, 12)], (0, 1))]
    {
        let verdict = first.then(true, late);
        assert_eq!((verdict.late.count, verdict.doubled.count), expected, "{late:?}");
    }
}

#[test]
fn what_was_given_up_long_ago_is_not_remembered_one_by_one() {
    let first = First::of(Kind::Plain, false, &ALL);
    let ended = first.published.unacknowledged[0].ended;
    for (after, open) in [(119, 1), (120, 0)] {
        let mut past = Past::default();
        past.add(&first.published, ended);
        let quiet = Published { past: past.clone(), ..Published::acknowledged("s", 0, vec![]) };
        past.add(&quiet, ended + Duration::from_secs(after));
        assert_eq!(past.open.len(), open, "after {after} s");
        let mut unsettled = Unsettled::default();
        unsettled.note(std::slice::from_ref(&first.published), std::slice::from_ref(&first.record), &RULES);
        let (mut published, mut record) = first.next(true);
        published.past = past;
        unsettled.note(&[published.clone()], std::slice::from_ref(&record), &RULES);
        let mut later = [record.next(true)];
        unsettled.remind(&mut later);
        assert_eq!(later[0].open.len(), open, "after {after} s");
        // If it comes after all, it is late.
        record.open.clear();
        record.arrivals = vec![arrival(Kind::Plain, OPEN, OPEN_AT, first.start + TENTH * 13)];
        assert_eq!(judged(published, record).late.count, 1 - open as u64, "after {after} s");
    }
}
