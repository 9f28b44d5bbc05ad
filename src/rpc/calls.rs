//! What both wire forms share: the limit of concurrency, retries, time limits, cancellation, counting.

use super::RpcError;
use super::capacity::{Capacity, Concurrency};
use super::proto;
use crate::log_limit::limited;
use crate::metrics;
use crate::protocol::Sid;
use crate::secret::Secret;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// First delay after the application said it is at its limit; doubled with each attempt.
const BUSY_DELAY: Duration = Duration::from_millis(10);
/// First delay after nobody answered.
const UNAVAILABLE_DELAY: Duration = Duration::from_millis(100);

/// Why one attempt brought nothing.
#[derive(Debug)]
pub enum Failed {
    /// The application has no room for the call (`RESOURCE_EXHAUSTED`): soon again.
    Busy(String),
    /// The call has not reached the application: again.
    Unreached(String),
    /// The call was sent and nobody, or `UNAVAILABLE`, answered: the application may have executed it. Again, if the
    /// operator lets us.
    Uncertain(String),
    /// Another attempt would bring the same.
    Final(RpcError),
}

/// One attempt, as the wire sees it.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// 0 for the first.
    pub number: u32,
    /// Time left to it; the caller enforces it, too. `None`: no limit.
    pub limit: Option<Duration>,
}

/// Rules for calls.
#[derive(Clone, Debug)]
pub struct CallRules {
    pub concurrency: Concurrency,
    /// For all attempts of a call, from the moment it has its slot; zero: no limit.
    pub command_timeout: Duration,
    /// For one attempt; zero: no limit.
    pub request_timeout: Duration,
    /// Try again what the application may have executed.
    pub retry_sent: bool,
    /// What we authenticate by: no error shows it.
    pub secret: Option<Secret>,
}

/// Calls of one node to its application.
#[derive(Debug)]
pub struct Calls {
    capacity: Capacity,
    command_timeout: Option<Duration>,
    request_timeout: Option<Duration>,
    retry_sent: bool,
    secret: Option<Secret>,
}

impl Calls {
    pub fn new(rules: CallRules) -> Self {
        let some = |time: Duration| (!time.is_zero()).then_some(time);
        Self {
            capacity: Capacity::new(rules.concurrency),
            command_timeout: some(rules.command_timeout),
            request_timeout: some(rules.request_timeout),
            retry_sent: rules.retry_sent,
            secret: rules.secret,
        }
    }

    /// Makes one call: waits for a slot, then tries until there is an answer, a final failure, or no time left.
    /// `read` makes sense of the answer, `what` names the call in the log. Dropping the future frees the slot.
    ///
    /// # Errors
    ///
    /// The [`RpcError`] of the last attempt.
    pub async fn call<A, T, F: Future<Output = Result<A, Failed>>>(
        &self,
        what: What<'_>,
        attempt: impl Fn(Attempt) -> F,
        read: impl FnOnce(A) -> Result<T, RpcError>,
    ) -> Result<T, RpcError> {
        let mut outcome = Counted::new();
        let slot = self.capacity.acquire().await;
        metrics::RPC_CALLS.inc();
        let began = Instant::now();
        let result =
            self.attempts(what, attempt).await.and_then(read).map_err(|error| what.scrub(error, self.secret.as_ref()));
        metrics::RPC_DURATION.observe(began.elapsed());
        drop(slot);
        outcome.done(result.as_ref().err());
        result
    }

    async fn attempts<A, F: Future<Output = Result<A, Failed>>>(
        &self,
        what: What<'_>,
        attempt: impl Fn(Attempt) -> F,
    ) -> Result<A, RpcError> {
        let began = Instant::now();
        let left = || self.command_timeout.map(|all| all.saturating_sub(began.elapsed()));
        let mut backoff = Backoff::default();
        for number in 0.. {
            let limit = [left(), self.request_timeout].into_iter().flatten().min();
            let answer = attempt(Attempt { number, limit });
            let answer = match limit {
                Some(limit) => timeout(limit, answer).await.unwrap_or(Err(Failed::Final(RpcError::Timeout))),
                None => answer.await,
            };
            let (kind, reason, uncertain) = match answer {
                Ok(answer) => return Ok(answer),
                Err(Failed::Final(error)) => return Err(error),
                Err(Failed::Busy(reason)) => {
                    self.capacity.refused();
                    (Kind::Busy, reason, false)
                }
                Err(Failed::Unreached(reason)) => (Kind::Unavailable, reason, false),
                Err(Failed::Uncertain(reason)) if !self.retry_sent => return Err(RpcError::Broken(reason)),
                Err(Failed::Uncertain(reason)) => (Kind::Unavailable, reason, true),
            };
            let delay = backoff.next(kind);
            if left().is_some_and(|left| left <= delay) {
                return Err(RpcError::Unreachable(reason));
            }
            sleep(delay).await;
            metrics::RPC_RETRIES.inc();
            if uncertain {
                metrics::RPC_UNCERTAIN_RETRIES.inc();
                let What { method, sid, .. } = what;
                limited!(
                    WARN,
                    CallRepeated,
                    %sid,
                    method,
                    reason = what.scrubbed(reason, self.secret.as_ref()),
                    "a call that the application may have executed is made again"
                );
            }
        }
        unreachable!("four billion attempts take longer than any process lives")
    }
}

/// Which call it is, for the log.
#[derive(Clone, Copy, Debug)]
pub struct What<'a> {
    pub method: &'static str,
    pub sid: &'a Sid,
    /// What it carries that an error must not quote.
    pub env: Option<&'a proto::Env>,
    pub identifiers: &'a [String],
    /// Identifiers of the connection, and the data of an action.
    pub connection: &'a str,
    pub data: &'a str,
}

impl<'a> What<'a> {
    /// A call that carries nothing.
    pub fn bare(method: &'static str, sid: &'a Sid) -> Self {
        Self { method, sid, env: None, identifiers: &[], connection: "", data: "" }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Busy,
    Unavailable,
}

/// Doubling delays, which start over when the kind of failure changes.
#[derive(Debug, Default)]
struct Backoff {
    last: Option<Kind>,
    doublings: u32,
}

impl Backoff {
    fn next(&mut self, kind: Kind) -> Duration {
        self.doublings = if self.last == Some(kind) { self.doublings + 1 } else { 0 };
        self.last = Some(kind);
        let first = if kind == Kind::Busy { BUSY_DELAY } else { UNAVAILABLE_DELAY };
        first.saturating_mul(1_u32.checked_shl(self.doublings).unwrap_or(u32::MAX))
    }
}

/// Counts how a call ended; one that is dropped before its end was cancelled.
struct Counted {
    over: bool,
}

impl Counted {
    fn new() -> Self {
        Self { over: false }
    }

    fn done(&mut self, error: Option<&RpcError>) {
        self.over = true;
        match error {
            Some(RpcError::Timeout) => {
                metrics::RPC_TIMEOUTS.inc();
                metrics::RPC_ERRORS.inc();
            }
            Some(_) => metrics::RPC_ERRORS.inc(),
            None => {}
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if !self.over {
            metrics::RPC_CANCELED.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    static SID: std::sync::LazyLock<Sid> = std::sync::LazyLock::new(|| Sid::from("s1"));

    fn what() -> What<'static> {
        What::bare("command", &SID)
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// One at a time.
    fn calls(command_timeout: Duration, request_timeout: Duration) -> Calls {
        Calls::new(CallRules {
            concurrency: Concurrency::Fixed(1),
            command_timeout,
            request_timeout,
            retry_sent: true,
            secret: None,
        })
    }

    /// Attempts that fail as told, then succeed; the times at which they were made.
    async fn try_with(calls: &Calls, failures: &[fn() -> Failed]) -> (Result<(), RpcError>, Vec<u128>) {
        let began = Instant::now();
        let times = std::sync::Mutex::new(Vec::new());
        let result = calls
            .call(
                what(),
                |attempt| {
                    times.lock().unwrap().push(began.elapsed().as_millis());
                    std::future::ready(failures.get(attempt.number as usize).map_or(Ok(()), |failure| Err(failure())))
                },
                Ok,
            )
            .await;
        (result, times.into_inner().unwrap())
    }

    fn busy() -> Failed {
        Failed::Busy("busy".into())
    }

    fn away() -> Failed {
        Failed::Unreached("away".into())
    }

    fn broken() -> Failed {
        Failed::Uncertain("broken".into())
    }

    #[tokio::test(start_paused = true)]
    async fn delays_double_and_start_over_when_the_kind_changes() {
        let calls = calls(ms(3000), Duration::ZERO);
        let (result, times) = try_with(&calls, &[busy, busy, busy, away, away, busy]).await;
        result.unwrap();
        assert_eq!(times, [0, 10, 30, 70, 170, 370, 380]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_ends_when_its_budget_has_no_room_for_the_next_delay() {
        let single = calls(ms(3000), Duration::ZERO);
        let (result, times) = try_with(&single, &[away as fn() -> Failed; 9]).await;
        assert!(matches!(result, Err(RpcError::Unreachable(reason)) if reason == "away"));
        assert_eq!(times, [0, 100, 300, 700, 1500]);

        let endless = calls(Duration::ZERO, Duration::ZERO);
        let (result, times) = try_with(&endless, &[away as fn() -> Failed; 9]).await;
        result.unwrap();
        assert_eq!(times.last(), Some(&51_100));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_final_is_not_tried_again() {
        let calls = calls(ms(3000), Duration::ZERO);
        let (result, times) = try_with(&calls, &[|| Failed::Final(RpcError::Garbage("x".into()))]).await;
        assert!(matches!(result, Err(RpcError::Garbage(_))));
        assert_eq!(times, [0]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_have_been_executed_is_tried_again_and_counted_unless_switched_off() {
        let default = calls(ms(3000), Duration::ZERO);
        let before = metrics::RPC_UNCERTAIN_RETRIES.get();
        let (result, times) = try_with(&default, &[broken, away, broken]).await;
        result.unwrap();
        assert_eq!(times, [0, 100, 300, 700], "one kind of failure for the delays");
        assert!(metrics::RPC_UNCERTAIN_RETRIES.get() >= before + 2);

        let careful = Calls { retry_sent: false, ..calls(ms(3000), Duration::ZERO) };
        let (result, times) = try_with(&careful, &[away, busy, broken]).await;
        assert!(matches!(result, Err(RpcError::Broken(reason)) if reason == "broken"));
        assert_eq!(times, [0, 100, 110], "what has not been executed is tried again");
    }

    #[tokio::test(start_paused = true)]
    async fn time_limits_hold_for_one_attempt_and_for_all() {
        let began = Instant::now();
        for (command, request, after) in [(3000, 500, 500), (300, 500, 300), (0, 700, 700)] {
            let calls = calls(ms(command), ms(request));
            let begin = began.elapsed();
            let attempts = AtomicU32::new(0);
            let result = calls
                .call(
                    what(),
                    |attempt| {
                        attempts.fetch_add(1, Ordering::Relaxed);
                        assert_eq!(attempt.limit, Some(ms(after)));
                        std::future::pending::<Result<(), _>>()
                    },
                    Ok,
                )
                .await;
            assert!(matches!(result, Err(RpcError::Timeout)));
            assert_eq!((began.elapsed() - begin, attempts.into_inner()), (ms(after), 1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn waiters_are_served_in_order_and_the_wait_takes_nothing_from_the_budget() {
        let calls = std::sync::Arc::new(calls(ms(3000), Duration::ZERO));
        let (sender, mut order) = tokio::sync::mpsc::channel(8);
        for number in 0..5 {
            let (calls, sender) = (calls.clone(), sender.clone());
            tokio::spawn(async move {
                let work = |attempt: Attempt| async move {
                    assert_eq!(attempt.limit, Some(ms(3000)));
                    sleep(ms(2000)).await;
                    Ok(())
                };
                calls.call(what(), work, Ok).await.unwrap();
                sender.send(number).await.unwrap();
            });
            tokio::task::yield_now().await;
        }
        for number in 0..5 {
            assert_eq!(order.recv().await, Some(number));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_call_frees_its_slot_and_is_counted() {
        let calls = calls(Duration::ZERO, Duration::ZERO);
        let before = metrics::RPC_CANCELED.get();
        let hanging = calls.call(what(), |_| std::future::pending::<Result<(), _>>(), Ok);
        assert!(timeout(ms(10), hanging).await.is_err(), "it hangs");
        assert!(metrics::RPC_CANCELED.get() > before);
        let (result, _) = try_with(&calls, &[]).await;
        result.unwrap();
    }
}
