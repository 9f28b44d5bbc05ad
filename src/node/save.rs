//! Keeping what is stored of a session up to date: one write at a time, the newest state wins.

use super::client::Client;
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
}

impl Saver {
    pub fn new(sid: &Sid, resumable: bool) -> Self {
        Self {
            key: resumable.then(|| SessionKey::of(sid.expose())),
            stored: tokio::sync::Mutex::default(),
            written: Mutex::new(None),
        }
    }
}

/// Why the store did not take a session.
#[derive(Debug, thiserror::Error)]
pub enum NotSaved {
    #[error("the client was disconnected remotely")]
    Revoked,
    #[error("no answer from the store in {} s", .0.as_secs_f32())]
    Timeout(Duration),
    #[error(transparent)]
    Store(#[from] SaveError),
}

impl Client {
    /// Commits the session's present state, unless it is stored already. Waits a bounded time; a session that could not
    /// be stored cannot be resumed until a later commit succeeds.
    pub async fn commit(&self) -> Result<(), NotSaved> {
        self.save_within(COMMIT_WAIT, false).await
    }

    /// Commits a state that takes something away. If that fails, or whoever waits for it is dropped, the older, larger
    /// state must not be resumed: [`Session::shrunk`] tells, and it is replaced or deleted as soon as the store answers.
    ///
    /// [`Session::shrunk`]: crate::session::Session::shrunk
    pub async fn commit_removal(&self) -> Result<(), NotSaved> {
        self.save_within(REMOVAL_WAIT, false).await
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
        self.save_within(COMMIT_WAIT, true).await
    }

    async fn save_within(&self, wait: Duration, always: bool) -> Result<(), NotSaved> {
        if self.saver.key.is_none() {
            return Ok(());
        }
        let saved = tokio::time::timeout(wait, self.save(always)).await.unwrap_or(Err(NotSaved::Timeout(wait)));
        if let Err(error) = &saved
            && !matches!(error, NotSaved::Revoked)
        {
            metrics::SESSION_SAVE_FAILED.inc();
            tracing::debug!(context = "node", %error, "session not saved");
        }
        saved
    }

    async fn save(&self, always: bool) -> Result<(), NotSaved> {
        let Some(key) = &self.saver.key else { return Ok(()) };
        let broker = self.node.hub.broker();
        let mut stored = self.saver.stored.lock().await;
        loop {
            if self.handle.is_revoked() {
                return Err(NotSaved::Revoked);
            }
            let version = self.state().session.version();
            if stored.version == version && !always {
                return Ok(());
            }
            let body = {
                let proofs = self.proofs();
                self.state().session.save(proofs.into_iter(), unix_ms())
            };
            match broker.save_session(key, body, Some(stored.revision)).await {
                Ok(revision) => {
                    *self.saver.written.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
                    *stored = Stored { revision, version };
                    return Ok(());
                }
                Err(SaveError::Conflict) => stored.revision = self.settle_conflict(key).await?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The entry is not as this connection left it: it was deleted by a remote disconnect, it expired while the store
    /// was away, or an earlier write arrived whose answer did not.
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
        let entry = broker.load_session(key).await.map_err(SaveError::from)?;
        Ok(entry.map_or(0, |entry| entry.revision))
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
            let _ = self.touch().await;
        }
        let excessive = self.saver.stored.lock().await.version < self.state().session.shrunk();
        if self.handle.is_revoked() || excessive {
            let (node, key) = (self.node.clone(), key.clone());
            // Until the entry would have expired by itself.
            let deadline = tokio::time::Instant::now() + self.node.config.sessions_ttl;
            self.node.tasks.spawn(critical("node.deletions", async move {
                while node.hub.broker().delete_session(&key).await.is_err() && tokio::time::Instant::now() < deadline {
                    tokio::time::sleep(RETRY).await;
                }
            }));
        }
    }
}

/// Unix milliseconds by this machine's clock.
pub fn unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
