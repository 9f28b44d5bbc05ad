//! Compares what was acknowledged with what arrived: every message at every follower, once, in order.

use super::alarms::{Limits, is_false_alarm};
use super::copies::{Copy, is_forgotten};
use super::live::Lateness;
use super::log::StreamLog;
use super::record::{Arrival, Had, Record, Reject};
use super::removal::{Removal, judge_removals};
use super::roster::Kind;
use super::source::{Ack, Excluded, Id, Published, TRANSIENT_LANE};
use super::standing::judge_base;
use super::transient::{Whispers, judge_transient};
use super::verdict::Verdict;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Epoch and offset, where the server tells them.
pub(super) type Position = Option<(Arc<str>, u64)>;

/// What a run is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// What the deployment keeps, if that is known: then a rejection can be a false alarm.
    pub limits: Option<Limits>,
    /// How long a message may be on its way to a connection that stands.
    pub live_within: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self { limits: None, live_within: Duration::from_secs(30) }
    }
}

pub fn judge(published: &[Published], records: &[Record], removals: &[Removal], rules: &Rules) -> Verdict {
    let mut verdict = Verdict::default();
    published.iter().for_each(|source| note_source(source, &mut verdict));
    let streams = StreamLog::of_all(published);
    let whispers = Whispers::of(records);
    for record in records {
        judge_member(record, &streams, rules, &mut verdict);
        judge_removals(record, removals, rules.live_within, &mut verdict);
        let none = StreamLog::default();
        let mut excuses = Excuses::of(record);
        for (index, follow) in record.follower.follows.iter().enumerate() {
            let log = streams.get(follow.stream.as_str()).unwrap_or(&none);
            judge_transient(record, index, log, &whispers, rules.live_within, &mut verdict);
            match record.follower.kind {
                Kind::Base => judge_base(record, index, log, rules, &mut verdict),
                _ => judge_subscription(record, index, log, rules, &mut excuses, &mut verdict),
            }
        }
    }
    verdict
}

fn note_source(source: &Published, verdict: &mut Verdict) {
    for error in &source.errors {
        verdict.publishing.add(|| error.clone());
    }
    for unacked in &source.unacknowledged {
        verdict.unacknowledged.add(|| format!("{} {:?}: {}", source.stream, unacked.id, unacked.error));
    }
    // The last one of an earlier turn was acknowledged before.
    let first = usize::from(source.past.last.is_none());
    for (before, after) in source.past.last.iter().chain(&source.acks).zip(source.acks.iter().skip(first)) {
        if let (Some((epoch, offset)), Some((next_epoch, next))) = (&before.position, &after.position)
            && epoch == next_epoch
            && offset >= next
        {
            verdict.positions.add(|| format!("{}: {before:?} acknowledged before {after:?}", source.stream));
        }
    }
    let excluding = source.acks.iter().filter(|ack| ack.excluded.is_some()).count() as u64;
    verdict.exercised.exclusion += excluding;
    verdict.exercised.batches += source.batches;
    if source.lane == TRANSIENT_LANE {
        verdict.exercised.transient += source.acks.len() as u64;
    }
    verdict.published += source.begun;
    verdict.retries += source.retries;
    verdict.acknowledged += source.acks.len() as u64;
    verdict.duplicate_acks += source.acks.iter().filter(|ack| ack.duplicate).count() as u64;
    verdict.epochs.extend(source.acks.iter().filter_map(|ack| Some(Arc::clone(&ack.position.as_ref()?.0))));
}

fn judge_member(record: &Record, streams: &HashMap<&str, StreamLog>, rules: &Rules, verdict: &mut Verdict) {
    let client = record.follower.id;
    verdict.drops += record.stays.iter().filter(|stay| stay.by_client == Some(true)).count() as u64;
    verdict.losses += record.stays.iter().filter(|stay| stay.by_client == Some(false)).count() as u64;
    verdict.restored += u64::from(record.restored);
    verdict.fresh += u64::from(record.fresh);
    verdict.silences += u64::from(record.silences);
    verdict.skewed += u64::from(record.skewed);
    verdict.exercised.whispers += record.whispers.len() as u64;
    for surprise in &record.surprises {
        verdict.surprises.add(|| format!("client {client}: {surprise}"));
    }
    for reject in &record.rejects {
        let follow = &record.follower.follows[reject.follow];
        let describe = || format!("client {client}: reject_history for {}", follow.identifier);
        verdict.rejects.add(describe);
        if let (Some(limits), Some(log)) = (rules.limits, streams.get(follow.stream.as_str()))
            && let Some(proof) = is_false_alarm(record, reject, log, limits)
        {
            verdict.false_alarms.add(|| format!("{}, but {proof}", describe()));
        }
    }
}

fn judge_subscription(
    record: &Record,
    follow: usize,
    log: &StreamLog,
    rules: &Rules,
    excuses: &mut Excuses,
    verdict: &mut Verdict,
) {
    let client = record.follower.id;
    let subscription = &record.follower.follows[follow];
    let lateness = Lateness { record, within: rules.live_within };
    // What an earlier turn left open counts as seen if it came then.
    let before = record.open.iter().filter(|had| had.arrival.follow == follow);
    let mut seen: HashMap<Id, Seen<'_>> = before.map(|had| (had.arrival.id, Seen::Before(had))).collect();
    let mut order = Order::after(record, follow);
    for arrival in record.arrivals.iter().filter(|arrival| arrival.follow == follow && arrival.id.is_stored()) {
        let ack = log.acks.get(&arrival.id);
        let acked = ack.and_then(|ack| ack.position.as_ref());
        let describe = || {
            let (id, connection) = (arrival.id, arrival.connection);
            format!("client {client} {} {id:?} {acked:?} on connection {connection}", subscription.identifier)
        };
        verdict.arrived += 1;
        if log.is_refused(arrival.id) {
            verdict.unstored.add(describe);
        }
        let may_come = log.is_open(arrival.id) || log.is_refused(arrival.id);
        if log.is_of_an_earlier_turn(arrival.id) && !may_come {
            if record.was_missing(follow, arrival.id) && !seen.contains_key(&arrival.id) {
                verdict.late.add(|| format!("{}, in a later turn than it was due in", describe()));
            } else if log.is_given_up(arrival.id) {
                verdict.late.add(|| format!("{}, long after its publication was given up", describe()));
            } else {
                verdict.doubled.add(|| format!("{}, long after it was due", describe()));
            }
            seen.insert(arrival.id, Seen::Now(arrival));
            continue;
        }
        if let Some(excluded) = log.excluded(arrival.id).filter(|excluded| excluded.client == client)
            && let Some(how) = not_excluded(record, arrival, excluded, log)
        {
            verdict.not_excluded.add(|| format!("{} {how}", describe()));
        }
        let first = seen.get(&arrival.id).copied();
        let twice = first.map_or_else(
            || ack.is_some_and(|ack| was_stored_again(record, arrival, ack, log, rules)),
            |first| {
                let (first, second) = (first.copy(record, log), Copy::of(record, arrival, log));
                rules.limits.is_some_and(|limits| is_forgotten(log, arrival.id, &first, &second, limits))
            },
        );
        match (&arrival.position, acked) {
            (None, _) => verdict.unpositioned += 1,
            (Some(at), Some(acked)) if at != acked && !twice => {
                verdict.positions.add(|| format!("{}: at {at:?}", describe()));
            }
            _ => {}
        }
        if let Some((epoch, _)) = &arrival.position
            && !verdict.epochs.contains(epoch)
        {
            verdict.epochs.insert(Arc::clone(epoch));
        }
        if let Some(first) = first {
            if excuses.take(&subscription.stream, acked.or(arrival.position.as_ref())) {
                verdict.excused += 1;
            } else if twice {
                verdict.forgotten += 1;
            } else {
                let before = first.position();
                verdict.doubled.add(|| format!("{} at {:?}, before at {before:?}", describe(), arrival.position));
            }
            continue;
        }
        seen.insert(arrival.id, Seen::Now(arrival));
        if let Some(before) = order.broken_by(arrival, acked, ack.is_some()) {
            verdict.disordered.add(|| format!("{} after {before}", describe()));
        }
        if let Some(ack) = ack {
            verdict.live.add_all(lateness.live(arrival, ack));
            if let Some(how) = lateness.is_late(arrival, ack) {
                verdict.late.add(|| format!("{} {how}", describe()));
            }
        }
    }
    let is_excluded = |ack: &Ack| ack.excluded.is_some_and(|excluded| excluded.client == client);
    let excluded = log.acks.values().filter(|ack| is_excluded(ack)).count() as u64;
    verdict.excluded += excluded;
    verdict.expected += log.acks.len() as u64 - excluded;
    for (id, ack) in log.acks.iter().filter(|(id, ack)| !seen.contains_key(id) && !is_excluded(ack)) {
        let acked = ack.position.as_ref();
        if excuses.take(&subscription.stream, acked) {
            verdict.excused += 1;
            continue;
        }
        let describe = || format!("client {client} {} {id:?} at {acked:?}", subscription.identifier);
        if is_missed_by_time(record, follow, ack) {
            verdict.by_time += 1;
        } else if !is_signalled(record, follow, ack, log) {
            verdict.unsignalled.add(|| format!("{}, {}", describe(), surroundings(record, follow, ack)));
        }
        verdict.missing.add(describe);
    }
}

/// What was seen of a message before.
#[derive(Clone, Copy)]
enum Seen<'a> {
    /// In an earlier turn of the run.
    Before(&'a Had),
    Now(&'a Arrival),
}

impl<'a> Seen<'a> {
    fn position(self) -> &'a Position {
        match self {
            Self::Before(had) => &had.arrival.position,
            Self::Now(arrival) => &arrival.position,
        }
    }

    fn copy(self, record: &Record, log: &StreamLog) -> Copy<'a> {
        match self {
            Self::Before(had) => Copy::from(had),
            Self::Now(arrival) => Copy::of(record, arrival, log),
        }
    }
}

/// It came under another position than the one that was acknowledged, and the limits may have removed one of these two
/// copies before the other was stored.
fn was_stored_again(record: &Record, arrival: &Arrival, ack: &Ack, log: &StreamLog, rules: &Rules) -> bool {
    let Some(limits) = rules.limits else { return false };
    if arrival.position.is_none() || ack.position.is_none() || arrival.position == ack.position {
        return false;
    }
    let (came, acked) = (Copy::of(record, arrival, log), Copy::acknowledged(ack));
    is_forgotten(log, arrival.id, &came, &acked, limits) || is_forgotten(log, arrival.id, &acked, &came, limits)
}

/// How a message reached the session that was excluded from it.
fn not_excluded(record: &Record, arrival: &Arrival, excluded: Excluded, log: &StreamLog) -> Option<String> {
    let stay = record.stay(arrival).filter(|stay| stay.session == excluded.session)?;
    let age = arrival.at.saturating_duration_since(excluded.since).as_secs_f64();
    let begun = log.tried(arrival.id).map_or(arrival.at, |(begun, _)| begun);
    let took = arrival.at.saturating_duration_since(begun).as_secs_f64();
    let ago = stay.sid.saturating_sub(excluded.sid);
    Some(format!(
        "at {:?}, {took:.1} s after it was begun; the client was named by its sid of {ago} sids ago, {age:.1} s old",
        arrival.position
    ))
}

/// The order of one subscription's messages. Where they have positions, one without was let out when its client was awaited
/// no longer: what the client asked for late follows it, and it has an order among its like of the same connection only.
/// Where another identifier of the client has brought it further, that comes without positions, too.
struct Order {
    positioned: Row,
    has_positions: bool,
    /// The client follows the stream twice.
    is_shared: bool,
    /// By connection.
    released: HashMap<u32, Row>,
    /// Connections that have gone back to what was asked for late.
    gone_back: HashSet<u32>,
}

impl Order {
    /// It goes on where earlier turns left it.
    fn after(record: &Record, follow: usize) -> Self {
        let last = record.earlier.iter().rev().find(|arrival| arrival.follow == follow);
        let highest = last.and_then(|arrival| arrival.position.clone());
        let has_positions = highest.is_some() || has_positions(record, follow);
        let stream = &record.follower.follows[follow].stream;
        Self {
            positioned: Row { highest, lanes: HashMap::new() },
            has_positions,
            is_shared: record.follower.follows.iter().filter(|follow| follow.stream == *stream).count() > 1,
            released: HashMap::new(),
            gone_back: HashSet::new(),
        }
    }

    /// What came before and should not have.
    fn broken_by(&mut self, arrival: &Arrival, acked: Option<&(Arc<str>, u64)>, acknowledged: bool) -> Option<String> {
        let is_released = self.has_positions && arrival.position.is_none();
        let row = match is_released {
            true => self.released.entry(arrival.connection).or_default(),
            false => &mut self.positioned,
        };
        let mut broken = row.broken_by(arrival.id, arrival.position.as_ref().or(acked), acknowledged);
        if is_released && self.is_shared && broken.is_some() && self.gone_back.insert(arrival.connection) {
            *row = Row::default();
            broken = row.broken_by(arrival.id, acked, acknowledged);
        }
        broken
    }
}

fn has_positions(record: &Record, follow: usize) -> bool {
    record.arrivals.iter().any(|arrival| arrival.follow == follow && arrival.position.is_some())
}

/// Messages in their order so far: offsets rise within an epoch, and each source's acknowledged messages come as it
/// published them, which can be told even without positions.
#[derive(Default)]
struct Row {
    highest: Position,
    lanes: HashMap<u16, u64>,
}

impl Row {
    fn broken_by(&mut self, id: Id, position: Option<&(Arc<str>, u64)>, acknowledged: bool) -> Option<String> {
        let mut broken = None;
        if let Some((epoch, offset)) = position {
            match &self.highest {
                Some((last, highest)) if last == epoch && offset < highest => {
                    broken = Some(format!("offset {highest}"))
                }
                _ => self.highest = Some((Arc::clone(epoch), *offset)),
            }
        }
        if acknowledged {
            let last = self.lanes.entry(id.lane).or_default();
            if id.n < *last {
                broken.get_or_insert_with(|| format!("message {last} of the same source"));
            }
            *last = id.n.max(*last);
        }
        broken
    }
}

/// The client came back with a new session after this message, and had no position to ask from: this subscription had
/// brought none by then, in this turn or before. Where it was not even confirmed before the connection ended it begins on
/// the next one, whether that session is restored or not.
fn is_missed_by_time(record: &Record, follow: usize, ack: &Ack) -> bool {
    if record.earlier.iter().any(|arrival| arrival.follow == follow) {
        return false;
    }
    let positioned = record.arrivals.iter().find(|arrival| arrival.position.is_some() && arrival.follow == follow);
    let first = positioned.map_or(u32::MAX, |arrival| arrival.connection);
    let mut begins = false;
    for (_, stay) in (1..=first).zip(&record.stays) {
        begins |= stay.fresh;
        // What is published once it has its history must come live.
        if begins && ack.begun < stay.stood.unwrap_or(stay.ended) {
            return true;
        }
        begins &= stay.stood.is_none();
    }
    false
}

/// What came of the same source before and after a missing message, on which connections, and whether history was rejected
/// on one of these.
fn surroundings(record: &Record, follow: usize, ack: &Ack) -> String {
    let id = ack.id;
    let tell = |arrival: Option<&Arrival>| match arrival {
        Some(Arrival { id, connection, position: Some((_, offset)), .. }) => {
            format!("message {} at {offset} on connection {connection}", id.n)
        }
        Some(Arrival { id, connection, position: None, .. }) => {
            format!("message {} without a position on connection {connection}", id.n)
        }
        None => "nothing".to_owned(),
    };
    let of_source = || record.arrivals.iter().filter(|arrival| arrival.follow == follow && arrival.id.lane == id.lane);
    let before = of_source().filter(|arrival| arrival.id.n < id.n).max_by_key(|arrival| arrival.id.n);
    let after = of_source().filter(|arrival| arrival.id.n > id.n).min_by_key(|arrival| arrival.id.n);
    let since = before.map_or(1, |arrival| arrival.connection);
    let until = after.map_or(u32::MAX, |arrival| arrival.connection.saturating_add(1));
    let after_it = |at: Instant| match at.checked_duration_since(ack.begun) {
        Some(later) => format!("{:.1}", later.as_secs_f64()),
        None => format!("-{:.1}", ack.begun.duration_since(at).as_secs_f64()),
    };
    let stood = (1..).zip(&record.stays).filter(|(connection, _)| (since..=until).contains(connection));
    let stood = stood.map(|(connection, stay)| {
        let how = if stay.fresh { "new" } else { "restored" };
        let from = stay.stood.map_or("never".to_owned(), after_it);
        let rejected = record.rejects.iter().any(|reject| reject.follow == follow && reject.connection == connection);
        let rejected = if rejected { ", rejected" } else { "" };
        format!("{connection} ({how}, {from} to {} s after it{rejected})", after_it(stay.ended))
    });
    let stood: Vec<String> = stood.take(6).collect();
    format!("between {} and {}; connections {}", tell(before), tell(after), stood.join(", "))
}

/// A `reject_history` came where the message is missing: after all that precede it and before all that follow. It can
/// only tell of what was there when it was sent, so it came after the message's first attempt, which may be the one that
/// stored it, however much later that was acknowledged.
///
/// What follows may have come before it if the client asked too late: it waited for the request no longer, and came without
/// its position, so that the client names the same one as before on this connection or on the next. What is missing behind
/// the first of these is missing without a reason.
fn is_signalled(record: &Record, follow: usize, ack: &Ack, log: &StreamLog) -> bool {
    let (id, at) = (ack.id, ack.position.as_ref());
    let place = |arrival: &Arrival| {
        let acked = || log.acks.get(&arrival.id).and_then(|ack| ack.position.clone());
        arrival.position.clone().or_else(acked)
    };
    let is_after = |arrival: &Arrival| match (at, &place(arrival)) {
        (Some((epoch, offset)), Some((its_epoch, its_offset))) if epoch == its_epoch => Some(its_offset > offset),
        _ if arrival.id.lane == id.lane => Some(arrival.id.n > id.n),
        _ => None,
    };
    let of_follow = || record.arrivals.iter().enumerate().filter(|(_, arrival)| arrival.follow == follow);
    let has_positions = has_positions(record, follow);
    let is_in_place = |reject: &Reject| {
        let was_released = |arrival: &Arrival| has_positions && arrival.position.is_none();
        // What was let out for this request, or for one before it: nothing with a position came between.
        let before = record.arrivals[..reject.after].iter().rev().filter(|arrival| arrival.follow == follow);
        let mut released = before.take_while(|arrival| was_released(arrival));
        let behind_released = released.any(|arrival| is_after(arrival) == Some(false));
        of_follow().all(|(index, arrival)| match is_after(arrival) {
            Some(true) => reject.after <= index || was_released(arrival) && !behind_released,
            Some(false) => index < reject.after,
            None => true,
        })
    };
    let tells = |reject: &&Reject| reject.follow == follow && reject.at >= ack.begun;
    record.rejects.iter().filter(tells).any(is_in_place)
}

/// A drop may cut the copies of one message apart where two identifiers share a stream: the client's position is then
/// that message, though one identifier has not seen it. One copy per stream and drop.
struct Excuses(HashMap<(String, u64), u32>);

impl Excuses {
    fn of(record: &Record) -> Self {
        let mut left = HashMap::new();
        if record.follower.kind == Kind::Double {
            let shared = &record.follower.follows[0].stream;
            for stay in record.stays.iter().filter(|stay| stay.by_client.is_some()) {
                if let Some(offset) = stay.positions.get(shared) {
                    *left.entry((shared.clone(), *offset)).or_insert(0) += 1;
                }
            }
        }
        Self(left)
    }

    fn take(&mut self, stream: &str, ack: Option<&(Arc<str>, u64)>) -> bool {
        let Some((_, offset)) = ack else { return false };
        match self.0.get_mut(&(stream.to_owned(), *offset)) {
            Some(left) if *left > 0 => {
                *left -= 1;
                true
            }
            _ => false,
        }
    }
}
