//! What the application's answers change in a session, and what it is told of one that ends.

use super::{Followed, Session, State};
use crate::protocol::StreamName;
use crate::rpc::{DisconnectCall, Env, PresenceChange};

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
        self.version += u64::from(merge(&mut subscription.istate, changes));
    }

    /// Takes streams from a subscription; answers with those that it had.
    pub fn stop(&mut self, identifier: &str, stop: &Stop) -> Vec<StreamName> {
        let Some(subscription) = self.subscriptions.get_mut(identifier) else { return Vec::new() };
        let stopped = |followed: &mut Followed| match stop {
            Stop::All => true,
            Stop::These(streams) => streams.contains(&followed.stream),
        };
        let stopped: Vec<_> = subscription.streams.extract_if(.., stopped).map(|followed| followed.stream).collect();
        self.version += u64::from(!stopped.is_empty());
        stopped
    }

    /// Gives a subscription further streams.
    pub fn follow(&mut self, identifier: &str, streams: Vec<Followed>) {
        let Some(subscription) = self.subscriptions.get_mut(identifier) else { return };
        self.version += u64::from(!streams.is_empty());
        subscription.streams.extend(streams);
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
        has_stream
    }

    /// What the application is told of the whole session: every subscription, and its state as JSON text.
    pub fn call_about_all(&self, mut env: Env) -> DisconnectCall {
        env.cstate = self.cstate.clone();
        let stateful = self.subscriptions.iter().filter(|(_, subscription)| !subscription.istate.is_empty());
        env.istate = stateful
            .map(|(text, subscription)| {
                let json = serde_json::to_string(&subscription.istate).expect("a map of texts is always JSON");
                (text.to_string(), json)
            })
            .collect();
        let mut subscriptions: Vec<_> = self.subscriptions.keys().map(|text| text.to_string()).collect();
        subscriptions.sort_unstable();
        DisconnectCall { identifiers: self.identifiers.to_string(), subscriptions, env }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Identifier;
    use crate::protocol::{Position, Subprotocol};

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
}
