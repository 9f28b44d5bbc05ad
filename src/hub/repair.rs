//! Fetching from the log what the live feed lost.
//!
//! Holes come one by one from the feed, and by the thousand from comparisons after a reconnect. They gather here, one per
//! stream at most, and belong to one task: few are read at once, each alone; many wait until the comparisons are through
//! and are read together. The store may be away: it is asked until it answers, or until the log begins a new life.

use super::stream::Gap;
use super::{Cell, Hub};
use crate::broker::{Filled, Hole};
use crate::metrics;
use crate::protocol::Epoch;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

const RETRY: Duration = Duration::from_millis(100);

/// Holes read alone at the same time.
const ALONE: usize = 6;
/// As many holes that come at once are worth gathering.
const MANY: usize = 16;
/// How long many holes gather while streams are still being compared, and how often that is looked at.
const GATHER: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(10);
/// Bytes of messages that are handed on before other tasks have a turn: who follows many streams gets all of this at once,
/// and must be able to write meanwhile.
const TURN: usize = 16 << 10;

/// A hole on its way.
pub(super) struct Wanted {
    cell: Arc<Cell>,
    gap: Gap,
    /// Life of the log that the gap is in.
    epoch: Epoch,
    _counted: Counted,
}

struct Counted;

impl Counted {
    fn new() -> Self {
        metrics::GAPS_OPEN.add(1);
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        metrics::GAPS_OPEN.add(-1);
    }
}

/// Holes that nobody reads yet. A stream has one at most, so there are no more than open streams.
#[derive(Default)]
pub(super) struct Repairs {
    waiting: Mutex<Vec<Wanted>>,
    arrived: Notify,
}

impl Repairs {
    /// A hole in a stream whose lock the caller holds, so that the epoch is the gap's.
    pub fn push(&self, cell: &Arc<Cell>, gap: Gap, epoch: Epoch) {
        let wanted = Wanted { cell: cell.clone(), gap, epoch, _counted: Counted::new() };
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(wanted);
        self.arrived.notify_one();
    }

    /// Waits for holes. Giving up loses none.
    async fn take(&self) -> Vec<Wanted> {
        loop {
            let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            if !waiting.is_empty() {
                return waiting;
            }
            self.arrived.notified().await;
        }
    }
}

impl Wanted {
    /// What to read; `None` when the log began a new life, or the stream was closed.
    fn hole(&self, hub: &Hub) -> Option<Hole> {
        if !hub.owns(&self.cell) {
            return None;
        }
        let mut core = self.cell.lock();
        if hub.settle_epoch(&mut core) || *core.epoch() != self.epoch {
            return None;
        }
        let Gap { after, up_to } = self.gap;
        Some(Hole { stream: core.name().clone(), after, up_to, newest: core.newest() })
    }

    /// Closes the hole. There may be another one behind it.
    fn close(self, hub: &Hub, filled: &Filled) {
        let mut core = self.cell.lock();
        if hub.settle_epoch(&mut core) || *core.epoch() != self.epoch {
            return;
        }
        let next = core.repaired(self.gap, &filled.messages, &filled.behind, Instant::now());
        hub.trim_if_over_budget(&mut core);
        if let Some(gap) = next {
            hub.repairs.push(&self.cell, gap, self.epoch.clone());
        }
        if core.take_left_out() {
            hub.compare_soon(&self.cell);
        }
    }
}

/// Fills holes until the hub is stopped.
pub(super) async fn repair_holes(hub: Arc<Hub>) {
    let mut alone: VecDeque<Wanted> = VecDeque::new();
    let mut reading = FuturesUnordered::new();
    let mut together: Vec<Wanted> = Vec::new();
    let mut since = Instant::now();
    let mut range: Option<BoxFuture<'_, Vec<Wanted>>> = None;
    loop {
        while reading.len() < ALONE
            && let Some(wanted) = alone.pop_front()
        {
            reading.push(fill_alone(&hub, wanted));
        }
        let gathered = !hub.queue.has_doubts() || since.elapsed() >= GATHER;
        if range.is_none() && gathered && !together.is_empty() {
            range = Some(Box::pin(fill_together(&hub, std::mem::take(&mut together))));
        }
        tokio::select! {
            new = hub.repairs.take() => match together.is_empty() {
                true if new.len() < MANY => alone.extend(new),
                true => {
                    since = Instant::now();
                    together = new;
                }
                false => together.extend(new),
            },
            left = async { range.as_mut().expect("there is one").await }, if range.is_some() => {
                range = None;
                alone.extend(left);
            }
            Some(()) = reading.next() => {}
            () = tokio::time::sleep(LOOK), if range.is_none() && !together.is_empty() => {}
        }
    }
}

async fn fill_alone(hub: &Hub, wanted: Wanted) {
    while let Some(hole) = wanted.hole(hub) {
        match hub.broker().fill(std::slice::from_ref(&hole)).await {
            Ok(filled) => {
                if let Some(filled) = filled.into_iter().flatten().next() {
                    return wanted.close(hub, &filled);
                }
            }
            Err(error) => tracing::debug!(context = "broker", %error, "a repair waits for the store"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Answers with those that are to be read alone.
async fn fill_together(hub: &Hub, mut wanted: Vec<Wanted>) -> Vec<Wanted> {
    loop {
        let mut holes = Vec::with_capacity(wanted.len());
        wanted.retain(|one| match one.hole(hub) {
            Some(hole) => {
                holes.push(hole);
                true
            }
            None => false,
        });
        if wanted.len() < MANY {
            return wanted;
        }
        let filled = match hub.broker().fill(&holes).await {
            Ok(filled) => filled,
            Err(error) => {
                tracing::debug!(context = "broker", %error, "repairs wait for the store");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        let asked = wanted.len();
        let mut left = Vec::new();
        let mut handed_on = 0;
        for (one, filled) in wanted.into_iter().zip(filled) {
            match filled {
                Some(filled) => {
                    metrics::GAPS_TOGETHER.inc();
                    one.close(hub, &filled);
                    let bytes = filled.messages.iter().map(|message| message.payload.json().len());
                    handed_on += bytes.sum::<usize>();
                    if handed_on >= TURN {
                        handed_on = 0;
                        tokio::task::yield_now().await;
                    }
                }
                None => left.push(one),
            }
        }
        // What did not fit fits the next time; what cannot be read together stays.
        if asked - left.len() < asked / 8 {
            return left;
        }
        wanted = left;
    }
}
