//! Fetching from the log what the live feed lost.

use super::stream::Gap;
use super::{Cell, Hub};
use crate::broker::{Page, ReadFrom};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const RETRY: Duration = Duration::from_millis(100);

/// Messages and bytes per read.
pub(super) const PAGE_MESSAGES: usize = 500;
pub(super) const PAGE_BYTES: usize = 256 << 10;

/// Fills a hole, and the next one behind it, until the stream is whole again. The store may be away: it is asked until
/// it answers, or until the log begins a new life.
pub(super) async fn repair(hub: Arc<Hub>, cell: Arc<Cell>, gap: Gap) {
    let mut gap = Some(gap);
    while let Some(hole) = gap {
        let (name, epoch) = {
            let core = cell.lock();
            (core.name().clone(), core.epoch().clone())
        };
        let Some((page, kept)) = read_hole(&hub, &cell, &name, &epoch, hole).await else { return };
        let mut core = cell.lock();
        if *core.epoch() != epoch {
            return;
        }
        gap = core.repaired(hole, &page, kept, Instant::now());
    }
}

/// Everything kept in the hole, as one page; `None` when the log began a new life meanwhile. The read starts at the
/// held message, which shows whether that one is still kept.
async fn read_hole(
    hub: &Hub,
    cell: &Cell,
    name: &crate::protocol::StreamName,
    epoch: &crate::protocol::Epoch,
    hole: Gap,
) -> Option<(Page, bool)> {
    let mut messages = Vec::new();
    let mut from = hole.after.max(1);
    let mut kept = false;
    loop {
        if *cell.lock().epoch() != *epoch || hub.status().epoch != *epoch {
            return None;
        }
        let read = hub.broker().read(name, ReadFrom::Offset(from), hole.up_to, PAGE_MESSAGES, PAGE_BYTES).await;
        let mut page = match read {
            Ok(page) => page,
            Err(unavailable) => {
                tracing::debug!(context = "broker", stream = ?name, error = %unavailable, "repair waits for the store");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        let before = page.messages.len();
        page.messages.retain(|message| message.offset > hole.after);
        kept |= page.messages.len() < before;
        messages.append(&mut page.messages);
        match messages.last() {
            Some(last) if page.remaining > 0 && last.offset < hole.up_to => from = last.offset + 1,
            None if page.remaining > 0 => from = hole.after + 1,
            _ => return Some((Page { messages, remaining: 0, ..page }, kept)),
        }
    }
}
