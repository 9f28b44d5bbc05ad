//! What the live feed owes: messages that a comparison of heads found in the log must come live, too.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// A stored message that has not come live after this time does not come.
const LATE: Duration = Duration::from_secs(2);

/// Streams of one policy with news between two checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Round {
    /// Live messages came.
    pub arrived: u64,
    /// A message that had been in the log for [`LATE`] had not come.
    pub missed: u64,
}

/// The account of one open stream.
#[derive(Debug, Default)]
pub(super) struct Owed {
    /// Offset of the newest message that came live.
    heard: Arc<AtomicU64>,
    /// `None` until the first comparison: what was there before the stream was open does not come.
    found: Option<Found>,
}

#[derive(Clone, Copy, Debug)]
struct Found {
    /// Everything up to here has come live, or was counted as missing.
    settled: u64,
    /// The stream's newest message at a comparison.
    newest: u64,
    /// When that was.
    at: Instant,
}

impl Owed {
    /// Where whoever delivers notes the newest offset.
    pub fn heard(&self) -> Arc<AtomicU64> {
        self.heard.clone()
    }

    /// `newest` is the stream's newest message now.
    pub fn compare(&mut self, newest: u64, now: Instant, round: &mut Round) {
        let heard = self.heard.load(Ordering::Relaxed);
        let Some(found) = &mut self.found else {
            self.found = Some(Found { settled: heard.max(newest), newest, at: now });
            return;
        };
        if heard > found.settled {
            round.arrived += 1;
            found.settled = heard;
        }
        if found.newest > found.settled {
            // It may still be on its way.
            if now.duration_since(found.at) < LATE {
                return;
            }
            round.missed += 1;
            found.settled = found.newest;
        }
        (found.newest, found.at) = (newest, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_out_counts_once_and_what_comes_in_time_does_not() {
        let (mut owed, mut round, begin) = (Owed::default(), Round::default(), Instant::now());
        let heard = owed.heard();
        let after = |seconds: u64| begin + Duration::from_secs(seconds);
        owed.compare(5, after(0), &mut round);
        owed.compare(5, after(10), &mut round);
        assert_eq!(round, Round::default(), "it was there before");

        owed.compare(6, after(20), &mut round);
        owed.compare(6, after(21), &mut round);
        assert_eq!(round, Round::default(), "it may be on its way");
        heard.store(6, Ordering::Relaxed);
        owed.compare(7, after(25), &mut round);
        assert_eq!(round, Round { arrived: 1, missed: 0 });

        owed.compare(8, after(30), &mut round);
        assert_eq!(round, Round { arrived: 1, missed: 1 }, "7 did not come");
        owed.compare(8, after(40), &mut round);
        owed.compare(8, after(50), &mut round);
        assert_eq!(round, Round { arrived: 1, missed: 2 }, "nor did 8");
    }
}
