//! A stock client and what it may expect.

use crate::client::stock::{StockClient, StockEvent};
use crate::hub::{Frame, Outbox};
use crate::node::{Hello, Incoming, Node, drive};
use crate::protocol::{Encoding, Sid, Subprotocol};
use futures_util::Stream;
use std::collections::{HashMap, HashSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;

/// What one identifier has seen of its stream.
struct Journal {
    stream: &'static str,
    /// Numbers of the messages, as they came.
    last: Option<u64>,
    /// Everything published beyond this number must come: its subscription was confirmed.
    from: Option<u64>,
    /// A loss was signalled, or is to be expected: the next message may come from further on.
    signalled: bool,
    ever_signalled: bool,
    /// Repetitions and disorder are allowed, everything must have come at least once.
    repeats: bool,
    seen: HashSet<u64>,
    faults: Vec<String>,
}

struct Connection {
    outbox: Arc<Outbox>,
    commands: mpsc::UnboundedSender<Incoming>,
}

struct Source(mpsc::UnboundedReceiver<Incoming>);

impl Stream for Source {
    type Item = Incoming;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Incoming>> {
        self.0.poll_recv(cx)
    }
}

pub struct Peer {
    stock: StockClient,
    journals: HashMap<String, Journal>,
    connection: Option<Connection>,
    started: (SystemTime, tokio::time::Instant),
    /// With two subscriptions on one stream the cut may fall between the copies of one message: that one is excused.
    excused: HashSet<(&'static str, u64)>,
    newest: HashMap<&'static str, u64>,
    rejected: usize,
    called_slow: usize,
    /// History commands that a lazy client has not sent yet.
    withheld: Option<Vec<String>>,
    /// The highest position received on this connection, by stream.
    positions: HashMap<String, u64>,
}

impl Peer {
    /// A client that answers `welcome` with its history commands late or never, and asks for what it has had already.
    /// It must miss nothing; it may get things twice.
    pub fn lazy(subscriptions: Vec<(String, &'static str)>) -> Self {
        let mut peer = Self::new(subscriptions);
        peer.withheld = Some(Vec::new());
        for journal in peer.journals.values_mut() {
            journal.repeats = true;
        }
        peer
    }

    pub fn new(subscriptions: Vec<(String, &'static str)>) -> Self {
        let stock = StockClient::new(subscriptions.iter().map(|(identifier, _)| identifier.clone()));
        let journal = |(identifier, stream)| {
            (
                identifier,
                Journal {
                    stream,
                    last: None,
                    from: None,
                    signalled: false,
                    ever_signalled: false,
                    repeats: false,
                    seen: HashSet::new(),
                    faults: Vec::new(),
                },
            )
        };
        Self {
            stock,
            journals: subscriptions.into_iter().map(journal).collect(),
            connection: None,
            started: (SystemTime::now(), tokio::time::Instant::now()),
            excused: HashSet::new(),
            newest: HashMap::new(),
            rejected: 0,
            called_slow: 0,
            withheld: None,
            positions: HashMap::new(),
        }
    }

    fn now(&self) -> u64 {
        let now = self.started.0 + self.started.1.elapsed();
        now.duration_since(UNIX_EPOCH).unwrap().as_secs()
    }

    pub fn connect(&mut self, node: Arc<Node>, max_pending: usize) {
        if let Some(connection) = &self.connection
            && !connection.outbox.is_over()
        {
            return;
        }
        self.drop_connection();
        let outbox = Arc::new(Outbox::new(Encoding::Json, max_pending));
        let (commands, source) = mpsc::unbounded_channel();
        let hello = Hello {
            subprotocol: Subprotocol::ExtJson,
            restore: self.stock.url_sid().filter(|sid| !sid.is_empty()).map(Sid::from),
            ping_interval: None,
            ping_precision: None,
            asked: None,
        };
        tokio::spawn(drive(node, hello, Source(source), outbox.clone()));
        let now = self.now();
        self.stock.on_open(now);
        self.connection = Some(Connection { outbox, commands });
    }

    /// A lazy client sends what it has withheld, and asks for everything once more if `again`.
    pub fn speak(&mut self, again: bool) {
        let (Some(connection), Some(withheld)) = (&self.connection, &mut self.withheld) else { return };
        for command in withheld.drain(..) {
            let _ = connection.commands.send(Incoming::Text(command));
        }
        if again && self.stock.is_settled() {
            let since = self.started.0.duration_since(UNIX_EPOCH).unwrap().as_secs();
            for identifier in self.journals.keys() {
                let command = serde_json::json!({
                    "command": "history", "identifier": identifier, "history": {"since": since}
                });
                let _ = connection.commands.send(Incoming::Text(command.to_string()));
            }
        }
    }

    /// The network is gone, without a word.
    pub fn drop_connection(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        let _ = connection.commands.send(Incoming::Closed);
        connection.outbox.kill();
        self.stock.on_close();
        self.positions.clear();
        self.withheld.as_mut().map(Vec::clear);
        let shared = self.journals.len() > self.journals.values().map(|j| j.stream).collect::<HashSet<_>>().len();
        if shared {
            self.excused.extend(self.newest.iter().map(|(stream, number)| (*stream, *number)));
        }
    }

    /// A new life of the log begins: whatever is missed must be signalled, and is by the next message's epoch at the
    /// latest.
    pub fn expect_loss(&mut self) {
        for journal in self.journals.values_mut() {
            journal.signalled = true;
            journal.ever_signalled = true;
        }
    }

    /// Reads frames. `published`: the newest number of a stream. Returns how many frames came.
    pub fn read(&mut self, count: usize, published: impl Fn(&str) -> u64) -> usize {
        let Some(connection) = &self.connection else { return 0 };
        let mut frames: VecDeque<Frame> = VecDeque::new();
        let _ = connection.outbox.poll_take(&mut Context::from_waker(Waker::noop()), &mut frames, count);
        let commands = connection.commands.clone();
        let now = self.now();
        let read = frames.len();
        for frame in frames {
            let Some(text) = text_of(&frame) else {
                self.drop_connection();
                return read;
            };
            self.called_slow += usize::from(text.contains("too_slow"));
            for command in self.stock.on_frame(text, now) {
                if let Some(withheld) = &mut self.withheld
                    && command.contains(r#""command":"history""#)
                {
                    withheld.push(command);
                    continue;
                }
                let _ = commands.send(Incoming::Text(command));
            }
            while let Some(event) = self.stock.poll_event() {
                self.on_event(event, &published);
            }
        }
        read
    }

    fn on_event(&mut self, event: StockEvent, published: &impl Fn(&str) -> u64) {
        match event {
            StockEvent::Confirmed(identifier) => {
                let journal = self.journals.get_mut(&identifier).expect("an identifier of this client");
                // It had to subscribe anew and has no position: catching up by time does not tell what has aged out.
                journal.signalled |= journal.from.is_some() && journal.last.is_none();
                journal.from.get_or_insert(published(journal.stream));
            }
            StockEvent::Restored(identifier) => {
                let journal = self.journals.get_mut(&identifier).expect("an identifier of this client");
                journal.from.get_or_insert(published(journal.stream));
            }
            StockEvent::HistoryNotFound(identifier) => {
                self.rejected += 1;
                let journal = self.journals.get_mut(&identifier).expect("an identifier of this client");
                journal.signalled = true;
                journal.ever_signalled = true;
            }
            StockEvent::Delivery(data) => {
                let number: u64 = data.message.parse().expect("messages of this world are numbers");
                let journal = self.journals.get_mut(&data.identifier).expect("an identifier of this client");
                if let Some(at) = &data.position {
                    let highest = self.positions.entry(format!("{} {}", at.epoch, at.stream)).or_default();
                    if at.offset < *highest {
                        journal.faults.push(format!("position {} after {highest}", at.offset));
                    }
                    *highest = at.offset;
                }
                journal.delivered(number, &self.excused);
                self.newest.insert(journal.stream, number);
            }
            StockEvent::UnexpectedConfirmation(identifier) => {
                self.journals.get_mut(&identifier).expect("an identifier").faults.push("confirmed twice".into());
            }
            _ => {}
        }
    }

    pub fn faults(&self, lossless: bool, published: impl Fn(&str) -> u64) -> Vec<String> {
        let mut faults = Vec::new();
        for (identifier, journal) in &self.journals {
            faults.extend(journal.faults.iter().map(|fault| format!("{identifier}: {fault}")));
            let head = published(journal.stream);
            let Some(from) = journal.from else {
                faults.push(format!("{identifier}: was never confirmed"));
                continue;
            };
            if journal.repeats {
                let missing: Vec<_> = (from + 1..=head).filter(|number| !journal.seen.contains(number)).collect();
                if !missing.is_empty() && (lossless || !journal.ever_signalled) {
                    faults.push(format!("{identifier}: never got {missing:?}"));
                }
                continue;
            }
            let last = journal.last.unwrap_or(from).max(from);
            let excused = (last + 1..=head).all(|number| self.excused.contains(&(journal.stream, number)));
            if last < head && !excused && !journal.signalled {
                faults.push(format!("{identifier}: ends at {last}, published up to {head}"));
            }
        }
        if lossless && self.rejected > 0 {
            faults.push(format!("{} false alarms", self.rejected));
        }
        // Time is virtual and nobody judges how long the clients take to read.
        if self.called_slow > 0 {
            faults.push(format!("called too slow {} times", self.called_slow));
        }
        faults
    }
}

impl Journal {
    fn delivered(&mut self, number: u64, excused: &HashSet<(&'static str, u64)>) {
        self.seen.insert(number);
        if self.repeats {
            return;
        }
        let missing = |from: u64| (from..number).filter(|missed| !excused.contains(&(self.stream, *missed))).count();
        let fault = match (self.last, self.from) {
            (Some(last), _) if number <= last => Some(format!("{number} after {last}")),
            _ if self.signalled => None,
            (Some(last), _) if missing(last + 1) > 0 => Some(format!("{number} after {last}: a silent hole")),
            (None, Some(from)) if missing(from + 1) > 0 => Some(format!("{number} first, promised from {from} on")),
            _ => None,
        };
        self.faults.extend(fault);
        self.last = Some(self.last.unwrap_or(0).max(number));
        self.signalled = false;
    }
}

/// Payload of an unmasked text frame; `None` for a close frame.
fn text_of(frame: &[u8]) -> Option<&str> {
    if frame[0] & 0x0f == 8 {
        return None;
    }
    let header = match frame[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    Some(std::str::from_utf8(&frame[header..]).expect("text frames are UTF-8"))
}
