//! Reading the past on demand: is a position complete, and what follows it?

use super::pages::SharedPage;
use super::proof::{Proof, SavedProof, is_complete_after};
use super::stream::{Cover, CursorId, Stream};
use super::{Cell, Hub};
use crate::broker::{Behind, MAX_OFFSET, ReadFrom, Unavailable};
use crate::metrics;
use crate::protocol::{Position, StreamName};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Messages and bytes per read.
const PAGE_MESSAGES: usize = 500;
const PAGE_BYTES: usize = 256 << 10;

/// How long the end of a shared log may lie before a position of it: a leader that was just elected, or has been frozen,
/// may still be applying what it has agreed to. Only what stays wrong is wrong. Half of the broker timeout where that is less:
/// the client is to be answered.
const LAGGING_LEADER: Duration = Duration::from_secs(3);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Located {
    /// Everything after this position can be replayed, as long as the log lives the life that the position is of.
    After(Position),
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
            let mut beyond = None;
            loop {
                let tried = match from {
                    From::Position(position) => self.locate_position(cell, position, saved, &mut beyond).await,
                    From::Since(since) => self.locate_time(cell, *since).await,
                };
                match tried {
                    Ok(Some(located)) => return located,
                    // The tail moved meanwhile, or the store is away: look again.
                    Ok(None) => tokio::task::yield_now().await,
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
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
        // Since when the log's end was found to lie before the position.
        beyond: &mut Option<Instant>,
    ) -> Result<Option<Located>, Unavailable> {
        let x = position.offset;
        // A store that is away may come back as another life: nothing is believed before it answers.
        let ready = |hub: &Self| hub.status().readable.then_some(()).ok_or_else(|| Unavailable(String::new()));
        ready(self)?;
        let saved = saved.and_then(|saved| saved.of(position)).copied();
        let looked = {
            let mut core = cell.lock();
            if self.settle_epoch(&mut core) || !core.is_open() {
                return Err(Unavailable("the stream is being opened anew".into()));
            }
            if *core.epoch() != position.epoch {
                return Ok(Some(Located::Lost));
            }
            let newest = newest_up_to(x, [saved, Some(core.proof())]);
            (!core.is_served_from(x)).then(|| (core.cover(x), core.name().clone(), newest))
        };
        let Some((cover, name, newest)) = looked else {
            let whole = self.is_followed_by_all(cell).await?;
            return Ok(whole.map(|whole| if whole { Located::After(position.clone()) } else { Located::Lost }));
        };
        if cover == Cover::Beyond {
            if x > MAX_OFFSET {
                return Ok(Some(Located::Lost));
            }
            if x > self.broker().facts(&name).await?.last_seq {
                let since = beyond.get_or_insert_with(Instant::now).elapsed();
                let patience = LAGGING_LEADER.min(self.config.broker_timeout / 2);
                if !self.broker().features().shared || since >= patience {
                    return Ok(Some(Located::Lost));
                }
                tokio::time::sleep(LOOK_AGAIN.min(patience / 2)).await;
                return Ok(None);
            }
            // The message is on its way to this node; the comparison brings it, or shows that there is more.
            self.compare_soon(cell);
            tokio::time::sleep(Duration::from_millis(1)).await;
            return Ok(None);
        }
        let found = || Ok(Some(Located::After(position.clone())));
        let is_complete = |core: &Stream, behind: &Behind| {
            let held = core.proof();
            let proofs = [saved.as_ref(), Some(&held)];
            proofs.into_iter().any(|proof| is_complete_after(x, behind, proof))
        };
        let _gate = match cell.gate.try_lock() {
            Ok(gate) => gate,
            // Many have lost their past at once: they are told without standing in line.
            Err(_) => {
                let behind = self.broker().behind(&name, newest).await?;
                {
                    let core = cell.lock();
                    if *core.epoch() != position.epoch || !core.is_open() {
                        return Ok(None);
                    }
                    if !core.is_served_from(x) && !is_complete(&core, &behind) {
                        return Ok(Some(Located::Lost));
                    }
                }
                cell.gate.lock().await
            }
        };
        let floor = {
            let core = cell.lock();
            if *core.epoch() != position.epoch || !core.is_open() {
                return Ok(None);
            }
            if core.is_served_from(x) {
                return found();
            }
            core.tail().floor()
        };
        let (page, behind) = self.read_behind(&name, x, newest, floor).await?;
        let mut core = cell.lock();
        if *core.epoch() != position.epoch || !core.is_open() {
            return Ok(None);
        }
        if !is_complete(&core, &behind) {
            return Ok(Some(Located::Lost));
        }
        self.keep(&mut core, page);
        found()
    }

    async fn locate_time(self: &Arc<Self>, cell: &Arc<Cell>, since: u64) -> Result<Option<Located>, Unavailable> {
        if since > unix_seconds() + A_DAY {
            // Milliseconds by mistake, or a client's clock gone wild: nothing was stored then by any store's clock.
            let core = cell.lock();
            return Ok(core.is_open().then(|| Located::After(core.position(core.complete_to()))));
        }
        let (name, epoch, found) = {
            let mut core = cell.lock();
            if self.settle_epoch(&mut core) || !core.is_open() {
                return Err(Unavailable("the stream is being opened anew".into()));
            }
            let found = core.position_at(since).ok().map(|after| core.position(after));
            (core.name().clone(), core.epoch().clone(), found)
        };
        if let Some(found) = found {
            // Where something is gone the stream begins anew behind that, as soon as its hole is closed.
            return match self.is_followed_by_all(cell).await? {
                Some(false) => Err(Unavailable("what the stream lacks is gone".into())),
                whole => Ok(whole.map(|_| Located::After(found))),
            };
        }
        let _gate = cell.gate.lock().await;
        let floor = {
            let core = cell.lock();
            match core.position_at(since) {
                Err(floor) if *core.epoch() == epoch && core.is_open() => floor,
                _ => return Ok(None),
            }
        };
        metrics::HISTORY_PAGES.inc();
        let page = self.broker().read(&name, ReadFrom::Time(since), floor, PAGE_MESSAGES, PAGE_BYTES).await?;
        let first = page.messages.first().map(|first| first.offset);
        // Removal takes the oldest first: nothing was dropped from within the page while it was read.
        let whole = match first {
            Some(first) => self.broker().behind(&name, first).await?.kept,
            None => true,
        };
        let mut core = cell.lock();
        if *core.epoch() != epoch || !core.is_open() {
            return Ok(None);
        }
        let after = first.map_or(floor, |first| first - 1);
        if whole {
            let reached = page.messages.last().map_or(after, |last| last.offset);
            let to = if page.remaining == 0 { floor } else { reached };
            let (messages, since) = (page.messages, Some(since));
            self.keep(&mut core, Arc::new(SharedPage { from: after, to, messages, since }));
        }
        Ok(Some(Located::After(core.position(after))))
    }

    /// Everything that the log has behind what this node holds of a stream can be sent. This node may have missed something,
    /// or know that it has: the log is asked whether that is still there. `None`: the stream has moved meanwhile.
    async fn is_followed_by_all(&self, cell: &Arc<Cell>) -> Result<Option<bool>, Unavailable> {
        let at = |core: &Stream| (core.epoch().clone(), core.complete_to(), core.newest());
        if !self.is_compared(cell) {
            self.compare_soon(cell);
            tokio::time::sleep(Duration::from_millis(1)).await;
            return Ok(None);
        }
        let (name, before) = {
            let core = cell.lock();
            if !core.has_hole() {
                return Ok(Some(true));
            }
            (core.name().clone(), at(&core))
        };
        let behind = self.broker().behind(&name, before.2).await?;
        let core = cell.lock();
        if !core.is_open() || at(&core) != before {
            return Ok(None);
        }
        let whole = core.is_followed_by_all(&behind);
        whole.map(Some).ok_or_else(|| Unavailable("the log's leader has not come so far yet".into()))
    }

    /// Sends a replaying cursor what it needs next: from a page that another one read, or from the log. The stream has no
    /// message in `(newest, after]`. `saved`: as in [`Self::locate`], which may have found that the position is complete by
    /// that proof alone.
    pub async fn feed_page(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        cursor: CursorId,
        after: &Position,
        newest: u64,
        saved: Option<&SavedProof>,
    ) -> Result<(), Unavailable> {
        let saved = saved.and_then(|saved| saved.of(after)).copied();
        let Position { epoch, offset: after } = after;
        let after = *after;
        let newest = if newest < after { newest } else { newest_up_to(after, [saved]) };
        // What a cursor needs is of the log's life in which it asked; in another one it stands elsewhere.
        let supplied = |core: &mut Stream| core.epoch() != epoch || core.supply_shared(cursor, after);
        if supplied(&mut cell.lock()) {
            return Ok(());
        }
        let _gate = cell.gate.lock().await;
        let (name, floor) = {
            let mut core = cell.lock();
            let floor = core.tail().floor();
            if supplied(&mut core) || after >= floor {
                return Ok(());
            }
            (core.name().clone(), floor)
        };
        let (page, behind) = self.read_behind(&name, after, newest, floor).await?;
        let mut core = cell.lock();
        if core.epoch() == epoch {
            let held = core.proof();
            let is_complete =
                |after| [saved.as_ref(), Some(&held)].into_iter().any(|proof| is_complete_after(after, &behind, proof));
            core.supply(cursor, after, page.clone(), |had| is_complete(had.up_to));
            if is_complete(after) {
                self.keep(&mut core, page);
            }
        }
        Ok(())
    }

    /// What the log keeps in `(x, up_to]`, and then what it keeps at and behind `newest`, the stream's newest message up to
    /// `x`: was anything dropped meanwhile?
    async fn read_behind(
        &self,
        name: &StreamName,
        x: u64,
        newest: u64,
        up_to: u64,
    ) -> Result<(Arc<SharedPage>, Behind), Unavailable> {
        metrics::HISTORY_PAGES.inc();
        let mut page = self.broker().read(name, ReadFrom::Offset(x + 1), up_to, PAGE_MESSAGES, PAGE_BYTES).await?;
        let behind = self.broker().behind(name, newest).await?;
        let last = page.messages.last().filter(|_| page.remaining > 0).map(|last| last.offset);
        let to = last.unwrap_or(if page.remaining == 0 { up_to } else { x });
        behind.confirms(&page.messages, last.unwrap_or(up_to))?;
        behind.leave_whole(&mut page.messages);
        Ok((Arc::new(SharedPage { from: x, to, messages: page.messages, since: None }), behind))
    }

    /// Keeps a page for others while there is room.
    fn keep(&self, core: &mut Stream, page: Arc<SharedPage>) {
        if metrics::SNAPSHOT_BYTES.get() <= self.config.snapshot_budget as i64 {
            core.keep(page, Instant::now());
        }
    }
}

/// The stream's newest message up to `x`, or `x` where none of the looks knows it: a subscription begins where the log stood,
/// which need not be a message of the stream.
fn newest_up_to<const N: usize>(x: u64, looks: [Option<Proof>; N]) -> u64 {
    looks.into_iter().flatten().find_map(|look| look.newest_up_to(x)).unwrap_or(x)
}

fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs()
}
