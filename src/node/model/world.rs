//! The world around the nodes: one log in memory shared by all of them, and a feed per node that arrives late or not at
//! all.

use super::Op;
use super::peer::Peer;
use crate::auth::{Access, Authenticator, StreamsConfig};
use crate::broker::memory::MemoryBroker;
use crate::broker::*;
use crate::hub::{Hub, HubConfig, HubFeed};
use crate::node::{Node, NodeConfig, PingPrecision, Registry};
use crate::protocol::{Message, MessageId, Meta, Publication, StreamName};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Limits of a run.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub history_limit: u64,
    pub history_ttl: Duration,
    /// Nothing is ever lost in it: a rejected history is a false alarm.
    pub lossless: bool,
    /// Bytes that may wait for a client.
    pub max_pending: usize,
}

impl Shape {
    pub const ROOMY: Self =
        Self { history_limit: 10_000, history_ttl: Duration::from_secs(3_600), lossless: true, max_pending: 1 << 20 };
    pub const TIGHT: Self =
        Self { history_limit: 4, history_ttl: Duration::from_secs(12), lossless: false, ..Self::ROOMY };
    /// Room for two or three messages in a client's queue.
    pub const NARROW: Self = Self { max_pending: 700, ..Self::ROOMY };
}

enum Event {
    Live(StreamName, u64, Arc<Message>),
    Transient(StreamName, Arc<Message>, Overflow),
}

/// What the log tells all nodes; each node gets it when its feed is moved.
#[derive(Default)]
struct Wires {
    queues: Mutex<Vec<VecDeque<Event>>>,
    hubs: Mutex<Vec<HubFeed>>,
}

impl Wires {
    fn send(&self, event: impl Fn() -> Event) {
        for queue in self.queues.lock().unwrap().iter_mut() {
            queue.push_back(event());
        }
    }

    fn all(&self, tell: impl Fn(&HubFeed)) {
        self.hubs.lock().unwrap().iter().for_each(tell);
    }
}

struct SharedFeed(Arc<Wires>);

impl Feed for SharedFeed {
    fn live(&self, stream: &StreamName, previous: u64, message: Arc<Message>) {
        self.0.send(|| Event::Live(stream.clone(), previous, message.clone()));
    }

    fn transient(&self, stream: &StreamName, message: Arc<Message>, overflow: Overflow) {
        self.0.send(|| Event::Transient(stream.clone(), message.clone(), overflow));
    }

    fn lagged(&self, stream: &StreamName) {
        self.0.all(|hub| hub.lagged(stream));
    }

    fn disconnect(&self, mark: u64, command: RemoteDisconnect) {
        self.0.all(|hub| hub.disconnect(mark, command.clone()));
    }

    fn commands_lost(&self) {
        self.0.all(HubFeed::commands_lost);
    }

    fn session_over(&self, key: &SessionKey, over: Over) {
        self.0.all(|hub| hub.session_over(key, over));
    }
}

/// A node's view of the shared log.
struct NodeBroker {
    log: Arc<Mutex<Arc<MemoryBroker>>>,
    status: watch::Sender<Status>,
    /// The node is stopped until then.
    frozen: Mutex<Instant>,
}

impl NodeBroker {
    fn log(&self) -> Arc<MemoryBroker> {
        self.log.lock().unwrap().clone()
    }

    fn is_frozen(&self) -> bool {
        *self.frozen.lock().unwrap() > Instant::now()
    }

    /// Comes back when the node is not stopped.
    async fn thawed(&self) {
        while self.is_frozen() {
            let until = *self.frozen.lock().unwrap();
            tokio::time::sleep_until(until).await;
        }
    }

    /// A request leaves when the node runs, and its answer arrives when the node runs.
    async fn exchange<T>(&self, answer: impl Future<Output = T>) -> T {
        tokio::task::yield_now().await;
        self.thawed().await;
        let answer = answer.await;
        tokio::task::yield_now().await;
        self.thawed().await;
        answer
    }
}

#[async_trait]
impl Broker for NodeBroker {
    fn features(&self) -> Features {
        Features { history: true, sessions: true, shared: true }
    }
    fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }
    async fn append(&self, publication: Publication) -> Result<Appended, AppendError> {
        self.log().append(publication).await
    }
    async fn transient(&self, stream: &StreamName, message: Message) -> Result<(), Unavailable> {
        self.log().transient(stream, message).await
    }
    async fn open(&self, streams: &[StreamName]) -> Result<Vec<Looked>, Unavailable> {
        self.exchange(async { self.log().open(streams).await }).await
    }
    fn close(&self, _: &StreamName) {}
    async fn heads(&self, streams: &[StreamName]) -> Result<Vec<Looked>, Unavailable> {
        self.exchange(async { self.log().heads(streams).await }).await
    }
    async fn read(
        &self,
        stream: &StreamName,
        from: ReadFrom,
        up_to: u64,
        _: usize,
        bytes: usize,
    ) -> Result<Page, Unavailable> {
        // Small pages, so that replays take several.
        self.exchange(async { self.log().read(stream, from, up_to, 3, bytes).await }).await
    }
    async fn behind(&self, stream: &StreamName, x: u64) -> Result<Behind, Unavailable> {
        self.exchange(async { self.log().behind(stream, x).await }).await
    }
    async fn facts(&self, stream: &StreamName) -> Result<Facts, Unavailable> {
        self.exchange(async { self.log().facts(stream).await }).await
    }
    async fn load_session(&self, key: &SessionKey) -> Result<Option<StoredSession>, Unavailable> {
        self.exchange(async { self.log().load_session(key).await }).await
    }
    async fn save_session(
        &self,
        key: &SessionKey,
        body: Bytes,
        revision: Option<u64>,
        life: Life,
    ) -> Result<u64, SaveError> {
        self.exchange(async { self.log().save_session(key, body, revision, life).await }).await
    }
    async fn save_beside(&self, key: &SessionKey, body: Bytes, revision: Option<u64>) -> Result<u64, SaveError> {
        tokio::task::yield_now().await;
        self.log().save_beside(key, body, revision).await
    }
    async fn announce_over(&self, key: &SessionKey, over: Over) {
        self.log().announce_over(key, over).await;
    }
    async fn delete_session(&self, key: &SessionKey, revision: Option<u64>) -> Result<bool, Unavailable> {
        self.log().delete_session(key, revision).await
    }
    async fn disconnect(&self, command: &RemoteDisconnect) -> Result<u64, AppendError> {
        self.log().disconnect(command).await
    }
    async fn mark(&self, identifiers: &str) -> Result<u64, Unavailable> {
        self.log().mark(identifiers).await
    }
}

struct TestNode {
    node: Arc<Node>,
    broker: Arc<NodeBroker>,
}

pub struct World {
    shape: Shape,
    wires: Arc<Wires>,
    log: Arc<Mutex<Arc<MemoryBroker>>>,
    nodes: Vec<TestNode>,
    peers: Vec<Peer>,
    published: HashMap<usize, u64>,
    /// Streams that were published to in this life of the log, and when last.
    fresh: HashMap<usize, Instant>,
}

const STREAMS: [&str; 3] = ["a", "b", "c"];

pub fn public(stream: &str, extra: &str) -> String {
    format!(r#"{{"channel":"$pubsub","stream_name":"{stream}"{extra}}}"#)
}

impl World {
    pub fn new(shape: Shape) -> Self {
        let wires = Arc::new(Wires::default());
        let log = Arc::new(Mutex::new(new_log(shape, &wires)));
        let nodes: Vec<_> = (0..2).map(|_| new_node(shape, &log, &wires)).collect();
        let peers = vec![
            // One stream; two subscriptions on one stream; two streams.
            Peer::new(vec![(public("a", ""), "a")]),
            Peer::new(vec![(public("a", ""), "a"), (public("a", r#","n":2"#), "a")]),
            Peer::new(vec![(public("a", ""), "a"), (public("b", ""), "b"), (public("c", ""), "c")]),
            Peer::lazy(vec![(public("a", ""), "a"), (public("b", ""), "b")]),
        ];
        Self { shape, wires, log, nodes, peers, published: HashMap::new(), fresh: HashMap::new() }
    }

    pub async fn apply(&mut self, op: &Op) {
        match *op {
            Op::Publish { stream, count } => {
                for _ in 0..count {
                    let number = self.published.entry(stream).or_default();
                    *number += 1;
                    let number = *number;
                    self.fresh.insert(stream, Instant::now());
                    self.publish(stream, number).await;
                }
            }
            Op::Republish { stream } => {
                // A new life of the log remembers no ids, and an old one not for ever.
                if let Some(number) = self.published.get(&stream).copied()
                    && self.fresh.get(&stream).is_some_and(|at| at.elapsed() < Duration::from_secs(10))
                {
                    self.publish(stream, number).await;
                }
            }
            Op::Feed { node, count } => self.feed(node, count, true),
            Op::Lose { node, count } => self.feed(node, count, false),
            Op::Reconnect { node } => {
                self.feed(node, usize::MAX, false);
                self.nodes[node].broker.status.send_modify(|status| status.generation += 1);
            }
            Op::Connect { client, node } => {
                let node = self.nodes[node].node.clone();
                self.peers[client].connect(node, self.shape.max_pending);
            }
            Op::Read { client, count } => {
                self.read(client, count).await;
            }
            Op::Speak { client, again } => self.peers[client].speak(again),
            Op::Drop { client } => self.peers[client].drop_connection(),
            Op::Turns { count } => turns(count).await,
            Op::Wait { ms } => tokio::time::sleep(Duration::from_millis(ms)).await,
            Op::Freeze { node, ms } => {
                let mut frozen = self.nodes[node].broker.frozen.lock().unwrap();
                *frozen = (*frozen).max(Instant::now() + Duration::from_millis(ms));
            }
            Op::NewLife => self.new_life(),
        }
    }

    async fn publish(&self, stream: usize, number: u64) {
        let name = StreamName::from(STREAMS[stream]);
        let life = self.log.lock().unwrap().epoch().as_str().to_owned();
        let publication = Publication {
            id: MessageId::from_key(&name, &format!("{life}{number}"), 0),
            stream: name,
            data: Bytes::from(number.to_string()),
            meta: Meta::default(),
            transient: false,
        };
        let log = self.log.lock().unwrap().clone();
        log.append(publication).await.expect("the log in memory takes everything");
    }

    /// Moves the head of a node's feed, or loses it.
    fn feed(&self, node: usize, count: usize, deliver: bool) {
        // A node that goes on may look at its feed before it looks at anything else.
        let thaw = *self.nodes[node].broker.frozen.lock().unwrap();
        if deliver && thaw > Instant::now() + Duration::from_millis(1) {
            return;
        }
        for _ in 0..count {
            let Some(event) = self.wires.queues.lock().unwrap()[node].pop_front() else { return };
            let hubs = self.wires.hubs.lock().unwrap();
            match event {
                _ if !deliver => {}
                Event::Live(stream, previous, message) => hubs[node].live(&stream, previous, message),
                Event::Transient(stream, message, overflow) => hubs[node].transient(&stream, message, overflow),
            }
        }
    }

    /// Returns how many frames it read.
    async fn read(&mut self, client: usize, count: usize) -> usize {
        turns(3).await;
        let published = |stream: &str| {
            let index = STREAMS.iter().position(|name| *name == stream).expect("a stream of this world");
            self.published.get(&index).copied().unwrap_or(0)
        };
        let read = self.peers[client].read(count, published);
        turns(3).await;
        read
    }

    fn new_life(&mut self) {
        let fresh = new_log(self.shape, &self.wires);
        self.fresh.clear();
        for queue in self.wires.queues.lock().unwrap().iter_mut() {
            queue.clear();
        }
        let logs = fresh.status().borrow().logs.clone();
        *self.log.lock().unwrap() = fresh;
        for node in &self.nodes {
            node.broker.status.send_modify(|status| {
                status.generation += 1;
                status.logs = logs.clone();
            });
        }
        for peer in &mut self.peers {
            peer.expect_loss();
        }
    }

    /// Lets everything settle, then says what is wrong.
    pub async fn finish(mut self) -> Result<(), String> {
        for node in &self.nodes {
            node.broker.thawed().await;
        }
        for _ in 0..2 {
            for client in 0..self.peers.len() {
                let node = self.nodes[client % 2].node.clone();
                self.peers[client].connect(node, self.shape.max_pending);
            }
            for _ in 0..4 {
                for node in 0..self.nodes.len() {
                    self.feed(node, usize::MAX, true);
                }
                tokio::time::sleep(Duration::from_millis(2_600)).await;
                for client in 0..self.peers.len() {
                    while self.read(client, usize::MAX).await > 0 {}
                    self.peers[client].speak(false);
                }
            }
        }
        let mut faults = Vec::new();
        for (number, peer) in self.peers.iter().enumerate() {
            let heads = |stream: &str| {
                let index = STREAMS.iter().position(|name| *name == stream).expect("a stream of this world");
                self.published.get(&index).copied().unwrap_or(0)
            };
            faults.extend(
                peer.faults(self.shape.lossless, heads).into_iter().map(|fault| format!("client {number}: {fault}")),
            );
        }
        for node in &self.nodes {
            node.node.hub.stop().await;
        }
        if faults.is_empty() { Ok(()) } else { Err(faults.join("\n")) }
    }
}

async fn turns(count: usize) {
    for _ in 0..count {
        tokio::task::yield_now().await;
    }
}

fn limits(shape: Shape) -> Limits {
    // One stream has a log of its own: the same rules, another epoch.
    let (limit, ttl) = (shape.history_limit, shape.history_ttl);
    let pattern = "c".parse().expect("a pattern");
    let policy = Policy { name: "c".into(), pattern, ..Policy::default_with(limit, ttl) };
    Limits { table: Table::new(vec![policy], limit, ttl), sessions_ttl: Duration::from_secs(3_600), sessions_budget: 0 }
}

fn new_log(shape: Shape, wires: &Arc<Wires>) -> Arc<MemoryBroker> {
    MemoryBroker::new(limits(shape), Duration::from_secs(60), Arc::new(SharedFeed(wires.clone())))
}

fn new_node(shape: Shape, log: &Arc<Mutex<Arc<MemoryBroker>>>, wires: &Arc<Wires>) -> TestNode {
    let hub = Hub::new(HubConfig {
        snapshot_budget: 1 << 20,
        linger: Duration::from_secs(3),
        head_check: Duration::from_secs(2),
        broker_timeout: Duration::from_secs(8),
        max_streams: 0,
    });
    wires.hubs.lock().unwrap().push(HubFeed(hub.clone()));
    wires.queues.lock().unwrap().push(VecDeque::new());
    let logs = log.lock().unwrap().status().borrow().logs.clone();
    let status = Status { ready: true, readable: true, generation: 1, logs, reason: "".into() };
    let broker = Arc::new(NodeBroker {
        log: log.clone(),
        status: watch::Sender::new(status),
        frozen: Mutex::new(Instant::now()),
    });
    let registry = Registry::new(Duration::from_secs(60));
    hub.start(broker.clone(), registry.clone());
    let config = NodeConfig {
        ping_interval: Duration::from_secs(3),
        ping_precision: PingPrecision::Seconds,
        pong_timeout: Duration::ZERO,
        native_pings: false,
        sessions_ttl: Duration::from_secs(3_600),
        history_hold: Duration::from_secs(2),
        broker_timeout: Duration::from_secs(8),
        max_pending: shape.max_pending,
        max_pending_total: 0,
        max_whisper_rate: 0,
        max_queued: 1 << 17,
        max_queued_all: 1 << 26,
        auth_timeout: Duration::from_secs(86_400),
        subscriptions: crate::session::SubscriptionLimits::default(),
        max_session_size: 1 << 20,
        max_commands_rate: 0,
        handover: true,
    };
    let access = Access::new(StreamsConfig { public: true, ..StreamsConfig::default() });
    TestNode { node: Node::new(config, hub, access, Authenticator::NoAuth, registry), broker }
}
