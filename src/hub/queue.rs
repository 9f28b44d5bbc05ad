//! Streams that wait to be opened or compared.
//!
//! A stream stands here at most once, and closing it takes it out. So the queue is never longer than the number of open
//! streams, and queueing neither waits nor fails: nobody can be cancelled while it queues a stream.

use super::Cell;
use crate::metrics;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Streams per request to the store (its limit is 1,024 subjects).
pub(super) const BATCH: usize = 1_000;

/// Places in a batch for streams that nobody waits for, as long as there are any: openings do not starve comparisons.
const DOUBTED_SHARE: usize = BATCH / 4;

/// Where a stream stands. Changed under the queue's lock only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Place {
    #[default]
    Nowhere,
    /// Somebody waits for it.
    Awaited(u64),
    /// What it holds is to be compared with the log.
    Doubted(u64),
    /// It was closed and never stands here again.
    Closed,
}

#[derive(Default)]
pub(super) struct Queue {
    lines: Mutex<Lines>,
    arrived: Notify,
}

#[derive(Default)]
struct Lines {
    /// Numbers the places in the order of their arrival.
    last: u64,
    awaited: BTreeMap<u64, Arc<Cell>>,
    doubted: BTreeMap<u64, Arc<Cell>>,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a stream that somebody waits for; one that is to be compared moves ahead.
    pub fn await_opening(&self, cell: &Arc<Cell>) {
        let mut lines = self.lock();
        let mut place = cell.place();
        match *place {
            Place::Nowhere => metrics::STREAMS_QUEUED.add(1),
            Place::Doubted(number) => drop(lines.doubted.remove(&number)),
            Place::Awaited(_) | Place::Closed => return,
        }
        lines.last += 1;
        *place = Place::Awaited(lines.last);
        let number = lines.last;
        lines.awaited.insert(number, cell.clone());
        drop(place);
        drop(lines);
        self.arrived.notify_one();
    }

    /// Queues a stream that is to be compared.
    pub fn doubt(&self, cell: &Arc<Cell>) {
        let mut lines = self.lock();
        let mut place = cell.place();
        if *place != Place::Nowhere {
            return;
        }
        metrics::STREAMS_QUEUED.add(1);
        lines.last += 1;
        *place = Place::Doubted(lines.last);
        let number = lines.last;
        lines.doubted.insert(number, cell.clone());
        drop(place);
        drop(lines);
        self.arrived.notify_one();
    }

    /// The stream is closed.
    pub fn remove(&self, cell: &Cell) {
        let mut lines = self.lock();
        let former = std::mem::replace(&mut *cell.place(), Place::Closed);
        let held = match former {
            Place::Awaited(number) => lines.awaited.remove(&number),
            Place::Doubted(number) => lines.doubted.remove(&number),
            Place::Nowhere | Place::Closed => None,
        };
        metrics::STREAMS_QUEUED.add(-i64::from(held.is_some()));
    }

    /// Streams are still to be compared.
    pub fn has_doubts(&self) -> bool {
        !self.lock().doubted.is_empty()
    }

    /// Waits for streams and takes a batch of them out; what is queued again from now on will be taken again.
    pub async fn take(&self) -> Vec<Arc<Cell>> {
        loop {
            let batch = self.take_now();
            if !batch.is_empty() {
                return batch;
            }
            self.arrived.notified().await;
        }
    }

    fn take_now(&self) -> Vec<Arc<Cell>> {
        let mut lines = self.lock();
        let doubted = lines.doubted.len().min(DOUBTED_SHARE.max(BATCH.saturating_sub(lines.awaited.len())));
        let mut batch = Vec::with_capacity(BATCH.min(lines.awaited.len() + doubted));
        while batch.len() + doubted < BATCH
            && let Some((_, cell)) = lines.awaited.pop_first()
        {
            batch.push(cell);
        }
        for _ in 0..doubted {
            batch.extend(lines.doubted.pop_first().map(|(_, cell)| cell));
        }
        for cell in &batch {
            *cell.place() = Place::Nowhere;
        }
        metrics::STREAMS_QUEUED.add(-i64::try_from(batch.len()).unwrap_or(0));
        batch
    }
}
