//! The scenarios of the conformance suite of Action Cable servers, named after its features, and those that AnyCable's
//! server adds. Clients speak the base protocol unless a scenario needs more.

mod broadcasts;
mod channel_state;
mod connections;
mod extended;
mod leaving;
mod streams;
mod subscriptions;

use serde_json::json;

/// Identifier of a channel without parameters.
fn channel(name: &str) -> String {
    json!({"channel": name}).to_string()
}

/// Identifier of a channel that follows these streams.
fn following(streams: &[&str]) -> String {
    json!({"channel": "Streams", "streams": streams}).to_string()
}

/// Another subscription to the same channel.
fn following_as(id: u32, streams: &[&str]) -> String {
    json!({"channel": "Streams", "id": id, "streams": streams}).to_string()
}
