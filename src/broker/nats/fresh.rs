//! The newest message of one subject, as of the question.
//!
//! In a cluster a server that was frozen calls itself the leader of a log for a while after it has gone on, and answers as
//! such; asked at the same time, its successor confirms that there is a leader in touch with the majority. So a leader's
//! answer says nothing about how old it is. What counts here comes from a copy that says how far it has come, and has come
//! as far as such a leader says that the log reaches.

use super::api::{ApiError, Kept, is_marker};
use super::generation::Generation;
use super::headers;
use async_nats::header::{NATS_SEQUENCE, NATS_SUBJECT};
use bytes::Bytes;
use serde_json::{Value, json};
use std::sync::PoisonError;
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
    /// It says that a key was deleted.
    pub is_marker: bool,
}

impl Newest {
    fn of_leader(kept: &Kept) -> Result<Self, ApiError> {
        Ok(Self { seq: kept.seq, data: kept.data()?, is_marker: is_marker(kept) })
    }

    fn of_copy(message: &async_nats::Message) -> Option<Self> {
        let is_marker = headers::text(message, &headers::KV_OPERATION).is_some()
            || headers::text(message, &headers::MARKER_REASON).is_some();
        let seq = headers::number(message, &NATS_SEQUENCE)?;
        Some(Self { seq, data: message.payload.clone(), is_marker })
    }
}

impl Generation {
    /// The newest message of a subject of a bucket. That there is none is the word of whoever calls itself the leader.
    pub async fn newest_in_bucket(&self, stream: &str, subject: &str) -> Result<Option<Newest>, ApiError> {
        let by_leader = async || {
            let kept = self.api().message(stream, &json!({"last_by_subj": subject})).await?;
            kept.as_ref().map(Newest::of_leader).transpose()
        };
        if !self.connection.clustered() {
            return by_leader().await;
        }
        match self.newest_of_copy(stream, &[subject], 0).await? {
            Some(messages) => {
                let newest = messages.iter().find_map(Newest::of_copy);
                newest.map(Some).ok_or_else(|| ApiError::Unreadable("a message without a sequence".into()))
            }
            // An answer without messages does not say how far the copy has come.
            None => match by_leader().await? {
                None => Ok(None),
                Some(_) => Err(lags()),
            },
        }
    }

    /// Sequence of the newest remote command of a subject, 0 if there is none. `held`: the log has come so far at least.
    pub async fn newest_command(&self, subject: &str, held: u64) -> Result<u64, ApiError> {
        let log = &self.commands;
        if !self.connection.clustered() {
            let kept = self.api().message(log, &json!({"last_by_subj": subject})).await?;
            return Ok(kept.map_or(0, |kept| kept.seq));
        }
        let known = self.known_command().clone();
        let sentinel = match known {
            Some(subject) => subject,
            None => match self.any_command(held).await? {
                Some(subject) => self.known_command().insert(subject).clone(),
                None => return Ok(0),
            },
        };
        let found = self.newest_of_copy(log, &[subject, &sentinel], held).await?;
        let of = |wanted: &str| {
            let mut messages = found.iter().flatten();
            let is_it = |message: &&async_nats::Message| {
                headers::text(message, &NATS_SUBJECT).is_some_and(|subject| subject == wanted)
            };
            messages.find(is_it).and_then(|message| headers::number(message, &NATS_SEQUENCE))
        };
        if of(&sentinel).is_none() {
            // It has expired: next time another one is asked for.
            *self.known_command() = None;
            return Err(ApiError::Unreadable("the log of remote commands changed while it was read".into()));
        }
        Ok(of(subject).unwrap_or(0))
    }

    fn known_command(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.known_command.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A subject of the log of remote commands that has a message; `None`: none is kept.
    async fn any_command(&self, held: u64) -> Result<Option<String>, ApiError> {
        let reached = self.led(&self.commands, held).await?;
        if reached.kept == 0 {
            return Ok(None);
        }
        match self.api().message(&self.commands, &json!({"seq": reached.last_seq})).await? {
            Some(kept) => Ok(Some(kept.subject)),
            None => Err(lags()),
        }
    }

    /// How far a log has come, as a leader says that is in touch with the majority.
    async fn led(&self, stream: &str, held: u64) -> Result<Reached, ApiError> {
        let info = self.api().info(stream).await?;
        if !info.cluster.is_led() {
            return Err(ApiError::Unreadable(format!("the leader of {stream} is out of touch with the majority")));
        }
        if info.state.last_seq < held {
            return Err(lags());
        }
        Ok(Reached { last_seq: info.state.last_seq, kept: info.state.messages })
    }

    /// The newest messages of these subjects, from one copy that has come as far as the log; `None`: there are none, as far
    /// as that copy has come.
    async fn newest_of_copy(
        &self,
        stream: &str,
        subjects: &[&str],
        held: u64,
    ) -> Result<Option<Vec<async_nats::Message>>, ApiError> {
        let request: Value = json!({"multi_last": subjects});
        let request = Bytes::from(serde_json::to_vec(&request).expect("requests are plain JSON"));
        let ask = || {
            let subject = format!("$JS.API.DIRECT.GET.{stream}");
            self.api().mux.batch(subject, request.clone(), subjects.len() + 1, SILENCE)
        };
        let (reached, mut answer) = tokio::join!(self.led(stream, held), ask());
        let reached = reached?;
        for attempt in 1.. {
            let (messages, end) = answer?;
            if messages.is_empty() {
                return Ok(None);
            }
            if headers::number(&end, &headers::UP_TO_SEQUENCE).is_some_and(|up_to| up_to >= reached.last_seq) {
                return Ok(Some(messages));
            }
            if attempt == TRIES {
                break;
            }
            tokio::time::sleep(PAUSE * attempt).await;
            answer = ask().await;
        }
        Err(lags())
    }
}

/// How far a log has come.
struct Reached {
    last_seq: u64,
    /// Messages that it keeps.
    kept: u64,
}

fn lags() -> ApiError {
    ApiError::Unreadable("a server answered that lags behind".into())
}
