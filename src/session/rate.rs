//! How many commands a client may send. Time is an argument.

use std::time::Duration;
use tokio::time::Instant;

/// So many commands at once, then so many per second.
#[derive(Debug)]
pub struct CommandRate {
    /// Everything before is used up.
    used_until: Instant,
    /// Commands per second; 0: no limit.
    per_second: u32,
    /// Commands that may come at once.
    burst: u32,
}

impl CommandRate {
    /// `per_second` 0: no limit.
    pub fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        Self { used_until: now, per_second, burst }
    }

    /// Time that one command uses up; zero: no limit.
    fn spacing(&self) -> Duration {
        Duration::from_secs(1).checked_div(self.per_second).unwrap_or_default()
    }

    /// A command came. Answers whether the next one has to wait.
    pub fn take(&mut self, now: Instant) -> bool {
        self.used_until = self.used_until.max(now) + self.spacing();
        self.wait_until(now).is_some()
    }

    /// Commands that come before this moment have to wait; `None`: the next one may come now.
    pub fn wait_until(&self, now: Instant) -> Option<Instant> {
        let spacing = self.spacing();
        let free_at = (self.used_until + spacing).checked_sub(spacing.saturating_mul(self.burst))?;
        (!spacing.is_zero() && free_at > now).then_some(free_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_then_the_rate_holds() {
        let start = Instant::now() + Duration::from_secs(60);
        let mut rate = CommandRate::new(10, 3, start);
        assert_eq!([0; 3].map(|_| rate.take(start)), [false, false, true]);
        assert_eq!(rate.wait_until(start), Some(start + Duration::from_millis(100)));
        assert_eq!(rate.wait_until(start + Duration::from_millis(100)), None);
        assert!(rate.take(start + Duration::from_millis(100)));
    }

    #[test]
    fn who_was_silent_has_the_whole_burst_again_and_no_more() {
        let start = Instant::now() + Duration::from_secs(60);
        let mut rate = CommandRate::new(10, 3, start);
        for _ in 0..3 {
            rate.take(start);
        }
        let later = start + Duration::from_secs(3_600);
        assert_eq!([0; 3].map(|_| rate.take(later)), [false, false, true]);
    }

    #[test]
    fn without_a_rate_nobody_waits() {
        let start = Instant::now();
        let mut rate = CommandRate::new(0, 0, start);
        assert!((0..100_000).all(|_| !rate.take(start)));
    }
}
