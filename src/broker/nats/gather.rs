//! Leaders side by side: what returning clients need is led by the server that leads the log.
//!
//! In a cluster each stream elects a leader of its own. A client that comes back needs the saved sessions, the remote
//! commands and its log. Where three servers lead one of these each, the death of *any* server makes returning clients wait
//! for an election, which takes seconds. Where one server leads all of them, the death of either of the others costs nothing,
//! and the death of that one hardly more: its elections run at the same time. Publishing depends on the log's leader only,
//! which is never moved.
//!
//! A move is an orderly handover of a bucket, of some 0.1 s. It is made only while all copies are up to date and nothing
//! has changed between two looks; by one node, the first by name of those that run; and seldom.

use super::config::bucket_stream;
use super::generation::Generation;
use super::{Core, SetupError};
use crate::metrics;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

/// Pause after moves: what elects leaders elsewhere again is not argued with.
const PAUSE: Duration = Duration::from_secs(600);
/// A handover that fails is tried so many times before that pause: on busy servers another one may win the election.
const TRIES: u32 = 3;
/// How long a handover may take, and how often it is looked at meanwhile.
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(100);

/// Streams that another server should lead.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Apart {
    /// The server that leads the log.
    leader: String,
    streams: Vec<String>,
}

/// What one connection has seen of it.
#[derive(Default)]
pub(super) struct Gathering {
    /// Not before this time.
    next: Option<Instant>,
    /// What was seen at the last look.
    seen: Option<Apart>,
    /// Handovers in a row that failed.
    failed: u32,
}

impl Gathering {
    /// Looks, and moves leaders, if it is time to.
    pub async fn go_on(&mut self, core: &Core, generation: &Generation) -> Result<(), SetupError> {
        let Some(period) = core.config.gather_leaders.filter(|_| generation.connection.clustered()) else {
            return Ok(());
        };
        if self.next.is_some_and(|next| Instant::now() < next) {
            return Ok(());
        }
        self.next = Some(Instant::now() + period);
        let found = core.apart(generation).await?;
        let same = found.is_some() && found == self.seen;
        self.seen = found;
        let Some(apart) = self.seen.as_ref().filter(|_| same) else { return Ok(()) };
        let others = core.other_nodes(&generation.connection).await?;
        if others.iter().any(|other| other.node < core.config.node) {
            return Ok(());
        }
        // Not before all of it is over, however this ends.
        self.next = Some(Instant::now() + PAUSE);
        let mut outcome = Ok(());
        for stream in &apart.streams {
            if let Err(error) = core.move_leader(generation, stream, &apart.leader).await {
                outcome = Err(error);
            }
        }
        self.failed = if outcome.is_ok() { 0 } else { (self.failed + 1) % TRIES };
        let pause = if self.failed == 0 { PAUSE } else { period };
        self.next = Some(Instant::now() + pause);
        outcome
    }
}

impl Core {
    /// Which streams are led elsewhere than the log; `None`: none, or it is no time to move anything.
    async fn apart(&self, generation: &Generation) -> Result<Option<Apart>, SetupError> {
        // The default policy's, where most streams are.
        let Some(log) = generation.own_logs().last() else { return Ok(None) };
        let mut streams = vec![log.name.clone(), generation.commands.clone(), bucket_stream(&self.names.meta_bucket())];
        if self.config.sessions() {
            streams.push(bucket_stream(&self.names.sessions_bucket()));
        }
        let mut infos = Vec::with_capacity(streams.len());
        for stream in streams {
            let info: Value = generation.api().call(&format!("STREAM.INFO.{stream}"), &Value::Null).await?;
            infos.push((stream, info));
        }
        Ok(judge(&infos))
    }

    async fn move_leader(&self, generation: &Generation, stream: &str, to: &str) -> Result<(), SetupError> {
        let preferred = json!({"placement": {"preferred": to}});
        generation.api().call::<Value>(&format!("STREAM.LEADER.STEPDOWN.{stream}"), &preferred).await?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            tokio::time::sleep(LOOK).await;
            let info = generation.api().call::<Value>(&format!("STREAM.INFO.{stream}"), &Value::Null).await;
            // During the handover nobody answers.
            if info.is_ok_and(|info| info["cluster"]["leader"] == to) {
                metrics::LEADERS_MOVED.inc();
                tracing::info!(
                    stream,
                    to,
                    "led by the server that leads the log: returning clients depend on one server"
                );
                return Ok(());
            }
        }
        Err(SetupError::retry(format!("{to} does not become the leader of {stream}")))
    }
}

/// The log is the first of these.
fn judge(infos: &[(String, Value)]) -> Option<Apart> {
    let replicas = |info: &Value| info["cluster"]["replicas"].as_array().cloned().unwrap_or_default();
    let whole = infos.iter().all(|(_, info)| {
        let wanted = info["config"]["num_replicas"].as_u64().unwrap_or(1);
        let current = |one: &&Value| one["current"] == true && one["offline"] != true;
        replicas(info).iter().filter(current).count() as u64 + 1 == wanted
    });
    let leader = infos.first()?.1["cluster"]["leader"].as_str()?;
    let misplaced = infos.iter().filter(|(_, info)| info["cluster"]["leader"] != leader);
    // A server without a copy cannot lead.
    let movable = misplaced.filter(|(_, info)| replicas(info).iter().any(|one| one["name"] == leader));
    let streams: Vec<String> = movable.map(|(stream, _)| stream.clone()).collect();
    (whole && !streams.is_empty()).then(|| Apart { leader: leader.to_owned(), streams })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name: &str, leader: &str, others: [(&str, bool); 2]) -> (String, Value) {
        let replicas = others.map(|(name, current)| json!({"name": name, "current": current}));
        let cluster = json!({"leader": leader, "replicas": replicas});
        (name.to_owned(), json!({"config": {"num_replicas": 3}, "cluster": cluster}))
    }

    #[test]
    fn only_a_whole_cluster_is_rearranged() {
        let log = info("log", "a", [("b", true), ("c", true)]);
        let with = info("with", "a", [("b", true), ("c", true)]);
        let apart = info("apart", "b", [("a", true), ("c", true)]);
        let elsewhere = info("elsewhere", "b", [("c", true), ("d", true)]);
        let found = judge(&[log.clone(), with.clone(), apart.clone(), elsewhere.clone()]).unwrap();
        assert_eq!(found, Apart { leader: "a".into(), streams: vec!["apart".into()] });
        assert_eq!(judge(&[log.clone(), with.clone()]), None);
        assert_eq!(judge(&[log.clone(), elsewhere]), None, "the log's leader has no copy of it");
        let behind = info("apart", "b", [("a", true), ("c", false)]);
        assert_eq!(judge(&[log, behind]), None, "a copy is not up to date");
    }
}
