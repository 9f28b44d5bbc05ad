//! One client without I/O: what it is subscribed to, what a command means now, what is saved, which timer is due.
//! The session decides, the node carries out.

mod application;
mod parts;
mod plan;
pub mod rate;
pub mod saved;
mod succession;
pub mod timers;

pub use application::Stop;
pub use plan::{NewHead, SavePlan, Split};
pub use rate::CommandRate;
pub use saved::{SavedSession, Unusable};
pub use succession::Succession;
pub use timers::{Due, TimerConfig, Timers};

use crate::hub::{From, Held, Identifier, SubscriptionBudget};
use crate::protocol::{HistoryRequest, Position, Sid, StreamName, Subprotocol};
use crate::rpc::PresenceChange;
use std::collections::HashMap;
use std::sync::Arc;

/// A stream that a subscription follows.
#[derive(Clone, Debug, PartialEq)]
pub struct Followed {
    pub stream: StreamName,
    /// The position that the subscription began from. A client that has received nothing yet names none itself.
    pub began: Position,
}

/// State that is kept for the application, per connection or per subscription.
pub type State = crate::rpc::State;

/// Subscription state key: the stream that whispers go to.
pub const WHISPER_KEY: &str = "$w";
/// Subscription state key: the stream whose presence set the subscription may join.
pub const PRESENCE_KEY: &str = "$p";

#[derive(Debug)]
pub struct Subscription {
    pub identifier: Arc<Identifier>,
    pub streams: Vec<Followed>,
    pub istate: State,
    /// Confirmed on this connection. A restored subscription is not, until the client subscribes to it again.
    pub confirmed: bool,
    /// Restored, and its `history` command has not come yet.
    pub awaits_history: bool,
    /// The presence that the application joined this subscription with.
    pub presence: Option<PresenceChange>,
    /// Counts its streams, its state and its presence.
    held: Held,
}

/// What a stream or an entry of the state takes beside its text.
const ENTRY: usize = 64;

/// Bytes that a subscription holds beside those that its identifier counts.
fn content<'a>(streams: impl Iterator<Item = &'a StreamName>, istate: &State) -> usize {
    let streams: usize = streams.map(|stream| ENTRY + stream.as_str().len()).sum();
    let state: usize = istate.iter().map(|(key, value)| ENTRY + key.len() + value.len()).sum();
    streams + state
}

impl Subscription {
    /// `room`: what was kept free for it, if anything was.
    fn new(identifier: Arc<Identifier>, streams: Vec<Followed>, istate: State, room: Option<&mut Held>) -> Self {
        let bytes = content(streams.iter().map(|followed| &followed.stream), &istate);
        let held = match room {
            Some(room) => room.split(bytes),
            None => identifier.held().beside(bytes),
        };
        Self { identifier, streams, istate, confirmed: true, awaits_history: false, presence: None, held }
    }

    /// What it holds has changed.
    fn recount(&mut self) {
        let streams = self.streams.iter().map(|followed| &followed.stream);
        let presence = self.presence.as_ref().map_or(0, |one| ENTRY + one.id.len() + one.info.len());
        self.held.resize(content(streams, &self.istate) + presence);
    }
}

/// Bounds of what one client may subscribe to, and of what all may.
#[derive(Clone, Copy, Debug)]
pub struct SubscriptionLimits {
    /// Subscriptions of a connection.
    pub number: usize,
    /// Bytes of an identifier.
    pub identifier: usize,
    /// Bytes that the subscriptions of all connections may hold.
    pub total: usize,
}

impl Default for SubscriptionLimits {
    fn default() -> Self {
        Self { number: 2_000, identifier: 4_096, total: usize::MAX }
    }
}

/// What a `subscribe` command means.
#[derive(Clone, Debug)]
pub enum Subscribe {
    /// A repeated request: the client would take a second confirmation amiss.
    Ignore,
    /// The subscription came with the restored session and the client asks for it anew.
    ConfirmRestored(Arc<Identifier>),
    /// Somebody must decide whether the client may have it.
    Authorize(Arc<Identifier>),
    /// Beyond a limit: rejected, whoever would have to decide.
    Refuse,
}

/// What one stream of a history request is asked for.
#[derive(Clone, Debug)]
pub struct Ask {
    pub stream: StreamName,
    pub from: From,
    /// The position that the client named itself.
    pub claimed: Option<u64>,
}

impl Ask {
    /// What the request itself says about a stream, if anything.
    pub fn of(stream: &StreamName, request: &HistoryRequest) -> Option<Self> {
        let stream = stream.clone();
        if let Some(position) = request.position(stream.as_str()) {
            return Some(Self { stream, from: From::Position(position.clone()), claimed: Some(position.offset) });
        }
        let since = request.since?;
        Some(Self { stream, from: From::Since(since), claimed: None })
    }
}

/// What a history request means.
#[derive(Clone, Debug)]
pub enum Plan {
    /// There is no such subscription.
    Unknown,
    /// These streams are to be replayed; none: there is nothing to do but confirm.
    Replay(Arc<Identifier>, Vec<Ask>),
}

/// A connected client that was let in.
#[derive(Debug)]
pub struct Session {
    /// Names this connection; a credential.
    pub sid: Sid,
    /// Connection identifiers: opaque, compared byte for byte.
    pub identifiers: Arc<str>,
    pub subprotocol: Subprotocol,
    /// Newest remote disconnect of the identifiers when the session was authenticated.
    pub mark: u64,
    /// Sids of the connections before this one, and when they were left (Unix milliseconds).
    pub earlier_sids: Vec<(Sid, u64)>,
    pub cstate: State,
    /// When the token that it was authenticated by expires (Unix seconds).
    pub exp: Option<u64>,
    /// The application wants to hear when the client leaves. Never goes back; inherited on restore.
    interest: bool,
    subscriptions: HashMap<Arc<str>, Subscription>,
    /// A subscription that the application has granted and that is not recorded yet, with its state: the application
    /// counts it in, also if the connection ends before its streams are open. Not saved: the client asks for it again.
    granted: Option<(Arc<str>, State)>,
    /// Key of the saved session that this one was restored from, as long as that is not over.
    pub unproved: Option<String>,
    /// Where the subscriptions are stored, once that takes more than one entry.
    parts: Option<Box<parts::Parts>>,
    /// Counts changes of what is saved.
    version: u64,
    /// The version in which something was taken away last.
    shrunk: u64,
}

impl Session {
    pub fn new(sid: Sid, identifiers: Arc<str>, subprotocol: Subprotocol, mark: u64) -> Self {
        Self {
            sid,
            identifiers,
            subprotocol,
            mark,
            earlier_sids: Vec::new(),
            cstate: State::new(),
            exp: None,
            interest: false,
            subscriptions: HashMap::new(),
            granted: None,
            unproved: None,
            parts: None,
            version: 1,
            shrunk: 0,
        }
    }

    pub fn version(&self) -> u64 {
        self.version
    }

    /// The version in which a subscription or a stream was taken away last. What is stored of an older version holds more
    /// than the client may have.
    pub fn shrunk(&self) -> u64 {
        self.shrunk
    }

    pub fn subscriptions(&self) -> impl Iterator<Item = &Subscription> {
        self.subscriptions.values()
    }

    pub fn subscription(&self, identifier: &str) -> Option<&Subscription> {
        self.subscriptions.get(identifier)
    }

    /// Every sid that a message may exclude this session by.
    pub fn sids(&self) -> Vec<Sid> {
        let earlier = self.earlier_sids.iter().map(|(sid, _)| sid.clone());
        std::iter::once(self.sid.clone()).chain(earlier).collect()
    }

    /// Decides what a `subscribe` command means (Action Cable clients repeat unanswered ones). `deciding`: subscriptions
    /// of commands before this one that are not recorded yet. `budget`: what those of all clients may hold.
    pub fn subscribe(
        &mut self,
        identifier: &Arc<str>,
        limits: &SubscriptionLimits,
        budget: &Arc<SubscriptionBudget>,
        deciding: usize,
    ) -> Subscribe {
        let full = self.subscriptions.len() + deciding >= limits.number;
        match self.subscriptions.get_mut(identifier) {
            None if full || identifier.len() > limits.identifier => Subscribe::Refuse,
            None => Identifier::within(identifier, budget).map_or(Subscribe::Refuse, Subscribe::Authorize),
            Some(subscription) if subscription.confirmed => Subscribe::Ignore,
            Some(subscription) => {
                subscription.confirmed = true;
                Subscribe::ConfirmRestored(subscription.identifier.clone())
            }
        }
    }

    /// Records a subscription that was granted.
    pub fn subscribed(&mut self, identifier: &Arc<Identifier>, streams: Vec<Followed>, istate: State) {
        let subscription = Subscription::new(identifier.clone(), streams, istate, None);
        self.subscriptions.insert(identifier.text.clone(), subscription);
        self.note_changed(&identifier.text);
    }

    /// Takes a subscription back: the client left it, or it could not be carried out.
    pub fn unsubscribe(&mut self, identifier: &str) -> Option<Subscription> {
        let removed = self.subscriptions.remove(identifier);
        if removed.is_some() {
            self.note_removed(identifier);
            self.shrunk = self.version;
        }
        removed
    }

    /// The stream that this subscription's whispers go to.
    pub fn whisper_stream(&self, identifier: &str) -> Option<StreamName> {
        let stream = self.subscriptions.get(identifier)?.istate.get(WHISPER_KEY)?;
        Some(StreamName::from(stream.as_str()))
    }

    /// What a history request asks of each stream that the subscription follows *now*.
    pub fn plan_history(&mut self, identifier: &str, request: &HistoryRequest) -> Plan {
        let Some(subscription) = self.subscriptions.get_mut(identifier) else { return Plan::Unknown };
        let restored = !subscription.confirmed || subscription.awaits_history;
        subscription.awaits_history = false;
        let asks = subscription.streams.iter().filter_map(|followed| {
            let named = request.position(followed.stream.as_str()).is_some();
            if named || !restored || followed.began.epoch.as_str().is_empty() {
                return Ask::of(&followed.stream, request);
            }
            // It has received nothing yet: everything since it began is missing, whatever its clock says.
            let from = From::Position(followed.began.clone());
            Some(Ask { stream: followed.stream.clone(), from, claimed: None })
        });
        Plan::Replay(subscription.identifier.clone(), asks.collect())
    }

    /// Identifiers in their JSON order of restoring.
    pub fn identifiers_of_subscriptions(&self) -> Vec<&str> {
        self.subscriptions.keys().map(|identifier| &**identifier).collect()
    }
}
