//! How many connections there may be: of clients, of one address, and what is kept for everybody else.
//!
//! File descriptors are finite. Clients get all but a reserve, of which a part is for connections beyond: they are
//! accepted, and what they ask for decides. A WebSocket is refused at once; publishing, health and metrics are answered.

use crate::metrics::{CONNECTIONS, CONNECTIONS_REFUSED, CONNECTIONS_REFUSED_ADDRESS, CONNECTIONS_RESERVED};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bits of an IPv6 address that tell one customer of a provider from another.
const IPV6_CUSTOMER: u32 = 64;

/// Limits of all listeners together.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Connections at a time.
    pub max: usize,
    /// Further ones, for whatever is no WebSocket.
    pub reserve: usize,
    /// WebSockets from one address, and connections from there that have not asked for anything yet; 0: no limit.
    pub per_address: usize,
}

impl ConnectionLimits {
    pub const NONE: Self = Self { max: Semaphore::MAX_PERMITS, reserve: 0, per_address: 0 };
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
    ordinary: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
    per_address: usize,
    addresses: Mutex<HashMap<IpAddr, usize>>,
}

impl Connections {
    pub fn new(limits: ConnectionLimits) -> Arc<Self> {
        let semaphore = |permits: usize| Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)));
        Arc::new(Self {
            ordinary: semaphore(limits.max),
            reserve: semaphore(limits.reserve),
            per_address: limits.per_address,
            addresses: Mutex::default(),
        })
    }

    /// Takes a connection in. `counted`: the address that it counts against until it is known what it wants.
    pub fn admit(self: &Arc<Self>, counted: Option<IpAddr>) -> Result<Arc<Share>, Refusal> {
        let address = counted.map(|address| self.claim(address)).transpose()?.flatten();
        let place = match self.ordinary.clone().try_acquire_owned() {
            Ok(permit) => Place::Ordinary(permit),
            Err(_) => match self.reserve.clone().try_acquire_owned() {
                Ok(permit) => {
                    CONNECTIONS_RESERVED.add(1);
                    Place::Reserved(permit)
                }
                Err(_) => {
                    CONNECTIONS_REFUSED.inc();
                    return Err(Refusal::Full);
                }
            },
        };
        CONNECTIONS.add(1);
        Ok(Arc::new(Share { connections: self.clone(), held: Mutex::new(Held { place, address }) }))
    }

    fn addresses(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claim(self: &Arc<Self>, address: IpAddr) -> Result<Option<AddressShare>, Refusal> {
        if self.per_address == 0 {
            return Ok(None);
        }
        let address = customer(address);
        let mut addresses = self.addresses();
        let count = addresses.entry(address).or_default();
        if *count >= self.per_address {
            CONNECTIONS_REFUSED_ADDRESS.inc();
            return Err(Refusal::Address);
        }
        *count += 1;
        drop(addresses);
        Ok(Some(AddressShare { connections: self.clone(), address }))
    }
}

/// Whoever has an IPv6 address has 2^64 of them.
fn customer(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << (128 - IPV6_CUSTOMER))).into(),
        v4 => v4,
    }
}

/// What a connection takes of the limits, until it is dropped.
pub struct Share {
    connections: Arc<Connections>,
    held: Mutex<Held>,
}

struct Held {
    place: Place,
    address: Option<AddressShare>,
}

enum Place {
    Ordinary(#[expect(dead_code, reason = "held until it is dropped")] OwnedSemaphorePermit),
    Reserved(#[expect(dead_code, reason = "held until it is dropped")] OwnedSemaphorePermit),
}

impl Share {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It was taken in out of the reserve, and there is no other room yet.
    pub fn is_reserved(&self) -> bool {
        let mut held = self.held();
        if let Place::Reserved(_) = held.place
            && let Ok(permit) = self.connections.ordinary.clone().try_acquire_owned()
        {
            CONNECTIONS_RESERVED.add(-1);
            held.place = Place::Ordinary(permit);
        }
        matches!(held.place, Place::Reserved(_))
    }

    /// The connection asks for something that does not last: it counts against no address.
    pub fn release_address(&self) {
        let released = self.held().address.take();
        drop(released);
    }

    /// The connection becomes a client's, who is at this address, for as long as it lasts.
    pub fn become_client(&self, address: IpAddr) -> Result<(), Refusal> {
        if self.is_reserved() {
            CONNECTIONS_REFUSED.inc();
            return Err(Refusal::Full);
        }
        let mut held = self.held();
        if held.address.as_ref().is_none_or(|share| share.address != customer(address)) {
            held.address = self.connections.claim(address)?;
        }
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        CONNECTIONS.add(-1);
        if let Place::Reserved(_) = self.held().place {
            CONNECTIONS_RESERVED.add(-1);
        }
    }
}

struct AddressShare {
    connections: Arc<Connections>,
    address: IpAddr,
}

impl Drop for AddressShare {
    fn drop(&mut self) {
        if let Entry::Occupied(mut entry) = self.connections.addresses().entry(self.address) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn beyond_the_limit_there_is_the_reserve_and_then_nothing() {
        let connections = Connections::new(ConnectionLimits { max: 1, reserve: 1, per_address: 0 });
        let first = connections.admit(None).unwrap();
        let second = connections.admit(None).unwrap();
        assert!(!first.is_reserved() && second.is_reserved());
        assert_eq!(first.become_client(address("192.0.2.1")), Ok(()));
        assert_eq!(second.become_client(address("192.0.2.1")), Err(Refusal::Full));
        assert_eq!(connections.admit(None).err(), Some(Refusal::Full));
        drop(first);
        assert!(!second.is_reserved(), "it moves where there is room");
        assert_eq!(second.become_client(address("192.0.2.1")), Ok(()));
        assert!(connections.admit(None).unwrap().is_reserved());
    }

    #[test]
    fn an_address_has_its_clients_and_those_that_said_nothing_yet() {
        let connections = Connections::new(ConnectionLimits { per_address: 2, ..ConnectionLimits::NONE });
        let (one, other) = (address("192.0.2.1"), address("192.0.2.2"));
        let client = connections.admit(Some(one)).unwrap();
        assert_eq!(client.become_client(one), Ok(()), "it does not count twice");
        let publisher = connections.admit(Some(one)).unwrap();
        assert_eq!(connections.admit(Some(one)).err(), Some(Refusal::Address));
        connections.admit(Some(other)).unwrap();
        publisher.release_address();
        let second = connections.admit(Some(one)).unwrap();
        assert_eq!(publisher.become_client(one), Err(Refusal::Address));
        // Behind a proxy the address is known only then.
        let proxied = connections.admit(None).unwrap();
        assert_eq!(proxied.become_client(one), Err(Refusal::Address));
        drop(client);
        assert_eq!(proxied.become_client(one), Ok(()));
        drop((publisher, second, proxied));
        assert!(connections.addresses().is_empty());
    }

    #[test]
    fn an_ipv6_network_is_one_address() {
        let connections = Connections::new(ConnectionLimits { per_address: 1, ..ConnectionLimits::NONE });
        let _first = connections.admit(Some(address("2001:db8:1:2::1"))).unwrap();
        assert_eq!(connections.admit(Some(address("2001:db8:1:2:ffff::1"))).err(), Some(Refusal::Address));
        let _other = connections.admit(Some(address("2001:db8:1:3::1"))).unwrap();
        let _v4 = connections.admit(Some(address("::ffff:192.0.2.1"))).unwrap();
        assert_eq!(connections.admit(Some(address("192.0.2.1"))).err(), Some(Refusal::Address));
    }
}
