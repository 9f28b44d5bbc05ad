//! Keeping what is stored of a session up to date: one write at a time, the newest state wins. A large session's parts are
//! written before the head that names them, and deleted after one that does not.

use super::client::Client;
use super::{Node, supersede};
use crate::broker::{Broker, SaveError, SessionKey, StoredSession, Unavailable};
use crate::critical::critical;
use crate::log_limit::limited;
use crate::metrics;
use crate::protocol::{Close, Sid};
use crate::session::{SavePlan, SavedSession, Unusable};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long a command waits for its commit before it goes on without.
const COMMIT_WAIT: Duration = Duration::from_secs(2);

/// How long an unsubscription waits for its commit.
const REMOVAL_WAIT: Duration = Duration::from_secs(1);

/// Pause before a deletion that failed is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// After a session was found too large its size is not looked at for so long, unless it is to be written whole.
const OUTGROWN_WAIT: Duration = Duration::from_secs(5);

/// Parts of one session that are written or read at a time.
const PARTS_AT_ONCE: usize = 8;

/// What is stored of one session.
pub struct Saver {
    key: Option<SessionKey>,
    stored: tokio::sync::Mutex<Stored>,
    /// When all of it was written last, its parts and proofs included.
    renewed: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Stored {
    /// The last write; 0: none.
    revision: u64,
    /// The session's version in that write.
    version: u64,
    /// When it was found too large; nothing is stored of it then.
    outgrown: Option<Instant>,
}

impl Saver {
    /// Where it is stored, if it is.
    pub fn key(&self) -> Option<&SessionKey> {
        self.key.as_ref()
    }

    /// The store holds it, as of the last write that was answered.
    pub fn is_stored(&self) -> bool {
        self.renewed.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// A write has succeeded. A head alone does not renew its parts.
    fn note_written(&self, renews: bool) {
        if renews {
            *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
    }

    pub fn new(sid: &Sid, resumable: bool) -> Self {
        Self {
            key: resumable.then(|| SessionKey::of(sid.expose())),
            stored: tokio::sync::Mutex::default(),
            renewed: Mutex::new(None),
        }
    }
}

/// What is to be written into a session's own entry.
struct Head {
    body: Bytes,
    /// The session's version in it.
    version: u64,
    /// It comes with everything anew.
    renews: bool,
}

impl Head {
    fn within(self, limit: usize, parts: usize) -> Result<Self, NotSaved> {
        let size = self.body.len() + parts;
        if size > limit { Err(NotSaved::TooLarge { size, limit }) } else { Ok(self) }
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
    #[error("it is larger than max_session_size")]
    Outgrown,
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
        let written = *self.saver.renewed.lock().unwrap_or_else(PoisonError::into_inner);
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
                NotSaved::TooLarge { .. } | NotSaved::Outgrown | NotSaved::Store(SaveError::TooLarge) => {
                    metrics::SESSIONS_TOO_LARGE.inc()
                }
                NotSaved::Store(SaveError::Full(_)) => {
                    metrics::SESSIONS_FULL.inc();
                    limited!(
                        WARN,
                        SessionsFull,
                        "saved sessions have used up their share of the store: who cannot be saved must authenticate when \
                         it comes back; see sessions_budget"
                    );
                }
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
        // What is stored is gone, its parts too.
        let mut afresh = stored.outgrown.is_some();
        loop {
            if self.handle.is_revoked() {
                return Err(NotSaved::Revoked);
            }
            if stored.version == self.state().session.version() && write == Write::Changes {
                return Ok(());
            }
            if let Some(at) = stored.outgrown
                && write == Write::Changes
                && at.elapsed() < OUTGROWN_WAIT
            {
                return Err(NotSaved::Outgrown);
            }
            let Head { body, version, renews } = match self.compose(key, write, afresh).await {
                Ok(head) => head,
                Err(error) => {
                    if matches!(error, NotSaved::TooLarge { .. }) && stored.outgrown.replace(Instant::now()).is_none() {
                        // What is stored of it is older.
                        forget(&self.node, key.clone());
                    }
                    return Err(error);
                }
            };
            match broker.save_session(key, body, Some(stored.revision)).await {
                Ok(revision) => {
                    self.saver.note_written(renews);
                    *stored = Stored { revision, version, outgrown: None };
                    self.discard(key);
                    return Ok(());
                }
                Err(SaveError::Conflict) => {
                    stored.revision = self.settle_conflict(key).await?;
                    afresh |= stored.revision == 0;
                }
                Err(error) => {
                    if matches!(error, SaveError::Full(_)) && stored.version < self.state().session.shrunk() {
                        // There is no room for the smaller state, and the larger one must not come back.
                        forget(&self.node, key.clone());
                    }
                    return Err(error.into());
                }
            }
        }
    }

    /// Writes the parts that the session's present state wants, and answers with the head that names them. Whoever waits for
    /// it may be dropped: parts that no head names are deleted later, or expire.
    async fn compose(&self, key: &SessionKey, write: Write, afresh: bool) -> Result<Head, NotSaved> {
        let (all, open) = (afresh || write != Write::Changes, write != Write::Last);
        let limit = self.node.config.max_session_size;
        let plan = {
            let mut state = self.state();
            let (session, look) = state.to_save();
            let plan = session.plan(&look, all, unix_ms(), open);
            if let SavePlan::Split(split) = &plan
                && let size = split.size(session)
                && size > limit
            {
                return Err(NotSaved::TooLarge { size, limit });
            }
            match plan {
                SavePlan::Head(body) => {
                    let renews = all || !session.has_parts();
                    return Head { body, version: session.version(), renews }.within(limit, session.parts_size());
                }
                SavePlan::Split(split) => split,
            }
        };
        let parts = plan.parts.iter().map(|part| (place(key, part.number), part.body.clone()));
        let parts: Vec<_> = parts.collect();
        let writes = parts.into_iter().map(|(place, body)| {
            let broker = self.node.hub.broker().clone();
            async move { broker.save_beside(&place, body, Some(0)).await }
        });
        let revisions: Vec<u64> = futures_util::stream::iter(writes).buffered(PARTS_AT_ONCE).try_collect().await?;
        let mut state = self.state();
        let (session, look) = state.to_save();
        let renews = plan.is_whole(session);
        let body = session.adopt(plan, &revisions, &look, unix_ms(), open);
        Head { body, version: session.version(), renews }.within(limit, session.parts_size())
    }

    /// Deletes the parts that the head which is stored now does not name.
    fn discard(&self, key: &SessionKey) {
        let obsolete = self.state().session.take_obsolete();
        if obsolete.is_empty() {
            return;
        }
        let (broker, key) = (self.node.hub.broker().clone(), key.clone());
        self.node.tasks.spawn(critical("node.parts", async move {
            for number in obsolete {
                if let Err(error) = broker.delete_session(&place(&key, number), None).await {
                    tracing::debug!(context = "node", %error, "a part of a session is left to expire");
                }
            }
        }));
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
        if let Some(over) = supersede::over(&self.node, key).await.map_err(SaveError::from)? {
            self.handle.over(over);
            return Err(NotSaved::Revoked);
        }
        Ok(0)
    }

    /// The connection is over: what is stored gets its last life, or is removed if it must not be resumed.
    pub async fn finish(self: &Arc<Self>) {
        let Some(key) = &self.saver.key else { return };
        if !self.handle.is_revoked() {
            let _ = self.save_within(COMMIT_WAIT, Write::Last).await;
        }
        let excessive = {
            let stored = self.saver.stored.lock().await;
            stored.outgrown.is_some() || stored.version < self.state().session.shrunk()
        };
        if self.handle.is_ended() && !self.handle.is_superseded() {
            supersede::end_for_good(&self.node, key.clone());
        }
        if self.handle.is_revoked() || excessive {
            let parts = self.state().session.take_parts();
            forget_with(&self.node, key.clone(), parts);
        }
    }
}

/// Where a part of a session is stored.
pub fn place(session: &SessionKey, part: u64) -> SessionKey {
    session.derived(&format!("part/{part}"))
}

/// Reads of a session whose parts change meanwhile.
const READS: usize = 3;

/// What is saved of a session, whose head is `stored`, with all its parts. `None`: it cannot be used.
pub async fn complete(
    node: &Node,
    key: &SessionKey,
    mut stored: StoredSession,
) -> Result<Option<SavedSession>, Unavailable> {
    let broker = node.hub.broker();
    for _ in 0..READS {
        let fault = match with_parts(broker, key, &stored.body).await? {
            Ok(Some(saved)) => return Ok(Some(saved)),
            Ok(None) => None,
            Err(fault) => Some(fault),
        };
        if let Some(error) = fault {
            limited!(WARN, UnusableSession, %error, "a saved session cannot be used; the client authenticates");
            return Ok(None);
        }
        // Its connection may still be there, and have written other parts.
        let Some(newer) = broker.load_session(key).await? else { return Ok(None) };
        if newer.revision == stored.revision {
            break;
        }
        stored = newer;
    }
    limited!(WARN, UnusableSession, "a saved session has lost a part; the client authenticates");
    Ok(None)
}

/// `None`: a part that the head names is not there as it was written.
async fn with_parts(
    broker: &Arc<dyn Broker>,
    key: &SessionKey,
    head: &[u8],
) -> Result<Result<Option<SavedSession>, Unusable>, Unavailable> {
    let mut saved = match SavedSession::decode(head) {
        Ok(saved) => saved,
        Err(fault) => return Ok(Err(fault)),
    };
    let names = saved.parts().to_vec();
    let places: Vec<_> = names.iter().map(|name| place(key, name.number)).collect();
    let reads = places.into_iter().map(|place| {
        let broker = broker.clone();
        async move { broker.load_session(&place).await }
    });
    let parts: Vec<_> = futures_util::stream::iter(reads).buffered(PARTS_AT_ONCE).try_collect().await?;
    for (name, part) in names.iter().zip(parts) {
        let Some(part) = part.filter(|part| part.revision == name.revision) else { return Ok(Ok(None)) };
        if let Err(fault) = saved.join(name, &part.body) {
            return Ok(Err(fault));
        }
    }
    Ok(Ok(Some(saved)))
}

/// Deletes what is saved of a session, as soon as the store answers.
pub fn forget(node: &Arc<Node>, key: SessionKey) {
    forget_with(node, key, Vec::new());
}

/// The same. `parts`: those that may be there although the head does not name them.
fn forget_with(node: &Arc<Node>, key: SessionKey, parts: Vec<u64>) {
    let node_ = node.clone();
    let deleting = async move { delete_patiently(&node_, &key, parts).await };
    node.tasks.spawn(critical("node.deletions", deleting));
}

/// The same as [`forget`], for who waits until it is done.
pub async fn forgotten(node: &Node, key: &SessionKey) {
    delete_patiently(node, key, Vec::new()).await;
}

async fn delete_patiently(node: &Node, key: &SessionKey, mut parts: Vec<u64>) {
    let (broker, mut patience) = (node.hub.broker(), Patience::new(node));
    while delete(&**broker, key, &mut parts).await.is_err() && patience.is_left().await {}
}

/// The head first: what it names is nothing without it. `parts`: those that are left to be deleted.
async fn delete(broker: &dyn Broker, key: &SessionKey, parts: &mut Vec<u64>) -> Result<(), Unavailable> {
    // Its connection may write it until it hears that it is over: every head's parts are seen.
    loop {
        let stored = broker.load_session(key).await?;
        // Of another version: its parts expire.
        let named = stored.iter().filter_map(|stored| SavedSession::decode(&stored.body).ok());
        let named: Vec<_> = named.collect();
        parts.extend(named.iter().flat_map(SavedSession::parts).map(|part| part.number));
        parts.sort_unstable();
        parts.dedup();
        // Also if there is nothing: a write that is still under way must not come after it.
        if broker.delete_session(key, Some(stored.map_or(0, |stored| stored.revision))).await? {
            break;
        }
    }
    while let Some(part) = parts.last() {
        broker.delete_session(&place(key, *part), None).await?;
        parts.pop();
    }
    Ok(())
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
