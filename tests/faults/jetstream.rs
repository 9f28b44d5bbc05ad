//! What JetStream says of its streams: who leads them, and whether all copies are up to date.

use crate::proc::eventually;
use async_nats::{Client, ConnectOptions};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};

/// An election, or a member that has come back, takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);

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

    async fn connect(&self, server: SocketAddr) -> Option<Client> {
        let options = ConnectOptions::new().connection_timeout(Duration::from_secs(1));
        let options = match &self.credentials {
            Some((user, password)) => options.user_and_password(user.clone(), password.clone()),
            None => options,
        };
        options.connect(format!("nats://{server}")).await.ok()
    }

    /// Information on all streams, from the first server that knows.
    fn streams(&self) -> Option<Vec<Value>> {
        self.runtime.block_on(async {
            for server in &self.servers {
                let Some(client) = self.connect(*server).await else { continue };
                let ask = client.request("$JS.API.STREAM.LIST", "".into());
                let Ok(Ok(answer)) = tokio::time::timeout(Duration::from_secs(2), ask).await else { continue };
                let answer: Value = serde_json::from_slice(&answer.payload).ok()?;
                let complete = answer["missing"].as_array().is_none_or(Vec::is_empty);
                if let (Some(streams), true) = (answer["streams"].as_array(), complete) {
                    return Some(streams.clone());
                }
            }
            None
        })
    }

    /// Name of the server that leads the log.
    pub fn leader(&self) -> Option<String> {
        let streams = self.streams()?;
        let log = streams.iter().find(|stream| name(stream).contains("_log_"))?;
        match log.get("cluster").and_then(|cluster| cluster.get("replicas").or(cluster.get("leader"))) {
            Some(_) => log["cluster"]["leader"].as_str().map(str::to_owned),
            // A server that is alone leads, and does not say so.
            None => Some("n0".to_owned()),
        }
    }

    /// Waits for a leader that is not this one.
    pub fn wait_leader(&self, not: Option<&str>) -> String {
        eventually(PATIENCE, "a leader of the log", || self.leader().filter(|name| Some(name.as_str()) != not))
            .unwrap_or_else(|error| panic!("{error}: {:?}", self.streams()))
    }

    /// Waits until every copy of every stream is there and up to date.
    pub fn wait_whole(&self) {
        let is_whole = |stream: &Value| {
            let cluster = &stream["cluster"];
            let copies = stream["config"]["num_replicas"].as_u64().unwrap_or(1);
            let peers = cluster["replicas"].as_array().map_or(&[][..], Vec::as_slice);
            let current = peers.iter().filter(|peer| peer["current"] == true && peer["offline"] != true).count();
            copies == 1 || cluster["leader"].is_string() && current as u64 + 1 == copies
        };
        eventually(PATIENCE, "all copies up to date", || {
            let streams = self.streams()?;
            (!streams.is_empty() && streams.iter().all(is_whole)).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}: {:?}", self.streams()));
    }

    /// How many copies streams have: one number if all are alike.
    pub fn replicas(&self) -> Vec<u64> {
        let streams = self.streams().expect("JetStream answers");
        let all: BTreeSet<u64> =
            streams.iter().map(|stream| stream["config"]["num_replicas"].as_u64().unwrap_or(0)).collect();
        all.into_iter().collect()
    }
}

fn name(stream: &Value) -> &str {
    stream["config"]["name"].as_str().unwrap_or_default()
}
