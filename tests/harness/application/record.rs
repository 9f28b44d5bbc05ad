//! What was called, what is running, and the script that answers.

use super::{Call, Fault, Method, Reply};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_util::sync::CancellationToken;

pub type Script = Arc<dyn Fn(&Call) -> Reply + Send + Sync>;

pub struct Record {
    script: Mutex<Script>,
    calls: Mutex<Vec<Call>>,
    connections: AtomicUsize,
    running: AtomicUsize,
    most: AtomicUsize,
    cancelled: AtomicUsize,
}

impl Record {
    pub fn new(script: Script) -> Arc<Self> {
        Arc::new(Self {
            script: Mutex::new(script),
            calls: Mutex::default(),
            connections: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            cancelled: AtomicUsize::new(0),
        })
    }

    pub fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn calls(&self) -> MutexGuard<'_, Vec<Call>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn connected(&self) {
        self.connections.fetch_add(1, Ordering::SeqCst);
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub fn running(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }

    pub fn most_at_once(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }

    pub fn cancelled(&self) -> usize {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// Records a call and answers it by the script, in the time that the answer takes. Dropped before its end, the call
    /// counts as cancelled.
    pub async fn answer(self: &Arc<Self>, call: Call, cut: CancellationToken) -> Reply {
        let script = self.script().clone();
        self.calls().push(call.clone());
        let mut running = Running::new(self.clone());
        let reply = script(&call);
        tokio::time::sleep(reply.delay).await;
        match reply.fault {
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Cut) => {
                running.ended = true;
                cut.cancel();
                // The connection goes, and this with it.
                std::future::pending().await
            }
            _ => {}
        }
        running.ended = true;
        reply
    }

    pub fn count(&self, method: Method) -> usize {
        self.calls().iter().filter(|call| call.method == method).count()
    }
}

struct Running {
    record: Arc<Record>,
    ended: bool,
}

impl Running {
    fn new(record: Arc<Record>) -> Self {
        let now = record.running.fetch_add(1, Ordering::SeqCst) + 1;
        record.most.fetch_max(now, Ordering::SeqCst);
        Self { record, ended: false }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.record.running.fetch_sub(1, Ordering::SeqCst);
        self.record.cancelled.fetch_add(usize::from(!self.ended), Ordering::SeqCst);
    }
}
