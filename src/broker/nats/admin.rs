//! What an operator does to a store, beside the nodes that run on it or without any: policies and epochs.

use super::config::StartError;
use super::epoch::{log_key, read_record};
use super::generation::Connection;
use super::policies::{Change, differences};
use super::{Core, NatsBrokerConfig, SetupError};
use crate::broker::policy::{Policy, Table};
use crate::broker::{Feed, Over, Overflow, RemoteDisconnect, SessionKey};
use crate::protocol::{Epoch, Message, StreamName};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long somebody else's change may take before we give up.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long JetStream may take to answer.
const READY_PATIENCE: Duration = Duration::from_secs(10);

/// A connection of an operator's.
pub struct Admin {
    core: Arc<Core>,
    connection: Arc<Connection>,
}

/// Why something could not be done. Nothing was changed, unless the text says so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AdminError(pub String);

impl From<SetupError> for AdminError {
    fn from(error: SetupError) -> Self {
        Self(error.to_string())
    }
}

impl From<StartError> for AdminError {
    fn from(error: StartError) -> Self {
        Self(error.0)
    }
}

/// A policy in effect and its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub policy: Policy,
    /// JetStream stream and epoch; `None`: nothing is stored, or not yet.
    pub log: Option<(String, Epoch)>,
    pub messages: u64,
    /// Application streams with a message.
    pub streams: u64,
}

/// A store, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overview {
    /// Number of the table in effect.
    pub revision: u64,
    pub policies: Vec<Shown>,
    /// Logs of policies that are no more: name of the policy, JetStream stream, messages in it.
    pub unused: Vec<(String, String, u64)>,
    /// How the configuration differs; empty: it does not.
    pub differences: Vec<String>,
    pub nodes: Vec<String>,
}

/// Nobody listens.
struct Silence;

impl Feed for Silence {
    fn live(&self, _: &StreamName, _: u64, _: Arc<Message>) {}
    fn transient(&self, _: &StreamName, _: Arc<Message>, _: Overflow) {}
    fn lagged(&self, _: &StreamName) {}
    fn disconnect(&self, _: u64, _: RemoteDisconnect) {}
    fn commands_lost(&self) {}
    fn session_over(&self, _: &SessionKey, _: Over) {}
}

impl Admin {
    /// Connects. `config.node` names the operator among the nodes; it must be no node's name.
    ///
    /// # Errors
    /// The configuration is at fault, or NATS does not answer, or has no store of ours.
    pub async fn connect(config: NatsBrokerConfig) -> Result<Self, AdminError> {
        config.check()?;
        let core = Core::new(config, Arc::new(Silence));
        let connection = Arc::new(core.connect(0, &mut Vec::new()).await?);
        let inbox = connection.subscribe(connection.api.mux.subject()).await.map_err(SetupError::from)?;
        core.tasks.spawn({
            let connection = connection.clone();
            async move { connection.api.mux.run(inbox, &connection.link).await }
        });
        let admin = Self { core, connection };
        let deadline = Instant::now() + READY_PATIENCE;
        // A server that was started just now takes a moment.
        while let Err(error) = admin.connection.api.call::<serde_json::Value>("INFO", &serde_json::Value::Null).await {
            if Instant::now() > deadline {
                admin.close().await;
                return Err(AdminError(format!("JetStream does not answer: {error}")));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(admin)
    }

    /// Ends the connection and its tasks.
    pub async fn close(self) {
        self.connection.link.dead.cancel();
        self.core.tasks.close();
        self.core.tasks.wait().await;
    }

    /// What is in effect, and how the configuration differs.
    pub async fn overview(&self) -> Result<Overview, AdminError> {
        let (core, connection) = (&self.core, &*self.connection);
        let (table, revision) = self.table().await?;
        let mut policies = Vec::new();
        for policy in table.policies() {
            let log = match policy.keeps() {
                true => self.log_of(&policy.name).await?,
                false => None,
            };
            let mut shown = Shown { policy: policy.clone(), log, messages: 0, streams: 0 };
            if let Some((name, _)) = &shown.log {
                (shown.messages, shown.streams) = self.count(name).await?;
            }
            policies.push(shown);
        }
        let mut unused = Vec::new();
        for name in self.recorded_policies().await? {
            if table.by_name(&name).is_some_and(Policy::keeps) {
                continue;
            }
            if let Some((log, _)) = self.log_of(&name).await?
                && core.settings(connection, &log).await?.is_some()
            {
                let (messages, _) = self.count(&log).await?;
                unused.push((name, log, messages));
            }
        }
        let nodes = core.other_nodes(connection).await?.into_iter().map(|lease| lease.node).collect();
        let differences = differences(&table, &core.config.limits.table);
        Ok(Overview { revision, policies, unused, differences, nodes })
    }

    /// Puts the configured policies into effect on all nodes. `None`: they are in effect already.
    pub async fn apply(&self) -> Result<Option<Change>, AdminError> {
        let core = &self.core;
        let want = &core.config.limits.table;
        let (have, _) = self.table().await?;
        if *have == **want && self.agrees(want).await? {
            return Ok(None);
        }
        Ok(Some(self.carried_through(|| core.change_policies(&self.connection, want)).await?))
    }

    /// Tries a change until it is made or cannot be: another one may be under way.
    async fn carried_through<F: Future<Output = Result<Change, SetupError>>>(
        &self,
        change: impl Fn() -> F,
    ) -> Result<Change, SetupError> {
        let deadline = Instant::now() + PATIENCE;
        let outcome = loop {
            match change().await {
                Err(SetupError::Retry(reason)) if Instant::now() < deadline => {
                    tracing::info!(reason, "trying again");
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                outcome => break outcome,
            }
        };
        // So that nobody waits for an answer from us.
        if let Err(error) = self.core.end_lease(&self.connection).await {
            tracing::debug!(%error, "cannot end the lease");
        }
        outcome
    }

    /// Gives the log of a policy a new epoch: positions of its streams become void. Answers with the former and the new
    /// one.
    pub async fn reset_epoch(&self, policy: &str) -> Result<(Epoch, Epoch), AdminError> {
        let (table, _) = self.table().await?;
        if !table.by_name(policy).is_some_and(Policy::keeps) {
            let names: Vec<_> = table.policies().iter().filter(|p| p.keeps()).map(|p| &*p.name).collect();
            return Err(AdminError(format!(
                "no history policy {policy:?} that keeps anything; there are: {}",
                names.join(", ")
            )));
        }
        let Some((log, former)) = self.log_of(policy).await? else {
            return Err(AdminError(format!("the policy {policy:?} has no log yet")));
        };
        let core = &self.core;
        self.carried_through(|| core.renew_epoch(&self.connection, policy)).await?;
        let (record, _) = core.record_of(&self.connection, policy, &log).await?;
        Ok((former, record.epoch.as_str().into()))
    }

    /// The table in effect and its number.
    async fn table(&self) -> Result<(Arc<Table>, u64), AdminError> {
        let bucket = super::config::bucket_stream(&self.core.names.meta_bucket());
        if self.core.settings(&self.connection, &bucket).await?.is_none() {
            return Err(AdminError(format!(
                "there is no store of Carrick's in this NATS ({bucket} is missing): check nats_servers and nats_prefix, \
                 or start a node first"
            )));
        }
        let found = self.core.read_policies(&self.connection).await?;
        let Some((record, _)) = found else {
            return Err(AdminError("the store was made by an earlier version: start a node of this one first".into()));
        };
        Ok((record.table()?, record.revision))
    }

    /// The logs keep what this table says.
    async fn agrees(&self, table: &Table) -> Result<bool, AdminError> {
        for policy in table.policies().iter().filter(|policy| policy.keeps()) {
            let Some((log, _)) = self.log_of(&policy.name).await? else { return Ok(false) };
            let Some(have) = self.core.settings(&self.connection, &log).await? else { return Ok(false) };
            let number = |setting: &str| have.get(setting).and_then(serde_json::Value::as_u64);
            let same = number("max_msgs_per_subject") == Some(policy.limit)
                && number("max_age").map(Duration::from_nanos) == Some(policy.ttl);
            if !same {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn log_of(&self, policy: &str) -> Result<Option<(String, Epoch)>, AdminError> {
        let record = read_record(&self.connection, &self.core.names.meta_bucket(), &log_key(policy)).await?;
        Ok(record.filter(|(record, _)| record.created).map(|(record, _)| (record.log, record.epoch.as_str().into())))
    }

    /// Policies that have, or had, a log.
    async fn recorded_policies(&self) -> Result<BTreeSet<String>, AdminError> {
        let bucket = self.core.names.meta_bucket();
        let subject = |key: &str| super::config::key_subject(&bucket, key);
        let filter = json!({"subjects_filter": subject(&log_key("*"))});
        let info = self.info(&super::config::bucket_stream(&bucket), &filter).await?;
        let names = info.state.subjects.keys().filter_map(|key| key.strip_prefix(&subject(&log_key(""))));
        Ok(names.map(str::to_owned).collect())
    }

    /// Messages and subjects of a log.
    async fn count(&self, log: &str) -> Result<(u64, u64), AdminError> {
        #[derive(Deserialize)]
        struct Counted {
            state: State,
        }
        #[derive(Deserialize)]
        struct State {
            messages: u64,
            #[serde(default)]
            num_subjects: u64,
        }
        let counted: Result<Counted, _> =
            self.connection.api.call(&format!("STREAM.INFO.{log}"), &serde_json::Value::Null).await;
        let state = counted.map_err(SetupError::from)?.state;
        Ok((state.messages, state.num_subjects))
    }

    async fn info(&self, stream: &str, filter: &serde_json::Value) -> Result<super::api::StreamInfo, AdminError> {
        let info = self.connection.api.call(&format!("STREAM.INFO.{stream}"), filter).await;
        Ok(info.map_err(SetupError::from)?)
    }
}
