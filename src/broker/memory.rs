//! The log in this process: one node, nothing survives it. Same model as the stored log: one sequence for all streams,
//! a ring per stream, removal by count and by age.

use super::{
    AppendError, Appended, Behind, Broker, Facts, Features, Feed, Heads, Limits, Page, ReadFrom, RemoteDisconnect,
    SaveError, SessionKey, Status, StoredSession, Unavailable,
};
use crate::protocol::{Epoch, Message, MessageId, Payload, Publication, StreamName};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use tokio::time::Instant;

type Ring = VecDeque<Arc<Message>>;

/// See the module's documentation.
pub struct MemoryBroker {
    limits: Limits,
    dedup_window: Duration,
    feed: Arc<dyn Feed>,
    epoch: Epoch,
    status: watch::Sender<Status>,
    started: (SystemTime, Instant),
    /// A stream's lock is held while a message gets its sequence and is fanned out: that is the stream's order.
    rings: Mutex<HashMap<StreamName, Arc<Mutex<Ring>>>>,
    log: Mutex<Log>,
    sessions: Mutex<Sessions>,
}

#[derive(Default)]
struct Log {
    last: u64,
    /// Highest sequence that was removed by age.
    aged: u64,
    /// What is still to age, in order.
    order: VecDeque<(u64, Instant, StreamName)>,
    ids: HashMap<MessageId, u64>,
    ids_order: VecDeque<(Instant, MessageId)>,
}

#[derive(Default)]
struct Sessions {
    revision: u64,
    entries: HashMap<SessionKey, (StoredSession, Instant)>,
    marks: HashMap<String, (u64, Instant)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryBroker {
    /// `dedup_window` is shortened to the history's life.
    pub fn new(limits: Limits, dedup_window: Duration, feed: Arc<dyn Feed>) -> Arc<Self> {
        let epoch = Epoch::random();
        let status = Status { ready: true, readable: true, generation: 1, epoch: epoch.clone(), reason: "".into() };
        Arc::new(Self {
            dedup_window: dedup_window.min(limits.history_ttl),
            limits,
            feed,
            epoch,
            status: watch::Sender::new(status),
            started: (SystemTime::now(), Instant::now()),
            rings: Mutex::default(),
            log: Mutex::default(),
            sessions: Mutex::default(),
        })
    }

    pub fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// Unix milliseconds.
    fn now_ms(&self) -> u64 {
        let since_start = self.started.1.elapsed();
        let now = (self.started.0 + since_start).duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
    }

    fn ring(&self, stream: &StreamName) -> Option<Arc<Mutex<Ring>>> {
        lock(&self.rings).get(stream).cloned()
    }

    /// Removes what is too old. Called by every access and by [`Self::sweep`].
    fn expire(&self) {
        let now = Instant::now();
        let mut old = Vec::new();
        {
            let mut log = lock(&self.log);
            while log.order.front().is_some_and(|(_, stored, _)| now.duration_since(*stored) >= self.limits.history_ttl)
            {
                let (seq, _, stream) = log.order.pop_front().expect("just seen");
                log.aged = seq;
                old.push((seq, stream));
            }
            while log.ids_order.front().is_some_and(|(at, _)| now.duration_since(*at) >= self.dedup_window) {
                let (_, id) = log.ids_order.pop_front().expect("just seen");
                log.ids.remove(&id);
            }
        }
        for (seq, stream) in old {
            if let Some(ring) = self.ring(&stream) {
                let mut ring = lock(&ring);
                while ring.front().is_some_and(|message| message.offset <= seq) {
                    ring.pop_front();
                }
            }
            let mut rings = lock(&self.rings);
            let unused = rings.get(&stream).is_some_and(|ring| Arc::strong_count(ring) == 1 && lock(ring).is_empty());
            if unused {
                rings.remove(&stream);
            }
        }
    }

    /// Keeps memory bounded while nothing is published: runs until the broker is dropped.
    pub async fn sweep(broker: std::sync::Weak<Self>) {
        let mut timer = tokio::time::interval(Duration::from_secs(1));
        loop {
            timer.tick().await;
            let Some(broker) = broker.upgrade() else { return };
            broker.expire();
            let now = Instant::now();
            let mut sessions = lock(&broker.sessions);
            sessions.entries.retain(|_, (_, until)| *until > now);
            sessions.marks.retain(|_, (_, until)| *until > now);
        }
    }

    fn keeps_history(&self) -> bool {
        self.limits.history_limit > 0 && !self.limits.history_ttl.is_zero()
    }

    fn facts_now(&self) -> Facts {
        let log = lock(&self.log);
        Facts {
            first_seq: log.aged + 1,
            last_seq: log.last,
            limit: self.limits.history_limit,
            ttl: self.limits.history_ttl,
            revision: 1,
            raised_at: 0,
            now: self.now_ms(),
        }
    }
}

#[async_trait]
impl Broker for MemoryBroker {
    fn features(&self) -> Features {
        Features { history: self.keeps_history(), sessions: !self.limits.sessions_ttl.is_zero(), shared: false }
    }

    fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    async fn append(&self, publication: Publication) -> Result<Appended, AppendError> {
        let payload = Payload::from_data(&publication.data);
        let Publication { stream, meta, transient, id, .. } = publication;
        if transient || !self.keeps_history() {
            let message = Message { offset: 0, time: 0, payload, meta };
            self.feed.transient(&stream, Arc::new(message));
            return Ok(Appended { epoch: self.epoch.clone(), offset: 0, duplicate: false });
        }
        self.expire();
        let ring = lock(&self.rings).entry(stream.clone()).or_default().clone();
        let mut ring = lock(&ring);
        let offset = {
            let mut log = lock(&self.log);
            if let Some(offset) = log.ids.get(&id) {
                return Ok(Appended { epoch: self.epoch.clone(), offset: *offset, duplicate: true });
            }
            log.last += 1;
            let (seq, now) = (log.last, Instant::now());
            log.ids.insert(id, seq);
            log.ids_order.push_back((now, id));
            log.order.push_back((seq, now, stream.clone()));
            seq
        };
        let previous = ring.back().map_or(0, |message| message.offset);
        let message = Arc::new(Message { offset, time: self.now_ms(), payload, meta });
        ring.push_back(message.clone());
        if ring.len() as u64 > self.limits.history_limit {
            ring.pop_front();
        }
        self.feed.live(&stream, previous, message);
        Ok(Appended { epoch: self.epoch.clone(), offset, duplicate: false })
    }

    async fn transient(&self, stream: &StreamName, message: Message) -> Result<(), Unavailable> {
        self.feed.transient(stream, Arc::new(message));
        Ok(())
    }

    async fn open(&self, streams: &[StreamName]) -> Result<Heads, Unavailable> {
        self.heads(streams).await
    }

    fn close(&self, _stream: &StreamName) {}

    async fn heads(&self, streams: &[StreamName]) -> Result<Heads, Unavailable> {
        self.expire();
        let up_to = lock(&self.log).last;
        // A message up to `up_to` that is not in its ring yet is being put there under the ring's lock.
        let head = |stream| self.ring(stream).and_then(|ring| lock(&ring).back().map(|message| message.offset));
        Ok(Heads { heads: streams.iter().map(|stream| head(stream).unwrap_or(0)).collect(), up_to })
    }

    async fn read(
        &self,
        stream: &StreamName,
        from: ReadFrom,
        up_to: u64,
        max_messages: usize,
        max_bytes: usize,
    ) -> Result<Page, Unavailable> {
        self.expire();
        let mut messages: Vec<Arc<Message>> = Vec::new();
        let mut remaining = 0;
        if let Some(ring) = self.ring(stream) {
            let ring = lock(&ring);
            let start = ring.partition_point(|message| match from {
                ReadFrom::Offset(offset) => message.offset < offset,
                ReadFrom::Time(seconds) => message.time / 1000 < seconds,
            });
            let end = ring.partition_point(|message| message.offset <= up_to).max(start);
            let mut bytes = 0;
            for message in ring.range(start..end) {
                bytes += message.payload.json().len();
                if messages.len() == max_messages || (bytes > max_bytes && !messages.is_empty()) {
                    break;
                }
                messages.push(message.clone());
            }
            remaining = (end - start - messages.len()) as u64;
        }
        Ok(Page { messages, remaining, facts: self.facts_now() })
    }

    async fn behind(&self, stream: &StreamName, x: u64) -> Result<Behind, Unavailable> {
        let Some(ring) = self.ring(stream) else { return Ok(Behind { kept: false, after: 0 }) };
        let ring = lock(&ring);
        let at = ring.partition_point(|message| message.offset < x);
        let kept = ring.get(at).is_some_and(|message| message.offset == x);
        Ok(Behind { kept, after: (ring.len() - at) as u64 - u64::from(kept) })
    }

    async fn facts(&self) -> Result<Facts, Unavailable> {
        self.expire();
        Ok(self.facts_now())
    }

    async fn load_session(&self, key: &SessionKey) -> Result<Option<StoredSession>, Unavailable> {
        let now = Instant::now();
        Ok(lock(&self.sessions).entries.get(key).filter(|(_, until)| *until > now).map(|(stored, _)| stored.clone()))
    }

    async fn save_session(&self, key: &SessionKey, body: Bytes, revision: Option<u64>) -> Result<u64, SaveError> {
        let now = Instant::now();
        let mut sessions = lock(&self.sessions);
        let last = sessions.entries.get(key).filter(|(_, until)| *until > now).map_or(0, |(stored, _)| stored.revision);
        if revision.is_some_and(|revision| revision != last) {
            return Err(SaveError::Conflict);
        }
        sessions.revision += 1;
        let stored = StoredSession { body, revision: sessions.revision };
        let revision = stored.revision;
        sessions.entries.insert(key.clone(), (stored, now + self.limits.sessions_ttl));
        Ok(revision)
    }

    async fn delete_session(&self, key: &SessionKey) -> Result<(), Unavailable> {
        lock(&self.sessions).entries.remove(key);
        Ok(())
    }

    async fn disconnect(&self, command: &RemoteDisconnect) -> Result<u64, AppendError> {
        let mark = {
            let mut sessions = lock(&self.sessions);
            sessions.revision += 1;
            let mark = sessions.revision;
            let until = Instant::now() + self.limits.sessions_ttl * 2;
            sessions.marks.insert(command.identifiers.clone(), (mark, until));
            mark
        };
        self.feed.disconnect(mark, command.clone());
        Ok(mark)
    }

    async fn mark(&self, identifiers: &str) -> Result<u64, Unavailable> {
        Ok(lock(&self.sessions).marks.get(identifiers).map_or(0, |(mark, _)| *mark))
    }
}
