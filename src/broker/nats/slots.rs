//! Who may read the log when: the server serves the reads of a log one after another, and publishers wait behind them, so
//! only a few are under way at once.
//!
//! Reads of clients who wait have the most places, and repairs in the background are never without one. Each side uses
//! what the other leaves idle; a repair leaves two places free for who comes next. Heads have places of their own: a head
//! check has a deadline.

use tokio::sync::{Semaphore, SemaphorePermit};

/// Places kept for clients who wait, and places kept for repairs.
const CLIENTS: usize = 6;
const REPAIRS: usize = 2;
/// Of the clients' places, those that repairs never borrow.
const FREE: usize = 2;
/// Requests for heads.
pub(super) const HEADS: usize = 3;
/// Batches of this node under way at once, heads apart.
pub(super) const READS: usize = CLIENTS + REPAIRS;

/// Who waits for a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// A client.
    Client,
    /// Nobody in particular: a hole in what open streams hold.
    Repair,
}

pub(super) struct Slots {
    clients: Semaphore,
    repairs: Semaphore,
    heads: Semaphore,
}

impl Slots {
    pub fn new() -> Self {
        Self { clients: Semaphore::new(CLIENTS), repairs: Semaphore::new(REPAIRS), heads: Semaphore::new(HEADS) }
    }

    /// Waits for a place.
    pub async fn read(&self, class: Class) -> SemaphorePermit<'_> {
        let (own, others, left) = match class {
            Class::Client => (&self.clients, &self.repairs, 0),
            Class::Repair => (&self.repairs, &self.clients, FREE),
        };
        if let Ok(place) = own.try_acquire() {
            return place;
        }
        if others.available_permits() > left
            && let Ok(place) = others.try_acquire()
        {
            return place;
        }
        own.acquire().await.expect("the semaphore is never closed")
    }

    pub async fn heads(&self) -> SemaphorePermit<'_> {
        self.heads.acquire().await.expect("the semaphore is never closed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    /// So many places are given at once.
    fn places(slots: &Slots, class: Class) -> Vec<SemaphorePermit<'_>> {
        std::iter::from_fn(|| slots.read(class).now_or_never()).collect()
    }

    #[test]
    fn row_06_clients_come_first_and_repairs_never_starve() {
        let slots = Slots::new();
        let repairs = places(&slots, Class::Repair);
        assert_eq!(repairs.len(), 6, "what clients leave idle, but two");
        let clients = places(&slots, Class::Client);
        assert_eq!(clients.len(), 2, "a client finds a place in the middle of all repairs");
        drop((repairs, clients));

        let clients = places(&slots, Class::Client);
        assert_eq!(clients.len(), 8, "clients alone have everything");
        drop(clients);

        let clients: Vec<_> = (0..CLIENTS).filter_map(|_| slots.read(Class::Client).now_or_never()).collect();
        assert_eq!(places(&slots, Class::Repair).len(), 2, "repairs keep their share while clients have theirs");
        drop(clients);
    }
}
