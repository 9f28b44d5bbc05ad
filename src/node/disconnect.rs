//! Remote disconnects: every session of some identifiers, on this node, is closed and cannot be resumed.

use crate::broker::RemoteDisconnect;
use crate::hub::{self, Outbox};
use crate::metrics;
use crate::protocol::Close;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

/// Remote disconnects that are remembered: more than come while an application lets a client in. When there are more
/// the oldest are forgotten.
const MAX_RECENT: usize = 1_024;

/// The last remote disconnects that this node heard of.
#[derive(Default)]
struct Recent {
    /// All that were ever heard of.
    count: u64,
    commands: VecDeque<RemoteDisconnect>,
}

/// The connected clients of this node by their connection identifiers.
#[derive(Default)]
pub struct Registry {
    clients: Mutex<HashMap<Arc<str>, Vec<Arc<Handle>>>>,
    /// For clients that are being let in: who they are is known only when the application has answered.
    recent: Mutex<Recent>,
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
    fn clients(&self) -> MutexGuard<'_, HashMap<Arc<str>, Vec<Arc<Handle>>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on remote disconnects reach the client. Must precede the reading of the identifiers' mark.
    pub fn add(self: &Arc<Self>, handle: Arc<Handle>) -> Registration {
        self.clients().entry(handle.identifiers.clone()).or_insert_with(|| Vec::with_capacity(1)).push(handle.clone());
        metrics::CLIENTS.add(1);
        Registration { registry: self.clone(), handle }
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

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, command: &RemoteDisconnect) {
        let mut recent = self.recent();
        recent.count += 1;
        if recent.commands.len() >= MAX_RECENT {
            recent.commands.pop_front();
        }
        recent.commands.push_back(command.clone());
    }

    /// Remote disconnects heard of so far, for [`Self::disconnected_since`].
    pub fn heard(&self) -> u64 {
        self.recent().count
    }

    /// The remote disconnect of these identifiers that was heard of since then, if any. Asked after [`Self::add`].
    pub fn disconnected_since(&self, identifiers: &str, heard: u64) -> Option<Close> {
        let recent = self.recent();
        let newer = usize::try_from(recent.count - heard).unwrap_or(usize::MAX);
        let mut meant = recent.commands.iter().rev().take(newer).filter(|command| command.identifiers == identifiers);
        meant.next().map(|command| Close::Remote { reconnect: command.reconnect })
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
