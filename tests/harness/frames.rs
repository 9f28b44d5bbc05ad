//! Identifiers and frames as they stand on the wire.

use super::Position;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use std::sync::atomic::{AtomicU32, Ordering};

/// The application secret of every server of the tests.
pub const SECRET: &str = "orchid-lantern-42";

/// Key of HTTP broadcasts that follows from [`SECRET`].
pub const BROADCAST_KEY: &str = "9d2bd900d6bec22a23602fff027a727ea2877fed2704cf954a9dd2d60f9ba5f9";

/// A stream name that no other test uses.
pub fn stream(label: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{label}/{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Identifier of a subscription to a public stream.
pub fn public(stream: &str) -> String {
    json!({"channel": "$pubsub", "stream_name": stream}).to_string()
}

/// Another subscription to the same public stream.
pub fn public_again(stream: &str) -> String {
    json!({"channel": "$pubsub", "stream_name": stream, "component": 2}).to_string()
}

/// Identifier of a subscription to a signed stream.
pub fn signed(stream: &str) -> String {
    json!({"channel": "$pubsub", "signed_stream_name": sign(stream, SECRET)}).to_string()
}

/// A signed stream name, as the application's server would make it.
pub fn sign(stream: &str, secret: &str) -> String {
    let payload = STANDARD.encode(json!(stream).to_string());
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("a key may have any length");
    mac.update(payload.as_bytes());
    let signature: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{payload}--{signature}")
}

pub fn confirm(identifier: &str) -> Value {
    json!({"type": "confirm_subscription", "identifier": identifier})
}

pub fn reject(identifier: &str) -> Value {
    json!({"type": "reject_subscription", "identifier": identifier})
}

pub fn confirm_history(identifier: &str) -> Value {
    json!({"type": "confirm_history", "identifier": identifier})
}

pub fn reject_history(identifier: &str) -> Value {
    json!({"type": "reject_history", "identifier": identifier})
}

pub fn disconnect(reason: &str, reconnect: bool) -> Value {
    json!({"type": "disconnect", "reason": reason, "reconnect": reconnect})
}

/// History from a position on, as a client that saw this message last would ask for.
pub fn after(position: &Position) -> Value {
    after_offset(position, position.offset)
}

/// History of this position's stream and epoch from another offset on.
pub fn after_offset(position: &Position, offset: u64) -> Value {
    json!({"streams": {&position.stream: {"offset": offset, "epoch": &position.epoch}}})
}

/// History from a time on, Unix seconds.
pub fn since(time: u64) -> Value {
    json!({"since": time})
}
