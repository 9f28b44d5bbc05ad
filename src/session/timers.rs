//! When something is due on a connection. Time is an argument.

use std::time::Duration;
use tokio::time::Instant;

/// Timing of one connection.
#[derive(Clone, Copy, Debug)]
pub struct TimerConfig {
    /// Zero: no pings.
    pub ping_interval: Duration,
    /// Zero: no pongs expected.
    pub pong_timeout: Duration,
    /// How often what is saved is looked at, whether it must be written anew. Zero: nothing is saved.
    pub touch_every: Duration,
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    Ping,
    /// No sign of life in time.
    NoPong,
    /// The hold after a restore is over.
    HoldOver,
    /// The saved session may have to be written again.
    Touch,
}

/// No longer time can be asked for: far beyond what any connection lives, and far from any overflow of clocks.
const LONGEST: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

/// How soon a hold that did not end during a command is looked at again.
const HOLD_AGAIN: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub struct Timers {
    config: TimerConfig,
    ping_at: Option<Instant>,
    pong_by: Option<Instant>,
    hold_until: Option<Instant>,
    touch_at: Option<Instant>,
}

impl Timers {
    /// `phase` in `[0, 1)` spreads first pings over `[0.5, 1.5)` intervals.
    pub fn new(config: TimerConfig, phase: f64, now: Instant) -> Self {
        let config = TimerConfig {
            ping_interval: config.ping_interval.min(LONGEST),
            pong_timeout: config.pong_timeout.min(LONGEST),
            touch_every: config.touch_every.min(LONGEST),
        };
        let first = config.ping_interval.mul_f64(0.5 + phase);
        Self {
            config,
            ping_at: (!config.ping_interval.is_zero()).then(|| now + first),
            pong_by: None,
            hold_until: None,
            touch_at: (!config.touch_every.is_zero()).then(|| now + config.touch_every),
        }
    }

    pub fn hold(&mut self, until: Instant) {
        self.hold_until = Some(until);
    }

    /// A command came: the client lives.
    pub fn on_command(&mut self) {
        self.pong_by = None;
    }

    /// A native pong pushes the deadline.
    pub fn on_native_pong(&mut self, now: Instant) {
        if self.pong_by.is_some() {
            self.pong_by = Some(now + self.config.pong_timeout);
        }
    }

    pub fn next(&self) -> Option<Instant> {
        [self.ping_at, self.pong_by, self.hold_until, self.touch_at].into_iter().flatten().min()
    }

    /// The next thing that is due by `now`, if any; ask again until there is none. While a command executes the pong
    /// deadline does not fire, and the hold does not end: the command that it waits for has come, and its answer may have
    /// to wait for the store.
    pub fn due(&mut self, now: Instant, executing: bool) -> Option<Due> {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if is_due(self.hold_until) {
            self.hold_until = executing.then(|| now + HOLD_AGAIN);
            if !executing {
                return Some(Due::HoldOver);
            }
        }
        if is_due(self.ping_at) {
            self.ping_at = Some(now + self.config.ping_interval);
            if self.pong_by.is_none() && !self.config.pong_timeout.is_zero() {
                self.pong_by = Some(now + self.config.pong_timeout);
            }
            return Some(Due::Ping);
        }
        if is_due(self.touch_at) {
            self.touch_at = Some(now + self.config.touch_every);
            return Some(Due::Touch);
        }
        if is_due(self.pong_by) {
            self.pong_by = executing.then(|| now + self.config.pong_timeout);
            return (!executing).then_some(Due::NoPong);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn timers(now: Instant) -> Timers {
        let config = TimerConfig { ping_interval: 3 * SECOND, pong_timeout: SECOND, touch_every: Duration::ZERO };
        Timers::new(config, 0.5, now)
    }

    #[test]
    fn pings_come_every_interval_after_a_spread_first_one() {
        let start = Instant::now();
        let mut timers = timers(start);
        assert_eq!(timers.next(), Some(start + 3 * SECOND));
        assert_eq!(timers.due(start + 2 * SECOND, false), None);
        assert_eq!(timers.due(start + 3 * SECOND, false), Some(Due::Ping));
        timers.on_command();
        assert_eq!(timers.next(), Some(start + 6 * SECOND));
    }

    #[test]
    fn no_length_of_time_overflows() {
        let now = Instant::now();
        let config =
            TimerConfig { ping_interval: Duration::MAX, pong_timeout: Duration::MAX, touch_every: Duration::MAX };
        let mut timers = Timers::new(config, 0.999, now);
        assert!(timers.next().is_some_and(|next| next > now));
        assert_eq!(timers.due(now + 2 * LONGEST, false), Some(Due::Ping));
        timers.on_native_pong(now + 2 * LONGEST);
        assert_eq!(timers.due(now + 2 * LONGEST, false), Some(Due::Touch));
    }

    #[test]
    fn a_missing_pong_ends_the_connection_but_not_during_a_command() {
        let start = Instant::now();
        let mut timers = timers(start);
        assert_eq!(timers.due(start + 3 * SECOND, false), Some(Due::Ping));
        assert_eq!(timers.due(start + 4 * SECOND, true), None);
        assert_eq!(timers.due(start + 5 * SECOND, false), Some(Due::NoPong));
    }

    #[test]
    fn a_hold_does_not_end_during_a_command() {
        let start = Instant::now();
        let mut timers = timers(start);
        timers.hold(start + 2 * SECOND);
        assert_eq!(timers.due(start + 2 * SECOND, true), None);
        assert_eq!(timers.next(), Some(start + 2 * SECOND + HOLD_AGAIN));
        assert_eq!(timers.due(start + 2 * SECOND + HOLD_AGAIN, false), Some(Due::HoldOver));
        assert_eq!(timers.next(), Some(start + 3 * SECOND));
    }

    #[test]
    fn any_command_or_a_native_pong_counts() {
        let start = Instant::now();
        let mut timers = timers(start);
        assert_eq!(timers.due(start + 3 * SECOND, false), Some(Due::Ping));
        timers.on_native_pong(start + 3 * SECOND + SECOND / 2);
        assert_eq!(timers.due(start + 4 * SECOND, false), None);
        timers.on_command();
        assert_eq!(timers.due(start + 5 * SECOND, false), None);
    }
}
