//! Reading the past on demand: is a position complete, and what follows it?

use super::proof::{SavedProof, is_complete_after};
use super::repair::{PAGE_BYTES, PAGE_MESSAGES};
use super::stream::{Cover, CursorId};
use super::{Cell, Hub};
use crate::broker::{Page, ReadFrom, Unavailable};
use crate::protocol::Position;
use std::sync::Arc;
use tokio::time::Instant;

/// Seconds beyond which a time lies in the future, however clocks differ.
const A_DAY: u64 = 86_400;

/// What a client asks for of one stream.
#[derive(Clone, Debug)]
pub enum From {
    /// Everything after this position.
    Position(Position),
    /// Everything stored in this second (Unix) or later.
    Since(u64),
}

/// Answer to [`Hub::locate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Located {
    /// Everything after this offset can be replayed.
    After(u64),
    /// Something was lost, or that nothing was cannot be proved.
    Lost,
}

impl Hub {
    /// Finds out whether everything after `from` can be replayed, reading the log if the tail does not reach back far
    /// enough. `saved`: the proof that came with a restored session.
    pub async fn locate(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        from: &From,
        saved: Option<&SavedProof>,
    ) -> Result<Located, Unavailable> {
        let work = async {
            loop {
                let tried = match from {
                    From::Position(position) => self.locate_position(cell, position, saved).await,
                    From::Since(since) => self.locate_time(cell, *since).await,
                };
                match tried {
                    Ok(Some(located)) => return located,
                    // The tail moved meanwhile, or the store is away: look again.
                    Ok(None) => tokio::task::yield_now().await,
                    Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
                }
            }
        };
        tokio::time::timeout(self.config.broker_timeout, work)
            .await
            .map_err(|_| Unavailable(self.status().reason.to_string()))
    }

    async fn locate_position(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        position: &Position,
        saved: Option<&SavedProof>,
    ) -> Result<Option<Located>, Unavailable> {
        let x = position.offset;
        // A store that is away may come back as another life: nothing is believed before it answers.
        let ready = |hub: &Self| hub.status().readable.then_some(()).ok_or_else(|| Unavailable(String::new()));
        ready(self)?;
        let (cover, name) = {
            let mut core = cell.lock();
            if self.settle_epoch(&mut core) || !core.is_open() {
                return Err(Unavailable("the stream is being opened anew".into()));
            }
            if *core.epoch() != position.epoch {
                return Ok(Some(Located::Lost));
            }
            (core.cover(x), core.name().clone())
        };
        let floor = match cover {
            Cover::Held => return Ok(Some(Located::After(x))),
            Cover::Beyond => {
                if x > self.broker().facts(&name).await?.last_seq {
                    return Ok(Some(Located::Lost));
                }
                // The message is on its way to this node; the comparison brings it, or shows that there is more.
                self.compare_soon(cell);
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                return Ok(None);
            }
            Cover::Before { floor } => floor,
        };
        let _gate = cell.gate.lock().await;
        if cell.lock().cover(x) != (Cover::Before { floor }) {
            return Ok(None);
        }
        let page = self.broker().read(&name, ReadFrom::Offset(x + 1), floor, PAGE_MESSAGES, PAGE_BYTES).await?;
        let behind = self.broker().behind(&name, x).await?;
        let mut core = cell.lock();
        if *core.epoch() != position.epoch || !core.is_open() {
            return Ok(None);
        }
        let held = core.proof();
        let proofs = [saved.and_then(|saved| saved.of(position)), Some(&held)];
        if !proofs.into_iter().any(|proof| is_complete_after(x, behind, &page.facts, proof)) {
            return Ok(Some(Located::Lost));
        }
        if page.remaining == 0 {
            core.tail_mut().prepend(x, floor, &page.messages, None, Instant::now());
        }
        Ok(Some(Located::After(x)))
    }

    async fn locate_time(self: &Arc<Self>, cell: &Arc<Cell>, since: u64) -> Result<Option<Located>, Unavailable> {
        if since > unix_seconds() + A_DAY {
            // Milliseconds by mistake, or a client's clock gone wild: nothing was stored then by any store's clock.
            let core = cell.lock();
            return Ok(core.is_open().then(|| Located::After(core.complete_to())));
        }
        let (floor, name, epoch) = {
            let mut core = cell.lock();
            if self.settle_epoch(&mut core) || !core.is_open() {
                return Err(Unavailable("the stream is being opened anew".into()));
            }
            match core.tail().position_at(since) {
                Ok(after) => return Ok(Some(Located::After(after))),
                Err(floor) => (floor, core.name().clone(), core.epoch().clone()),
            }
        };
        let _gate = cell.gate.lock().await;
        if cell.lock().tail().position_at(since) != Err(floor) {
            return Ok(None);
        }
        let page = self.broker().read(&name, ReadFrom::Time(since), floor, PAGE_MESSAGES, PAGE_BYTES).await?;
        let mut core = cell.lock();
        if *core.epoch() != epoch || !core.is_open() {
            return Ok(None);
        }
        let after = page.messages.first().map_or(floor, |first| first.offset - 1);
        if page.remaining == 0 {
            core.tail_mut().prepend(after, floor, &page.messages, Some(since), Instant::now());
        }
        Ok(Some(Located::After(after)))
    }

    /// Reads what a replaying cursor needs next and sends it.
    pub async fn feed_page(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        cursor: CursorId,
        after: u64,
        up_to: u64,
    ) -> Result<(), Unavailable> {
        let (name, epoch) = {
            let core = cell.lock();
            (core.name().clone(), core.epoch().clone())
        };
        let read = self.broker().read(&name, ReadFrom::Offset(after + 1), up_to, PAGE_MESSAGES, PAGE_BYTES);
        let page: Page = read.await?;
        let behind = self.broker().behind(&name, after).await?;
        let mut core = cell.lock();
        if *core.epoch() == epoch {
            core.supply(cursor, after, up_to, &page, behind);
        }
        Ok(())
    }
}

fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs()
}
