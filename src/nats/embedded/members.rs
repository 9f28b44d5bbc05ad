//! The members of an embedded cluster, as its system account knows them: who is there, who is up to date, and how one that
//! will not come back is removed.

use super::config::Credentials;
use async_nats::Client;
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// Time for the answers of all members; a silent one counts as away.
const PATIENCE: Duration = Duration::from_secs(2);
/// Members answer within milliseconds of each other.
const QUIET: Duration = Duration::from_millis(300);
/// How often an unfinished removal is looked at.
const PERIOD: Duration = Duration::from_millis(200);

/// One member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    /// It answers.
    pub online: bool,
    /// It is the leader of the cluster's metadata.
    pub leader: bool,
    /// What is wrong with its copies, in nats-server's words. `None`: everything it keeps is up to date, or it is away.
    pub trouble: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum MembersError {
    #[error(
        "cannot connect to the embedded nats-server at {url}: {source}; is it running, and is the secret the same?"
    )]
    Connect { url: String, source: async_nats::ConnectError },
    #[error("the cluster does not answer ({0}): a majority of its members must be up")]
    Silent(String),
    #[error("{name} is no member of the cluster; members are {members}")]
    Unknown { name: String, members: String },
    #[error("{0} is up: stop it first; a member that only restarts must not be removed")]
    Online(String),
    #[error("the cluster refused: {0}")]
    Refused(String),
    #[error("{name} was removed, but not all copies are up to date within {seconds} s: {what}")]
    Incomplete { name: String, seconds: u64, what: String },
}

/// Connections to one member: as a client, and to the system account.
pub struct Members {
    client: Client,
    system: Client,
}

impl Members {
    pub async fn connect(url: &str, client: &Credentials, system: &Credentials) -> Result<Self, MembersError> {
        let connect = async |credentials: &Credentials| {
            let options = async_nats::ConnectOptions::new()
                .user_and_password(credentials.user.clone(), credentials.password.expose().to_owned())
                .name("carrick cluster")
                .connection_timeout(PATIENCE);
            let connected = options.connect(url).await;
            connected.map_err(|source| MembersError::Connect { url: url.to_owned(), source })
        };
        Ok(Self { client: connect(client).await?, system: connect(system).await? })
    }

    /// All members, by name.
    pub async fn list(&self) -> Result<Vec<Member>, MembersError> {
        let meta = ask(&self.system, "$SYS.REQ.SERVER.PING.JSZ", &json!({"leader_only": true})).await?;
        let meta = &meta["data"]["meta_cluster"];
        let leader = meta["leader"].as_str().ok_or_else(|| MembersError::Silent("no leader".to_owned()))?;
        let others = meta["replicas"].as_array().into_iter().flatten();
        let names = others.filter_map(|peer| peer["name"].as_str()).chain([leader]);
        let answers = self.health().await?;
        let mut members: Vec<Member> = names
            .map(|name| Member {
                name: name.to_owned(),
                online: answers.contains_key(name),
                leader: name == leader,
                trouble: answers.get(name).cloned().flatten(),
            })
            .collect();
        members.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(members)
    }

    /// What each server that answers says of itself.
    async fn health(&self) -> Result<BTreeMap<String, Option<String>>, MembersError> {
        let silent = |error: &dyn std::fmt::Display| MembersError::Silent(error.to_string());
        let inbox = self.system.new_inbox();
        let mut answers = self.system.subscribe(inbox.clone()).await.map_err(|error| silent(&error))?;
        let question = self.system.publish_with_reply("$SYS.REQ.SERVER.PING.HEALTHZ", inbox, "{}".into());
        question.await.map_err(|error| silent(&error))?;
        let mut health = BTreeMap::new();
        let mut patience = PATIENCE;
        while let Ok(Some(answer)) = tokio::time::timeout(patience, answers.next()).await {
            patience = QUIET;
            let Ok(answer) = serde_json::from_slice::<Value>(&answer.payload) else { continue };
            let Some(name) = answer["server"]["name"].as_str() else { continue };
            let good = answer["data"]["status"] == "ok";
            let trouble = || answer["data"]["error"].as_str().unwrap_or("unhealthy").to_owned();
            health.insert(name.to_owned(), (!good).then(trouble));
        }
        Ok(health)
    }

    /// Removes a member that is away for good. Its copies move to members that have none; answers when all copies are up
    /// to date, which is when the next member may be stopped.
    pub async fn remove(&self, name: &str, patience: Duration) -> Result<(), MembersError> {
        let members = self.list().await?;
        match members.iter().find(|member| member.name == name) {
            None => {
                let members = members.into_iter().map(|member| member.name).collect::<Vec<_>>().join(", ");
                return Err(MembersError::Unknown { name: name.to_owned(), members });
            }
            Some(member) if member.online => return Err(MembersError::Online(name.to_owned())),
            Some(_) => {}
        }
        let answer = ask(&self.system, "$JS.API.SERVER.REMOVE", &json!({"peer": name})).await?;
        if answer["success"] != true {
            let why = answer["error"]["description"].as_str().unwrap_or("no reason given");
            return Err(MembersError::Refused(why.to_owned()));
        }
        let deadline = Instant::now() + patience;
        loop {
            let what = match self.incomplete().await {
                Ok(None) => return Ok(()),
                Ok(Some(what)) => what,
                Err(error) => error.to_string(),
            };
            if Instant::now() >= deadline {
                return Err(MembersError::Incomplete { name: name.to_owned(), seconds: patience.as_secs(), what });
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// Which copies are missing or behind; `None` if none are.
    pub async fn incomplete(&self) -> Result<Option<String>, MembersError> {
        let list = ask(&self.client, "$JS.API.STREAM.LIST", &Value::Null).await?;
        if let Some(streams) = list["missing"].as_array().filter(|missing| !missing.is_empty()) {
            return Ok(Some(format!("{} streams without a leader", streams.len())));
        }
        for stream in list["streams"].as_array().into_iter().flatten() {
            let wanted = stream["config"]["num_replicas"].as_u64().unwrap_or(1);
            let peers = stream["cluster"]["replicas"].as_array().map_or(&[][..], Vec::as_slice);
            let current = peers.iter().filter(|peer| peer["current"] == true && peer["offline"] != true).count();
            if (current as u64) + 1 < wanted {
                let name = stream["config"]["name"].as_str().unwrap_or_default();
                return Ok(Some(format!("{name} has {} of {wanted} copies", current + 1)));
            }
        }
        // Last: leaders think well of a member that has just come back.
        let troubled =
            self.health().await?.into_iter().find_map(|(name, trouble)| Some(format!("{name}: {}", trouble?)));
        Ok(troubled)
    }
}

async fn ask(client: &Client, subject: &str, body: &Value) -> Result<Value, MembersError> {
    let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(body).expect("requests are plain JSON") };
    let silent = |error: &dyn std::fmt::Display| MembersError::Silent(format!("{subject}: {error}"));
    let answer = tokio::time::timeout(PATIENCE, client.request(subject.to_owned(), body.into())).await;
    let answer = answer.map_err(|error| silent(&error))?.map_err(|error| silent(&error))?;
    serde_json::from_slice(&answer.payload).map_err(|error| silent(&error))
}
