//! What a run has shown, in counts and examples.

use super::features::Exercised;
use super::live::Times;
use super::transient::Passing;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Descriptions kept per kind of fault found.
const EXAMPLES: usize = 8;

/// A count with some examples.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Finding {
    pub count: u64,
    pub examples: Vec<String>,
}

impl Finding {
    pub(super) fn add(&mut self, example: impl FnOnce() -> String) {
        self.count += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(example());
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Verdict {
    pub published: u64,
    pub acknowledged: u64,
    pub duplicate_acks: u64,
    pub retries: u64,
    /// Published without an acknowledgement in time.
    pub unacknowledged: Finding,
    /// (message, subscription) pairs that had to arrive.
    pub expected: u64,
    pub arrived: u64,
    /// Acknowledged and never delivered.
    pub missing: Finding,
    /// Those of them that no `reject_history` tells of.
    pub unsignalled: Finding,
    pub doubled: Finding,
    pub disordered: Finding,
    /// Arrived with another position than was acknowledged, or acknowledged out of order.
    pub positions: Finding,
    /// Epochs of acknowledgements and arrivals; more than one: the log began anew.
    pub epochs: BTreeSet<Arc<str>>,
    /// `reject_history`.
    pub rejects: Finding,
    /// Those of them to clients whose position was provably complete.
    pub false_alarms: Finding,
    /// Arrived although every attempt to publish them was answered "not stored".
    pub unstored: Finding,
    /// Arrived too late on a connection that stood all the time, or only on a later one.
    pub late: Finding,
    /// From the acknowledgement to the arrival on a connection that stood before the message was published.
    pub live: Times,
    /// A whisper or transient message with a position, twice, or where it must not come.
    pub misdirected: Finding,
    pub transient: Passing,
    pub whispers: Passing,
    /// A message that reached the client that was excluded from it.
    pub not_excluded: Finding,
    /// Messages kept from the client that was excluded.
    pub excluded: u64,
    pub exercised: Exercised,
    /// Remote disconnects that were acknowledged, and those that a session survived.
    pub removals: u64,
    pub revived: Finding,
    /// Deliveries to clients of the base protocol, and what a connection of one should have brought.
    pub base_arrived: u64,
    pub base_missing: Finding,
    /// Not brought where the limits may have removed it meanwhile.
    pub base_removed: u64,
    /// Missed by clients that came back with neither session nor position: they catch up by time, which tells no losses.
    pub by_time: u64,
    /// Stored a second time by a retry, when the limits had removed the first one; at base clients, when it had expired
    /// between their arrivals.
    pub forgotten: u64,
    /// Refusals, being sent away, frames out of the protocol.
    pub surprises: Finding,
    /// Publications refused or answered strangely.
    pub publishing: Finding,
    /// Copies cut apart by a drop where two identifiers share a stream; the one allowance.
    pub excused: u64,
    /// Messages that arrived without a position (allowed to a second identifier that catches up).
    pub unpositioned: u64,
    /// `disconnect` messages that nobody asked for.
    pub disconnects: u32,
    pub drops: u64,
    pub losses: u64,
    pub restored: u64,
    pub fresh: u64,
    pub silences: u64,
    /// Returns with a clock that is wrong.
    pub skewed: u64,
}

/// Every kind of finding, by name: of a verdict to read, or (`mut`) to add to.
macro_rules! kinds {
    ($verdict:ident $(, $mutable:tt)?) => {
        [
            ("misdirected", &$($mutable)? $verdict.misdirected),
            ("not excluded", &$($mutable)? $verdict.not_excluded),
            ("revived", &$($mutable)? $verdict.revived),
            ("missing at base clients", &$($mutable)? $verdict.base_missing),
            ("not told", &$($mutable)? $verdict.unsignalled),
            ("false alarm", &$($mutable)? $verdict.false_alarms),
            ("arrived though not stored", &$($mutable)? $verdict.unstored),
            ("late", &$($mutable)? $verdict.late),
            ("missing", &$($mutable)? $verdict.missing),
            ("doubled", &$($mutable)? $verdict.doubled),
            ("out of order", &$($mutable)? $verdict.disordered),
            ("wrong position", &$($mutable)? $verdict.positions),
            ("history rejected", &$($mutable)? $verdict.rejects),
            ("surprise", &$($mutable)? $verdict.surprises),
            ("publishing", &$($mutable)? $verdict.publishing),
            ("not acknowledged", &$($mutable)? $verdict.unacknowledged),
        ]
    };
}

impl Verdict {
    /// What was found, by name; counts of 0 included.
    pub fn findings(&self) -> [(&'static str, &Finding); 16] {
        kinds!(self)
    }

    fn findings_mut(&mut self) -> [(&'static str, &mut Finding); 16] {
        kinds!(self, mut)
    }

    /// Adds what another turn of the same run has shown.
    pub fn merge(&mut self, mut other: Self) {
        for ((_, sum), (_, more)) in self.findings_mut().into_iter().zip(other.findings_mut()) {
            sum.count += more.count;
            let room = EXAMPLES.saturating_sub(sum.examples.len());
            sum.examples.extend(more.examples.drain(..).take(room));
        }
        self.published += other.published;
        self.acknowledged += other.acknowledged;
        self.duplicate_acks += other.duplicate_acks;
        self.retries += other.retries;
        self.expected += other.expected;
        self.arrived += other.arrived;
        self.live.merge(&other.live);
        self.transient.merge(other.transient);
        self.whispers.merge(other.whispers);
        self.excluded += other.excluded;
        self.exercised.add(other.exercised);
        self.removals += other.removals;
        self.base_arrived += other.base_arrived;
        self.base_removed += other.base_removed;
        self.by_time += other.by_time;
        self.forgotten += other.forgotten;
        self.epochs.append(&mut other.epochs);
        self.excused += other.excused;
        self.unpositioned += other.unpositioned;
        self.disconnects += other.disconnects;
        self.drops += other.drops;
        self.losses += other.losses;
        self.restored += other.restored;
        self.fresh += other.fresh;
        self.silences += other.silences;
        self.skewed += other.skewed;
    }

    /// One line per kind of broken promise, for a run in which nothing may be lost; empty if all were kept.
    pub fn failures(&self) -> Vec<String> {
        let found = self.findings().into_iter().filter(|(_, finding)| finding.count > 0);
        let mut failures: Vec<_> = found
            .map(|(name, finding)| format!("{name}: {}\n    {}", finding.count, finding.examples.join("\n    ")))
            .collect();
        if self.disconnects > 0 {
            failures.push(format!("disconnect messages: {}", self.disconnects));
        }
        if self.epochs.len() > 1 {
            failures.push(format!("several epochs: {:?}", self.epochs));
        }
        failures
    }
}
