//! Memory that publications may take from the first byte of their bodies to their answers, over all of them.

use crate::metrics::{PUBLISHING, PUBLISHING_FULL};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a publication waits for others to be done before it is refused.
const PATIENCE: Duration = Duration::from_secs(1);

/// Bytes that are counted together: a permit each.
const UNIT: usize = 64;

/// What all publications share.
pub struct PublishBudget(Arc<Semaphore>);

impl PublishBudget {
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(units(bytes).min(Semaphore::MAX_PERMITS))))
    }

    /// What one publication takes. Nothing yet.
    pub fn lease(&self) -> Lease {
        Lease { budget: self.0.clone(), held: None, units: 0 }
    }
}

/// There is no room, nor was there within a second.
#[derive(Debug, PartialEq, Eq)]
pub struct Exhausted;

/// What one publication holds, until it is dropped.
pub struct Lease {
    budget: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
    units: usize,
}

impl Lease {
    /// Makes it this many bytes.
    pub async fn resize(&mut self, bytes: usize) -> Result<(), Exhausted> {
        let wanted = units(bytes);
        if let Some(less) = self.units.checked_sub(wanted) {
            if let Some(held) = &mut self.held {
                drop(held.split(less));
            }
            self.set(wanted);
            return Ok(());
        }
        let more = u32::try_from(wanted - self.units).map_err(|_| Exhausted)?;
        let taking = self.budget.clone().acquire_many_owned(more);
        let Ok(Ok(taken)) = tokio::time::timeout(PATIENCE, taking).await else {
            PUBLISHING_FULL.inc();
            return Err(Exhausted);
        };
        match &mut self.held {
            Some(held) => held.merge(taken),
            None => self.held = Some(taken),
        }
        self.set(wanted);
        Ok(())
    }

    fn set(&mut self, units: usize) {
        PUBLISHING.add((units as i64 - self.units as i64) * UNIT as i64);
        self.units = units;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.set(0);
    }
}

fn units(bytes: usize) -> usize {
    bytes.div_ceil(UNIT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn leases_share_the_budget_and_wait_a_moment_for_each_other() {
        let budget = PublishBudget::new(1_024);
        let (mut one, mut other) = (budget.lease(), budget.lease());
        assert_eq!(one.resize(1_000).await, Ok(()));
        let start = Instant::now();
        assert_eq!(other.resize(100).await, Err(Exhausted));
        assert_eq!(start.elapsed(), PATIENCE);
        assert_eq!(one.resize(500).await, Ok(()));
        let mut third = budget.lease();
        assert_eq!(third.resize(100).await, Ok(()));
        let waiting = tokio::spawn(async move { third.resize(1_000).await });
        tokio::task::yield_now().await;
        drop(one);
        assert_eq!(waiting.await.unwrap(), Ok(()));
        assert_eq!(budget.0.available_permits(), 16, "all of it is back");
    }
}
