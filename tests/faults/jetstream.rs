//! What JetStream says of its streams: who leads them, whether all copies are up to date; and what an operator may do.

use crate::proc::eventually;
use async_nats::{Client, ConnectOptions};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};

/// An election, or a member that has come back, takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// A member that was cut off has been seen to need half of it on a busy machine.
const WHOLE: Duration = Duration::from_secs(120);
/// How often it is asked who leads.
const LOOK: Duration = Duration::from_millis(100);
/// Looks in a row that must show all copies up to date: a member that has just come back is not taken for granted.
const STEADY: u32 = 3;

/// An operator who asks any server that answers.
pub struct JetStream {
    servers: Vec<SocketAddr>,
    credentials: Option<(String, String)>,
    runtime: Runtime,
}

impl JetStream {
    pub fn new(servers: Vec<SocketAddr>, credentials: Option<(String, String)>) -> Self {
        let runtime = Builder::new_multi_thread().enable_all().worker_threads(1).build();
        Self { servers, credentials, runtime: runtime.expect("threads can be started") }
    }

    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// Asks one server after another until one gives an answer that `take` can use; refusals are answers.
    fn ask_until<T>(
        &self,
        credentials: Option<&(String, String)>,
        subject: &str,
        body: &Value,
        take: impl Fn(Value) -> Option<T>,
    ) -> Option<T> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.runtime.block_on(async {
            for server in &self.servers {
                let Some(client) = connect(*server, credentials).await else { continue };
                let ask = client.request(subject.to_owned(), body.clone().into());
                let Ok(Ok(answer)) = tokio::time::timeout(Duration::from_secs(2), ask).await else { continue };
                if let Some(taken) = serde_json::from_slice(&answer.payload).ok().and_then(&take) {
                    return Some(taken);
                }
            }
            None
        })
    }

    fn ask_as(&self, credentials: Option<&(String, String)>, subject: &str, body: &Value) -> Option<Value> {
        self.ask_until(credentials, subject, body, Some)
    }

    /// An operator's request; its answer, refusals included.
    pub fn ask(&self, subject: &str, body: &Value) -> Result<Value, String> {
        let answer = || self.ask_as(self.credentials.as_ref(), subject, body);
        eventually(PATIENCE / 4, &format!("an answer to {subject}"), answer)
    }

    /// The same in the system account.
    pub fn ask_system(&self, subject: &str, body: &Value) -> Result<Value, String> {
        let (user, password) = crate::nats_cluster::SYSTEM;
        let system = (user.to_owned(), password.to_owned());
        eventually(PATIENCE / 4, &format!("an answer to {subject}"), || self.ask_as(Some(&system), subject, body))
    }

    /// What `take` makes of the streams, as the first server sees them that knows enough. One that is cut off from the
    /// others may know none, or believe what was true before.
    fn of_streams<T>(&self, take: impl Fn(Vec<Value>) -> Option<T>) -> Option<T> {
        self.ask_until(self.credentials.as_ref(), "$JS.API.STREAM.LIST", &Value::Null, |answer| {
            let complete = answer["missing"].as_array().is_none_or(Vec::is_empty);
            let streams = answer["streams"].as_array().filter(|streams| complete && !streams.is_empty()).cloned();
            streams.and_then(&take)
        })
    }

    /// Information on all streams.
    fn streams(&self) -> Option<Vec<Value>> {
        self.of_streams(Some)
    }

    /// Name and time of creation of the stream whose name contains this.
    pub fn stream(&self, part: &str) -> Option<(String, String)> {
        let streams = self.streams()?;
        let stream = streams.iter().find(|stream| name(stream).contains(part))?;
        Some((name(stream).to_owned(), stream["created"].as_str()?.to_owned()))
    }

    /// The server that leads the log, and since when. The time is empty on a server that is alone: it leads, and does
    /// not say so.
    pub fn leadership(&self) -> Option<(String, String)> {
        self.of_streams(|streams| leadership_in(&streams))
    }

    /// Waits for a leader that is not this one.
    pub fn wait_leader(&self, not: Option<&str>) -> String {
        eventually(PATIENCE, "a leader of the log", || self.leadership_besides(not.unwrap_or_default()))
            .unwrap_or_else(|error| panic!("{error}: {:?}", self.streams()))
    }

    /// Who leads instead of this one, if somebody does.
    pub fn leadership_besides(&self, not: &str) -> Option<String> {
        self.of_streams(|streams| leadership_in(&streams).map(|(name, _)| name).filter(|name| name != not))
    }

    /// Waits for a leadership that is not this one: another server's, or the same server's once more.
    pub fn wait_leadership(&self, not: &(String, String)) -> String {
        let next = |streams: Vec<Value>| leadership_in(&streams).filter(|now| now != not);
        let (name, _) = eventually(PATIENCE, "a new leadership of the log", || self.of_streams(next))
            .unwrap_or_else(|error| panic!("{error}: {:?}", self.streams()));
        name
    }

    /// The log's leader misses this follower: it counts as away, or not up to date.
    pub fn misses(&self, follower: &str) -> bool {
        let missed = |streams: Vec<Value>| {
            let log = log_in(&streams)?;
            let replicas = log["cluster"]["replicas"].as_array()?;
            let missed = |one: &Value| one["name"] == follower && (one["offline"] == true || one["current"] != true);
            replicas.iter().any(missed).then_some(())
        };
        self.of_streams(missed).is_some()
    }

    /// Waits until every copy of every stream is there and up to date, and stays so for a moment.
    pub fn wait_whole(&self) {
        let is_whole = |stream: &Value| {
            let cluster = &stream["cluster"];
            let copies = stream["config"]["num_replicas"].as_u64().unwrap_or(1);
            let peers = cluster["replicas"].as_array().map_or(&[][..], Vec::as_slice);
            let current = peers.iter().filter(|peer| peer["current"] == true && peer["offline"] != true).count();
            copies == 1 || cluster["leader"].is_string() && current as u64 + 1 == copies
        };
        let mut steady = 0;
        eventually(WHOLE, "all copies up to date", || {
            let whole = self.streams().is_some_and(|all| !all.is_empty() && all.iter().all(is_whole));
            steady = if whole { steady + 1 } else { 0 };
            std::thread::sleep(LOOK);
            (steady >= STEADY).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}: {:?}", self.streams()));
    }

    /// Makes the servers that `by` names lead the streams, and waits until they do.
    pub fn lead(&self, by: &dyn Fn(&str) -> String) -> Result<(), String> {
        eventually(PATIENCE, "leaders where they were asked for", || {
            let misplaced: Vec<(String, String)> = self.of_streams(|streams| {
                let led = streams
                    .iter()
                    .map(|stream| (name(stream).to_owned(), by(name(stream)), &stream["cluster"]["leader"]));
                Some(led.filter(|(_, by, leader)| **leader != *by.as_str()).map(|(name, by, _)| (name, by)).collect())
            })?;
            for (stream, server) in &misplaced {
                let body = json!({"placement": {"preferred": server}});
                // A refusal shows as a leader that stays where it is.
                let _ = self.ask(&format!("$JS.API.STREAM.LEADER.STEPDOWN.{stream}"), &body);
            }
            std::thread::sleep(LOOK);
            misplaced.is_empty().then_some(())
        })
    }

    /// How many copies streams have: one number if all are alike.
    pub fn replicas(&self) -> Vec<u64> {
        let streams = self.streams().expect("JetStream answers");
        let all: BTreeSet<u64> =
            streams.iter().map(|stream| stream["config"]["num_replicas"].as_u64().unwrap_or(0)).collect();
        all.into_iter().collect()
    }

    /// Deletes the stream whose name contains this; answers with its name and time of creation.
    pub fn delete(&self, part: &str) -> Result<(String, String), String> {
        let (name, created) = eventually(PATIENCE / 4, "the stream's name", || self.stream(part))?;
        let answer = self.ask(&format!("$JS.API.STREAM.DELETE.{name}"), &Value::Null)?;
        if answer["success"] == true { Ok((name, created)) } else { Err(format!("{name} is not deleted: {answer}")) }
    }

    /// Removes a member from the cluster for good.
    pub fn remove_peer(&self, name: &str) -> Result<(), String> {
        let answer = self.ask_system("$JS.API.SERVER.REMOVE", &json!({"peer": name}))?;
        if answer["success"] == true { Ok(()) } else { Err(format!("{name} is not removed: {answer}")) }
    }
}

async fn connect(server: SocketAddr, credentials: Option<&(String, String)>) -> Option<Client> {
    let options = ConnectOptions::new().connection_timeout(Duration::from_secs(1));
    let options = match credentials {
        Some((user, password)) => options.user_and_password(user.clone(), password.clone()),
        None => options,
    };
    options.connect(format!("nats://{server}")).await.ok()
}

fn log_in(streams: &[Value]) -> Option<&Value> {
    streams.iter().find(|stream| name(stream).contains("_log_"))
}

fn leadership_in(streams: &[Value]) -> Option<(String, String)> {
    let cluster = &log_in(streams)?["cluster"];
    if cluster["replicas"].is_null() && cluster["leader"].is_null() {
        return Some(("n0".to_owned(), String::new()));
    }
    Some((cluster["leader"].as_str()?.to_owned(), cluster["leader_since"].as_str().unwrap_or_default().to_owned()))
}

fn name(stream: &Value) -> &str {
    stream["config"]["name"].as_str().unwrap_or_default()
}

/// Looks all the time who leads the log, and since when.
pub struct Elections {
    seen: Arc<Mutex<Vec<(String, String)>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Elections {
    pub fn watch(jetstream: &Arc<JetStream>) -> Self {
        let (seen, stop) = (Arc::<Mutex<Vec<(String, String)>>>::default(), Arc::<AtomicBool>::default());
        let (noted, stopped, jetstream) = (seen.clone(), stop.clone(), jetstream.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Some(now) = jetstream.leadership() {
                    let mut seen = noted.lock().expect("nobody panics with the lock");
                    // An old leader that was cut off may still say that it leads.
                    if !seen.contains(&now) {
                        seen.push(now);
                    }
                }
                std::thread::sleep(LOOK);
            }
        });
        Self { seen, stop, thread: Some(thread) }
    }

    /// Elections seen so far: leaderships but the first.
    pub fn count(&self) -> usize {
        self.seen.lock().expect("nobody panics with the lock").len().saturating_sub(1)
    }
}

impl Drop for Elections {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of it shows as missing elections.
            let _ = thread.join();
        }
    }
}
