//! How far the clocks of the servers that lead a log differ.
//!
//! A log's times come from its leader. When another server takes over, times before and after are of two clocks: what
//! is concluded from comparing them must allow for their difference. Each answer of a leader is a measurement: the
//! server's clock stood at the time it names at some moment between question and answer, by this machine's clock.

use crate::boottime;
use crate::metrics;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Servers that are remembered; a log has at most five.
const SERVERS: usize = 16;

/// A measurement this old gives way to a newer one that is less exact: clocks are set, and drift.
const LIFE_MS: i64 = 60_000;

/// One server's clock minus this machine's, in milliseconds, lies between these.
#[derive(Clone, Copy, Debug)]
struct Measured {
    server: u64,
    low: i64,
    high: i64,
    /// By this machine's clock.
    at: i64,
}

/// This machine's clock, and the clocks that this node has been told times of.
#[derive(Default)]
pub(super) struct Clocks {
    known: Mutex<Vec<Measured>>,
    /// For how long tests say that the machine was suspended, in milliseconds.
    #[cfg(test)]
    suspended: std::sync::atomic::AtomicI64,
}

impl Clocks {
    /// This machine's clock, in milliseconds: it goes on while the machine is suspended, and nobody sets it.
    pub fn own(&self) -> i64 {
        let now = i64::try_from(boottime::now().as_millis()).unwrap_or(i64::MAX);
        #[cfg(test)]
        let suspended = self.suspended.load(std::sync::atomic::Ordering::Relaxed);
        #[cfg(not(test))]
        let suspended = 0;
        now + suspended
    }

    /// As if the machine had been suspended for so long: no other clock of this process has gone on.
    #[cfg(test)]
    pub fn suspend(&self, time: Duration) {
        self.suspended.fetch_add(time.as_millis() as i64, std::sync::atomic::Ordering::Relaxed);
    }

    /// Takes note of a server's time (Unix milliseconds), asked for at `asked`. Returns the clock's name, and the most by
    /// which it may differ from the other servers' clocks.
    pub fn compare(&self, server: &str, asked: i64, millis: u64) -> (u64, Duration) {
        self.compare_at(server, asked, self.own(), millis)
    }

    fn compare_at(&self, server: &str, asked: i64, answered: i64, millis: u64) -> (u64, Duration) {
        let mut hasher = DefaultHasher::new();
        server.hash(&mut hasher);
        let server = hasher.finish().max(1);
        let time = i64::try_from(millis).unwrap_or(i64::MAX / 2);
        let fresh = Measured { server, low: time - answered - 1, high: time - asked + 1, at: answered };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = match known.iter_mut().find(|measured| measured.server == server) {
            Some(held) => {
                let narrower = fresh.high - fresh.low <= held.high - held.low;
                let contradicts = fresh.low > held.high || fresh.high < held.low;
                if narrower || contradicts || answered - held.at > LIFE_MS {
                    *held = fresh;
                }
                *held
            }
            None => {
                if known.len() == SERVERS {
                    known.remove(0);
                }
                known.push(fresh);
                fresh
            }
        };
        let others = known.iter().filter(|other| other.server != server);
        let most = others.map(|other| (ours.high - other.low).max(other.high - ours.low)).max().unwrap_or(0);
        drop(known);
        metrics::STORE_CLOCK_SKEW.set(most);
        (server, Duration::from_millis(most.unsigned_abs()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_of_two_clocks_is_known_as_exactly_as_the_answers_were_fast() {
        let clocks = Clocks::default();
        let (a, alone) = clocks.compare_at("a", 1_000, 1_002, 500_000);
        assert_eq!(alone, Duration::ZERO, "one clock agrees with itself");
        let (b, skew) = clocks.compare_at("b", 2_000, 2_010, 501_040);
        assert_ne!(a, b);
        // b is 40 ms ahead, give or take the 12 ms of both answers and rounding.
        assert!((28..=56).contains(&skew.as_millis()), "{skew:?}");
        let (_, slow) = clocks.compare_at("b", 3_000, 9_000, 505_040);
        assert_eq!(slow, skew, "a slow answer does not replace an exact one");
    }

    #[test]
    fn a_clock_that_was_set_is_measured_anew() {
        let clocks = Clocks::default();
        clocks.compare_at("a", 1_000, 1_000, 500_000);
        clocks.compare_at("b", 1_000, 1_000, 500_000);
        let (_, skew) = clocks.compare_at("b", 2_000, 2_100, 506_050);
        assert!(skew >= Duration::from_millis(4_900), "{skew:?}");
    }
}
