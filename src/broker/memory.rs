//! The logs in this process: one node, nothing survives it. Same model as the stored logs: one sequence for all streams of
//! a policy, a ring per stream, removal by count and by age. Storage and replicas of a policy mean nothing here.
//!
//! The memory for history has a limit. At the limit publications that need more of it are refused, as those of a full disk
//! are: nothing but a policy's limits ever removes a message, so no position is lost to somebody else's publications.

mod log;
mod room;

use log::{Log, Stored};
use room::Room;

use super::policy::{LogState, Logs, Table};
use super::{
    AppendError, Appended, Behind, Broker, Durability, Facts, Features, Feed, Head, Life, Limits, Look, Looked, Over,
    Overflow, Page, ReadFrom, RemoteDisconnect, SaveError, SessionKey, Status, StoredSession, Unavailable, life,
};
use crate::log_limit::limited;
use crate::protocol::{Epoch, Message, Payload, Publication, StreamName};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use tokio::time::Instant;

/// See the module's documentation.
pub struct MemoryBroker {
    table: Arc<Table>,
    sessions_ttl: Duration,
    sessions_budget: u64,
    feed: Arc<dyn Feed>,
    status: watch::Sender<Status>,
    clock: Clock,
    room: Arc<Room>,
    /// In the table's order.
    logs: Vec<Log>,
    /// What becomes of messages of a policy that keeps nothing.
    overflow: Overflow,
    sessions: Mutex<Sessions>,
}

struct Clock(SystemTime, Instant);

impl Clock {
    /// Unix milliseconds.
    fn now_ms(&self) -> u64 {
        let now = (self.0 + self.1.elapsed()).duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
    }
}

#[derive(Default)]
struct Sessions {
    revision: u64,
    entries: HashMap<SessionKey, (StoredSession, Instant)>,
    /// Of all entries, with their overhead.
    bytes: u64,
    marks: HashMap<String, (u64, Instant)>,
}

/// What an entry costs besides its body: key, revision, deadline and their places in a table.
const ENTRY_OVERHEAD: u64 = 200;

fn cost(stored: &StoredSession) -> u64 {
    stored.body.len() as u64 + ENTRY_OVERHEAD
}

impl Sessions {
    fn save(
        &mut self,
        key: &SessionKey,
        body: Bytes,
        revision: Option<u64>,
        life: Duration,
        budget: u64,
    ) -> Result<u64, SaveError> {
        let now = Instant::now();
        let last = self.entries.get(key).filter(|(_, until)| *until > now).map_or(0, |(stored, _)| stored.revision);
        if revision.is_some_and(|revision| revision != last) {
            return Err(SaveError::Conflict);
        }
        let stored = StoredSession { body, revision: self.revision + 1 };
        let before = self.entries.get(key).map_or(0, |(before, _)| cost(before));
        let bytes = self.bytes - before + cost(&stored);
        // What does not grow always fits: something that is taken away can be written.
        if budget > 0 && bytes > budget && bytes > self.bytes {
            return Err(SaveError::Full(format!("{budget} bytes of memory, see sessions_budget")));
        }
        self.bytes = bytes;
        self.revision = stored.revision;
        let revision = stored.revision;
        self.entries.insert(key.clone(), (stored, now + life));
        Ok(revision)
    }

    fn delete(&mut self, key: &SessionKey, revision: Option<u64>) -> bool {
        let Some((stored, until)) = self.entries.get(key) else { return true };
        // What has expired is not there, also before it is swept.
        if *until > Instant::now() && revision.is_some_and(|revision| revision != stored.revision) {
            return false;
        }
        self.bytes -= cost(stored);
        self.entries.remove(key);
        true
    }

    fn expire(&mut self, now: Instant) {
        let bytes = &mut self.bytes;
        self.entries.retain(|_, (stored, until)| {
            let lives = *until > now;
            *bytes -= if lives { 0 } else { cost(stored) };
            lives
        });
        self.marks.retain(|_, (_, until)| *until > now);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryBroker {
    /// `dedup_window` is shortened to the history's life.
    pub fn new(limits: Limits, dedup_window: Duration, feed: Arc<dyn Feed>) -> Arc<Self> {
        Self::within(0, limits, dedup_window, feed)
    }

    /// `history_size`: bytes of memory for the history of all streams, overhead included; 0: no limit.
    pub fn within(history_size: usize, limits: Limits, dedup_window: Duration, feed: Arc<dyn Feed>) -> Arc<Self> {
        Arc::new(Self::build(history_size, limits, dedup_window, Overflow::Drop, feed))
    }

    /// No log at all. Who has none relies on the connection: nothing gets lost on one that stands.
    pub(super) fn without_log(feed: Arc<dyn Feed>) -> Arc<Self> {
        let limits = Limits::plain(0, Duration::ZERO, Duration::ZERO);
        Arc::new(Self::build(0, limits, Duration::ZERO, Overflow::Disconnect, feed))
    }

    fn build(
        history_size: usize,
        limits: Limits,
        dedup_window: Duration,
        overflow: Overflow,
        feed: Arc<dyn Feed>,
    ) -> Self {
        let Limits { table, sessions_ttl, sessions_budget } = limits;
        let room = Arc::new(Room::new(history_size));
        let logs: Vec<Log> =
            table.policies().iter().map(|policy| Log::new(policy, dedup_window, room.clone())).collect();
        let states =
            logs.iter().map(|log| LogState { epoch: log.epoch.clone(), limit: log.limit, ttl: log.ttl }).collect();
        let logs_now = Logs::new(table.clone(), states);
        let status = Status { ready: true, readable: true, generation: 1, logs: logs_now, reason: "".into() };
        Self {
            table,
            sessions_ttl,
            sessions_budget,
            feed,
            status: watch::Sender::new(status),
            clock: Clock(SystemTime::now(), Instant::now()),
            room,
            logs,
            overflow,
            sessions: Mutex::default(),
        }
    }

    /// Of the default policy's log.
    pub fn epoch(&self) -> &Epoch {
        &self.logs[self.logs.len() - 1].epoch
    }

    fn log(&self, stream: &StreamName) -> &Log {
        &self.logs[self.table.place(stream)]
    }

    fn expire(&self) {
        let now = self.clock.now_ms();
        self.logs.iter().for_each(|log| log.expire(now));
    }

    fn storage_full(&self) -> AppendError {
        let limit = self.room.limit();
        if self.room.is_newly_full() {
            limited!(
                WARN,
                MemoryFull,
                limit,
                "the memory for history is full, publications are refused: raise memory_history_size, or lower \
                 history_limit or history_ttl"
            );
        }
        AppendError::StorageFull(format!("the history in memory has reached memory_history_size ({limit} bytes)"))
    }

    /// Keeps memory bounded while nothing is published: runs until the broker is dropped.
    pub async fn sweep(broker: std::sync::Weak<Self>) {
        let mut timer = tokio::time::interval(Duration::from_secs(1));
        loop {
            timer.tick().await;
            let Some(broker) = broker.upgrade() else { return };
            broker.expire();
            broker.room.note_room();
            lock(&broker.sessions).expire(Instant::now());
        }
    }
}

#[async_trait]
impl Broker for MemoryBroker {
    fn features(&self) -> Features {
        Features { history: self.table.keeps_any(), sessions: !self.sessions_ttl.is_zero(), shared: false }
    }

    fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    async fn append(&self, publication: Publication) -> Result<Appended, AppendError> {
        let payload = Payload::from_data(&publication.data);
        let Publication { stream, meta, transient, id, .. } = publication;
        let log = self.log(&stream);
        if transient || !log.keeps {
            let message = Message { offset: 0, time: 0, payload, meta };
            let overflow = if transient { Overflow::Drop } else { self.overflow };
            self.feed.transient(&stream, Arc::new(message), overflow);
            return Ok(Appended {
                epoch: log.epoch.clone(),
                offset: 0,
                duplicate: false,
                durability: Durability::None,
            });
        }
        // A copy of its own size: what is kept must not keep more alive than is counted.
        let payload = Payload::from_json(Bytes::copy_from_slice(payload.json()));
        log.expire(self.clock.now_ms());
        let clock = || self.clock.now_ms();
        let stored = log.append(&stream, id, (payload, meta), clock, |previous, message| {
            self.feed.live(&stream, previous, message);
        });
        let (offset, duplicate) = match stored {
            Stored::At(offset) => (offset, false),
            Stored::Duplicate(offset) => (offset, true),
            Stored::Full => return Err(self.storage_full()),
        };
        Ok(Appended { epoch: log.epoch.clone(), offset, duplicate, durability: Durability::Memory })
    }

    async fn transient(&self, stream: &StreamName, message: Message) -> Result<(), Unavailable> {
        self.feed.transient(stream, Arc::new(message), Overflow::Drop);
        Ok(())
    }

    async fn open(&self, streams: &[StreamName]) -> Result<Vec<Looked>, Unavailable> {
        self.heads(streams).await
    }

    fn close(&self, _stream: &StreamName) {}

    async fn heads(&self, streams: &[StreamName]) -> Result<Vec<Looked>, Unavailable> {
        let now = self.clock.now_ms();
        self.expire();
        // A message up to `last_seq` that is not in its ring yet is being put there under the ring's lock.
        let before: Vec<Facts> = self.logs.iter().map(|log| log.facts(now)).collect();
        let head = |stream: &StreamName| {
            let place = self.table.place(stream);
            let ring = self.logs[place].ring(stream);
            let newest = ring.and_then(|ring| lock(&ring).messages.back().map(|message| message.offset)).unwrap_or(0);
            (place, Head { newest, up_to: before[place].last_seq })
        };
        let heads: Vec<_> = streams.iter().map(head).collect();
        let now = self.clock.now_ms();
        let look = |(log, before): (&Log, Facts)| Arc::new(Look { before, after: log.facts(now) });
        let looks: Vec<_> = self.logs.iter().zip(before.clone()).map(look).collect();
        Ok(heads.into_iter().map(|(place, head)| Looked { head, look: looks[place].clone() }).collect())
    }

    async fn read(
        &self,
        stream: &StreamName,
        from: ReadFrom,
        up_to: u64,
        max_messages: usize,
        max_bytes: usize,
    ) -> Result<Page, Unavailable> {
        let log = self.log(stream);
        log.expire(self.clock.now_ms());
        let mut messages: Vec<Arc<Message>> = Vec::new();
        let mut remaining = 0;
        if let Some(ring) = log.ring(stream) {
            let ring = &lock(&ring).messages;
            let start = ring.partition_point(|message| match from {
                ReadFrom::Offset(offset) => message.offset < offset,
                ReadFrom::Time(seconds) => message.time / 1000 < seconds,
            });
            let end = ring.partition_point(|message| message.offset <= up_to).max(start);
            let mut bytes = 0;
            for message in ring.range(start..end) {
                bytes += message.footprint();
                if messages.len() == max_messages || (bytes > max_bytes && !messages.is_empty()) {
                    break;
                }
                messages.push(message.clone());
            }
            remaining = (end - start - messages.len()) as u64;
        }
        Ok(Page { messages, remaining })
    }

    async fn behind(&self, stream: &StreamName, x: u64) -> Result<Behind, Unavailable> {
        let log = self.log(stream);
        log.expire(self.clock.now_ms());
        let (kept, after, next) = log.ring(stream).map_or((false, 0, None), |ring| {
            let ring = &lock(&ring).messages;
            let at = ring.partition_point(|message| message.offset < x);
            let kept = ring.get(at).is_some_and(|message| message.offset == x);
            let next = at + usize::from(kept);
            (kept, (ring.len() - next) as u64, ring.get(next).map(|message| message.offset))
        });
        Ok(Behind { kept, after, next, facts: log.facts(self.clock.now_ms()) })
    }

    async fn facts(&self, stream: &StreamName) -> Result<Facts, Unavailable> {
        let log = self.log(stream);
        log.expire(self.clock.now_ms());
        Ok(log.facts(self.clock.now_ms()))
    }

    async fn load_session(&self, key: &SessionKey) -> Result<Option<StoredSession>, Unavailable> {
        let now = Instant::now();
        Ok(lock(&self.sessions).entries.get(key).filter(|(_, until)| *until > now).map(|(stored, _)| stored.clone()))
    }

    async fn save_session(
        &self,
        key: &SessionKey,
        body: Bytes,
        revision: Option<u64>,
        life: Life,
    ) -> Result<u64, SaveError> {
        lock(&self.sessions).save(key, body, revision, life.of(self.sessions_ttl), self.sessions_budget)
    }

    async fn save_beside(&self, key: &SessionKey, body: Bytes, revision: Option<u64>) -> Result<u64, SaveError> {
        lock(&self.sessions).save(key, body, revision, life::beside(self.sessions_ttl), self.sessions_budget)
    }

    async fn announce_over(&self, key: &SessionKey, over: Over) {
        self.feed.session_over(key, over);
    }

    async fn delete_session(&self, key: &SessionKey, revision: Option<u64>) -> Result<bool, Unavailable> {
        Ok(lock(&self.sessions).delete(key, revision))
    }

    async fn disconnect(&self, command: &RemoteDisconnect) -> Result<u64, AppendError> {
        let mark = {
            let mut sessions = lock(&self.sessions);
            sessions.revision += 1;
            let mark = sessions.revision;
            let until = Instant::now() + life::beside(self.sessions_ttl);
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

#[cfg(test)]
mod tests {
    use super::super::none;
    use super::*;
    use crate::protocol::{MessageId, Meta};

    /// What becomes of each unstored message where a follower does not keep up.
    #[derive(Default)]
    struct Overflows(Mutex<Vec<Overflow>>);

    impl Feed for Overflows {
        fn live(&self, _: &StreamName, _: u64, _: Arc<Message>) {}
        fn transient(&self, _: &StreamName, _: Arc<Message>, overflow: Overflow) {
            lock(&self.0).push(overflow);
        }
        fn lagged(&self, _: &StreamName) {}
        fn disconnect(&self, _: u64, _: RemoteDisconnect) {}
        fn commands_lost(&self) {}
        fn session_over(&self, _: &SessionKey, _: Over) {}
    }

    async fn overflow(broker: impl FnOnce(Arc<dyn Feed>) -> Arc<MemoryBroker>, transient: bool) -> Vec<Overflow> {
        let feed = Arc::new(Overflows::default());
        let publication = Publication {
            stream: "a".into(),
            data: "1".into(),
            meta: Meta::default(),
            transient,
            id: MessageId::random(),
        };
        let appended = broker(feed.clone()).append(publication).await.expect("nothing is stored");
        assert_eq!(appended.offset, 0);
        lock(&feed.0).clone()
    }

    #[tokio::test]
    async fn row_18_what_a_policy_does_not_keep_may_be_dropped_and_nothing_is_without_a_broker() {
        let keeps_nothing = |feed| {
            let limits = Limits::plain(0, Duration::from_secs(60), Duration::from_secs(60));
            MemoryBroker::new(limits, Duration::ZERO, feed)
        };
        assert_eq!(overflow(keeps_nothing, false).await, [Overflow::Drop]);
        assert_eq!(overflow(none::new, false).await, [Overflow::Disconnect]);
        assert_eq!(overflow(none::new, true).await, [Overflow::Drop]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_expired_entry_is_not_there_for_a_deletion() {
        let (mut sessions, key, life) = (Sessions::default(), SessionKey::of("sid"), Duration::from_secs(1));
        sessions.save(&key, "x".into(), None, life, 0).unwrap();
        assert!(!sessions.delete(&key, Some(0)), "it is there");
        tokio::time::advance(life).await;
        assert!(sessions.delete(&key, Some(0)), "it is not, though it was not swept yet");
        assert_eq!((sessions.entries.len(), sessions.bytes), (0, 0));
    }
}
