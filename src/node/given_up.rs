//! The session that a connection has restored, where that connection ends before it was noted that it took its place.

use super::client::Client;
use super::supersede::{Known, Predecessor, clear, close, end, succession, write};
use super::{Node, stored};
use crate::broker::{Over, SaveError, SessionKey};
use crate::critical::critical;
use std::sync::Arc;

impl Client {
    /// The connection is over, and the session before is not: that is not resumed either if this one was told to leave, or
    /// may have been, or if that one has more than its client may have.
    pub fn leave_predecessor(&self) {
        let Some(before) = self.predecessor().take() else { return };
        if self.handle.is_superseded() || self.handle.was_over() {
            // Its client goes on with it elsewhere, or it is over, too.
        } else if self.handle.is_ended() {
            let node = self.node.clone();
            let closing = async move { close(&node, before.key, Over::Ended).await };
            self.node.tasks.spawn(critical("node.restores", closing));
        } else if self.handle.is_revoked() || self.state().session.shrunk() > 0 {
            let Some(key) = self.saver.key().cloned() else { return };
            let (node, heard) = (self.node.clone(), !self.handle.is_revoked());
            let giving_up = async move { give_up(&node, *before, &key, heard).await };
            self.node.tasks.spawn(critical("node.restores", giving_up));
        }
    }
}

/// Nobody resumes `old` any more, although the client of `new`, which was restored from it, has gone before that could be
/// noted. A bare deletion would not do: a half-open connection of `old` would take the entry for lost, and write it again.
/// `heard`: that client has spoken.
async fn give_up(node: &Arc<Node>, old: Predecessor, new: &SessionKey, heard: bool) {
    let mut patience = stored::Patience::new(node);
    let mut has_made_room = false;
    loop {
        let noted = match heard {
            true => end(node, &old.key, new, None).await,
            false => end_unheard(node, &old.key, new).await,
        };
        match noted {
            Ok(None) => return clear(node, old),
            // Whoever has noted that closes its connection, if there is one.
            Ok(Some(_)) => return stored::forget(node, old.key),
            // What is to be deleted makes the room.
            Err(SaveError::Full(_) | SaveError::TooLarge) if !has_made_room => {
                stored::forgotten(node, &old.key).await;
                has_made_room = true;
                continue;
            }
            Err(SaveError::Full(_) | SaveError::TooLarge) => return clear(node, old),
            Err(error) => tracing::debug!(context = "node", %error, "the session before is not over yet"),
        }
        if !patience.is_left().await {
            return clear(node, old);
        }
    }
}

/// The same as [`end`] for a client that may be one that was to leave, and was never heard of: who is heard of stays. Some:
/// the session before is over, or its own client goes on with it.
async fn end_unheard(node: &Node, old: &SessionKey, new: &SessionKey) -> Result<Option<Over>, SaveError> {
    loop {
        let Known { succession, revision } = succession(node, old).await?;
        let by = succession.by().unwrap_or(&new.0);
        match succession.over() {
            // The answer to our own note may not have come.
            Some(Over::Replaced) if by == new.0 => return Ok(None),
            None if succession.has_spoken() => return Ok(Some(Over::Replaced)),
            None => {}
            over => return Ok(over),
        }
        match write(node, old, &succession.replaced(by), revision).await {
            Ok(_) => return Ok(None),
            Err(SaveError::Conflict) => {}
            Err(error) => return Err(error),
        }
    }
}
