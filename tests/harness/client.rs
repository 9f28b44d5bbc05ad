//! A raw WebSocket client: sends what it is told, shows every frame, adds nothing of its own.

use super::http;
use super::patience::{PATIENCE, SILENCE};
use super::{confirm, confirm_history};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message};

pub const BASE: &str = "actioncable-v1-json";
pub const EXTENDED: &str = "actioncable-v1-ext-json";

/// Where a message stands in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    pub stream: String,
    pub epoch: String,
    pub offset: u64,
}

impl Position {
    /// From one result of the publishing answer.
    pub fn of(result: &Value) -> Self {
        Self::read(result, "stream").unwrap_or_else(|| panic!("no position in {result}"))
    }

    fn read(fields: &Value, stream: &str) -> Option<Self> {
        Some(Self {
            stream: fields.get(stream)?.as_str()?.to_owned(),
            epoch: fields.get("epoch")?.as_str()?.to_owned(),
            offset: fields.get("offset")?.as_u64()?,
        })
    }
}

/// A data message.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    pub identifier: String,
    pub message: Value,
    pub position: Option<Position>,
}

impl Delivery {
    /// `None` for protocol messages. Panics if only some of the three position fields are there.
    pub fn of(frame: &Value) -> Option<Self> {
        let fields = ["stream_id", "epoch", "offset"].iter().filter(|field| frame.get(**field).is_some()).count();
        assert!(fields == 0 || fields == 3, "position fields come together or not at all: {frame}");
        let message = frame.get("message").filter(|_| frame.get("identifier").is_some())?;
        Some(Self {
            identifier: frame["identifier"].as_str()?.to_owned(),
            message: message.clone(),
            position: Position::read(frame, "stream_id"),
        })
    }

    /// The position it must have.
    #[track_caller]
    pub fn at(&self) -> Position {
        self.position.clone().unwrap_or_else(|| panic!("a stored message carries its position: {self:?}"))
    }
}

/// A WebSocket connection to be made. The extended protocol, unless it is told otherwise.
pub struct Dial {
    to: SocketAddr,
    path: String,
    query: Vec<String>,
    protocols: Option<String>,
    headers: Vec<(String, String)>,
    receive_buffer: Option<u32>,
}

/// The answer to an upgrade request.
pub struct Handshake {
    pub status: u16,
    head: String,
    stream: TcpStream,
    rest: Vec<u8>,
}

impl Handshake {
    pub fn header(&self, name: &str) -> Option<&str> {
        http::header(&self.head, name)
    }
}

impl Dial {
    pub fn to(address: SocketAddr) -> Self {
        let protocols = Some(EXTENDED.to_owned());
        Self {
            to: address,
            path: "/cable".into(),
            query: Vec::new(),
            protocols,
            headers: Vec::new(),
            receive_buffer: None,
        }
    }

    pub fn base(self) -> Self {
        self.protocols(BASE)
    }

    /// Value of `Sec-WebSocket-Protocol`.
    pub fn protocols(mut self, offer: &str) -> Self {
        self.protocols = Some(offer.to_owned());
        self
    }

    pub fn no_protocol(mut self) -> Self {
        self.protocols = None;
        self
    }

    pub fn path(mut self, path: &str) -> Self {
        self.path = path.to_owned();
        self
    }

    /// Adds to the query string, as it stands.
    pub fn query(mut self, pair: &str) -> Self {
        self.query.push(pair.to_owned());
        self
    }

    /// Comes back with this session id.
    pub fn sid(self, sid: &str) -> Self {
        self.query(&format!("sid={sid}"))
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A receive buffer of about this many bytes, so that a client that does not read is noticed early.
    pub fn receive_buffer(mut self, bytes: u32) -> Self {
        self.receive_buffer = Some(bytes);
        self
    }

    /// Sends the upgrade request and reads the head of the answer.
    pub async fn handshake(&self) -> Handshake {
        tokio::time::timeout(PATIENCE, self.try_handshake())
            .await
            .expect("the handshake ends in time")
            .expect("an answer")
    }

    async fn try_handshake(&self) -> std::io::Result<Handshake> {
        let socket = tokio::net::TcpSocket::new_v4()?;
        if let Some(bytes) = self.receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        let mut stream = socket.connect(self.to).await?;
        stream.set_nodelay(true)?;
        let key = generate_key();
        stream.write_all(self.request(&key).as_bytes()).await?;
        let mut answer = Vec::new();
        let end = loop {
            if let Some(end) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut answer).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        };
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        let status = http::status(&head);
        if status == 101 {
            assert_eq!(http::header(&head, "Sec-WebSocket-Accept"), Some(derive_accept_key(key.as_bytes()).as_str()));
        }
        Ok(Handshake { status, head, stream, rest: answer[end..].to_vec() })
    }

    fn request(&self, key: &str) -> String {
        let query = if self.query.is_empty() { String::new() } else { format!("?{}", self.query.join("&")) };
        let mut request = format!("GET {}{query} HTTP/1.1\r\nHost: {}\r\n", self.path, self.to);
        request += "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
        request += &format!("Sec-WebSocket-Key: {key}\r\n");
        if let Some(protocols) = &self.protocols {
            request += &format!("Sec-WebSocket-Protocol: {protocols}\r\n");
        }
        for (name, value) in &self.headers {
            request += &format!("{name}: {value}\r\n");
        }
        request + "\r\n"
    }

    /// Connects without waiting for any frame.
    pub async fn open(&self) -> Client {
        let handshake = self.handshake().await;
        assert_eq!(handshake.status, 101, "{}", handshake.head);
        let protocol = handshake.header("Sec-WebSocket-Protocol").map(str::to_owned);
        let socket = WebSocketStream::from_partially_read(handshake.stream, handshake.rest, Role::Client, None).await;
        Client { socket, protocol, welcome: Value::Null, sid: String::new() }
    }

    /// Connects and waits for `welcome`, which must be the first frame but pings.
    pub async fn connect(&self) -> Client {
        let mut client = self.open().await;
        client.welcome = client.next().await;
        assert_eq!(client.welcome["type"], "welcome", "{}", client.welcome);
        client.sid = client.welcome["sid"].as_str().expect("`welcome` carries the sid").to_owned();
        client
    }
}

/// What a connection brought next.
#[derive(Debug)]
pub enum Event {
    Frame(String),
    /// The server's close frame.
    Closed(u16, String),
    /// The end of the connection without a close frame.
    Lost,
}

pub struct Client {
    socket: WebSocketStream<TcpStream>,
    /// The subprotocol that the server chose.
    pub protocol: Option<String>,
    pub welcome: Value,
    pub sid: String,
}

impl Client {
    /// Connection identifiers of a client that was let in without authentication and not restored.
    pub fn identifiers(&self) -> String {
        json!({"sid": self.sid}).to_string()
    }

    /// `restored_ids` of the welcome, sorted; panics unless the session was restored.
    pub fn restored(&self) -> Vec<String> {
        assert_eq!(self.welcome["restored"], true, "{}", self.welcome);
        let ids = self.welcome["restored_ids"].as_array().expect("`restored_ids` is always there");
        let mut ids: Vec<String> = ids.iter().map(|id| id.as_str().expect("ids are text").to_owned()).collect();
        ids.sort();
        ids
    }

    pub fn is_restored(&self) -> bool {
        self.welcome.get("restored").is_some()
    }

    // --- sending -----------------------------------------------------------------------------------------------------

    pub async fn send(&mut self, frame: Value) {
        self.send_text(&frame.to_string()).await;
    }

    pub async fn send_text(&mut self, text: &str) {
        self.send_message(Message::text(text)).await;
    }

    pub async fn send_message(&mut self, message: Message) {
        self.socket.send(message).await.expect("the connection takes a frame");
    }

    /// Sends without caring whether the connection still stands.
    pub async fn try_send(&mut self, message: Message) -> Result<(), Error> {
        self.socket.send(message).await
    }

    /// Subscribes and waits for the confirmation.
    pub async fn subscribe(&mut self, identifier: &str) {
        self.send(json!({"command": "subscribe", "identifier": identifier})).await;
        self.expect(confirm(identifier)).await;
    }

    /// Subscribes with history; whatever comes is left to read.
    pub async fn subscribe_with(&mut self, identifier: &str, history: Value) {
        self.send(json!({"command": "subscribe", "identifier": identifier, "history": history})).await;
    }

    /// Unsubscribes and waits until the server has done it.
    pub async fn unsubscribe(&mut self, identifier: &str) {
        self.send(json!({"command": "unsubscribe", "identifier": identifier})).await;
        self.barrier().await;
    }

    /// Asks for history; the answer is left to read.
    pub async fn ask_history(&mut self, identifier: &str, history: Value) {
        self.send(json!({"command": "history", "identifier": identifier, "history": history})).await;
    }

    /// Asks for history that must be confirmed; what was replayed before the confirmation.
    pub async fn history(&mut self, identifier: &str, history: Value) -> Vec<Delivery> {
        self.ask_history(identifier, history).await;
        self.replay(identifier).await
    }

    /// Reads deliveries up to `confirm_history` of this identifier.
    pub async fn replay(&mut self, identifier: &str) -> Vec<Delivery> {
        let mut replayed = Vec::new();
        loop {
            let frame = self.next().await;
            if frame == confirm_history(identifier) {
                return replayed;
            }
            let delivery = Delivery::of(&frame).filter(|_| frame.get("type").is_none());
            replayed.push(delivery.unwrap_or_else(|| panic!("neither history nor its confirmation: {frame}")));
        }
    }

    /// Sends a `message` command with this as its data; whatever comes is left to read.
    pub async fn perform(&mut self, identifier: &str, data: Value) {
        self.send(json!({"command": "message", "identifier": identifier, "data": data.to_string()})).await;
    }

    pub async fn whisper(&mut self, identifier: &str, data: Value) {
        self.send(json!({"command": "whisper", "identifier": identifier, "data": data})).await;
    }

    /// Waits until all earlier commands are done: commands are executed in order. Nothing else may come meanwhile.
    pub async fn barrier(&mut self) {
        self.send(json!({"command": "ping"})).await;
        self.expect(json!({"type": "pong"})).await;
    }

    // --- receiving ---------------------------------------------------------------------------------------------------

    /// The next event within `limit`, pings included; `None` if nothing comes.
    pub async fn event_within(&mut self, limit: Duration) -> Option<Event> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = match tokio::time::timeout(left, self.socket.next()).await {
                Err(_) => return None,
                Ok(Some(Ok(Message::Text(text)))) => Event::Frame(text.to_string()),
                Ok(Some(Ok(Message::Close(Some(frame))))) => Event::Closed(frame.code.into(), frame.reason.to_string()),
                Ok(Some(Ok(Message::Close(None)))) => Event::Closed(1005, String::new()),
                Ok(Some(Ok(Message::Binary(bytes)))) => panic!("JSON goes in text frames, not {bytes:?}"),
                Ok(Some(Ok(_))) => continue,
                Ok(Some(Err(_)) | None) => Event::Lost,
            };
            return Some(event);
        }
    }

    /// The next event but pings.
    pub async fn event(&mut self) -> Event {
        self.quiet_event(PATIENCE).await.unwrap_or_else(|| panic!("nothing came within {PATIENCE:?}"))
    }

    async fn quiet_event(&mut self, limit: Duration) -> Option<Event> {
        let deadline = Instant::now() + limit;
        loop {
            let event = self.event_within(deadline.saturating_duration_since(Instant::now())).await?;
            if !matches!(&event, Event::Frame(text) if text.starts_with(r#"{"type":"ping""#)) {
                return Some(event);
            }
        }
    }

    /// The text of the next frame but pings.
    pub async fn next_text(&mut self) -> String {
        match self.event().await {
            Event::Frame(text) => text,
            other => panic!("the connection ended: {other:?}"),
        }
    }

    /// The next frame but pings.
    pub async fn next(&mut self) -> Value {
        let text = self.next_text().await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("not JSON ({error}): {text}"))
    }

    /// The next ping's timestamp within `limit`.
    pub async fn next_ping(&mut self, limit: Duration) -> Option<u64> {
        let deadline = Instant::now() + limit;
        loop {
            let event = self.event_within(deadline.saturating_duration_since(Instant::now())).await?;
            let Event::Frame(text) = event else { panic!("the connection ended: {event:?}") };
            let frame: Value = serde_json::from_str(&text).expect("frames are JSON");
            if frame["type"] == "ping" {
                return Some(frame["message"].as_u64().unwrap_or_else(|| panic!("a ping carries an integer: {frame}")));
            }
        }
    }

    /// The next frame must be exactly this.
    pub async fn expect(&mut self, frame: Value) {
        assert_eq!(self.next().await, frame);
    }

    /// The next frame must be an untyped data message of this subscription.
    pub async fn expect_message(&mut self, identifier: &str, message: Value) -> Delivery {
        let frame = self.next().await;
        assert!(frame.get("type").is_none(), "a plain data message has no type: {frame}");
        let delivery = Delivery::of(&frame).unwrap_or_else(|| panic!("not a data message: {frame}"));
        assert_eq!((delivery.identifier.as_str(), &delivery.message), (identifier, &message), "{frame}");
        delivery
    }

    /// These messages must come next, in this order.
    pub async fn expect_numbers(&mut self, identifier: &str, numbers: std::ops::RangeInclusive<u64>) -> Vec<Delivery> {
        let mut deliveries = Vec::new();
        for number in numbers {
            deliveries.push(self.expect_message(identifier, json!(number)).await);
        }
        deliveries
    }

    /// Nothing but pings may come for a while.
    pub async fn expect_silence(&mut self) {
        if let Some(event) = self.quiet_event(SILENCE).await {
            panic!("expected nothing, got {event:?}");
        }
    }

    /// The server must close with this code and reason, and nothing may come before.
    pub async fn expect_close(&mut self, code: u16, reason: &str) {
        match self.event().await {
            Event::Closed(got, text) => assert_eq!((got, text.as_str()), (code, reason)),
            other => panic!("expected close {code} {reason:?}, got {other:?}"),
        }
    }

    // --- leaving -----------------------------------------------------------------------------------------------------

    /// Leaves with a close frame.
    pub async fn close(mut self) {
        // The server may have gone first.
        let _ = self.socket.close(None).await;
        while !matches!(self.event_within(PATIENCE).await, Some(Event::Lost) | None) {}
    }

    /// Loses the connection without a word; its session id.
    pub fn drop_hard(self) -> String {
        let stream = self.socket.get_ref();
        // The peer sees a reset, as it does when a network device forgets the connection.
        let _ = stream.set_zero_linger();
        self.sid
    }
}

/// The messages of deliveries, to compare them.
pub fn messages(deliveries: &[Delivery]) -> Vec<Value> {
    deliveries.iter().map(|delivery| delivery.message.clone()).collect()
}

/// Their offsets; each must have a position.
pub fn offsets(deliveries: &[Delivery]) -> Vec<u64> {
    deliveries.iter().map(|delivery| delivery.at().offset).collect()
}
