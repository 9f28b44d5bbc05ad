//! How many calls may be in flight at the same time: a fixed number, or one that follows what the application can take.
//! Whoever finds no slot waits in line.

use crate::metrics;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// Bounds of a limit that adapts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConcurrencyRange {
    pub initial: usize,
    pub min: usize,
    pub max: usize,
}

/// The limit as it is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concurrency {
    /// At least 1.
    Fixed(usize),
    Adaptive(ConcurrencyRange),
}

/// As the start line has it.
impl fmt::Display for Concurrency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(limit) => write!(f, "{limit}"),
            Self::Adaptive(ConcurrencyRange { initial, min, max }) => {
                write!(f, "auto (initial={initial}, min={min}, max={max})")
            }
        }
    }
}

/// Time between two steps in the same direction: the calls of one crowd say the same thing many times.
const STEP: Duration = Duration::from_secs(1);
/// How long no step up follows a refusal: refusals count more than waiting.
const REST: Duration = Duration::from_secs(5);

/// The limit over time, without slots: one step per second at most, a fifth down or a tenth up.
#[derive(Debug)]
struct Limit {
    range: ConcurrencyRange,
    now: usize,
    next_down: Option<Instant>,
    next_up: Option<Instant>,
}

impl Limit {
    fn new(range: ConcurrencyRange) -> Self {
        Self { range, now: range.initial, next_down: None, next_up: None }
    }

    /// The application had no room for a call.
    fn refused(&mut self, at: Instant) {
        self.next_up = Some(at + REST);
        if self.next_down.is_none_or(|next| next <= at) {
            self.next_down = Some(at + STEP);
            self.now = self.range.min.max(self.now - (self.now / 5).max(1));
        }
    }

    /// A call waits for a slot.
    fn pressed(&mut self, at: Instant) {
        if self.next_up.is_none_or(|next| next <= at) {
            self.next_up = Some(at + STEP);
            self.now = self.range.max.min(self.now + (self.now / 10).max(1));
        }
    }
}

#[derive(Debug)]
struct State {
    /// `None`: the limit is fixed.
    adaptive: Option<Limit>,
    /// Slots of calls that still run although the limit does not allow for them any more.
    surplus: usize,
    /// The limit that the slots follow.
    limit: usize,
}

/// Slots for calls.
#[derive(Debug)]
pub struct Capacity {
    /// First come, first served.
    slots: Semaphore,
    state: Mutex<State>,
    waiting: AtomicUsize,
}

/// The right to make a call, as long as it lives.
#[derive(Debug)]
pub struct Slot<'a> {
    capacity: &'a Capacity,
    permit: Option<SemaphorePermit<'a>>,
}

impl Capacity {
    pub fn new(concurrency: Concurrency) -> Self {
        let (limit, adaptive) = match concurrency {
            Concurrency::Fixed(limit) => (limit, None),
            Concurrency::Adaptive(range) => (range.initial, Some(Limit::new(range))),
        };
        metrics::RPC_CAPACITY.add(count(limit));
        let state = Mutex::new(State { adaptive, surplus: 0, limit });
        Self { slots: Semaphore::new(limit), state, waiting: AtomicUsize::new(0) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a slot. Dropping the future gives the place in line back.
    pub async fn acquire(&self) -> Slot<'_> {
        let permit = match self.slots.try_acquire() {
            Ok(permit) => permit,
            Err(_) => {
                let _waiting = Waiting::new(self);
                self.pressed();
                self.slots.acquire().await.expect("the semaphore is never closed")
            }
        };
        Slot { capacity: self, permit: Some(permit) }
    }

    /// The application refused a call for want of room.
    pub fn refused(&self) {
        self.step(Limit::refused);
    }

    fn pressed(&self) {
        self.step(Limit::pressed);
    }

    fn step(&self, step: impl FnOnce(&mut Limit, Instant)) {
        let mut state = self.state();
        let Some(adaptive) = &mut state.adaptive else { return };
        step(adaptive, Instant::now());
        let (wanted, limit) = (adaptive.now, state.limit);
        if wanted == limit {
            return;
        }
        state.limit = wanted;
        metrics::RPC_CAPACITY.add(count(wanted) - count(limit));
        if wanted < limit {
            let excess = limit - wanted;
            state.surplus += excess - self.slots.forget_permits(excess);
        } else {
            let more = wanted - limit;
            let kept = state.surplus.min(more);
            state.surplus -= kept;
            self.slots.add_permits(more - kept);
        }
        drop(state);
        tracing::debug!(context = "rpc", from = limit, to = wanted, "the number of calls in flight adapts");
    }

    #[cfg(test)]
    pub fn limit(&self) -> usize {
        self.state().limit
    }
}

impl Drop for Capacity {
    fn drop(&mut self) {
        metrics::RPC_CAPACITY.add(-count(self.state().limit));
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let Some(permit) = self.permit.take() else { return };
        let mut state = self.capacity.state();
        if state.surplus > 0 {
            state.surplus -= 1;
            permit.forget();
        } else {
            drop(permit);
        }
        drop(state);
        if self.capacity.waiting.load(Ordering::Relaxed) > 0 {
            self.capacity.pressed();
        }
    }
}

/// A call in line, as long as it lives.
struct Waiting<'a>(&'a Capacity);

impl<'a> Waiting<'a> {
    fn new(capacity: &'a Capacity) -> Self {
        capacity.waiting.fetch_add(1, Ordering::Relaxed);
        metrics::RPC_PENDING.add(1);
        Self(capacity)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
        metrics::RPC_PENDING.add(-1);
    }
}

fn count(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    const RANGE: ConcurrencyRange = ConcurrencyRange { initial: 25, min: 5, max: 100 };

    fn limits(steps: usize, mut step: impl FnMut() -> usize) -> Vec<usize> {
        (0..steps).map(|_| step()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_calls_raise_the_limit_and_refusals_lower_it_within_the_range() {
        let mut limit = Limit::new(RANGE);
        let began = Instant::now();
        let mut at = began;
        let up = limits(20, || {
            limit.pressed(at);
            limit.pressed(at + STEP / 2);
            at += STEP;
            limit.now
        });
        assert_eq!(up[..4], [27, 29, 31, 34], "one step a second, however many wait");
        assert_eq!(up.last(), Some(&100));
        let down = limits(20, || {
            limit.refused(at);
            limit.refused(at + STEP / 2);
            at += STEP;
            limit.now
        });
        assert_eq!(down[..4], [80, 64, 52, 42]);
        assert_eq!(down.last(), Some(&5));
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_count_more_than_waiting() {
        let mut limit = Limit::new(RANGE);
        let at = Instant::now();
        limit.refused(at);
        assert_eq!(limit.now, 20);
        limit.pressed(at + REST - STEP / 2);
        assert_eq!(limit.now, 20, "not so soon after a refusal");
        limit.pressed(at + REST);
        assert_eq!(limit.now, 22);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lower_limit_holds_as_soon_as_running_calls_end() {
        let capacity = Capacity::new(Concurrency::Adaptive(ConcurrencyRange { initial: 10, min: 1, max: 12 }));
        let mut running = Vec::new();
        for _ in 0..10 {
            running.push(capacity.acquire().await);
        }
        capacity.refused();
        assert_eq!(capacity.limit(), 8);
        running.truncate(8);
        assert_eq!(capacity.slots.available_permits(), 0, "two were too many");
        running.truncate(7);
        assert_eq!(capacity.slots.available_permits(), 1);
        capacity.refused();
        assert_eq!(capacity.limit(), 8, "the same crowd");
        advance(REST).await;
        capacity.refused();
        assert_eq!((capacity.limit(), capacity.slots.available_permits()), (7, 0), "free slots go at once");
        drop(running);
        assert_eq!(capacity.slots.available_permits(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn a_higher_limit_lets_the_next_in_line_go() {
        let capacity = Capacity::new(Concurrency::Adaptive(ConcurrencyRange { initial: 1, min: 1, max: 2 }));
        let _first = capacity.acquire().await;
        let _second = tokio::time::timeout(STEP, capacity.acquire()).await.expect("its waiting raised the limit");
        assert_eq!(capacity.limit(), 2);
        assert!(tokio::time::timeout(STEP * 3, capacity.acquire()).await.is_err(), "two at most");
    }

    #[tokio::test(start_paused = true)]
    async fn a_fixed_limit_stays() {
        let capacity = Capacity::new(Concurrency::Fixed(1));
        let first = capacity.acquire().await;
        assert!(tokio::time::timeout(STEP * 3, capacity.acquire()).await.is_err());
        capacity.refused();
        drop(first);
        let _next = capacity.acquire().await;
        assert_eq!(capacity.limit(), 1);
    }
}
