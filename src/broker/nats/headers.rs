//! What a message carries besides its data: our headers and how text is put into them.
//!
//! The data is the payload, so nothing a publisher sends can become a header of the server's. A stored message may
//! still carry a name twice (the server adds its own value behind an earlier one): the **last** value counts.

use super::clock;
use super::token::Token;
use crate::protocol::{Message, MessageId, Meta, Payload, Publication, Sid, StreamName};
use async_nats::HeaderMap;
use async_nats::header::{self, HeaderName};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::str::FromStr;
use std::sync::Arc;

/// The log's epoch as the publisher knew it.
pub(super) const EPOCH: HeaderName = HeaderName::from_static("Carrick-Epoch");
/// In a node's lease: fingerprint of the policies that it follows, or is configured for.
pub(super) const TABLE: HeaderName = HeaderName::from_static("Carrick-Table");
/// In a node's lease: the newest proposal of policies that it is prepared for.
pub(super) const PREPARED: HeaderName = HeaderName::from_static("Carrick-Prepared");
/// `exclude_socket`.
pub(super) const EXCLUDE: HeaderName = HeaderName::from_static("Carrick-Exclude");
/// `broadcast_type`.
pub(super) const TYPE: HeaderName = HeaderName::from_static("Carrick-Type");
/// Full name of a stream whose token is a hash (base64url).
pub(super) const STREAM: HeaderName = HeaderName::from_static("Carrick-Stream");
/// Marks a message that was never stored, and says what its payload is.
pub(super) const TRANSIENT: HeaderName = HeaderName::from_static("Carrick-Transient");

pub(super) const NUM_PENDING: HeaderName = HeaderName::from_static("Nats-Num-Pending");
pub(super) const UP_TO_SEQUENCE: HeaderName = HeaderName::from_static("Nats-UpTo-Sequence");
pub(super) const KV_OPERATION: HeaderName = HeaderName::from_static("KV-Operation");

/// Headers of a publication that is to be stored in `log`, and only there.
pub(super) fn stored(publication: &Publication, token: &Token, log: &str, epoch: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::NATS_MESSAGE_ID, publication.id.to_hex());
    headers.insert(header::NATS_EXPECTED_STREAM, log);
    headers.insert(EPOCH, epoch);
    common(&mut headers, &publication.stream, token, &publication.meta);
    headers
}

/// What the payload of a transient message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// A publisher's data, to be embedded like that of a stored message.
    Data,
    /// Finished JSON (a whisper).
    Json,
}

/// Headers of a message that is fanned out without being stored.
pub(super) fn transient(stream: &StreamName, token: &Token, meta: &Meta, body: Body) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(TRANSIENT, if body == Body::Json { "json" } else { "data" });
    common(&mut headers, stream, token, meta);
    headers
}

fn common(headers: &mut HeaderMap, stream: &StreamName, token: &Token, meta: &Meta) {
    if token.hashed {
        headers.insert(STREAM, URL_SAFE_NO_PAD.encode(stream.as_str()));
    }
    if let Some(sid) = &meta.exclude_socket {
        headers.insert(EXCLUDE, encode(sid.expose()));
    }
    if let Some(kind) = &meta.broadcast_type {
        headers.insert(TYPE, encode(kind));
    }
}

/// The server takes no larger header block into a log.
const MAX_HEADERS: usize = 64 * 1024;

/// `Err` with the limit for the data, if data and headers together exceed the server's `max_payload`.
pub(super) fn check_size(data: usize, headers: &HeaderMap, max_payload: usize) -> Result<(), usize> {
    // Counting costs a little; most messages are far from the limit.
    if data + MAX_HEADERS <= max_payload {
        return Ok(());
    }
    let limit = max_payload.saturating_sub(wire_len(headers));
    if data > limit { Err(limit) } else { Ok(()) }
}

/// Bytes of the header block on the wire.
fn wire_len(headers: &HeaderMap) -> usize {
    let lines: usize = headers
        .iter()
        .flat_map(|(name, values)| values.iter().map(move |v| name.to_string().len() + v.as_str().len() + 4))
        .sum();
    "NATS/1.0\r\n\r\n".len() + lines
}

/// Printable ASCII stays, everything else (line breaks and blanks too, which a header would lose) becomes `%XX`.
fn encode(text: &str) -> String {
    use std::fmt::Write;
    if text.bytes().all(|b| b.is_ascii_graphic() && b != b'%') {
        return text.to_owned();
    }
    text.bytes().fold(String::with_capacity(text.len() * 3), |mut out, b| {
        if b.is_ascii_graphic() && b != b'%' {
            out.push(char::from(b));
        } else {
            let _ = write!(out, "%{b:02X}");
        }
        out
    })
}

fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            out.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            out.push(b);
        }
    }
    String::from_utf8(out).ok()
}

/// The last value of a header.
pub(super) fn text<'a>(message: &'a async_nats::Message, name: &HeaderName) -> Option<&'a str> {
    message.headers.as_ref()?.get_last(name.clone()).map(|v| v.as_str())
}

pub(super) fn number(message: &async_nats::Message, name: &HeaderName) -> Option<u64> {
    u64::from_str(text(message, name)?).ok()
}

/// When the store took the message, Unix nanoseconds.
pub(super) fn stored_at(message: &async_nats::Message) -> Option<u64> {
    clock::parse(text(message, &header::NATS_TIME_STAMP)?)
}

/// The id a message was stored with. Ids that are not ours (another program wrote into the log) are not compared.
pub(super) fn message_id(message: &async_nats::Message) -> Option<MessageId> {
    parse_id(text(message, &header::NATS_MESSAGE_ID)?)
}

pub(super) fn parse_id(hex: &str) -> Option<MessageId> {
    if hex.len() != 32 || !hex.is_ascii() {
        return None;
    }
    let mut id = [0; 16];
    for (place, byte) in id.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[place * 2..place * 2 + 2], 16).ok()?;
    }
    Some(MessageId(id))
}

/// False if the message is of another stream whose name has the same hash.
pub(super) fn is_of(message: &async_nats::Message, stream: &StreamName, hashed: bool) -> bool {
    if !hashed {
        return true;
    }
    text(message, &STREAM).and_then(|name| URL_SAFE_NO_PAD.decode(name).ok()).as_deref()
        == Some(stream.as_str().as_bytes())
}

/// The message as subscribers get it.
pub(super) fn message(raw: &async_nats::Message, offset: u64, stored_at: u64) -> Arc<Message> {
    let payload = match text(raw, &TRANSIENT) {
        Some("json") if offset == 0 => Payload::from_json(raw.payload.clone()),
        _ => Payload::from_data(&raw.payload),
    };
    let decoded = |name| text(raw, name).and_then(decode);
    let meta = match &raw.headers {
        Some(_) => {
            Meta { exclude_socket: decoded(&EXCLUDE).map(Sid::from), broadcast_type: decoded(&TYPE).map(Arc::from) }
        }
        None => Meta::default(),
    };
    Arc::new(Message { offset, time: stored_at / 1_000_000, payload, meta })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_text_survives_a_header(text in any::<String>()) {
            let encoded = encode(&text);
            prop_assert!(encoded.bytes().all(|b| b.is_ascii_graphic()));
            prop_assert_eq!(decode(&encoded), Some(text));
        }
    }

    #[test]
    fn ids_survive_a_header() {
        let id = MessageId::random();
        assert_eq!(parse_id(&id.to_hex()), Some(id));
        assert_eq!(parse_id("nonsense"), None);
        assert_eq!(parse_id(&"ä".repeat(16)), None);
    }
}
