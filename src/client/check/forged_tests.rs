//! Traces of a server that keeps its promises pass; the same traces forged in one place are found guilty.

use super::record::{Arrival, Reject};
use super::source::Unacked;
use super::trace::{BEAT, MESSAGES, STORING, Trace, charges, limits};
use std::sync::Arc;
use std::time::Duration;

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
