//! The stock JavaScript client (`@anycable/core`), as far as a server can tell: what it remembers across connections and
//! what it sends when it comes back. Pure: frames and times go in, frames and events come out.
//!
//! It is kept as it is, weaknesses included, because servers must be right at *this* client: it does not de-duplicate,
//! the last message it saw overwrites its position even if that moves back, and an unexpected confirmation makes it
//! unsubscribe. Presence is not modelled.

use super::command::{self, HistoryRequest, SeenPosition, Since};
use super::frame::{Data, Frame};
use crate::protocol::Sid;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// An unanswered `subscribe` is repeated once after this many seconds …
const SUBSCRIBE_REPEAT_SECS: u64 = 5;
/// … and given up for good after this many.
const SUBSCRIBE_GIVE_UP_SECS: u64 = 10;

/// What happened at the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StockEvent {
    Welcome {
        restored: bool,
    },
    /// The server answered a `subscribe`.
    Confirmed(String),
    Rejected(String),
    /// The subscription came back with the session.
    Restored(String),
    /// A `subscribe` stayed unanswered: the channel is closed for good.
    GaveUp(String),
    /// A message that the application gets to see.
    Delivery(Data),
    /// A message to an identifier that the application has dropped: it counts for positions and is never shown.
    Unshown(Data),
    HistoryReceived(String),
    /// The gap is permanent unless the application fetches anew.
    HistoryNotFound(String),
    Disconnect {
        reason: String,
        reconnect: bool,
    },
    /// A confirmation that nobody waited for; the client has unsubscribed.
    UnexpectedConfirmation(String),
    /// A frame without meaning to this client.
    Ignored(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    /// `subscribe` was sent at this time.
    Pending {
        at: u64,
        repeated: bool,
    },
    Connected,
    /// Rejected or given up.
    Closed,
}

#[derive(Clone, Debug)]
struct Subscription {
    identifier: String,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Offline,
    /// The socket is open, `welcome` is awaited.
    Opened,
    Connected,
    /// `disconnect` without `reconnect`: no return.
    Terminal,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum SessionId {
    Never,
    Known(Sid),
    /// Forgotten on `disconnect`: the URL then carries an empty one.
    Forgotten,
}

/// A stock client. Survives any number of connections.
#[derive(Clone, Debug)]
pub struct StockClient {
    subscriptions: Vec<Subscription>,
    phase: Phase,
    session_id: SessionId,
    /// Unix seconds by the client's clock; `None` until the first connection, as page time.
    restore_since: Option<Since>,
    streams_positions: BTreeMap<String, SeenPosition>,
    /// Streams seen per identifier; not cleared on unsubscribe.
    subscription_streams: BTreeMap<String, BTreeSet<String>>,
    events: VecDeque<StockEvent>,
}

impl StockClient {
    /// A client that wants these identifiers, each once.
    pub fn new<I: Into<String>>(subscriptions: impl IntoIterator<Item = I>) -> Self {
        let subscriptions = subscriptions
            .into_iter()
            .map(|identifier| Subscription { identifier: identifier.into(), state: State::Idle })
            .collect();
        Self {
            subscriptions,
            phase: Phase::Offline,
            session_id: SessionId::Never,
            restore_since: None,
            streams_positions: BTreeMap::new(),
            subscription_streams: BTreeMap::new(),
            events: VecDeque::new(),
        }
    }

    /// Option `historyTimestamp`: the time to catch up from at first, instead of page time; or none ever.
    #[must_use]
    pub fn with_history_timestamp(mut self, since: Since) -> Self {
        self.restore_since = Some(since);
        self
    }

    /// `sid` for the next connection's URL: `None` on the first, empty after a `disconnect`.
    pub fn url_sid(&self) -> Option<&str> {
        match &self.session_id {
            SessionId::Never => None,
            SessionId::Known(sid) => Some(sid.expose()),
            SessionId::Forgotten => Some(""),
        }
    }

    /// The server said not to come back.
    pub fn is_terminal(&self) -> bool {
        self.phase == Phase::Terminal
    }

    /// `welcome` has come on the present connection.
    pub fn is_connected(&self) -> bool {
        self.phase == Phase::Connected
    }

    /// All subscriptions that were not rejected are confirmed or restored on the present connection.
    pub fn is_settled(&self) -> bool {
        self.phase == Phase::Connected
            && self.subscriptions.iter().all(|sub| matches!(sub.state, State::Connected | State::Closed))
    }

    /// The position that counts for this stream now.
    pub fn position(&self, stream: &str) -> Option<&SeenPosition> {
        self.streams_positions.get(stream)
    }

    /// All positions, by stream.
    pub fn positions(&self) -> &BTreeMap<String, SeenPosition> {
        &self.streams_positions
    }

    /// What happened since the last call, oldest first.
    pub fn poll_event(&mut self) -> Option<StockEvent> {
        self.events.pop_front()
    }

    /// The socket is open.
    pub fn on_open(&mut self, now_secs: u64) {
        self.restore_since.get_or_insert(Since::At(now_secs));
        self.phase = Phase::Opened;
    }

    /// The socket is gone, whatever the reason.
    pub fn on_close(&mut self) {
        if self.phase != Phase::Terminal {
            self.phase = Phase::Offline;
        }
        for sub in &mut self.subscriptions {
            if sub.state != State::Closed {
                sub.state = State::Idle;
            }
        }
    }

    /// The application adds a subscription; answers with the frames to send.
    pub fn subscribe(&mut self, identifier: &str, now_secs: u64) -> Vec<String> {
        let index = match self.index(identifier) {
            Some(index) => index,
            None => {
                self.subscriptions.push(Subscription { identifier: identifier.to_owned(), state: State::Idle });
                self.subscriptions.len() - 1
            }
        };
        if self.phase == Phase::Connected && matches!(self.subscriptions[index].state, State::Idle | State::Closed) {
            return vec![self.send_subscribe(index, now_secs)];
        }
        self.subscriptions[index].state = match self.subscriptions[index].state {
            State::Closed => State::Idle,
            state => state,
        };
        Vec::new()
    }

    /// The application drops a subscription; while offline no command is ever sent for it.
    pub fn unsubscribe(&mut self, identifier: &str) -> Vec<String> {
        let Some(index) = self.index(identifier) else { return Vec::new() };
        let sub = self.subscriptions.remove(index);
        match sub.state {
            State::Pending { .. } | State::Connected => vec![command::unsubscribe(identifier)],
            State::Idle | State::Closed => Vec::new(),
        }
    }

    /// A text frame came; answers with the frames to send, in order.
    pub fn on_frame(&mut self, text: &str, now_secs: u64) -> Vec<String> {
        if matches!(self.phase, Phase::Offline | Phase::Terminal) {
            return Vec::new();
        }
        match Frame::parse(text) {
            Ok(frame) => self.on_parsed(frame, now_secs),
            Err(_) => {
                self.events.push_back(StockEvent::Ignored(text.to_owned()));
                Vec::new()
            }
        }
    }

    /// Like [`StockClient::on_frame`], for a frame that is decoded already.
    pub fn on_parsed(&mut self, frame: Frame, now_secs: u64) -> Vec<String> {
        match frame {
            Frame::Welcome { sid, restored, restored_ids } => self.on_welcome(sid, restored, restored_ids, now_secs),
            Frame::Disconnect { reason, reconnect } => {
                self.on_disconnect(reason, reconnect.unwrap_or(true));
                Vec::new()
            }
            Frame::Ping(_) => {
                if let Some(Since::At(since)) = &mut self.restore_since {
                    *since = now_secs;
                }
                Vec::new()
            }
            Frame::ConfirmSubscription(identifier) => self.on_confirmation(identifier),
            Frame::RejectSubscription(identifier) => {
                if let Some(index) = self.pending(&identifier) {
                    self.subscriptions[index].state = State::Closed;
                }
                self.events.push_back(StockEvent::Rejected(identifier));
                Vec::new()
            }
            Frame::ConfirmHistory(identifier) => {
                self.events.push_back(StockEvent::HistoryReceived(identifier));
                Vec::new()
            }
            Frame::RejectHistory(identifier) => {
                self.events.push_back(StockEvent::HistoryNotFound(identifier));
                Vec::new()
            }
            Frame::Data(data) => {
                self.on_data(data);
                Vec::new()
            }
            Frame::Pong | Frame::Presence { .. } => Vec::new(),
        }
    }

    /// Time passes; call it about once a second while a socket is open.
    pub fn on_tick(&mut self, now_secs: u64) -> Vec<String> {
        let mut out = Vec::new();
        for index in 0..self.subscriptions.len() {
            let State::Pending { at, repeated } = self.subscriptions[index].state else { continue };
            let waited = now_secs.saturating_sub(at);
            if waited >= SUBSCRIBE_GIVE_UP_SECS {
                self.subscriptions[index].state = State::Closed;
                self.events.push_back(StockEvent::GaveUp(self.subscriptions[index].identifier.clone()));
            } else if waited >= SUBSCRIBE_REPEAT_SECS && !repeated {
                out.push(self.send_subscribe(index, now_secs));
                self.subscriptions[index].state = State::Pending { at, repeated: true };
            }
        }
        out
    }

    fn on_welcome(
        &mut self,
        sid: Option<Sid>,
        restored: bool,
        restored_ids: Option<Vec<String>>,
        now_secs: u64,
    ) -> Vec<String> {
        self.session_id = sid.map_or(SessionId::Forgotten, SessionId::Known);
        self.phase = Phase::Connected;
        self.events.push_back(StockEvent::Welcome { restored });
        let mut out = Vec::new();
        let mut back = BTreeSet::new();
        if restored {
            // Without a list, everything that was ever confirmed counts as restored.
            let ids = restored_ids.unwrap_or_else(|| self.subscription_streams.keys().cloned().collect());
            // Also for identifiers that the application has dropped meanwhile.
            out.extend(ids.iter().map(|id| command::history(id, self.history_request(id).as_ref())));
            back.extend(ids);
        }
        for index in 0..self.subscriptions.len() {
            if self.subscriptions[index].state == State::Closed {
                continue;
            }
            if back.contains(&self.subscriptions[index].identifier) {
                self.subscriptions[index].state = State::Connected;
                self.events.push_back(StockEvent::Restored(self.subscriptions[index].identifier.clone()));
            } else {
                out.push(self.send_subscribe(index, now_secs));
            }
        }
        out
    }

    fn on_disconnect(&mut self, reason: String, reconnect: bool) {
        self.on_close();
        self.session_id = SessionId::Forgotten;
        if !reconnect {
            self.phase = Phase::Terminal;
        }
        self.events.push_back(StockEvent::Disconnect { reason, reconnect });
    }

    fn on_confirmation(&mut self, identifier: String) -> Vec<String> {
        self.subscription_streams.entry(identifier.clone()).or_default();
        if let Some(index) = self.pending(&identifier) {
            self.subscriptions[index].state = State::Connected;
            self.events.push_back(StockEvent::Confirmed(identifier));
            return Vec::new();
        }
        let unsubscribe = command::unsubscribe(&identifier);
        self.events.push_back(StockEvent::UnexpectedConfirmation(identifier));
        vec![unsubscribe]
    }

    fn on_data(&mut self, data: Data) {
        // What JavaScript takes for false never reaches the application and moves no position.
        if matches!(data.message.as_str(), "null" | "false" | "0" | "\"\"") {
            self.events.push_back(StockEvent::Ignored(data.message));
            return;
        }
        if let Some(at) = &data.position
            && !at.stream.is_empty()
            && !at.epoch.is_empty()
        {
            self.subscription_streams.entry(data.identifier.clone()).or_default().insert(at.stream.clone());
            // Overwritten, even by a smaller offset.
            let seen = SeenPosition { epoch: at.epoch.clone(), offset: at.offset };
            self.streams_positions.insert(at.stream.clone(), seen);
        }
        let known = self.index(&data.identifier).is_some();
        self.events.push_back(if known { StockEvent::Delivery(data) } else { StockEvent::Unshown(data) });
    }

    fn send_subscribe(&mut self, index: usize, now_secs: u64) -> String {
        let identifier = self.subscriptions[index].identifier.clone();
        self.subscriptions[index].state = State::Pending { at: now_secs, repeated: false };
        command::subscribe(&identifier, self.history_request(&identifier).as_ref())
    }

    /// Positions of the streams seen on this identifier, and the time to catch up from; nothing if there is neither.
    fn history_request(&self, identifier: &str) -> Option<HistoryRequest> {
        let seen = self.subscription_streams.get(identifier).into_iter().flatten();
        let streams: BTreeMap<_, _> =
            seen.filter_map(|stream| Some((stream.clone(), self.streams_positions.get(stream)?.clone()))).collect();
        let since = self.restore_since.unwrap_or(Since::Off);
        (since != Since::Off || !streams.is_empty()).then_some(HistoryRequest { since, streams })
    }

    fn index(&self, identifier: &str) -> Option<usize> {
        self.subscriptions.iter().position(|sub| sub.identifier == identifier)
    }

    fn pending(&self, identifier: &str) -> Option<usize> {
        self.index(identifier).filter(|index| matches!(self.subscriptions[*index].state, State::Pending { .. }))
    }
}

#[cfg(test)]
mod tests;
