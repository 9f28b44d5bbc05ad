//! What follows when the store beside this node can have lost what it had acknowledged (see [`crate::nats::mark`]): a new
//! epoch for logs with a single copy, the word of the peers for three.
//!
//! The witness cannot decide that alone: it lies on the same disk and may have gone back together with the log.

use super::config::bucket_stream;
use super::epoch::{log_key, read_record};
use super::generation::Connection;
use super::logs::Found;
use super::{Core, SetupError};
use crate::broker::Table;
use serde_json::{Value, json};

impl Core {
    /// To be called before anything is published, read or delivered. Nothing happens where there is no suspicion.
    pub(super) async fn settle_suspicion(
        &self,
        connection: &Connection,
        table: &Table,
        logs: &[Option<Found>],
        commands: &str,
    ) -> Result<(), SetupError> {
        let Some(mark) = &self.config.store_mark else { return Ok(()) };
        let Some(why) = mark.suspicion() else { return Ok(()) };
        let (mut doubted, mut proven) = (Vec::new(), false);
        for (policy, found) in table.policies().iter().zip(logs) {
            let Some(found) = found else { continue };
            match copies(connection, &found.name).await? {
                Copies::Elsewhere => {}
                Copies::Several if self.is_vouched_for(connection, &policy.name, &found.name).await? => {
                    tracing::info!(
                        log = found.name,
                        why,
                        "this member's store is suspect, but the other members kept the log's past"
                    );
                    proven = true;
                }
                Copies::Several | Copies::OnlyHere => doubted.push((&*policy.name, &*found.name)),
            }
        }
        // First: what follows makes a peer trust this store.
        if !doubted.is_empty() || self.may_lack_commands(connection, commands, proven).await? {
            self.drop_sessions(connection, &why).await?;
        }
        for (policy, log) in doubted {
            self.begin_anew(connection, policy, log, &why).await?;
        }
        let mark = mark.clone();
        let cleared = tokio::task::spawn_blocking(move || mark.clear()).await;
        let cleared = cleared.unwrap_or_else(|panicked| Err(std::io::Error::other(panicked)));
        cleared.map_err(|error| SetupError::retry(format!("cannot note that the suspicion is settled: {error}")))
    }

    /// A peer that has been running all along, or that has begun a new epoch since, remembers at least what this node
    /// remembered. Its mark is then the one that the log is compared with.
    async fn is_vouched_for(&self, connection: &Connection, policy: &str, log: &str) -> Result<bool, SetupError> {
        let record = read_record(connection, &self.names.meta_bucket(), &log_key(policy)).await?;
        let Some((record, _)) = record else { return Ok(false) };
        let own = self.witness(log).get().filter(|mark| mark.log == log && mark.epoch == record.epoch);
        let own = own.map_or(0, |mark| mark.seq);
        let theirs = self.highest_of_peers(connection, &[(log.to_owned(), record.epoch)]).await?.remove(log);
        let Some(theirs) = theirs.filter(|mark| mark.seq >= own) else { return Ok(false) };
        self.witness(log).set(theirs);
        Ok(true)
    }

    /// Remote commands, or the sessions that remember them, may be missing.
    async fn may_lack_commands(
        &self,
        connection: &Connection,
        commands: &str,
        proven: bool,
    ) -> Result<bool, SetupError> {
        let sessions = bucket_stream(&self.names.sessions_bucket());
        let streams = if self.config.sessions() { vec![commands, &sessions] } else { vec![commands] };
        for stream in streams {
            match copies(connection, stream).await? {
                Copies::OnlyHere => return Ok(true),
                Copies::Several if !proven => return Ok(true),
                Copies::Several | Copies::Elsewhere => {}
            }
        }
        Ok(false)
    }

    /// The commands that revoked them may be among what is lost.
    async fn drop_sessions(&self, connection: &Connection, why: &str) -> Result<(), SetupError> {
        if !self.config.sessions() {
            return Ok(());
        }
        let bucket = bucket_stream(&self.names.sessions_bucket());
        connection.api.call::<Value>(&format!("STREAM.PURGE.{bucket}"), &json!({})).await?;
        tracing::error!(why, "the store may have lost remote disconnects: saved sessions are dropped");
        Ok(())
    }

    /// Nobody can prove the past: positions become void.
    async fn begin_anew(&self, connection: &Connection, policy: &str, log: &str, why: &str) -> Result<(), SetupError> {
        let (record, revision) = self.record_of(connection, policy, log).await?;
        tracing::error!(
            log,
            old_epoch = record.epoch,
            why,
            "the store may have lost its newest messages although they were acknowledged: the epoch changes; \
             --enats_sync=always or three copies avoid this"
        );
        // If another node was faster, that change came after this start, and so after the crash.
        self.change_epoch(connection, policy, &record, revision).await
    }
}

/// Where the copies of a stream are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copies {
    OnlyHere,
    Several,
    /// A single copy, on another member.
    Elsewhere,
}

async fn copies(connection: &Connection, stream: &str) -> Result<Copies, SetupError> {
    let info: Value = connection.api.call(&format!("STREAM.INFO.{stream}"), &Value::Null).await?;
    if info["config"]["num_replicas"].as_u64().unwrap_or(1) > 1 {
        return Ok(Copies::Several);
    }
    // A server that is alone does not say that it leads.
    let here = info["cluster"]["leader"].as_str().is_none_or(|name| name == connection.server.server_name);
    Ok(if here { Copies::OnlyHere } else { Copies::Elsewhere })
}
