//! A message on its way in (publication) and as it stands in the log.

use super::{Sid, StreamName};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// What a publisher may say about a message besides its data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// The session with this sid does not get the message.
    pub exclude_socket: Option<Sid>,
    /// `type` of the delivered message.
    pub broadcast_type: Option<Arc<str>>,
}

/// A message from a publisher, checked and ready to be stored.
#[derive(Clone, Debug)]
pub struct Publication {
    pub stream: StreamName,
    /// The publisher's `data`: UTF-8 text, usually JSON. Stored as it came.
    pub data: Bytes,
    pub meta: Meta,
    /// Fan out only, do not store.
    pub transient: bool,
    /// Makes a retry the same message (`Nats-Msg-Id`).
    pub id: MessageId,
}

/// 128 bits that name one message: a publisher's retry carries the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MessageId(pub [u8; 16]);

impl MessageId {
    /// For a publisher that gave no key: unique, so that our own retries are safe.
    pub fn random() -> Self {
        let mut id = [0; 16];
        getrandom::fill(&mut id).expect("the operating system's random source works");
        Self(id)
    }

    /// Of stream, key and the item's place in a batch: the same key on two streams must not collide.
    pub fn from_key(stream: &StreamName, key: &str, place: u32) -> Self {
        let mut hash = Sha256::new();
        hash.update((stream.as_str().len() as u64).to_be_bytes());
        hash.update(stream.as_str());
        hash.update((key.len() as u64).to_be_bytes());
        hash.update(key);
        hash.update(place.to_be_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&hash.finalize()[..16]);
        Self(id)
    }

    /// 32 lower-case hexadecimal digits.
    pub fn to_hex(self) -> String {
        use std::fmt::Write;
        self.0.iter().fold(String::with_capacity(32), |mut text, b| {
            let _ = write!(text, "{b:02x}");
            text
        })
    }
}

/// A message as subscribers get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The log's sequence number; 0 for a message that was not stored.
    pub offset: u64,
    /// When it was stored, Unix milliseconds by the store's clock; 0 if it was not.
    pub time: u64,
    pub payload: Payload,
    pub meta: Meta,
}

/// The value of `message` in a delivery: JSON text that is embedded as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload(Bytes);

impl Payload {
    /// `data` if it is JSON and not `null`, else `data` as a JSON string: never parsed twice, never re-serialized.
    pub fn from_data(data: &Bytes) -> Self {
        let is_json = serde_json::from_slice::<&serde_json::value::RawValue>(data).is_ok_and(|raw| raw.get() != "null");
        if is_json {
            return Self(data.clone());
        }
        let text = String::from_utf8_lossy(data);
        Self(Bytes::from(serde_json::to_vec(&text).expect("a string is always JSON")))
    }

    /// Text that is known to be JSON, such as a whisper's data.
    pub fn from_json(json: Bytes) -> Self {
        Self(json)
    }

    pub fn json(&self) -> &Bytes {
        &self.0
    }
}
