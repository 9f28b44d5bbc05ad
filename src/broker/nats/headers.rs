//! What a message carries besides its data: our headers and how text is put into them.
//!
//! The data is the payload, so nothing a publisher sends can become a header of the server's. A stored message may
//! still carry a name twice (the server adds its own value behind an earlier one): the **last** value counts.

use super::clock;
use super::token::Token;
use crate::broker::AppendError;
use crate::protocol::{Message, MessageId, Meta, Payload, Publication, Sid, StreamName};
use async_nats::HeaderMap;
use async_nats::header::{self, HeaderName};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
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
/// Of the server's own marker where a key has expired.
pub(super) const MARKER_REASON: HeaderName = HeaderName::from_static("Nats-Marker-Reason");

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

/// The server takes no larger header block into a log; what is never stored keeps to the same.
pub(super) const MAX_HEADERS: usize = 64 * 1024 - 1;

/// Whether the server takes this: headers have a limit of their own, and count towards `max_payload`.
pub(super) fn check_size(data: usize, headers: &HeaderMap, max_payload: usize) -> Result<(), AppendError> {
    let (size, limit) = (wire_len(headers), MAX_HEADERS.min(max_payload));
    if size > limit {
        return Err(AppendError::HeadersTooLarge { size, limit });
    }
    match max_payload - size {
        limit if data > limit => Err(AppendError::TooLarge { size: data, limit }),
        _ => Ok(()),
    }
}

/// Bytes of the header block on the wire.
fn wire_len(headers: &HeaderMap) -> usize {
    let lines: usize = headers
        .iter()
        .flat_map(|(name, values)| {
            values.iter().map(move |v| <HeaderName as AsRef<str>>::as_ref(name).len() + v.as_str().len() + 4)
        })
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

/// The message as subscribers get it. It is kept, so nothing of it may be a part of what the client library read at once:
/// that is 64 KiB or more, and lives as long as any part of it.
pub(super) fn message(raw: &async_nats::Message, offset: u64, stored_at: u64) -> Arc<Message> {
    let data = Bytes::copy_from_slice(&raw.payload);
    let payload = match text(raw, &TRANSIENT) {
        Some("json") if offset == 0 => Payload::from_json(data),
        _ => Payload::from_data(&data),
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
    fn row_24_headers_have_a_limit_of_their_own_and_count_towards_the_payload() {
        let headers = |len: usize| {
            let mut headers = HeaderMap::new();
            headers.insert(TYPE, "x".repeat(len));
            headers
        };
        let mib = 1 << 20;
        for good in [(10, headers(100), mib), (mib - 200, headers(100), mib), (0, headers(65_400), mib)] {
            assert!(check_size(good.0, &good.1, good.2).is_ok(), "{} bytes", good.0);
        }
        let limit = MAX_HEADERS;
        let refused = check_size(0, &headers(65_536), mib).unwrap_err();
        assert!(matches!(refused, AppendError::HeadersTooLarge { limit: l, .. } if l == limit), "{refused}");
        let refused = check_size(0, &headers(2_000), 1_000).unwrap_err();
        assert!(matches!(refused, AppendError::HeadersTooLarge { limit: 1_000, .. }), "{refused}");
        let size = wire_len(&headers(100));
        assert_eq!(size, "NATS/1.0\r\nCarrick-Type: \r\n\r\n".len() + 100);
        let refused = check_size(mib, &headers(100), mib).unwrap_err();
        assert!(matches!(refused, AppendError::TooLarge { limit, .. } if limit == mib - size), "{refused}");
    }

    #[test]
    fn row_15_a_message_holds_nothing_of_what_was_read_with_it() {
        for (text, transient) in [("{\"a\":1}", None), ("no JSON", None), ("7", Some("json")), ("7", Some("data"))] {
            let read = Bytes::from([text.as_bytes(), &vec![b'x'; 65_536]].concat());
            let mut headers = HeaderMap::new();
            headers.insert(EXCLUDE, "abc");
            headers.insert(TYPE, "def");
            if let Some(body) = transient {
                headers.insert(TRANSIENT, body);
            }
            let raw = async_nats::Message {
                subject: "s".into(),
                reply: None,
                payload: read.slice(..text.len()),
                headers: Some(headers),
                status: None,
                description: None,
                length: 0,
            };
            let kept = message(&raw, 0, 0);
            drop(raw);
            assert!(read.is_unique(), "{text}");
            assert!(kept.payload.json().len() <= text.len() + 2);
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
