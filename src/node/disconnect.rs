//! Remote disconnects: every session of some identifiers, on this node, is closed and cannot be resumed.

use crate::broker::RemoteDisconnect;
use crate::hub::{self, Outbox};
use crate::metrics;
use crate::protocol::Close;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How the registry reaches a connected client.
pub struct Handle {
    identifiers: Arc<str>,
    outbox: Arc<Outbox>,
    /// Newest remote disconnect when it was authenticated; 0 while that is being read.
    mark: AtomicU64,
    /// Closed remotely: what is saved of it must be deleted.
    revoked: AtomicBool,
    /// What is saved of it can be resumed.
    resumable: bool,
}

impl Handle {
    pub fn new(identifiers: Arc<str>, outbox: Arc<Outbox>, resumable: bool) -> Arc<Self> {
        Arc::new(Self { identifiers, outbox, mark: AtomicU64::new(0), revoked: AtomicBool::new(false), resumable })
    }

    pub fn set_mark(&self, mark: u64) {
        self.mark.store(mark, Ordering::Release);
    }

    /// The client's session survives its connection.
    pub fn is_resumable(&self) -> bool {
        self.resumable && !self.is_revoked()
    }

    pub fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
    }

    /// Closes the client for good.
    pub fn revoke(&self, close: Close) {
        self.revoked.store(true, Ordering::Release);
        self.outbox.close(close);
    }
}

/// Remote disconnects that are remembered. More within [`RECENT`] is beyond what an application does; then the oldest
/// are forgotten.
const MAX_RECENT: usize = 4_096;

/// How long a remote disconnect is remembered: longer than an application takes to let a client in.
const RECENT: Duration = Duration::from_secs(60);

struct Recent {
    at: Instant,
    command: RemoteDisconnect,
}

/// The connected clients of this node by their connection identifiers.
#[derive(Default)]
pub struct Registry {
    clients: Mutex<HashMap<Arc<str>, Vec<Arc<Handle>>>>,
    /// For clients that are being let in: who they are is known only when the application has answered.
    recent: Mutex<VecDeque<Recent>>,
}

impl Registry {
    fn clients(&self) -> MutexGuard<'_, HashMap<Arc<str>, Vec<Arc<Handle>>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on remote disconnects reach the client. Must precede the reading of the identifiers' mark.
    pub fn add(&self, handle: &Arc<Handle>) {
        self.clients().entry(handle.identifiers.clone()).or_insert_with(|| Vec::with_capacity(1)).push(handle.clone());
        metrics::CLIENTS.add(1);
    }

    pub fn remove(&self, handle: &Arc<Handle>) {
        let mut clients = self.clients();
        let Some(handles) = clients.get_mut(&handle.identifiers) else { return };
        let before = handles.len();
        handles.retain(|other| !Arc::ptr_eq(other, handle));
        metrics::CLIENTS.add(handles.len() as i64 - before as i64);
        if handles.is_empty() {
            clients.remove(&handle.identifiers);
        }
    }

    fn all(&self) -> Vec<Arc<Handle>> {
        self.clients().values().flatten().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.clients().values().map(Vec::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.clients().is_empty()
    }

    fn remember(&self, command: &RemoteDisconnect) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        while recent.front().is_some_and(|old| now - old.at > RECENT) || recent.len() >= MAX_RECENT {
            recent.pop_front();
        }
        recent.push_back(Recent { at: now, command: command.clone() });
    }

    /// The remote disconnect of these identifiers that came since then, if any. Asked after [`Self::add`].
    pub fn disconnected_since(&self, identifiers: &str, since: Instant) -> Option<Close> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = recent.iter().rev().take_while(|recent| recent.at >= since);
        let mut meant = newest.filter(|recent| recent.command.identifiers == identifiers);
        meant.next().map(|recent| Close::Remote { reconnect: recent.command.reconnect })
    }

    pub fn close_all(&self, handover: bool) {
        for handle in self.all() {
            let close = if handover && handle.resumable { Close::Handover } else { Close::Restart };
            handle.outbox.close(close);
        }
    }
}

impl hub::Commands for Registry {
    fn disconnect(&self, mark: u64, command: RemoteDisconnect) {
        metrics::REMOTE_COMMANDS.inc();
        self.remember(&command);
        let handles = self.clients().get(command.identifiers.as_str()).cloned().unwrap_or_default();
        for handle in handles {
            // A session that was authenticated after the command is not meant.
            if handle.mark.load(Ordering::Acquire) < mark {
                handle.revoke(Close::Remote { reconnect: command.reconnect });
            }
        }
    }

    fn commands_lost(&self) {
        tracing::warn!(context = "node", "remote disconnects may have been missed; every client authenticates anew");
        for handle in self.all() {
            handle.revoke(Close::StoreUnavailable);
        }
    }
}
