//! Leaders side by side: what returning clients need is led by the server that leads the log.
//!
//! In a cluster each stream elects a leader of its own. A client that comes back needs the saved sessions, the remote
//! commands and its log. Where three servers lead one of these each, the death of *any* server makes returning clients wait
//! for an election, which takes seconds. Where one server leads all of them, the death of either of the others costs nothing,
//! and the death of that one hardly more: its elections run at the same time. Publishing depends on the log's leader only,
//! which is never moved.
//!
//! A move is an orderly handover of a bucket, of some 0.1 s. It is made only while all copies are up to date and nothing
//! has changed between two looks; by one node, the first by name of those that run; and seldom. Handovers that fail take
//! seconds each, so all of this goes on beside what looks after the connection, and holds up nothing there.

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

/// What a look has found.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    /// It is no time to move anything: a copy is not up to date, or there is no leader.
    Unsettled,
    /// Nothing can be moved to where the log is led.
    Together,
    Apart(Apart),
}

/// Those who lead: the servers, but for tests.
trait Leaders {
    async fn look(&self) -> Result<Found, SetupError>;
    /// Of the nodes that run, this one is the first by name.
    async fn is_our_turn(&self) -> Result<bool, SetupError>;
    async fn move_leader(&self, stream: &str, to: &str) -> Result<(), SetupError>;
}

/// What this node has seen and done of it, across connections.
#[derive(Default)]
pub(super) struct Gathering {
    /// What was seen at the last look.
    seen: Option<Apart>,
    /// Rounds in a row in which a handover failed.
    failed: u32,
    /// Leaders stay where they are until then.
    quiet_until: Option<Instant>,
}

impl Gathering {
    /// Another connection may see something else.
    fn connected(&mut self) {
        self.seen = None;
    }

    /// Looks, and moves leaders. Answers with the time until the next look.
    async fn go_on(&mut self, leaders: &impl Leaders, period: Duration) -> Result<Duration, SetupError> {
        let left = self.quiet_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
        if !left.is_zero() {
            return Ok(left);
        }
        let found = match leaders.look().await? {
            Found::Apart(apart) => apart,
            Found::Together => {
                *self = Self::default();
                return Ok(period);
            }
            Found::Unsettled => {
                self.seen = None;
                return Ok(period);
            }
        };
        let same = self.seen.as_ref() == Some(&found);
        let apart = self.seen.insert(found);
        if !same || !leaders.is_our_turn().await? {
            return Ok(period);
        }
        let mut all_moved = true;
        for stream in &apart.streams {
            if let Err(error) = leaders.move_leader(stream, &apart.leader).await {
                all_moved = false;
                tracing::debug!(stream, to = apart.leader, %error, "cannot move a leader");
            }
        }
        self.failed = if all_moved { 0 } else { (self.failed + 1) % TRIES };
        if self.failed > 0 {
            return Ok(period);
        }
        self.quiet_until = Some(Instant::now() + PAUSE);
        Ok(PAUSE)
    }
}

/// One connection's view of them.
struct Servers<'a> {
    core: &'a Core,
    generation: &'a Generation,
}

impl Leaders for Servers<'_> {
    async fn look(&self) -> Result<Found, SetupError> {
        self.core.led(self.generation).await
    }

    async fn is_our_turn(&self) -> Result<bool, SetupError> {
        let others = self.core.other_nodes(&self.generation.connection).await?;
        Ok(others.iter().all(|other| other.node >= self.core.config.node))
    }

    async fn move_leader(&self, stream: &str, to: &str) -> Result<(), SetupError> {
        self.core.move_leader(self.generation, stream, to).await
    }
}

impl Core {
    /// Brings leaders together for as long as it is polled. Never returns.
    pub(super) async fn gather_leaders(&self, generation: &Generation) {
        let Some(period) = self.config.gather_leaders.filter(|_| generation.connection.clustered()) else {
            return std::future::pending().await;
        };
        let (servers, mut gathering) = (Servers { core: self, generation }, self.gathering.lock().await);
        gathering.connected();
        loop {
            let pause = gathering.go_on(&servers, period).await.unwrap_or_else(|error| {
                tracing::debug!(%error, "cannot see who leads");
                period
            });
            tokio::time::sleep(pause).await;
        }
    }

    /// Which streams are led elsewhere than the log.
    async fn led(&self, generation: &Generation) -> Result<Found, SetupError> {
        // The default policy's, where most streams are.
        let Some(log) = generation.own_logs().last() else { return Ok(Found::Together) };
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
fn judge(infos: &[(String, Value)]) -> Found {
    let replicas = |info: &Value| info["cluster"]["replicas"].as_array().cloned().unwrap_or_default();
    let whole = infos.iter().all(|(_, info)| {
        let wanted = info["config"]["num_replicas"].as_u64().unwrap_or(1);
        let current = |one: &&Value| one["current"] == true && one["offline"] != true;
        replicas(info).iter().filter(current).count() as u64 + 1 == wanted
    });
    let leader = infos.first().and_then(|(_, info)| info["cluster"]["leader"].as_str());
    let Some(leader) = leader.filter(|_| whole) else { return Found::Unsettled };
    let misplaced = infos.iter().filter(|(_, info)| info["cluster"]["leader"] != leader);
    // A server without a copy cannot lead.
    let movable = misplaced.filter(|(_, info)| replicas(info).iter().any(|one| one["name"] == leader));
    let streams: Vec<String> = movable.map(|(stream, _)| stream.clone()).collect();
    if streams.is_empty() {
        return Found::Together;
    }
    Found::Apart(Apart { leader: leader.to_owned(), streams })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

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
        let found = judge(&[log.clone(), with.clone(), apart.clone(), elsewhere.clone()]);
        assert_eq!(found, Found::Apart(Apart { leader: "a".into(), streams: vec!["apart".into()] }));
        assert_eq!(judge(&[log.clone(), with.clone()]), Found::Together);
        assert_eq!(judge(&[log.clone(), elsewhere]), Found::Together, "the log's leader has no copy of it");
        let behind = info("apart", "b", [("a", true), ("c", false)]);
        assert_eq!(judge(&[log, behind]), Found::Unsettled, "a copy is not up to date");
    }

    const PERIOD: Duration = Duration::from_secs(15);

    /// Leaders that are where a test says, and handovers of which those to `stuck` fail.
    struct Told {
        found: RefCell<Found>,
        stuck: RefCell<Vec<&'static str>>,
        tried: RefCell<Vec<String>>,
    }

    impl Told {
        fn apart(stuck: &[&'static str]) -> Self {
            let streams = ["one", "two", "three"].map(str::to_owned).to_vec();
            let found = Found::Apart(Apart { leader: "a".into(), streams });
            let stuck = RefCell::new(stuck.to_vec());
            Self { found: RefCell::new(found), stuck, tried: RefCell::default() }
        }

        /// Two looks that see the same: one round of handovers, and the pause that follows.
        async fn round(&self, gathering: &mut Gathering) -> Duration {
            if gathering.seen.is_none() {
                assert_eq!(gathering.go_on(self, PERIOD).await.unwrap(), PERIOD);
            }
            let pause = gathering.go_on(self, PERIOD).await.unwrap();
            tokio::time::advance(pause).await;
            pause
        }
    }

    impl Leaders for Told {
        async fn look(&self) -> Result<Found, SetupError> {
            Ok(self.found.borrow().clone())
        }

        async fn is_our_turn(&self) -> Result<bool, SetupError> {
            Ok(true)
        }

        async fn move_leader(&self, stream: &str, _: &str) -> Result<(), SetupError> {
            self.tried.borrow_mut().push(stream.to_owned());
            match self.stuck.borrow().contains(&stream) {
                true => Err(SetupError::retry("it does not move")),
                false => Ok(()),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_leader_that_stays_where_it_is_keeps_no_other_there() {
        let (leaders, mut gathering) = (Told::apart(&["one"]), Gathering::default());
        assert_eq!(leaders.round(&mut gathering).await, PERIOD, "tried again soon");
        assert_eq!(*leaders.tried.borrow(), ["one", "two", "three"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_that_failed_is_repeated_three_times_in_a_row_and_then_left_alone_for_long() {
        let (leaders, mut gathering) = (Told::apart(&["three"]), Gathering::default());
        for pause in [PERIOD, PERIOD, PAUSE, PERIOD, PERIOD, PAUSE] {
            assert_eq!(leaders.round(&mut gathering).await, pause);
        }
        leaders.stuck.borrow_mut().clear();
        assert_eq!(leaders.round(&mut gathering).await, PAUSE);
    }

    #[tokio::test(start_paused = true)]
    async fn leaders_that_came_together_by_themselves_are_failed_handovers_no_more() {
        let (leaders, mut gathering) = (Told::apart(&["two"]), Gathering::default());
        for _ in 0..2 {
            assert_eq!(leaders.round(&mut gathering).await, PERIOD);
        }
        let apart = leaders.found.replace(Found::Together);
        assert_eq!(gathering.go_on(&leaders, PERIOD).await.unwrap(), PERIOD);
        leaders.found.replace(apart);
        for pause in [PERIOD, PERIOD, PAUSE] {
            assert_eq!(leaders.round(&mut gathering).await, pause);
        }
        // A copy that falls behind says nothing of them.
        leaders.found.replace(Found::Unsettled);
        assert_eq!(gathering.go_on(&leaders, PERIOD).await.unwrap(), PERIOD);
        assert_eq!(gathering.seen, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_lost_does_not_shorten_the_pause() {
        let (leaders, mut gathering) = (Told::apart(&[]), Gathering::default());
        for _ in 0..2 {
            gathering.go_on(&leaders, PERIOD).await.unwrap();
        }
        let moved = leaders.tried.borrow().len();
        assert_eq!(moved, 3);
        gathering.connected();
        tokio::time::advance(PAUSE / 2).await;
        for _ in 0..3 {
            assert_eq!(gathering.go_on(&leaders, PERIOD).await.unwrap(), PAUSE / 2);
        }
        assert_eq!(leaders.tried.borrow().len(), moved, "nothing is moved meanwhile");
        tokio::time::advance(PAUSE / 2).await;
        assert_eq!(gathering.go_on(&leaders, PERIOD).await.unwrap(), PERIOD);
        gathering.go_on(&leaders, PERIOD).await.unwrap();
        assert_eq!(leaders.tried.borrow().len(), 2 * moved);
    }
}
