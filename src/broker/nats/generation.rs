//! One NATS connection, from connecting to its loss, and the loop that makes the next one.
//!
//! A connection is never resumed. When it is lost everything in flight on it ends, what the client library still
//! buffered is discarded, and a new connection is made, whose log is compared with what this node remembers before
//! anything is published, read or delivered through it.

use super::api::{Api, ApiError, code};
use super::config::bucket_stream;
use super::heads::Asks;
use super::layout::Prepared;
use super::live::LiveSet;
use super::logs::{Log, Rules};
use super::maintain::broken;
use super::mux::{Mux, RequestError};
use super::permissions::{Denial, Denials};
use super::pulse::Pulse;
use super::{Core, SetupError, commands, heads, live};
use crate::broker::{Policy, Table};
use crate::critical::critical;
use crate::metrics;
use crate::nats::connect::{ConnectError, parse_server, shown};
use crate::nats::socket::Socket;
use crate::protocol::StreamName;
use crate::protocol::names::random_text;
use async_nats::connection::State;
use async_nats::{Client, Event, ServerAddr, ServerInfo, Subscriber};
use serde_json::Value;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Loss of the connection shows in the library's state; events about it can be dropped.
const STATE_POLL: Duration = Duration::from_millis(50);
const BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);
/// In a cluster another server may be able to do what this one cannot.
const PREPARE_PATIENCE: Duration = Duration::from_secs(10);
/// A misfit that only an operator can mend is looked at again this often.
const FATAL_PAUSE: Duration = Duration::from_secs(5);

/// The life of one connection.
#[derive(Clone)]
pub(super) struct Link {
    /// Cancelled when the connection is lost or given up; everything that belongs to it ends then.
    pub dead: CancellationToken,
    /// Messages were dropped on our side: heads of all open streams must be compared. (The library says which
    /// subscription, but drops such events under pressure itself.)
    pub slow: Arc<AtomicBool>,
    /// What NATS refused on this connection.
    pub denials: Arc<Denials>,
}

/// A connection that may not have been verified yet.
pub(super) struct Connection {
    pub link: Link,
    pub client: Client,
    pub api: Api,
    pub server: ServerInfo,
    socket: Socket,
    /// Copies that the cluster can keep, where nobody named a number; known once the meta bucket is there.
    pub copies: OnceLock<usize>,
    /// Subject token of this connection's own messages, which test the live feed (`pulse`).
    pub marker: String,
    /// Number of the newest one that came back among the remote commands.
    pub command_marker: watch::Sender<u64>,
}

/// The end of a connection's life, however it comes: what was sent through it ends here, so that no write is repeated on
/// another connection while its first try can still arrive.
struct End(Arc<Connection>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.link.dead.cancel();
        self.0.socket.abort();
    }
}

impl Connection {
    /// More than one server may answer: replicas lag, interest spreads later, leaders change.
    pub fn clustered(&self) -> bool {
        self.server.cluster.is_some()
    }

    /// Subscribes, unless the connection is lost meanwhile.
    pub async fn subscribe(&self, subject: String) -> Result<Subscriber, ApiError> {
        tokio::select! {
            subscriber = self.client.subscribe(subject) => subscriber.map_err(|e| ApiError::Unreadable(e.to_string())),
            () = self.link.dead.cancelled() => Err(RequestError::NotSent("connection to NATS lost").into()),
        }
    }
}

/// A verified connection: the log's identity has been checked.
pub(super) struct Generation {
    pub connection: Arc<Connection>,
    pub table: Arc<Table>,
    /// One per policy, in the table's order; `None` where nothing is stored.
    pub logs: Vec<Option<Arc<Log>>>,
    pub commands: String,
    pub command_asks: Asks,
    /// Of the bucket of saved sessions.
    pub sessions: Asks,
    pub live: LiveSet,
}

impl Generation {
    pub fn api(&self) -> &Api {
        &self.connection.api
    }

    pub fn dead(&self) -> &CancellationToken {
        &self.connection.link.dead
    }

    /// The log of a stream and its policy; no log: nothing of it is stored.
    pub fn of(&self, stream: &StreamName) -> (&Policy, Option<&Arc<Log>>) {
        let place = self.table.place(stream);
        (&self.table.policies()[place], self.logs[place].as_ref())
    }

    pub fn own_logs(&self) -> impl Iterator<Item = &Arc<Log>> {
        self.logs.iter().flatten()
    }
}

impl Core {
    /// Connects, verifies, looks after the connection, and starts over, until the broker is stopped.
    pub(super) async fn supervise(self: Arc<Self>) {
        let mut known: Vec<ServerAddr> = Vec::new();
        let mut backoff = BACKOFF;
        for number in 1.. {
            let outcome = tokio::select! {
                outcome = self.one_generation(number, &mut known) => outcome,
                () = self.stop.cancelled() => return,
            };
            let pause = match outcome {
                Ok(()) => {
                    backoff = BACKOFF;
                    backoff
                }
                Err(error) => {
                    self.failed(&error);
                    backoff = (backoff * 2).min(LONGEST_BACKOFF);
                    if matches!(error, SetupError::Fatal(_)) { FATAL_PAUSE } else { backoff }
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    fn failed(&self, error: &SetupError) {
        let reason = error.to_string();
        let news = self.status.send_if_modified(|status| {
            let news = *status.reason != *reason || status.ready;
            status.ready = false;
            status.readable = false;
            status.reason = Arc::from(reason.as_str());
            news
        });
        match error {
            SetupError::Fatal(fatal) => {
                if news {
                    tracing::error!(reason, "cannot work with this NATS");
                }
                self.fatal.send_replace(Some(fatal.clone()));
            }
            _ if news => tracing::warn!(reason, "NATS is not available"),
            _ => {}
        }
        // Last: who waits for it looks for the verdict.
        self.attempts.send_modify(|attempts| *attempts += 1);
    }

    /// Tries the known servers one after another.
    pub(super) async fn connect(
        self: &Arc<Self>,
        number: u64,
        known: &mut Vec<ServerAddr>,
    ) -> Result<Connection, SetupError> {
        let configured = self.config.client.addresses().map_err(|e| SetupError::fatal(e.to_string()))?;
        let mut servers = configured.clone();
        // Nodes begin at different servers, and a server that just failed us is not the first to be tried again.
        let start = self.config.node.bytes().map(usize::from).sum::<usize>() + number as usize;
        let len = servers.len();
        servers.rotate_left(start % len);
        servers.extend(known.iter().filter(|s| !servers.contains(s)).cloned().collect::<Vec<_>>());
        // What is said of an outage is about the same server each time, whichever was tried first: it is news only once.
        let mut failure: Option<(usize, String)> = None;
        for server in servers {
            let denials = Arc::new(Denials::new(self.names.clone()));
            let link = Link { dead: CancellationToken::new(), slow: Arc::default(), denials: denials.clone() };
            let on_event = {
                let (link, core) = (link.clone(), Arc::downgrade(self));
                move |event| match event {
                    Event::Disconnected | Event::Closed => link.dead.cancel(),
                    Event::SlowConsumer(_) if !link.slow.swap(true, Ordering::Relaxed) => {
                        metrics::SLOW_CONSUMER.inc();
                        if let Some(core) = core.upgrade() {
                            core.nudge.notify_one();
                        }
                    }
                    Event::ServerError(error) => {
                        if let Some(core) = core.upgrade() {
                            core.server_error(&link, &error);
                        }
                    }
                    Event::LameDuckMode => tracing::info!("the NATS server is about to leave"),
                    _ => {}
                }
            };
            let unacknowledged = self.config.unacknowledged(&self.config.limits.table);
            match self.config.client.connect_once(&server, unacknowledged, on_event).await {
                Ok((client, socket)) => {
                    let info = client.server_info();
                    // Discovered servers come without scheme and credentials.
                    let scheme = if server.tls_required() { "tls" } else { "nats" };
                    *known = info
                        .connect_urls
                        .iter()
                        .filter_map(|u| parse_server(&format!("{scheme}://{u}")).ok())
                        .collect();
                    metrics::STORE_CONNECTS.inc();
                    let api = Api { mux: Mux::new(client.clone(), denials) };
                    let (copies, command_marker) = (OnceLock::new(), watch::Sender::new(0));
                    // `~` is in no stream's token but in front of a hash.
                    let marker = format!("~feed-{}", random_text(12));
                    let server = info;
                    return Ok(Connection { link, client, api, server, socket, copies, marker, command_marker });
                }
                Err(ConnectError::Config(text)) => return Err(SetupError::fatal(text)),
                Err(error) => {
                    tracing::debug!(server = shown(&server), %error, "connection attempt failed");
                    let place = configured.iter().position(|one| *one == server).unwrap_or(usize::MAX);
                    if failure.as_ref().is_none_or(|(known, _)| place < *known) {
                        failure = Some((place, error.to_string()));
                    }
                }
            }
        }
        Err(SetupError::retry(failure.map_or_else(|| "no NATS server answers".into(), |(_, text)| text)))
    }

    /// From connecting to the loss of the connection. An error means that it never became usable.
    async fn one_generation(self: &Arc<Self>, number: u64, known: &mut Vec<ServerAddr>) -> Result<(), SetupError> {
        let connection = Arc::new(self.connect(number, known).await?);
        let _end = End(connection.clone());
        let inbox = connection.subscribe(connection.api.mux.subject()).await?;
        self.tasks.spawn(critical("broker.inbox", {
            let connection = connection.clone();
            async move { connection.api.mux.run(inbox, &connection.link).await }
        }));
        self.tasks.spawn(critical("broker.refusals", {
            let connection = connection.clone();
            async move { connection.api.mux.end_refused(&connection.link).await }
        }));
        let watching = watch_state(connection.client.clone(), connection.link.dead.clone());
        self.tasks.spawn(critical("broker.link", watching));

        let begin = Instant::now();
        let generation = loop {
            match self.prepare(&connection).await {
                Ok(prepared) => break prepared,
                Err(error @ SetupError::Fatal(_)) => {
                    // This node is not running: it stands in nobody's way.
                    if let Err(error) = self.end_lease(&connection).await {
                        tracing::debug!(%error, "cannot end this node's lease");
                    }
                    return Err(error);
                }
                Err(error) if connection.link.dead.is_cancelled() => return Err(explained(error, &connection)),
                Err(error) if connection.clustered() && begin.elapsed() > PREPARE_PATIENCE => {
                    return Err(explained(error, &connection));
                }
                // A subscription that was refused stays refused, also when it is allowed meanwhile.
                Err(error) if connection.link.denials.vital().iter().any(Denial::is_subscription) => {
                    return Err(explained(error, &connection));
                }
                Err(error) => self.failed(&explained(error, &connection)),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        // The policies in effect may not be those that were configured.
        connection.socket.limit(self.config.unacknowledged(&generation.table));
        let generation = Arc::new(generation);
        let mut pulse = Pulse::start(self, &generation).await?;
        let verdict = pulse.check(self, &generation).await;
        self.settle();
        self.adopt_logs(&generation.table, &generation.logs);
        self.set_rules(Rules { table: generation.table.clone(), next: None });
        for log in generation.own_logs() {
            let (policy, log, epoch) = (&*log.policy, &log.name, log.epoch());
            tracing::info!(generation = number, policy, log, epoch = epoch.as_str(), "NATS is ready");
        }
        self.fatal.send_replace(None);
        self.current.send_replace(Some(generation.clone()));
        let reason = broken(&verdict);
        if !reason.is_empty() {
            tracing::error!(reason, "NATS is not ready");
        }
        self.status.send_modify(|status| {
            status.ready = reason.is_empty();
            status.readable = true;
            status.generation = number;
            status.reason = Arc::from(reason);
        });

        self.maintain(&generation, pulse).await;

        self.current.send_replace(None);
        self.away();
        self.status.send_modify(|status| {
            status.ready = false;
            status.readable = false;
            status.reason = Arc::from("connection to NATS lost");
        });
        if !self.stop.is_cancelled() {
            tracing::warn!(generation = number, "connection to NATS ended");
        }
        Ok(())
    }

    /// Checks the server, sets up what we need in it, verifies the log and catches up with remote commands.
    async fn prepare(self: &Arc<Self>, connection: &Arc<Connection>) -> Result<Generation, SetupError> {
        check_version(&connection.server.version)?;
        // It may be allowed by now; what is not is refused again.
        connection.link.denials.forget_publications();
        // Only the leader of the cluster's metadata answers, which may have died just now; nothing else that is needed where
        // everything stands already depends on it.
        let known = self.is_settled() && connection.clustered();
        let asked = if known { Ok(Value::Null) } else { connection.api.call::<Value>("INFO", &Value::Null).await };
        match asked {
            Ok(_) => {}
            // In a cluster another server may have it, and before there is a quorum nobody answers.
            Err(ApiError::NoResponders) if !connection.server.jetstream && !connection.clustered() => {
                return Err(SetupError::fatal("JetStream is not enabled on this NATS server: start it with -js"));
            }
            // Behind a gateway the majority is one of all clusters. Without it nothing can be made or changed, but what is
            // there works; whether it is shows below.
            Err(error) if error.is(code::SYSTEM_UNAVAILABLE) && connection.clustered() => {}
            Err(error) => return Err(error.into()),
        }
        let Prepared { table, logs: found, commands: command_log } = self.set_up(connection).await?;
        self.keep_witnesses_of(&found);
        self.settle_suspicion(connection, &table, &found, &command_log).await?;
        self.ask_peers(connection, &table, &found).await?;
        let mut epochs = Vec::with_capacity(found.len());
        for (policy, found) in table.policies().iter().zip(&found) {
            epochs.push(match found {
                Some(found) => {
                    let witness = self.witness(&found.name);
                    Some(self.verify(connection, &policy.name, &found.name, &witness).await?)
                }
                None => None,
            });
        }
        let named = table.policies().iter().zip(&found);
        let named: Vec<_> =
            named.filter_map(|(policy, log)| Some((&*policy.name, log.as_ref()?.name.as_str()))).collect();
        self.try_permissions(connection, &named, &command_log).await;
        if let Some(denial) = connection.link.denials.vital().iter().find(|denial| !denial.is_subscription()) {
            return Err(SetupError::retry(connection.link.denials.text(denial)));
        }
        let remote = self.follow_commands(connection, &command_log).await?;
        self.renew_lease(connection).await?;
        let (live, inputs) = LiveSet::new();
        let mut logs = Vec::with_capacity(found.len());
        // The tasks hold the connection's parts, not the generation: it ends with its last user.
        for (place, (found, epoch)) in found.into_iter().zip(epochs).enumerate() {
            let (Some(found), Some(epoch)) = (found, epoch) else {
                logs.push(None);
                continue;
            };
            let asks = self.answer_asks(connection, &found.name);
            let (policy, witness) = (table.policies()[place].name.clone(), self.witness(&found.name));
            logs.push(Some(Arc::new(Log::new(place, policy, found, asks, witness, epoch))));
        }
        let command_asks = self.answer_asks(connection, &command_log);
        let sessions = self.answer_asks(connection, &bucket_stream(&self.names.sessions_bucket()));
        let generation = Generation {
            connection: connection.clone(),
            table,
            logs,
            commands: command_log,
            command_asks,
            sessions,
            live,
        };
        for input in inputs {
            self.tasks.spawn(critical("broker.feed", live::feed(self.clone(), connection.clone(), input)));
        }
        let commands = commands::run(self.clone(), connection.clone(), generation.commands.clone(), remote);
        self.tasks.spawn(critical("broker.commands", commands));
        self.tasks.spawn(critical("broker.peers", self.clone().answer_peers(connection.clone())));
        self.tasks.spawn(critical("broker.sessions_over", self.clone().hear_of_sessions_over(connection.clone())));
        Ok(generation)
    }

    /// Questions about a log or bucket are answered until the connection ends.
    fn answer_asks(&self, connection: &Arc<Connection>, stream: &str) -> Asks {
        let (asks, asked) = heads::asks();
        let answering = heads::answer(connection.clone(), stream.to_owned(), self.clocks.clone(), asked);
        self.tasks.spawn(critical("broker.heads", answering));
        asks
    }
}

/// What NATS has refused explains why it did not answer.
fn explained(error: SetupError, connection: &Connection) -> SetupError {
    match (error, connection.link.denials.reason()) {
        (SetupError::Retry(_), Some(reason)) => SetupError::Retry(reason),
        (error, _) => error,
    }
}

/// Ends the connection's life once the library has lost it. Its state never recovers: it makes no second connection.
async fn watch_state(client: Client, dead: CancellationToken) {
    let mut poll = tokio::time::interval(STATE_POLL);
    loop {
        tokio::select! {
            _ = poll.tick() => {}
            () = dead.cancelled() => return,
        }
        if client.connection_state() != State::Connected {
            dead.cancel();
        }
    }
}

/// Per-message time to live, batch direct gets and stream metadata came with 2.11.
fn check_version(version: &str) -> Result<(), SetupError> {
    let mut parts = version.split(['.', '-']).map(|part| part.parse::<u64>().unwrap_or(0));
    let (major, minor) = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if (major, minor) < (2, 11) {
        return Err(SetupError::fatal(format!("nats-server {version} is too old: 2.11 or newer is needed")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for good in ["2.11.0", "2.15.1", "2.12.0-RC.1", "3.0.0"] {
            assert!(check_version(good).is_ok(), "{good}");
        }
        for bad in ["2.10.29", "1.4.1", ""] {
            assert!(check_version(bad).unwrap_err().to_string().contains("2.11"), "{bad}");
        }
    }
}
