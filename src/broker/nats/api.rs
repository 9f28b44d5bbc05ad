//! The JetStream requests we make: stream info, message by sequence, acknowledged publishing.
//!
//! Spoken as JSON over our own multiplexer rather than through the client library's typed context: settings we do not
//! know survive an update, and every request ends with its connection.

use super::clock;
use super::headers;
use super::mux::{Mux, RequestError};
use crate::secret::json_fault;
use async_nats::{HeaderMap, StatusCode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::Duration;

/// Time for one answer before the request is repeated; elections and frozen replicas make repeating worthwhile.
pub(super) const ATTEMPT: Duration = Duration::from_secs(2);

/// Error codes of the JetStream API (`err_code`).
pub(super) mod code {
    pub const STREAM_NOT_FOUND: u32 = 10059;
    pub const MESSAGE_NOT_FOUND: u32 = 10037;
    pub const NOT_ENABLED: u32 = 10076;
    pub const NOT_ENABLED_FOR_ACCOUNT: u32 = 10039;
    pub const NAME_IN_USE: u32 = 10058;
    pub const SUBJECTS_OVERLAP: u32 = 10065;
    pub const WRONG_LAST_SEQUENCE: u32 = 10071;
    pub const WRONG_LAST_SEQUENCE_CONSTANT: u32 = 10164;
    pub const EXPECTED_STREAM: u32 = 10060;
    pub const INSUFFICIENT_RESOURCES: u32 = 10023;
    pub const STORAGE_EXCEEDED: u32 = 10047;
    pub const STORE_FAILED: u32 = 10077;
    pub const SYSTEM_UNAVAILABLE: u32 = 10008;
    pub const NO_SUITABLE_PEERS: u32 = 10005;
    pub const REPLICAS_NOT_SUPPORTED: u32 = 10074;
}

#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum ApiError {
    /// JetStream answered: no.
    #[error("{description} (code {err_code})")]
    Refused { err_code: u32, description: String },
    /// Nobody listens: no such log, no JetStream, or no leader just now. Nothing was done.
    #[error("nobody answers for it (no log, no leader or no JetStream)")]
    NoResponders,
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("unreadable answer: {0}")]
    Unreadable(String),
}

impl ApiError {
    pub fn is(&self, wanted: u32) -> bool {
        matches!(self, Self::Refused { err_code, .. } if *err_code == wanted)
    }
}

#[derive(Deserialize)]
struct Envelope {
    error: Option<Refusal>,
}

#[derive(Clone, Debug, Deserialize)]
struct Refusal {
    #[serde(default)]
    err_code: u32,
    #[serde(default)]
    description: String,
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused { err_code: refusal.err_code, description: refusal.description }
    }
}

/// What we read of a stream's info.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct StreamInfo {
    pub config: StreamConfig,
    pub state: StreamState,
    /// The server's clock.
    #[serde(default)]
    pub ts: String,
    /// Absent on a server without a cluster.
    #[serde(default)]
    pub cluster: Cluster,
}

/// Who has copies of a stream.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Cluster {
    #[serde(default)]
    pub leader: String,
    /// By the leader's clock.
    #[serde(default)]
    pub leader_since: String,
    /// The others beside the leader.
    #[serde(default)]
    pub replicas: Vec<Replica>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Replica {
    /// Nanoseconds since the leader last heard of it; 0: never.
    #[serde(default)]
    pub active: u64,
}

/// A follower waits for this long and longer after its leader's last word before it stands for election (nats-server: 4 s
/// and more). A leader that a majority has answered more recently cannot have been replaced yet.
const LEASE: Duration = Duration::from_secs(3);

impl Cluster {
    /// Whoever answers as the leader is the leader: a majority has followed it a moment ago. One that was cut off or
    /// frozen goes on to call itself so for a while.
    pub fn is_led(&self) -> bool {
        let lease = u64::try_from(LEASE.as_nanos()).unwrap_or(u64::MAX);
        let follow = self.replicas.iter().filter(|replica| (1..lease).contains(&replica.active)).count();
        1 + follow > self.replicas.len().div_ceil(2)
    }
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct StreamConfig {
    #[serde(default)]
    pub max_msgs_per_subject: i64,
    /// Nanoseconds, 0 is unlimited.
    #[serde(default)]
    pub max_age: u64,
    #[serde(default)]
    pub metadata: HashMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct StreamState {
    pub messages: u64,
    pub first_seq: u64,
    pub last_seq: u64,
    /// When the message at `last_seq` was stored, also after it has been removed.
    #[serde(default)]
    pub last_ts: String,
    #[serde(default)]
    pub subjects: HashMap<String, u64>,
}

/// A message as the leader keeps it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Kept {
    pub subject: String,
    pub seq: u64,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
    time: String,
}

impl Kept {
    /// Unix nanoseconds.
    pub fn stored_at(&self) -> u64 {
        clock::parse(&self.time).unwrap_or_default()
    }

    pub fn data(&self) -> Result<Bytes, ApiError> {
        STANDARD.decode(&self.data).map(Bytes::from).map_err(|e| ApiError::Unreadable(e.to_string()))
    }

    /// The last value of a header.
    pub fn header(&self, name: &str) -> Option<String> {
        let block = STANDARD.decode(&self.hdrs).ok()?;
        let block = String::from_utf8_lossy(&block);
        let found = block.lines().filter_map(|line| line.split_once(':')).rfind(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim().to_owned())
    }
}

/// The log's answer to a publication.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Ack {
    #[serde(default)]
    pub stream: String,
    #[serde(default)]
    pub seq: u64,
    #[serde(default)]
    pub duplicate: bool,
    /// Taken out by [`Api::publish`].
    #[serde(default)]
    error: Option<Refusal>,
}

/// JetStream over one connection.
pub(super) struct Api {
    pub mux: Mux,
}

impl Api {
    pub async fn call<T: DeserializeOwned>(&self, what: &str, body: &impl Serialize) -> Result<T, ApiError> {
        let body = serde_json::to_vec(body).expect("requests are plain JSON");
        let body = if body == b"null" { Bytes::new() } else { Bytes::from(body) };
        let answer = self.mux.request(format!("$JS.API.{what}"), HeaderMap::new(), body, ATTEMPT).await?;
        read(&answer)
    }

    pub async fn info(&self, stream: &str) -> Result<StreamInfo, ApiError> {
        self.call(&format!("STREAM.INFO.{stream}"), &Value::Null).await
    }

    /// A stream's state, from a leader that is in touch with the majority.
    pub async fn led(&self, stream: &str, which: &Value) -> Result<StreamInfo, ApiError> {
        let info: StreamInfo = self.call(&format!("STREAM.INFO.{stream}"), which).await?;
        match info.cluster.is_led() {
            true => Ok(info),
            false => Err(ApiError::Unreadable(format!("the leader of {stream} is out of touch with the majority"))),
        }
    }

    /// A message from who calls itself the leader; `None` only if it has none.
    pub async fn message(&self, stream: &str, which: &Value) -> Result<Option<Kept>, ApiError> {
        #[derive(Deserialize)]
        struct Answer {
            message: Kept,
        }
        match self.call::<Answer>(&format!("STREAM.MSG.GET.{stream}"), which).await {
            Ok(answer) => Ok(Some(answer.message)),
            Err(error) if error.is(code::MESSAGE_NOT_FOUND) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A key's newest entry from the bucket's leader, value or marker of a deletion.
    pub async fn entry(&self, bucket: &str, key: &str) -> Result<Option<Kept>, ApiError> {
        let which = json!({"last_by_subj": super::config::key_subject(bucket, key)});
        self.message(&super::config::bucket_stream(bucket), &which).await
    }

    /// A key's newest value from the bucket's leader, with its revision; `None` if it is absent or deleted.
    pub async fn value(&self, bucket: &str, key: &str) -> Result<Option<(Bytes, u64)>, ApiError> {
        match self.entry(bucket, key).await? {
            Some(kept) if is_marker(&kept) => Ok(None),
            Some(kept) => Ok(Some((kept.data()?, kept.seq))),
            None => Ok(None),
        }
    }

    /// Publishes and waits for the acknowledgement.
    pub async fn publish(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Ack, ApiError> {
        let answer = self.mux.request(subject, headers, payload, timeout).await?;
        if answer.status == Some(StatusCode::NO_RESPONDERS) {
            return Err(ApiError::NoResponders);
        }
        let mut ack: Ack = serde_json::from_slice(&answer.payload).map_err(|e| ApiError::Unreadable(json_fault(&e)))?;
        match ack.error.take() {
            Some(refusal) => Err(refusal.into()),
            None if ack.seq == 0 => Err(ApiError::Unreadable("an acknowledgement without a sequence".into())),
            None => Ok(ack),
        }
    }
}

/// A deleted key leaves a marker, its own or the server's at expiry.
pub(super) fn is_marker(kept: &Kept) -> bool {
    kept.header("KV-Operation").is_some() || kept.header("Nats-Marker-Reason").is_some()
}

fn read<T: DeserializeOwned>(answer: &async_nats::Message) -> Result<T, ApiError> {
    if answer.status == Some(StatusCode::NO_RESPONDERS) {
        return Err(ApiError::NoResponders);
    }
    if let Ok(Envelope { error: Some(refusal) }) = serde_json::from_slice(&answer.payload) {
        return Err(refusal.into());
    }
    serde_json::from_slice(&answer.payload).map_err(|e| ApiError::Unreadable(json_fault(&e)))
}

/// Marks a deletion in a bucket.
pub(super) fn marker_headers(life: Duration) -> HeaderMap {
    let mut marker = HeaderMap::new();
    marker.insert(headers::KV_OPERATION, "DEL");
    marker.insert(async_nats::header::NATS_MESSAGE_TTL, life.as_secs().max(1).to_string());
    marker
}
