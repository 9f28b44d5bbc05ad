//! Which log is ours, and which life of it: the record in the meta bucket, changed by compare-and-set only.

use super::api::code;
use super::config::{bucket_stream, key_subject};
use super::generation::Connection;
use super::witness::{Comparison, Mark, Witness};
use super::{Core, SetupError, headers};
use crate::protocol::Epoch;
use async_nats::{HeaderMap, header};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::time::Duration;

/// Key of a log's record in the meta bucket.
pub(super) fn log_key(policy: &str) -> String {
    format!("log.{policy}")
}

/// Key of the command log's record.
pub(super) const COMMANDS_KEY: &str = "ctl";
/// Newest version of what we store that is understood; a newer one is refused.
pub(super) const FORMAT: u32 = 2;
/// A store with the default policy alone, as it has been from the beginning.
pub(super) const FORMAT_PLAIN: u32 = 1;
/// There are further policies: a version that knows of none would put messages into the wrong log.
pub(super) const FORMAT_POLICIES: u32 = 2;

/// What the meta bucket says about a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LogRecord {
    pub format: u32,
    /// The JetStream stream, with its creation id.
    pub log: String,
    pub epoch: String,
    /// The stream exists, or existed. False between the record and the stream's creation: then its absence is no loss.
    pub created: bool,
}

impl LogRecord {
    /// A log that is about to be created.
    pub fn fresh(log: String) -> Self {
        Self { format: FORMAT_PLAIN, log, epoch: Epoch::random().as_str().into(), created: false }
    }
}

/// The record and its revision from the bucket's leader, if there is one.
pub(super) async fn read_record(
    connection: &Connection,
    bucket: &str,
    key: &str,
) -> Result<Option<(LogRecord, u64)>, SetupError> {
    let Some((text, revision)) = connection.api.value(bucket, key).await? else { return Ok(None) };
    let record: LogRecord = serde_json::from_slice(&text)
        .map_err(|e| SetupError::fatal(format!("unreadable record {key} in bucket {bucket}: {e}")))?;
    if record.format > FORMAT {
        return Err(SetupError::fatal(format!(
            "bucket {bucket} was written by a newer version (format {}, known is {FORMAT}): upgrade this node",
            record.format
        )));
    }
    Ok(Some((record, revision)))
}

/// Writes the record if it is still at `revision` (0: absent). `None`: somebody else was faster.
pub(super) async fn write_record(
    connection: &Connection,
    bucket: &str,
    key: &str,
    record: &LogRecord,
    revision: u64,
) -> Result<Option<u64>, SetupError> {
    let mut headers = HeaderMap::new();
    headers.insert(header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, revision.to_string());
    headers.insert(header::NATS_EXPECTED_STREAM, bucket_stream(bucket).as_str());
    let text = Bytes::from(serde_json::to_vec(record).expect("a record is plain JSON"));
    match connection.api.publish(key_subject(bucket, key), headers, text, super::api::ATTEMPT).await {
        Ok(ack) => Ok(Some(ack.seq)),
        Err(error) if error.is(code::WRONG_LAST_SEQUENCE) || error.is(code::WRONG_LAST_SEQUENCE_CONSTANT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Core {
    /// Compares the log with what this node remembers, through the leader, and changes the epoch if the log's past is
    /// not what it was. Answers with the epoch that holds from now on.
    pub(super) async fn verify(
        &self,
        connection: &Connection,
        policy: &str,
        log: &str,
        witness: &Witness,
    ) -> Result<Epoch, SetupError> {
        // A new leader may still be applying what it has agreed to: only what stays wrong is wrong.
        let (tries, pause) = if connection.clustered() { (6, 400) } else { (3, 200) };
        for attempt in 1.. {
            let (record, revision) = self.record_of(connection, policy, log).await?;
            // The mark first: it only grows, so the log read afterwards must reach it.
            let mark = witness.get().filter(|m| m.log == log && m.epoch == record.epoch);
            let info = connection.api.info(log).await?;
            let Some(mark) = mark else {
                let newest = match info.state.messages {
                    0 => None,
                    _ => connection.api.message(log, &json!({"seq": info.state.last_seq})).await?,
                };
                witness.set(Mark::of(log, &record.epoch, info.state.last_seq, newest.as_ref()));
                return Ok(Epoch::from(record.epoch.as_str()));
            };
            let kept = match mark.seq {
                0 => None,
                seq => connection.api.message(log, &json!({"seq": seq})).await?,
            };
            let Comparison::Regressed(why) = mark.compare(&info, kept.as_ref()) else {
                if info.state.last_seq > mark.seq {
                    remember_newest(connection, witness, log, &record.epoch, info.state.last_seq).await?;
                }
                return Ok(Epoch::from(record.epoch.as_str()));
            };
            if attempt < tries {
                tokio::time::sleep(Duration::from_millis(pause)).await;
                continue;
            }
            tracing::error!(log, old_epoch = record.epoch, why, "the log's past has changed: its epoch changes too");
            self.change_epoch(connection, policy, &record, revision).await?;
        }
        unreachable!("the loop ends by returning")
    }

    /// A new record of a log that has lost its own. The epoch stays if this node remembers it and the log's newest message
    /// was published in it ([`Core::verify`] then compares what is remembered); else it is a new one.
    pub(super) async fn remembered(&self, connection: &Connection, log: String) -> Result<LogRecord, SetupError> {
        let fresh = LogRecord::fresh(log);
        let Some(mark) = self.witness(&fresh.log).get().filter(|mark| mark.log == fresh.log) else { return Ok(fresh) };
        let last = connection.api.info(&fresh.log).await?.state.last_seq;
        if last > 0
            && let Some(newest) = connection.api.message(&fresh.log, &json!({"seq": last})).await?
            && newest.header(headers::EPOCH.as_ref()).as_deref() != Some(mark.epoch.as_str())
        {
            return Ok(fresh);
        }
        Ok(LogRecord { epoch: mark.epoch, ..fresh })
    }

    /// A new epoch for the log; if another node changed it first, that one holds.
    pub(super) async fn change_epoch(
        &self,
        connection: &Connection,
        policy: &str,
        record: &LogRecord,
        revision: u64,
    ) -> Result<(), SetupError> {
        let changed = LogRecord { epoch: Epoch::random().as_str().into(), ..record.clone() };
        if write_record(connection, &self.names.meta_bucket(), &log_key(policy), &changed, revision).await?.is_some() {
            tracing::warn!(log = changed.log, epoch = changed.epoch, "new epoch");
        }
        Ok(())
    }

    /// The log's record, which must still name `log`.
    pub(super) async fn record_of(
        &self,
        connection: &Connection,
        policy: &str,
        log: &str,
    ) -> Result<(LogRecord, u64), SetupError> {
        match read_record(connection, &self.names.meta_bucket(), &log_key(policy)).await? {
            Some((record, revision)) if record.log == log => Ok((record, revision)),
            _ => Err(SetupError::LogGone(format!("{log} is no longer the log"))),
        }
    }
}

/// A node that hears of no stream is a witness too: of the newest message that it has asked for.
async fn remember_newest(
    connection: &Connection,
    witness: &Witness,
    log: &str,
    epoch: &str,
    seq: u64,
) -> Result<(), SetupError> {
    // Gone already: the next look finds another one.
    if let Some(kept) = connection.api.message(log, &json!({"seq": seq})).await? {
        let id = kept.header("Nats-Msg-Id").and_then(|text| headers::parse_id(&text));
        witness.note(log, epoch, seq, id, kept.stored_at());
    }
    Ok(())
}
