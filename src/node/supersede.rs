//! A restored session takes the place of the one that it was restored from. Until its client has spoken nobody knows that
//! it heard of its new sid: so long the old one stays, and may be restored again. What happened is decided in one entry of
//! the store, the succession.

use super::client::Client;
use super::{Node, stored};
use crate::broker::{SaveError, SessionKey, Unavailable};
use crate::critical::critical;
use crate::metrics;
use crate::session::Succession;
use bytes::Bytes;
use std::sync::Arc;

/// The session that a connection has restored, as long as it may be restored again.
#[derive(Clone, Debug)]
pub struct Predecessor {
    pub key: SessionKey,
    /// Its connection may still be there.
    pub open: bool,
}

/// What is known of a session's succession, and the revision of that.
pub struct Known {
    pub succession: Succession,
    revision: u64,
}

fn place(session: &SessionKey) -> SessionKey {
    session.derived("succession")
}

/// Reads from the leader what became of a session.
pub async fn succession(node: &Node, session: &SessionKey) -> Result<Known, Unavailable> {
    let stored = node.hub.broker().load_session(&place(session)).await?;
    Ok(match stored {
        Some(stored) => Known { succession: Succession::decode(&stored.body), revision: stored.revision },
        None => Known { succession: Succession::default(), revision: 0 },
    })
}

async fn write(node: &Node, session: &SessionKey, next: &Succession, revision: Option<u64>) -> Result<(), SaveError> {
    let body = Bytes::from(next.encode());
    node.hub.broker().save_beside(&place(session), body, revision).await.map(drop)
}

/// Takes the place of whoever restored `old` before. False: `old` is over, or was restored too often. `known`: what was
/// known of it when the client came; who claimed it since then came later, or has given up by now, and that it was this
/// client cannot be told, so that this is a conflict.
pub async fn claim(node: &Arc<Node>, old: &SessionKey, new: &SessionKey, known: Known) -> Result<bool, SaveError> {
    let succession = &known.succession;
    if !succession.may_restore() {
        return Ok(false);
    }
    write(node, old, &succession.restored(&new.0), Some(known.revision)).await?;
    if let Some(unproved) = succession.by() {
        close_unproved(node, SessionKey(unproved.to_owned()));
    }
    Ok(true)
}

/// Ends `old` because the client of `new`, which was restored from it, has spoken. False: another restore has taken the
/// place of `new`.
pub async fn end(node: &Node, old: &SessionKey, new: &SessionKey) -> Result<bool, SaveError> {
    loop {
        let known = succession(node, old).await?;
        match known.succession.by() {
            Some(by) if by != new.0 => return Ok(false),
            _ if known.succession.is_over() => return Ok(true),
            _ => {}
        }
        match write(node, old, &known.succession.restored(&new.0).ended(), Some(known.revision)).await {
            Ok(()) => return Ok(true),
            Err(SaveError::Conflict) => {}
            Err(error) => return Err(error),
        }
    }
}

/// A session was told to leave for good: whoever has restored it meanwhile, and was never heard of, is closed, and nobody
/// restores it any more.
pub fn end_for_good(node: &Arc<Node>, key: SessionKey) {
    let (node_, mut patience) = (node.clone(), stored::Patience::new(node));
    let ending = async move {
        loop {
            let ended = match succession(&node_, &key).await {
                Ok(known) if known.succession.is_over() => return,
                Ok(known) => {
                    let written = write(&node_, &key, &Succession::over(), Some(known.revision)).await;
                    written.map(|()| known.succession.by().map(|by| SessionKey(by.to_owned())))
                }
                Err(error) => Err(error.into()),
            };
            match ended {
                Ok(Some(unproved)) => return close_unproved(&node_, unproved),
                Ok(None) => return,
                Err(SaveError::Conflict) => {}
                Err(_) if patience.is_left().await => {}
                Err(_) => return,
            }
        }
    };
    node.tasks.spawn(critical("node.restores", ending));
}

/// What `key` names was restored, and its client was never heard of; the same session was restored once more.
fn close_unproved(node: &Arc<Node>, key: SessionKey) {
    node.registry.supersede(&key);
    let (node_, mut patience) = (node.clone(), stored::Patience::new(node));
    let closing = async move {
        while write(&node_, &key, &Succession::over(), None).await.is_err() && patience.is_left().await {}
        if let Some(farewells) = &node_.farewells {
            farewells.goes_on(&key).await;
        }
        node_.hub.broker().announce_superseded(&key).await;
        stored::forget(&node_, key);
    };
    node.tasks.spawn(critical("node.restores", closing));
}

/// Nothing of an ended session stays, neither what is saved of it nor a connection that may still be there.
pub fn clear(node: &Arc<Node>, ended: Predecessor) {
    let here = node.registry.supersede(&ended.key);
    if ended.open && !here {
        let (broker, key) = (node.hub.broker().clone(), ended.key.clone());
        let announcing = async move { broker.announce_superseded(&key).await };
        node.tasks.spawn(critical("node.restores", announcing));
    }
    stored::forget(node, ended.key);
}

impl Client {
    /// The session that this one was restored from may still be restored.
    pub fn is_unproved(&self) -> bool {
        self.predecessor().is_some()
    }

    /// The client has spoken, after its `welcome` was written: it knows its sid, and the session before is over.
    pub async fn prove(&self) {
        let before = self.predecessor().clone();
        // As long as the new one is not stored the old one is the only one that can be resumed.
        let (Some(before), Some(key), true) = (before, self.saver.key(), self.saver.is_stored()) else { return };
        match end(&self.node, &before.key, key).await {
            Ok(true) => {
                *self.predecessor() = None;
                self.state().session.unproved = None;
                clear(&self.node, *before);
            }
            Ok(false) => self.handle.supersede(),
            // Its next frame tries again.
            Err(error) => tracing::debug!(context = "node", %error, "the session before is not over yet"),
        }
    }
}

/// Another node may have gone on with this session meanwhile.
pub async fn is_over(node: &Node, session: &SessionKey) -> Result<bool, Unavailable> {
    Ok(succession(node, session).await?.succession.is_over())
}

/// A restore that is not granted.
pub fn refused() {
    metrics::SESSIONS_NOT_RESTORED.inc();
    metrics::RESTORES_REFUSED.inc();
}
