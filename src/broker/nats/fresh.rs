//! The newest message of one subject, as of the question.
//!
//! In a cluster a server that was frozen calls itself the leader of a log for a while after it has gone on, and answers as
//! such; asked at the same time, its successor confirms that there is a leader in touch with the majority. So a leader's
//! answer says nothing about how old it is. What counts here comes from a copy that says how far it has come, and has come
//! as far as such a leader says that the log reaches. An answer without messages does not say how far that copy has come:
//! so it is asked for a second subject, the sentinel, that has a message.

use super::api::{ApiError, Kept, is_marker};
use super::config::{bucket_stream, key_subject};
use super::generation::Generation;
use super::headers;
use super::heads::{Asks, Top};
use crate::broker::SessionKey;
use async_nats::header::{NATS_SEQUENCE, NATS_STREAM, NATS_SUBJECT};
use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use serde_json::{Value, json};
use std::time::Duration;

/// Copies lag by milliseconds; after so many questions with these pauses the whole is asked anew.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(2);
/// Longest silence of a copy that answers.
const SILENCE: Duration = Duration::from_secs(1);

/// The newest message of a subject.
#[derive(Debug)]
pub(super) struct Newest {
    pub seq: u64,
    pub data: Bytes,
    /// Unix nanoseconds.
    pub stored_at: u64,
    /// It says that a key was deleted.
    pub is_marker: bool,
}

impl Newest {
    fn of_leader(kept: &Kept) -> Result<Self, ApiError> {
        Ok(Self { seq: kept.seq, data: kept.data()?, stored_at: kept.stored_at(), is_marker: is_marker(kept) })
    }

    fn of_copy(message: &Message) -> Result<Self, ApiError> {
        let is_marker = headers::text(message, &headers::KV_OPERATION).is_some()
            || headers::text(message, &headers::MARKER_REASON).is_some();
        let seq = headers::number(message, &NATS_SEQUENCE)
            .ok_or_else(|| ApiError::Unreadable("a message without its sequence".into()))?;
        let stored_at = headers::stored_at(message).unwrap_or_default();
        Ok(Self { seq, data: message.payload.clone(), stored_at, is_marker })
    }
}

impl Generation {
    /// The newest entry of a saved session, its deletion's marker included. `held`: the bucket has come so far at least.
    pub async fn newest_session(&self, bucket: &str, key: &SessionKey, held: u64) -> Result<Option<Newest>, ApiError> {
        self.newest(&bucket_stream(bucket), &self.sessions, &key_subject(bucket, &key.0), held).await
    }

    /// Sequence of the newest remote command of a subject, 0 if there is none. `held`: the log has come so far at least.
    pub async fn newest_command(&self, subject: &str, held: u64) -> Result<u64, ApiError> {
        let newest = self.newest(&self.commands, &self.command_asks, subject, held).await?;
        Ok(newest.map_or(0, |newest| newest.seq))
    }

    /// The newest message of a subject of this log or bucket, which has come to `held` at least.
    pub async fn newest(
        &self,
        stream: &str,
        asks: &Asks,
        subject: &str,
        held: u64,
    ) -> Result<Option<Newest>, ApiError> {
        if !self.connection.clustered() {
            let kept = self.api().message(stream, &json!({"last_by_subj": subject})).await?;
            return kept.as_ref().map(Newest::of_leader).transpose();
        }
        let top = async {
            let top = asks.top().await?;
            if top.facts.last_seq < held { Err(lags()) } else { Ok(top) }
        };
        let (sentinel, found) = match asks.sentinel() {
            Some(sentinel) => {
                let found = self.of_copy(stream, subject, &sentinel, top).await?;
                (sentinel, found)
            }
            None => {
                let top = top.await?;
                let Some(sentinel) = top.sentinel.clone() else {
                    // Nothing at all is kept: the answer that says how far the log has come says so, too.
                    return if top.messages == 0 { Ok(None) } else { Err(lags()) };
                };
                let found = self.of_copy(stream, subject, &sentinel, async { Ok(top) }).await?;
                (sentinel, found)
            }
        };
        let of = |wanted: &str| {
            found.iter().find(|message| headers::text(message, &NATS_SUBJECT).is_some_and(|subject| subject == wanted))
        };
        match of(subject) {
            Some(newest) => Newest::of_copy(newest).map(Some),
            None if of(&sentinel).is_some() => Ok(None),
            None => {
                // It has expired: the next look finds another one.
                asks.forget(&sentinel);
                Err(ApiError::Unreadable(format!("{stream} changed while it was read")))
            }
        }
    }

    /// The newest messages of a subject and of the sentinel, from one copy that has come as far as the log; none: that copy
    /// has neither, and does not say how far it has come.
    async fn of_copy(
        &self,
        stream: &str,
        subject: &str,
        sentinel: &str,
        top: impl Future<Output = Result<Top, ApiError>>,
    ) -> Result<Vec<Message>, ApiError> {
        let mut subjects = vec![subject, sentinel];
        subjects.dedup();
        let request: Value = json!({"multi_last": subjects});
        let request = Bytes::from(serde_json::to_vec(&request).expect("requests are plain JSON"));
        let ask = || {
            let subject = format!("$JS.API.DIRECT.GET.{stream}");
            self.api().mux.few(subject, request.clone(), subjects.len() + 1, SILENCE)
        };
        let (top, mut answer) = tokio::join!(top, ask());
        let reached = top?.facts.last_seq;
        for attempt in 1.. {
            let (messages, end) = answer?;
            let up_to = headers::number(&end, &headers::UP_TO_SEQUENCE);
            if messages.is_empty() || up_to.is_some_and(|up_to| up_to >= reached) {
                return Ok(messages);
            }
            if attempt == TRIES {
                break;
            }
            tokio::time::sleep(PAUSE * attempt).await;
            answer = ask().await;
        }
        Err(lags())
    }

    /// The entry of a saved session of just this revision, from whichever copy has it; `None` says nothing.
    pub async fn entry_at(&self, bucket: &str, key: &SessionKey, revision: u64) -> Result<Option<Bytes>, ApiError> {
        let (stream, subject) = (bucket_stream(bucket), key_subject(bucket, &key.0));
        let request = Bytes::from(serde_json::to_vec(&json!({"seq": revision})).expect("requests are plain JSON"));
        let what = format!("$JS.API.DIRECT.GET.{stream}");
        let found = self.api().mux.request(what, HeaderMap::new(), request, SILENCE).await?;
        let is_it = found.status.is_none()
            && headers::text(&found, &NATS_STREAM).is_some_and(|of| of == stream)
            && headers::text(&found, &NATS_SUBJECT).is_some_and(|of| of == subject)
            && headers::number(&found, &NATS_SEQUENCE) == Some(revision);
        Ok(match is_it && !Newest::of_copy(&found)?.is_marker {
            true => Some(found.payload),
            false => None,
        })
    }
}

pub(super) fn lags() -> ApiError {
    ApiError::Unreadable("a server answered that lags behind".into())
}
