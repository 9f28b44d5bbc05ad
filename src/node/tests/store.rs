//! The memory broker, which may claim to outlive its nodes, takes its time to open streams with slow names, and whose
//! leader may lag behind what it has agreed to.

use crate::broker::memory::MemoryBroker;
use crate::broker::*;
use crate::protocol::{Message, Publication, StreamName};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

pub struct Store {
    pub log: Arc<MemoryBroker>,
    pub shared: bool,
    /// So many of the newest messages are not seen by who asks how far the log has come.
    pub lag: Arc<AtomicU64>,
    pub writes: Arc<Writes>,
}

/// Writes of sessions, and how the store takes them.
#[derive(Default)]
pub struct Writes {
    pub number: AtomicU64,
    pub bytes: AtomicU64,
    pub deletions: AtomicU64,
    /// They are not answered now.
    pub stuck: AtomicBool,
    /// What says that a session was restored is not.
    pub notes_stuck: AtomicBool,
    /// Heads of sessions are not.
    pub heads_stuck: AtomicBool,
    /// Entries that are there now.
    pub entries: Mutex<HashSet<SessionKey>>,
    /// Each of them takes so long.
    pub takes: Mutex<Duration>,
    /// What becomes of them.
    pub fault: Mutex<Option<Fault>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is stored, for a reason that passes.
    Away,
    Full,
    /// There is room for what lies beside sessions, and not for their heads.
    HeadsFull,
    TooLarge,
    /// A head is larger than what the store takes, and no part is.
    HeadsTooLarge,
    /// What is no part is stored, and the answer gets lost.
    Unanswered,
    /// The same of what lies beside a session: its parts, and what became of it.
    BesideUnanswered,
    /// Nothing is deleted: there was always another write.
    Stubborn,
}

impl Writes {
    pub fn fail(&self, fault: impl Into<Option<Fault>>) {
        *self.fault.lock().unwrap() = fault.into();
    }

    fn fault(&self) -> Option<Fault> {
        *self.fault.lock().unwrap()
    }

    pub fn take_long(&self, each: Duration) {
        *self.takes.lock().unwrap() = each;
    }

    fn count(&self, body: &Bytes) {
        self.number.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
    }

    async fn answered(&self) {
        let takes = *self.takes.lock().unwrap();
        tokio::time::sleep(takes).await;
        while self.stuck.load(Ordering::Relaxed) {
            tokio::time::sleep(super::SECOND / 10).await;
        }
    }

    async fn taken(&self, body: &Bytes) -> Result<(), SaveError> {
        self.count(body);
        self.answered().await;
        while &**body == b"restored" && self.notes_stuck.load(Ordering::Relaxed) {
            tokio::time::sleep(super::SECOND / 10).await;
        }
        match self.fault() {
            Some(Fault::Away) => Err(Unavailable("away".into()).into()),
            Some(Fault::Full) => Err(SaveError::Full("full".into())),
            Some(Fault::TooLarge) => Err(SaveError::TooLarge),
            Some(
                Fault::HeadsFull | Fault::HeadsTooLarge | Fault::Unanswered | Fault::BesideUnanswered | Fault::Stubborn,
            )
            | None => Ok(()),
        }
    }

    fn keep(&self, key: &SessionKey, saved: Result<u64, SaveError>) -> Result<u64, SaveError> {
        if saved.is_ok() {
            self.entries.lock().unwrap().insert(key.clone());
        }
        saved
    }

    /// Number and bytes since this was asked last.
    pub fn take(&self) -> (u64, u64) {
        (self.number.swap(0, Ordering::Relaxed), self.bytes.swap(0, Ordering::Relaxed))
    }
}

impl Store {
    fn lagging(&self, heads: Vec<Looked>) -> Vec<Looked> {
        let lag = self.lag.load(Ordering::Relaxed);
        let seen = |Looked { head, look }: Looked| {
            let up_to = head.up_to.saturating_sub(lag);
            Looked { head: Head { newest: head.newest.min(up_to), up_to }, look }
        };
        heads.into_iter().map(seen).collect()
    }
}

#[async_trait]
impl Broker for Store {
    fn features(&self) -> Features {
        Features { shared: self.shared, ..self.log.features() }
    }
    fn status(&self) -> watch::Receiver<Status> {
        self.log.status()
    }
    async fn append(&self, publication: Publication) -> Result<Appended, AppendError> {
        self.log.append(publication).await
    }
    async fn transient(&self, stream: &StreamName, message: Message) -> Result<(), Unavailable> {
        self.log.transient(stream, message).await
    }
    async fn open(&self, streams: &[StreamName]) -> Result<Vec<Looked>, Unavailable> {
        if streams.iter().any(|stream| stream.as_str().starts_with("slow")) {
            tokio::time::sleep(super::SECOND).await;
        }
        Ok(self.lagging(self.log.open(streams).await?))
    }
    fn close(&self, stream: &StreamName) {
        self.log.close(stream);
    }
    async fn heads(&self, streams: &[StreamName]) -> Result<Vec<Looked>, Unavailable> {
        Ok(self.lagging(self.log.heads(streams).await?))
    }
    async fn read(
        &self,
        stream: &StreamName,
        from: ReadFrom,
        up_to: u64,
        messages: usize,
        bytes: usize,
    ) -> Result<Page, Unavailable> {
        self.log.read(stream, from, up_to, messages, bytes).await
    }
    async fn behind(&self, stream: &StreamName, x: u64) -> Result<Behind, Unavailable> {
        self.log.behind(stream, x).await
    }
    async fn facts(&self, stream: &StreamName) -> Result<Facts, Unavailable> {
        let facts = self.log.facts(stream).await?;
        Ok(Facts { last_seq: facts.last_seq.saturating_sub(self.lag.load(Ordering::Relaxed)), ..facts })
    }
    async fn load_session(&self, key: &SessionKey) -> Result<Option<StoredSession>, Unavailable> {
        self.log.load_session(key).await
    }
    async fn save_session(
        &self,
        key: &SessionKey,
        body: Bytes,
        revision: Option<u64>,
        life: Life,
    ) -> Result<u64, SaveError> {
        self.writes.taken(&body).await?;
        while self.writes.heads_stuck.load(Ordering::Relaxed) {
            tokio::time::sleep(super::SECOND / 10).await;
        }
        if self.writes.fault() == Some(Fault::HeadsFull) {
            return Err(SaveError::Full("full".into()));
        }
        if self.writes.fault() == Some(Fault::HeadsTooLarge) {
            return Err(SaveError::TooLarge);
        }
        let saved = self.writes.keep(key, self.log.save_session(key, body, revision, life).await);
        match self.writes.fault() {
            Some(Fault::Unanswered) => saved.and(Err(Unavailable("no answer".into()).into())),
            _ => saved,
        }
    }
    async fn save_beside(&self, key: &SessionKey, body: Bytes, revision: Option<u64>) -> Result<u64, SaveError> {
        self.writes.taken(&body).await?;
        let saved = self.writes.keep(key, self.log.save_beside(key, body, revision).await);
        match self.writes.fault() {
            Some(Fault::BesideUnanswered) => saved.and(Err(Unavailable("no answer".into()).into())),
            _ => saved,
        }
    }
    async fn announce_over(&self, key: &SessionKey, over: Over) {
        self.log.announce_over(key, over).await;
    }
    async fn delete_session(&self, key: &SessionKey, revision: Option<u64>) -> Result<bool, Unavailable> {
        self.writes.answered().await;
        self.writes.deletions.fetch_add(1, Ordering::Relaxed);
        match self.writes.fault() {
            Some(Fault::Away) => return Err(Unavailable("away".into())),
            Some(Fault::Stubborn) => return Ok(false),
            _ => {}
        }
        let deleted = self.log.delete_session(key, revision).await?;
        if deleted {
            self.writes.entries.lock().unwrap().remove(key);
        }
        Ok(deleted)
    }
    async fn disconnect(&self, command: &RemoteDisconnect) -> Result<u64, AppendError> {
        self.log.disconnect(command).await
    }
    async fn mark(&self, identifiers: &str) -> Result<u64, Unavailable> {
        self.log.mark(identifiers).await
    }
}
