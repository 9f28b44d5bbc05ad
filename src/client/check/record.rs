//! What a client writes down of everything that reaches it.

use super::numbers::Numbers;
use super::roster::Follower;
use super::source::{Ack, Id};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A message as it reached a client.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Index in [`Follower::follows`].
    pub follow: usize,
    pub id: Id,
    /// Epoch and offset.
    pub position: Option<(Arc<str>, u64)>,
    /// Counts the client's connections within a record from 1; 0: one that ended before.
    pub connection: u32,
    pub at: Instant,
}

/// A message of an earlier turn of the run as it reached a client, where a second copy may come yet.
#[derive(Clone, Debug)]
pub struct Had {
    pub arrival: Arrival,
    /// It came when it was stored.
    pub live: bool,
    /// How many messages at most have been stored after it by the end of the last turn.
    pub after: u64,
}

/// An acknowledged message of an earlier turn that was still on its way to a connection which goes on.
#[derive(Clone, Debug)]
pub struct Undelivered {
    /// Index in [`Follower::follows`].
    pub follow: usize,
    pub ack: Ack,
    /// How many messages at most have been stored after it by the end of the last turn.
    pub after: u64,
}

/// The server said that messages of a subscription are lost.
#[derive(Clone, Copy, Debug)]
pub struct Reject {
    /// Index in [`Follower::follows`].
    pub follow: usize,
    /// Arrivals of the member before it.
    pub after: usize,
    /// Counts the client's connections, as in [`Arrival`].
    pub connection: u32,
    pub at: Instant,
}

/// The server sent the client away, to come back.
#[derive(Clone, Copy, Debug)]
pub struct Disconnect {
    /// Number of the session that it ended.
    pub session: u32,
    pub at: Instant,
}

/// A whisper, as its sender knows it.
#[derive(Clone, Debug)]
pub struct Whisper {
    pub n: u64,
    pub stream: String,
    /// Number of the sender's session.
    pub session: u32,
    pub at: Instant,
}

/// A connection, once it has ended.
#[derive(Clone, Debug)]
pub struct Stay {
    /// When the server named the session; the number below is that of the one before until then.
    pub welcomed: Option<Instant>,
    /// When every subscription stood and had its history; `None` if it never came to that.
    pub stood: Option<Instant>,
    pub ended: Instant,
    /// A return whose session was not restored.
    pub fresh: bool,
    /// Number of the client's session.
    pub session: u32,
    /// Which of the client's ids it had; they are counted from 1.
    pub sid: u32,
    /// `None`: the run ended it.
    pub by_client: Option<bool>,
    /// Stream ⇒ offset of the client's position at the end, for clients with two identifiers on one stream.
    pub positions: BTreeMap<String, u64>,
}

/// Everything a member saw since the last turn of the run.
#[derive(Clone, Debug)]
pub struct Record {
    pub follower: Follower,
    /// What it had before: of each subscription the last message with a position, in order of time.
    pub earlier: Vec<Arrival>,
    /// Of the connection that it still has: subscription and lane ⇒ the highest number that it had brought before.
    pub brought: BTreeMap<(usize, u16), u64>,
    /// What it had before of messages that earlier turns left without an answer; the run knows which.
    pub open: Vec<Had>,
    /// Subscription and lane ⇒ what the turn before has given up as missing; the run knows it, too.
    pub missing: BTreeMap<(usize, u16), Numbers>,
    /// What the turn before could not judge yet, of a client of the base protocol.
    pub undelivered: Vec<Undelivered>,
    pub arrivals: Vec<Arrival>,
    /// In order; [`Arrival::connection`] counts them from 1.
    pub stays: Vec<Stay>,
    pub restored: u32,
    /// Returns with a session id that was not restored.
    pub fresh: u32,
    /// What a healthy server never does: refused subscriptions, being sent away, frames out of the protocol.
    pub surprises: Vec<String>,
    pub rejects: Vec<Reject>,
    /// From the first attempt to come back until every subscription stood and had its history.
    pub resumes: Vec<Duration>,
    pub disconnects: Vec<Disconnect>,
    /// How much it had whispered before.
    pub whispered_before: u64,
    /// What it whispered.
    pub whispers: Vec<Whisper>,
    /// Connections that heard nothing for two ping intervals.
    pub silences: u32,
    /// Returns with a clock that is wrong.
    pub skewed: u32,
}

impl Record {
    /// The connection on which something arrived, if it was one of this turn.
    pub fn stay(&self, arrival: &Arrival) -> Option<&Stay> {
        self.stays.get(usize::try_from(arrival.connection).ok()?.checked_sub(1)?)
    }

    /// The turn before has given it up as missing here.
    pub fn was_missing(&self, follow: usize, id: Id) -> bool {
        self.missing.get(&(follow, id.lane)).is_some_and(|numbers| numbers.contains(id.n))
    }

    /// Of somebody who has seen nothing yet.
    pub fn new(follower: Follower) -> Self {
        Self {
            follower,
            earlier: Vec::new(),
            brought: BTreeMap::new(),
            open: Vec::new(),
            missing: BTreeMap::new(),
            undelivered: Vec::new(),
            arrivals: Vec::new(),
            stays: Vec::new(),
            restored: 0,
            fresh: 0,
            surprises: Vec::new(),
            rejects: Vec::new(),
            resumes: Vec::new(),
            disconnects: Vec::new(),
            whispered_before: 0,
            whispers: Vec::new(),
            silences: 0,
            skewed: 0,
        }
    }

    /// The record after this one, which keeps what the client still knows. `connected`: on the connection that it has.
    pub fn next(&self, connected: bool) -> Self {
        // Both lists count connections in the same way.
        let last = u32::try_from(self.stays.len()).unwrap_or(u32::MAX);
        let of_follow = |follow| {
            let all = self.earlier.iter().chain(&self.arrivals);
            let found = all.rev().find(|arrival| arrival.follow == follow && arrival.position.is_some())?;
            let connection = u32::from(connected && found.connection == last);
            Some(Arrival { connection, ..found.clone() })
        };
        let mut earlier: Vec<Arrival> = (0..self.follower.follows.len()).filter_map(of_follow).collect();
        earlier.sort_by_key(|arrival| arrival.at);
        let goes_on = |connection: u32| connected && connection == last;
        let mut brought = if goes_on(1) { self.brought.clone() } else { BTreeMap::new() };
        for arrival in self.arrivals.iter().filter(|arrival| goes_on(arrival.connection) && arrival.id.is_stored()) {
            let highest = brought.entry((arrival.follow, arrival.id.lane)).or_default();
            *highest = arrival.id.n.max(*highest);
        }
        let whispered = u64::try_from(self.whispers.len()).unwrap_or(u64::MAX);
        Self {
            earlier,
            brought,
            whispered_before: self.whispered_before.saturating_add(whispered),
            ..Self::new(self.follower.clone())
        }
    }
}
