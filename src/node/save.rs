//! Keeping what is stored of a session up to date: one write at a time, the newest state wins.

use super::client::Client;
use super::{Node, supersede};
use crate::broker::{SaveError, SessionKey};
use crate::critical::critical;
use crate::hub::SavedProof;
use crate::metrics;
use crate::protocol::{Close, Sid, StreamName};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long a command waits for its commit before it goes on without.
const COMMIT_WAIT: Duration = Duration::from_secs(2);

/// How long an unsubscription waits for its commit.
const REMOVAL_WAIT: Duration = Duration::from_secs(1);

/// Pause before a deletion that failed is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// What is stored of one session.
pub struct Saver {
    key: Option<SessionKey>,
    stored: tokio::sync::Mutex<Stored>,
    /// When the last write succeeded.
    written: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Stored {
    /// The last write; 0: none.
    revision: u64,
    /// The session's version in that write.
    version: u64,
    /// It has become too large: what is stored is older.
    outgrown: bool,
}

impl Saver {
    /// Where it is stored, if it is.
    pub fn key(&self) -> Option<&SessionKey> {
        self.key.as_ref()
    }

    /// The store holds it, as of the last write that was answered.
    pub fn is_stored(&self) -> bool {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    pub fn new(sid: &Sid, resumable: bool) -> Self {
        Self {
            key: resumable.then(|| SessionKey::of(sid.expose())),
            stored: tokio::sync::Mutex::default(),
            written: Mutex::new(None),
        }
    }
}

/// What a write is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Write {
    /// What has changed; nothing if nothing has.
    Changes,
    /// A new life, and fresh proofs.
    Touch,
    /// The same, when the connection is over.
    Last,
}

/// Why the store did not take a session.
#[derive(Debug, thiserror::Error)]
pub enum NotSaved {
    #[error("the session was ended")]
    Revoked,
    #[error("it has {size} bytes, more than max_session_size ({limit})")]
    TooLarge { size: usize, limit: usize },
    #[error("no answer from the store in {} s", .0.as_secs_f32())]
    Timeout(Duration),
    #[error(transparent)]
    Store(#[from] SaveError),
}

impl Client {
    /// Commits the session's present state, unless it is stored already. Waits a bounded time; a session that could not
    /// be stored cannot be resumed until a later commit succeeds.
    pub async fn commit(&self) -> Result<(), NotSaved> {
        self.save_within(COMMIT_WAIT, Write::Changes).await
    }

    /// Commits a state that takes something away. If that fails, or whoever waits for it is dropped, the older, larger
    /// state must not be resumed: [`Session::shrunk`] tells, and it is replaced or deleted as soon as the store answers.
    ///
    /// [`Session::shrunk`]: crate::session::Session::shrunk
    pub async fn commit_removal(&self) -> Result<(), NotSaved> {
        self.save_within(REMOVAL_WAIT, Write::Changes).await
    }

    /// What is stored has lived half its life, or its proofs have grown old: they are worth something as long as what came
    /// after them cannot have expired. `again`: until it is asked the next time.
    pub fn wants_touch(&self, again: Duration) -> bool {
        let written = *self.saver.written.lock().unwrap_or_else(PoisonError::into_inner);
        let following = self.all_following();
        let proofs = following.iter().filter_map(|following| {
            let core = following.cell.lock();
            core.keeps().then(|| core.tail().ttl() / 4)
        });
        let every = proofs.fold(self.node.config.sessions_ttl / 2, Duration::min);
        written.is_none_or(|written| written.elapsed() + again > every)
    }

    /// Gives what is stored a new life, with fresh proofs.
    pub async fn touch(&self) -> Result<(), NotSaved> {
        self.save_within(COMMIT_WAIT, Write::Touch).await
    }

    async fn save_within(&self, wait: Duration, write: Write) -> Result<(), NotSaved> {
        if self.saver.key.is_none() {
            return Ok(());
        }
        let saved = tokio::time::timeout(wait, self.save(write)).await.unwrap_or(Err(NotSaved::Timeout(wait)));
        if let Err(error) = &saved
            && !matches!(error, NotSaved::Revoked)
        {
            match error {
                NotSaved::TooLarge { .. } => metrics::SESSIONS_TOO_LARGE.inc(),
                NotSaved::Store(SaveError::Full(_)) => metrics::SESSIONS_FULL.inc(),
                _ => metrics::SESSION_SAVE_FAILED.inc(),
            }
            tracing::debug!(context = "node", %error, "session not saved");
        }
        saved
    }

    async fn save(&self, write: Write) -> Result<(), NotSaved> {
        let Some(key) = &self.saver.key else { return Ok(()) };
        let broker = self.node.hub.broker();
        let mut stored = self.saver.stored.lock().await;
        loop {
            if self.handle.is_revoked() {
                return Err(NotSaved::Revoked);
            }
            let version = self.state().session.version();
            if stored.version == version && write == Write::Changes {
                return Ok(());
            }
            let body = {
                let proofs = self.proofs();
                self.state().session.save(proofs.into_iter(), unix_ms(), write != Write::Last)
            };
            let limit = self.node.config.max_session_size;
            if body.len() > limit {
                // What is stored of it is older.
                stored.outgrown = true;
                return Err(NotSaved::TooLarge { size: body.len(), limit });
            }
            match broker.save_session(key, body, Some(stored.revision)).await {
                Ok(revision) => {
                    *self.saver.written.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
                    *stored = Stored { revision, version, outgrown: false };
                    return Ok(());
                }
                Err(SaveError::Conflict) => stored.revision = self.settle_conflict(key).await?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The entry is not as this connection left it: it was deleted by a remote disconnect or by whoever went on with the
    /// session, it expired while the store was away, or an earlier write arrived whose answer did not.
    async fn settle_conflict(&self, key: &SessionKey) -> Result<u64, NotSaved> {
        let broker = self.node.hub.broker();
        let (identifiers, mark) = {
            let state = self.state();
            (state.session.identifiers.clone(), state.session.mark)
        };
        if broker.mark(&identifiers).await.map_err(SaveError::from)? > mark {
            self.handle.revoke(Close::Remote { reconnect: true });
            return Err(NotSaved::Revoked);
        }
        if let Some(entry) = broker.load_session(key).await.map_err(SaveError::from)? {
            return Ok(entry.revision);
        }
        if supersede::is_over(&self.node, key).await.map_err(SaveError::from)? {
            self.handle.supersede();
            return Err(NotSaved::Revoked);
        }
        Ok(0)
    }

    /// What is known of the heads of the streams it follows: by this connection, or else by the one before.
    fn proofs(&self) -> Vec<(StreamName, SavedProof)> {
        let state = self.state();
        let mut proofs = state.saved_proofs.clone();
        for ((stream, _), following) in &state.cursors {
            let held = {
                let core = following.cell.lock();
                SavedProof { epoch: core.epoch().clone(), proof: core.proof() }
            };
            if held.proof.revision > 0 || !proofs.contains_key(stream) {
                proofs.insert(stream.clone(), held);
            }
        }
        proofs.into_iter().collect()
    }

    /// The connection is over: what is stored gets its last life, or is removed if it must not be resumed.
    pub async fn finish(self: &Arc<Self>) {
        let Some(key) = &self.saver.key else { return };
        if !self.handle.is_revoked() {
            let _ = self.save_within(COMMIT_WAIT, Write::Last).await;
        }
        let excessive = {
            let stored = self.saver.stored.lock().await;
            stored.outgrown || stored.version < self.state().session.shrunk()
        };
        if self.handle.is_revoked() || excessive {
            forget(&self.node, key.clone());
        }
    }
}

/// Deletes what is saved of a session, as soon as the store answers.
pub fn forget(node: &Arc<Node>, key: SessionKey) {
    let (node_, mut patience) = (node.clone(), Patience::new(node));
    let deleting =
        async move { while node_.hub.broker().delete_session(&key).await.is_err() && patience.is_left().await {} };
    node.tasks.spawn(critical("node.deletions", deleting));
}

/// Pauses between tries of a write, until the entry that it is about would have expired by itself.
pub struct Patience(Instant);

impl Patience {
    pub fn new(node: &Node) -> Self {
        Self(Instant::now() + node.config.sessions_ttl)
    }

    pub async fn is_left(&mut self) -> bool {
        tokio::time::sleep(RETRY).await;
        Instant::now() < self.0
    }
}

/// Unix milliseconds by this machine's clock.
pub fn unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
