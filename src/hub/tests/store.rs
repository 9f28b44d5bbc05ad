//! A store that is away when the test says so, and knows which feeds run.

use crate::broker::*;
use crate::protocol::{Epoch, Message, Publication, StreamName};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

pub struct Store {
    status: watch::Sender<Status>,
    /// Answers come only while it is there.
    there: watch::Sender<bool>,
    /// Streams whose feed runs on the present connection.
    fed: Mutex<BTreeSet<StreamName>>,
    /// Openings to fail, once the question has arrived.
    fail: AtomicUsize,
    /// The log has dropped all but its newest messages.
    pub overrun: AtomicBool,
    pub openings: AtomicUsize,
}

impl Store {
    pub fn new(there: bool) -> Arc<Self> {
        let ttl = Duration::from_secs(300);
        let state = LogState { epoch: Epoch::from("e1"), limit: 100, ttl };
        let logs = Logs::new(Table::new(Vec::new(), 100, ttl), vec![state]);
        let status = Status { ready: true, readable: true, generation: 1, logs, reason: "".into() };
        Arc::new(Self {
            status: watch::Sender::new(status),
            there: watch::Sender::new(there),
            fed: Mutex::default(),
            fail: AtomicUsize::new(0),
            overrun: AtomicBool::new(false),
            openings: AtomicUsize::new(0),
        })
    }

    pub fn set_there(&self, there: bool) {
        self.there.send_replace(there);
    }

    /// Another connection: no feed runs on it, and the next openings fail.
    pub fn reconnect(&self, failures: usize) {
        self.fail.store(failures, Ordering::SeqCst);
        self.fed.lock().unwrap().clear();
        self.status.send_modify(|status| status.generation += 1);
    }

    pub fn fed(&self) -> BTreeSet<StreamName> {
        self.fed.lock().unwrap().clone()
    }

    async fn answer(&self) {
        let _ = self.there.subscribe().wait_for(|there| *there).await;
    }
}

fn facts() -> Facts {
    Facts {
        first_seq: 1,
        last_seq: 0,
        limit: 100,
        ttl: Duration::from_secs(300),
        revision: 1,
        raised_at: 0,
        now: StoreTime { millis: 1, clock: 1 },
        stored: StoreTime { millis: 1, clock: 1 },
        skew: Duration::ZERO,
    }
}

#[async_trait]
impl Broker for Store {
    fn features(&self) -> Features {
        Features { history: true, sessions: false, shared: true }
    }
    fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }
    async fn open(&self, streams: &[StreamName]) -> Result<Vec<Looked>, Unavailable> {
        self.answer().await;
        self.openings.fetch_add(1, Ordering::SeqCst);
        if self.fail.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            return Err(Unavailable("it fails once".into()));
        }
        self.fed.lock().unwrap().extend(streams.iter().cloned());
        Ok(vec![Looked::at_once(Head::default(), facts()); streams.len()])
    }
    fn close(&self, stream: &StreamName) {
        self.fed.lock().unwrap().remove(stream);
    }
    async fn heads(&self, streams: &[StreamName]) -> Result<Vec<Looked>, Unavailable> {
        self.answer().await;
        Ok(vec![Looked::at_once(Head::default(), facts()); streams.len()])
    }
    async fn facts(&self, _: &StreamName) -> Result<Facts, Unavailable> {
        self.answer().await;
        Ok(facts())
    }
    async fn append(&self, _: Publication) -> Result<Appended, AppendError> {
        unreachable!("nothing is published")
    }
    async fn transient(&self, _: &StreamName, _: Message) -> Result<(), Unavailable> {
        unreachable!("nothing is published")
    }
    async fn read(&self, _: &StreamName, _: ReadFrom, _: u64, _: usize, _: usize) -> Result<Page, Unavailable> {
        self.answer().await;
        Ok(Page { messages: Vec::new(), remaining: 0 })
    }
    /// As if everything were kept behind it, or nothing between it and the newest ones.
    async fn behind(&self, _: &StreamName, _: u64) -> Result<Behind, Unavailable> {
        self.answer().await;
        let overrun = self.overrun.load(Ordering::SeqCst);
        let facts = Facts { last_seq: u64::MAX, ..facts() };
        Ok(Behind { kept: !overrun, after: facts.limit, next: None, facts })
    }
    async fn load_session(&self, _: &SessionKey) -> Result<Option<StoredSession>, Unavailable> {
        unreachable!("there are no sessions")
    }
    async fn save_session(&self, _: &SessionKey, _: Bytes, _: Option<u64>, _: Life) -> Result<u64, SaveError> {
        unreachable!("there are no sessions")
    }
    async fn save_beside(&self, _: &SessionKey, _: Bytes, _: Option<u64>) -> Result<u64, SaveError> {
        unreachable!("there are no sessions")
    }
    async fn announce_over(&self, _: &SessionKey, _: Over) {
        unreachable!("there are no sessions")
    }
    async fn delete_session(&self, _: &SessionKey, _: Option<u64>) -> Result<bool, Unavailable> {
        unreachable!("there are no sessions")
    }
    async fn disconnect(&self, _: &RemoteDisconnect) -> Result<u64, AppendError> {
        unreachable!("there are no sessions")
    }
    async fn mark(&self, _: &str) -> Result<u64, Unavailable> {
        unreachable!("there are no sessions")
    }
}
