//! When is a position complete? Offsets are not contiguous, so that nothing is missing after a position must be proved.

use crate::broker::{Behind, StoreTime};
use crate::protocol::{Epoch, Position};
use std::time::Duration;

/// A confirmed look at a stream's head, worth keeping: a position at or above `head` lost nothing as long as nothing
/// stored after `last` has aged out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Proof {
    /// The stream's newest offset then; no message of the stream lay in `(head, last]`.
    pub head: u64,
    /// How far the log had come in the same answer.
    pub last: u64,
    /// Revision of the history policy then.
    pub revision: u64,
    /// When the message at `last` was stored: whatever came behind it was stored later.
    pub time: StoreTime,
}

impl Proof {
    /// The stream's newest message up to `x`, if this look knows it.
    pub fn newest_up_to(&self, x: u64) -> Option<u64> {
        (self.head > 0 && (self.head..=self.last).contains(&x)).then_some(self.head)
    }
}

/// A proof as a session keeps it: it says nothing about another life of the log, or about another log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedProof {
    pub epoch: Epoch,
    pub proof: Proof,
}

impl SavedProof {
    /// The proof, if it is about this position's epoch.
    pub fn of(&self, position: &Position) -> Option<&Proof> {
        (self.epoch == position.epoch).then_some(&self.proof)
    }
}

/// Time that clocks and timers may be off within one proof.
pub fn margin(ttl: Duration) -> Duration {
    (ttl / 10).min(Duration::from_secs(2))
}

/// Nothing that was stored after `since` can have reached the age `ttl` by `now`. Both are the store's times: how long this
/// process took to look at them is of no matter. `skew`: how far the clocks of two servers may differ.
pub fn is_younger(since: StoreTime, now: StoreTime, ttl: Duration, skew: Duration) -> bool {
    if since.millis == 0 || now.millis == 0 {
        return false;
    }
    let same_clock = since.clock == now.clock && since.clock != 0;
    let skew = if same_clock { Duration::ZERO } else { skew };
    let passed = Duration::from_millis(now.millis.saturating_sub(since.millis));
    passed.saturating_add(margin(ttl)).saturating_add(skew) < ttl
}

/// Nothing after position `x` was removed before `behind` was answered. Each ground alone suffices; without one the past
/// cannot be proved.
pub fn is_complete_after(x: u64, behind: &Behind, proof: Option<&Proof>) -> bool {
    let Behind { kept, after, next, facts } = behind;
    // Nothing lies between `x` and the message after it.
    if *kept || next.is_some_and(|next| next == x.saturating_add(1)) {
        return true;
    }
    let under_limit = *after < facts.limit;
    // Removal by age runs from the log's front, removal by count only happens at the limit.
    let never_aged = x.saturating_add(1) >= facts.first_seq && x >= facts.raised_at;
    let proved = proof.is_some_and(|proof| {
        let aged = facts.first_seq > proof.last.saturating_add(1);
        let unaged = !aged || is_younger(proof.time, facts.now, facts.ttl, facts.skew);
        x >= proof.head && proof.revision == facts.revision && unaged
    });
    under_limit && (never_aged || proved)
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::broker::Facts;

    fn at(millis: u64) -> StoreTime {
        StoreTime { millis, clock: 1 }
    }

    fn facts() -> Facts {
        Facts {
            first_seq: 50,
            last_seq: 100,
            limit: 10,
            ttl: Duration::from_secs(300),
            revision: 1,
            raised_at: 0,
            now: at(1_000_000),
            stored: at(1_000_000),
            skew: Duration::ZERO,
        }
    }

    fn gone(after: u64) -> Behind {
        Behind { kept: false, after, next: None, facts: facts() }
    }

    #[test]
    fn a_kept_message_or_an_untouched_log_front_proves() {
        assert!(is_complete_after(20, &Behind { kept: true, ..gone(10) }, None));
        assert!(is_complete_after(49, &gone(3), None));
        assert!(!is_complete_after(48, &gone(3), None));
    }

    /// A time is found as the position before the first message that was stored then.
    #[test]
    fn the_message_after_a_position_proves_if_it_is_kept() {
        let full = Behind { next: Some(61), ..gone(10) };
        assert!(is_complete_after(60, &full, None));
        assert!(!is_complete_after(59, &full, None));
    }

    #[test]
    fn a_look_knows_the_newest_message_up_to_where_it_reached() {
        let proof = Proof { head: 30, last: 49, ..Proof::default() };
        assert_eq!([29, 30, 49, 50].map(|x| proof.newest_up_to(x)), [None, Some(30), Some(30), None]);
        assert_eq!(Proof { head: 0, ..proof }.newest_up_to(40), None, "none was kept");
    }

    #[test]
    fn a_full_stream_proves_nothing() {
        assert!(!is_complete_after(60, &gone(10), None));
    }

    #[test]
    fn counting_proves_nothing_below_the_last_rise_of_a_limit() {
        let raised = Behind { facts: Facts { raised_at: 70, ..facts() }, ..gone(3) };
        assert!(!is_complete_after(60, &raised, None));
        assert!(is_complete_after(70, &raised, None));
    }

    #[test]
    fn a_saved_proof_says_nothing_about_another_life_of_the_log() {
        let saved = SavedProof { epoch: "e1".into(), proof: Proof::default() };
        let position = |epoch: &str| Position { epoch: epoch.into(), offset: 5 };
        assert!(saved.of(&position("e1")).is_some());
        assert_eq!(saved.of(&position("e2")), None);
    }

    #[test]
    fn a_saved_proof_holds_until_something_after_it_may_have_aged_out() {
        let proof = Proof { head: 30, last: 49, revision: 1, time: StoreTime::default() };
        assert!(is_complete_after(30, &gone(3), Some(&proof)), "first_seq <= last + 1");
        assert!(!is_complete_after(29, &gone(3), Some(&proof)), "below the confirmed head");
        let older = Proof { last: 48, ..proof };
        assert!(!is_complete_after(30, &gone(3), Some(&older)));
        let recent = Proof { time: at(900_000), ..older };
        assert!(is_complete_after(30, &gone(3), Some(&recent)), "less than ttl passed");
        let revised = Proof { revision: 2, ..recent };
        assert!(!is_complete_after(30, &gone(3), Some(&revised)));
    }

    #[test]
    fn times_of_two_servers_count_only_within_the_difference_of_their_clocks() {
        let ttl = Duration::from_secs(10);
        let (since, skew) = (at(1_000), Duration::from_secs(3));
        let other = |millis| StoreTime { millis, clock: 2 };
        assert!(is_younger(since, at(9_900), ttl, skew), "one clock");
        assert!(is_younger(since, other(6_900), ttl, skew));
        assert!(!is_younger(since, other(7_100), ttl, skew));
        assert!(!is_younger(since, StoreTime::of_message(7_100), ttl, skew), "nobody knows whose clock");
        assert!(!is_younger(StoreTime::default(), at(1_001), ttl, skew), "an unknown time proves nothing");
        assert!(!is_younger(since, StoreTime::default(), ttl, skew));
    }
}
