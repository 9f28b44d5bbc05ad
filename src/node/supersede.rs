//! A restored session takes the place of the one that it was restored from. Until its client has spoken nobody knows that
//! it heard of its new sid: so long the old one stays, and may be restored again. What happened is decided in one entry of
//! the store beside each session, its succession.

use super::client::Client;
use super::{Node, stored};
use crate::broker::{Over, SaveError, SessionKey, Unavailable};
use crate::critical::critical;
use crate::metrics;
use crate::session::Succession;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The session that a connection has restored, as long as it may be restored again.
#[derive(Clone, Debug)]
pub struct Predecessor {
    pub key: SessionKey,
    /// Its connection may still be there.
    pub open: bool,
    /// Its succession, as it was written when this one was let in.
    pub known: Option<Known>,
    /// When a client whose own session is not stored looked whether this one is over.
    looked: Option<Instant>,
}

impl Predecessor {
    pub fn new(key: SessionKey, open: bool) -> Self {
        Self { key, open, known: None, looked: None }
    }
}

/// A client whose session is not stored looks so often, at most, whether the one before is over.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What is known of a session's succession, and the revision of that.
#[derive(Clone, Debug)]
pub struct Known {
    pub succession: Succession,
    pub(super) revision: u64,
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

/// Writes what became of a session, unless somebody else has written it since `revision`. Answers with the new one.
pub(super) async fn write(
    node: &Node,
    session: &SessionKey,
    next: &Succession,
    revision: u64,
) -> Result<u64, SaveError> {
    let body = Bytes::from(next.encode());
    node.hub.broker().save_beside(&place(session), body, Some(revision)).await
}

/// A restore that is noted. Nobody has been closed for it yet.
pub struct Claim {
    old: SessionKey,
    before: Succession,
    noted: Known,
}

/// Takes the place of whoever restored `old` before. `known`: what was known of it when the client came, when it might be
/// restored; who claimed it since then came later, or has given up by now, and that it was this client cannot be told, so
/// that this is a conflict.
pub async fn claim(node: &Node, old: &SessionKey, new: &SessionKey, known: Known) -> Result<Claim, SaveError> {
    let Known { succession: before, revision } = known;
    let succession = before.restored(&new.0);
    let revision = write(node, old, &succession, revision).await?;
    Ok(Claim { old: old.clone(), before, noted: Known { succession, revision } })
}

impl Claim {
    /// The client is let in: whoever restored the session before, and was never heard of, is closed. Answers with what is
    /// noted now.
    pub fn keep(self, node: &Arc<Node>) -> Known {
        if let Some(unproved) = self.before.by() {
            close_soon(node, SessionKey(unproved.to_owned()));
        }
        self.noted
    }

    /// The client has gone meanwhile: its restore does not count, and takes nobody's place.
    pub fn give_back(self, node: &Arc<Node>) {
        let node_ = node.clone();
        let giving = async move {
            // Who has claimed it since stays. Where the store does not answer it counts: one of five is lost.
            if let Err(error) = write(&node_, &self.old, &self.before, self.noted.revision).await {
                tracing::debug!(context = "node", %error, "a restore counts although its client has gone");
            }
        };
        node.tasks.spawn(critical("node.restores", giving));
    }
}

/// Ends `old` because the client of `new`, which was restored from it, has spoken. Some: it came too late, `new` is over
/// itself. `known`: what was noted last, as far as anybody here knows; the write tells whether it still is.
pub async fn end(
    node: &Arc<Node>,
    old: &SessionKey,
    new: &SessionKey,
    mut known: Option<Known>,
) -> Result<Option<Over>, SaveError> {
    loop {
        let Known { succession, revision } = match known.take() {
            Some(known) => known,
            None => succession(node, old).await?,
        };
        let other = succession.by().filter(|by| *by != new.0).map(|by| SessionKey(by.to_owned()));
        match succession.over() {
            None => {}
            Some(Over::Replaced) if succession.by().is_some() && other.is_none() => return Ok(None),
            over => return Ok(over),
        }
        // Another restore took the place of `new`, in silence. Who is heard of first stays, unless it is closed already.
        if other.is_some()
            && let Some(over) = insist(node, new).await?
        {
            return Ok(Some(over));
        }
        match write(node, old, &succession.replaced(&new.0), revision).await {
            Ok(_) => {
                if let Some(other) = other {
                    close_soon(node, other);
                }
                return Ok(None);
            }
            Err(SaveError::Conflict) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Notes in a session's own entry that its client has spoken, where whoever closes it looks first. Some: it is closed.
async fn insist(node: &Node, session: &SessionKey) -> Result<Option<Over>, SaveError> {
    loop {
        let Known { succession, revision } = succession(node, session).await?;
        if succession.over().is_some() || succession.has_spoken() {
            return Ok(succession.over());
        }
        match write(node, session, &succession.spoken(), revision).await {
            Ok(_) => return Ok(None),
            Err(SaveError::Conflict) => {}
            Err(error) => return Err(error),
        }
    }
}

/// A session was told to leave for good: whoever has restored it meanwhile, and was never heard of, is closed, and nobody
/// restores it any more. What is saved of it is deleted by the caller.
pub fn end_for_good(node: &Arc<Node>, key: SessionKey) {
    let node_ = node.clone();
    let ending = async move {
        let Some(noted) = note_over(&node_, &key, Over::Ended).await else { return };
        if let Some(by) = noted.by {
            close(&node_, by, Over::Ended).await;
        }
        if !noted.stored {
            note_in_its_room(&node_, &key, Over::Ended).await;
        }
    };
    node.tasks.spawn(critical("node.restores", ending));
}

/// What `key` names was restored, and its client was never heard of; another one has taken its place.
fn close_soon(node: &Arc<Node>, key: SessionKey) {
    let node_ = node.clone();
    let closing = async move { close(&node_, key, Over::Replaced).await };
    node.tasks.spawn(critical("node.restores", closing));
}

/// Closes a session whose client was never heard of, and what was restored from that: nothing stays of them, on any node.
pub(super) async fn close(node: &Arc<Node>, mut key: SessionKey, over: Over) {
    let mut not_stored = Vec::new();
    while let Some(noted) = note_over(node, &key, over).await {
        node.registry.close_over(&key, noted.over);
        if noted.over == Over::Replaced
            && let Some(farewells) = &node.farewells
        {
            farewells.goes_on(&key).await;
        }
        node.hub.broker().announce_over(&key, noted.over).await;
        stored::forget(node, key.clone());
        let next = noted.by;
        if !noted.stored {
            not_stored.push(key);
        }
        match next {
            Some(by) => key = by,
            None => break,
        }
    }
    for key in not_stored {
        note_in_its_room(node, &key, over).await;
    }
}

/// How it was noted that a session is over.
struct Noted {
    /// Why, as it was noted first.
    over: Over,
    /// Who has restored it in silence, and has to go, too.
    by: Option<SessionKey>,
    /// False: the store has no room for it, or has not answered for so long that the session has expired.
    stored: bool,
}

/// Notes that a session is over. `None`: its client has spoken, and finds out itself whose place is whose.
async fn note_over(node: &Node, key: &SessionKey, over: Over) -> Option<Noted> {
    let mut patience = stored::Patience::new(node);
    // Who has restored it, where a note may have been written whose answer did not come.
    let mut unanswered: Option<SessionKey> = None;
    loop {
        if let Ok(Known { succession, revision }) = succession(node, key).await {
            if let Some(noted) = succession.over() {
                // A note of ours names nobody; one that does is of a client that has spoken.
                let by = unanswered.filter(|_| succession == Succession::closed(over));
                return Some(Noted { over: noted, by, stored: true });
            }
            if over == Over::Replaced && succession.has_spoken() {
                return None;
            }
            let by = succession.by().map(|by| SessionKey(by.to_owned()));
            match write(node, key, &Succession::closed(over), revision).await {
                Ok(_) => return Some(Noted { over, by, stored: true }),
                Err(SaveError::Conflict) => continue,
                // It would be in vain until something is deleted, and nothing that follows depends on it.
                Err(SaveError::Full(_) | SaveError::TooLarge) => return Some(Noted { over, by, stored: false }),
                Err(SaveError::Unavailable(_)) => unanswered = by,
            }
        }
        if !patience.is_left().await {
            return Some(Noted { over, by: None, stored: false });
        }
    }
}

/// What is deleted of a session makes room to note that it is over.
async fn note_in_its_room(node: &Node, key: &SessionKey, over: Over) {
    stored::forgotten(node, key).await;
    note_over(node, key, over).await;
}

/// Nothing of a session stays that goes on under another sid, neither what is saved of it nor a connection that may still
/// be there.
pub fn clear(node: &Arc<Node>, replaced: Predecessor) {
    let here = node.registry.close_over(&replaced.key, Over::Replaced);
    if replaced.open && !here {
        let (broker, key) = (node.hub.broker().clone(), replaced.key.clone());
        let announcing = async move { broker.announce_over(&key, Over::Replaced).await };
        node.tasks.spawn(critical("node.restores", announcing));
    }
    stored::forget(node, replaced.key);
}

impl Client {
    /// The session that this one was restored from may still be restored.
    pub fn is_unproved(&self) -> bool {
        self.predecessor().is_some()
    }

    /// The client has spoken, after its `welcome` was written: it knows its sid, and the session before is over.
    pub async fn prove(&self) {
        let before = self.predecessor().clone();
        let (Some(before), Some(key)) = (before, self.saver.key()) else { return };
        // As long as the new one is not stored the old one is the only one that can be resumed. It must not be once it has
        // more than its client may have.
        if !self.is_stored() && self.state().session.shrunk() == 0 {
            self.heed(&before.key, key).await;
            return;
        }
        let mut ended = end(&self.node, &before.key, key, before.known.clone()).await;
        if matches!(ended, Err(SaveError::Full(_) | SaveError::TooLarge)) {
            // What nobody needs any more makes room.
            stored::forgotten(&self.node, &before.key).await;
            ended = end(&self.node, &before.key, key, None).await;
        }
        match ended {
            Ok(None) => {
                *self.predecessor() = None;
                self.state().session.unproved = None;
                clear(&self.node, *before);
            }
            Ok(Some(over)) => self.handle.close_over(over),
            // Its next frame tries again.
            Err(error) => tracing::debug!(context = "node", %error, "the session before is not over yet"),
        }
    }

    /// The session before may have been ended, and nobody may know of this one: there was no room to note it.
    async fn heed(&self, before: &SessionKey, key: &SessionKey) {
        {
            let mut predecessor = self.predecessor();
            let Some(predecessor) = predecessor.as_mut() else { return };
            if predecessor.looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
                return;
            }
            predecessor.looked = Some(Instant::now());
        }
        match succession(&self.node, before).await {
            Ok(Known { succession, .. }) if succession.by() != Some(&key.0) => {
                if let Some(over) = succession.over() {
                    self.handle.close_over(over);
                }
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(context = "node", %error, "whether the session before is over is not known"),
        }
    }
}

/// Another node may have gone on with this session meanwhile, or ended it.
pub async fn over(node: &Node, session: &SessionKey) -> Result<Option<Over>, Unavailable> {
    Ok(succession(node, session).await?.succession.over())
}

/// A restore that is not granted.
pub fn refused() {
    metrics::SESSIONS_NOT_RESTORED.inc();
    metrics::RESTORES_REFUSED.inc();
}
