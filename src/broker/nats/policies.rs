//! The history policies in effect: a record in the meta bucket that all nodes follow, changed in two steps.
//!
//! Whoever changes them first *proposes* the new table. Running nodes prepare: they count messages as gone as soon as
//! either table says so, hold back publications on streams that will move to another log and on logs that will get a new
//! epoch, wait until none is under way any more, and say so in their leases. Only then the logs are changed and the table is put into effect. So no message is
//! stored where nobody looks for it. A proposal whose author is gone is withdrawn by whoever notices; compare-and-set
//! decides between the two.

use super::api::code;
use super::config::{bucket_stream, key_subject};
use super::epoch::{log_key, read_record};
use super::generation::Connection;
use super::layout::May;
use super::logs::{Next, Rules};
use super::{Core, SetupError};
use crate::broker::policy::{DEFAULT, Policy, Storage, Table};

use async_nats::{HeaderMap, header};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// Key of the record in the meta bucket.
pub(super) const POLICIES_KEY: &str = "policies";
/// Version of the record; a newer one is refused.
const FORMAT: u32 = 1;
/// Longer than the lease of a node that has died.
const ANSWER_PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    name: String,
    pattern: String,
    limit: u64,
    ttl_ms: u64,
    #[serde(default)]
    storage: Storage,
    #[serde(default)]
    replicas: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    format: u32,
    /// Counts the changes.
    pub revision: u64,
    /// In the order in which they are tried, the default one last.
    policies: Vec<Row>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next: Option<Proposal>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Proposal {
    policies: Vec<Row>,
    /// Policies whose log gets a new epoch, whatever else changes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    renew: Vec<String>,
    /// Lease of its author.
    by: String,
}

fn rows(table: &Table) -> Vec<Row> {
    let row = |policy: &Policy| Row {
        name: policy.name.to_string(),
        pattern: policy.pattern.as_str().into(),
        limit: policy.limit,
        ttl_ms: u64::try_from(policy.ttl.as_millis()).unwrap_or(u64::MAX),
        storage: policy.storage,
        replicas: policy.replicas,
    };
    table.policies().iter().map(row).collect()
}

fn table(rows: &[Row]) -> Result<Arc<Table>, SetupError> {
    let unreadable = || SetupError::fatal("unreadable history policies in the meta bucket: upgrade this node");
    let policy = |row: &Row| {
        Ok::<_, SetupError>(Policy {
            name: row.name.as_str().into(),
            pattern: row.pattern.parse().map_err(|_| unreadable())?,
            limit: row.limit,
            ttl: Duration::from_millis(row.ttl_ms),
            storage: row.storage,
            replicas: row.replicas,
        })
    };
    let (last, explicit) = rows.split_last().filter(|(last, _)| last.name == DEFAULT).ok_or_else(unreadable)?;
    let explicit = explicit.iter().map(policy).collect::<Result<_, _>>()?;
    Ok(Table::new(explicit, last.limit, Duration::from_millis(last.ttl_ms)))
}

impl Record {
    pub fn table(&self) -> Result<Arc<Table>, SetupError> {
        table(&self.policies)
    }
}

/// The same for equal tables.
pub(super) fn fingerprint(table: &Table) -> String {
    super::token::hash_hex(&json!(rows(table)).to_string())[..16].into()
}

/// What became of a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// How the former table differed.
    pub differences: Vec<String>,
    /// Number of the table that holds now.
    pub revision: u64,
    /// Policies whose log got a new epoch, because streams come (back) to it.
    pub new_epochs: Vec<String>,
}

/// One policy, for people.
pub(super) fn describe(policy: &Policy) -> String {
    let Policy { name, pattern, limit, ttl, storage, replicas } = policy;
    if !policy.keeps() {
        return format!("{name} ({pattern}) keeps nothing");
    }
    let mut text = format!("{name} ({pattern}) keeps {limit} messages for {} s", ttl.as_secs_f64());
    if *storage != Storage::File {
        text += &format!(" in {}", storage.name());
    }
    if *replicas > 0 {
        text += &format!(", {replicas} copies");
    }
    text
}

/// How two tables differ, one line for each policy.
pub(super) fn differences(have: &Table, want: &Table) -> Vec<String> {
    let mut lines = Vec::new();
    for policy in have.policies() {
        match want.by_name(&policy.name) {
            Some(wanted) if wanted == policy => {}
            Some(wanted) => {
                lines.push(format!("the store's policy {}; configured: {}", describe(policy), describe(wanted)));
            }
            None => lines.push(format!("the store's policy {}; not configured", describe(policy))),
        }
    }
    let added = want.policies().iter().filter(|policy| have.by_name(&policy.name).is_none());
    lines.extend(added.map(|policy| format!("configured: {}; the store has no such policy", describe(policy))));
    if lines.is_empty() && have != want {
        lines.push("the policies stand in another order".into());
    }
    lines
}

impl Core {
    /// The record and its sequence, from the leader.
    pub(super) async fn read_policies(&self, connection: &Connection) -> Result<Option<(Record, u64)>, SetupError> {
        let bucket = self.names.meta_bucket();
        let Some((text, sequence)) = connection.api.value(&bucket, POLICIES_KEY).await? else { return Ok(None) };
        let unreadable = |why: String| SetupError::fatal(format!("unreadable history policies in {bucket}: {why}"));
        let record: Record = serde_json::from_slice(&text).map_err(|error| unreadable(error.to_string()))?;
        if record.format > FORMAT {
            return Err(unreadable("a newer version wrote them, upgrade this node".into()));
        }
        Ok(Some((record, sequence)))
    }

    /// Writes the record if it is still at `sequence` (0: absent). `None`: somebody else was faster.
    async fn write_policies(
        &self,
        connection: &Connection,
        record: &Record,
        sequence: u64,
    ) -> Result<Option<u64>, SetupError> {
        let bucket = self.names.meta_bucket();
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, sequence.to_string());
        headers.insert(header::NATS_EXPECTED_STREAM, bucket_stream(&bucket));
        let text = Bytes::from(serde_json::to_vec(record).expect("a record is plain JSON"));
        let subject = key_subject(&bucket, POLICIES_KEY);
        match connection.api.publish(subject, headers, text, super::api::ATTEMPT).await {
            Ok(ack) => Ok(Some(ack.seq)),
            Err(error) if error.is(code::WRONG_LAST_SEQUENCE) || error.is(code::WRONG_LAST_SEQUENCE_CONSTANT) => {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The policies in effect, brought to the configured ones where this node may do that.
    pub(super) async fn settle_policies(&self, connection: &Connection) -> Result<Arc<Table>, SetupError> {
        let configured = &self.config.limits.table;
        // A few rounds: each ends with this node's or another's progress.
        for _ in 0..5 {
            let Some((record, sequence)) = self.read_policies(connection).await? else {
                let first = match self.unrecorded(connection).await? {
                    // The bucket was lost while this node was running.
                    _ if self.is_settled() => rows(&self.rules().table),
                    Some(table) => rows(&table),
                    None => rows(configured),
                };
                let record = Record { format: FORMAT, revision: 1, policies: first, next: None };
                // Somebody may have deleted it by hand, which leaves a marker.
                let marker = connection.api.entry(&self.names.meta_bucket(), POLICIES_KEY).await?;
                self.write_policies(connection, &record, marker.map_or(0, |marker| marker.seq)).await?;
                continue;
            };
            if record.next.is_some() {
                if self.withdraw_if_abandoned(connection, &record, sequence).await? {
                    continue;
                }
                // This node publishes nothing yet.
                self.prepared.store(sequence, Ordering::Relaxed);
                self.renew_lease(connection).await?;
                return Err(SetupError::retry("the history policies are being changed"));
            }
            let table = record.table()?;
            if self.is_settled() || table == *configured {
                return Ok(table);
            }
            let ours = fingerprint(configured);
            let others = self.other_nodes(connection).await?;
            let others: Vec<_> = others.into_iter().filter(|lease| lease.table.as_ref() != Some(&ours)).collect();
            if !others.is_empty() {
                let others: Vec<_> = others.into_iter().map(|lease| lease.node).collect();
                return Err(SetupError::fatal(format!(
                    "history policies differ from the store's, and other nodes are running ({}): {}. Use the store's \
                     policies, or change them for all nodes with `carrick policy apply`, or stop the other nodes first",
                    others.join(", "),
                    differences(&table, configured).join("; "),
                )));
            }
            for difference in differences(&table, configured) {
                tracing::info!(difference, "changing the history policies");
            }
            self.change_policies(connection, configured).await?;
        }
        Err(SetupError::retry("other nodes keep changing the history policies"))
    }

    /// The table of a store from before there was a record: its one log.
    async fn unrecorded(&self, connection: &Connection) -> Result<Option<Arc<Table>>, SetupError> {
        let record = read_record(connection, &self.names.meta_bucket(), &log_key(DEFAULT)).await?;
        let Some((record, _)) = record else { return Ok(None) };
        let Some(have) = self.settings(connection, &record.log).await? else { return Ok(None) };
        let number = |setting: &str| have.get(setting).and_then(serde_json::Value::as_u64).filter(|n| *n > 0);
        let (Some(limit), Some(age)) = (number("max_msgs_per_subject"), number("max_age")) else { return Ok(None) };
        Ok(Some(Table::new(Vec::new(), limit, Duration::from_nanos(age))))
    }

    /// Puts another table into effect, with all running nodes. Changes nothing if it is in effect already, but for limits
    /// of logs that do not agree with it.
    ///
    /// # Errors
    /// Fatal: it cannot be done, and why. Retry: somebody else changes the policies at the same time.
    pub(super) async fn change_policies(&self, connection: &Connection, want: &Table) -> Result<Change, SetupError> {
        self.change(connection, want, &[]).await
    }

    /// Gives the log of a policy a new epoch, with all running nodes: none of them answers with the former one afterwards.
    pub(super) async fn renew_epoch(&self, connection: &Connection, policy: &str) -> Result<Change, SetupError> {
        let Some((record, _)) = self.read_policies(connection).await? else {
            return Err(SetupError::fatal("the store has no history policies"));
        };
        self.change(connection, &*record.table()?, &[policy.to_owned()]).await
    }

    async fn change(&self, connection: &Connection, want: &Table, renew: &[String]) -> Result<Change, SetupError> {
        self.check_storage(connection, want).await?;
        let Some((record, sequence)) = self.read_policies(connection).await? else {
            return Err(SetupError::fatal(
                "no node has been started here yet: the first one brings its policies along",
            ));
        };
        if record.next.is_some() {
            let withdrawn = self.withdraw_if_abandoned(connection, &record, sequence).await?;
            let reason = if withdrawn {
                "a change that was broken off is withdrawn first"
            } else {
                "another change is under way"
            };
            return Err(SetupError::retry(reason));
        }
        let have = record.table()?;
        let next = Some(Proposal { policies: rows(want), renew: renew.to_vec(), by: self.lease_key() });
        let proposed = Record { next, ..record.clone() };
        let Some(proposal) = self.write_policies(connection, &proposed, sequence).await? else {
            return Err(SetupError::retry("somebody else is changing the history policies"));
        };
        let outcome = async {
            self.until_prepared(connection, proposal).await?;
            self.carry_out(connection, &have, want, renew).await
        };
        let new_epochs = match outcome.await {
            Ok(new_epochs) => new_epochs,
            Err(error) => {
                let former = Record { next: None, ..record };
                if let Err(error) = self.write_policies(connection, &former, proposal).await {
                    tracing::warn!(%error, "cannot withdraw the proposed history policies");
                }
                return Err(error);
            }
        };
        let revision = if *have == *want { record.revision } else { record.revision + 1 };
        let done = Record { format: FORMAT, revision, policies: rows(want), next: None };
        match self.write_policies(connection, &done, proposal).await? {
            Some(_) => Ok(Change { differences: differences(&have, want), revision, new_epochs }),
            None => Err(SetupError::retry("the change of the history policies was withdrawn meanwhile")),
        }
    }

    /// Waits for all running nodes.
    async fn until_prepared(&self, connection: &Connection, proposal: u64) -> Result<(), SetupError> {
        let deadline = Instant::now() + ANSWER_PATIENCE;
        let mut renewed: Option<Instant> = None;
        loop {
            if renewed.is_none_or(|at| at.elapsed() > Duration::from_secs(2)) {
                self.renew_lease(connection).await?;
                renewed = Some(Instant::now());
            }
            let others = self.other_nodes(connection).await?;
            let missing: Vec<_> = others.into_iter().filter(|lease| lease.prepared != proposal).collect();
            if missing.is_empty() {
                return Ok(());
            }
            // Nodes of an earlier version say nothing of policies, and never will.
            if Instant::now() > deadline || missing.iter().any(|lease| lease.table.is_none()) {
                let names: Vec<_> = missing.into_iter().map(|lease| lease.node).collect();
                return Err(SetupError::fatal(format!(
                    "nothing was changed: {} cannot get ready for other history policies. Upgrade nodes of an earlier \
                     version, or stop them",
                    names.join(", ")
                )));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Everything is ready for the new table: logs are created and changed, and those that may hold stale positions get a
    /// new epoch. Answers with the policies of these.
    async fn carry_out(
        &self,
        connection: &Connection,
        have: &Table,
        want: &Table,
        renew: &[String],
    ) -> Result<Vec<String>, SetupError> {
        let mut new_epochs = Vec::new();
        self.mark_format(connection, want).await?;
        let is_renewed =
            |policy: &&Policy| want.may_gain(have, &policy.name) || renew.iter().any(|r| **r == *policy.name);
        for policy in want.policies().iter().filter(is_renewed) {
            let record = read_record(connection, &self.names.meta_bucket(), &log_key(&policy.name)).await?;
            if let Some((record, revision)) = record {
                self.change_epoch(connection, &policy.name, &record, revision).await?;
                new_epochs.push(policy.name.to_string());
            }
        }
        self.find_logs(connection, want, May::ChangeLimits).await?;
        Ok(new_epochs)
    }

    /// Withdraws a proposal whose author's lease has run out.
    async fn withdraw_if_abandoned(
        &self,
        connection: &Connection,
        record: &Record,
        sequence: u64,
    ) -> Result<bool, SetupError> {
        let Some(proposal) = &record.next else { return Ok(false) };
        // Our own is from an earlier life or attempt: this one has not proposed anything.
        let abandoned = proposal.by == self.lease_key()
            || connection.api.value(&self.names.meta_bucket(), &proposal.by).await?.is_none();
        if abandoned {
            let former = Record { next: None, ..record.clone() };
            if self.write_policies(connection, &former, sequence).await?.is_some() {
                tracing::warn!("a change of the history policies was broken off: the former ones stay in effect");
            }
        }
        Ok(abandoned)
    }

    /// Looks whether this node still follows the policies in effect, and prepares for proposed ones.
    pub(super) async fn follow_policies(
        &self,
        connection: &Connection,
        table_in_use: &Arc<Table>,
    ) -> Result<(), SetupError> {
        let Some((record, sequence)) = self.read_policies(connection).await? else {
            return Err(SetupError::LogGone("the history policies are gone from the meta bucket".into()));
        };
        if *record.table()? != **table_in_use {
            return Err(SetupError::PoliciesChanged);
        }
        let prepared_for = self.rules().next.as_ref().map(|next| next.proposal);
        match &record.next {
            None if prepared_for.is_none() => Ok(()),
            // Withdrawn, or in effect with other limits.
            None => Err(SetupError::PoliciesChanged),
            Some(_) if prepared_for == Some(sequence) => {
                if self.withdraw_if_abandoned(connection, &record, sequence).await? {
                    return Err(SetupError::PoliciesChanged);
                }
                Ok(())
            }
            Some(proposal) => {
                let next = table(&proposal.policies)?;
                self.shorten_lives(&next);
                let next = Some(Next { table: next, renew: proposal.renew.clone(), proposal: sequence });
                let former = self.set_rules(Rules { table: table_in_use.clone(), next });
                // Attempts to publish take two seconds at most.
                while Arc::strong_count(&former) > 1 && !connection.link.dead.is_cancelled() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                self.prepared.store(sequence, Ordering::Relaxed);
                self.renew_lease(connection).await
            }
        }
    }
}
