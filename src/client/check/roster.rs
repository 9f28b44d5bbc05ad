//! Who follows what, decided by a seed.

use super::credentials::Credentials;
use crate::client::signed::{public_identifier, signed_identifier};
use std::ops::Range;
use std::time::Duration;

/// Sizes and names of a run.
#[derive(Clone, Debug)]
pub struct Roster {
    /// In front of all names, so that runs do not meet.
    pub prefix: String,
    pub seed: u64,
    pub streams: usize,
    pub members: usize,
    /// Members with two identifiers on one stream.
    pub doubles: usize,
    /// Members that have received nothing when they drop for the first time.
    pub silents: usize,
    /// Members that speak the base protocol, beside the others.
    pub bases: usize,
    /// The application's secret, to sign stream names with; none: public streams.
    pub secret: Option<String>,
    pub credentials: Credentials,
}

/// Streams that get their first message while all their followers are away.
pub const SILENT_STREAMS: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Plain,
    Double,
    Silent,
    /// Speaks the base protocol: no positions, no history, no session.
    Base,
}

/// What one member follows.
#[derive(Clone, Debug)]
pub struct Follower {
    pub id: usize,
    pub kind: Kind,
    pub follows: Vec<Follow>,
    pub seed: u64,
}

impl Follower {
    /// Where clocks jump: one client in three stays right (0), one is ahead (1), one behind (-1).
    pub fn clock(&self) -> i64 {
        match self.id % 3 {
            0 => 0,
            1 => 1,
            _ => -1,
        }
    }
}

/// One subscription.
#[derive(Clone, Debug)]
pub struct Follow {
    pub identifier: String,
    pub stream: String,
}

impl Roster {
    pub fn stream_name(&self, index: usize) -> String {
        format!("{}busy/{index}", self.prefix)
    }

    pub fn silent_name(&self, index: usize) -> String {
        format!("{}silent/{index}", self.prefix)
    }

    /// What each member follows: one stream or two; the doubles one of them twice.
    pub fn followers(&self) -> Vec<Follower> {
        let mut dice = Dice::new(self.seed ^ 0xf011_0e55);
        (0..self.members + self.bases)
            .map(|id| {
                let first = dice.below(self.streams as u64) as usize;
                let kind = match id {
                    id if id < self.doubles => Kind::Double,
                    id if id < self.doubles + self.silents => Kind::Silent,
                    id if id >= self.members => Kind::Base,
                    _ => Kind::Plain,
                };
                let mut follows = match kind {
                    Kind::Silent => vec![self.follow(self.silent_name(id % SILENT_STREAMS), "")],
                    Kind::Double => {
                        let stream = self.stream_name(first);
                        vec![self.follow(stream.clone(), ""), self.follow(stream, "component")]
                    }
                    Kind::Plain | Kind::Base => vec![self.follow(self.stream_name(first), "")],
                };
                // Every second one follows another stream too; silent ones must not hear of anything.
                if kind != Kind::Silent && self.streams > 1 && dice.below(2) == 0 {
                    let second = (first + 1 + dice.below(self.streams as u64 - 1) as usize) % self.streams;
                    follows.push(self.follow(self.stream_name(second), ""));
                }
                Follower { id, kind, follows, seed: dice.roll() }
            })
            .collect()
    }

    /// `part` makes a second identifier on the same stream.
    fn follow(&self, stream: String, part: &str) -> Follow {
        let mut identifier = self
            .secret
            .as_ref()
            .map_or_else(|| public_identifier(&stream), |secret| signed_identifier(secret, &stream));
        if !part.is_empty() {
            // Unknown keys make another identifier of the same channel.
            identifier.insert_str(1, &format!(r#""part":"{part}","#));
        }
        Follow { identifier, stream }
    }
}

/// Repeatable chance (splitmix64).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 up to but not including `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }

    pub fn within(&mut self, range: &Range<Duration>) -> Duration {
        let width = u64::try_from(range.end.saturating_sub(range.start).as_micros()).unwrap_or(u64::MAX).max(1);
        range.start + Duration::from_micros(self.below(width))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_roster_has_the_members_that_matter() {
        let roster = Roster {
            prefix: String::new(),
            seed: 1,
            streams: 20,
            members: 200,
            doubles: 30,
            silents: 24,
            bases: 10,
            secret: None,
            credentials: Credentials::Common,
        };
        let followers = roster.followers();
        let of = |kind| followers.iter().filter(|follower| follower.kind == kind).count();
        assert_eq!((followers.len(), of(Kind::Double), of(Kind::Silent), of(Kind::Base)), (210, 30, 24, 10));
        for follower in &followers {
            let streams: std::collections::BTreeSet<_> = follower.follows.iter().map(|follow| &follow.stream).collect();
            assert!((1..=2).contains(&streams.len()), "{follower:?}");
            let doubled = follower.follows.len() > streams.len();
            assert_eq!(doubled, follower.kind == Kind::Double, "{follower:?}");
        }
        let one = Roster { streams: 1, ..roster };
        assert!(
            one.followers()
                .iter()
                .all(|follower| follower.follows.len() == 1 + usize::from(follower.kind == Kind::Double))
        );
    }
}
