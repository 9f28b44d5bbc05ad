//! What follows when the store beside this node can have lost what it had acknowledged (see [`crate::nats::mark`]): a new
//! epoch for a single copy, the word of the peers for three.
//!
//! The witness cannot decide that alone: it lies on the same disk and may have gone back together with the log.

use super::config::bucket_stream;
use super::epoch::{LOG_KEY, LogRecord, read_record};
use super::generation::Connection;
use super::witness::Mark;
use super::{Core, SetupError};
use serde_json::{Value, json};

impl Core {
    /// To be called before anything is published, read or delivered. Nothing happens where there is no suspicion.
    pub(super) async fn settle_suspicion(
        &self,
        connection: &Connection,
        log: &str,
        commands: &str,
    ) -> Result<(), SetupError> {
        let Some(mark) = &self.config.store_mark else { return Ok(()) };
        let Some(why) = mark.suspicion() else { return Ok(()) };
        let streams = [log, commands, &bucket_stream(&self.names.sessions_bucket())].map(str::to_owned);
        match self.copies(connection, &streams).await? {
            Copies::Elsewhere => {
                tracing::info!(why, "this member's store is suspect, but keeps the only copy of nothing")
            }
            Copies::Several if self.is_vouched_for(connection, log).await? => {
                tracing::info!(why, "this member's store is suspect, but the other members kept the log's past");
            }
            Copies::Several | Copies::OnlyHere => self.begin_anew(connection, log, &why).await?,
        }
        let mark = mark.clone();
        let cleared = tokio::task::spawn_blocking(move || mark.clear()).await;
        let cleared = cleared.unwrap_or_else(|panicked| Err(std::io::Error::other(panicked)));
        cleared.map_err(|error| SetupError::retry(format!("cannot note that the suspicion is settled: {error}")))
    }

    async fn copies(&self, connection: &Connection, streams: &[String]) -> Result<Copies, SetupError> {
        let mut found = Copies::Elsewhere;
        for stream in streams.iter().filter(|name| !name.is_empty()) {
            if !self.config.sessions() && *stream == bucket_stream(&self.names.sessions_bucket()) {
                continue;
            }
            let info: Value = connection.api.call(&format!("STREAM.INFO.{stream}"), &Value::Null).await?;
            let several = info["config"]["num_replicas"].as_u64().unwrap_or(1) > 1;
            // A single server does not say that it leads.
            let here = info["cluster"]["leader"].as_str().is_none_or(|name| name == connection.server.server_name);
            match (several, here) {
                (true, _) => found = Copies::Several,
                (false, true) => return Ok(Copies::OnlyHere),
                (false, false) => {}
            }
        }
        Ok(found)
    }

    /// A peer that has been running all along, or that has begun a new epoch since, remembers at least what this node
    /// remembered. Its mark is then the one that the log is compared with.
    async fn is_vouched_for(&self, connection: &Connection, log: &str) -> Result<bool, SetupError> {
        let Some((record, _)) = read_record(connection, &self.names.meta_bucket(), LOG_KEY).await? else {
            return Ok(false);
        };
        let fits = |mark: &Mark| mark.log == log && mark.epoch == record.epoch;
        let own = self.witness.get().filter(fits).map_or(0, |mark| mark.seq);
        let theirs = self.highest_of_peers(connection, fits).await?.filter(|mark| mark.seq >= own);
        match theirs {
            Some(mark) => {
                self.witness.set(mark);
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Nobody can prove the past: saved sessions go, because the commands that revoked them may be among what is lost,
    /// and positions become void.
    async fn begin_anew(&self, connection: &Connection, log: &str, why: &str) -> Result<(), SetupError> {
        if self.config.sessions() {
            let bucket = bucket_stream(&self.names.sessions_bucket());
            connection.api.call::<Value>(&format!("STREAM.PURGE.{bucket}"), &json!({})).await?;
        }
        if log.is_empty() {
            tracing::error!(why, "the store may have lost its newest entries: saved sessions are dropped");
            return Ok(());
        }
        let (record, revision) = self.record_of(connection, log).await?;
        let LogRecord { epoch, .. } = &record;
        tracing::error!(
            log,
            old_epoch = epoch,
            why,
            "the store may have lost its newest messages although they were acknowledged: the epoch changes and saved \
             sessions are dropped; --enats_sync=always or three copies avoid this"
        );
        // If another node was faster, that change came after this start, and so after the crash.
        self.change_epoch(connection, &record, revision).await
    }
}

/// Where the copies of what we keep are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copies {
    /// Something is kept here only.
    OnlyHere,
    Several,
    /// Single copies, none of them here.
    Elsewhere,
}
