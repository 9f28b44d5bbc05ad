//! What is known of a session in the store, and why it was not stored.

use super::writing::Writing;
use crate::broker::{Life, SaveError, SessionKey, life};
use crate::log_limit::limited;
use crate::metrics;
use crate::protocol::Sid;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// After a session was found too large, or its parts were refused, that is not tried again for so long, unless it is to be
/// written anew.
const REFUSED_WAIT: Duration = Duration::from_secs(5);

/// What is stored of one session, and the write that is under way.
pub struct Saver {
    pub(super) key: Option<SessionKey>,
    /// Whoever holds it may begin a write, or waits for the one that is under way.
    pub(super) turn: tokio::sync::Mutex<Option<Writing>>,
    stored: Mutex<Stored>,
    /// Something was not waited for, or must be tried again.
    pub(super) behind: AtomicBool,
}

/// What is known of a session in the store.
#[derive(Default)]
pub struct Stored {
    /// The last write that was answered; 0: nothing is known to be stored.
    pub revision: u64,
    /// The session's version in that write.
    pub version: u64,
    /// Something may be stored, and is not being deleted.
    pub held: bool,
    /// When that was answered.
    pub written: Option<Instant>,
    /// When all of it was written last, its parts and proofs included.
    pub renewed: Option<Instant>,
    /// Since when it is written anew part by part; `None`: it is not.
    pub renewing: Option<Instant>,
    /// When it was found too large; nothing is stored of it then.
    pub outgrown: Option<Instant>,
    /// When the store refused it, and why.
    pub refused: Option<(Instant, Refusal)>,
}

/// Why the store does not take a session, for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    NoRoom,
    /// A part of it, or its head.
    TooLarge,
}

impl Refusal {
    /// `None`: the store has not refused it.
    pub fn of(error: &SaveError) -> Option<Self> {
        match error {
            SaveError::Full(_) => Some(Self::NoRoom),
            SaveError::TooLarge => Some(Self::TooLarge),
            SaveError::Conflict | SaveError::Unavailable(_) => None,
        }
    }
}

impl Stored {
    /// Notes that it is being deleted, or was deleted by somebody else.
    pub fn note_gone(&mut self) {
        *self = Self { outgrown: self.outgrown, refused: self.refused, ..Self::default() };
    }

    /// The store has refused it so lately that its parts are not offered again.
    pub fn lately_refused(&self) -> Option<Refusal> {
        self.refused.filter(|(at, _)| is_recent(*at)).map(|(_, refusal)| refusal)
    }

    /// It was found too large so lately that it is not looked at again.
    pub fn lately_outgrown(&self) -> bool {
        self.outgrown.is_some_and(is_recent)
    }
}

fn is_recent(at: Instant) -> bool {
    at.elapsed() < REFUSED_WAIT
}

impl Saver {
    pub fn new(sid: &Sid, resumable: bool) -> Self {
        Self {
            key: resumable.then(|| SessionKey::of(sid.expose())),
            turn: tokio::sync::Mutex::default(),
            stored: Mutex::default(),
            behind: AtomicBool::new(false),
        }
    }

    /// Where it is stored, if it is.
    pub fn key(&self) -> Option<&SessionKey> {
        self.key.as_ref()
    }

    /// The store holds it, in some version, and nobody is deleting that. `has_parts`: it needs more than its head.
    pub fn is_stored(&self, sessions_ttl: Duration, has_parts: bool) -> bool {
        let stored = self.stored();
        let lives = |since: Option<Instant>, life| since.is_none_or(|since| since.elapsed() < life);
        stored.revision > 0
            && lives(stored.written, Life::Standing.of(sessions_ttl))
            && (!has_parts || lives(stored.renewed, life::beside(sessions_ttl)))
    }

    /// It is written anew part by part, and there is room for that.
    pub fn is_renewing(&self) -> bool {
        let stored = self.stored();
        stored.renewing.is_some() && stored.lately_refused().is_none()
    }

    pub fn stored(&self) -> MutexGuard<'_, Stored> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why the store did not take a session.
#[derive(Debug, thiserror::Error)]
pub enum NotSaved {
    #[error("the session was ended")]
    Revoked,
    #[error("it has {size} bytes or more, and max_session_size is {limit}")]
    TooLarge { size: usize, limit: usize },
    #[error("it is larger than max_session_size")]
    Outgrown,
    #[error("its parts were refused a moment ago: {0:?}")]
    Lately(Refusal),
    #[error("no answer from the store in {} s", .0.as_secs_f32())]
    Timeout(Duration),
    #[error(transparent)]
    Store(#[from] SaveError),
}

impl NotSaved {
    pub(super) fn count(&self) {
        match self {
            Self::Revoked => return,
            Self::TooLarge { .. }
            | Self::Outgrown
            | Self::Store(SaveError::TooLarge)
            | Self::Lately(Refusal::TooLarge) => metrics::SESSIONS_TOO_LARGE.inc(),
            Self::Lately(Refusal::NoRoom) => metrics::SESSIONS_FULL.inc(),
            Self::Store(SaveError::Full(reason)) => {
                metrics::SESSIONS_FULL.inc();
                limited!(
                    WARN,
                    SessionsFull,
                    reason,
                    "there is no room for saved sessions: who cannot be saved must authenticate when it comes back"
                );
            }
            _ => metrics::SESSION_SAVE_FAILED.inc(),
        }
        tracing::debug!(context = "node", error = %self, "session not saved");
    }
}
