//! Whispers and transient messages: they may be lost, but never come twice on a connection, with a position, or back to
//! their sender. On the next connection one may come again: a node that stood still is late, and nothing tells it what the
//! client was sent elsewhere meanwhile.

use super::log::StreamLog;
use super::record::{Arrival, Record, Stay, Whisper};
use super::source::{Id, TRANSIENT_LANE};
use super::verdict::Verdict;
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use tokio::time::Instant;

/// A connection that stands for so long around a message should get it.
const AROUND: Duration = Duration::from_millis(1_000);

/// What was sent and not stored, and how much of it arrived where a connection stood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Passing {
    pub expected: u64,
    pub arrived: u64,
    /// Expected and not arrived: allowed.
    pub lost: u64,
}

impl Passing {
    pub fn merge(&mut self, other: Self) {
        self.expected += other.expected;
        self.arrived += other.arrived;
        self.lost += other.lost;
    }

    fn count(&mut self, expected: bool, arrived: bool) {
        self.expected += u64::from(expected);
        self.arrived += u64::from(arrived);
        self.lost += u64::from(expected && !arrived);
    }
}

/// All whispers of a turn of the run.
pub(super) struct Whispers<'a> {
    /// By sender and number.
    sent: HashMap<(usize, u64), &'a Whisper>,
    /// Sender ⇒ how much it had whispered before.
    before: HashMap<usize, u64>,
}

impl<'a> Whispers<'a> {
    pub fn of(records: &'a [Record]) -> Self {
        let of_one =
            |record: &'a Record| record.whispers.iter().map(|whisper| ((record.follower.id, whisper.n), whisper));
        let before = records.iter().map(|record| (record.follower.id, record.whispered_before)).collect();
        Self { sent: records.iter().flat_map(of_one).collect(), before }
    }

    /// A whisper of an earlier turn, which may have been on its way.
    fn is_earlier(&self, sender: usize, n: u64) -> bool {
        self.before.get(&sender).is_some_and(|before| (1..=*before).contains(&n))
    }
}

/// Number of the session that it reached.
fn session_of(record: &Record, arrival: &Arrival) -> Option<u32> {
    Some(record.stay(arrival)?.session)
}

pub(super) fn judge_transient(
    record: &Record,
    follow: usize,
    log: &StreamLog,
    whispers: &Whispers<'_>,
    within: Duration,
    verdict: &mut Verdict,
) {
    let client = record.follower.id;
    let subscription = &record.follower.follows[follow];
    let mut seen: HashSet<Id> = HashSet::new();
    let mut on_connections: HashSet<(u32, Id)> = HashSet::new();
    let sent_at = |id: Id| match id.whisperer() {
        Some(sender) => whispers.sent.get(&(sender, id.n)).map(|whisper| whisper.at),
        None => log.transient.get(&id).map(|ack| ack.at),
    };
    // A server that brings it after that has kept it.
    let is_on_its_way = |arrival: &Arrival| sent_at(arrival.id).is_none_or(|sent| arrival.at <= sent + within);
    for arrival in record.arrivals.iter().filter(|arrival| arrival.follow == follow && !arrival.id.is_stored()) {
        let id = arrival.id;
        let again = !seen.insert(id);
        let fault = match id.whisperer() {
            _ if arrival.position.is_some() => Some("with a position"),
            _ if !on_connections.insert((arrival.connection, id)) => Some("twice on one connection"),
            _ if again && !is_on_its_way(arrival) => Some("again, long after it was sent"),
            Some(sender) => match whispers.sent.get(&(sender, id.n)) {
                // To the server another session is another client.
                Some(whisper) if sender == client && session_of(record, arrival) == Some(whisper.session) => {
                    Some("back to its sender")
                }
                Some(whisper) if whisper.stream == subscription.stream => None,
                Some(_) => Some("on a stream that it was not whispered to"),
                None if whispers.is_earlier(sender, id.n) => None,
                None => Some("though nobody whispered it"),
            },
            None if id.n > log.transient_begun => Some("though nobody published it"),
            None => None,
        };
        if let Some(fault) = fault {
            let what = if id.lane == TRANSIENT_LANE { "transient message" } else { "whisper" };
            verdict.misdirected.add(|| {
                format!(
                    "client {client} {}: {what} {id:?} came {fault} on connection {}",
                    subscription.identifier, arrival.connection
                )
            });
        }
    }
    let stood = |from: Instant, to: Instant| {
        let spans = |stay: &Stay| stay.stood.is_some_and(|stood| stood < from) && stay.ended > to + AROUND;
        record.stays.iter().any(spans)
    };
    for ack in log.transient.values() {
        verdict.transient.count(stood(ack.begun, ack.at), seen.contains(&ack.id));
    }
    let others = whispers
        .sent
        .iter()
        .filter(|((sender, _), whisper)| *sender != client && whisper.stream == subscription.stream);
    for ((sender, n), whisper) in others {
        let heard = seen.iter().any(|id| id.whisperer() == Some(*sender) && id.n == *n);
        verdict.whispers.count(stood(whisper.at - AROUND.min(whisper.at.elapsed()), whisper.at), heard);
    }
}
