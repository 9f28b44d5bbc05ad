//! What shows that a fault acted, gathered while it strikes.

use std::fmt;

/// Facts of one row. A required fact that is not there fails the row, whatever the checker says.
#[derive(Debug, Default)]
pub struct Proof {
    shown: Vec<String>,
    missing: Vec<String>,
    /// At least one fact was required and holds.
    proves: bool,
}

impl Proof {
    /// A fact that is told and proves nothing.
    pub fn note(&mut self, fact: impl Into<String>) {
        self.shown.push(fact.into());
    }

    /// A fact without which the fault has not acted, or has done what it must not.
    pub fn require(&mut self, holds: bool, fact: impl Into<String>) {
        if holds {
            self.proves = true;
            self.shown.push(fact.into());
        } else {
            self.missing.push(fact.into());
        }
    }

    /// Why the row proves nothing; empty if it does.
    pub fn gaps(&self) -> Vec<String> {
        let mut gaps: Vec<String> = self.missing.iter().map(|fact| format!("not shown: {fact}")).collect();
        if !self.proves && gaps.is_empty() {
            gaps.push("nothing proves that the fault acted".to_owned());
        }
        gaps
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown.join("; "))
    }
}

#[test]
fn a_row_without_proof_says_so() {
    let mut proof = Proof::default();
    proof.note("something was tried");
    assert_eq!(proof.gaps(), ["nothing proves that the fault acted"]);
    proof.require(true, "process 1 ⇒ 2");
    assert!(proof.gaps().is_empty());
    proof.require(false, "an election");
    assert_eq!(proof.gaps(), ["not shown: an election"]);
    assert_eq!(proof.to_string(), "something was tried; process 1 ⇒ 2");
}
