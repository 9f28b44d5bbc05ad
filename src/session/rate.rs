//! How often a client may do something. Time is an argument.

use std::time::Duration;
use tokio::time::Instant;

/// A token bucket: so many a second, and so many at once after a pause of two seconds.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    per_second: u32,
    /// When the bucket is full again.
    full_at: Option<Instant>,
}

/// A pause fills the bucket for so long.
const BURST: Duration = Duration::from_secs(2);

impl Rate {
    /// 0: no limit.
    pub fn new(per_second: u32) -> Self {
        Self { per_second, full_at: None }
    }

    /// Takes one. Returns whether there was one.
    pub fn take(&mut self, now: Instant) -> bool {
        if self.per_second == 0 {
            return true;
        }
        let full_at = self.full_at.map_or(now, |full_at| full_at.max(now)) + Duration::from_secs(1) / self.per_second;
        let has_one = full_at <= now + BURST;
        if has_one {
            self.full_at = Some(full_at);
        }
        has_one
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_so_many_a_second() {
        let mut rate = Rate::new(10);
        let start = Instant::now();
        let mut taken = |now: Instant, wanted: usize| (0..wanted).filter(|_| rate.take(now)).count();
        assert_eq!(taken(start, 100), 20);
        assert_eq!(taken(start + Duration::from_millis(500), 100), 5);
        assert_eq!(taken(start + Duration::from_secs(60), 100), 20);
    }

    #[test]
    fn without_a_limit_everything_goes() {
        let mut rate = Rate::new(0);
        let now = Instant::now();
        assert!((0..1_000_000).all(|_| rate.take(now)));
    }
}
