//! Saved sessions: one key each in a bucket, with a life of its own.

use super::api::{ATTEMPT, marker_headers};
use super::config::{bucket_stream, key_subject};
use super::fresh::Newest;
use super::generation::{Connection, Generation};
use super::publish::{Write, WriteError, is_own_limit};
use super::{Attempts, Core};
use crate::broker::{Answering, Over, SaveError, SessionKey, StoredSession, Unavailable};
use crate::protocol::MessageId;
use async_nats::{HeaderMap, header};
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::json;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Follows the key of a session that was ended for good, where it is announced that it is over.
const ENDED: &str = " ended";

/// A deletion's marker only has to outlive writes that were under way.
const MARKER_LIFE: Duration = Duration::from_secs(10);

/// A leader that was elected after a write was acknowledged has taken it in by then. A bucket that was put back, or made
/// anew, never reaches what was written before: it is believed after this.
const TAKEN_IN: Duration = Duration::from_secs(15);

impl Core {
    pub(super) async fn load(&self, key: &SessionKey) -> Result<Option<StoredSession>, Unavailable> {
        let found = self.newest_entry(key).await?.filter(|newest| !newest.is_marker);
        Ok(found.map(|newest| StoredSession { body: newest.data, revision: newest.seq }))
    }

    /// A key's newest entry, value or marker of a deletion.
    async fn newest_entry(&self, key: &SessionKey) -> Result<Option<Newest>, Unavailable> {
        let (bucket, held) = (&self.names.sessions_bucket(), self.saved_up_to());
        let ask = |generation: Arc<Generation>| async move { generation.newest_session(bucket, key, held).await };
        self.asking(ask).await
    }

    /// One write of a key. Which one is known: any copy that has it has the right one.
    pub(super) async fn load_part(
        &self,
        key: &SessionKey,
        revision: u64,
    ) -> Result<Option<StoredSession>, Unavailable> {
        if let Some(generation) = self.generation()
            && let Ok(Some(body)) = generation.entry_at(&self.names.sessions_bucket(), key, revision).await
        {
            return Ok(Some(StoredSession { body, revision }));
        }
        Ok(self.load(key).await?.filter(|stored| stored.revision == revision))
    }

    fn saved(&self) -> MutexGuard<'_, Option<(u64, Instant)>> {
        self.saved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bucket reaches this revision, whoever leads it; 0: nothing is known.
    fn saved_up_to(&self) -> u64 {
        known(*self.saved())
    }

    fn note_saved(&self, revision: u64) {
        let mut saved = self.saved();
        if known(*saved) < revision {
            *saved = Some((revision, Instant::now()));
        }
    }

    pub(super) async fn answering(&self) -> Result<Answering, Unavailable> {
        let generation = Attempts::new(self, self.config.broker_timeout).next().await?;
        Ok(Answering(generation.connection.marker.clone()))
    }

    /// Asks once: what was read from a leader that has been replaced meanwhile is of no use. Nor is what was read by
    /// another connection: it may have been to a server that was cut off, while this one is to its successor.
    pub(super) async fn vouch(&self, answering: &Answering) -> Result<(), Unavailable> {
        let mut attempts = Attempts::new(self, self.config.broker_timeout);
        let generation = attempts.next().await?;
        if !generation.connection.clustered() {
            return Ok(());
        }
        if generation.connection.marker != answering.0 {
            return Err(Unavailable("the connection to NATS was replaced meanwhile".into()));
        }
        let sessions = bucket_stream(&self.names.sessions_bucket());
        let info = generation.api().led(&sessions, &serde_json::Value::Null).await;
        info.map(drop).map_err(|error| Unavailable(error.to_string()))
    }

    pub(super) async fn save(
        &self,
        key: &SessionKey,
        body: Bytes,
        revision: Option<u64>,
        life: Duration,
    ) -> Result<u64, SaveError> {
        let mut headers = HeaderMap::new();
        // Whole seconds; a write without a life would live for ever.
        let seconds = life.as_millis().div_ceil(1000).max(1);
        headers.insert(header::NATS_MESSAGE_TTL, seconds.to_string());
        if let Some(revision) = revision {
            headers.insert(header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, revision.to_string());
        }
        let outcome = match self.write_key(key, headers.clone(), body.clone()).await {
            // A deleted entry's marker is no entry.
            Err(WriteError::Conflict) if revision == Some(0) => {
                let Some(marker) = self.marker(key).await? else { return Err(SaveError::Conflict) };
                headers.insert(header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, marker.to_string());
                self.write_key(key, headers, body).await
            }
            outcome => outcome,
        };
        Ok(outcome?)
    }

    /// Revision of a deleted key's marker, 0 if nothing is left of the key, `None` if it has a value.
    async fn marker(&self, key: &SessionKey) -> Result<Option<u64>, Unavailable> {
        Ok(match self.newest_entry(key).await? {
            Some(newest) if newest.is_marker => Some(newest.seq),
            Some(_) => None,
            None => Some(0),
        })
    }

    pub(super) async fn delete(&self, key: &SessionKey, revision: Option<u64>) -> Result<bool, Unavailable> {
        let mut headers = marker_headers(MARKER_LIFE);
        if let Some(revision) = revision {
            headers.insert(header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, revision.to_string());
        }
        match self.write_key(key, headers, Bytes::new()).await {
            Ok(_) => Ok(true),
            // A marker takes room, too.
            Err(WriteError::StorageFull(_)) => self.purge(key, revision).await,
            Err(WriteError::Conflict) if revision.is_some() => Ok(self.load(key).await?.is_none()),
            Err(WriteError::NotStored(reason) | WriteError::Unknown(reason)) => Err(Unavailable(reason)),
            Err(WriteError::Conflict | WriteError::TooLarge) => Err(Unavailable("the deletion was refused".into())),
        }
    }

    /// Removes a key without writing anything; with a revision, only if that is its last one. False: it is not.
    pub(super) async fn purge(&self, key: &SessionKey, revision: Option<u64>) -> Result<bool, Unavailable> {
        let bucket = self.names.sessions_bucket();
        let mut which = json!({"filter": key_subject(&bucket, &key.0)});
        if let Some(revision) = revision {
            match self.load(key).await? {
                None => return Ok(true),
                Some(stored) if stored.revision != revision => return Ok(false),
                // Up to the sequence before this one: a later write stays.
                Some(_) => which["seq"] = json!(revision.saturating_add(1)),
            }
        }
        let which = &which;
        let what = &format!("STREAM.PURGE.{}", bucket_stream(&bucket));
        let ask =
            |generation: Arc<Generation>| async move { generation.api().call::<serde_json::Value>(what, which).await };
        self.asking(ask).await?;
        Ok(revision.is_none() || self.load(key).await?.is_none())
    }

    /// Tells the nodes that a session is over. Whoever does not hear it finds out when it writes its session the next time.
    pub(super) async fn announce_over(&self, key: &SessionKey, over: Over) {
        let Some(generation) = self.generation() else { return };
        let mut text = key.0.clone();
        if over == Over::Ended {
            text.push_str(ENDED);
        }
        let subject = self.names.session_over_subject();
        let sent = generation.api().mux.publish(subject, HeaderMap::new(), Bytes::from(text), ATTEMPT).await;
        if let Err(error) = sent {
            tracing::debug!(%error, "the end of a session was not announced");
        }
    }

    /// Hears of sessions that are over, on all nodes, until the connection ends.
    pub(super) async fn hear_of_sessions_over(self: Arc<Self>, connection: Arc<Connection>) {
        let Ok(mut messages) = connection.subscribe(self.names.session_over_subject()).await else { return };
        while let Some(Some(message)) = connection.link.dead.run_until_cancelled(messages.next()).await {
            let Ok(text) = std::str::from_utf8(&message.payload) else { continue };
            let (key, over) = match text.strip_suffix(ENDED) {
                Some(key) => (key, Over::Ended),
                None => (text, Over::Replaced),
            };
            self.feed.session_over(&SessionKey(key.to_owned()), over);
        }
    }

    async fn write_key(&self, key: &SessionKey, mut headers: HeaderMap, body: Bytes) -> Result<u64, WriteError> {
        let bucket = self.names.sessions_bucket();
        // With an id a repeated conditional write does not conflict with itself.
        headers.insert(header::NATS_MESSAGE_ID, MessageId::random().to_hex());
        headers.insert(header::NATS_EXPECTED_STREAM, bucket_stream(&bucket));
        let subject = key_subject(&bucket, &key.0);
        let mut write = Write::patient(self, self.config.session_budget()).of_sessions();
        loop {
            let Some(generation) = write.connection().await else { return Err(write.end()) };
            let timeout = write.attempt();
            match generation.api().publish(subject.clone(), headers.clone(), body.clone(), timeout).await {
                Ok(ack) => {
                    self.note_saved(ack.seq);
                    return Ok(ack.seq);
                }
                Err(error) => write.failed(error).await?,
            }
        }
    }
}

/// What counts of the newest acknowledgement.
fn known(saved: Option<(u64, Instant)>) -> u64 {
    saved.filter(|(_, at)| at.elapsed() < TAKEN_IN).map_or(0, |(revision, _)| revision)
}

impl From<WriteError> for SaveError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Conflict => Self::Conflict,
            WriteError::StorageFull(reason) if is_own_limit(&reason) => {
                Self::Full(format!("{reason}, see sessions_budget"))
            }
            WriteError::StorageFull(reason) => {
                Self::Full(format!("{reason}: the whole store is full, not only its sessions"))
            }
            WriteError::NotStored(reason) | WriteError::Unknown(reason) => Unavailable(reason).into(),
            WriteError::TooLarge => Self::TooLarge,
        }
    }
}
