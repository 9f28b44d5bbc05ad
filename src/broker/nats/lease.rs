//! Leases: which nodes run, which policies they follow, and what they are prepared for.

use super::api::{ApiError, StreamInfo, is_marker, marker_headers};
use super::config::{bucket_stream, key_subject};
use super::generation::Connection;
use super::policies::fingerprint;
use super::{Core, SetupError, headers};
use async_nats::{HeaderMap, header};
use bytes::Bytes;
use serde_json::json;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A node counts as running this long after its last sign of life.
const LEASE: Duration = Duration::from_secs(15);

/// Another node, as its lease tells.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    pub node: String,
    /// Fingerprint of its policies; a node of an earlier version says none.
    pub table: Option<String>,
    /// Newest proposal of policies that it is prepared for.
    pub prepared: u64,
}

impl Core {
    pub(super) fn lease_key(&self) -> String {
        format!("node.{}", super::token::hash_hex(&self.config.node))
    }

    /// Says that this node is running, so that another one does not change the policies beneath it; and which ones it
    /// follows, and what it is prepared for.
    pub(super) async fn renew_lease(&self, connection: &Connection) -> Result<(), SetupError> {
        let leaving = self.leaving.lock().await;
        if *leaving {
            return Ok(());
        }
        let bucket = self.names.meta_bucket();
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_MESSAGE_TTL, LEASE.as_secs().to_string());
        headers.insert(header::NATS_EXPECTED_STREAM, bucket_stream(&bucket));
        let table = if self.is_settled() { self.rules().table.clone() } else { self.config.limits.table.clone() };
        headers.insert(headers::TABLE, fingerprint(&table));
        headers.insert(headers::PREPARED, self.prepared.load(Ordering::Relaxed).to_string());
        let subject = key_subject(&bucket, &self.lease_key());
        connection.api.publish(subject, headers, Bytes::from(self.config.node.clone()), super::api::ATTEMPT).await?;
        Ok(())
    }

    /// For good: no renewal that is under way outlives it.
    pub(super) async fn leave(&self, connection: &Connection) -> Result<(), ApiError> {
        let mut leaving = self.leaving.lock().await;
        *leaving = true;
        self.end_lease(connection).await
    }

    pub(super) async fn end_lease(&self, connection: &Connection) -> Result<(), ApiError> {
        let subject = key_subject(&self.names.meta_bucket(), &self.lease_key());
        let marker = marker_headers(Duration::from_secs(1));
        connection.api.publish(subject, marker, Bytes::new(), super::api::ATTEMPT).await.map(drop)
    }

    /// Other nodes whose lease has not run out.
    pub(super) async fn other_nodes(&self, connection: &Connection) -> Result<Vec<Lease>, SetupError> {
        let bucket = self.names.meta_bucket();
        let filter = json!({"subjects_filter": key_subject(&bucket, "node.*")});
        let info: StreamInfo = connection.api.call(&format!("STREAM.INFO.{}", bucket_stream(&bucket)), &filter).await?;
        let own = self.lease_key();
        let mut others = Vec::new();
        for subject in info.state.subjects.keys() {
            let Some(key) = subject.strip_prefix(&format!("$KV.{bucket}.")).filter(|key| *key != own) else { continue };
            let Some(kept) = connection.api.entry(&bucket, key).await?.filter(|kept| !is_marker(kept)) else {
                continue;
            };
            others.push(Lease {
                node: String::from_utf8_lossy(&kept.data()?).into_owned(),
                table: kept.header(headers::TABLE.as_ref()),
                prepared: kept.header(headers::PREPARED.as_ref()).and_then(|text| text.parse().ok()).unwrap_or(0),
            });
        }
        others.sort_by(|a, b| a.node.cmp(&b.node));
        Ok(others)
    }
}
