//! Who is connected to this node, and how one is reached who is to leave.

use super::disconnect::Recent;
use super::save::unix_ms;
use crate::broker::{Over, SessionKey};
use crate::hub::Outbox;
use crate::metrics;
use crate::protocol::Close;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How the registry reaches a connected client.
pub struct Handle {
    identifiers: Arc<str>,
    outbox: Arc<Outbox>,
    /// Newest remote disconnect when it was authenticated; 0 while that is being read.
    mark: AtomicU64,
    /// Told to leave for good, remotely or by the application, or because that may have been missed: what is saved of it
    /// must be deleted.
    revoked: AtomicBool,
    /// Told so because it was noted that its session is over, and what that was restored from.
    was_over: AtomicBool,
    /// Half of the hash that its saved session is found by; `None`: nothing is saved of it.
    key: Option<u128>,
    /// Another connection has gone on with its session.
    superseded: AtomicBool,
    /// Since when remote disconnects may have been missed (Unix milliseconds), 0: they were not. It is told nothing more
    /// until it is closed.
    suspended_since: AtomicU64,
}

impl Handle {
    /// `key`: of what is saved of the client, if it can be resumed.
    pub fn new(identifiers: Arc<str>, outbox: Arc<Outbox>, key: Option<&SessionKey>) -> Arc<Self> {
        Arc::new(Self {
            identifiers,
            outbox,
            mark: AtomicU64::new(0),
            revoked: AtomicBool::new(false),
            was_over: AtomicBool::new(false),
            key: key.map(SessionKey::short),
            superseded: AtomicBool::new(false),
            suspended_since: AtomicU64::new(0),
        })
    }

    pub fn set_mark(&self, mark: u64) {
        self.mark.store(mark, Ordering::Release);
    }

    /// It was authenticated before this remote disconnect of its identifiers.
    pub(super) fn is_meant_by(&self, mark: u64) -> bool {
        self.mark.load(Ordering::Acquire) < mark
    }

    /// The client's session survives its connection.
    pub fn is_resumable(&self) -> bool {
        self.key.is_some() && !self.is_revoked()
    }

    /// It was told to leave for good.
    pub fn is_ended(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
    }

    /// What is saved of it must not be resumed: it was ended, or may have been, or goes on elsewhere.
    pub fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire) || self.is_superseded() || self.suspended_since().is_some()
    }

    /// Another connection has gone on with its session: it has not ended.
    pub fn is_superseded(&self) -> bool {
        self.superseded.load(Ordering::Acquire)
    }

    /// Closes the client because another connection has gone on with its session.
    fn supersede(&self) {
        metrics::SESSIONS_SUPERSEDED.add(u64::from(!self.superseded.swap(true, Ordering::AcqRel)));
        self.outbox.close(Close::Superseded);
    }

    /// Closes the client because its session is over.
    pub fn close_over(&self, over: Over) {
        match over {
            Over::Replaced => self.supersede(),
            Over::Ended => {
                self.was_over.store(true, Ordering::Release);
                self.revoke(Close::Ended);
            }
        }
    }

    /// It was ended with the session that it was restored from.
    pub fn was_over(&self) -> bool {
        self.was_over.load(Ordering::Acquire)
    }

    /// Something is saved of it, or was.
    pub fn has_session(&self) -> bool {
        self.key.is_some()
    }

    /// Since when remote disconnects may have been missed, Unix milliseconds.
    pub fn suspended_since(&self) -> Option<u64> {
        Some(self.suspended_since.load(Ordering::Acquire)).filter(|since| *since > 0)
    }

    /// The client may have been disconnected remotely without our knowing: nothing is delivered to it any more.
    pub(super) fn suspend(&self) {
        // What comes after the first time is what the client has not got.
        let _ = self.suspended_since.compare_exchange(0, unix_ms(), Ordering::AcqRel, Ordering::Acquire);
        self.outbox.suspend();
    }

    /// Closes the client for good.
    pub fn revoke(&self, close: Close) {
        self.revoked.store(true, Ordering::Release);
        self.outbox.close(close);
    }
}

/// The connected clients of this node by their connection identifiers.
pub struct Registry {
    clients: Mutex<HashMap<Arc<str>, Vec<Arc<Handle>>>>,
    /// Those that can be resumed, by half the hash of their saved session's key.
    resumable: Mutex<HashMap<u128, Arc<Handle>>>,
    /// For clients that are being let in: who they are is known only when the application has answered.
    pub(super) recent: Mutex<Recent>,
    /// Time over which clients are spread that must authenticate anew.
    pub(super) reauth_spread: Duration,
    pub(super) tasks: TaskTracker,
    pub(super) closed: CancellationToken,
}

/// A client that is registered as long as this lives: whoever registers may be cut off, or panic, at any await.
pub struct Registration {
    registry: Arc<Registry>,
    pub handle: Arc<Handle>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.remove(&self.handle);
    }
}

impl Registry {
    /// `reauth_spread`: clients that must authenticate anew, all at the same time, are closed over so long.
    pub fn new(reauth_spread: Duration) -> Arc<Self> {
        Arc::new(Self {
            clients: Mutex::default(),
            resumable: Mutex::default(),
            recent: Mutex::default(),
            reauth_spread,
            tasks: TaskTracker::new(),
            closed: CancellationToken::new(),
        })
    }

    /// Ends the registry's tasks.
    pub async fn stop(&self) {
        self.closed.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<Arc<str>, Vec<Arc<Handle>>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn resumable(&self) -> MutexGuard<'_, HashMap<u128, Arc<Handle>>> {
        self.resumable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on remote disconnects reach the client. Must precede the reading of the identifiers' mark.
    pub fn add(self: &Arc<Self>, handle: Arc<Handle>) -> Registration {
        if let Some(key) = handle.key {
            self.resumable().insert(key, handle.clone());
        }
        self.clients().entry(handle.identifiers.clone()).or_insert_with(|| Vec::with_capacity(1)).push(handle.clone());
        metrics::CLIENTS.add(1);
        Registration { registry: self.clone(), handle }
    }

    pub fn remove(&self, handle: &Arc<Handle>) {
        if let Some(key) = &handle.key {
            self.resumable().remove(key);
        }
        let mut clients = self.clients();
        let Some(handles) = clients.get_mut(&handle.identifiers) else { return };
        let before = handles.len();
        handles.retain(|other| !Arc::ptr_eq(other, handle));
        metrics::CLIENTS.add(handles.len() as i64 - before as i64);
        if handles.is_empty() {
            clients.remove(&handle.identifiers);
        }
    }

    /// The connections of these identifiers.
    pub(super) fn of(&self, identifiers: &str) -> Vec<Arc<Handle>> {
        self.clients().get(identifiers).cloned().unwrap_or_default()
    }

    pub(super) fn all(&self) -> Vec<Arc<Handle>> {
        self.clients().values().flatten().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.clients().values().map(Vec::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.clients().is_empty()
    }

    /// Closes the connection of a session that is over. False: it is not here.
    pub fn close_over(&self, key: &SessionKey, over: Over) -> bool {
        let found = self.resumable().get(&key.short()).cloned();
        found.inspect(|handle| handle.close_over(over)).is_some()
    }

    pub fn close_all(&self, handover: bool) {
        for handle in self.all() {
            let close = if handover && handle.key.is_some() { Close::Handover } else { Close::Restart };
            handle.outbox.close(close);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client without a position asks for what came since then.
    #[test]
    fn row_07_who_is_suspended_again_stays_suspended_since_the_first_time() {
        let handle = Handle::new("a".into(), Arc::new(Outbox::new(crate::protocol::Encoding::Json, 1)), None);
        assert_eq!(handle.suspended_since(), None);
        handle.suspend();
        let since = handle.suspended_since();
        assert!(since.is_some());
        while Some(unix_ms()) <= since {
            std::thread::yield_now();
        }
        handle.suspend();
        assert_eq!(handle.suspended_since(), since);
    }
}
