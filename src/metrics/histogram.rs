//! How long something takes: counts by fixed upper bounds, as Prometheus has them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets, in microseconds and as the page shows them (seconds).
pub const BOUNDS: [(u64, &str); 12] = [
    (1_000, "0.001"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (250_000, "0.25"),
    (500_000, "0.5"),
    (1_000_000, "1"),
    (2_500_000, "2.5"),
    (5_000_000, "5"),
    (10_000_000, "10"),
];

/// Durations by size.
pub struct Histogram {
    /// Not cumulative; the last one is for everything above the bounds.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl Histogram {
    pub(super) const fn new() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; BOUNDS.len() + 1], micros: AtomicU64::new(0) }
    }

    pub fn observe(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.iter().position(|(bound, _)| micros <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// Present counts.
    pub fn read(&self) -> Reading {
        let mut sum = 0;
        let cumulative = std::array::from_fn(|place| {
            sum += self.buckets[place].load(Ordering::Relaxed);
            sum
        });
        Reading { cumulative, micros: self.micros.load(Ordering::Relaxed) }
    }
}

/// A histogram's counts at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Observations up to each bound; the last is all of them.
    pub cumulative: [u64; BOUNDS.len() + 1],
    /// Sum of all durations in microseconds.
    pub micros: u64,
}

impl Reading {
    pub fn count(&self) -> u64 {
        self.cumulative[BOUNDS.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_count_up_to_their_bound() {
        let histogram = Histogram::new();
        for millis in [1, 2, 30, 30, 60_000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let reading = histogram.read();
        assert_eq!(reading.cumulative, [1, 2, 2, 2, 4, 4, 4, 4, 4, 4, 4, 4, 5]);
        assert_eq!((reading.count(), reading.micros), (5, 60_063_000));
    }
}
