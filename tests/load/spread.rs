//! How long something took, many times over.

use crate::report::Report;
use std::time::Duration;

#[derive(Clone, Debug, Default)]
pub struct Spread {
    /// Ascending.
    times: Vec<Duration>,
}

impl Spread {
    pub fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self { times }
    }

    pub fn len(&self) -> usize {
        self.times.len()
    }

    /// The time that this share stayed within; zero without any.
    pub fn percentile(&self, share: f64) -> Duration {
        let index = ((self.times.len() as f64 * share).ceil() as usize).max(1) - 1;
        self.times.get(index).or(self.times.last()).copied().unwrap_or_default()
    }

    pub fn max(&self) -> Duration {
        self.times.last().copied().unwrap_or_default()
    }

    /// Rows for half, 99 % and all.
    pub fn describe(&self, report: &mut Report, key: &str, label: &str) {
        for (name, word, time) in [
            ("p50", "half within", self.percentile(0.5)),
            ("p99", "99 % within", self.percentile(0.99)),
            ("max", "all within", self.max()),
        ] {
            report.time(&format!("{key}_{name}_us"), &format!("{label}, {word}"), time);
        }
    }
}
