//! Which JetStream stream is a policy's log, or the command log: the one that the meta bucket names. Missing ones are
//! created, and one that has disappeared is replaced, loudly.

use super::epoch::{COMMANDS_KEY, FORMAT_PLAIN, LogRecord, log_key, read_record, write_record};
use super::generation::Connection;
use super::layout::{META_FORMAT, META_RAISED_AT, META_REVISION, May};
use super::logs::Found;
use super::{Core, SetupError};
use crate::broker::{Durability, Policy, Table};
use crate::protocol::names::random_text;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// Creation ids are plain letters and digits.
fn creation_id() -> String {
    random_text(12).replace(['-', '_'], "x")
}

/// The log that is looked for.
#[derive(Clone, Copy)]
pub(super) enum Kind<'a> {
    Commands,
    Log(&'a Policy),
}

impl Kind<'_> {
    fn key(self) -> String {
        match self {
            Self::Commands => COMMANDS_KEY.into(),
            Self::Log(policy) => log_key(&policy.name),
        }
    }
}

impl Core {
    /// The logs of all policies that keep something; missing ones are created.
    pub(super) async fn find_logs(
        &self,
        connection: &Connection,
        table: &Table,
        may: May,
    ) -> Result<Vec<Option<Found>>, SetupError> {
        let mut logs = Vec::with_capacity(table.policies().len());
        for policy in table.policies() {
            logs.push(match policy.keeps() {
                true => Some(self.find(connection, Kind::Log(policy), may).await?),
                false => None,
            });
        }
        Ok(logs)
    }

    /// The log (or command log) that the meta bucket names; created when there is none yet, and, loudly and with a new
    /// epoch, when it has disappeared.
    pub(super) async fn find(&self, connection: &Connection, kind: Kind<'_>, may: May) -> Result<Found, SetupError> {
        let (bucket, key) = (self.names.meta_bucket(), &kind.key());
        // A few rounds: each ends with this node's or another's progress.
        for _ in 0..5 {
            let Some((record, revision)) = read_record(connection, &bucket, key).await? else {
                let record = match self.orphan(connection, kind).await? {
                    Some(log) => LogRecord { created: true, ..self.remembered(connection, log).await? },
                    None => LogRecord::fresh(self.fresh_name(kind)),
                };
                write_record(connection, &bucket, key, &record, 0).await?;
                continue;
            };
            let want = self.wanted(connection, kind, &record.log);
            match self.settings(connection, &record.log).await? {
                Some(have) => {
                    if !record.created {
                        let record = LogRecord { created: true, ..record.clone() };
                        write_record(connection, &bucket, key, &record, revision).await?;
                    }
                    self.adjust(connection, kind, have, want, may).await?;
                    let have = self.settings(connection, &record.log).await?.unwrap_or_default();
                    return Ok(self.found(record.log, &have));
                }
                None if !record.created => self.create(connection, &want).await?,
                None => {
                    self.confirm_missing(connection, &record.log).await?;
                    let next = LogRecord { format: record.format, ..LogRecord::fresh(self.fresh_name(kind)) };
                    tracing::error!(
                        missing = record.log,
                        replacement = next.log,
                        "a log has disappeared from NATS: creating a new one, with a new epoch"
                    );
                    write_record(connection, &bucket, key, &next, revision).await?;
                }
            }
        }
        Err(SetupError::retry(format!("other nodes keep changing {key}")))
    }

    fn fresh_name(&self, kind: Kind<'_>) -> String {
        match kind {
            Kind::Commands => self.names.commands(&creation_id()),
            Kind::Log(policy) => self.names.log(&policy.name, &creation_id()),
        }
    }

    pub(super) fn wanted(&self, connection: &Connection, kind: Kind<'_>, name: &str) -> Value {
        let replicas = self.replicas(connection);
        match kind {
            Kind::Commands => {
                let mut want = self.command_log(name, replicas);
                // Marks of a later command log are higher than those of an earlier one, which sessions remember.
                want["first_seq"] = json!(super::unix_millis());
                want
            }
            Kind::Log(policy) => {
                let replicas = if policy.replicas == 0 { replicas } else { policy.replicas };
                let mut want = self.log(policy, name, replicas);
                let format = FORMAT_PLAIN.to_string();
                want["metadata"] = json!({META_FORMAT: format, META_REVISION: "1", META_RAISED_AT: "0"});
                want
            }
        }
    }

    /// A log of ours that no record names: the meta bucket was lost. It is taken over.
    async fn orphan(&self, connection: &Connection, kind: Kind<'_>) -> Result<Option<String>, SetupError> {
        #[derive(Deserialize)]
        struct Names {
            #[serde(default)]
            streams: Option<Vec<String>>,
        }
        let (subject, ours) = match kind {
            Kind::Commands => (self.names.command_subject(">"), self.names.commands("")),
            Kind::Log(policy) => (self.names.log_subject(&policy.name, ">"), self.names.log(&policy.name, "")),
        };
        let found: Names = connection.api.call("STREAM.NAMES", &json!({"subject": subject})).await?;
        match found.streams.unwrap_or_default().as_slice() {
            [] => Ok(None),
            [one] if one.starts_with(&ours) => {
                tracing::error!(log = one, "the record of this log was lost: taking the log over");
                Ok(Some(one.clone()))
            }
            others => Err(SetupError::fatal(format!(
                "subjects {subject} belong to JetStream streams {others:?}: choose another nats_prefix or remove them"
            ))),
        }
    }

    /// A server that is just starting may not know its streams yet.
    async fn confirm_missing(&self, connection: &Connection, log: &str) -> Result<(), SetupError> {
        let (tries, pause) = if connection.clustered() { (6, 500) } else { (3, 200) };
        for _ in 0..tries {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            if self.settings(connection, log).await?.is_some() {
                return Err(SetupError::retry(format!("{log} was not visible for a moment")));
            }
        }
        Ok(())
    }

    fn found(&self, name: String, settings: &Map<String, Value>) -> Found {
        let number = |setting: &str| settings.get(setting).and_then(Value::as_u64).filter(|number| *number > 0);
        let durability = match number("num_replicas") {
            Some(2..) => Durability::Replicated,
            _ if settings.get("storage").is_some_and(|storage| storage == "memory") => Durability::Memory,
            _ if self.config.synced => Durability::Synced,
            _ => Durability::Server,
        };
        Found {
            name,
            limit: number("max_msgs_per_subject").unwrap_or(u64::MAX),
            ttl: number("max_age").map_or(Duration::MAX, Duration::from_nanos),
            durability,
        }
    }
}
