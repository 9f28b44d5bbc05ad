//! What the stock JavaScript client keeps and does: one position per stream, the last message wins, no de-duplication,
//! a time of its own clock, and a restore that asks for history of everything restored.

use super::client::{Client, Delivery, Position};
use super::{PATIENCE, Server, unix_now};
use crate::harness::client::Event;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

pub struct StockClient {
    connection: Option<Client>,
    sid: String,
    since: u64,
    positions: BTreeMap<String, Position>,
    subscriptions: BTreeSet<String>,
    /// Everything received, per identifier, in order.
    pub received: BTreeMap<String, Vec<Value>>,
    /// How often history was rejected.
    pub rejected: usize,
    /// How often the session was restored.
    pub restored: usize,
    /// Every frame but pings, and every connection: told if a test fails.
    history: Vec<String>,
}

impl Drop for StockClient {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the stock client saw:\n{}", self.history.join("\n"));
        }
    }
}

impl StockClient {
    pub fn new(identifiers: &[String]) -> Self {
        Self {
            connection: None,
            sid: String::new(),
            since: unix_now(),
            positions: BTreeMap::new(),
            subscriptions: identifiers.iter().cloned().collect(),
            received: BTreeMap::new(),
            rejected: 0,
            restored: 0,
            history: Vec::new(),
        }
    }

    /// Connects, or comes back after [`StockClient::drop_connection`], and waits until every subscription stands.
    pub async fn connect(&mut self, server: &Server) {
        let mut client = server.resume(&self.sid).await;
        let restored = if client.is_restored() { client.restored() } else { Vec::new() };
        self.restored += usize::from(client.is_restored());
        self.sid = client.sid.clone();
        let history = self.history_request();
        self.history.push(format!("connected to {}: {} asking for {history}", server.address(), client.welcome));
        let mut pending = BTreeSet::new();
        for identifier in &restored {
            client.ask_history(identifier, history.clone()).await;
        }
        for identifier in self.subscriptions.iter().filter(|identifier| !restored.contains(identifier)) {
            client.subscribe_with(identifier, history.clone()).await;
            pending.insert(identifier.clone());
        }
        self.connection = Some(client);
        let deadline = Instant::now() + PATIENCE;
        while !pending.is_empty() {
            assert!(Instant::now() < deadline, "no confirmation of {pending:?}");
            if let Some(identifier) = self.read_one(PATIENCE).await {
                pending.remove(&identifier);
            }
        }
    }

    fn history_request(&self) -> Value {
        let streams: BTreeMap<_, _> = self
            .positions
            .iter()
            .map(|(stream, position)| (stream, json!({"epoch": position.epoch, "offset": position.offset})))
            .collect();
        json!({"since": self.since, "streams": streams})
    }

    /// Loses the connection without a word.
    pub fn drop_connection(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.drop_hard();
        }
    }

    /// Reads for a while.
    pub async fn listen(&mut self, time: std::time::Duration) {
        let deadline = Instant::now() + time;
        while Instant::now() < deadline && self.connection.is_some() {
            self.read_one(deadline.saturating_duration_since(Instant::now())).await;
        }
    }

    /// Reads until each identifier has received this many messages.
    pub async fn listen_until(&mut self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while !self.has(count) {
            assert!(Instant::now() < deadline, "{count} expected, received {:?}", self.counts());
            self.read_one(PATIENCE).await;
        }
    }

    /// Reads until each identifier has received this message.
    pub async fn listen_for(&mut self, message: &Value) {
        let deadline = Instant::now() + PATIENCE;
        while !self.subscriptions.iter().all(|id| self.received.get(id).is_some_and(|all| all.contains(message))) {
            assert!(Instant::now() < deadline, "{message} does not come; received {:?}", self.counts());
            self.read_one(PATIENCE).await;
        }
    }

    fn has(&self, count: usize) -> bool {
        self.subscriptions.iter().all(|identifier| self.received.get(identifier).map_or(0, Vec::len) >= count)
    }

    fn counts(&self) -> Vec<usize> {
        self.received.values().map(Vec::len).collect()
    }

    /// Handles one event; the identifier of a confirmed subscription.
    async fn read_one(&mut self, limit: std::time::Duration) -> Option<String> {
        let event = self.connection.as_mut().expect("connected").event_within(limit).await?;
        let Event::Frame(text) = event else { panic!("the server ended the connection: {event:?}") };
        let frame: Value = serde_json::from_str(&text).expect("frames are JSON");
        if frame["type"] != "ping" {
            self.history.push(text);
        }
        match frame["type"].as_str() {
            Some("ping") => self.since = unix_now(),
            Some("confirm_subscription") => return frame["identifier"].as_str().map(str::to_owned),
            Some("reject_history") => self.rejected += 1,
            Some("confirm_history") => {}
            Some(other) => panic!("unexpected {other}: {frame}"),
            None => self.take(Delivery::of(&frame).unwrap_or_else(|| panic!("neither typed nor data: {frame}"))),
        }
        None
    }

    fn take(&mut self, delivery: Delivery) {
        if let Some(position) = delivery.position {
            self.positions.insert(position.stream.clone(), position);
        }
        self.received.entry(delivery.identifier).or_default().push(delivery.message);
    }
}
