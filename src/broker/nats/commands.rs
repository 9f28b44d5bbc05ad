//! Remote commands: a log of their own that every node follows from one end to the other.
//!
//! Its sequence has no holes, so a hole in what was heard is a lost message and is read again. Marks rise across
//! re-creations of this log, because each begins at the time of its creation.

use super::api::ApiError;
use super::followed::{Doubt, Followed, UNREADABLE, Word};
use super::fresh::lags;
use super::generation::{Connection, Generation};
use super::publish::{Write, WriteError};
use super::token::hash_hex;
use super::{Core, SetupError, headers};
use crate::broker::{AppendError, RemoteDisconnect, Unavailable};
use crate::log_limit::limited;
use crate::metrics;
use crate::protocol::MessageId;
use crate::secret::json_fault;
use async_nats::header::{self, NATS_SEQUENCE, NATS_STREAM};
use async_nats::{HeaderMap, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior};

/// How often the log is compared with what was heard: the last message of a burst can be lost with nothing behind it.
const CHECK_PERIOD: Duration = Duration::from_secs(5);
/// Commands of one read.
const BATCH: usize = 200;
const MAX_BYTES: usize = 512 * 1024;
const SILENCE: Duration = Duration::from_millis(1000);

impl Core {
    fn followed(&self) -> Option<Followed> {
        self.commands.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn set_followed(&self, followed: Followed) {
        *self.commands.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(followed);
    }

    /// Subscribes, then catches up with what was missed since the last connection.
    pub(super) async fn follow_commands(&self, connection: &Connection, log: &str) -> Result<Subscriber, SetupError> {
        let subscriber = connection.subscribe(self.names.live_command_subject("*")).await?;
        self.compare_newest(connection, log).await?;
        self.catch_up(connection, log).await?;
        Ok(subscriber)
    }

    /// An older copy of the log that has grown again reaches as far as this node has followed, with other commands.
    pub(super) async fn compare_newest(&self, connection: &Connection, log: &str) -> Result<(), ApiError> {
        let Some(mut followed) = self.followed().filter(|followed| followed.log == log && followed.held > 0) else {
            return Ok(());
        };
        let kept = connection.api.message(log, &json!({"seq": followed.held})).await?;
        let info = connection.api.led(log, &Value::Null).await?;
        let Some(kept) = kept else {
            // Expired: it was there for as long as any copy of it could have been put back. A server that was frozen, or
            // that takes in what it lacks, does not find it either.
            let state = &info.state;
            return match connection.clustered() && (state.first_seq..=state.last_seq).contains(&followed.held) {
                true if !Doubt::lasts(&mut followed.gone, &info.cluster, UNREADABLE, Instant::now()) => {
                    self.set_followed(followed);
                    Err(lags())
                }
                _ => Ok(()),
            };
        };
        let id = kept.header(header::NATS_MESSAGE_ID.as_ref());
        if followed.id.is_some() && followed.id != id {
            self.lost(Followed::to(log, info.state.last_seq, None), "the log of remote commands has changed");
            return Ok(());
        }
        followed.id = id;
        self.set_followed(followed);
        Ok(())
    }

    /// Goes on from here although commands may have been missed.
    fn lost(&self, followed: Followed, reason: &str) {
        tracing::warn!(
            log = followed.log,
            reason,
            "remote disconnects may have been missed: every client authenticates anew"
        );
        self.feed.commands_lost();
        self.set_followed(followed);
    }

    /// Passes on everything up to the log's end, as a leader has it that is in touch with the majority.
    pub(super) async fn catch_up(&self, connection: &Connection, log: &str) -> Result<(), ApiError> {
        let info = connection.api.led(log, &Value::Null).await?;
        let last = info.state.last_seq;
        let Some(mut followed) = self.followed() else {
            // A node that has just started has no sessions that an older command could be meant for.
            self.set_followed(Followed::to(log, last, None));
            return Ok(());
        };
        let word = followed.hear(log, &info, connection.clustered(), Instant::now());
        // Also what it says no more: a lag that is over is forgotten.
        self.set_followed(followed.clone());
        match word {
            Word::Whole => {}
            Word::NotYet => {
                return Err(ApiError::Unreadable("the leader of the remote commands has not come so far yet".into()));
            }
            Word::Missed(reason) => {
                let same = followed.log == log && last >= followed.held;
                // What is still there of the same log is passed on: it names who must not come back at all.
                let held = if same { info.state.first_seq.saturating_sub(1) } else { last };
                followed = Followed::to(log, held, None);
                self.lost(followed.clone(), reason);
            }
        }
        while followed.held < last {
            followed = self.read_commands(connection, followed).await?;
            self.set_followed(followed.clone());
        }
        Ok(())
    }

    /// Passes on commands behind those that are held; answers with what is held then.
    pub(super) async fn read_commands(
        &self,
        connection: &Connection,
        mut followed: Followed,
    ) -> Result<Followed, ApiError> {
        let Followed { log, held, mut id, .. } = followed.clone();
        let request = json!({"seq": held + 1, "batch": BATCH, "max_bytes": MAX_BYTES});
        let request = Bytes::from(serde_json::to_vec(&request).expect("requests are plain JSON"));
        let (messages, _) =
            connection.api.mux.few(format!("$JS.API.DIRECT.GET.{log}"), request, BATCH + 1, SILENCE).await?;
        let mut reached = held;
        let first = messages.first().and_then(|message| headers::number(message, &NATS_SEQUENCE));
        for message in messages {
            match headers::number(&message, &NATS_SEQUENCE) {
                Some(seq) if seq == reached + 1 => {
                    self.pass_on(seq, &message.payload);
                    id = headers::text(&message, &header::NATS_MESSAGE_ID).map(str::to_owned);
                    reached = seq;
                }
                _ => break,
            }
        }
        if reached == held {
            // A lagging replica, or the commands aged out between the two requests.
            let kept = connection.api.message(&log, &json!({"seq": held + 1})).await?;
            match kept {
                Some(kept) => {
                    self.pass_on(kept.seq, &kept.data()?);
                    return Ok(Followed::to(&log, kept.seq, kept.header(header::NATS_MESSAGE_ID.as_ref())));
                }
                None => {
                    let info = connection.api.led(&log, &Value::Null).await?;
                    if !followed.next_is_gone(&info, connection.clustered(), Instant::now()) {
                        self.set_followed(followed);
                        return Err(lags());
                    }
                    // What is behind it is passed on: it names who must not come back at all.
                    let next = Followed::to(&log, first.map_or(info.state.last_seq, |seq| seq - 1), None);
                    self.lost(next.clone(), "a remote command is gone");
                    return Ok(next);
                }
            }
        }
        Ok(Followed::to(&log, reached, id))
    }

    fn pass_on(&self, seq: u64, payload: &[u8]) {
        match serde_json::from_slice(payload) {
            Ok(command) => self.feed.disconnect(seq, command),
            Err(error) => {
                limited!(WARN, UnreadableCommand, seq, error = json_fault(&error), "unreadable remote command")
            }
        }
    }

    pub(super) async fn store_disconnect(&self, command: &RemoteDisconnect) -> Result<u64, AppendError> {
        let subject = self.names.command_subject(&hash_hex(&command.identifiers));
        let payload = Bytes::from(serde_json::to_vec(command).expect("a command is plain JSON"));
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_MESSAGE_ID, MessageId::random().to_hex());
        let mut write = Write::new(self, self.config.command_budget());
        loop {
            let Some(generation) = write.connection().await else { return Err(write.end().into()) };
            headers.insert(header::NATS_EXPECTED_STREAM, generation.commands.as_str());
            let (size, max_payload) = (payload.len(), generation.connection.client.max_payload());
            headers::check_size(size, &headers, max_payload)?;
            let timeout = write.attempt();
            match generation.api().publish(subject.clone(), headers.clone(), payload.clone(), timeout).await {
                Ok(ack) => return Ok(ack.seq),
                Err(error) => write.failed(error).await.map_err(|end| match end {
                    WriteError::TooLarge => AppendError::TooLarge { size, limit: max_payload },
                    end => end.into(),
                })?,
            }
        }
    }

    pub(super) async fn newest_mark(&self, identifiers: &str) -> Result<u64, Unavailable> {
        let subject = &self.names.command_subject(&hash_hex(identifiers));
        let ask = |generation: Arc<Generation>| async move {
            let held = self.followed().filter(|followed| followed.log == generation.commands);
            generation.newest_command(subject, held.map_or(0, |followed| followed.held)).await
        };
        self.asking(ask).await
    }
}

/// Follows the command log until the connection ends.
pub(super) async fn run(core: Arc<Core>, connection: Arc<Connection>, log: String, mut live: Subscriber) {
    let dead = connection.link.dead.clone();
    let mut tick = tokio::time::interval(CHECK_PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            () = dead.cancelled() => return,
            _ = tick.tick() => None,
            message = live.next() => match message {
                Some(message) => Some(message),
                None => return,
            },
        };
        if let Some(message) = &message {
            if message.subject.ends_with(&connection.marker) {
                let number = std::str::from_utf8(&message.payload).ok().and_then(|text| text.parse().ok());
                connection.command_marker.send_replace(number.unwrap_or_default());
                continue;
            }
            if headers::text(message, &NATS_STREAM) != Some(log.as_str()) {
                continue;
            }
            let (Some(seq), Some(followed)) = (headers::number(message, &NATS_SEQUENCE), core.followed()) else {
                continue;
            };
            if seq <= followed.held {
                continue;
            }
            if seq == followed.held + 1 {
                core.pass_on(seq, &message.payload);
                let id = headers::text(message, &header::NATS_MESSAGE_ID).map(str::to_owned);
                core.set_followed(Followed::to(&followed.log, seq, id));
                continue;
            }
            metrics::GAPS.inc();
        }
        let outcome = tokio::select! {
            outcome = core.catch_up(&connection, &log) => outcome,
            () = dead.cancelled() => return,
        };
        if let Err(error) = outcome {
            // The next message or the timer tries again; what was not passed on stays to be read.
            tracing::debug!(%error, "cannot read the command log");
        }
    }
}
