//! A circuit breaker: when nearly everything fails, calls fail at once for a while instead of piling up.

use std::sync::Mutex;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{info, warn};

/// Counts start over this often.
const WINDOW: Duration = Duration::from_secs(10);
/// Fewest requests in the window that say anything.
const ENOUGH: u32 = 10;
/// Percentage of failures that opens.
const TOO_MANY: u32 = 80;
/// How long it stays open.
const OPEN: Duration = Duration::from_secs(5);
/// Trial requests afterwards; as many successes close it.
const TRIALS: u32 = 5;

#[derive(Debug)]
pub struct Breaker(Mutex<State>);

#[derive(Debug, PartialEq, Eq)]
enum State {
    Closed { since: Instant, requests: u32, failures: u32 },
    Open { until: Instant },
    Trial { running: u32, successes: u32 },
}

impl State {
    fn closed(now: Instant) -> Self {
        Self::Closed { since: now, requests: 0, failures: 0 }
    }

    /// Whether a request may be made. `Some`: yes, and whether it is a trial.
    fn admit(&mut self, now: Instant) -> Option<bool> {
        if matches!(self, Self::Open { until } if *until <= now) {
            *self = Self::Trial { running: 0, successes: 0 };
        }
        match self {
            Self::Closed { .. } => Some(false),
            Self::Trial { running, successes } if *running + *successes < TRIALS => {
                *running += 1;
                Some(true)
            }
            Self::Trial { .. } | Self::Open { .. } => None,
        }
    }

    /// Takes the result of an admitted request; `None`: it was cancelled and says nothing.
    fn record(&mut self, trial: bool, success: Option<bool>, now: Instant) {
        match self {
            Self::Closed { since, requests, failures } if !trial => {
                let Some(success) = success else { return };
                if now.duration_since(*since) >= WINDOW {
                    (*since, *requests, *failures) = (now, 0, 0);
                }
                *requests += 1;
                *failures += u32::from(!success);
                if !success && *requests >= ENOUGH && *failures * 100 >= *requests * TOO_MANY {
                    warn!("circuit breaker is open");
                    *self = Self::Open { until: now + OPEN };
                }
            }
            Self::Trial { running, successes } if trial => match success {
                None => *running = running.saturating_sub(1),
                Some(false) => {
                    warn!("circuit breaker is open");
                    *self = Self::Open { until: now + OPEN };
                }
                Some(true) => {
                    *running = running.saturating_sub(1);
                    *successes += 1;
                    if *successes >= TRIALS {
                        info!("circuit breaker is closed");
                        *self = Self::closed(now);
                    }
                }
            },
            // Of a time that is over.
            _ => {}
        }
    }
}

impl Breaker {
    pub fn new() -> Self {
        Self(Mutex::new(State::closed(Instant::now())))
    }

    /// `None`: the circuit is open. Else report how the request went; one that is dropped unreported was cancelled, or
    /// failed if it took all of its `limit`.
    pub fn admit(&self, limit: Option<Duration>) -> Option<Admitted<'_>> {
        let now = Instant::now();
        let trial = self.state().admit(now)?;
        Some(Admitted { breaker: self, trial, success: None, deadline: limit.map(|limit| now + limit) })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().expect("no panic while it is held")
    }
}

/// A request on its way.
pub struct Admitted<'a> {
    breaker: &'a Breaker,
    trial: bool,
    success: Option<bool>,
    deadline: Option<Instant>,
}

impl Admitted<'_> {
    pub fn report(mut self, success: bool) {
        self.success = Some(success);
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        let too_late = self.deadline.is_some_and(|deadline| deadline <= now);
        let success = self.success.or(too_late.then_some(false));
        self.breaker.state().record(self.trial, success, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    fn run(breaker: &Breaker, results: impl IntoIterator<Item = bool>) {
        for success in results {
            breaker.admit(None).expect("closed").report(success);
        }
    }

    fn is_open(breaker: &Breaker) -> bool {
        matches!(*breaker.state(), State::Open { .. })
    }

    #[tokio::test(start_paused = true)]
    async fn opens_at_four_fifths_of_ten_requests_within_the_window() {
        let breaker = Breaker::new();
        run(&breaker, [false; 9]);
        assert!(!is_open(&breaker), "nine say nothing");
        advance(WINDOW).await;
        run(&breaker, [false; 9]);
        assert!(!is_open(&breaker), "counts start over");
        run(&breaker, [true; 3]);
        assert!(!is_open(&breaker), "9 of 12");
        run(&breaker, [false; 3]);
        assert!(is_open(&breaker), "12 of 15");
        assert!(breaker.admit(None).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn closes_after_five_trials_and_opens_with_one_that_fails() {
        let breaker = Breaker::new();
        run(&breaker, [false; 10]);
        advance(OPEN).await;
        let trials: Vec<_> = (0..TRIALS).map(|_| breaker.admit(None).expect("a trial")).collect();
        assert!(breaker.admit(None).is_none(), "five at a time");
        trials.into_iter().next().unwrap().report(false);
        assert!(breaker.admit(None).is_none(), "open again");

        advance(OPEN).await;
        drop(breaker.admit(None).expect("a trial that is cancelled"));
        run(&breaker, [true; 5]);
        assert!(matches!(*breaker.state(), State::Closed { .. }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_took_all_of_its_time_has_failed() {
        let breaker = Breaker::new();
        let requests: Vec<_> = (0..10).map(|_| breaker.admit(Some(WINDOW / 2)).expect("closed")).collect();
        advance(WINDOW / 2).await;
        drop(requests);
        assert!(is_open(&breaker));
    }
}
