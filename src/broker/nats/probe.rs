//! Whether this node may do what it will have to do, found out before somebody depends on it: a write to each log and
//! bucket that the log refuses for another reason, a read that finds nothing.

use super::Core;
use super::config::{bucket_stream, key_subject};
use super::find::Kind;
use super::generation::{Connection, Generation};
use super::{SetupError, api};
use async_nats::{HeaderMap, header};
use bytes::Bytes;
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::time::Duration;

/// A subject token, or key, that nothing is ever stored under.
const NOTHING: &str = "~probe";
/// No JetStream stream has this name, so a write that expects it is refused, by whoever may refuse it.
const NO_STREAM: &str = "~";
/// A frozen replica does not answer a read; that says nothing about permissions.
const READ_PATIENCE: Duration = Duration::from_millis(500);

/// Settings of logs that the feed and history depend on, and that an operator can take away at any time.
const NEEDED: [&str; 2] = ["republish", "allow_direct"];

impl Core {
    /// Tries every kind of write and read. What is refused is noted in the connection's denials.
    pub(super) async fn try_permissions(&self, connection: &Connection, logs: &[(&str, &str)], commands: &str) {
        let mut writes: Vec<String> = logs.iter().map(|(policy, _)| self.names.log_subject(policy, NOTHING)).collect();
        writes.push(self.names.command_subject(NOTHING));
        let mut reads: Vec<(String, Value)> = Vec::new();
        let by_subject =
            |stream: &str, subject: String| (format!("DIRECT.GET.{stream}"), json!({"last_by_subj": subject}));
        for (policy, log) in logs {
            reads.push(by_subject(log, self.names.log_subject(policy, NOTHING)));
        }
        reads.push(by_subject(commands, self.names.command_subject(NOTHING)));
        if self.config.sessions() {
            let bucket = self.names.sessions_bucket();
            let subject = key_subject(&bucket, NOTHING);
            writes.push(subject.clone());
            reads.push((format!("STREAM.MSG.GET.{}", bucket_stream(&bucket)), json!({"last_by_subj": subject})));
        }
        let writes = writes.into_iter().map(|subject| write(connection, subject));
        let reads = reads.into_iter().map(async |(what, body)| {
            let body = Bytes::from(serde_json::to_vec(&body).expect("requests are plain JSON"));
            // Whatever is answered: it was allowed to ask.
            let _ = connection.api.mux.request(format!("$JS.API.{what}"), HeaderMap::new(), body, READ_PATIENCE).await;
        });
        tokio::join!(join_all(writes), join_all(reads));
    }

    /// Puts back what somebody took away from the logs' settings. Answers with the reason if that cannot be done.
    pub(super) async fn keep_settings(&self, generation: &Generation) -> Result<Option<String>, SetupError> {
        let connection = &generation.connection;
        let logs = generation.table.policies().iter().zip(&generation.logs);
        let logs = logs.filter_map(|(policy, log)| Some((Kind::Log(policy), log.as_ref()?.name.as_str())));
        for (kind, name) in logs.chain([(Kind::Commands, generation.commands.as_str())]) {
            let Some(have) = self.settings(connection, name).await? else { continue };
            let wanted = self.wanted(connection, kind, name);
            let mut want = json!({"name": name});
            NEEDED.iter().for_each(|setting| want[setting] = wanted[setting].clone());
            if !super::layout::differs(&have, &want) {
                continue;
            }
            tracing::error!(
                stream = name,
                "somebody took settings away that the live feed or history needs: they are put back; what was published \
                 meanwhile is read from the log"
            );
            match self.update(connection, have, &want, false).await {
                Ok(()) => generation.live.all_lagged(&*self.feed, None),
                Err(error) => return Ok(Some(format!("messages come by polling only: {error}"))),
            }
        }
        Ok(None)
    }
}

/// A write that cannot succeed.
async fn write(connection: &Connection, subject: String) {
    let mut headers = HeaderMap::new();
    headers.insert(header::NATS_EXPECTED_STREAM, NO_STREAM);
    // The refusal of the log is the answer that is hoped for; a denial is noted where it comes in.
    let _ = connection.api.mux.request(subject, headers, Bytes::new(), api::ATTEMPT).await;
}

/// Tries to publish to a subject that was refused, without any effect. What cannot be tried like that will be refused
/// again when it is needed.
pub(super) async fn publish_again(core: &Core, connection: &Connection, subject: &str) {
    if core.names.is_stored(subject) {
        write(connection, subject.to_owned()).await;
    }
}
