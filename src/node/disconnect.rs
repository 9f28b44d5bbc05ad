//! Remote disconnects: whose connections they end, also of clients that are being let in meanwhile, and what is done when
//! some may have been missed.

use super::registry::{Handle, Registry};
use crate::broker::{Over, RemoteDisconnect, SessionKey};
use crate::critical::critical;
use crate::hub;
use crate::metrics;
use crate::protocol::Close;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::{MutexGuard, PoisonError, Weak};
use tokio::time::Instant;

/// Remote disconnects that are remembered: more than come while an application lets a client in. When there are more
/// the oldest are forgotten.
const MAX_RECENT: usize = 1_024;

/// The last remote disconnects that this node heard of.
#[derive(Default)]
pub(super) struct Recent {
    heard: Heard,
    commands: VecDeque<RemoteDisconnect>,
}

/// How much of the remote disconnects was heard at some moment.
#[derive(Clone, Copy, Default)]
pub struct Heard {
    /// All that were ever heard of.
    count: u64,
    /// Times that some may have been missed.
    lost: u64,
}

impl Registry {
    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, command: &RemoteDisconnect) {
        let mut recent = self.recent();
        recent.heard.count += 1;
        if recent.commands.len() >= MAX_RECENT {
            recent.commands.pop_front();
        }
        recent.commands.push_back(command.clone());
    }

    /// Remote disconnects heard of so far, for [`Self::disconnected_since`].
    pub fn heard(&self) -> Heard {
        self.recent().heard
    }

    /// Whether these identifiers were disconnected remotely since then, or may have been. Asked after [`Self::add`].
    pub fn disconnected_since(&self, identifiers: &str, heard: Heard) -> Option<Close> {
        let recent = self.recent();
        if recent.heard.lost != heard.lost {
            return Some(Close::StoreUnavailable);
        }
        let newer = usize::try_from(recent.heard.count - heard.count).unwrap_or(usize::MAX);
        let mut meant = recent.commands.iter().rev().take(newer).filter(|command| command.identifiers == identifiers);
        meant.next().map(|command| Close::Remote { reconnect: command.reconnect })
    }
}

impl hub::Commands for Registry {
    fn disconnect(&self, mark: u64, command: RemoteDisconnect) {
        metrics::REMOTE_COMMANDS.inc();
        self.remember(&command);
        for handle in self.of(&command.identifiers) {
            // A session that was authenticated after the command is not meant.
            if handle.is_meant_by(mark) {
                handle.revoke(Close::Remote { reconnect: command.reconnect });
            }
        }
    }

    fn session_over(&self, key: &SessionKey, over: Over) {
        self.close_over(key, over);
    }

    /// Everybody authenticates anew, but not at the same time: the application that lets them in would not bear it. Who is
    /// meant by a disconnect that was missed is among them, so nothing is delivered to any of them meanwhile.
    fn commands_lost(&self) {
        self.recent().heard.lost += 1;
        // In the order of a hash with a random key: no group of clients is the first.
        let handles = self.all();
        handles.iter().for_each(|handle| handle.suspend());
        metrics::REAUTHENTICATED.add(handles.len() as u64);
        let (spread, closed) = (self.reauth_spread, self.closed.clone());
        tracing::warn!(
            context = "node",
            clients = handles.len(),
            seconds = spread.as_secs_f32(),
            "remote disconnects may have been missed; every client is closed within this time and authenticates anew"
        );
        // Who leaves meanwhile is not held on to.
        let handles: Vec<Weak<Handle>> = handles.iter().map(Arc::downgrade).collect();
        self.tasks.spawn(critical("node.reauthentication", async move {
            let begin = Instant::now();
            let number = u32::try_from(handles.len()).unwrap_or(u32::MAX);
            for (place, handle) in (0..number).zip(handles) {
                let turn = begin + spread.mul_f64(f64::from(place) / f64::from(number));
                if closed.run_until_cancelled(tokio::time::sleep_until(turn)).await.is_none() {
                    return;
                }
                if let Some(handle) = handle.upgrade() {
                    handle.revoke(Close::StoreUnavailable);
                }
            }
        }));
    }
}
