//! The figures of a run, for people and for programs.

use super::features::{Exercised, Features};
use super::live::Times;
use super::run::Outcome;
use super::transient::Passing;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// What a run has shown. Serialized it is the machine-readable report.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Names of what was violated; empty: everything promised was kept.
    pub violations: Vec<&'static str>,
    pub features: Features,
    /// Names of features that were asked for and that the server does not have.
    pub lacking: Vec<&'static str>,
    /// Names of what was asked for, and that the run never came to do.
    pub not_exercised: Vec<&'static str>,
    pub exercised: Exercised,
    pub seed: u64,
    pub published: u64,
    pub acked: u64,
    /// Published without an acknowledgement in time: nothing was promised.
    pub unacknowledged: u64,
    /// Attempts that were not the first of their publication.
    pub retries: u64,
    /// Acknowledgements that said "had it already".
    pub duplicate_acks: u64,
    pub longest_ack_gap_ms: u64,
    /// (acknowledged message, subscription) pairs.
    pub expected: u64,
    pub delivered: u64,
    /// Acknowledged and not delivered.
    pub lost: u64,
    /// Lost, and no `reject_history` tells of it.
    pub unsignalled: u64,
    pub duplicated: u64,
    pub reordered: u64,
    pub wrong_positions: u64,
    /// `reject_history` answers.
    pub rejects: u64,
    /// Those of them to clients whose position was provably complete; 0 where the limits are not known.
    pub false_alarms: u64,
    /// Arrived although the server had said that they are not stored.
    pub unstored: u64,
    /// Arrived later than a connection that stands may wait.
    pub late: u64,
    /// Whispers and transient messages with a position, twice, or where they must not come.
    pub misdirected: u64,
    pub transient: Passing,
    pub whispers: Passing,
    /// Messages kept from the client that was excluded, and those that reached it.
    pub excluded: u64,
    pub not_excluded: u64,
    /// Remote disconnects that were acknowledged, and those that a session survived.
    pub removals: u64,
    pub revived: u64,
    /// Deliveries to clients of the base protocol, what a connection of one should have brought, and what the limits may
    /// have removed before.
    pub base_delivered: u64,
    pub base_lost: u64,
    pub base_removed: u64,
    /// Lost by clients that came back with neither session nor position.
    pub by_time: u64,
    /// Stored twice because the limits had removed the first copy when its publication was tried again.
    pub forgotten: u64,
    /// From the acknowledgement to the arrival on a connection that stood.
    pub live_ms: Percentiles,
    /// Copies of a message cut apart by a drop where two identifiers share a stream.
    pub excused: u64,
    /// Delivered without a position, though the server has them.
    pub unpositioned: u64,
    /// Refused subscriptions and publications, frames out of the protocol.
    pub surprises: u64,
    /// Epochs seen; more than one: the log began anew.
    pub epochs: usize,
    /// Connections that clients dropped.
    pub drops: u64,
    /// Connections that the server or the network ended.
    pub connections_lost: u64,
    /// Those of them on which nothing was heard for two ping intervals.
    pub silences: u64,
    /// `disconnect` messages that nobody asked for.
    pub disconnects: u64,
    /// Returns with the session restored.
    pub restored: u64,
    /// Returns with everything subscribed anew.
    pub resubscribed: u64,
    /// Returns with a clock that was wrong on purpose.
    pub skewed_returns: u64,
    pub resume_ms: Percentiles,
    /// Some of what was found, by kind.
    pub examples: BTreeMap<&'static str, Vec<String>>,
}

/// Of times in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Percentiles {
    pub count: usize,
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
}

impl Percentiles {
    pub fn of_many(times: &Times) -> Self {
        let at = |share| millis(times.percentile(share));
        let count = usize::try_from(times.count()).unwrap_or(usize::MAX);
        Self { count, p50: at(0.5), p99: at(0.99), max: millis(times.longest()) }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Report {
    /// `losses_may_be_told`: messages lost are no violation where `reject_history` tells of them.
    pub fn new(outcome: &Outcome, features: Features, seed: u64, losses_may_be_told: bool) -> Self {
        let v = &outcome.verdict;
        let surprises = v.surprises.count + v.publishing.count;
        let lost = if losses_may_be_told { v.unsignalled.count } else { v.missing.count };
        let rejects = if losses_may_be_told { 0 } else { v.rejects.count };
        let violations = [
            ("lost", lost),
            ("duplicated", v.doubled.count),
            ("reordered", v.disordered.count),
            ("wrong_positions", v.positions.count),
            ("rejects", rejects),
            ("false_alarms", v.false_alarms.count),
            ("unstored", v.unstored.count),
            ("late", v.late.count),
            ("misdirected", v.misdirected.count),
            ("not_excluded", v.not_excluded.count),
            ("revived", v.revived.count),
            ("base_lost", v.base_missing.count),
            ("disconnects", u64::from(v.disconnects)),
            ("surprises", surprises),
        ];
        Self {
            violations: violations.into_iter().filter_map(|(name, count)| (count > 0).then_some(name)).collect(),
            features,
            lacking: Vec::new(),
            not_exercised: Vec::new(),
            exercised: Exercised { removals: v.removals, base: v.base_arrived, ..v.exercised },
            seed,
            published: v.published,
            acked: v.acknowledged,
            unacknowledged: v.unacknowledged.count,
            retries: v.retries,
            duplicate_acks: v.duplicate_acks,
            longest_ack_gap_ms: millis(outcome.longest_ack_gap),
            expected: v.expected,
            delivered: v.arrived,
            lost: v.missing.count,
            unsignalled: v.unsignalled.count,
            duplicated: v.doubled.count,
            reordered: v.disordered.count,
            wrong_positions: v.positions.count,
            rejects: v.rejects.count,
            false_alarms: v.false_alarms.count,
            unstored: v.unstored.count,
            late: v.late.count,
            misdirected: v.misdirected.count,
            transient: v.transient,
            whispers: v.whispers,
            excluded: v.excluded,
            not_excluded: v.not_excluded.count,
            removals: v.removals,
            revived: v.revived.count,
            base_delivered: v.base_arrived,
            base_lost: v.base_missing.count,
            base_removed: v.base_removed,
            by_time: v.by_time,
            forgotten: v.forgotten,
            live_ms: Percentiles::of_many(&v.live),
            excused: v.excused,
            unpositioned: if features.positions { v.unpositioned } else { 0 },
            surprises,
            epochs: v.epochs.len(),
            drops: v.drops,
            connections_lost: v.losses,
            silences: v.silences,
            disconnects: u64::from(v.disconnects),
            restored: v.restored,
            resubscribed: v.fresh,
            skewed_returns: v.skewed,
            resume_ms: Percentiles::of_many(&outcome.resumes),
            examples: v
                .findings()
                .into_iter()
                .filter(|(_, finding)| finding.count > 0)
                .map(|(name, finding)| (name, finding.examples.clone()))
                .collect(),
        }
    }
}

impl Report {
    /// That the server has these features is part of the promise, and that they were checked.
    #[must_use]
    pub fn requiring(mut self, names: &[String]) -> Self {
        self.lacking = self.features.lacking(names);
        self.not_exercised = self.exercised.lacking(names);
        self.not_exercised.retain(|name| !self.lacking.contains(name));
        for (name, what) in [("lacking", &self.lacking), ("not_exercised", &self.not_exercised)] {
            if !what.is_empty() {
                self.violations.push(name);
            }
        }
        self
    }
}

impl Report {
    /// Where losses may be told and were, their number alarms nobody.
    fn about_lost(&self) -> String {
        let told = self.lost.saturating_sub(self.unsignalled + self.by_time);
        if self.lost == 0 || self.violations.contains(&"lost") {
            return "acked, never delivered".to_owned();
        }
        format!("acked, never delivered; no violation: {told} were told by reject_history")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let missing = self.features.missing();
        if !missing.is_empty() {
            writeln!(f, "the server lacks      {}", missing.join(", "))?;
        }
        if !self.lacking.is_empty() {
            writeln!(f, "which was required    {}", self.lacking.join(", "))?;
        }
        if !self.not_exercised.is_empty() {
            writeln!(f, "required, not checked {}", self.not_exercised.join(", "))?;
        }
        let line = |f: &mut fmt::Formatter<'_>, name: &str, count: u64, note: &str| {
            writeln!(f, "{name:<20} {count:>9}  {note}").map(|()| ())
        };
        let line_if_any = |f: &mut fmt::Formatter<'_>, name: &str, count: u64, note: &str| {
            if count > 0 { line(f, name, count, note) } else { Ok(()) }
        };
        line(f, "published", self.published, "")?;
        let gap = format!("longest gap {} ms, {} retries", self.longest_ack_gap_ms, self.retries);
        line(f, "acked", self.acked, &gap)?;
        line(f, "not acked", self.unacknowledged, "nothing was promised")?;
        line(f, "delivered", self.delivered, &format!("of {} that had to be", self.expected))?;
        line(f, "lost", self.lost, &self.about_lost())?;
        line(f, "unsignalled gaps", self.unsignalled, "lost, and no reject_history tells of it")?;
        line_if_any(f, "by time", self.by_time, "of the lost: clients came back with neither session nor position")?;
        line(f, "duplicated", self.duplicated, "")?;
        line_if_any(f, "forgotten", self.forgotten, "stored again, the limits had removed the first copy")?;
        line(f, "reordered", self.reordered, "")?;
        line(f, "wrong positions", self.wrong_positions, "")?;
        line(f, "rejects", self.rejects, "reject_history")?;
        line(f, "false alarms", self.false_alarms, "rejects where nothing can have been lost")?;
        line(f, "not stored", self.unstored, "arrived though the server had said so")?;
        line(f, "late", self.late, "on connections that stood")?;
        let Percentiles { count, p50, p99, max } = self.live_ms;
        line(f, "live", count as u64, &format!("p50 {p50} ms, p99 {p99} ms, max {max} ms"))?;
        for (name, Passing { expected, arrived, lost }) in [("transient", self.transient), ("whispers", self.whispers)]
        {
            line(f, name, arrived, &format!("{lost} of {expected} lost that connections stood for"))?;
        }
        line(
            f,
            "misdirected",
            self.misdirected,
            "of them: with a position, twice on one connection, or to their sender",
        )?;
        line(f, "excluded", self.excluded, &format!("{} reached the client that was excluded", self.not_excluded))?;
        line(f, "thrown out", self.removals, &format!("{} survived their remote disconnect", self.revived))?;
        line(f, "base clients", self.base_delivered, &format!("delivered, {} lost", self.base_lost))?;
        line_if_any(f, "base removed", self.base_removed, "not brought, the limits may have removed it before")?;
        line(f, "surprises", self.surprises, "refusals, frames out of the protocol")?;
        line(f, "excused copies", self.excused, "cut between two copies of one message")?;
        line(f, "without position", self.unpositioned, "")?;
        let how = format!("{} restored, {} subscribed anew", self.restored, self.resubscribed);
        line(f, "drops by clients", self.drops, &how)?;
        if self.skewed_returns > 0 {
            line(f, "with a wrong clock", self.skewed_returns, "returns")?;
        }
        let how = format!("{} after silence, {} disconnect messages", self.silences, self.disconnects);
        line(f, "connections lost", self.connections_lost, &how)?;
        let Percentiles { count, p50, p99, max } = self.resume_ms;
        line(f, "resumed", count as u64, &format!("p50 {p50} ms, p99 {p99} ms, max {max} ms"))?;
        for (kind, examples) in &self.examples {
            writeln!(f, "{kind}:")?;
            for example in examples {
                writeln!(f, "  {example}")?;
            }
        }
        match self.violations.as_slice() {
            [] => writeln!(f, "PASS: nothing promised was broken (seed {})", self.seed),
            some => writeln!(f, "FAIL: {} (seed {})", some.join(", "), self.seed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::check::{Finding, Verdict};

    #[test]
    fn a_server_without_what_is_required_breaks_a_promise() {
        let without = Features { whispers: true, ..Features::default() };
        let exercised = Exercised { whispers: 1, ..Exercised::default() };
        let verdict = Verdict { exercised, ..Verdict::default() };
        let outcome = Outcome { verdict, ..Outcome::default() };
        let report = |required: &[&str]| {
            let required: Vec<String> = required.iter().map(|name| (*name).to_owned()).collect();
            Report::new(&outcome, without, 1, true).requiring(&required)
        };
        assert!(report(&["whispers"]).violations.is_empty());
        let lacking = report(&["whispers", "exclusion"]);
        assert_eq!((&lacking.lacking, &lacking.violations), (&vec!["exclusion"], &vec!["lacking"]));
        let shown = lacking.to_string();
        assert!(shown.contains("which was required    exclusion\n") && shown.contains("FAIL: lacking"), "{shown}");
    }

    #[test]
    fn what_is_required_and_was_never_done_is_no_success() {
        let all = Features { whispers: true, exclusion: true, removals: true, ..Features::default() };
        let report = |exercised: Exercised, required: &str| {
            let verdict = Verdict { exercised, removals: 1, base_arrived: 1, ..Verdict::default() };
            let outcome = Outcome { verdict, ..Outcome::default() };
            Report::new(&outcome, all, 1, true).requiring(&[required.to_owned()])
        };
        let one = Exercised { whispers: 1, ..Exercised::default() };
        for done in ["whispers", "removals", "base"] {
            assert!(report(one, done).violations.is_empty(), "{done}");
        }
        let never = report(one, "exclusion");
        assert_eq!((&never.violations, &never.not_exercised), (&vec!["not_exercised"], &vec!["exclusion"]));
        assert!(never.to_string().contains("required, not checked exclusion\n"), "{never}");
        assert_eq!(report(one, "batches").violations, ["lacking"], "said once");
    }

    #[test]
    fn losses_that_were_told_are_said_to_be_no_violation() {
        let shown = |missing: u64, unsignalled: u64, may_be_told: bool| {
            let found = |count| Finding { count, examples: Vec::new() };
            let verdict =
                Verdict { missing: found(missing), unsignalled: found(unsignalled), by_time: 2, ..Verdict::default() };
            let outcome = Outcome { verdict, ..Outcome::default() };
            Report::new(&outcome, Features::default(), 1, may_be_told).to_string()
        };
        let told = "acked, never delivered; no violation: 10 were told by reject_history\n";
        let passed = shown(12, 0, true);
        assert!(passed.contains(told) && passed.contains("\nPASS"), "{passed}");
        for (missing, unsignalled, may_be_told) in [(12, 3, true), (12, 0, false), (0, 0, true)] {
            let other = shown(missing, unsignalled, may_be_told);
            assert!(other.contains("acked, never delivered\n"), "{other}");
        }
    }

    #[test]
    fn what_is_excused_is_named_where_there_is_some() {
        let shown = |verdict: Verdict| {
            let outcome = Outcome { verdict, ..Outcome::default() };
            Report::new(&outcome, Features::default(), 1, true).to_string()
        };
        let excused = shown(Verdict { by_time: 40, forgotten: 7, base_removed: 3, silences: 2, ..Verdict::default() });
        for (name, count) in [("by time", 40), ("forgotten", 7), ("base removed", 3)] {
            assert!(excused.contains(&format!("{name:<20} {count:>9}  ")), "{excused}");
            assert!(!shown(Verdict::default()).contains(name));
        }
        assert!(excused.contains("2 after silence"), "{excused}");
    }
}
