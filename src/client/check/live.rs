//! How long messages are on their way to connections that stand.

use super::record::{Arrival, Record, Stay};
use super::source::Ack;
use std::time::Duration;

/// Buckets per doubling: each is about 2 % wide.
const STEPS: u64 = 32;

/// Many lengths of time in little memory: counts in buckets, the longest as it is.
#[derive(Clone, Debug)]
pub struct Times {
    counts: Vec<u64>,
    count: u64,
    longest: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self { counts: vec![0; Self::bucket(u64::MAX) + 1], count: 0, longest: Duration::ZERO }
    }
}

impl Times {
    /// Of microseconds.
    fn bucket(micros: u64) -> usize {
        let doublings = u64::from(micros.max(STEPS).ilog2()) - u64::from(STEPS.ilog2());
        let index = doublings * STEPS + (micros >> doublings);
        usize::try_from(index).unwrap_or(usize::MAX)
    }

    /// The least number of microseconds in this bucket.
    fn least(bucket: usize) -> u64 {
        let index = bucket as u64;
        let doublings = (index / STEPS).saturating_sub(1);
        (index - doublings * STEPS) << doublings
    }

    pub fn add(&mut self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.counts[Self::bucket(micros)] += 1;
        self.count += 1;
        self.longest = self.longest.max(time);
    }

    pub fn add_all(&mut self, times: impl IntoIterator<Item = Duration>) {
        times.into_iter().for_each(|time| self.add(time));
    }

    pub fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(sum, more)| *sum += more);
        self.count += other.count;
        self.longest = self.longest.max(other.longest);
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn longest(&self) -> Duration {
        self.longest
    }

    /// The time that this share of all stayed at or below, within 3 %.
    pub fn percentile(&self, share: f64) -> Duration {
        let rank = (self.count as f64 * share).ceil().max(1.0) as u64;
        let mut sum = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            sum += count;
            if sum >= rank && *count > 0 {
                return Duration::from_micros(Self::least(bucket)).min(self.longest);
            }
        }
        self.longest
    }
}

/// Judges arrivals by the connections that stood meanwhile.
pub(super) struct Lateness<'a> {
    pub record: &'a Record,
    pub within: Duration,
}

impl Lateness<'_> {
    /// The time from acknowledgement to arrival, if the connection stood before the message was published.
    pub fn live(&self, arrival: &Arrival, ack: &Ack) -> Option<Duration> {
        let stood = self.record.stay(arrival)?.stood?;
        (stood < ack.begun).then(|| arrival.at.saturating_duration_since(ack.at))
    }

    /// How it came too late: on the connection that stood, or on one after it.
    pub fn is_late(&self, arrival: &Arrival, ack: &Ack) -> Option<String> {
        if let Some(time) = self.live(arrival, ack) {
            return (time > self.within).then(|| format!("{:.1} s after its acknowledgement", time.as_secs_f64()));
        }
        let due = ack.at + self.within;
        let missed = |stay: &&Stay| stay.stood.is_some_and(|stood| stood < ack.begun) && stay.ended > due;
        let earlier = self.record.stays.iter().take(arrival.connection.saturating_sub(1) as usize);
        // Connections are in order of time: the last that was there before the message.
        let stay = earlier.rev().take_while(|stay| stay.ended > ack.at).find(missed)?;
        let waited = stay.ended - ack.at;
        Some(format!(
            "on a later connection, though one stood for {:.1} s after its acknowledgement",
            waited.as_secs_f64()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_three_percent() {
        let mut times = Times::default();
        times.add_all((1..=10_000).map(|n| Duration::from_micros(n * 37)));
        for share in [0.5, 0.9, 0.99] {
            let exact = share * 10_000.0 * 37.0;
            let found = times.percentile(share).as_micros() as f64;
            assert!((found - exact).abs() / exact < 0.035, "{share}: {found} instead of {exact}");
        }
        assert_eq!((times.count(), times.longest()), (10_000, Duration::from_micros(370_000)));
        assert_eq!(Times::default().percentile(0.5), Duration::ZERO);
        for micros in [0, 1, 31, 32, 33, 63, 64, 1_000_000, u64::MAX] {
            let least = Times::least(Times::bucket(micros));
            assert!(least <= micros && micros - least <= micros / 32, "{micros}: {least}");
        }
    }
}
