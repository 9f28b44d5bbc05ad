//! What the subscriptions of all clients hold in memory, counted where it is held: each count is a guard that lives in
//! what it counts, so that it ends with it, however that ends.

use crate::log_limit::limited;
use crate::metrics;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that all subscriptions may hold, and do.
#[derive(Debug)]
pub struct SubscriptionBudget {
    held: AtomicUsize,
    limit: usize,
}

impl SubscriptionBudget {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { held: AtomicUsize::new(0), limit })
    }

    /// Room for so many bytes, for as long as the answer lives. `None`: there is none, which is counted and logged.
    pub fn take(self: &Arc<Self>, bytes: usize) -> Option<Held> {
        // What does not fit takes nothing, not for a moment: others might be turned away for it.
        let with = |held: usize| held.checked_add(bytes).filter(|held| *held <= self.limit);
        if self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, with).is_ok() {
            metrics::SUBSCRIPTION_BYTES.add(signed(bytes));
            return Some(Held { bytes, budget: self.clone() });
        }
        metrics::SUBSCRIPTIONS_FULL.inc();
        let limit = self.limit;
        limited!(
            WARN,
            SubscriptionsFull,
            limit,
            "subscriptions hold as much memory as they may: further ones are rejected, sessions are not restored here; \
             see subscriptions_budget"
        );
        None
    }

    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

/// Bytes of the budget, given back when it is dropped.
#[derive(Debug)]
pub struct Held {
    bytes: usize,
    budget: Arc<SubscriptionBudget>,
}

impl Held {
    /// So many of its bytes as a guard of their own; what it lacks is added, whether there is room or not.
    pub fn split(&mut self, bytes: usize) -> Self {
        let mut part = Self { bytes: bytes.min(self.bytes), budget: self.budget.clone() };
        self.bytes -= part.bytes;
        part.resize(bytes);
        part
    }

    /// So many bytes more of the same budget, whether there is room or not.
    pub fn beside(&self, bytes: usize) -> Self {
        let mut other = Self { bytes: 0, budget: self.budget.clone() };
        other.resize(bytes);
        other
    }

    /// Of a budget of its own.
    #[cfg(test)]
    pub fn unlimited() -> Self {
        SubscriptionBudget::new(usize::MAX).take(0).expect("no limit")
    }

    /// It counts so many bytes from now on, whether there is room or not: they are there.
    pub fn resize(&mut self, bytes: usize) {
        if bytes >= self.bytes {
            self.budget.held.fetch_add(bytes - self.bytes, Ordering::Relaxed);
        } else {
            self.budget.held.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        metrics::SUBSCRIPTION_BYTES.add(signed(bytes) - signed(self.bytes));
        self.bytes = bytes;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.resize(0);
    }
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_13_what_is_held_is_counted_from_the_first_to_the_last_moment() {
        let budget = SubscriptionBudget::new(100);
        let mut all = budget.take(90).unwrap();
        assert!(budget.take(11).is_none(), "it does not fit");
        assert_eq!(budget.held(), 90, "what did not fit is not held");
        let part = all.split(40);
        let more = all.split(60);
        assert_eq!(budget.held(), 100, "10 were added to the 90");
        drop((all, part));
        assert_eq!(budget.held(), 60);
        let mut content = more.beside(50);
        assert_eq!(budget.held(), 110, "what is there counts, also beyond the limit");
        content.resize(5);
        assert!(budget.take(36).is_none() && budget.take(35).is_some());
        drop((more, content));
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn row_13_what_finds_no_room_takes_none_from_others_meanwhile() {
        let budget = SubscriptionBudget::new(100);
        let _held = budget.take(80).unwrap();
        let is_over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let large = scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    assert!(budget.take(90).is_none());
                }
            });
            let refused = (0..200_000).filter(|_| budget.take(10).is_none()).count();
            is_over.store(true, Ordering::Relaxed);
            large.join().unwrap();
            assert_eq!(refused, 0);
        });
    }
}
