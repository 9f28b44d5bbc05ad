//! Whether this process stood still. What it held before that may have been overtaken, and the connection that would have
//! told of it may have ended, unnoticed yet.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

const TICK: Duration = Duration::from_millis(200);
/// A tick that is later than this was not late because others had their turn.
const STALL: Duration = Duration::from_secs(1);

/// Moments are milliseconds since the hub was made.
#[derive(Debug)]
pub struct Clock {
    began: Instant,
    ticked: AtomicU64,
    /// When it was noticed last that the process had stood still.
    stalled: AtomicU64,
}

impl Clock {
    pub fn new() -> Self {
        Self { began: Instant::now(), ticked: AtomicU64::new(0), stalled: AtomicU64::new(0) }
    }

    pub fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// What the store was asked at this moment or later was not overtaken while the process stood still.
    pub fn trusted_since(&self) -> u64 {
        let now = self.now();
        match self.is_late(now) {
            true => now,
            false => self.stalled.load(Ordering::Acquire),
        }
    }

    fn is_late(&self, now: u64) -> bool {
        u128::from(now.saturating_sub(self.ticked.load(Ordering::Acquire))) > STALL.as_millis()
    }

    pub async fn run(&self) {
        loop {
            let now = self.now();
            if self.is_late(now) {
                self.stalled.store(now, Ordering::Release);
            }
            self.ticked.store(now, Ordering::Release);
            tokio::time::sleep(TICK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn row_02_what_was_asked_before_the_process_stood_still_is_not_trusted() {
        let clock = Clock::new();
        let mut ticking = std::pin::pin!(clock.run());
        assert!(futures_util::poll!(&mut ticking).is_pending());
        tokio::time::advance(STALL).await;
        assert_eq!(clock.trusted_since(), 0, "late, as on a busy machine");
        tokio::time::advance(Duration::from_millis(1)).await;
        let noticed = clock.now();
        assert_eq!(clock.trusted_since(), noticed, "nobody has ticked since");
        assert!(futures_util::poll!(&mut ticking).is_pending());
        tokio::time::advance(TICK).await;
        assert!(futures_util::poll!(&mut ticking).is_pending());
        assert_eq!(clock.trusted_since(), noticed, "that it ticks again changes nothing about what was asked before");
    }
}
