//! How many connections there may be: of clients, of one address, and what is kept for everybody else.
//!
//! File descriptors are finite. Clients get all but a reserve, of which each listener has a part for connections beyond: they
//! are accepted, and what they ask for decides. A WebSocket is refused at once; publishing, health and metrics are answered,
//! and their connections end with the answer.
//!
//! Who makes the server wait (for a request, or for the rest of one) holds a place that others may need: where there is no
//! other, the connection that has waited longest is closed.

use super::places::{Claim, Place, Places};
use crate::log_limit::limited;
use crate::metrics::{
    CONNECTIONS, CONNECTIONS_DISPLACED, CONNECTIONS_REFUSED, CONNECTIONS_REFUSED_ADDRESS, CONNECTIONS_RESERVE_FULL,
};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::Notify;

/// Bits of an IPv6 address that tell one customer of a provider from another.
const IPV6_CUSTOMER: u32 = 64;

/// Limits of connections.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Connections at a time, of all listeners together.
    pub max: usize,
    /// Further ones of each listener, for whatever is no WebSocket.
    pub reserve: usize,
    /// WebSockets from one address, and connections from there that have not asked for anything yet; 0: no limit.
    pub per_address: usize,
}

impl ConnectionLimits {
    pub const NONE: Self = Self { max: usize::MAX, reserve: 0, per_address: 0 };
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There are too many.
    Full,
    /// There are too many from its address.
    Address,
}

/// The open connections of the process.
pub struct Connections {
    limits: ConnectionLimits,
    /// Locked before what a connection holds.
    places: Mutex<Places>,
}

impl Connections {
    pub fn new(limits: ConnectionLimits) -> Arc<Self> {
        Arc::new(Self { limits, places: Mutex::new(Places::new(limits.max)) })
    }

    /// The way in of one more listener, with a reserve of its own: no listener can use up what others need.
    pub fn door(self: &Arc<Self>) -> Door {
        let number = self.places().add_reserve(self.limits.reserve);
        Door { connections: self.clone(), number }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Addresses are counted only where they are limited.
    fn counted(&self, address: IpAddr) -> Option<IpAddr> {
        (self.limits.per_address > 0).then(|| customer(address))
    }
}

/// Whoever has an IPv6 address has 2^64 of them.
fn customer(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << (128 - IPV6_CUSTOMER))).into(),
        v4 => v4,
    }
}

/// Where the connections of one listener come in.
pub struct Door {
    connections: Arc<Connections>,
    /// Of its reserve.
    number: usize,
}

/// A connection that was taken in.
pub struct Admitted {
    pub share: Arc<Share>,
    /// Another one was told to end, to make room.
    pub displaced: bool,
}

impl Door {
    /// Takes a connection in. `counted`: the address that it counts against until it is known what it wants.
    pub fn admit(&self, counted: Option<IpAddr>) -> Result<Admitted, Refusal> {
        let connections = &self.connections;
        let address = counted.and_then(|address| connections.counted(address));
        let now = Instant::now();
        let mut places = connections.places();
        let claim = address.map(Claim::Taken);
        if let Some(address) = address
            && !places.claim(address, connections.limits.per_address)
        {
            drop(places);
            CONNECTIONS_REFUSED_ADDRESS.inc();
            return Err(Refusal::Address);
        }
        let Some((place, displaced)) = places.find(self.number, now) else {
            places.release(claim);
            drop(places);
            CONNECTIONS_REFUSED.inc();
            note_full_reserve();
            return Err(Refusal::Full);
        };
        let held = Held { place, claim, waiting: None, is_client: false };
        let share = Arc::new(Share {
            connections: connections.clone(),
            door: self.number,
            address,
            displaced: Notify::new(),
            held: Mutex::new(held),
        });
        places.wait(&share, &mut share.held(), now);
        drop(places);
        CONNECTIONS.add(1);
        let was_displaced = displaced.is_some();
        if let Some(other) = displaced {
            CONNECTIONS_DISPLACED.inc();
            other.displaced.notify_one();
            if place == Place::Reserved {
                note_full_reserve();
            }
        }
        Ok(Admitted { share, displaced: was_displaced })
    }
}

fn note_full_reserve() {
    CONNECTIONS_RESERVE_FULL.inc();
    limited!(
        WARN,
        ConnectionsFull,
        "connections beyond max_conn use up the reserve of their listener: those that wait are closed, further ones refused; \
         see max_conn and max_conn_per_address"
    );
}

/// What a connection takes of the limits, until it is dropped.
pub struct Share {
    connections: Arc<Connections>,
    pub(super) door: usize,
    /// Where it came from, if that is counted.
    address: Option<IpAddr>,
    /// Its place was given to another connection.
    displaced: Notify,
    held: Mutex<Held>,
}

/// What of it changes.
pub(super) struct Held {
    pub place: Place,
    pub claim: Option<Claim>,
    /// Its turn among those that wait.
    pub waiting: Option<u64>,
    /// It is a WebSocket: nobody takes its place.
    pub is_client: bool,
}

impl Share {
    pub(super) fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It was taken in out of the reserve, and there is no other room yet.
    pub fn is_reserved(&self) -> bool {
        let mut places = self.connections.places();
        let mut held = self.held();
        places.improve(self.door, &mut held);
        held.place != Place::Ordinary
    }

    /// A request has come. The connection asks for something that does not last, so that it counts against no address,
    /// unless it `may_stay`. False: its place is another one's already.
    pub fn begin(&self, may_stay: bool) -> bool {
        let mut places = self.connections.places();
        let mut held = self.held();
        places.stop_waiting(self.door, &mut held);
        if !may_stay {
            places.release(held.claim.take());
        }
        held.place != Place::Lost
    }

    /// The rest of the request is here: the server works on it. False: its place is another one's already.
    pub fn work(&self) -> bool {
        let mut places = self.connections.places();
        let mut held = self.held();
        places.stop_waiting(self.door, &mut held);
        held.place != Place::Lost
    }

    /// The server waits for the client from now on.
    pub fn wait(self: &Arc<Self>) {
        let mut places = self.connections.places();
        let mut held = self.held();
        places.stop_waiting(self.door, &mut held);
        if !held.is_client && held.place != Place::Lost {
            places.wait(self, &mut held, Instant::now());
        }
    }

    /// Whether the connection may stay for a next request after this answer: not out of the reserve, and not where its
    /// address has as many connections as it may.
    pub fn may_stay(&self) -> bool {
        let mut places = self.connections.places();
        let mut held = self.held();
        places.improve(self.door, &mut held);
        if held.place != Place::Ordinary {
            return false;
        }
        let Some(address) = self.address.filter(|_| held.claim.is_none()) else { return true };
        let stays = places.claim_idle(address, self.connections.limits.per_address);
        held.claim = stays.then_some(Claim::Idle(address));
        stays
    }

    /// The connection becomes a client's, who is at this address, for as long as it lasts.
    pub fn become_client(&self, address: IpAddr) -> Result<(), Refusal> {
        let mut places = self.connections.places();
        let mut held = self.held();
        places.improve(self.door, &mut held);
        if held.place != Place::Ordinary {
            drop((held, places));
            CONNECTIONS_REFUSED.inc();
            limited!(
                WARN,
                ConnectionsFull,
                "refused a WebSocket because there are max_conn connections: raise max_conn or the open file limit, or add nodes"
            );
            return Err(Refusal::Full);
        }
        if let Some(address) = self.connections.counted(address)
            && held.claim != Some(Claim::Taken(address))
        {
            if !places.claim(address, self.connections.limits.per_address) {
                drop((held, places));
                CONNECTIONS_REFUSED_ADDRESS.inc();
                return Err(Refusal::Address);
            }
            places.release(held.claim.replace(Claim::Taken(address)));
        }
        places.stop_waiting(self.door, &mut held);
        held.is_client = true;
        Ok(())
    }

    /// The connection is no HTTP connection any more.
    pub fn upgrade(&self) {
        let mut places = self.connections.places();
        let mut held = self.held();
        places.stop_waiting(self.door, &mut held);
        held.is_client = true;
    }

    /// Resolves when its place was given to another connection.
    pub async fn displaced(&self) {
        self.displaced.notified().await;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        CONNECTIONS.add(-1);
        let mut places = self.connections.places();
        let mut held = self.held();
        places.stop_waiting(self.door, &mut held);
        places.release(held.claim.take());
        places.give_back(self.door, held.place);
    }
}

#[cfg(test)]
mod tests;
