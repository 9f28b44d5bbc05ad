//! Reading the past on demand: is a position complete, and what follows it?

use super::proof::{Proof, is_complete_after};
use super::repair::{PAGE_BYTES, PAGE_MESSAGES};
use super::stream::{Cover, CursorId};
use super::{Cell, Hub};
use crate::broker::{Page, ReadFrom, Unavailable};
use crate::metrics;
use crate::protocol::{Message, Position, StreamName};
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
        saved: Option<&Proof>,
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
        saved: Option<&Proof>,
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
                if x > self.broker().facts().await?.last_seq {
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
        let page = self.read_for_tail(cell, &name, ReadFrom::Offset(x + 1), floor).await?;
        let behind = self.broker().behind(&name, x).await?;
        let mut core = cell.lock();
        if *core.epoch() != position.epoch || !core.is_open() {
            return Ok(None);
        }
        let held = core.proof();
        let proofs = [saved, Some(&held)];
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
        let page = self.read_for_tail(cell, &name, ReadFrom::Time(since), floor).await?;
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

    /// Reads what the log keeps from there to `floor`: all of it if the tail has room for it, so that everybody who comes
    /// back to about the same place is served from memory; otherwise the first page.
    async fn read_for_tail(
        &self,
        cell: &Cell,
        name: &StreamName,
        from: ReadFrom,
        floor: u64,
    ) -> Result<Page, Unavailable> {
        let mut page = self.broker().read(name, from, floor, PAGE_MESSAGES, PAGE_BYTES).await?;
        let Ok(_permit) = self.long_reads.try_acquire() else { return Ok(page) };
        let mut bytes = payload_bytes(&page.messages);
        let (room, kept) = {
            let core = cell.lock();
            let budget = self.config.snapshot_budget as i64 - metrics::SNAPSHOT_BYTES.get();
            (core.tail().room(usize::try_from(budget).unwrap_or(0)), core.tail().len())
        };
        // A store may count what the tail holds already.
        let more = usize::try_from(page.remaining).unwrap_or(usize::MAX).saturating_sub(kept);
        let messages = page.messages.len().saturating_add(more);
        let expected = (bytes / page.messages.len().max(1)).saturating_mul(messages);
        if messages > room.messages || expected > room.bytes {
            return Ok(page);
        }
        while page.remaining > 0
            && bytes <= room.bytes
            && let Some(last) = page.messages.last()
        {
            let from = ReadFrom::Offset(last.offset + 1);
            let next = self.broker().read(name, from, floor, PAGE_MESSAGES, PAGE_BYTES).await?;
            bytes += payload_bytes(&next.messages);
            page.messages.extend(next.messages);
            (page.remaining, page.facts) = (next.remaining, next.facts);
        }
        Ok(page)
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

fn payload_bytes(messages: &[Arc<Message>]) -> usize {
    messages.iter().map(|message| message.payload.json().len()).sum()
}

fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::memory::MemoryBroker;
    use crate::broker::{Broker, Limits, RemoteDisconnect};
    use crate::hub::{Commands, HubConfig, HubFeed};
    use crate::protocol::{MessageId, Meta, Publication};
    use std::time::Duration;

    struct Deaf;

    impl Commands for Deaf {
        fn disconnect(&self, _: u64, _: RemoteDisconnect) {}
        fn commands_lost(&self) {}
    }

    /// A stream with so many messages of 100 bytes that nobody followed when they came, and the position before the first.
    async fn unseen(messages: usize, snapshot_budget: usize) -> (Arc<Hub>, crate::hub::Open, Position) {
        let second = Duration::from_secs(1);
        let limits = Limits { history_limit: 100_000, history_ttl: 300 * second, sessions_ttl: 300 * second };
        let hub = Hub::new(HubConfig {
            limits: limits.clone(),
            snapshot_budget,
            linger: second,
            head_check: second,
            broker_timeout: second,
        });
        let broker = MemoryBroker::new(limits, second, Arc::new(HubFeed(hub.clone())));
        hub.start(broker.clone(), Arc::new(Deaf));
        for _ in 0..messages {
            let publication = Publication {
                stream: "chat".into(),
                data: format!("\"{}\"", "x".repeat(98)).into(),
                meta: Meta::default(),
                transient: false,
                id: MessageId::random(),
            };
            broker.append(publication).await.unwrap();
        }
        let open = hub.open(&"chat".into()).await.unwrap();
        let position = Position { epoch: broker.epoch().clone(), offset: 0 };
        (hub, open, position)
    }

    /// Found with hundreds of clients that came back 1,000 messages behind: each of them read the same pages, one after
    /// the other, until the store had no time for anybody.
    #[tokio::test]
    async fn a_past_of_several_pages_is_read_once_for_all_who_come_back_to_it() {
        let (hub, open, position) = unseen(3 * PAGE_MESSAGES, 1 << 20).await;
        assert_eq!(open.lock().cover(0), Cover::Before { floor: 1_500 });
        let from = From::Position(position);
        assert_eq!(hub.locate(&open, &from, None).await.unwrap(), Located::After(0));
        assert_eq!(open.lock().cover(0), Cover::Held);
        assert_eq!(open.lock().tail().len(), 1_500);
        drop(open);
        hub.stop().await;
    }

    #[tokio::test]
    async fn a_past_that_does_not_fit_into_memory_stays_in_the_log() {
        for (messages, budget) in [(3 * PAGE_MESSAGES, 100_000), (60_000, 64 << 20)] {
            let (hub, open, position) = unseen(messages, budget).await;
            assert_eq!(hub.locate(&open, &From::Position(position), None).await.unwrap(), Located::After(0));
            assert_eq!(open.lock().tail().len(), 0, "{messages} messages");
            drop(open);
            hub.stop().await;
        }
    }
}
