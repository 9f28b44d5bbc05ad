//! How long clients that come back wait when a server dies that leads something: the log, the saved sessions, the remote
//! commands, the records, the cluster's metadata, all of it or nothing. `scripts/faults --returning N` runs the rounds.

use crate::deployment::{Deployment, number_of};
use crate::harness::{BROADCAST_KEY, http, public};
use crate::proc::{self, eventually};
use carrick::client::connection::{Connection, Received, url_with_sid};
use serde_json::{Value, json};
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use url::Url;

/// Clients that come back in a round.
const CLIENTS: usize = 20;
const PATIENCE: Duration = Duration::from_secs(60);
/// One attempt to connect, and one answer; the store may take its time.
const ATTEMPT: Duration = Duration::from_secs(12);
/// The stock client's first pause after a failed attempt.
const PAUSE: Duration = Duration::from_millis(250);

/// What the server leads that is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Led {
    Nothing,
    Log,
    Sessions,
    Commands,
    Records,
    Everything,
}

impl Led {
    pub const ALL: [Self; 6] =
        [Self::Nothing, Self::Log, Self::Sessions, Self::Commands, Self::Records, Self::Everything];

    /// Whether the stream of this name is led by the server that is killed.
    fn takes(self, stream: &str) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::Log => stream.contains("_log_"),
            Self::Sessions => stream.ends_with("_sessions"),
            Self::Commands => stream.contains("_ctl_"),
            Self::Records => stream.ends_with("_meta"),
        }
    }
}

impl fmt::Display for Led {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "nothing",
            Self::Log => "the log",
            Self::Sessions => "the sessions' bucket",
            Self::Commands => "the remote commands",
            Self::Records => "the bucket of records",
            Self::Everything => "everything",
        })
    }
}

#[derive(Default)]
pub struct Waits {
    /// Until the first acknowledgement of a message that was begun after the death.
    pub publishing: Vec<Duration>,
    /// Until a client was restored and had its history.
    pub returning: Vec<Duration>,
    /// Clients that were not restored.
    pub fresh: usize,
}

/// One round: places the leaders, kills, measures, and puts the member back.
pub fn round(deployment: &mut Deployment, led: Led, index: usize, waits: &mut Waits) -> Result<(), String> {
    let (victim, other) = (index % 3, (index + 1) % 3);
    let embedded = deployment.nats.is_none();
    let survivors: Vec<usize> = (0..deployment.nodes().len()).filter(|number| !embedded || *number != victim).collect();
    let urls: Vec<Url> = survivors
        .iter()
        .map(|number| Url::parse(&format!("ws://{}/cable", deployment.nodes()[*number].address())).expect("a URL"))
        .collect();
    let publishers: Vec<SocketAddr> =
        survivors.iter().map(|number| deployment.nodes()[*number].broadcast_address()).collect();
    let clients = deployment.block_on(async {
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            let identifier = public(&format!("returning/{number}"));
            clients.push(Visitor::subscribe(&urls[number % urls.len()], identifier).await?);
        }
        Ok::<_, String>(clients)
    })?;
    deployment.jetstream().lead(&|stream| format!("n{}", if led.takes(stream) { victim } else { other }))?;

    let name = format!("n{victim}");
    let pid = deployment.nats_pid(&name);
    match &mut deployment.nats {
        Some(nats) => nats.members[number_of(&name)].kill(),
        None => deployment.kill_nodes(&[victim]),
    }
    eventually(PATIENCE, "the leader's end", || (!proc::is_alive(pid)).then_some(()))?;
    let killed = Instant::now();
    let (published, returned) = deployment.block_on(async {
        let clients: Vec<_> = clients.into_iter().map(|client| tokio::spawn(client.come_back(killed))).collect();
        let published = publish(&publishers).await;
        let mut returned = Vec::new();
        for client in clients {
            returned.push(client.await.map_err(|error| error.to_string())??);
        }
        Ok::<_, String>((published, returned))
    })?;
    waits.publishing.push(published - killed);
    waits.fresh += returned.iter().filter(|(restored, _)| !restored).count();
    waits.returning.extend(returned.into_iter().map(|(_, wait)| wait));

    match &mut deployment.nats {
        Some(nats) => nats.members[victim].start(),
        None => deployment.start_nodes(&[victim]),
    }
    deployment.jetstream().wait_whole();
    Ok(())
}

/// Returns when a message was acknowledged.
async fn publish(nodes: &[SocketAddr]) -> Instant {
    let key = format!("Bearer {BROADCAST_KEY}");
    let body =
        json!({"stream": "returning/0", "data": "1", "meta": {"id": format!("{:?}", Instant::now())}}).to_string();
    for turn in 0.. {
        let headers = [("Authorization", key.as_str())];
        let answer =
            http::try_request(nodes[turn % nodes.len()], "POST", "/_broadcast", &headers, body.as_bytes()).await;
        if answer.is_ok_and(|answer| answer.status == 201) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Instant::now()
}

/// A client with a session on a node that survives.
struct Visitor {
    url: Url,
    identifier: String,
    sid: String,
}

impl Visitor {
    async fn subscribe(url: &Url, identifier: String) -> Result<Self, String> {
        let (mut link, welcome) = welcomed(url).await?;
        let sid = welcome["sid"].as_str().ok_or("a welcome without a session id")?.to_owned();
        send(&mut link, &json!({"command": "subscribe", "identifier": identifier})).await?;
        until(&mut link, &["confirm_subscription"]).await?;
        Ok(Self { url: url.clone(), identifier, sid })
    }

    /// Comes back until it is connected. Answers with whether its session was restored, and how long that took.
    async fn come_back(self, since: Instant) -> Result<(bool, Duration), String> {
        let url = url_with_sid(&self.url, Some(&self.sid));
        while since.elapsed() < PATIENCE {
            if let Ok(restored) = self.return_once(&url).await {
                return Ok((restored, since.elapsed()));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err("a client cannot come back".to_owned())
    }

    async fn return_once(&self, url: &Url) -> Result<bool, String> {
        let (mut link, welcome) = welcomed(url).await?;
        let restored = welcome["restored"] == true;
        if !restored {
            send(&mut link, &json!({"command": "subscribe", "identifier": self.identifier})).await?;
            until(&mut link, &["confirm_subscription"]).await?;
        }
        let history = json!({"since": 1});
        send(&mut link, &json!({"command": "history", "identifier": self.identifier, "history": history})).await?;
        until(&mut link, &["confirm_history", "reject_history"]).await?;
        Ok(restored)
    }
}

async fn welcomed(url: &Url) -> Result<(Connection, Value), String> {
    let link = Connection::open(url, &["actioncable-v1-ext-json"], ATTEMPT).await;
    let mut link = link.map_err(|error| error.to_string())?;
    let welcome = until(&mut link, &["welcome"]).await?;
    Ok((link, welcome))
}

async fn send(link: &mut Connection, command: &Value) -> Result<(), String> {
    link.send(command.to_string()).await.map_err(|error| error.to_string())
}

/// Reads until a frame of one of these types comes.
async fn until(link: &mut Connection, types: &[&str]) -> Result<Value, String> {
    let read = async {
        loop {
            match link.next().await {
                Some(Ok(Received::Text(text))) => {
                    let frame: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
                    if frame["type"].as_str().is_some_and(|kind| types.contains(&kind)) {
                        return Ok(frame);
                    }
                }
                other => return Err(format!("waiting for {types:?}: {other:?}")),
            }
        }
    };
    tokio::time::timeout(ATTEMPT, read).await.map_err(|_| format!("no {types:?} in time"))?
}
