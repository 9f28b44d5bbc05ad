//! The places that connections have: how many are free, who waits in one, and how many an address takes.

use super::connections::{Held, Share};
use crate::metrics::CONNECTIONS_RESERVED;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// A connection that has waited for its client so long gives its place to another one, where there is no other. As long as a
/// first request may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The same in the reserve: the time that a request needs to follow its connection over a long way.
const RESERVED_PATIENCE: Duration = Duration::from_millis(100);

/// Where a connection counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Ordinary,
    Reserved,
    /// Nowhere any more: its place was given to another one.
    Lost,
}

/// What a connection takes of its address's limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// A client's, or that of a connection that has not asked for anything yet.
    Taken(IpAddr),
    /// That of an HTTP connection between two requests.
    Idle(IpAddr),
}

#[derive(Clone, Copy, Default)]
struct Claims {
    taken: usize,
    idle: usize,
}

/// All places of the process.
pub(super) struct Places {
    ordinary: Room,
    /// Of each listener.
    reserves: Vec<Room>,
    addresses: HashMap<IpAddr, Claims>,
    next_turn: u64,
}

/// Places of one kind.
struct Room {
    free: usize,
    /// Those that wait for their clients, longest first.
    waiting: BTreeMap<u64, Waiter>,
}

struct Waiter {
    since: Instant,
    share: Weak<Share>,
}

impl Room {
    fn new(free: usize) -> Self {
        Self { free, waiting: BTreeMap::new() }
    }

    fn take(&mut self) -> bool {
        let is_free = self.free > 0;
        self.free -= usize::from(is_free);
        is_free
    }

    /// Takes its place from the connection that has waited longest, if that is long enough.
    fn displace(&mut self, now: Instant, patience: Duration) -> Option<Arc<Share>> {
        loop {
            let longest = self.waiting.first_entry()?;
            if now.saturating_duration_since(longest.get().since) < patience {
                return None;
            }
            // One that ends just now gives its place back itself.
            let Some(share) = longest.remove().share.upgrade() else { continue };
            let mut held = share.held();
            held.place = Place::Lost;
            held.waiting = None;
            drop(held);
            return Some(share);
        }
    }
}

impl Places {
    pub fn new(ordinary: usize) -> Self {
        Self { ordinary: Room::new(ordinary), reserves: Vec::new(), addresses: HashMap::new(), next_turn: 0 }
    }

    /// Returns its number.
    pub fn add_reserve(&mut self, places: usize) -> usize {
        self.reserves.push(Room::new(places));
        self.reserves.len() - 1
    }

    /// A place for a new connection, and whoever had it. The other one must be dropped when this is not locked any more.
    pub fn find(&mut self, door: usize, now: Instant) -> Option<(Place, Option<Arc<Share>>)> {
        if self.ordinary.take() {
            return Some((Place::Ordinary, None));
        }
        if let Some(other) = self.ordinary.displace(now, PATIENCE) {
            return Some((Place::Ordinary, Some(other)));
        }
        let reserve = &mut self.reserves[door];
        if reserve.take() {
            CONNECTIONS_RESERVED.add(1);
            return Some((Place::Reserved, None));
        }
        reserve.displace(now, RESERVED_PATIENCE).map(|other| (Place::Reserved, Some(other)))
    }

    fn room(&mut self, door: usize, place: Place) -> Option<&mut Room> {
        match place {
            Place::Ordinary => Some(&mut self.ordinary),
            Place::Reserved => Some(&mut self.reserves[door]),
            Place::Lost => None,
        }
    }

    pub fn give_back(&mut self, door: usize, place: Place) {
        if place == Place::Reserved {
            CONNECTIONS_RESERVED.add(-1);
        }
        if let Some(room) = self.room(door, place) {
            room.free += 1;
        }
    }

    /// Moves a connection out of the reserve if there is room.
    pub fn improve(&mut self, door: usize, held: &mut Held) {
        if held.place == Place::Reserved && self.ordinary.take() {
            let waiter = held.waiting.and_then(|turn| self.reserves[door].waiting.remove(&turn).map(|one| (turn, one)));
            self.ordinary.waiting.extend(waiter);
            self.give_back(door, Place::Reserved);
            held.place = Place::Ordinary;
        }
    }

    /// Its place may be given to others from now on.
    pub fn wait(&mut self, share: &Arc<Share>, held: &mut Held, now: Instant) {
        let turn = self.next_turn;
        if let Some(room) = self.room(share.door, held.place) {
            room.waiting.insert(turn, Waiter { since: now, share: Arc::downgrade(share) });
            held.waiting = Some(turn);
            self.next_turn += 1;
        }
    }

    pub fn stop_waiting(&mut self, door: usize, held: &mut Held) {
        if let Some(turn) = held.waiting.take()
            && let Some(room) = self.room(door, held.place)
        {
            room.waiting.remove(&turn);
        }
    }

    /// One more client, or connection that has not asked for anything yet. False: there are as many as there may be.
    pub fn claim(&mut self, address: IpAddr, limit: usize) -> bool {
        let claims = self.addresses.entry(address).or_default();
        let has_room = claims.taken < limit;
        claims.taken += usize::from(has_room);
        has_room
    }

    /// One more HTTP connection between two requests. They never keep clients out, and get what clients leave.
    pub fn claim_idle(&mut self, address: IpAddr, limit: usize) -> bool {
        let claims = self.addresses.entry(address).or_default();
        let has_room = claims.taken + claims.idle < limit;
        claims.idle += usize::from(has_room);
        has_room
    }

    pub fn release(&mut self, claim: Option<Claim>) {
        let Some(claim) = claim else { return };
        let (Claim::Taken(address) | Claim::Idle(address)) = claim;
        let Entry::Occupied(mut entry) = self.addresses.entry(address) else { return };
        match claim {
            Claim::Taken(_) => entry.get_mut().taken -= 1,
            Claim::Idle(_) => entry.get_mut().idle -= 1,
        }
        if entry.get().taken + entry.get().idle == 0 {
            entry.remove();
        }
    }

    #[cfg(test)]
    pub fn counts_nobody(&self) -> bool {
        self.addresses.is_empty() && self.ordinary.waiting.is_empty()
    }
}
