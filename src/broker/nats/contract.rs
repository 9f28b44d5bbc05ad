//! The broker's contract on NATS: each call handed to the part that carries it out.

use super::generation::Generation;
use super::headers::Body;
use super::slots::Class;
use super::{NatsBroker, read};
use crate::broker::{
    Answering, AppendError, Appended, Behind, Broker, Facts, Features, Filled, Hole, Life, Looked, Over, Page,
    ReadFrom, RemoteDisconnect, SaveError, SessionKey, Status, StoredSession, Unavailable, life,
};
use crate::critical::critical;
use crate::protocol::{Message, Publication, StreamName};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// In a cluster other servers learn of a subscription a little later than ours; heads are compared again after this.
const INTEREST_SPREAD: Duration = Duration::from_millis(100);

#[async_trait]
impl Broker for NatsBroker {
    fn features(&self) -> Features {
        Features { history: self.core.rules().table.keeps_any(), sessions: self.core.config.sessions(), shared: true }
    }

    fn status(&self) -> watch::Receiver<Status> {
        self.core.status.subscribe()
    }

    async fn append(&self, publication: Publication) -> Result<Appended, AppendError> {
        if !publication.transient && self.core.rules().table.policy(&publication.stream).keeps() {
            if *self.core.disk_full.borrow() {
                return Err(AppendError::StorageFull("the disk under the store is full: make room".into()));
            }
            return self.core.store(publication).await;
        }
        self.core.fan_out(&publication.stream, &publication.meta, publication.data, Body::Data).await
    }

    async fn transient(&self, stream: &StreamName, message: Message) -> Result<(), Unavailable> {
        let data = message.payload.json().clone();
        let sent = self.core.fan_out(stream, &message.meta, data, Body::Json).await;
        sent.map(drop).map_err(|error| Unavailable(error.to_string()))
    }

    async fn open(&self, streams: &[StreamName]) -> Result<Vec<Looked>, Unavailable> {
        let core = &self.core;
        let ask = |generation: Arc<Generation>| async move {
            generation.live.open(&generation, streams, &core.names).await?;
            let heads = core.try_heads(&generation, streams).await?;
            Ok((generation, heads))
        };
        let (generation, heads) = core.asking(ask).await?;
        generation.live.expect(streams, &heads);
        if generation.connection.clustered() && !streams.is_empty() {
            let (feed, streams, dead) = (core.feed.clone(), streams.to_vec(), generation.dead().clone());
            core.tasks.spawn(critical("broker.interest", async move {
                tokio::select! {
                    () = tokio::time::sleep(INTEREST_SPREAD) => {}
                    () = dead.cancelled() => return,
                }
                streams.iter().for_each(|stream| feed.lagged(stream));
            }));
        }
        Ok(heads)
    }

    fn close(&self, stream: &StreamName) {
        if let Some(generation) = self.core.generation() {
            generation.live.close(stream);
        }
    }

    async fn heads(&self, streams: &[StreamName]) -> Result<Vec<Looked>, Unavailable> {
        let core = &self.core;
        let ask = |generation: Arc<Generation>| async move {
            let heads = core.try_heads(&generation, streams).await?;
            generation.live.expect(streams, &heads);
            Ok(heads)
        };
        core.asking(ask).await
    }

    async fn read(
        &self,
        stream: &StreamName,
        from: ReadFrom,
        up_to: u64,
        max_messages: usize,
        max_bytes: usize,
    ) -> Result<Page, Unavailable> {
        let limits = read::Limits { up_to, max_messages, max_bytes, class: Class::Client };
        self.core.read_page(stream, from, limits).await
    }

    async fn fill(&self, holes: &[Hole]) -> Result<Vec<Option<Filled>>, Unavailable> {
        match holes {
            [hole] => Ok(vec![Some(self.core.fill_alone(hole).await?)]),
            holes => self.core.fill_together(holes).await,
        }
    }

    async fn behind(&self, stream: &StreamName, x: u64) -> Result<Behind, Unavailable> {
        self.core.behind(stream, x).await
    }

    async fn facts(&self, stream: &StreamName) -> Result<Facts, Unavailable> {
        let ask = |generation: Arc<Generation>| async move {
            match generation.of(stream).1 {
                Some(log) => Ok(log.asks.top().await?.facts),
                None => Ok(read::nothing_kept()),
            }
        };
        self.core.asking(ask).await
    }

    async fn load_session(&self, key: &SessionKey) -> Result<Option<StoredSession>, Unavailable> {
        if !self.core.config.sessions() {
            return Ok(None);
        }
        self.core.load(key).await
    }

    async fn load_part(&self, key: &SessionKey, revision: u64) -> Result<Option<StoredSession>, Unavailable> {
        if !self.core.config.sessions() {
            return Ok(None);
        }
        self.core.load_part(key, revision).await
    }

    async fn answering(&self) -> Result<Answering, Unavailable> {
        self.core.answering().await
    }

    async fn vouch(&self, answering: &Answering) -> Result<(), Unavailable> {
        self.core.vouch(answering).await
    }

    async fn save_session(
        &self,
        key: &SessionKey,
        body: Bytes,
        revision: Option<u64>,
        life: Life,
    ) -> Result<u64, SaveError> {
        self.core.saves_sessions()?;
        self.core.save(key, body, revision, life.of(self.core.config.limits.sessions_ttl)).await
    }

    async fn save_beside(&self, key: &SessionKey, body: Bytes, revision: Option<u64>) -> Result<u64, SaveError> {
        self.core.saves_sessions()?;
        self.core.save(key, body, revision, life::beside(self.core.config.limits.sessions_ttl)).await
    }

    async fn announce_over(&self, key: &SessionKey, over: Over) {
        self.core.announce_over(key, over).await;
    }

    async fn delete_session(&self, key: &SessionKey, revision: Option<u64>) -> Result<bool, Unavailable> {
        if !self.core.config.sessions() {
            return Ok(true);
        }
        self.core.delete(key, revision).await
    }

    async fn disconnect(&self, command: &RemoteDisconnect) -> Result<u64, AppendError> {
        self.core.store_disconnect(command).await
    }

    async fn mark(&self, identifiers: &str) -> Result<u64, Unavailable> {
        self.core.newest_mark(identifiers).await
    }
}
