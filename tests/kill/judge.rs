//! Compares what was acknowledged with what arrived: every message at every follower, once, in order.

use crate::clients::Record;
use crate::plan::Kind;
use crate::publishers::{Id, Published};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Descriptions kept per kind of fault found.
const EXAMPLES: usize = 8;

/// A count with some examples.
#[derive(Clone, Debug, Default)]
pub struct Finding {
    pub count: u64,
    pub examples: Vec<String>,
}

impl Finding {
    fn add(&mut self, example: impl FnOnce() -> String) {
        self.count += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(example());
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Verdict {
    pub acknowledged: u64,
    /// (message, subscription) pairs that had to arrive.
    pub expected: u64,
    pub arrived: u64,
    pub missing: Finding,
    pub doubled: Finding,
    pub disordered: Finding,
    /// Arrived with another position than was acknowledged, or acknowledged out of order, or under two epochs.
    pub positions: Finding,
    /// Refusals, rejected history, `disconnect`, frames out of the protocol.
    pub surprises: Finding,
    pub publishing: Finding,
    /// Copies cut apart by a drop where two identifiers share a stream; the one allowance.
    pub excused: u64,
    /// Stored messages that arrived without a position (allowed to a second identifier that catches up).
    pub unpositioned: u64,
    pub reject_history: u32,
    pub disconnects: u32,
    pub drops: u64,
    pub losses: u64,
    pub restored: u64,
    pub fresh: u64,
    pub silences: u64,
}

impl Verdict {
    /// One line per kind of broken promise; empty if all were kept.
    pub fn failures(&self) -> Vec<String> {
        [
            ("missing", &self.missing),
            ("doubled", &self.doubled),
            ("out of order", &self.disordered),
            ("wrong position", &self.positions),
            ("surprise", &self.surprises),
            ("publishing", &self.publishing),
        ]
        .into_iter()
        .filter(|(_, finding)| finding.count > 0)
        .map(|(name, finding)| format!("{name}: {}\n    {}", finding.count, finding.examples.join("\n    ")))
        .collect()
    }
}

/// Epoch and offset of the messages of one stream.
type Acknowledged = BTreeMap<Id, (String, u64)>;

pub fn judge(published: &[Published], records: &[Record]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut streams: HashMap<&str, Acknowledged> = HashMap::new();
    for source in published {
        streams.entry(&source.stream).or_default().extend(acknowledged(source, &mut verdict));
    }
    let epochs: BTreeSet<_> = streams.values().flat_map(Acknowledged::values).map(|(epoch, _)| epoch).collect();
    if epochs.len() > 1 {
        verdict.positions.add(|| format!("acknowledged under several epochs: {epochs:?}"));
    }
    for record in records {
        judge_client(record, &streams, &mut verdict);
    }
    verdict
}

fn acknowledged(source: &Published, verdict: &mut Verdict) -> Acknowledged {
    for error in &source.errors {
        verdict.publishing.add(|| error.clone());
    }
    for pair in source.acks.windows(2) {
        let [before, after] = pair else { continue };
        if before.epoch != after.epoch || before.offset >= after.offset {
            verdict.positions.add(|| format!("{}: {before:?} acknowledged before {after:?}", source.stream));
        }
    }
    verdict.acknowledged += source.acks.len() as u64;
    source.acks.iter().map(|ack| (ack.id, (ack.epoch.clone(), ack.offset))).collect()
}

fn judge_client(record: &Record, streams: &HashMap<&str, Acknowledged>, verdict: &mut Verdict) {
    let client = record.follower.id;
    verdict.drops += record.ended.iter().filter(|end| end.by_client).count() as u64;
    verdict.losses += record.ended.iter().filter(|end| !end.by_client).count() as u64;
    verdict.restored += u64::from(record.restored);
    verdict.fresh += u64::from(record.fresh);
    verdict.silences += u64::from(record.silences);
    verdict.reject_history += record.reject_history;
    verdict.disconnects += record.disconnects;
    for surprise in &record.surprises {
        verdict.surprises.add(|| format!("client {client}: {surprise}"));
    }
    let mut excuses = Excuses::of(record);
    for (follow, subscription) in record.follower.follows.iter().enumerate() {
        let none = Acknowledged::new();
        let acks = streams.get(subscription.stream.as_str()).unwrap_or(&none);
        let mut seen = BTreeSet::new();
        let mut highest = 0;
        for arrival in record.arrivals.iter().filter(|arrival| arrival.follow == follow) {
            let ack = acks.get(&arrival.id);
            let describe = || {
                let (id, connection) = (arrival.id, arrival.connection);
                format!("client {client} {} {id:?} {ack:?} on connection {connection}", subscription.identifier)
            };
            verdict.arrived += 1;
            match (&arrival.position, ack) {
                (None, _) => verdict.unpositioned += 1,
                (Some(at), Some(ack)) if at != ack => verdict.positions.add(|| format!("{}: at {at:?}", describe())),
                _ => {}
            }
            let offset = ack.or(arrival.position.as_ref()).map_or(highest, |(_, offset)| *offset);
            if !seen.insert(arrival.id) {
                if excuses.take(&subscription.stream, ack) {
                    verdict.excused += 1;
                } else {
                    verdict.doubled.add(describe);
                }
            } else if offset < highest {
                verdict.disordered.add(|| format!("{} after offset {highest}", describe()));
            } else {
                highest = offset;
            }
        }
        verdict.expected += acks.len() as u64;
        for (id, ack) in acks.iter().filter(|(id, _)| !seen.contains(id)) {
            if excuses.take(&subscription.stream, Some(ack)) {
                verdict.excused += 1;
            } else {
                verdict.missing.add(|| format!("client {client} {} {id:?} at {ack:?}", subscription.identifier));
            }
        }
    }
}

/// A drop may cut the copies of one message apart where two identifiers share a stream: the client's position is then
/// that message, though one identifier has not seen it. One copy per stream and drop.
struct Excuses(HashMap<(String, u64), u32>);

impl Excuses {
    fn of(record: &Record) -> Self {
        let mut left = HashMap::new();
        if record.follower.kind == Kind::Double {
            let shared = &record.follower.follows[0].stream;
            for end in &record.ended {
                if let Some(offset) = end.positions.get(shared) {
                    *left.entry((shared.clone(), *offset)).or_insert(0) += 1;
                }
            }
        }
        Self(left)
    }

    fn take(&mut self, stream: &str, ack: Option<&(String, u64)>) -> bool {
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
