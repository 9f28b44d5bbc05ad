//! The hub's standing tasks: opening streams many at a time, comparing heads after every doubt, closing what is idle.

use super::{Cell, Hub, repair};
use crate::broker::{Facts, Status};
use crate::protocol::StreamName;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Streams per request to the store (its limit is 1,024 subjects).
const BATCH: usize = 1_000;

/// Pause before an opening that failed is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// Opens and compares the streams that are queued, as many at a time as have come together.
pub(super) async fn open_streams(hub: Arc<Hub>, mut queue: mpsc::Receiver<Arc<Cell>>) {
    let mut todo: Vec<Arc<Cell>> = Vec::new();
    loop {
        if todo.is_empty() && queue.recv_many(&mut todo, BATCH).await == 0 {
            return;
        }
        while todo.len() < BATCH
            && let Ok(cell) = queue.try_recv()
        {
            todo.push(cell);
        }
        for cell in &todo {
            cell.queued.store(false, Ordering::Release);
        }
        if compare(&hub, &todo, true).await {
            todo.clear();
        } else {
            // Nobody is told: openers wait for as long as they are willing to, and the store may come back.
            tokio::time::sleep(RETRY).await;
            todo.retain(|cell| !cell.lock().is_open() || cell.lock().has_cursors());
        }
    }
}

/// Learns the heads of these streams and acts on what is missing. `false`: the store could not be asked, or began a
/// new life meanwhile.
async fn compare(hub: &Arc<Hub>, cells: &[Arc<Cell>], open: bool) -> bool {
    let names: Vec<StreamName> = cells.iter().map(|cell| cell.lock().name().clone()).collect();
    let before = hub.status();
    let facts = hub.facts.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let broker = hub.broker();
    let answer = if open { broker.open(&names).await } else { broker.heads(&names).await };
    let after = hub.status();
    let Ok(heads) = answer else { return false };
    if before.epoch != after.epoch || before.generation != after.generation {
        return false;
    }
    let now = Instant::now();
    let (revision, time) = facts.map_or((0, 0), |facts| (facts.revision, if open { 0 } else { facts.now }));
    for (cell, head) in cells.iter().zip(heads.heads) {
        let mut core = cell.lock();
        hub.settle_epoch(&mut core);
        if *core.epoch() != after.epoch {
            continue;
        }
        let gap = core.compare(head, heads.up_to, revision, time, now);
        drop(core);
        cell.opened.notify_waiters();
        if let Some(gap) = gap {
            hub.spawn(repair::repair(hub.clone(), cell.clone(), gap));
        }
    }
    true
}

/// After every new connection to the store each open stream is opened again and compared; a new epoch voids what is held.
pub(super) async fn follow_status(hub: Arc<Hub>, mut status: watch::Receiver<Status>) {
    let mut seen = status.borrow().clone();
    while status.changed().await.is_ok() {
        let now = status.borrow_and_update().clone();
        let new_epoch = now.epoch != seen.epoch && !seen.epoch.as_str().is_empty();
        if new_epoch {
            tracing::warn!(context = "broker", from = ?seen.epoch, to = ?now.epoch, "the log began a new life; clients with older positions are told that their history is lost");
        }
        if now.readable && (now.generation != seen.generation || now.epoch != seen.epoch) {
            *hub.facts.lock().unwrap_or_else(PoisonError::into_inner) = None;
            for cell in hub.cells() {
                hub.settle_epoch(&mut cell.lock());
                if !cell.queued.swap(true, Ordering::AcqRel) {
                    let _ = hub.opener.send(cell).await;
                }
            }
        }
        if now.readable {
            seen = now;
        }
    }
}

/// Finds the last message of a burst that the feed lost: nothing behind it would reveal it.
pub(super) async fn check_heads(hub: Arc<Hub>) {
    let period = hub.config.head_check.min(hub.config.limits.history_ttl / 4).max(Duration::from_millis(50));
    let mut last_complete: Option<(u64, u64)> = None;
    let mut timer = tokio::time::interval(period);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        timer.tick().await;
        let status = hub.status();
        let cells: Vec<_> = hub.cells().into_iter().filter(|cell| cell.lock().is_open()).collect();
        if !status.readable || cells.is_empty() || !hub.broker().features().history {
            continue;
        }
        let Ok(facts) = hub.broker().facts().await else { continue };
        let unchanged = last_complete == Some((status.generation, facts.last_seq));
        *hub.facts.lock().unwrap_or_else(PoisonError::into_inner) = Some(facts.clone());
        if unchanged && idle(&cells, &facts) {
            continue;
        }
        let mut complete = true;
        for batch in cells.chunks(BATCH) {
            complete &= compare(&hub, batch, false).await;
        }
        last_complete = complete.then_some((status.generation, facts.last_seq));
    }
}

/// Nothing was stored since the last complete check: every stream is still where it was. `false` if some stream has
/// not come as far as the log.
fn idle(cells: &[Arc<Cell>], facts: &Facts) -> bool {
    let now = Instant::now();
    let mut all = true;
    for cell in cells {
        let mut core = cell.lock();
        if core.complete_to() >= facts.last_seq {
            let head = core.newest();
            all &= core.compare(head, facts.last_seq, facts.revision, facts.now, now).is_none();
        } else {
            all = false;
        }
    }
    all
}

/// Closes streams that had no follower for the linger time.
pub(super) async fn close_idle(hub: Arc<Hub>) {
    let mut timer = tokio::time::interval(Duration::from_secs(1).min(hub.config.linger.max(Duration::from_millis(50))));
    loop {
        timer.tick().await;
        let now = Instant::now();
        for shard in &hub.shards {
            shard.write().unwrap_or_else(PoisonError::into_inner).retain(|name, cell| {
                let used = {
                    let mut core = cell.lock();
                    core.expire_pages(now);
                    cell.users.load(Ordering::Acquire) > 0 || core.has_cursors()
                };
                let mut idle = cell.idle_since.lock().unwrap_or_else(PoisonError::into_inner);
                if used {
                    *idle = None;
                    return true;
                }
                let over = now.duration_since(*idle.get_or_insert(now)) >= hub.config.linger;
                if over {
                    // Under the shard's lock, so that whoever opens the stream again does so after this.
                    hub.broker().close(name);
                    crate::metrics::STREAMS.add(-1);
                }
                !over
            });
        }
    }
}
