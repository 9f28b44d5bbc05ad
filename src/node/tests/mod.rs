//! Nodes without sockets, a scripted application and clients that read finished frames. Time is virtual.

mod application;
mod connect;
mod dropped;
mod ended;
mod farewell;
mod given_up;
mod lagging;
mod limits;
mod panics;
mod reauth;
mod resume;
mod room;
mod saving;
mod slow;
mod store;
mod supersede;

use super::*;
use crate::auth::StreamsConfig;
use crate::broker::memory::MemoryBroker;
use crate::broker::{Broker, Feed, Limits, Overflow, RemoteDisconnect};
use crate::hub::{Frame, HubConfig, HubFeed, Outbox};
use crate::protocol::{Encoding, Message, MessageId, Meta, Publication, Sid, StreamName, Subprotocol};
use crate::rpc::*;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll};
use tokio::sync::mpsc;

pub const SECOND: Duration = Duration::from_secs(1);

/// A call as the application saw it.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    Connect(String, Env),
    Command(String, CommandCall),
    Disconnect(String, DisconnectCall),
    Restore(String, DisconnectCall),
}

type OnConnect = Box<dyn Fn(&str, &Env) -> Result<Connected, RpcError> + Send + Sync>;
type OnCommand = Box<dyn Fn(&CommandCall) -> Result<CommandEffects, RpcError> + Send + Sync>;

/// The user's application.
pub struct Script {
    pub connect: OnConnect,
    pub command: OnCommand,
    /// How long each answer takes.
    pub delay: Mutex<Duration>,
    pub knows_restore: bool,
    calls: Mutex<Vec<Call>>,
    /// Calls that were given up before they were answered.
    pub cancelled: AtomicUsize,
    /// It cannot be reached by calls about who left or came back.
    pub away: AtomicBool,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            connect: Box::new(|sid, _| Ok(welcome(sid, "{\"user\":\"5\"}"))),
            command: Box::new(|call| Ok(confirmed(call, &["a"]))),
            delay: Mutex::default(),
            knows_restore: true,
            calls: Mutex::default(),
            cancelled: AtomicUsize::new(0),
            away: AtomicBool::new(false),
        }
    }
}

impl Script {
    pub fn on_command(
        command: impl Fn(&CommandCall) -> Result<CommandEffects, RpcError> + Send + Sync + 'static,
    ) -> Self {
        Self { command: Box::new(command), ..Self::default() }
    }

    pub fn on_connect(connect: impl Fn(&str, &Env) -> Result<Connected, RpcError> + Send + Sync + 'static) -> Self {
        Self { connect: Box::new(connect), ..Self::default() }
    }

    pub fn go_away(&self, away: bool) {
        self.away.store(away, Ordering::Relaxed);
    }

    fn reached(&self) -> Result<(), RpcError> {
        if self.away.load(Ordering::Relaxed) { Err(RpcError::Unreachable("away".into())) } else { Ok(()) }
    }

    pub fn slow(&self, delay: Duration) {
        *self.delay.lock().unwrap() = delay;
    }

    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    pub fn commands(&self) -> Vec<CommandCall> {
        let commands = self.calls().into_iter().filter_map(|call| match call {
            Call::Command(_, call) => Some(call),
            _ => None,
        });
        commands.collect()
    }

    pub fn disconnects(&self) -> Vec<DisconnectCall> {
        let disconnects = self.calls().into_iter().filter_map(|call| match call {
            Call::Disconnect(_, call) => Some(call),
            _ => None,
        });
        disconnects.collect()
    }

    pub fn restores(&self) -> Vec<DisconnectCall> {
        let restores = self.calls().into_iter().filter_map(|call| match call {
            Call::Restore(_, call) => Some(call),
            _ => None,
        });
        restores.collect()
    }

    async fn take(&self, call: Call) {
        self.calls.lock().unwrap().push(call);
        let delay = *self.delay.lock().unwrap();
        if !delay.is_zero() {
            let mut guard = Running { cancelled: &self.cancelled, answered: false };
            tokio::time::sleep(delay).await;
            guard.answered = true;
        }
    }
}

struct Running<'a> {
    cancelled: &'a AtomicUsize,
    answered: bool,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.cancelled.fetch_add(usize::from(!self.answered), Ordering::Relaxed);
    }
}

#[async_trait]
impl Application for Script {
    async fn connect(&self, sid: &Sid, env: Env) -> Result<Connected, RpcError> {
        self.take(Call::Connect(sid.expose().into(), env.clone())).await;
        (self.connect)(sid.expose(), &env)
    }
    async fn command(&self, sid: &Sid, call: CommandCall) -> Result<CommandEffects, RpcError> {
        self.take(Call::Command(sid.expose().into(), call.clone())).await;
        (self.command)(&call)
    }
    async fn disconnect(&self, sid: &Sid, call: DisconnectCall) -> Result<(), RpcError> {
        self.reached()?;
        self.take(Call::Disconnect(sid.expose().into(), call)).await;
        Ok(())
    }
    async fn restore(&self, sid: &Sid, call: DisconnectCall) -> Result<(), RpcError> {
        self.reached()?;
        self.take(Call::Restore(sid.expose().into(), call)).await;
        if self.knows_restore { Ok(()) } else { Err(RpcError::Unimplemented("Restore")) }
    }
}

pub fn state(pairs: &[(&str, &str)]) -> State {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

pub fn welcome(sid: &str, identifiers: &str) -> Connected {
    Connected {
        outcome: Outcome::Success,
        identifiers: identifiers.into(),
        transmissions: vec![format!(r#"{{"type":"welcome","sid":"{sid}"}}"#)],
        cstate: State::new(),
    }
}

pub fn nothing(outcome: Outcome) -> CommandEffects {
    CommandEffects {
        outcome,
        disconnect: false,
        stop_streams: false,
        stopped_streams: vec![],
        streams: vec![],
        transmissions: vec![],
        istate: State::new(),
        cstate: State::new(),
        presence: None,
    }
}

/// A subscription that is granted with these streams; other commands do nothing.
pub fn confirmed(call: &CommandCall, streams: &[&str]) -> CommandEffects {
    let effects = nothing(Outcome::Success);
    if call.kind != CommandKind::Subscribe {
        return effects;
    }
    CommandEffects {
        streams: streams.iter().map(|stream| stream.to_string()).collect(),
        transmissions: vec![confirm(&call.identifier)],
        ..effects
    }
}

pub fn confirm(identifier: &str) -> String {
    serde_json::json!({ "type": "confirm_subscription", "identifier": identifier }).to_string()
}

/// A message that the application transmits.
pub fn said(identifier: &str, message: serde_json::Value) -> String {
    serde_json::json!({ "identifier": identifier, "message": message }).to_string()
}

#[derive(Default)]
struct Fan(Mutex<Vec<HubFeed>>);

impl Fan {
    fn all(&self, tell: impl Fn(&HubFeed)) {
        self.0.lock().unwrap().iter().for_each(tell);
    }
}

impl Feed for Fan {
    fn live(&self, stream: &StreamName, previous: u64, message: Arc<Message>) {
        self.all(|hub| hub.live(stream, previous, message.clone()));
    }
    fn transient(&self, stream: &StreamName, message: Arc<Message>, overflow: Overflow) {
        self.all(|hub| hub.transient(stream, message.clone(), overflow));
    }
    fn lagged(&self, stream: &StreamName) {
        self.all(|hub| hub.lagged(stream));
    }
    fn disconnect(&self, mark: u64, command: RemoteDisconnect) {
        self.all(|hub| hub.disconnect(mark, command.clone()));
    }
    fn session_over(&self, key: &crate::broker::SessionKey, over: crate::broker::Over) {
        self.all(|hub| hub.session_over(key, over));
    }
    fn commands_lost(&self) {
        self.all(|hub| hub.commands_lost());
    }
}

/// Some nodes on one log, before one application.
pub struct Cluster {
    pub nodes: Vec<Arc<Node>>,
    pub app: Arc<Script>,
    pub broker: Arc<MemoryBroker>,
}

/// What differs from the usual.
#[derive(Default)]
pub struct Setup {
    pub farewells: FarewellConfig,
    pub jwt: Option<crate::auth::jwt::JwtConfig>,
    pub noauth: bool,
    pub no_application: bool,
    pub pong_timeout: Duration,
    /// The store outlives its nodes.
    pub shared: bool,
    /// See [`store::Store::lag`].
    pub lag: Arc<std::sync::atomic::AtomicU64>,
    pub subscriptions: crate::session::SubscriptionLimits,
    pub max_commands_rate: u32,
    pub max_session_size: Option<usize>,
    pub sessions_budget: u64,
    /// What was written of sessions.
    pub writes: Arc<store::Writes>,
    /// How long messages live; `None`: 300 s.
    pub history_ttl: Option<Duration>,
}

impl Cluster {
    pub fn new(app: Script) -> Self {
        Self::with(app, Setup::default())
    }

    pub fn with(app: Script, setup: Setup) -> Self {
        let ttl = setup.history_ttl.unwrap_or(300 * SECOND);
        let limits = Limits { sessions_budget: setup.sessions_budget, ..Limits::plain(100, ttl, 300 * SECOND) };
        let app = Arc::new(app);
        let fan = Arc::new(Fan::default());
        let broker = MemoryBroker::new(limits.clone(), 60 * SECOND, fan.clone());
        let node = || {
            let hub = Hub::new(HubConfig {
                snapshot_budget: 1 << 20,
                linger: 3 * SECOND,
                head_check: 2 * SECOND,
                broker_timeout: 8 * SECOND,
                max_streams: 0,
            });
            fan.0.lock().unwrap().push(HubFeed(hub.clone()));
            let registry = Registry::new(60 * SECOND);
            let store = Arc::new(store::Store {
                log: broker.clone(),
                shared: setup.shared,
                lag: setup.lag.clone(),
                writes: setup.writes.clone(),
            });
            hub.start(store, registry.clone());
            let config = NodeConfig {
                ping_interval: 3 * SECOND,
                ping_precision: PingPrecision::Seconds,
                pong_timeout: setup.pong_timeout,
                native_pings: false,
                sessions_ttl: 300 * SECOND,
                history_hold: 2 * SECOND,
                broker_timeout: 8 * SECOND,
                max_pending: 1 << 20,
                max_pending_total: 0,
                max_whisper_rate: 0,
                max_queued: 1 << 17,
                max_queued_all: 1 << 26,
                auth_timeout: Duration::from_secs(86_400),
                subscriptions: setup.subscriptions,
                max_session_size: setup.max_session_size.unwrap_or(1 << 20),
                max_commands_rate: setup.max_commands_rate,
                handover: true,
            };
            let application = (!setup.no_application).then(|| app.clone() as Arc<dyn Application>);
            let access = Access::new(StreamsConfig { public: true, ..StreamsConfig::default() });
            let jwt = setup.jwt.clone().map(|jwt| Jwt::new(jwt).unwrap());
            let deciders = Deciders { application, jwt, farewells: setup.farewells.clone() };
            let authenticator = if setup.noauth { Authenticator::NoAuth } else { Authenticator::Refuse };
            Node::with(config, hub, access, authenticator, registry, deciders)
        };
        let nodes = vec![node(), node()];
        Self { nodes, app, broker }
    }

    pub fn connect(&self) -> Browser {
        self.connect_with(0, hello(None))
    }

    pub fn connect_with(&self, node: usize, hello: Hello) -> Browser {
        let outbox = Arc::new(Outbox::new(Encoding::Json, 1 << 20));
        let (commands, source) = mpsc::unbounded_channel();
        tokio::spawn(drive(self.nodes[node].clone(), hello, Source(source), outbox.clone()));
        Browser { outbox, commands, frames: VecDeque::new() }
    }

    /// Connected and welcomed; answers with the sid, too.
    pub async fn welcomed(&self) -> (Browser, String) {
        self.welcomed_with(0, hello(None)).await
    }

    pub async fn welcomed_with(&self, node: usize, hello: Hello) -> (Browser, String) {
        let mut browser = self.connect_with(node, hello);
        let welcome = browser.next().await;
        assert_eq!(welcome["type"], "welcome", "{welcome}");
        let sid = welcome["sid"].as_str().unwrap().to_owned();
        (browser, sid)
    }

    pub async fn publish(&self, stream: &str, data: &str) {
        self.publish_with(stream, data, Meta::default()).await;
    }

    pub async fn publish_with(&self, stream: &str, data: &str, meta: Meta) {
        let publication = Publication {
            stream: stream.into(),
            data: Bytes::copy_from_slice(data.as_bytes()),
            meta,
            transient: false,
            id: MessageId::random(),
        };
        self.broker.append(publication).await.unwrap();
    }

    pub async fn disconnect(&self, identifiers: &str) {
        let command = RemoteDisconnect { identifiers: identifiers.into(), reconnect: true };
        self.broker.disconnect(&command).await.unwrap();
    }
}

pub fn hello(restore: Option<&str>) -> Hello {
    Hello {
        subprotocol: Subprotocol::ExtJson,
        restore: restore.map(Sid::from),
        ping_interval: Some(Duration::ZERO),
        ping_precision: None,
        asked: Some(Arc::new(Asked { url: "http://acme.test/cable".into(), ..Asked::default() })),
    }
}

struct Source(mpsc::UnboundedReceiver<Incoming>);

impl Stream for Source {
    type Item = Incoming;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Incoming>> {
        self.0.poll_recv(cx)
    }
}

/// A client. Dropping it is a network failure.
pub struct Browser {
    pub outbox: Arc<Outbox>,
    commands: mpsc::UnboundedSender<Incoming>,
    frames: VecDeque<Frame>,
}

impl Browser {
    /// The next frame; a close frame is `{"close": code, "reason": text}`, the end without one is null.
    pub async fn next(&mut self) -> serde_json::Value {
        if self.frames.is_empty() {
            let taking = poll_fn(|cx| self.outbox.poll_take(cx, &mut self.frames, 100));
            let more = tokio::time::timeout(60 * SECOND, taking).await.expect("nothing came for a minute");
            if !more {
                return serde_json::Value::Null;
            }
        }
        let frame = self.frames.pop_front().unwrap();
        let start = match frame[1] {
            126 => 4,
            127 => 10,
            _ => 2,
        };
        if frame[0] & 0x0f == 8 {
            let code = u16::from_be_bytes([frame[2], frame[3]]);
            return serde_json::json!({ "close": code, "reason": std::str::from_utf8(&frame[4..]).unwrap() });
        }
        serde_json::from_slice(&frame[start..]).unwrap()
    }

    /// Nothing comes within half a second.
    pub async fn silence(&mut self) {
        let next = tokio::time::timeout(SECOND / 2, self.next()).await;
        assert!(next.is_err(), "unexpected {next:?}");
    }

    pub fn send(&self, command: serde_json::Value) {
        let _ = self.commands.send(Incoming::Text(command.to_string()));
    }

    pub fn subscribe(&self, identifier: &str) {
        self.send(serde_json::json!({ "command": "subscribe", "identifier": identifier }));
    }

    pub fn unsubscribe(&self, identifier: &str) {
        self.send(serde_json::json!({ "command": "unsubscribe", "identifier": identifier }));
    }

    pub fn perform(&self, identifier: &str, data: &str) {
        self.send(serde_json::json!({ "command": "message", "identifier": identifier, "data": data }));
    }

    pub async fn subscribed(&mut self, identifier: &str) {
        self.subscribe(identifier);
        assert_eq!(self.next().await, json(&confirm(identifier)));
    }

    /// The network is gone, without a word.
    pub fn vanish(self) {
        let _ = self.commands.send(Incoming::Closed);
        self.outbox.kill();
    }
}

pub fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

/// Waits until something holds; virtual time passes meanwhile.
pub async fn eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..6_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("a minute has passed without: {what}");
}
