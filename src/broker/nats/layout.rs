//! The streams and buckets as they should be: created when missing, updated in place where they differ, never deleted.

use super::api::{ApiError, StreamInfo, code};
use super::config::{WRITE_WINDOW, bucket_stream};
use super::epoch::{
    COMMANDS_KEY, FORMAT, FORMAT_PLAIN, FORMAT_POLICIES, LogRecord, log_key, read_record, write_record,
};
use super::find::Kind;
use super::generation::Connection;
use super::logs::Found;
use super::{Core, SetupError};
use crate::broker::{Policy, Table};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;

/// `raised_at` while a rise is under way: beyond every sequence, so that counting proves nothing meanwhile.
pub(super) const RAISING: u64 = crate::broker::MAX_OFFSET;

/// Metadata of the log. Written in the same update as the limits, so that one stream info is consistent.
pub(super) const META_REVISION: &str = "carrick-revision";
pub(super) const META_RAISED_AT: &str = "carrick-raised-at";
pub(super) const META_FORMAT: &str = "carrick-format";

/// Settings that no update can or should change: whoever made them meant something else.
const FIXED: [&str; 11] = [
    "retention",
    "storage",
    "discard",
    "max_msgs",
    "max_bytes",
    "max_msg_size",
    "sealed",
    "no_ack",
    "mirror",
    "sources",
    "subject_transform",
];

/// The cluster cannot keep as many copies now.
fn is_too_few(error: &ApiError) -> bool {
    error.is(code::NO_SUITABLE_PEERS)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Settings that differ from the wanted ones. Absent means off, zero or empty to the server.
fn differences(have: &Map<String, Value>, want: &Value) -> Vec<(String, Value, Value)> {
    let blank = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::Array(items) => items.is_empty(),
        _ => false,
    };
    let want = want.as_object().expect("settings are an object");
    want.iter()
        .filter_map(|(name, wanted)| {
            let found = have.get(name).cloned().unwrap_or(Value::Null);
            let equal = match (&found, wanted) {
                // The server adds entries of its own.
                (Value::Object(found), Value::Object(wanted)) => {
                    wanted.iter().all(|(key, value)| found.get(key).unwrap_or(&Value::Null) == value)
                }
                _ => found == *wanted || (blank(&found) && blank(wanted)),
            };
            (!equal).then(|| (name.clone(), found, wanted.clone()))
        })
        .collect()
}

/// A stream's settings are not the wanted ones.
pub(super) fn differs(have: &Map<String, Value>, want: &Value) -> bool {
    !differences(have, want).is_empty()
}

#[derive(Deserialize)]
struct RawInfo {
    config: Map<String, Value>,
}

/// What stands in NATS, ready to be used.
pub(super) struct Prepared {
    pub table: Arc<Table>,
    /// In the table's order; `None` where nothing is stored.
    pub logs: Vec<Option<Found>>,
    pub commands: String,
}

/// The part of the store that saved sessions may take, unless another limit is given.
const SESSIONS_SHARE: i64 = 8;

/// What a look at an existing log may change of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum May {
    /// Everything: nobody relies on the former limits.
    ChangeLimits,
    /// What other nodes need not know of.
    Adjust,
    /// Nothing, but what was begun is finished.
    Finish,
}

impl Core {
    /// Everything in NATS that the policies in effect need, which may not be those that this node is configured for.
    pub(super) async fn set_up(&self, connection: &Connection) -> Result<Prepared, SetupError> {
        self.ensure_meta_bucket(connection).await?;
        let replicas = self.replicas(connection);
        // Before the policies are read: whoever changes them either sees this node, or is seen by it.
        self.renew_lease(connection).await?;
        if self.config.sessions() {
            self.ensure_sessions_bucket(connection, replicas).await?;
        }
        // First, because an unreadable one says that a newer version was here.
        read_record(connection, &self.names.meta_bucket(), COMMANDS_KEY).await?;
        let table = self.settle_policies(connection).await?;
        let may = match self.is_settled() {
            true => May::Finish,
            false if self.other_nodes(connection).await?.is_empty() => May::ChangeLimits,
            false => May::Adjust,
        };
        let commands = self.find(connection, Kind::Commands, may).await?.name;
        self.mark_format(connection, &table).await?;
        let logs = self.find_logs(connection, &table, may).await?;
        Ok(Prepared { table, logs, commands })
    }

    /// Keeps versions away that know of no policies besides the default one, as long as there are some.
    pub(super) async fn mark_format(&self, connection: &Connection, table: &Table) -> Result<(), SetupError> {
        let bucket = self.names.meta_bucket();
        let format = if table.is_plain() { FORMAT_PLAIN } else { FORMAT_POLICIES };
        match read_record(connection, &bucket, COMMANDS_KEY).await? {
            Some((record, revision)) if record.format != format => {
                let marked = LogRecord { format, ..record };
                match write_record(connection, &bucket, COMMANDS_KEY, &marked, revision).await? {
                    Some(_) => Ok(()),
                    None => Err(SetupError::retry("another node changes the store's format")),
                }
            }
            _ => Ok(()),
        }
    }

    /// Copies of everything. Where nobody named them, what the cluster could do for the meta bucket.
    pub(super) fn replicas(&self, connection: &Connection) -> usize {
        match self.config.replicas {
            0 => *connection.copies.get_or_init(|| if connection.clustered() { 3 } else { 1 }),
            wanted => wanted,
        }
    }

    /// The first of all that is made. Where nobody named the copies, it tells how many the cluster can keep: what a server
    /// advertises to its clients does not (it may advertise nobody), and no other question is open to ordinary users.
    async fn ensure_meta_bucket(&self, connection: &Connection) -> Result<(), SetupError> {
        let bucket = self.names.meta_bucket();
        let clustered = connection.clustered();
        if self.config.replicas == 0 && clustered && connection.copies.get().is_none() {
            match self.ensure(connection, &self.bucket(&bucket, 3)).await {
                Err(SetupError::TooFewServers(refusal)) => {
                    tracing::warn!(
                        refusal,
                        "this NATS cluster has no three servers up for three copies: one copy of everything is kept, and \
                         the loss of its server stops all (so does the loss of either of two servers: neither is a \
                         majority); with three servers the copies are added at the next start"
                    );
                    let _ = connection.copies.set(1);
                }
                outcome => return outcome,
            }
        }
        if clustered && !self.is_settled() && matches!(self.config.replicas, 1 | 2) {
            tracing::warn!(
                nats_replicas = self.config.replicas,
                "so few copies on a NATS cluster do not survive the loss of a server: three do"
            );
        }
        self.ensure(connection, &self.bucket(&bucket, self.replicas(connection))).await
    }

    /// Saved sessions have a share of the store. Unless it is given it is decided once, when their bucket is made: nodes
    /// with disks of different sizes must not change it in turns.
    async fn ensure_sessions_bucket(&self, connection: &Connection, replicas: usize) -> Result<(), SetupError> {
        let mut want = self.bucket(&self.names.sessions_bucket(), replicas);
        let budget = self.config.limits.sessions_budget;
        if budget > 0 {
            want["max_bytes"] = json!(budget);
        }
        let name = bucket_stream(&self.names.sessions_bucket());
        let have = match self.settings(connection, &name).await? {
            Some(have) => have,
            None => {
                if budget == 0 {
                    want["max_bytes"] = json!(self.sessions_share(connection).await?);
                }
                self.make(connection, &want).await?
            }
        };
        if budget == 0 {
            want["max_bytes"] = have.get("max_bytes").cloned().unwrap_or(json!(-1));
        }
        self.update(connection, have, &want, self.config.replicas != 0).await
    }

    /// An eighth of what the store may take, where that is known; -1: no limit.
    async fn sessions_share(&self, connection: &Connection) -> Result<i64, SetupError> {
        #[derive(Deserialize)]
        struct Account {
            limits: AccountLimits,
        }
        #[derive(Deserialize)]
        struct AccountLimits {
            max_storage: i64,
        }
        let size = match self.config.store_size {
            Some(size) => i64::try_from(size).unwrap_or(i64::MAX),
            None => connection.api.call::<Account>("INFO", &Value::Null).await?.limits.max_storage,
        };
        Ok(if size > 0 { size / SESSIONS_SHARE } else { -1 })
    }

    fn bucket(&self, bucket: &str, replicas: usize) -> Value {
        self.placed(json!({
            "name": bucket_stream(bucket),
            "subjects": [format!("$KV.{bucket}.>")],
            "retention": "limits", "storage": "file", "discard": "new",
            "max_msgs": -1, "max_bytes": -1, "max_msg_size": -1, "max_msgs_per_subject": 1,
            "allow_msg_ttl": true, "allow_direct": true, "allow_rollup_hdrs": true, "deny_delete": true,
            "duplicate_window": nanos(WRITE_WINDOW),
            "num_replicas": replicas,
        }))
    }

    pub(super) fn command_log(&self, name: &str, replicas: usize) -> Value {
        self.placed(json!({
            "name": name,
            "subjects": [self.names.command_subject(">")],
            "retention": "limits", "storage": "file", "discard": "old",
            "max_msgs": -1, "max_bytes": -1, "max_msg_size": -1, "max_msgs_per_subject": -1,
            "max_age": nanos(self.config.mark_life()),
            "duplicate_window": nanos(WRITE_WINDOW),
            "allow_direct": true, "deny_delete": true, "deny_purge": true,
            "republish": {"src": self.names.command_subject(">"), "dest": self.names.live_command_subject(">")},
            "num_replicas": replicas,
        }))
    }

    pub(super) fn log(&self, policy: &Policy, name: &str, replicas: usize) -> Value {
        let (log, live) = (self.names.log_subject(&policy.name, ">"), self.names.live_subject(&policy.name, ">"));
        self.placed(json!({
            "name": name,
            "subjects": [log],
            "retention": "limits", "storage": policy.storage.name(), "discard": "old",
            "max_msgs": -1, "max_bytes": -1, "max_msg_size": -1,
            "max_msgs_per_subject": policy.limit,
            "max_age": nanos(policy.ttl),
            "duplicate_window": nanos(self.config.window(policy)),
            "allow_direct": true, "deny_delete": true, "deny_purge": true, "allow_rollup_hdrs": false,
            "allow_msg_ttl": false,
            "sealed": false, "no_ack": false, "mirror": null, "sources": null, "subject_transform": null,
            "republish": {"src": log, "dest": live},
            "num_replicas": replicas,
        }))
    }

    /// On the servers that the configuration names, if it does. Copies that are elsewhere move there.
    fn placed(&self, mut settings: Value) -> Value {
        if !self.config.placement_tags.is_empty() {
            settings["placement"] = json!({"tags": self.config.placement_tags});
        }
        settings
    }

    /// The settings of a stream as they are; `None` only if the leader of all streams says so.
    pub(super) async fn settings(
        &self,
        connection: &Connection,
        name: &str,
    ) -> Result<Option<Map<String, Value>>, SetupError> {
        match connection.api.call::<RawInfo>(&format!("STREAM.INFO.{name}"), &Value::Null).await {
            Ok(info) => Ok(Some(info.config)),
            Err(error) if error.is(code::STREAM_NOT_FOUND) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn create(&self, connection: &Connection, want: &Value) -> Result<(), SetupError> {
        let name = want["name"].as_str().expect("settings have a name");
        let mut asked = want.clone();
        if let (Some(_), Some(cluster)) = (&self.config.cluster, &connection.server.cluster) {
            // Another cluster behind a gateway must not get what does not fit into this one.
            asked["placement"]["cluster"] = json!(cluster);
        }
        match connection.api.call::<RawInfo>(&format!("STREAM.CREATE.{name}"), &asked).await {
            Ok(_) => {
                tracing::info!(stream = name, replicas = want["num_replicas"].as_u64(), "created");
                Ok(())
            }
            // Another node was faster, perhaps with other limits: compare like any existing one.
            Err(error) if error.is(code::NAME_IN_USE) => Ok(()),
            Err(error) if error.is(code::SUBJECTS_OVERLAP) => Err(SetupError::fatal(format!(
                "subjects {} belong to another JetStream stream: choose another nats_prefix or remove that stream",
                want["subjects"]
            ))),
            Err(error) if is_too_few(&error) => Err(SetupError::TooFewServers(error.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    /// A stream whose settings are all ours to decide.
    async fn ensure(&self, connection: &Connection, want: &Value) -> Result<(), SetupError> {
        let name = want["name"].as_str().expect("settings have a name");
        let have = match self.settings(connection, name).await? {
            Some(have) => have,
            None => self.make(connection, want).await?,
        };
        self.update(connection, have, want, self.config.replicas != 0).await
    }

    /// Makes a stream that is not there. Answers with the settings that it has: another node may have been faster.
    async fn make(&self, connection: &Connection, want: &Value) -> Result<Map<String, Value>, SetupError> {
        self.create(connection, want).await?;
        let name = want["name"].as_str().expect("settings have a name");
        let have = self.settings(connection, name).await?;
        have.ok_or_else(|| SetupError::retry(format!("{name} is not visible yet")))
    }

    /// Changes what differs, after checking that all of it may be changed.
    pub(super) async fn update(
        &self,
        connection: &Connection,
        mut have: Map<String, Value>,
        want: &Value,
        lower: bool,
    ) -> Result<(), SetupError> {
        let name = want["name"].as_str().expect("settings have a name").to_owned();
        let mut changes = differences(&have, want);
        // Copies that nobody named are only ever added.
        changes
            .retain(|(setting, found, wanted)| setting != "num_replicas" || lower || found.as_u64() < wanted.as_u64());
        let fixed = |setting: &str| {
            let is_share = setting == "max_bytes" && name == bucket_stream(&self.names.sessions_bucket());
            FIXED.contains(&setting) && !is_share
        };
        if let Some((setting, found, wanted)) = changes.iter().find(|(setting, ..)| fixed(setting)) {
            return Err(misfit(&name, setting, found, wanted));
        }
        if changes.is_empty() {
            return Ok(());
        }
        for (setting, found, wanted) in changes {
            tracing::info!(stream = name, setting, %found, %wanted, "updating in place");
            match (have.get_mut(&setting), wanted) {
                (Some(Value::Object(found)), Value::Object(wanted)) => found.extend(wanted),
                (_, wanted) => {
                    have.insert(setting, wanted);
                }
            }
        }
        match connection.api.call::<RawInfo>(&format!("STREAM.UPDATE.{name}"), &have).await {
            Ok(_) => Ok(()),
            Err(error) if is_too_few(&error) => Err(SetupError::TooFewServers(error.to_string())),
            Err(ApiError::Refused { description, .. }) => {
                Err(SetupError::fatal(format!("JetStream stream {name} cannot be updated: {description}")))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Brings an existing log to its policy, as far as that is allowed.
    pub(super) async fn adjust(
        &self,
        connection: &Connection,
        kind: Kind<'_>,
        have: Map<String, Value>,
        mut want: Value,
        may: May,
    ) -> Result<(), SetupError> {
        let settings = want.as_object_mut().expect("settings are an object");
        settings.remove("first_seq");
        settings.remove("metadata");
        let Kind::Log(wanted) = kind else {
            return self.update(connection, have, &want, self.config.replicas != 0).await;
        };
        let lower = wanted.replicas != 0 || self.config.replicas != 0;
        let name = have["name"].as_str().unwrap_or_default().to_owned();
        let meta = |field: &str| have.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_str);
        let number = |field: &str| meta(field).and_then(|text| text.parse::<u64>().ok());
        if number(META_FORMAT).unwrap_or(0) > u64::from(FORMAT) {
            return Err(SetupError::fatal(format!("{name} was written by a newer version: upgrade this node")));
        }
        let interrupted = number(META_RAISED_AT) == Some(RAISING);
        if may == May::Finish && !interrupted {
            return Ok(());
        }
        let policy = ["max_msgs_per_subject", "max_age"];
        let (have_limit, have_age) = (have[policy[0]].as_i64(), have[policy[1]].as_u64().unwrap_or(0));
        let (want_limit, want_age) = (want[policy[0]].as_i64(), want[policy[1]].as_u64().unwrap_or(0));
        let mut changed = have_limit != want_limit || have_age != want_age;
        if changed && may != May::ChangeLimits {
            // Left behind by a change that was broken off. Nodes that run go by what the log says.
            tracing::warn!(
                log = name,
                policy = &*wanted.name,
                "the log's limits are not its policy's: run carrick policy apply"
            );
            for setting in ["max_msgs_per_subject", "max_age", "duplicate_window"] {
                want[setting] = have.get(setting).cloned().unwrap_or(Value::Null);
            }
            changed = false;
        }
        // 0 and -1 are unlimited to the server.
        let raised = want_limit.filter(|l| *l > 0) > have_limit.filter(|l| *l > 0) && have_limit.is_some_and(|l| l > 0)
            || want_age > have_age && have_age > 0;
        if changed {
            let revision = number(META_REVISION).unwrap_or(0) + 1;
            let raised_at = if raised { RAISING } else { number(META_RAISED_AT).unwrap_or(0) };
            want["metadata"] = json!({
                META_FORMAT: FORMAT_PLAIN.to_string(),
                META_REVISION: revision.to_string(),
                META_RAISED_AT: raised_at.to_string(),
            });
        }
        self.update(connection, have, &want, lower).await?;
        if (changed && raised) || interrupted {
            // Read after the rise took effect: everything up to here lived under the lower limit.
            let info: StreamInfo = connection.api.info(&name).await?;
            let have = self.settings(connection, &name).await?.unwrap_or_default();
            let done = json!({"name": name, "metadata": {META_RAISED_AT: info.state.last_seq.to_string()}});
            self.update(connection, have, &done, lower).await?;
        }
        Ok(())
    }

    /// What no update can change is said before anything is changed.
    pub(super) async fn check_storage(&self, connection: &Connection, table: &Table) -> Result<(), SetupError> {
        for policy in table.policies().iter().filter(|policy| policy.keeps()) {
            let record = read_record(connection, &self.names.meta_bucket(), &log_key(&policy.name)).await?;
            let Some((record, _)) = record else { continue };
            let Some(have) = self.settings(connection, &record.log).await? else { continue };
            let found = have.get("storage").cloned().unwrap_or(Value::Null);
            if found != policy.storage.name() {
                return Err(misfit(&record.log, "storage", &found, &json!(policy.storage.name())));
            }
        }
        Ok(())
    }
}

/// A setting that must be changed by hand, if at all.
fn misfit(name: &str, setting: &str, found: &Value, wanted: &Value) -> SetupError {
    let way_out = match setting {
        "storage" => {
            "a log cannot change its storage. Keep it, give the policy another name (its streams move to a new log and \
             their clients are told that history is lost), or remove the stream and with it what it holds"
        }
        _ => "change it by hand, remove the stream, or choose another nats_prefix",
    };
    SetupError::fatal(format!("JetStream stream {name} has {setting} = {found}, expected {wanted}: {way_out}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_settings_are_off() {
        let have = json!({"name": "a", "max_age": 5, "metadata": {"x": "1", "_nats.ver": "2"}, "deny_purge": true});
        let have = have.as_object().unwrap();
        let same = json!({"max_age": 5, "sealed": false, "sources": null, "max_consumers": 0, "metadata": {"x": "1"}});
        assert_eq!(differences(have, &same), []);
        let other = json!({"max_age": 6, "deny_purge": false, "metadata": {"x": "2"}});
        let names: Vec<_> = differences(have, &other).into_iter().map(|(name, ..)| name).collect();
        assert_eq!(names, ["deny_purge", "max_age", "metadata"]);
    }
}
