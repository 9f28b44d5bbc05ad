//! A session as it is stored: what is needed to go on with a client after its socket is gone. One entry, the head, holds
//! it; of many subscriptions most are in [parts](super::parts) that the head names.

use super::{Followed, Session, State, Subscription, content};
use crate::broker::StoreTime;
use crate::hub::{Held, Identifier, Proof, SavedProof};
use crate::protocol::{Epoch, Position, Sid, StreamName, Subprotocol};
use crate::secret::json_fault;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::HashMap;

/// Version of the stored form. Another one cannot be read: the client authenticates.
const VERSION: u32 = 2;

/// Sids by which messages may exclude a session; of a client that comes back more often the oldest are forgotten.
const MAX_SIDS: usize = 100;

/// `S`: a subscription, as it is read or as it is written.
#[derive(Serialize, Deserialize)]
struct Head<S> {
    version: u32,
    /// Connection identifiers.
    ids: String,
    cstate: State,
    /// When the token that the session was authenticated by expires (Unix seconds).
    exp: Option<u64>,
    /// The application wants to hear when the client leaves.
    interest: bool,
    /// The connection that wrote this was there. Not in its last write.
    open: bool,
    /// Key of the session that this one was restored from, unless that is over.
    unproved: Option<String>,
    /// Newest remote disconnect of the identifiers at authentication; a newer one voids the session.
    mark: u64,
    /// Sids by which messages may exclude this session, and when each was last in use (Unix milliseconds).
    sids: Vec<(String, u64)>,
    /// Subscriptions that are in no part.
    subs: Vec<S>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    parts: Vec<PartName>,
}

/// A part of which the session still consists. Nothing counts that the head does not name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartName {
    /// Never given twice within a session.
    #[serde(rename = "n")]
    pub number: u64,
    /// The revision that it was written with.
    #[serde(rename = "r")]
    pub revision: u64,
    /// Which of its subscriptions have left or changed since: one bit each in hexadecimal digits, the lowest first.
    #[serde(rename = "g", default, skip_serializing_if = "String::is_empty")]
    pub gone: String,
}

impl PartName {
    fn is_gone(&self, slot: usize) -> bool {
        let digit = self.gone.as_bytes().get(slot / 4).and_then(|digit| char::from(*digit).to_digit(16));
        digit.is_some_and(|digit| digit >> (slot % 4) & 1 == 1)
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedSubscription {
    id: String,
    #[serde(rename = "s")]
    streams: Vec<SavedStream>,
    #[serde(rename = "i", default, skip_serializing_if = "State::is_empty")]
    istate: State,
}

/// A stream, the epoch and offset that the subscription began from, and what was known of its head.
#[derive(Debug, Serialize, Deserialize)]
struct SavedStream(StreamName, String, u64, Option<StoredProof>);

/// Head, last sequence, revision, time and its clock; and the epoch, unless the subscription began in it.
#[derive(Debug, Serialize, Deserialize)]
struct StoredProof(u64, u64, u64, u64, u64, Option<String>);

impl SavedStream {
    fn of(followed: &Followed, proof: Option<SavedProof>) -> Self {
        let Followed { stream, began } = followed;
        let proof = proof.map(|SavedProof { epoch, proof: Proof { head, last, revision, time } }| {
            let other = (epoch != began.epoch).then(|| epoch.as_str().to_owned());
            StoredProof(head, last, revision, time.millis, time.clock, other)
        });
        Self(stream.clone(), began.epoch.as_str().to_owned(), began.offset, proof)
    }

    fn proof(&self) -> Option<SavedProof> {
        let Self(_, began, _, Some(StoredProof(head, last, revision, millis, clock, epoch))) = self else {
            return None;
        };
        let time = StoreTime { millis: *millis, clock: *clock };
        let proof = Proof { head: *head, last: *last, revision: *revision, time };
        Some(SavedProof { epoch: Epoch::from(epoch.as_deref().unwrap_or(began)), proof })
    }

    fn followed(self) -> Followed {
        let Self(stream, epoch, offset, _) = self;
        Followed { stream, began: Position { epoch: Epoch::from(epoch.as_str()), offset } }
    }
}

/// Finds what is known of the head of a stream that a subscription follows.
pub type Look<'a> = &'a dyn Fn(&StreamName, &Identifier) -> Option<SavedProof>;

/// A subscription in its stored form.
pub(super) fn record(subscription: &Subscription, look: Look<'_>) -> Box<RawValue> {
    let identifier = &subscription.identifier;
    let stream = |followed: &Followed| SavedStream::of(followed, look(&followed.stream, identifier));
    let saved = SavedSubscription {
        id: identifier.text.to_string(),
        streams: subscription.streams.iter().map(stream).collect(),
        istate: subscription.istate.clone(),
    };
    serde_json::value::to_raw_value(&saved).expect("maps with text keys are always JSON")
}

/// Why a stored session cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error("it cannot be read: {}", json_fault(.0))]
    Unreadable(serde_json::Error),
    #[error("its format is version {0}, this server reads version {VERSION}")]
    Version(u32),
}

/// A saved session that was read.
pub struct SavedSession(Head<SavedSubscription>);

impl SavedSession {
    pub fn decode(body: &[u8]) -> Result<Self, Unusable> {
        let head: Head<SavedSubscription> = serde_json::from_slice(body).map_err(Unusable::Unreadable)?;
        if head.version == VERSION { Ok(Self(head)) } else { Err(Unusable::Version(head.version)) }
    }

    pub fn identifiers(&self) -> &str {
        &self.0.ids
    }

    /// When the token that the session was authenticated by expires (Unix seconds).
    pub fn exp(&self) -> Option<u64> {
        self.0.exp
    }

    pub fn set_exp(&mut self, exp: Option<u64>) {
        self.0.exp = exp;
    }

    /// Newest remote disconnect of the identifiers at authentication.
    pub fn mark(&self) -> u64 {
        self.0.mark
    }

    /// The connection that wrote this was there.
    pub fn was_open(&self) -> bool {
        self.0.open
    }

    /// Key of the session that this one was restored from, unless that is over.
    pub fn take_unproved(&mut self) -> Option<String> {
        self.0.unproved.take()
    }

    /// Bytes that its subscriptions will hold in memory.
    pub fn held(&self) -> usize {
        let one = |one: &SavedSubscription| {
            Identifier::cost(&one.id) + content(one.streams.iter().map(|stream| &stream.0), &one.istate)
        };
        self.0.subs.iter().map(one).sum()
    }

    /// The parts that belong to it.
    pub fn parts(&self) -> &[PartName] {
        &self.0.parts
    }

    /// Takes in what a part holds of it.
    pub fn join(&mut self, name: &PartName, body: &[u8]) -> Result<(), Unusable> {
        let part: Vec<SavedSubscription> = serde_json::from_slice(body).map_err(Unusable::Unreadable)?;
        let left = part.into_iter().enumerate().filter(|(slot, _)| !name.is_gone(*slot));
        self.0.subs.extend(left.map(|(_, subscription)| subscription));
        Ok(())
    }

    /// The proof of each stream's head, taken when the session was last saved.
    pub fn proofs(&self) -> HashMap<StreamName, SavedProof> {
        let mut proofs: HashMap<StreamName, SavedProof> = HashMap::new();
        for stream in self.0.subs.iter().flat_map(|subscription| &subscription.streams) {
            let Some(proof) = stream.proof() else { continue };
            let known = proofs.entry(stream.0.clone()).or_insert_with(|| proof.clone());
            // Parts are not written at the same time.
            if proof.proof.time.millis > known.proof.time.millis {
                *known = proof;
            }
        }
        proofs
    }

    /// Goes on with the session on a new connection. `now`, `oldest`: Unix milliseconds. The sid that it had so far is in
    /// use until now. Those that were left before `oldest` are forgotten: no message that is still kept can exclude them.
    /// `room`: for [what it holds](Self::held).
    pub fn restore(self, sid: Sid, subprotocol: Subprotocol, now: u64, oldest: u64, mut room: Held) -> Session {
        let saved = self.0;
        let mut session = Session::new(sid, saved.ids.into(), subprotocol, saved.mark);
        session.cstate = saved.cstate;
        session.exp = saved.exp;
        session.interest = saved.interest;
        let mut sids = saved.sids.into_iter();
        let present = sids.next().map(|(sid, _)| (sid, now));
        let earlier = sids.filter(|(_, left)| *left >= oldest);
        session.earlier_sids =
            present.into_iter().chain(earlier).take(MAX_SIDS).map(|(sid, left)| (sid.into(), left)).collect();
        for saved in saved.subs {
            let identifier = Identifier::restored(saved.id.into(), &mut room);
            let streams = saved.streams.into_iter().map(SavedStream::followed).collect();
            let mut subscription = Subscription::new(identifier.clone(), streams, saved.istate, Some(&mut room));
            (subscription.confirmed, subscription.awaits_history) = (false, true);
            session.subscriptions.insert(identifier.text.clone(), subscription);
        }
        session
    }
}

impl Session {
    /// The head: what is stored of the session but for what is in parts. `now`: Unix milliseconds. `open`: its connection
    /// goes on.
    pub(super) fn head(&self, subs: Vec<Box<RawValue>>, parts: Vec<PartName>, now: u64, open: bool) -> Bytes {
        let earlier = self.earlier_sids.iter().map(|(sid, left)| (sid.expose().to_owned(), *left));
        let head = Head {
            version: VERSION,
            ids: self.identifiers.to_string(),
            cstate: self.cstate.clone(),
            exp: self.exp,
            interest: self.interest,
            open,
            unproved: self.unproved.clone(),
            mark: self.mark,
            sids: std::iter::once((self.sid.expose().to_owned(), now)).chain(earlier).collect(),
            subs,
            parts,
        };
        Bytes::from(serde_json::to_vec(&head).expect("maps with text keys are always JSON"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_proof(_: &StreamName, _: &Identifier) -> Option<SavedProof> {
        None
    }

    #[test]
    fn a_saved_session_restores_everything_but_confirmations() {
        let mut session = Session::new("s1".into(), "{\"user\":1}".into(), Subprotocol::ExtJson, 7);
        let identifier = Identifier::new("chat".into());
        let began = Position { epoch: "e".into(), offset: 12 };
        let followed = Followed { stream: "chat/7".into(), began };
        session.subscribed(&identifier, vec![followed.clone()], State::from([("$w".into(), "chat/7".into())]));
        for epoch in ["e", "f"] {
            let proof = SavedProof {
                epoch: epoch.into(),
                proof: Proof { head: 3, last: 12, revision: 1, time: StoreTime { millis: 5, clock: 9 } },
            };

            let body = session.save_whole(&|_, _| Some(proof.clone()), 1_000);
            let saved = SavedSession::decode(&body).unwrap();
            assert_eq!(saved.proofs()[&StreamName::from("chat/7")], proof);
            let restored = saved.restore("s2".into(), Subprotocol::ExtJson, 1_000, 1_000, Held::unlimited());

            assert_eq!(restored.sids().iter().map(Sid::expose).collect::<Vec<_>>(), ["s2", "s1"]);
            assert_eq!((&*restored.identifiers, restored.mark), ("{\"user\":1}", 7));
            let subscription = restored.subscription("chat").unwrap();
            assert_eq!(subscription.streams, std::slice::from_ref(&followed));
            assert!(!subscription.confirmed && subscription.awaits_history);
            assert_eq!(restored.whisper_stream("chat"), Some("chat/7".into()));
        }
    }

    #[test]
    fn expiry_and_interest_are_inherited() {
        let mut session = Session::new("s1".into(), "i".into(), Subprotocol::ExtJson, 0);
        session.exp = Some(77);
        session.express_interest();
        let body = session.save_whole(&no_proof, 1_000);
        let restored = SavedSession::decode(&body).unwrap().restore(
            "s2".into(),
            Subprotocol::ExtJson,
            1_000,
            0,
            Held::unlimited(),
        );
        assert_eq!((restored.exp, restored.interest()), (Some(77), true));
    }

    /// Publishers name a sid until its client hears of the next one, however long ago the session was last saved.
    #[test]
    fn sids_older_than_the_history_are_forgotten_but_the_last_one_is_in_use() {
        let session = Session::new("a".into(), "i".into(), Subprotocol::ExtJson, 0);
        let restored = |body: &[u8], sid: &str, now, oldest| {
            SavedSession::decode(body).unwrap().restore(
                sid.into(),
                Subprotocol::ExtJson,
                now,
                oldest,
                Held::unlimited(),
            )
        };
        let sids = |session: &Session| session.sids().iter().map(|sid| sid.expose().to_owned()).collect::<Vec<_>>();
        let second = restored(&session.save_whole(&no_proof, 1_000), "b", 5_000, 4_000);
        assert_eq!(sids(&second), ["b", "a"]);
        let saved = second.save_whole(&no_proof, 6_000);
        assert_eq!(sids(&restored(&saved, "c", 9_000, 5_000)), ["c", "b", "a"], "it was left at 5,000");
        assert_eq!(sids(&restored(&saved, "c", 9_000, 5_001)), ["c", "b"]);
    }

    #[test]
    fn an_unknown_version_or_garbage_is_refused() {
        assert!(SavedSession::decode(b"{}").is_err());
        let session = Session::new("s".into(), "i".into(), Subprotocol::ExtJson, 0);
        let body = String::from_utf8(session.save_whole(&no_proof, 1).to_vec()).unwrap();
        let newer = body.replace("\"version\":2", "\"version\":3");
        assert!(matches!(SavedSession::decode(newer.as_bytes()), Err(Unusable::Version(3))));
    }

    #[test]
    fn of_two_proofs_of_a_stream_the_newer_counts() {
        let mut session = Session::new("s".into(), "i".into(), Subprotocol::ExtJson, 0);
        for text in ["a", "b"] {
            let began = Position { epoch: "e".into(), offset: 1 };
            session.subscribed(
                &Identifier::new(text.into()),
                vec![Followed { stream: "x".into(), began }],
                State::new(),
            );
        }
        let look = |_: &StreamName, identifier: &Identifier| {
            let millis = if &*identifier.text == "a" { 7 } else { 5 };
            let proof = Proof { head: millis, last: millis, revision: 1, time: StoreTime { millis, clock: 1 } };
            Some(SavedProof { epoch: "e".into(), proof })
        };
        let saved = SavedSession::decode(&session.save_whole(&look, 1)).unwrap();
        assert_eq!(saved.proofs()[&StreamName::from("x")].proof.head, 7);
    }
}
