//! The pulse of the live feed: whether messages come by themselves, or only because heads are compared.
//!
//! Everything that a lost live message leads to is repaired from the log, so a feed that brings nothing at all would go
//! unnoticed: messages come some seconds late, and that is all. The feed is therefore tested, at each new connection
//! before it counts as ready and with each check:
//!
//! * a *marker*, an unstored message to a live subject of this node's own in each policy, and one among the remote
//!   commands, must come back within [`PATIENCE`], through the same kind of subscription;
//! * nothing may have been refused (`permissions`);
//! * live messages must not be missing. What a comparison of heads has found is expected to come, too. If most of it
//!   stays out in [`LATE_ROUNDS`] checks in a row, the way from the log's leader to here is broken somewhere. Whether it
//!   is whole again is then tested with a marker that is *stored*: the leader itself has to send it.

use super::Core;
use super::api::ApiError;
use super::generation::Generation;
use super::permissions::{Denial, Verb};
use super::{headers, probe};
use crate::metrics;
use crate::protocol::MessageId;
use async_nats::header::{self, NATS_SEQUENCE};
use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{BoxStream, SelectAll};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// A marker must be back by then.
const PATIENCE: Duration = Duration::from_secs(2);
/// Markers that must be lost in a row: one may meet a message that the library dropped.
const TRIES: u32 = 2;
/// Checks in a row that must find most messages missing.
const LATE_ROUNDS: u32 = 2;
/// The library hands out errors a moment after they were read.
const ERROR_DELAY: Duration = Duration::from_millis(100);

/// What a check says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Whole,
    /// Messages only come by polling, and why.
    Broken(String),
    /// What was refused is allowed now: everything must be subscribed anew.
    Renew,
}

/// The tests of one connection's feed.
pub(super) struct Pulse {
    /// Markers that came back, with the place of their policy.
    markers: SelectAll<BoxStream<'static, (usize, Message)>>,
    sent: u64,
    /// By place: checks in a row that found most messages missing.
    late: Vec<u32>,
}

impl Pulse {
    /// Subscribes to the markers of this connection.
    pub async fn start(core: &Core, generation: &Generation) -> Result<Self, ApiError> {
        let mut markers = SelectAll::new();
        for (place, policy) in generation.table.policies().iter().enumerate() {
            let subject = core.names.live_subject(&policy.name, &generation.connection.marker);
            let subscriber = generation.connection.subscribe(subject).await?;
            markers.push(subscriber.map(move |message| (place, message)).boxed());
        }
        Ok(Self { markers, sent: 0, late: vec![0; generation.table.policies().len()] })
    }

    pub async fn check(&mut self, core: &Core, generation: &Generation) -> Verdict {
        let verdict = self.judge(core, generation).await;
        metrics::FEED_BROKEN.set(i64::from(verdict != Verdict::Whole));
        if verdict == Verdict::Whole {
            core.nothing_refused();
        }
        verdict
    }

    async fn judge(&mut self, core: &Core, generation: &Generation) -> Verdict {
        let connection = &generation.connection;
        let denials = &connection.link.denials;
        let refused = denials.vital();
        try_again(core, generation, &refused).await;
        let logs: Vec<_> = generation.own_logs().map(|log| (&*log.policy, log.name.as_str())).collect();
        core.try_permissions(connection, &logs, &generation.commands).await;
        if !refused.is_empty() {
            tokio::time::sleep(ERROR_DELAY).await;
            let still = denials.all();
            if refused.iter().any(|denial| denial.is_subscription() && !still.contains(denial)) {
                tracing::info!("NATS allows what it had refused: connecting anew");
                return Verdict::Renew;
            }
        }
        if let Some(reason) = denials.reason() {
            return Verdict::Broken(reason);
        }
        let mut outcome = self.send_markers(core, generation).await;
        for _ in 1..TRIES {
            if outcome.is_err() && denials.reason().is_none() {
                outcome = self.send_markers(core, generation).await;
            }
        }
        match outcome {
            Ok(round_trip) => {
                metrics::FEED_MARKER_MICROS.set(i64::try_from(round_trip.as_micros()).unwrap_or(i64::MAX));
            }
            Err(reason) => return Verdict::Broken(denials.reason().unwrap_or(reason)),
        }
        for place in 0..self.late.len() {
            if let Some(reason) = self.look_for_late(core, generation, place).await {
                return Verdict::Broken(reason);
            }
        }
        Verdict::Whole
    }

    /// Sends one marker of each kind and waits until all are back. Answers with how long that took.
    async fn send_markers(&mut self, core: &Core, generation: &Generation) -> Result<Duration, String> {
        let (connection, begun) = (&generation.connection, Instant::now());
        let mut refused = connection.link.denials.changes();
        let mut command = connection.command_marker.subscribe();
        self.sent += 1;
        let number = self.sent;
        let text = Bytes::from(number.to_string());
        let mut subjects: Vec<String> = generation
            .table
            .policies()
            .iter()
            .map(|policy| core.names.live_subject(&policy.name, &connection.marker))
            .collect();
        let mut due: BTreeSet<usize> = (0..subjects.len()).collect();
        subjects.push(core.names.live_command_subject(&connection.marker));
        for subject in &subjects {
            let sent = connection.api.mux.publish(subject.clone(), HeaderMap::new(), text.clone(), PATIENCE).await;
            sent.map_err(|error| error.to_string())?;
        }
        let deadline = begun + PATIENCE;
        while !due.is_empty() || *command.borrow_and_update() < number {
            tokio::select! {
                Some((place, message)) = self.markers.next() => {
                    if message.payload == text {
                        due.remove(&place);
                    }
                }
                Ok(()) = command.changed() => {}
                Ok(()) = refused.changed() => {
                    if let Some(reason) = connection.link.denials.reason() {
                        return Err(reason);
                    }
                }
                () = tokio::time::sleep_until(deadline) => {
                    let missing = due.first().map_or(subjects.len() - 1, |place| *place);
                    return Err(format!(
                        "the live feed is not whole: a message of this node's own to {} did not come back within {} s; \
                         messages come by polling only. Check what this user may publish and subscribe to in NATS",
                        subjects[missing],
                        PATIENCE.as_secs()
                    ));
                }
                () = generation.dead().cancelled() => return Err("connection to NATS lost".into()),
            }
        }
        Ok(begun.elapsed())
    }

    /// Counts what comparisons of heads have found missing since the last check. Answers with a reason if the feed of this
    /// policy's log does not bring what is stored.
    async fn look_for_late(&mut self, core: &Core, generation: &Generation, place: usize) -> Option<String> {
        let round = generation.live.take_round(place);
        metrics::FEED_LATE.add(round.missed);
        if round.missed > round.arrived {
            self.late[place] += 1;
        } else if round.arrived > 0 {
            self.late[place] = 0;
        }
        if self.late[place] < LATE_ROUNDS {
            return None;
        }
        match self.send_stored_marker(core, generation, place).await {
            Ok(()) => {
                self.late[place] = 0;
                None
            }
            Err(reason) => Some(reason),
        }
    }

    /// Stores a marker, whose live copy must come.
    async fn send_stored_marker(&mut self, core: &Core, generation: &Generation, place: usize) -> Result<(), String> {
        let Some(log) = &generation.logs[place] else { return Ok(()) };
        let connection = &generation.connection;
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_MESSAGE_ID, MessageId::random().to_hex());
        headers.insert(header::NATS_EXPECTED_STREAM, log.name.as_str());
        headers.insert(headers::EPOCH, log.epoch().as_str());
        let subject = core.names.log_subject(&log.policy, &connection.marker);
        let stored = connection.api.publish(subject.clone(), headers, Bytes::new(), PATIENCE).await;
        let ack = stored.map_err(|error| format!("a message that tests the live feed cannot be stored: {error}"))?;
        let deadline = Instant::now() + PATIENCE;
        while let Ok(Some((_, message))) = timeout_at(deadline, self.markers.next()).await {
            if headers::number(&message, &NATS_SEQUENCE) == Some(ack.seq) {
                return Ok(());
            }
        }
        Err(format!(
            "the live feed is not whole: messages stored in {} come by polling only. Check what routes, gateways and \
             accounts of NATS let pass of {}",
            log.name,
            core.names.live_subject(&log.policy, ">")
        ))
    }
}

/// Tries what was refused again, without storing anything: what is refused still is noted anew.
async fn try_again(core: &Core, generation: &Generation, refused: &[Denial]) {
    let connection = &generation.connection;
    for denial in refused {
        connection.link.denials.forget(denial);
        let subject = match denial {
            Denial::Permission { verb: Verb::Subscribe, subject } => subject.clone(),
            Denial::TooManySubscriptions => {
                core.names.live_subject(&generation.table.policies()[0].name, &connection.marker)
            }
            Denial::Permission { verb: Verb::Publish, subject } => {
                probe::publish_again(core, connection, subject).await;
                continue;
            }
        };
        // It ends at once: the server says first whether it is allowed.
        drop(connection.subscribe(subject).await);
    }
}
