//! What a run watches of its members while it runs.

use super::roster::Follower;
use super::source::{Excluded, Id};
use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use tokio::sync::watch;
use tokio::time::Instant;

/// What the run watches while it runs.
#[derive(Debug, Default)]
pub struct Progress {
    /// All subscriptions are confirmed or restored now.
    pub settled: AtomicBool,
    /// Stored messages that arrived since the last turn of the run, per subscription.
    pub arrived: Vec<Arrived>,
    /// Its present session; `None` until it has one.
    session: Mutex<Option<Session>>,
    /// Connections that ended where two identifiers share a stream: as many copies may be missing.
    pub cuts: AtomicU64,
}

/// What arrived at one subscription.
#[derive(Debug, Default)]
pub struct Arrived {
    /// Second copies included.
    count: AtomicU64,
    ids: Mutex<HashSet<Id>>,
}

impl Arrived {
    pub(super) fn note(&self, id: Id) {
        if let Ok(mut ids) = self.ids.lock() {
            ids.insert(id);
        }
        self.count.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Leaves what has not arrived.
    pub(super) fn strike_out(&self, missing: &mut Vec<Id>) {
        if let Ok(ids) = self.ids.lock() {
            missing.retain(|id| !ids.contains(id));
        }
    }

    fn start_anew(&self) {
        if let Ok(mut ids) = self.ids.lock() {
            ids.clear();
        }
        self.count.store(0, Ordering::Release);
    }
}

/// What ties connections of one client together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Counts the client's sessions from 1.
    pub number: u32,
    /// Its first id; a server without authentication knows the client by it.
    pub first: String,
    /// Its present id.
    pub sid: String,
    /// Counts all ids of the client from 1.
    pub nth: u32,
    /// When the client was given its present id.
    pub since: Instant,
}

impl Session {
    /// This client, excluded by its present id.
    pub fn excluded(&self, client: usize) -> Excluded {
        Excluded { client, session: self.number, sid: self.nth, since: self.since }
    }
}

impl Progress {
    pub fn of(follower: &Follower) -> Self {
        Self { arrived: follower.follows.iter().map(|_| Arrived::default()).collect(), ..Self::default() }
    }

    pub fn session(&self) -> Option<Session> {
        self.session.lock().ok()?.clone()
    }

    /// Nothing counts that came before.
    pub(super) fn start_anew(&self) {
        self.arrived.iter().for_each(Arrived::start_anew);
        self.cuts.store(0, Ordering::Release);
    }

    /// How many copies of this stream's messages may be missing.
    pub(super) fn excusable(&self, follower: &Follower, stream: &str) -> u64 {
        let shared = follower.follows.iter().filter(|follow| follow.stream == stream).count() > 1;
        if shared { self.cuts.load(Ordering::Acquire) } else { 0 }
    }

    /// A welcome came; answers with the number of the session, and which of the client's ids this one is.
    pub(super) fn welcome(&self, sid: &str, restored: bool) -> (u32, u32) {
        let Ok(mut session) = self.session.lock() else { return (0, 0) };
        let (old, sid, since) = (session.take(), sid.to_owned(), Instant::now());
        let nth = old.as_ref().map_or(0, |old| old.nth) + 1;
        let next = match old {
            Some(old) if restored => Session { sid, nth, since, ..old },
            old => Session { number: old.map_or(0, |old| old.number) + 1, first: sid.clone(), sid, nth, since },
        };
        let numbers = (next.number, next.nth);
        *session = Some(next);
        numbers
    }
}

/// A stream that gets its first message while its followers are away.
#[derive(Debug)]
pub struct Silent {
    pub followers: usize,
    pub away: AtomicUsize,
    /// Becomes true when the first message is acknowledged.
    pub published: watch::Sender<bool>,
}
