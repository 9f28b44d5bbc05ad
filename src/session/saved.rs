//! A session as it is stored: what is needed to go on with a client after its socket is gone.

use super::{Followed, Session, State, Subscription};
use crate::hub::{Identifier, Proof, SavedProof};
use crate::protocol::{Epoch, Position, Sid, StreamName, Subprotocol};
use crate::secret::json_fault;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// Version of the stored form. Another one cannot be read: the client authenticates.
const VERSION: u32 = 2;

/// Sids by which messages may exclude a session; of a client that comes back more often the oldest are forgotten.
const MAX_SIDS: usize = 100;

#[derive(Serialize, Deserialize)]
pub struct SavedSession {
    version: u32,
    /// Connection identifiers.
    ids: String,
    subs: BTreeMap<String, SavedSubscription>,
    cstate: State,
    /// When the token that the session was authenticated by expires (Unix seconds).
    pub exp: Option<u64>,
    /// The application wants to hear when the client leaves.
    interest: bool,
    /// The connection that wrote this was there. Not in its last write.
    pub open: bool,
    /// Key of the session that this one was restored from, unless that is over.
    pub unproved: Option<String>,
    /// Newest remote disconnect of the identifiers at authentication; a newer one voids the session.
    pub mark: u64,
    /// Sids by which messages may exclude this session, and when each was last in use (Unix milliseconds).
    sids: Vec<(String, u64)>,
    /// Per stream: what was known of its head.
    proofs: BTreeMap<String, StoredProof>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredProof {
    #[serde(flatten)]
    proof: Proof,
    /// Life of the log that the proof is about.
    epoch: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedSubscription {
    /// Stream, epoch, offset that the subscription began from.
    streams: Vec<(String, String, u64)>,
    istate: State,
}

/// Why a stored session cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error("it cannot be read: {}", json_fault(.0))]
    Unreadable(serde_json::Error),
    #[error("its format is version {0}, this server reads version {VERSION}")]
    Version(u32),
}

impl SavedSession {
    pub fn decode(body: &[u8]) -> Result<Self, Unusable> {
        let saved: Self = serde_json::from_slice(body).map_err(Unusable::Unreadable)?;
        if saved.version == VERSION { Ok(saved) } else { Err(Unusable::Version(saved.version)) }
    }

    pub fn identifiers(&self) -> &str {
        &self.ids
    }

    /// The proof of a stream's head, taken when the session was last saved.
    pub fn proofs(&self) -> HashMap<StreamName, SavedProof> {
        let proof = |(stream, stored): (&String, &StoredProof)| {
            let saved = SavedProof { epoch: Epoch::from(stored.epoch.as_str()), proof: stored.proof };
            (StreamName::from(stream.as_str()), saved)
        };
        self.proofs.iter().map(proof).collect()
    }

    /// Goes on with the session on a new connection. Sids that were left before `oldest` (Unix milliseconds) are
    /// forgotten: no message that is still kept can exclude them.
    pub fn restore(self, sid: Sid, subprotocol: Subprotocol, oldest: u64) -> Session {
        let mut session = Session::new(sid, self.ids.into(), subprotocol, self.mark);
        session.cstate = self.cstate;
        session.exp = self.exp;
        session.interest = self.interest;
        session.earlier_sids = self
            .sids
            .into_iter()
            .filter(|(_, left)| *left >= oldest)
            .take(MAX_SIDS)
            .map(|(sid, left)| (sid.into(), left))
            .collect();
        for (text, saved) in self.subs {
            let identifier = Identifier::new(text.into());
            let followed = |(stream, epoch, offset): (String, String, u64)| Followed {
                stream: stream.into(),
                began: Position { epoch: Epoch::from(epoch.as_str()), offset },
            };
            let subscription = Subscription {
                identifier: identifier.clone(),
                streams: saved.streams.into_iter().map(followed).collect(),
                istate: saved.istate,
                confirmed: false,
                awaits_history: true,
                presence: None,
            };
            session.subscriptions.insert(identifier.text.clone(), subscription);
        }
        session
    }
}

impl Session {
    /// What is stored of the session. `now`: Unix milliseconds. `open`: its connection goes on.
    pub fn save(&self, proofs: impl Iterator<Item = (StreamName, SavedProof)>, now: u64, open: bool) -> Bytes {
        let subscription = |subscription: &Subscription| SavedSubscription {
            streams: subscription
                .streams
                .iter()
                .map(|Followed { stream, began }| {
                    (stream.as_str().to_owned(), began.epoch.as_str().to_owned(), began.offset)
                })
                .collect(),
            istate: subscription.istate.clone(),
        };
        let stored = |saved: SavedProof| StoredProof { proof: saved.proof, epoch: saved.epoch.as_str().into() };
        let earlier = self.earlier_sids.iter().map(|(sid, left)| (sid.expose().to_owned(), *left));
        let saved = SavedSession {
            version: VERSION,
            ids: self.identifiers.to_string(),
            subs: self.subscriptions.iter().map(|(text, one)| (text.to_string(), subscription(one))).collect(),
            cstate: self.cstate.clone(),
            exp: self.exp,
            interest: self.interest,
            open,
            unproved: self.unproved.clone(),
            mark: self.mark,
            sids: std::iter::once((self.sid.expose().to_owned(), now)).chain(earlier).collect(),
            proofs: proofs.map(|(stream, saved)| (stream.as_str().to_owned(), stored(saved))).collect(),
        };
        Bytes::from(serde_json::to_vec(&saved).expect("maps with text keys are always JSON"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::StoreTime;

    #[test]
    fn a_saved_session_restores_everything_but_confirmations() {
        let mut session = Session::new("s1".into(), "{\"user\":1}".into(), Subprotocol::ExtJson, 7);
        let identifier = Identifier::new("chat".into());
        let began = Position { epoch: "e".into(), offset: 12 };
        let followed = Followed { stream: "chat/7".into(), began };
        session.subscribed(&identifier, vec![followed.clone()], State::from([("$w".into(), "chat/7".into())]));
        let proof = SavedProof {
            epoch: "f".into(),
            proof: Proof { head: 3, last: 12, revision: 1, time: StoreTime { millis: 5, clock: 9 } },
        };

        let body = session.save([("chat/7".into(), proof.clone())].into_iter(), 1_000, true);
        let saved = SavedSession::decode(&body).unwrap();
        assert_eq!(saved.proofs()[&StreamName::from("chat/7")], proof);
        let restored = saved.restore("s2".into(), Subprotocol::ExtJson, 1_000);

        assert_eq!(restored.sids().iter().map(Sid::expose).collect::<Vec<_>>(), ["s2", "s1"]);
        assert_eq!((&*restored.identifiers, restored.mark), ("{\"user\":1}", 7));
        let subscription = restored.subscription("chat").unwrap();
        assert_eq!(subscription.streams, [followed]);
        assert!(!subscription.confirmed && subscription.awaits_history);
        assert_eq!(restored.whisper_stream("chat"), Some("chat/7".into()));
    }

    #[test]
    fn expiry_and_interest_are_inherited() {
        let mut session = Session::new("s1".into(), "i".into(), Subprotocol::ExtJson, 0);
        session.exp = Some(77);
        session.express_interest();
        let body = session.save(std::iter::empty(), 1_000, true);
        let restored = SavedSession::decode(&body).unwrap().restore("s2".into(), Subprotocol::ExtJson, 0);
        assert_eq!((restored.exp, restored.interest()), (Some(77), true));
    }

    #[test]
    fn sids_older_than_the_history_are_forgotten() {
        let session = Session::new("old".into(), "i".into(), Subprotocol::ExtJson, 0);
        let saved = SavedSession::decode(&session.save(std::iter::empty(), 1_000, true)).unwrap();
        assert_eq!(saved.restore("new".into(), Subprotocol::ExtJson, 1_001).sids().len(), 1);
    }

    #[test]
    fn an_unknown_version_or_garbage_is_refused() {
        assert!(SavedSession::decode(b"{}").is_err());
        let session = Session::new("s".into(), "i".into(), Subprotocol::ExtJson, 0);
        let body = String::from_utf8(session.save(std::iter::empty(), 1, true).to_vec()).unwrap();
        let newer = body.replace("\"version\":2", "\"version\":3");
        assert!(matches!(SavedSession::decode(newer.as_bytes()), Err(Unusable::Version(3))));
    }
}
