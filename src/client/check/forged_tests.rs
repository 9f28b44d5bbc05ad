//! Traces of a server that keeps its promises pass; the same traces forged in one place are found guilty.
//!
//! Histories are generated: a stream with limits, and a client that comes, goes and is told what is true.

use super::alarms::Limits;
use super::judge::{Rules, judge};
use super::record::{Arrival, Record, Reject, Stay};
use super::roster::{Dice, Follow, Follower, Kind};
use super::source::{Ack, Id, Published, Unacked};
use super::unsettled::Unsettled;
use super::verdict::Verdict;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const STREAM: &str = "s";
/// Between two publications.
const BEAT: Duration = Duration::from_millis(100);
/// From the beginning of a publication to its acknowledgement.
const STORING: Duration = Duration::from_millis(10);
const MESSAGES: u64 = 400;
/// The message of another source.
const TWICE: Id = Id { lane: 1, n: 1 };

/// What one client saw of a stream, and what its publishers know.
#[derive(Clone)]
struct Trace {
    start: Instant,
    published: Published,
    /// Of another source.
    beside: Option<Published>,
    record: Record,
    rules: Rules,
}

impl Trace {
    /// A client under these limits; its times away are decided by the seed.
    fn honest(seed: u64, limits: Limits) -> Self {
        let start = Instant::now();
        let mut trace = Self::quiet(start, limits);
        let mut dice = Dice::new(seed);
        let mut next = 1;
        let mut position = 0;
        let mut at = start;
        while next <= MESSAGES {
            // Away for a while, but for the first time.
            let away = if position == 0 { 0 } else { dice.below(60) };
            at += BEAT * u32::try_from(away).unwrap();
            let due = trace.begun_before(at);
            let ages: Vec<Duration> = (1..=due).map(|n| trace.age(n, at)).collect();
            let kept = |n: u64| due - n < limits.messages && ages[n as usize - 1] < limits.ttl;
            // Told only where neither the position nor all after it is kept.
            if due > position && !kept(position.max(1)) && !kept(position + 1) {
                trace.reject(at);
            }
            let replayed: Vec<u64> = (position + 1..=due).filter(|n| kept(*n)).collect();
            replayed.iter().for_each(|n| trace.arrive(*n, at));
            position = due.max(position);
            let stood = at;
            let stay = 1 + dice.below(80);
            for n in (position + 1..=(position + stay)).take_while(|n| *n <= MESSAGES) {
                trace.arrive(n, trace.acked_at(n) + Duration::from_millis(1));
                position = n;
            }
            next = position + 1;
            at = at.max(trace.acked_at(position.max(1))) + Duration::from_millis(20);
            trace.end_stay(Some(stood), at);
        }
        trace
    }

    fn quiet(start: Instant, limits: Limits) -> Self {
        let ack = |n: u64| {
            let begun = start + BEAT * u32::try_from(n).unwrap();
            let position = Some((Arc::from("e"), n * 10));
            Ack { id: Id { lane: 0, n }, position, duplicate: false, excluded: None, begun, at: begun + STORING }
        };
        let published = Published::acknowledged(STREAM, 0, (1..=MESSAGES).map(ack).collect());
        let follow = Follow { identifier: "i".to_owned(), stream: STREAM.to_owned() };
        let follower = Follower { id: 7, kind: Kind::Plain, follows: vec![follow], seed: 0 };
        let rules = Rules { limits: Some(limits), live_within: Duration::from_secs(2) };
        Self { start, published, beside: None, record: Record::new(follower), rules }
    }

    fn begun_before(&self, at: Instant) -> u64 {
        let beats = at.saturating_duration_since(self.start + STORING).as_millis() / BEAT.as_millis();
        u64::try_from(beats).unwrap().min(MESSAGES)
    }

    fn acked_at(&self, n: u64) -> Instant {
        self.published.acks[usize::try_from(n - 1).unwrap()].at
    }

    fn age(&self, n: u64, at: Instant) -> Duration {
        at.saturating_duration_since(self.acked_at(n))
    }

    fn arrive(&mut self, n: u64, at: Instant) {
        let position = Some((Arc::from("e"), n * 10));
        let connection = u32::try_from(self.record.stays.len()).unwrap() + 1;
        self.record.arrivals.push(Arrival { follow: 0, id: Id { lane: 0, n }, position, connection, at });
    }

    fn reject(&mut self, at: Instant) {
        self.record.rejects.push(Reject { follow: 0, after: self.record.arrivals.len(), connection: 1, at });
    }

    /// Takes an arrival away.
    fn lose(&mut self, index: usize) -> Arrival {
        self.record.rejects.iter_mut().filter(|reject| reject.after > index).for_each(|reject| reject.after -= 1);
        self.record.arrivals.remove(index)
    }

    /// The run turns after the first connection: what was published and seen until then is over.
    fn turn(mut self) -> Self {
        let ended = self.record.stays[0].ended;
        let (mut before, mut after) = (self.published.clone(), self.published.clone());
        let until = self.begun_before(ended);
        before.acks.retain(|ack| ack.id.n <= until);
        before.begun = until;
        after.acks.retain(|ack| ack.id.n > until);
        after.past.add(&before, ended);
        let (mut first, mut rest) = (self.record.clone(), self.record.clone());
        first.arrivals.retain(|arrival| arrival.connection == 1);
        first.stays.truncate(1);
        rest.arrivals.retain(|arrival| arrival.connection > 1);
        rest.arrivals.iter_mut().for_each(|arrival| arrival.connection -= 1);
        rest.stays.remove(0);
        rest.rejects.iter_mut().for_each(|reject| reject.after -= first.arrivals.len());
        rest.earlier = first.next(false).earlier;
        (self.published, self.record) = (after, rest);
        self
    }

    fn end_stay(&mut self, stood: Option<Instant>, ended: Instant) {
        self.record.stays.push(Stay {
            welcomed: stood,
            stood,
            ended,
            fresh: false,
            session: 1,
            sid: 1,
            by_client: Some(true),
            positions: BTreeMap::new(),
        });
    }

    fn verdict(&self) -> Verdict {
        let published: Vec<Published> = [&self.published].into_iter().chain(&self.beside).cloned().collect();
        judge(&published, std::slice::from_ref(&self.record), &[], &self.rules)
    }
}

/// What is held against a server whose losses by limits are told.
fn charges(verdict: &Verdict) -> Vec<&'static str> {
    let charges = [
        ("unsignalled", verdict.unsignalled.count),
        ("doubled", verdict.doubled.count),
        ("disordered", verdict.disordered.count),
        ("positions", verdict.positions.count),
        ("false alarms", verdict.false_alarms.count),
        ("unstored", verdict.unstored.count),
        ("late", verdict.late.count),
        ("surprises", verdict.surprises.count),
    ];
    charges.into_iter().filter_map(|(name, count)| (count > 0).then_some(name)).collect()
}

fn limits(messages: u64, seconds: u64) -> Limits {
    Limits { messages, ttl: Duration::from_secs(seconds) }
}

fn honest() -> impl Iterator<Item = Trace> {
    let all = [limits(10_000, 300), limits(20, 300), limits(10_000, 2), limits(5, 1)];
    (0..100).flat_map(move |seed| all.map(|limits| Trace::honest(seed, limits)))
}

#[test]
fn honest_traces_are_charged_with_nothing() {
    let (mut lost, mut rejects) = (0, 0);
    for trace in honest() {
        let verdict = trace.verdict();
        assert_eq!(charges(&verdict), Vec::<&str>::new(), "{verdict:?}");
        assert!(verdict.live.count() > 0);
        lost += verdict.missing.count;
        rejects += verdict.rejects.count;
    }
    assert!(lost > 1_000 && rejects > 100, "limits cost something: {lost} lost, {rejects} told");
}

#[test]
fn a_rejection_of_a_client_whose_position_is_kept_is_a_false_alarm() {
    let mut found = 0;
    for mut trace in honest() {
        // Half a second after a message in the middle, to a client that has it.
        let Some(index) = trace.record.arrivals.iter().position(|arrival| arrival.id.n > MESSAGES / 2) else {
            continue;
        };
        let arrival = trace.record.arrivals[index].clone();
        let at = trace.acked_at(arrival.id.n).max(arrival.at);
        if trace.age(arrival.id.n, at) > BEAT {
            continue;
        }
        trace.record.rejects.push(Reject { follow: 0, after: index + 1, connection: 1, at });
        trace.record.rejects.sort_by_key(|reject| reject.after);
        let verdict = trace.verdict();
        assert!(charges(&verdict).contains(&"false alarms"), "{verdict:?}");
        found += 1;
    }
    assert!(found > 100, "{found}");
}

#[test]
fn a_rejection_under_a_dead_epoch_is_none() {
    let mut trace = Trace::honest(3, limits(10_000, 300));
    // From the middle on the log lives a second life.
    let half = MESSAGES / 2;
    for ack in trace.published.acks.iter_mut().filter(|ack| ack.id.n > half) {
        ack.position = Some((Arc::from("f"), ack.id.n));
    }
    for arrival in trace.record.arrivals.iter_mut().filter(|arrival| arrival.id.n > half) {
        arrival.position = Some((Arc::from("f"), arrival.id.n));
    }
    let after = trace.record.arrivals.iter().position(|arrival| arrival.id.n > half).unwrap();
    let at = trace.acked_at(half) + BEAT / 2;
    trace.record.rejects.push(Reject { follow: 0, after, connection: 1, at });
    assert_eq!(trace.verdict().false_alarms.count, 0);
    // The same a moment before the end of the first life is one.
    trace.record.rejects[0] = Reject { follow: 0, after: 5, connection: 1, at: trace.record.arrivals[4].at };
    assert_eq!(trace.verdict().false_alarms.count, 1);
}

#[test]
fn a_message_that_was_said_not_stored_must_not_arrive() {
    for refused in [true, false] {
        let mut trace = Trace::honest(1, limits(10_000, 300));
        let ack = trace.published.acks.remove(9);
        let error = "503".to_owned();
        let unacked = Unacked { id: ack.id, excluded: None, begun: ack.begun, ended: ack.at, refused, error };
        trace.published.unacknowledged.push(unacked);
        let expected: &[&str] = if refused { &["unstored"] } else { &[] };
        assert_eq!(charges(&trace.verdict()), expected);
    }
}

#[test]
fn late_messages_on_a_connection_that_stands_are_found() {
    let trace = Trace::honest(5, limits(10_000, 300));
    let live = |trace: &Trace| {
        let stood = |arrival: &Arrival| trace.record.stays[arrival.connection as usize - 1].stood.unwrap();
        trace.record.arrivals.iter().position(|arrival| stood(arrival) < trace.acked_at(arrival.id.n) - STORING)
    };
    let index = live(&trace).unwrap();
    for (late, charged) in [(1_900, false), (2_100, true)] {
        let mut trace = trace.clone();
        trace.record.arrivals[index].at =
            trace.acked_at(trace.record.arrivals[index].id.n) + Duration::from_millis(late);
        assert_eq!(charges(&trace.verdict()).contains(&"late"), charged, "after {late} ms");
    }
    // Not at all on the connection that stood, and then replayed on the next one.
    let mut trace = trace;
    let (moved, stay) = (trace.record.arrivals[index].clone(), trace.record.arrivals[index].connection);
    let due = trace.acked_at(moved.id.n) + trace.rules.live_within;
    trace.record.stays[stay as usize - 1].ended = due + BEAT;
    trace.record.arrivals[index].connection = stay + 1;
    assert!(charges(&trace.verdict()).contains(&"late"));
    trace.record.stays[stay as usize - 1].ended = due - BEAT;
    assert!(!charges(&trace.verdict()).contains(&"late"), "it was replayed in time");
}

#[test]
fn a_silent_hole_is_found_under_any_limits() {
    for mut trace in honest().take(40) {
        let third = trace.record.arrivals.len() / 3;
        let is_live = |arrival: &Arrival| arrival.at == trace.acked_at(arrival.id.n) + Duration::from_millis(1);
        let index = third + trace.record.arrivals[third..].iter().position(is_live).unwrap();
        let gone = trace.lose(index);
        let begun = trace.acked_at(gone.id.n) - STORING;
        // Of what is told around its place only what came afterwards could tell of it.
        trace.record.rejects.retain(|reject| reject.at < begun || reject.after > index);
        let verdict = trace.verdict();
        assert!(charges(&verdict).contains(&"unsignalled"), "{gone:?}: {verdict:?}");
    }
}

#[test]
fn a_rejection_tells_only_of_messages_that_were_begun_before_it() {
    let honest = Trace::honest(7, limits(10_000, 300));
    let index = honest.record.arrivals.iter().position(|arrival| arrival.id.n == MESSAGES / 2).unwrap();
    let begun = honest.published.acks[usize::try_from(MESSAGES / 2 - 1).unwrap()].begun;
    let (moment, signalled) = (Duration::from_millis(10), true);
    for (at, signalled) in [(begun - moment, !signalled), (begun, signalled), (begun + moment, signalled)] {
        let mut trace = honest.clone();
        trace.lose(index);
        trace.record.rejects.push(Reject { follow: 0, after: index, connection: 1, at });
        let verdict = trace.verdict();
        assert_eq!(verdict.missing.count, 1);
        assert_eq!(verdict.unsignalled.count, u64::from(!signalled), "{:?} after it was begun", at - begun);
    }
}

#[test]
fn what_a_client_had_before_a_turn_counts_after_it() {
    let honest = Trace::honest(11, limits(10_000, 300));
    assert_eq!(charges(&honest.clone().turn().verdict()), Vec::<&str>::new());
    // It comes back with a new session, and has a position: a silent hole is no history by time.
    let mut trace = honest.clone().turn();
    trace.record.stays[0].fresh = true;
    trace.lose(0);
    let verdict = trace.verdict();
    assert_eq!((verdict.unsignalled.count, verdict.by_time), (1, 0), "{verdict:?}");
    // Its last message before the turn was the stream's last, and is kept.
    let mut trace = honest.turn();
    let at = trace.record.stays[0].stood.unwrap();
    trace.record.rejects.push(Reject { follow: 0, after: 0, connection: 1, at });
    assert_eq!(trace.verdict().false_alarms.count, 1);
    // Not if something else may have been stored after it.
    trace.record.earlier[0].position = Some((Arc::from("e"), 5));
    assert_eq!(trace.verdict().false_alarms.count, 0);
}

#[test]
fn what_a_connection_loses_once_it_stands_is_not_lost_by_time() {
    let mut trace = Trace::honest(11, limits(10_000, 300));
    // Nothing but what its second connection, whose session is new, brings live.
    trace.record.stays[1].fresh = true;
    let stood = trace.record.stays[1].stood.unwrap();
    let second = |arrival: &Arrival| arrival.connection == 2 && arrival.at > stood;
    let (first, last) = (
        trace.record.arrivals.iter().position(second).unwrap(),
        trace.record.arrivals.iter().rposition(second).unwrap(),
    );
    assert!(last - first > 2);
    let gone = trace.lose(last - 1);
    trace.record.arrivals.retain(|arrival| arrival.connection > 1);
    let verdict = trace.verdict();
    assert_eq!(verdict.unsignalled.count, 1, "{gone:?}: {verdict:?}");
    assert!(verdict.by_time > 0);
}

/// A new session that has ended before the subscription was confirmed: the next connection restores one without it.
#[test]
fn what_was_never_confirmed_begins_on_the_next_connection() {
    for (stood, charged) in [(false, false), (true, true)] {
        let mut trace = Trace::honest(11, limits(10_000, 300));
        trace.record.arrivals.retain(|arrival| arrival.connection > 1);
        let (first, second) = (trace.record.stays[0].ended, trace.record.stays[1].stood.unwrap());
        trace.record.stays[0].fresh = true;
        if !stood {
            trace.record.stays[0].stood = None;
        }
        assert!(trace.begun_before(second) > trace.begun_before(first), "something was published between them");
        let brought = |trace: &Trace, n: u64| trace.record.arrivals.iter().any(|arrival| arrival.id.n == n);
        let between = (1..=MESSAGES).filter(|n| {
            let begun = trace.published.acks[usize::try_from(*n - 1).unwrap()].begun;
            begun > first && begun < second
        });
        let gone: Vec<u64> = between.filter(|n| brought(&trace, *n)).collect();
        trace.record.arrivals.retain(|arrival| !gone.contains(&arrival.id.n));
        assert!(!gone.is_empty());
        let verdict = trace.verdict();
        assert_eq!(charges(&verdict).contains(&"unsignalled"), charged, "{gone:?}: {verdict:?}");
    }
}

/// The protocol's history by time tells of no losses.
#[test]
fn who_comes_back_without_session_and_position_catches_up_by_time() {
    for (fresh, charged) in [(true, false), (false, true)] {
        let mut trace = Trace::honest(11, limits(10_000, 300));
        let first = trace.record.stays[0].ended;
        trace.record.arrivals.retain(|arrival| arrival.connection > 1);
        trace.record.stays[1].fresh = fresh;
        assert!(trace.begun_before(first) > 0);
        let verdict = trace.verdict();
        assert_eq!(charges(&verdict).contains(&"unsignalled"), charged, "{verdict:?}");
        assert_eq!(verdict.by_time > 0, fresh);
    }
}

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
