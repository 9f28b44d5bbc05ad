//! What the broker is told: where NATS is, how much to keep, how long to wait; and the names that follow from it.

use crate::broker::{Limits, Policy, Table};
use crate::nats::connect::ClientConfig;
use crate::nats::mark::StoreMark;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long the command log and the buckets remember message ids.
pub(super) const WRITE_WINDOW: Duration = Duration::from_secs(30);
/// Less would take a lost packet for a lost path.
const SHORTEST_UNACKNOWLEDGED: Duration = Duration::from_millis(500);

/// Everything [`super::NatsBroker::start`] needs.
#[derive(Clone, Debug)]
pub struct NatsBrokerConfig {
    pub client: ClientConfig,
    /// First token of every subject and first part of every name in NATS: `A-Za-z0-9_-`.
    pub prefix: String,
    /// Name of the cluster whose logs these are, when logs of several clusters can meet (gateways).
    pub cluster: Option<String>,
    /// Clusters whose live messages are delivered here too, without positions. They and this one have the same prefix.
    pub peers: Vec<String>,
    pub limits: Limits,
    /// Copies of each log and bucket. 0: three in a cluster, one on a single server; never lowers what is there.
    pub replicas: usize,
    /// Tags that a server must have to keep a copy, such as `region:eu`; as named in `server_tags` of its configuration.
    pub placement_tags: Vec<String>,
    /// How often it is looked whether the server that leads the log leads sessions, remote commands and records, too.
    /// `None`: leaders stay where they were elected.
    pub gather_leaders: Option<Duration>,
    /// The server flushes each message to the disk before it acknowledges it.
    pub synced: bool,
    /// How long a publication may wait for its acknowledgement, retries included; at most half the dedup window.
    pub publish_timeout: Duration,
    /// How long reads, openings and session requests wait for NATS.
    pub broker_timeout: Duration,
    /// How long a log remembers message ids; at most its policy's ttl. Memory on the server: rate × window.
    pub dedup_window: Duration,
    /// Names this node among its peers; stable across restarts where possible.
    pub node: String,
    /// Where to keep the witness (see `witness.rs`) beside an embedded store.
    pub witness_file: Option<PathBuf>,
    /// Bytes that the embedded store may take; `None`: it is not ours to know.
    pub store_size: Option<u64>,
    /// How the embedded store was left; `None`: it is not ours to judge.
    pub store_mark: Option<Arc<StoreMark>>,
}

impl NatsBrokerConfig {
    /// The defaults, for a client and limits.
    pub fn new(client: ClientConfig, limits: Limits) -> Self {
        Self {
            client,
            prefix: "carrick".into(),
            cluster: None,
            peers: Vec::new(),
            limits,
            replicas: 0,
            placement_tags: Vec::new(),
            gather_leaders: Some(Duration::from_secs(15)),
            synced: false,
            publish_timeout: Duration::from_secs(10),
            broker_timeout: Duration::from_secs(8),
            dedup_window: Duration::from_secs(30),
            node: crate::protocol::names::random_text(8),
            witness_file: None,
            store_size: None,
            store_mark: None,
        }
    }

    pub(super) fn sessions(&self) -> bool {
        !self.limits.sessions_ttl.is_zero()
    }

    /// Message ids are kept this long; NATS wants it at least 100 ms and at most the messages' own life.
    pub(super) fn window(&self, policy: &Policy) -> Duration {
        self.dedup_window.min(policy.ttl).max(Duration::from_millis(100))
    }

    /// A retry after this could find its id forgotten.
    pub(super) fn publish_budget(&self, policy: &Policy) -> Duration {
        if policy.keeps() { self.publish_timeout.min(self.window(policy) / 2) } else { self.publish_timeout }
    }

    /// The shortest time for which a log or bucket remembers message ids.
    pub fn shortest_window(&self) -> Duration {
        let keeping = self.limits.table.policies().iter().filter(|policy| policy.keeps());
        keeping.map(|policy| self.window(policy)).fold(WRITE_WINDOW, Duration::min)
    }

    /// How long bytes may be on their way to NATS without an acknowledgement before the kernel ends the connection:
    /// (*w* − *b*) / 2, where *w* is the shortest window in which a log or bucket remembers message ids and *b* the time in
    /// which a write is repeated there; at least half a second.
    ///
    /// A connection that is given up is aborted by us. This is for what we cannot do: while this process is stopped its
    /// publishers turn to other nodes. A first try that was sent here at *t*, and is repeated there at once, must not
    /// arrive after *t* + *w*; nor after *t* + *w* − *b*, so that whoever repeats it may be as late as we are.
    pub(super) fn unacknowledged(&self, table: &Table) -> Duration {
        let keeping = table.policies().iter().filter(|policy| policy.keeps());
        let logs = keeping.map(|policy| (self.window(policy), self.publish_budget(policy)));
        let others = [(WRITE_WINDOW, self.command_budget()), (WRITE_WINDOW, self.session_budget())];
        let spare = logs.chain(others).map(|(window, budget)| window.saturating_sub(budget) / 2);
        spare.min().unwrap_or(WRITE_WINDOW).max(SHORTEST_UNACKNOWLEDGED)
    }

    /// How long a remote command may wait for its acknowledgement, retries included.
    pub(super) fn command_budget(&self) -> Duration {
        self.publish_timeout.min(WRITE_WINDOW / 2)
    }

    /// How long a write of a session may wait for its acknowledgement, retries included.
    pub(super) fn session_budget(&self) -> Duration {
        self.broker_timeout.min(WRITE_WINDOW / 2)
    }

    /// Life of a stored remote command.
    pub(super) fn mark_life(&self) -> Duration {
        (self.limits.sessions_ttl * 2).max(Duration::from_secs(60))
    }

    pub(super) fn check(&self) -> Result<(), StartError> {
        let own = [("nats_prefix", Some(&*self.prefix)), ("cluster name", self.cluster.as_deref())];
        let policies = self.limits.table.policies();
        let names = policies.iter().map(|policy| ("name of a history policy", Some(&*policy.name)));
        let peers = self.peers.iter().map(|peer| ("name of a gateway", Some(&**peer)));
        for (option, text) in own.into_iter().chain(names).chain(peers) {
            let Some(text) = text else { continue };
            let fits = !text.is_empty()
                && text.len() <= 32
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
            if !fits {
                return Err(StartError(format!("{option} {text:?}: expected 1 to 32 characters of A-Z a-z 0-9 _ -")));
            }
        }
        for (at, policy) in policies.iter().enumerate() {
            if policies[..at].iter().any(|other| other.name == policy.name) {
                return Err(StartError(format!("two history policies are called {:?}", policy.name)));
            }
        }
        self.client.addresses().map_err(|e| StartError(e.to_string()))?;
        Ok(())
    }
}

/// NATS, or what is stored there, does not fit this configuration; a retry will not mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StartError(pub String);

/// Names of everything we keep in NATS; `nats/STREAMS.md` shows them on one page.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// First tokens of our subjects.
    subjects: String,
    /// First part of stream and bucket names.
    names: String,
    /// First tokens of the subjects of peer clusters.
    peers: Vec<String>,
}

impl Names {
    pub fn new(config: &NatsBrokerConfig) -> Self {
        let prefix = &config.prefix;
        // A cluster that names itself does not hear itself twice.
        let others = config.peers.iter().filter(|peer| Some(*peer) != config.cluster.as_ref());
        let peers = others.map(|peer| format!("{prefix}.{peer}")).collect();
        match &config.cluster {
            None => Self { subjects: prefix.clone(), names: prefix.clone(), peers },
            Some(cluster) => {
                Self { subjects: format!("{prefix}.{cluster}"), names: format!("{prefix}_{cluster}"), peers }
            }
        }
    }

    /// What all subjects of a kind (`log`, `live`, `ctl`, `ctllive`) begin with.
    pub fn area(&self, kind: &str) -> String {
        format!("{}.{kind}.", self.subjects)
    }

    /// A log or bucket of ours takes what is published to this subject.
    pub fn is_stored(&self, subject: &str) -> bool {
        let buckets = [self.meta_bucket(), self.sessions_bucket()].map(|bucket| key_subject(&bucket, ""));
        let mut areas = [self.area("log"), self.area("ctl")].into_iter().chain(buckets);
        areas.any(|area| subject.starts_with(&area))
    }

    pub fn log(&self, policy: &str, id: &str) -> String {
        format!("{}_log_{policy}_{id}", self.names)
    }

    pub fn commands(&self, id: &str) -> String {
        format!("{}_ctl_{id}", self.names)
    }

    pub fn log_subject(&self, policy: &str, token: &str) -> String {
        format!("{}.log.{policy}.{token}", self.subjects)
    }

    pub fn live_subject(&self, policy: &str, token: &str) -> String {
        format!("{}.live.{policy}.{token}", self.subjects)
    }

    /// Where peer clusters send their live messages of this stream, whichever policy it has there.
    pub fn peer_live_subjects(&self, token: &str) -> impl Iterator<Item = String> {
        self.peers.iter().map(move |peer| format!("{peer}.live.*.{token}"))
    }

    pub fn command_subject(&self, token: &str) -> String {
        format!("{}.ctl.{token}", self.subjects)
    }

    pub fn live_command_subject(&self, token: &str) -> String {
        format!("{}.ctllive.{token}", self.subjects)
    }

    /// Where starting nodes ask for witnesses.
    pub fn witness_subject(&self) -> String {
        format!("{}.peer.witness", self.subjects)
    }

    /// Where nodes tell each other whose session was restored.
    pub fn session_over_subject(&self) -> String {
        format!("{}.peer.session_over", self.subjects)
    }

    pub fn meta_bucket(&self) -> String {
        format!("{}_meta", self.names)
    }

    pub fn sessions_bucket(&self) -> String {
        format!("{}_sessions", self.names)
    }
}

/// The JetStream stream behind a key-value bucket.
pub(super) fn bucket_stream(bucket: &str) -> String {
    format!("KV_{bucket}")
}

/// The subject of a bucket's key.
pub(super) fn key_subject(bucket: &str, key: &str) -> String {
    format!("$KV.{bucket}.{key}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_01_unacknowledged_bytes_end_well_within_the_window_less_the_time_for_retries() {
        let seconds = Duration::from_secs;
        for (window, ttl, expected) in [
            (seconds(30), seconds(300), seconds(10)),
            (seconds(10), seconds(300), Duration::from_millis(2500)),
            (seconds(120), seconds(300), seconds(10)),
            (seconds(30), seconds(4), seconds(1)),
            (seconds(1), seconds(300), Duration::from_millis(500)),
        ] {
            let limits = Limits::plain(100, ttl, seconds(300));
            let mut config = NatsBrokerConfig::new(ClientConfig::for_servers("a"), limits);
            config.dedup_window = window;
            assert_eq!(config.unacknowledged(&config.limits.table), expected, "{window:?}, {ttl:?}");
            assert!(expected < config.shortest_window());
        }
        // Nothing is kept: remote commands and sessions still are.
        let config =
            NatsBrokerConfig::new(ClientConfig::for_servers("a"), Limits::plain(0, seconds(300), seconds(300)));
        assert_eq!(config.unacknowledged(&config.limits.table), seconds(10));
    }
}
