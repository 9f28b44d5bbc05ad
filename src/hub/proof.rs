//! When is a position complete? Offsets are not contiguous, so that nothing is missing after a position must be proved.

use crate::broker::{Behind, Facts};
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
    /// The store's clock then, Unix milliseconds; 0 if it was not asked.
    pub time: u64,
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

/// Nothing after position `x` was removed. Each ground alone suffices; without one the past cannot be proved.
pub fn is_complete_after(x: u64, behind: Behind, facts: &Facts, proof: Option<&Proof>) -> bool {
    if behind.kept {
        return true;
    }
    let under_limit = behind.after < facts.limit;
    // Removal by age runs from the log's front, removal by count only happens at the limit.
    let never_aged = x.saturating_add(1) >= facts.first_seq && x >= facts.raised_at;
    let proved = proof.is_some_and(|proof| {
        let fresh = proof.time > 0 && {
            let passed = Duration::from_millis(facts.now.saturating_sub(proof.time));
            passed + margin(facts.ttl) < facts.ttl
        };
        x >= proof.head && proof.revision == facts.revision && (facts.first_seq <= proof.last + 1 || fresh)
    });
    under_limit && (never_aged || proved)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            first_seq: 50,
            last_seq: 100,
            limit: 10,
            ttl: Duration::from_secs(300),
            revision: 1,
            raised_at: 0,
            now: 1_000_000,
        }
    }

    const NOT_KEPT: Behind = Behind { kept: false, after: 3 };

    #[test]
    fn a_kept_message_or_an_untouched_log_front_proves() {
        assert!(is_complete_after(20, Behind { kept: true, after: 10 }, &facts(), None));
        assert!(is_complete_after(49, NOT_KEPT, &facts(), None));
        assert!(!is_complete_after(48, NOT_KEPT, &facts(), None));
    }

    #[test]
    fn a_full_stream_proves_nothing() {
        assert!(!is_complete_after(60, Behind { kept: false, after: 10 }, &facts(), None));
    }

    #[test]
    fn counting_proves_nothing_below_the_last_rise_of_a_limit() {
        let raised = Facts { raised_at: 70, ..facts() };
        assert!(!is_complete_after(60, NOT_KEPT, &raised, None));
        assert!(is_complete_after(70, NOT_KEPT, &raised, None));
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
        let proof = Proof { head: 30, last: 49, revision: 1, time: 0 };
        assert!(is_complete_after(30, NOT_KEPT, &facts(), Some(&proof)), "first_seq <= last + 1");
        assert!(!is_complete_after(29, NOT_KEPT, &facts(), Some(&proof)), "below the confirmed head");
        let older = Proof { last: 48, ..proof };
        assert!(!is_complete_after(30, NOT_KEPT, &facts(), Some(&older)));
        let recent = Proof { time: 900_000, ..older };
        assert!(is_complete_after(30, NOT_KEPT, &facts(), Some(&recent)), "less than ttl passed");
        let revised = Proof { revision: 2, ..recent };
        assert!(!is_complete_after(30, NOT_KEPT, &facts(), Some(&revised)));
    }
}
