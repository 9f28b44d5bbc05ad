//! Remote commands: a log of their own that every node follows from one end to the other.
//!
//! Its sequence has no holes, so a hole in what was heard is a lost message and is read again. Marks rise across
//! re-creations of this log, because each begins at the time of its creation.

use super::api::{ApiError, StreamInfo};
use super::generation::Connection;
use super::publish::{Write, WriteError};
use super::token::hash_hex;
use super::{Attempts, Core, SetupError, headers};
use crate::broker::{AppendError, RemoteDisconnect, Unavailable};
use crate::metrics;
use crate::protocol::MessageId;
use async_nats::header::{self, NATS_SEQUENCE, NATS_STREAM};
use async_nats::{HeaderMap, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior};

/// How often the log is compared with what was heard: the last message of a burst can be lost with nothing behind it.
const CHECK_PERIOD: Duration = Duration::from_secs(5);
/// Commands of one read.
const BATCH: usize = 200;
const MAX_BYTES: usize = 512 * 1024;
const SILENCE: Duration = Duration::from_millis(1000);

/// How far this node has followed, across connections.
#[derive(Clone, Debug)]
pub(super) struct Followed {
    log: String,
    /// All commands up to this sequence were passed on.
    held: u64,
    /// When that was last compared with the log.
    checked: Instant,
}

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
        self.catch_up(connection, log).await?;
        Ok(subscriber)
    }

    /// Passes on everything up to the log's end, as the leader has it.
    async fn catch_up(&self, connection: &Connection, log: &str) -> Result<(), ApiError> {
        let info = connection.api.info(log).await?;
        let now = Instant::now();
        let last = info.state.last_seq;
        let Some(mut followed) = self.followed() else {
            // A node that has just started has no sessions that an older command could be meant for.
            self.set_followed(Followed { log: log.into(), held: last, checked: now });
            return Ok(());
        };
        let too_long = now - followed.checked > self.config.mark_life() / 2;
        let lost = followed.log != log || last < followed.held || too_long;
        let cut = info.state.first_seq > followed.held + 1 && last > followed.held;
        if lost || cut {
            tracing::warn!(log, "remote commands may have been missed: sessions are authenticated anew");
            self.feed.commands_lost();
            let held = if lost && !too_long { last } else { followed.held.max(info.state.first_seq.saturating_sub(1)) };
            followed = Followed { log: log.into(), held, checked: now };
        }
        while followed.held < last {
            let next = self.read_commands(connection, log, followed.held, &info).await?;
            followed.held = next;
            self.set_followed(followed.clone());
        }
        followed.checked = now;
        self.set_followed(followed);
        Ok(())
    }

    /// Passes on the commands behind `held`; answers with the last one's sequence.
    async fn read_commands(
        &self,
        connection: &Connection,
        log: &str,
        held: u64,
        info: &StreamInfo,
    ) -> Result<u64, ApiError> {
        let request = json!({"seq": held + 1, "batch": BATCH, "max_bytes": MAX_BYTES});
        let request = Bytes::from(serde_json::to_vec(&request).expect("requests are plain JSON"));
        let (messages, _) =
            connection.api.mux.batch(format!("$JS.API.DIRECT.GET.{log}"), request, BATCH + 1, SILENCE).await?;
        let mut reached = held;
        for message in messages {
            match headers::number(&message, &NATS_SEQUENCE) {
                Some(seq) if seq == reached + 1 => {
                    self.pass_on(seq, &message.payload);
                    reached = seq;
                }
                _ => break,
            }
        }
        if reached == held {
            // A lagging replica, or the commands aged out between the two requests.
            let kept = connection.api.message(log, &json!({"seq": held + 1})).await?;
            match kept {
                Some(kept) => {
                    self.pass_on(kept.seq, &kept.data()?);
                    return Ok(kept.seq);
                }
                None => {
                    tracing::warn!(log, seq = held + 1, "a remote command is gone: sessions are authenticated anew");
                    self.feed.commands_lost();
                    return Ok(info.state.last_seq);
                }
            }
        }
        Ok(reached)
    }

    fn pass_on(&self, seq: u64, payload: &[u8]) {
        match serde_json::from_slice(payload) {
            Ok(command) => {
                metrics::REMOTE_COMMANDS.inc();
                self.feed.disconnect(seq, command);
            }
            Err(error) => tracing::warn!(seq, %error, "unreadable remote command"),
        }
    }

    pub(super) async fn store_disconnect(&self, command: &RemoteDisconnect) -> Result<u64, AppendError> {
        let subject = self.names.command_subject(&hash_hex(&command.identifiers));
        let payload = Bytes::from(serde_json::to_vec(command).expect("a command is plain JSON"));
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_MESSAGE_ID, MessageId::random().to_hex());
        let mut write = Write::new(self, self.config.publish_timeout);
        loop {
            let Some(generation) = write.connection().await else { return Err(write.end().into()) };
            headers.insert(header::NATS_EXPECTED_STREAM, generation.commands.as_str());
            let (size, max_payload) = (payload.len(), generation.connection.client.max_payload());
            headers::check_size(size, &headers, max_payload).map_err(|limit| AppendError::TooLarge { size, limit })?;
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
        let which = json!({"last_by_subj": self.names.command_subject(&hash_hex(identifiers))});
        let mut attempts = Attempts::new(self, self.config.broker_timeout);
        loop {
            let generation = attempts.next().await?;
            match generation.api().message(&generation.commands, &which).await {
                Ok(kept) => return Ok(kept.map_or(0, |kept| kept.seq)),
                Err(error) => attempts.failed(error),
            }
        }
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
            let (Some(seq), Some(mut followed)) = (headers::number(message, &NATS_SEQUENCE), core.followed()) else {
                continue;
            };
            if seq <= followed.held {
                continue;
            }
            if seq == followed.held + 1 {
                core.pass_on(seq, &message.payload);
                followed.held = seq;
                core.set_followed(followed);
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
