//! Protocol messages from server to client, as frames. Every one has a `type`; data messages are in [`super::encoding`].

use super::encoding::{close_frame, json_text};
use super::{Close, Encoding, Sid};
use bytes::Bytes;

/// `welcome`; a restored session always lists its identifiers, also when there are none.
pub fn welcome(encoding: Encoding, sid: &Sid, restored: Option<&[&str]>) -> Bytes {
    let sid = json_text(sid.expose());
    match restored {
        None => encoding.text(&format!(r#"{{"type":"welcome","sid":{sid}}}"#)),
        Some(ids) => {
            let ids = serde_json::to_string(ids).expect("strings are always JSON");
            encoding.text(&format!(r#"{{"type":"welcome","sid":{sid},"restored":true,"restored_ids":{ids}}}"#))
        }
    }
}

/// `ping` with a timestamp in the client's unit.
pub fn ping(encoding: Encoding, timestamp: u128) -> Bytes {
    encoding.text(&format!(r#"{{"type":"ping","message":{timestamp}}}"#))
}

pub fn pong(encoding: Encoding) -> Bytes {
    encoding.text(r#"{"type":"pong"}"#)
}

/// A reply that carries only its type and the identifier's JSON text.
fn about(encoding: Encoding, kind: &str, identifier_json: &str) -> Bytes {
    encoding.text(&format!(r#"{{"type":"{kind}","identifier":{identifier_json}}}"#))
}

pub fn confirm_subscription(encoding: Encoding, identifier_json: &str) -> Bytes {
    about(encoding, "confirm_subscription", identifier_json)
}

pub fn reject_subscription(encoding: Encoding, identifier_json: &str) -> Bytes {
    about(encoding, "reject_subscription", identifier_json)
}

pub fn confirm_history(encoding: Encoding, identifier_json: &str) -> Bytes {
    about(encoding, "confirm_history", identifier_json)
}

pub fn reject_history(encoding: Encoding, identifier_json: &str) -> Bytes {
    about(encoding, "reject_history", identifier_json)
}

/// Answer to a `presence` query that cannot be answered.
pub fn presence_error(encoding: Encoding, identifier_json: &str) -> Bytes {
    encoding.text(&format!(
        r#"{{"type":"presence","identifier":{identifier_json},"message":{{"type":"error","total":0}}}}"#
    ))
}

/// The last frames of a connection: the `disconnect` message, if this way of closing has one, and the close frame.
pub fn farewell(encoding: Encoding, close: Close) -> Vec<Bytes> {
    let message = close.disconnect().map(|(reason, reconnect)| {
        encoding.text(&format!(r#"{{"type":"disconnect","reason":"{reason}","reconnect":{reconnect}}}"#))
    });
    message.into_iter().chain([close_frame(close.code())]).collect()
}
