//! Fetching from the log what the live feed lost.

use super::stream::Gap;
use super::{Cell, Hub};
use crate::broker::{Behind, ReadFrom, Unavailable};
use crate::protocol::{Epoch, Message, StreamName};
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
        let mut reading = Reading::new(&hub, &cell, hole);
        let (messages, behind) = loop {
            match reading.read().await {
                Ok(Some(whole)) => break whole,
                Ok(None) => return,
                Err(unavailable) => {
                    tracing::debug!(context = "broker", error = %unavailable, "repair waits for the store");
                    tokio::time::sleep(RETRY).await;
                }
            }
        };
        let mut core = cell.lock();
        if hub.settle_epoch(&mut core) || *core.epoch() != reading.epoch {
            return;
        }
        gap = core.repaired(hole, &messages, &behind, Instant::now());
    }
}

/// Reading everything that is kept in a hole, over several attempts.
struct Reading<'a> {
    hub: &'a Hub,
    cell: &'a Cell,
    hole: Gap,
    name: StreamName,
    epoch: Epoch,
    messages: Vec<Arc<Message>>,
    /// The newest message held.
    newest: u64,
}

impl<'a> Reading<'a> {
    fn new(hub: &'a Hub, cell: &'a Cell, hole: Gap) -> Self {
        let core = cell.lock();
        Self {
            hub,
            cell,
            hole,
            name: core.name().clone(),
            epoch: core.epoch().clone(),
            messages: Vec::new(),
            newest: core.newest(),
        }
    }

    /// Goes on reading; `None` when the log began a new life meanwhile.
    async fn read(&mut self) -> Result<Option<(Vec<Arc<Message>>, Behind)>, Unavailable> {
        let Self { hole, .. } = *self;
        let broker = self.hub.broker();
        loop {
            {
                let mut core = self.cell.lock();
                if self.hub.settle_epoch(&mut core) || *core.epoch() != self.epoch {
                    return Ok(None);
                }
            }
            let from = ReadFrom::Offset(self.messages.last().map_or(hole.after, |last| last.offset) + 1);
            let mut page = broker.read(&self.name, from, hole.up_to, PAGE_MESSAGES, PAGE_BYTES).await?;
            self.messages.append(&mut page.messages);
            if page.remaining == 0 {
                let behind = broker.behind(&self.name, self.newest).await?;
                if let Err(lagging) = behind.confirms(&self.messages, hole.up_to) {
                    self.messages.clear();
                    return Err(lagging);
                }
                return Ok(Some((std::mem::take(&mut self.messages), behind)));
            }
        }
    }
}
