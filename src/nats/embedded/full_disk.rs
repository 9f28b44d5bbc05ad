//! A full disk under the store: what a server that has met one is waited for, and when the disk counts as full no more.
//!
//! nats-server says that it was full, and does not come back by itself: what met the full disk is off until a restart. The
//! disk counts as full for publishers ([`super::Status::disk_full`]) from when less than [`room::ENOUGH`] is free until that
//! is there again. A restart in between makes no room by itself: the disk stays full until the new process has had the time
//! to remove what has expired, and something can be stored.

use super::room;
use super::server::State;
use super::supervisor::{End, Supervisor};
use std::time::Duration;
use tokio::time::Instant;

/// How often a full disk is looked at.
pub(super) const SPACE_PERIOD: Duration = Duration::from_secs(1);
/// How long a server that ran out of space is left alone: it lets no message expire any more, a new one does. Doubled for
/// each restart that did not help.
pub(super) const FIRST_PATIENCE: Duration = Duration::from_secs(5);
const LONGEST_PATIENCE: Duration = Duration::from_secs(300);

/// How long the next server that runs out of space is left alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    first: Duration,
    now: Duration,
}

impl Patience {
    pub fn new(first: Duration) -> Self {
        Self { first, now: first }
    }

    pub fn now(self) -> Duration {
        self.now
    }

    /// There is room again.
    pub fn restore(&mut self) {
        self.now = self.first;
    }

    /// There is none. `served` says that the last restart had helped for a while.
    pub fn lose(&mut self, served: bool) {
        self.now = if served { self.first } else { self.now * 2 }.min(LONGEST_PATIENCE);
    }
}

impl Supervisor {
    /// The server has met a full disk and stays off until it is restarted: waits until that makes sense. What fills the disk
    /// may be messages that have expired since.
    pub(super) async fn wait_for_space(&self, patience: Duration) -> End {
        let store = &self.config.store_dir;
        // What the server says was so. This is what is so now.
        if (self.free)(store).is_ok_and(|free| free >= room::ENOUGH) {
            return End::SpaceIsBack;
        }
        self.status.send_modify(|status| (status.state, status.disk_full) = (State::StorageFull, true));
        tracing::error!(
            context = "enats", store = %store.display(), restart_s = patience.as_secs(),
            "the disk of the store is full: nothing is stored until there is room; nothing but expired messages is removed \
             to make some. Make room on this disk, or lower history_limit or history_ttl"
        );
        let patience_ends = Instant::now() + patience;
        loop {
            tokio::time::sleep(SPACE_PERIOD).await;
            match (self.free)(store) {
                Ok(free) if free >= room::ENOUGH => return End::SpaceIsBack,
                _ if Instant::now() >= patience_ends => return End::StillFull,
                Ok(_) => {}
                Err(error) => tracing::warn!(context = "enats", %error, "the disk of the store cannot be measured"),
            }
        }
    }

    /// A server runs that was restarted without room: the disk counts as full until something can be stored on it. What has
    /// expired is removed within a moment.
    pub(super) async fn until_something_fits(&self) {
        let store = &self.config.store_dir;
        while self.status.borrow().disk_full {
            match (self.free)(store) {
                Ok(free) if free < room::A_LITTLE => {
                    tokio::time::sleep(SPACE_PERIOD).await;
                    continue;
                }
                Ok(_) => {
                    tracing::info!(context = "enats", store = %store.display(), "the disk of the store has room again")
                }
                // The server says it by itself if it is full.
                Err(error) => {
                    tracing::warn!(context = "enats", %error, "the disk of the store cannot be measured");
                }
            }
            self.status.send_modify(|status| status.disk_full = false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_restarted_in_vain_is_left_alone_for_longer_up_to_five_minutes() {
        let mut patience = Patience::new(FIRST_PATIENCE);
        let seconds = |patience: Patience| patience.now().as_secs();
        assert_eq!(seconds(patience), 5);
        patience.lose(false);
        assert_eq!(seconds(patience), 10);
        (0..10).for_each(|_| patience.lose(false));
        assert_eq!(seconds(patience), 300);
        patience.lose(true);
        assert_eq!(seconds(patience), 5, "the last restart had helped");
        patience.lose(false);
        patience.restore();
        assert_eq!(seconds(patience), 5, "somebody made room");
    }
}
