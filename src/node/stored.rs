//! What the store holds of sessions, by their keys: reading one with all its parts, and deleting it as soon as the store
//! answers.

use super::Node;
use crate::broker::{Broker, SessionKey, StoredSession, Unavailable, life};
use crate::critical::critical;
use crate::log_limit::limited;
use crate::session::{SavedSession, Unusable};
use futures_util::{StreamExt, TryStreamExt};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Pause before a deletion that failed is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Parts of one session that are written or read at a time.
pub const PARTS_AT_ONCE: usize = 8;

/// Tries to delete an entry that changes meanwhile, before there is a pause.
const TRIES: usize = 10;

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
    let places: Vec<_> = names.iter().map(|name| (place(key, name.number), name.revision)).collect();
    let reads = places.into_iter().map(|(place, revision)| {
        let broker = broker.clone();
        async move { broker.load_part(&place, revision).await }
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
    drop(forget_with(node, key, Vec::new()));
}

/// The same. `parts`: those that may be there although the head does not name them. Resolves when nothing is left, or what
/// is left has expired; goes on if nobody waits for it.
pub fn forget_with(node: &Arc<Node>, key: SessionKey, parts: Vec<u64>) -> JoinHandle<()> {
    let node_ = node.clone();
    let deleting = async move { delete_patiently(&node_, &key, parts).await };
    node.tasks.spawn(critical("node.deletions", deleting))
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
    let mut tries = 0..TRIES;
    loop {
        if tries.next().is_none() {
            return Err(Unavailable("the saved session was written again and again".into()));
        }
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

/// Deletes parts that no head names. Where the store does not answer they are left to expire. What it answers with resolves
/// then; the deletion goes on if nobody waits for it.
pub fn discard(node: &Node, key: &SessionKey, parts: Vec<u64>) -> Option<JoinHandle<()>> {
    if parts.is_empty() {
        return None;
    }
    let (broker, key) = (node.hub.broker().clone(), key.clone());
    Some(node.tasks.spawn(critical("node.parts", async move {
        for number in parts {
            if let Err(error) = broker.delete_session(&place(&key, number), None).await {
                tracing::debug!(context = "node", %error, "parts of a session are left to expire");
                return;
            }
        }
    })))
}

/// Pauses between tries of a write, until the entry that it is about would have expired by itself.
pub struct Patience(Instant);

impl Patience {
    pub fn new(node: &Node) -> Self {
        Self(Instant::now() + life::longest(node.config.sessions_ttl))
    }

    pub async fn is_left(&mut self) -> bool {
        tokio::time::sleep(RETRY).await;
        Instant::now() < self.0
    }
}
