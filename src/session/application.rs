//! What the application's answers change in a session, and what it is told of one that ends.

use super::{Followed, Session, State};
use crate::hub::Identifier;
use crate::protocol::{Epoch, Position, StreamName};
use crate::rpc::{DisconnectCall, Env, PresenceChange};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Which streams of a subscription an answer drops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    All,
    These(Vec<StreamName>),
}

/// Every returned key counts: an empty value deletes, another overwrites; keys that are not returned stay.
/// Tells whether anything changed.
fn merge(state: &mut State, changes: State) -> bool {
    let mut changed = false;
    for (key, value) in changes {
        changed |= match value.is_empty() {
            true => state.remove(&key).is_some(),
            false => state.insert(key, value.clone()) != Some(value),
        };
    }
    changed
}

impl Session {
    /// The application has answered for this session: from now on it wants to hear when the client leaves.
    pub fn express_interest(&mut self) {
        self.version += u64::from(!self.interest);
        self.interest = true;
    }

    pub fn interest(&self) -> bool {
        self.interest
    }

    pub fn merge_cstate(&mut self, changes: State) {
        self.version += u64::from(merge(&mut self.cstate, changes));
    }

    /// Merges into the state of one subscription, if there is one.
    pub fn merge_istate(&mut self, identifier: &str, changes: State) {
        let Some(subscription) = self.subscriptions.get_mut(identifier) else { return };
        if merge(&mut subscription.istate, changes) {
            let text = subscription.identifier.text.clone();
            self.note_changed(&text);
        }
    }

    /// The application has granted a subscription, with this state.
    pub fn grant(&mut self, identifier: &Arc<str>, istate: State) {
        let mut state = State::new();
        merge(&mut state, istate);
        self.granted = Some((identifier.clone(), state));
    }

    /// Records the subscription that was granted last.
    pub fn subscribed_as_granted(&mut self, identifier: &Arc<Identifier>, streams: Vec<Followed>) {
        let granted = self.granted.take().filter(|(text, _)| *text == identifier.text);
        self.subscribed(identifier, streams, granted.map(|(_, istate)| istate).unwrap_or_default());
    }

    /// Takes streams from a subscription; answers with those that it had.
    pub fn stop(&mut self, identifier: &str, stop: &Stop) -> Vec<StreamName> {
        let Some(subscription) = self.subscriptions.get_mut(identifier) else { return Vec::new() };
        let stopped = |followed: &mut Followed| match stop {
            Stop::All => true,
            Stop::These(streams) => streams.contains(&followed.stream),
        };
        let stopped: Vec<_> = subscription.streams.extract_if(.., stopped).map(|followed| followed.stream).collect();
        if !stopped.is_empty() {
            let text = subscription.identifier.text.clone();
            self.note_changed(&text);
            self.shrunk = self.version;
        }
        stopped
    }

    /// Gives a subscription those of the streams that it does not follow yet; answers with them. Until
    /// [`Self::opened`] says where they stand, they begin at an unknown position.
    pub fn follow(&mut self, identifier: &str, streams: Vec<StreamName>) -> Vec<StreamName> {
        let Some(subscription) = self.subscriptions.get_mut(identifier) else { return Vec::new() };
        let followed = &mut subscription.streams;
        let fresh: Vec<_> = streams.into_iter().filter(|new| followed.iter().all(|one| one.stream != *new)).collect();
        followed.extend(
            fresh.iter().map(|stream| Followed {
                stream: stream.clone(),
                began: Position { epoch: Epoch::from(""), offset: 0 },
            }),
        );
        if !fresh.is_empty() {
            let text = subscription.identifier.text.clone();
            self.note_changed(&text);
        }
        fresh
    }

    /// Streams of a subscription are open now, and begin there.
    pub fn opened(&mut self, identifier: &str, streams: Vec<Followed>) {
        let Some(subscription) = self.subscriptions.get_mut(identifier) else { return };
        let mut changed = false;
        for opened in streams {
            if let Some(followed) = subscription.streams.iter_mut().find(|one| one.stream == opened.stream) {
                *followed = opened;
                changed = true;
            }
        }
        if changed {
            let text = subscription.identifier.text.clone();
            self.note_changed(&text);
        }
    }

    /// The client thinks that it has left this subscription, the application does not: when the client asks for it again
    /// it is confirmed.
    pub fn unconfirm(&mut self, identifier: &str) {
        if let Some(subscription) = self.subscriptions.get_mut(identifier) {
            subscription.confirmed = false;
        }
    }

    /// Keeps the presence that the application wants for a subscription. False: the subscription has no stream for it.
    pub fn set_presence(&mut self, identifier: &str, change: PresenceChange) -> bool {
        let Some(subscription) = self.subscriptions.get_mut(identifier) else { return false };
        let has_stream = subscription.istate.contains_key(super::PRESENCE_KEY);
        subscription.presence = (has_stream && change.kind == "join").then_some(change);
        subscription.recount();
        has_stream
    }

    /// What the application is told of the whole session: every subscription, and its state as JSON text.
    pub fn call_about_all(&self, mut env: Env) -> DisconnectCall {
        env.cstate = self.cstate.clone();
        let recorded = self.subscriptions.iter().map(|(text, subscription)| (text, &subscription.istate));
        let granted = self.granted.iter().map(|(text, istate)| (text, istate));
        let all: BTreeMap<&Arc<str>, &State> = recorded.chain(granted).collect();
        let stateful = all.iter().filter(|(_, istate)| !istate.is_empty());
        env.istate = stateful
            .map(|(text, istate)| {
                let json = serde_json::to_string(istate).expect("a map of texts is always JSON");
                (text.to_string(), json)
            })
            .collect();
        let subscriptions = all.keys().map(|text| text.to_string()).collect();
        DisconnectCall { identifiers: self.identifiers.to_string(), subscriptions, env }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::SubscriptionBudget;
    use crate::protocol::Subprotocol;

    fn state(pairs: &[(&str, &str)]) -> State {
        pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    fn session() -> Session {
        let mut session = Session::new("s".into(), "u".into(), Subprotocol::Json, 0);
        let followed = |name: &str| Followed { stream: name.into(), began: Position { epoch: "e".into(), offset: 1 } };
        let streams = vec![followed("a"), followed("b")];
        session.subscribed(&Identifier::new("chat".into()), streams, state(&[("room", "7"), ("$w", "a")]));
        session
    }

    #[test]
    fn an_empty_value_deletes_others_overwrite_and_the_rest_stays() {
        let mut session = session();
        let before = session.version();
        session.merge_istate("chat", state(&[("room", ""), ("count", "3")]));
        assert_eq!(session.subscription("chat").unwrap().istate, state(&[("$w", "a"), ("count", "3")]));
        assert!(session.version() > before);
        let before = session.version();
        session.merge_istate("chat", state(&[("count", "3"), ("unknown", "")]));
        assert_eq!(session.version(), before, "nothing changed, nothing is to be saved");
    }

    #[test]
    fn stopped_streams_are_only_those_it_had() {
        let mut session = session();
        assert_eq!(session.stop("chat", &Stop::These(vec!["b".into(), "c".into()])), ["b".into()]);
        assert_eq!(session.stop("chat", &Stop::All), ["a".into()]);
        assert!(session.stop("other", &Stop::All).is_empty());
    }

    #[test]
    fn row_13_streams_and_state_count_for_as_long_as_they_are_there() {
        let budget = SubscriptionBudget::new(usize::MAX);
        let mut session = Session::new("s".into(), "u".into(), Subprotocol::Json, 0);
        let identifier = Identifier::within(&"chat".into(), &budget).unwrap();
        let bare = budget.held();
        session.subscribed(&identifier, vec![], state(&[("room", "7")]));
        drop(identifier);
        let small = budget.held();
        session.merge_istate("chat", state(&[("room", &"x".repeat(1_001))]));
        assert_eq!(budget.held(), small + 1_000);
        session.follow("chat", vec!["y".repeat(2_000).into()]);
        assert!(budget.held() >= small + 3_000);
        session.stop("chat", &Stop::All);
        session.merge_istate("chat", state(&[("room", ""), ("$p", "p")]));
        let join = PresenceChange { kind: "join".into(), id: "5".into(), info: "z".repeat(500) };
        assert!(session.set_presence("chat", join) && budget.held() > small + 500);
        session.merge_istate("chat", state(&[("$p", "")]));
        let leave = PresenceChange { kind: "leave".into(), id: "5".into(), info: String::new() };
        session.set_presence("chat", leave);
        assert_eq!(budget.held(), bare);
        session.unsubscribe("chat");
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn presence_is_kept_where_the_state_names_its_stream() {
        let change = |kind: &str| PresenceChange { kind: kind.into(), id: "5".into(), info: "{}".into() };
        let mut session = session();
        assert!(!session.set_presence("chat", change("join")), "no stream");
        session.merge_istate("chat", state(&[("$p", "a")]));
        assert!(session.set_presence("chat", change("join")));
        assert_eq!(session.subscription("chat").unwrap().presence, Some(change("join")));
        assert!(session.set_presence("chat", change("leave")));
        assert_eq!(session.subscription("chat").unwrap().presence, None);
    }

    #[test]
    fn a_farewell_lists_every_subscription_and_its_state_as_json_text() {
        let mut session = session();
        session.subscribed(&Identifier::new("bare".into()), vec![], State::new());
        session.merge_cstate(state(&[("plan", "pro")]));
        let call = session.call_about_all(Env::default());
        assert_eq!(call.subscriptions, ["bare", "chat"]);
        assert_eq!(call.env.cstate, state(&[("plan", "pro")]));
        assert_eq!(call.env.istate, state(&[("chat", r#"{"$w":"a","room":"7"}"#)]));
    }

    #[test]
    fn what_was_granted_is_counted_in_before_it_is_recorded_but_not_saved() {
        let mut session = session();
        let identifier = Identifier::new("lounge".into());
        session.grant(&identifier.text, state(&[("seat", "4"), ("gone", "")]));
        let told = session.call_about_all(Env::default());
        assert_eq!(told.subscriptions, ["chat", "lounge"]);
        assert_eq!(told.env.istate["lounge"], r#"{"seat":"4"}"#);
        let saved = session.save_whole(&|_, _| None, 0);
        assert!(!String::from_utf8_lossy(&saved).contains("lounge"));
        session.subscribed_as_granted(&identifier, vec![]);
        assert_eq!(session.subscription("lounge").unwrap().istate, state(&[("seat", "4")]));
        assert_eq!(session.call_about_all(Env::default()), told);
    }

    #[test]
    fn further_streams_are_followed_before_they_are_open() {
        let mut session = session();
        assert_eq!(session.follow("chat", vec!["b".into(), "c".into()]), ["c".into()]);
        let followed = |session: &Session| session.subscription("chat").unwrap().streams.last().unwrap().clone();
        assert_eq!((followed(&session).stream, followed(&session).began.offset), ("c".into(), 0));
        let opened = Followed { stream: "c".into(), began: Position { epoch: "e".into(), offset: 7 } };
        session.opened("chat", vec![opened.clone()]);
        assert_eq!(followed(&session), opened);
    }
}
