//! The broker against a real nats-server.

mod cluster;
mod faults;
mod frozen;
mod live;
mod log;
mod past;
mod policies;
mod range;
mod remote;
mod server;
mod start;
mod torn;

use super::{Admin, NatsBroker, NatsBrokerConfig};
use crate::broker::{
    Broker, Feed, Head, Life, Limits, Looked, Over, Overflow, RemoteDisconnect, SessionKey, Unavailable,
};
use crate::nats::connect::ClientConfig;
use crate::protocol::{Message, MessageId, Meta, Publication, StreamName};
use bytes::Bytes;
use server::Server;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the broker told the node.
#[derive(Clone, Debug, PartialEq)]
enum Told {
    Live(StreamName, u64, Arc<Message>),
    Transient(StreamName, Arc<Message>, Overflow),
    Lagged(StreamName),
    Disconnect(u64, RemoteDisconnect),
    CommandsLost,
    Over(SessionKey, Over),
}

#[derive(Default)]
struct Recorder(Mutex<Vec<Told>>);

impl Recorder {
    fn tell(&self, told: Told) {
        self.0.lock().unwrap().push(told);
    }

    fn all(&self) -> Vec<Told> {
        self.0.lock().unwrap().clone()
    }

    /// `(previous, offset, data)` of the live messages of a stream.
    fn live(&self, stream: &StreamName) -> Vec<(u64, u64, String)> {
        let of_stream = |told| match told {
            Told::Live(name, previous, message) if name == *stream => {
                Some((previous, message.offset, String::from_utf8(message.payload.json().to_vec()).unwrap()))
            }
            _ => None,
        };
        self.all().into_iter().filter_map(of_stream).collect()
    }
}

impl Feed for Recorder {
    fn live(&self, stream: &StreamName, previous: u64, message: Arc<Message>) {
        self.tell(Told::Live(stream.clone(), previous, message));
    }
    fn transient(&self, stream: &StreamName, message: Arc<Message>, overflow: Overflow) {
        self.tell(Told::Transient(stream.clone(), message, overflow));
    }
    fn lagged(&self, stream: &StreamName) {
        self.tell(Told::Lagged(stream.clone()));
    }
    fn disconnect(&self, mark: u64, command: RemoteDisconnect) {
        self.tell(Told::Disconnect(mark, command));
    }
    fn commands_lost(&self) {
        self.tell(Told::CommandsLost);
    }
    fn session_over(&self, key: &SessionKey, over: Over) {
        self.tell(Told::Over(key.clone(), over));
    }
}

fn config(server: &Server) -> NatsBrokerConfig {
    let limits = Limits::plain(100, Duration::from_secs(300), Duration::from_secs(300));
    NatsBrokerConfig::new(ClientConfig::for_servers(&server.url()), limits)
}

struct Node {
    broker: Arc<NatsBroker>,
    feed: Arc<Recorder>,
}

/// How long something may take on a busy machine that takes a second on an idle one.
const PATIENCE: Duration = Duration::from_secs(60);

impl Node {
    async fn start(config: NatsBrokerConfig) -> Self {
        let feed = Arc::new(Recorder::default());
        let broker = NatsBroker::start(config, feed.clone()).await.unwrap();
        Self { broker, feed }
    }

    /// Started and ready.
    async fn ready(config: NatsBrokerConfig) -> Self {
        let node = Self::start(config).await;
        node.until_ready().await;
        node
    }

    async fn on(server: &Server) -> Self {
        Self::ready(config(server)).await
    }

    async fn until_ready(&self) {
        let mut status = self.broker.status();
        let ready = tokio::time::timeout(PATIENCE, status.wait_for(|s| s.ready)).await;
        assert!(ready.is_ok(), "not ready: {:?}", self.broker.status().borrow());
    }

    async fn until_generation_after(&self, generation: u64) {
        let mut status = self.broker.status();
        let newer = status.wait_for(|s| s.ready && s.generation > generation);
        assert!(tokio::time::timeout(PATIENCE, newer).await.is_ok(), "no new generation");
    }

    fn generation(&self) -> u64 {
        self.broker.status().borrow().generation
    }

    fn epoch(&self) -> String {
        self.broker.status().borrow().logs.states()[0].epoch.as_str().into()
    }

    /// The JetStream stream of the default policy.
    fn log(&self) -> String {
        let generation = self.broker.core.generation().unwrap();
        generation.logs.last().unwrap().as_ref().unwrap().name.clone()
    }

    async fn publish(&self, stream: &StreamName, data: &str) -> u64 {
        self.broker.append(publication(stream, data)).await.unwrap().offset
    }
}

fn heads_of(looked: Result<Vec<Looked>, Unavailable>) -> Vec<Head> {
    looked.unwrap().into_iter().map(|looked| looked.head).collect()
}

fn publication(stream: &StreamName, data: &str) -> Publication {
    Publication {
        stream: stream.clone(),
        data: Bytes::from(data.to_owned()),
        meta: Meta::default(),
        transient: false,
        id: MessageId::random(),
    }
}

/// Waits with patience until the condition holds.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while tokio::time::Instant::now() < deadline {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}
