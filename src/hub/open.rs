//! The hub's standing tasks: opening streams many at a time, comparing heads after every doubt, closing what is idle.

use super::queue::BATCH;
use super::{Cell, Hub};
use crate::broker::{Facts, Head, Looked, Status};
use crate::protocol::{Epoch, StreamName};
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Pause before an opening that failed is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// Opens and compares the streams that are queued, as many at a time as have come together.
pub(super) async fn open_streams(hub: Arc<Hub>) {
    loop {
        let batch = hub.queue.take().await;
        if compare(&hub, &batch, true).await {
            continue;
        }
        // Nobody is told: openers wait for as long as they are willing to, and the store may come back. What was closed
        // meanwhile is not queued again.
        for cell in &batch {
            let awaited = cell.users.load(Ordering::Acquire) > 0 && !cell.is_open_in(hub.generation());
            if awaited { hub.queue.await_opening(cell) } else { hub.queue.doubt(cell) }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Streams that the store is asked to open. However that ends, also when it is given up, what was opened for a cell that
/// has been closed meanwhile is closed again.
struct Opening<'a> {
    hub: &'a Hub,
    names: &'a [StreamName],
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.names.iter().for_each(|name| self.hub.close_if_unowned(name));
    }
}

/// Learns the heads of these streams and acts on what is missing. `false`: the store could not be asked, or began a
/// new life meanwhile.
async fn compare(hub: &Arc<Hub>, cells: &[Arc<Cell>], open: bool) -> bool {
    let names: Vec<StreamName> = cells.iter().map(|cell| cell.lock().name().clone()).collect();
    let asked = hub.clock.now();
    let before = hub.status();
    let broker = hub.broker();
    let answer = if open {
        let _opening = Opening { hub, names: &names };
        broker.open(&names).await
    } else {
        broker.heads(&names).await
    };
    let after = hub.status();
    let Ok(answers) = answer else { return false };
    if !before.logs.is(&after.logs) || before.generation != after.generation {
        return false;
    }
    let now = Instant::now();
    for (cell, looked) in cells.iter().zip(answers).filter(|(cell, _)| hub.owns(cell)) {
        let mut core = cell.lock();
        let began_anew = hub.settle_epoch(&mut core);
        // Another log than the one that was asked: whoever changed it has all streams opened again.
        if !core.has_seen(&after.logs) || (began_anew && !open) {
            continue;
        }
        let gap = core.compare(&looked, now);
        cell.asked.fetch_max(asked, Ordering::Release);
        if open {
            cell.opened_in.store(after.generation, Ordering::Release);
        }
        if let Some(gap) = gap {
            hub.repairs.push(cell, gap, core.epoch().clone());
        }
        if core.take_left_out() {
            hub.compare_soon(cell);
        }
        drop(core);
        cell.opened.notify_waiters();
    }
    true
}

/// After every new connection to the store each open stream is opened again and compared; a new epoch voids what is held.
pub(super) async fn follow_status(hub: Arc<Hub>, mut status: watch::Receiver<Status>) {
    let mut seen = status.borrow().clone();
    while status.changed().await.is_ok() {
        let now = status.borrow_and_update().clone();
        for (policy, from, to) in new_lives(&seen, &now) {
            crate::metrics::EPOCH_CHANGES.inc();
            tracing::warn!(
                context = "broker",
                policy,
                ?from,
                ?to,
                "the log began a new life; clients with older positions are told that their history is lost"
            );
        }
        if now.readable && (now.generation != seen.generation || !now.logs.is(&seen.logs)) {
            for cell in hub.cells() {
                hub.settle_epoch(&mut cell.lock());
                hub.compare_soon(&cell);
            }
        }
        if now.readable {
            seen = now;
        }
    }
}

/// Policies whose log has another epoch than it had: their name, the former epoch and the present one.
fn new_lives(before: &Status, now: &Status) -> Vec<(String, Epoch, Epoch)> {
    let policies = now.logs.table().policies().iter().zip(now.logs.states());
    let changed = policies.filter_map(|(policy, state)| {
        let place = before.logs.table().policies().iter().position(|former| former.name == policy.name)?;
        let former = &before.logs.states()[place].epoch;
        let changed = *former != Epoch::none() && *former != state.epoch;
        changed.then(|| (policy.name.to_string(), former.clone(), state.epoch.clone()))
    });
    changed.collect()
}

/// Finds the last message of a burst that the feed lost: nothing behind it would reveal it.
pub(super) async fn check_heads(hub: Arc<Hub>) {
    let mut last_complete: HashMap<Epoch, (u64, u64)> = HashMap::new();
    loop {
        let status = hub.status();
        let mut by_log: HashMap<Epoch, Vec<Arc<Cell>>> = HashMap::new();
        if status.readable {
            for cell in hub.cells() {
                if !cell.is_open_in(status.generation) {
                    // It waits to be opened on this connection, which compares it.
                    hub.compare_soon(&cell);
                    continue;
                }
                let epoch = {
                    let core = cell.lock();
                    core.keeps().then(|| core.epoch().clone())
                };
                if let Some(epoch) = epoch {
                    by_log.entry(epoch).or_default().push(cell);
                }
            }
        }
        last_complete.retain(|epoch, _| by_log.contains_key(epoch));
        for (epoch, cells) in by_log {
            check_log(&hub, &status, &epoch, &cells, &mut last_complete).await;
        }
        let shortest = status.logs.states().iter().map(|log| log.ttl).filter(|ttl| !ttl.is_zero()).min();
        let period = hub.config.head_check.min(shortest.unwrap_or(Duration::MAX) / 4).max(Duration::from_millis(50));
        tokio::time::sleep(period).await;
    }
}

/// The open streams of one log.
async fn check_log(
    hub: &Arc<Hub>,
    status: &Status,
    epoch: &Epoch,
    cells: &[Arc<Cell>],
    last_complete: &mut HashMap<Epoch, (u64, u64)>,
) {
    let one = cells[0].lock().name().clone();
    let asked = hub.clock.now();
    let Ok(facts) = hub.broker().facts(&one).await else { return };
    if !hub.status().logs.is(&status.logs) {
        return;
    }
    let unchanged = last_complete.get(epoch) == Some(&(status.generation, facts.last_seq));
    if unchanged && idle(cells, epoch, &facts, asked) {
        return;
    }
    let mut complete = true;
    for batch in cells.chunks(BATCH) {
        complete &= compare(hub, batch, false).await;
    }
    if complete {
        last_complete.insert(epoch.clone(), (status.generation, facts.last_seq));
    } else {
        last_complete.remove(epoch);
    }
}

/// Nothing was stored since the last complete check: every stream is still where it was. `false` if some stream has
/// not come as far as the log. `asked`: when the log was asked for its facts.
fn idle(cells: &[Arc<Cell>], epoch: &Epoch, facts: &Facts, asked: u64) -> bool {
    let now = Instant::now();
    let mut all = true;
    for cell in cells {
        let mut core = cell.lock();
        if core.epoch() == epoch && core.complete_to() >= facts.last_seq {
            let head = Head { newest: core.newest(), up_to: facts.last_seq };
            all &= core.compare(&Looked::at_once(head, facts.clone()), now).is_none();
            cell.asked.fetch_max(asked, Ordering::Release);
        } else {
            all = false;
        }
    }
    all
}

/// Closes streams that had no follower for the linger time; all without one where as many streams are open as may be.
pub(super) async fn close_idle(hub: Arc<Hub>) {
    let mut timer = tokio::time::interval(Duration::from_secs(1).min(hub.config.linger.max(Duration::from_millis(50))));
    loop {
        timer.tick().await;
        let now = Instant::now();
        let linger = if hub.is_full() { Duration::ZERO } else { hub.config.linger };
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
                let over = now.duration_since(*idle.get_or_insert(now)) >= linger;
                if over {
                    // Under the shard's lock, so that whoever opens the stream again does so after this.
                    hub.queue.remove(cell);
                    hub.broker().close(name);
                    hub.streams.fetch_sub(1, Ordering::Relaxed);
                    crate::metrics::STREAMS.add(-1);
                }
                !over
            });
        }
    }
}
