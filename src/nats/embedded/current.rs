//! Whether what this member of a cluster keeps is up to date.
//!
//! No single witness is enough. A member that has just started does not know yet what it should have: its own health is
//! good as long as it has not heard of the newest. A leader's view of a member is stale until the member has spoken again:
//! a wiped one still counts as current. So all of this must hold, asked in this order:
//!
//! 1. the leader of the cluster's metadata says that this member's copy of it is current: then it knows what it has to
//!    keep;
//! 2. the leader of each stream with a copy here says that this copy is current, and how far the stream goes;
//! 3. this member says that it is healthy, and that each of these copies goes at least as far as that.

use super::config::Credentials;
use super::server::{State, Status};
use async_nats::Client;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Time for one answer: a frozen server must not hold up a question for long.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a member that catches up is asked.
const CATCHING_UP_PERIOD: Duration = Duration::from_millis(100);
/// How often one that is up to date is asked.
const PERIOD: Duration = Duration::from_secs(2);
/// Under load a copy is a moment behind its leader; longer than this is no moment.
const TOLERATED: Duration = Duration::from_secs(5);

/// Connections to one member, as a client and to the system account.
pub(super) struct Witnesses {
    client: Client,
    system: Client,
}

/// Something did not answer, which says nothing about this member.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Silent(String);

/// A stream with a copy here that another member leads.
#[derive(Debug, PartialEq, Eq)]
struct Led {
    name: String,
    /// Its last sequence at its leader.
    last: u64,
}

impl Witnesses {
    pub async fn connect(url: &str, client: &Credentials, system: &Credentials) -> Result<Self, Silent> {
        let connect = async |credentials: &Credentials| {
            let options = async_nats::ConnectOptions::new()
                .user_and_password(credentials.user.clone(), credentials.password.expose().to_owned())
                .name("carrick supervisor")
                .connection_timeout(PATIENCE)
                .ignore_discovered_servers();
            options.connect(url).await.map_err(|error| Silent(error.to_string()))
        };
        Ok(Self { client: connect(client).await?, system: connect(system).await? })
    }

    /// What is not up to date on this member; `None`: everything is, as of this call.
    pub async fn behind(&self) -> Result<Option<String>, Silent> {
        let server = self.system.server_info();
        let name = &server.server_name;
        let meta = ask(&self.system, "$SYS.REQ.SERVER.PING.JSZ", &json!({"leader_only": true})).await?;
        let meta = &meta["data"]["meta_cluster"];
        if meta["leader"] != **name && !is_current(meta, name).unwrap_or(false) {
            return Ok(Some("the cluster's metadata".into()));
        }
        let (mut led, mut leaderless) = (Vec::new(), BTreeSet::new());
        for page in self.streams().await? {
            leaderless
                .extend(page["missing"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned));
            for stream in page["streams"].as_array().into_iter().flatten() {
                match judge(stream, name) {
                    Ok(found) => led.extend(found),
                    Err(behind) => return Ok(Some(behind)),
                }
            }
        }
        let health = ask(&self.system, &format!("$SYS.REQ.SERVER.{}.HEALTHZ", server.server_id), &json!({})).await?;
        if health["data"]["status"] != "ok" {
            return Ok(Some(health["data"]["error"].as_str().unwrap_or("it is not healthy").to_owned()));
        }
        let request = json!({"accounts": true, "streams": true});
        let own = ask(&self.system, &format!("$SYS.REQ.SERVER.{}.JSZ", server.server_id), &request).await?;
        Ok(compare(&led, &leaderless, &kept(&own["data"])))
    }

    /// All streams as their leaders see them.
    async fn streams(&self) -> Result<Vec<Value>, Silent> {
        let mut pages: Vec<Value> = Vec::new();
        let mut offset = 0;
        loop {
            let page = ask(&self.client, "$JS.API.STREAM.LIST", &json!({"offset": offset})).await?;
            if !page["error"].is_null() {
                return Err(Silent(page["error"]["description"].as_str().unwrap_or("no list of streams").to_owned()));
            }
            let listed = |field: &str| page[field].as_array().map_or(0, Vec::len) as u64;
            let count = listed("streams") + listed("missing");
            offset += count;
            let done = count == 0 || offset >= page["total"].as_u64().unwrap_or(0);
            pages.push(page);
            if done {
                return Ok(pages);
            }
        }
    }

    /// Ends both connections.
    pub async fn close(self) {
        // They may be gone already, with the server.
        let _ = self.client.drain().await;
        let _ = self.system.drain().await;
    }
}

/// Returns when everything that the member at `url` keeps is up to date.
pub(super) async fn until_current(url: &str, client: &Credentials, system: &Credentials) {
    let mut told = String::new();
    loop {
        let found = match Witnesses::connect(url, client, system).await {
            Ok(witnesses) => {
                let found = witnesses.behind().await;
                witnesses.close().await;
                found
            }
            Err(silent) => Err(silent),
        };
        let what = match found {
            Ok(None) => return,
            Ok(Some(what)) => what,
            Err(silent) => silent.to_string(),
        };
        if what != told {
            tracing::debug!(context = "enats", what, "the copies on this member are not up to date");
            told = what;
        }
        tokio::time::sleep(CATCHING_UP_PERIOD).await;
    }
}

/// Watches whether the copies on a member that was up to date stay so, and says it in its status. Never returns.
pub(super) async fn stay_current(
    url: &str,
    client: &Credentials,
    system: &Credentials,
    status: &watch::Sender<Status>,
) {
    let mut witnesses: Option<Witnesses> = None;
    let mut behind_since: Option<Instant> = None;
    loop {
        tokio::time::sleep(PERIOD).await;
        if witnesses.is_none() {
            witnesses = Witnesses::connect(url, client, system).await.ok();
        }
        let Some(connected) = &witnesses else { continue };
        match connected.behind().await {
            Ok(None) => {
                behind_since = None;
                if change(status, State::CatchingUp, State::Ready) {
                    tracing::info!(context = "enats", "the copies on this member are up to date again");
                }
            }
            Ok(Some(what)) => {
                let since = *behind_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= TOLERATED && change(status, State::Ready, State::CatchingUp) {
                    tracing::warn!(context = "enats", what, "the copies on this member are not up to date any more");
                }
            }
            // An election, or this member is cut off: no evidence about its copies.
            Err(error) => {
                tracing::debug!(context = "enats", %error, "cannot tell whether this member is up to date");
                witnesses = None;
            }
        }
    }
}

/// True if the state was `from`.
fn change(status: &watch::Sender<Status>, from: State, to: State) -> bool {
    status.send_if_modified(|status| {
        let changes = status.state == from;
        if changes {
            status.state = to;
        }
        changes
    })
}

async fn ask(client: &Client, subject: &str, body: &Value) -> Result<Value, Silent> {
    let silent = |error: &dyn std::fmt::Display| Silent(format!("{subject}: {error}"));
    let body = serde_json::to_vec(body).expect("requests are plain JSON");
    let answer = tokio::time::timeout(PATIENCE, client.request(subject.to_owned(), body.into())).await;
    let answer = answer.map_err(|error| silent(&error))?.map_err(|error| silent(&error))?;
    serde_json::from_slice(&answer.payload).map_err(|error| silent(&error))
}

/// Whether the leader of this group says that a member is current; `None`: it is no replica there.
fn is_current(cluster: &Value, member: &str) -> Option<bool> {
    let mut replicas = cluster["replicas"].as_array().into_iter().flatten();
    let replica = replicas.find(|replica| replica["name"] == *member)?;
    Some(replica["current"] == true && replica["offline"] != true)
}

/// What has to be compared of this stream; `Err`: the copy of this member is behind.
fn judge(stream: &Value, member: &str) -> Result<Option<Led>, String> {
    let name = stream["config"]["name"].as_str().unwrap_or_default().to_owned();
    match is_current(&stream["cluster"], member) {
        // It leads the stream, or keeps no copy.
        None => Ok(None),
        Some(true) => Ok(Some(Led { name, last: stream["state"]["last_seq"].as_u64().unwrap_or(u64::MAX) })),
        Some(false) => Err(name),
    }
}

/// Last sequences of the copies on this server.
fn kept(jetstream: &Value) -> BTreeMap<&str, u64> {
    let accounts = jetstream["account_details"].as_array().into_iter().flatten();
    let streams = accounts.flat_map(|account| account["stream_detail"].as_array().into_iter().flatten());
    streams
        .filter_map(|stream| Some((stream["name"].as_str()?, stream["state"]["last_seq"].as_u64().unwrap_or(0))))
        .collect()
}

fn compare(led: &[Led], leaderless: &BTreeSet<String>, kept: &BTreeMap<&str, u64>) -> Option<String> {
    let short = led.iter().find(|stream| kept.get(&*stream.name).is_none_or(|last| *last < stream.last));
    // Nobody says how far these go.
    let unknown = || leaderless.iter().find(|name| kept.contains_key(&***name));
    short.map(|stream| stream.name.clone()).or_else(|| unknown().cloned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(replicas: Value) -> Value {
        json!({"config": {"name": "s"}, "state": {"last_seq": 7}, "cluster": {"leader": "a", "replicas": replicas}})
    }

    #[test]
    fn a_copy_counts_when_its_leader_says_so_and_it_goes_as_far() {
        let led = |replicas| judge(&stream(replicas), "b");
        assert_eq!(led(json!([])), Ok(None));
        assert_eq!(led(json!([{"name": "c", "current": false}])), Ok(None), "another member's copy");
        assert_eq!(led(json!([{"name": "b", "current": false, "lag": 3}])), Err("s".into()));
        assert_eq!(led(json!([{"name": "b", "current": true, "offline": true}])), Err("s".into()));
        let found = led(json!([{"name": "b", "current": true}])).unwrap().unwrap();
        assert_eq!(found, Led { name: "s".into(), last: 7 });

        let server =
            |last: u64| json!({"account_details": [{"stream_detail": [{"name": "s", "state": {"last_seq": last}}]}]});
        let found = [found];
        let none = BTreeSet::new();
        assert_eq!(compare(&found, &none, &kept(&server(7))), None);
        assert_eq!(compare(&found, &none, &kept(&server(6))), Some("s".into()));
        assert_eq!(compare(&found, &none, &kept(&json!({}))), Some("s".into()), "it has not heard of the stream yet");
    }

    #[test]
    fn a_stream_without_a_leader_counts_where_there_is_a_copy_of_it() {
        let leaderless = BTreeSet::from(["s".to_owned()]);
        assert_eq!(compare(&[], &leaderless, &BTreeMap::from([("s", 7)])), Some("s".into()));
        assert_eq!(compare(&[], &leaderless, &BTreeMap::from([("other", 7)])), None);
    }
}
