//! How many commands a client may send. Time is an argument.

use std::time::Duration;
use tokio::time::Instant;

/// So many commands at once, then so many per second.
#[derive(Debug)]
pub struct CommandRate {
    /// Time that one command uses up; zero: no limit.
    spacing: Duration,
    /// Time that may be used up in advance.
    burst: Duration,
    /// Everything before is used up.
    used_until: Instant,
}

impl CommandRate {
    /// `per_second` 0: no limit.
    pub fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        let spacing = Duration::from_secs(1).checked_div(per_second).unwrap_or_default();
        Self { spacing, burst: spacing.saturating_mul(burst), used_until: now }
    }

    /// A command came. Answers whether the next one has to wait.
    pub fn take(&mut self, now: Instant) -> bool {
        self.used_until = self.used_until.max(now) + self.spacing;
        self.wait_until(now).is_some()
    }

    /// Commands that come before this moment have to wait; `None`: the next one may come now.
    pub fn wait_until(&self, now: Instant) -> Option<Instant> {
        let free_at = (self.used_until + self.spacing).checked_sub(self.burst)?;
        (!self.spacing.is_zero() && free_at > now).then_some(free_at)
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
