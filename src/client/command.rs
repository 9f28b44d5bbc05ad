//! What a client sends: one JSON object per text frame.

use serde::{Serialize, Serializer};
use std::collections::BTreeMap;

/// A request for what was missed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HistoryRequest {
    /// For streams without an entry in `streams`.
    pub since: Since,
    /// Last seen position per stream.
    pub streams: BTreeMap<String, SeenPosition>,
}

/// The time from which messages are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// Unix seconds.
    At(u64),
    /// Catching up by time is off: the stock client writes `false`.
    Off,
}

impl Serialize for Since {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::At(seconds) => serializer.serialize_u64(*seconds),
            Self::Off => serializer.serialize_bool(false),
        }
    }
}

/// The position that a client saw last on a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SeenPosition {
    pub epoch: String,
    pub offset: u64,
}

#[derive(Serialize)]
struct Command<'a, D: Serialize> {
    command: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    identifier: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    history: Option<&'a HistoryRequest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<D>,
}

fn encode<D: Serialize>(command: &Command<'_, D>) -> String {
    serde_json::to_string(command).expect("strings, numbers and maps with string keys are always JSON")
}

pub fn subscribe(identifier: &str, history: Option<&HistoryRequest>) -> String {
    encode(&Command::<()> { command: "subscribe", identifier: Some(identifier), history, data: None })
}

pub fn unsubscribe(identifier: &str) -> String {
    encode(&Command::<()> { command: "unsubscribe", identifier: Some(identifier), history: None, data: None })
}

/// Without a request the field is left out, as the stock client does when it has nothing to ask from.
pub fn history(identifier: &str, history: Option<&HistoryRequest>) -> String {
    encode(&Command::<()> { command: "history", identifier: Some(identifier), history, data: None })
}

/// `data` is any JSON value.
pub fn whisper(identifier: &str, data: &serde_json::Value) -> String {
    encode(&Command { command: "whisper", identifier: Some(identifier), history: None, data: Some(data) })
}

/// `data` is text, JSON by convention (`{"action":"speak"}`).
pub fn perform(identifier: &str, data: &str) -> String {
    encode(&Command { command: "message", identifier: Some(identifier), history: None, data: Some(data) })
}

pub fn ping() -> String {
    encode(&Command::<()> { command: "ping", identifier: None, history: None, data: None })
}

pub fn pong() -> String {
    encode(&Command::<()> { command: "pong", identifier: None, history: None, data: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_read_as_the_stock_client_writes_them() {
        let seen = SeenPosition { epoch: "kq3X".into(), offset: 32 };
        let request = HistoryRequest { since: Since::At(9), streams: BTreeMap::from([("chat/7".to_owned(), seen)]) };
        assert_eq!(
            history("i", Some(&request)),
            r#"{"command":"history","identifier":"i","history":{"since":9,"streams":{"chat/7":{"epoch":"kq3X","offset":32}}}}"#
        );
        let off = HistoryRequest { since: Since::Off, streams: BTreeMap::new() };
        assert_eq!(
            subscribe("i", Some(&off)),
            r#"{"command":"subscribe","identifier":"i","history":{"since":false,"streams":{}}}"#
        );
        assert_eq!(history("i", None), r#"{"command":"history","identifier":"i"}"#);
        assert_eq!(pong(), r#"{"command":"pong"}"#);
        assert_eq!(
            perform("i", r#"{"action":"x"}"#),
            r#"{"command":"message","identifier":"i","data":"{\"action\":\"x\"}"}"#
        );
        assert_eq!(
            whisper("i", &serde_json::json!({"event": "typing"})),
            r#"{"command":"whisper","identifier":"i","data":{"event":"typing"}}"#
        );
    }
}
