//! Commands from clients, decoded leniently: a frame that makes no sense is named and skipped, it never stalls a
//! connection.

use super::fields::fields;
use super::{Epoch, Position, ShownWord};
use bytes::Bytes;
use serde_json::value::RawValue;
use std::sync::Arc;

/// One client command.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    Subscribe {
        identifier: Arc<str>,
        history: Option<HistoryRequest>,
    },
    Unsubscribe {
        identifier: Arc<str>,
    },
    /// `message`: perform an action; `data` goes to the application untouched.
    Perform {
        identifier: Arc<str>,
        data: String,
    },
    History {
        identifier: Arc<str>,
        history: HistoryRequest,
    },
    /// Any JSON, passed on as it is.
    Whisper {
        identifier: Arc<str>,
        data: Bytes,
    },
    Join {
        identifier: Arc<str>,
    },
    Leave {
        identifier: Arc<str>,
    },
    /// Asks who is present.
    Presence {
        identifier: Arc<str>,
    },
    Ping,
    Pong,
}

/// What a client wants to catch up on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HistoryRequest {
    /// Unix seconds; used for streams without an entry in `streams`. `None` for 0, `null`, `false`, nonsense.
    pub since: Option<u64>,
    /// Last seen position per stream. `None` if absent or `null`.
    pub streams: Option<Vec<(String, Position)>>,
}

impl HistoryRequest {
    /// A subscribe command asks for history only with a time or a (possibly empty) map of streams.
    pub fn is_wanted(&self) -> bool {
        self.since.is_some() || self.streams.is_some()
    }

    /// The last entry for this stream.
    pub fn position(&self, stream: &str) -> Option<&Position> {
        self.streams.as_ref()?.iter().rev().find(|(name, _)| name == stream).map(|(_, position)| position)
    }
}

/// Why a frame was skipped.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum Skipped {
    #[error("not a JSON object")]
    NotAnObject,
    #[error("`command` is missing or not a string")]
    NoCommand,
    /// A name that can be no secret is shown, see [`ShownWord`].
    #[error("unknown command `{0}`")]
    Unknown(String),
    #[error("`identifier` is missing or not a string")]
    NoIdentifier,
    #[error("`data` of a `message` command must be a string")]
    DataNotText,
    #[error("`data` is missing")]
    NoData,
    #[error("JSON null")]
    Null,
}

/// Decodes one JSON frame.
pub fn decode(frame: &str) -> Result<Command, Skipped> {
    if frame.trim() == "null" {
        return Err(Skipped::Null);
    }
    let names = ["command", "identifier", "data", "history"];
    let [command, identifier, data, history] = fields(frame, names).map_err(|_| Skipped::NotAnObject)?;
    let name: String = text(command).ok_or(Skipped::NoCommand)?;
    let identifier = || text(identifier).map(Arc::from).ok_or(Skipped::NoIdentifier);
    Ok(match name.as_str() {
        "subscribe" => {
            let history = wanted(history);
            Command::Subscribe { identifier: identifier()?, history: history.is_wanted().then_some(history) }
        }
        "unsubscribe" => Command::Unsubscribe { identifier: identifier()? },
        "message" => Command::Perform { identifier: identifier()?, data: text(data).ok_or(Skipped::DataNotText)? },
        "history" => Command::History { identifier: identifier()?, history: wanted(history) },
        "whisper" => {
            let data = data.ok_or(Skipped::NoData)?;
            Command::Whisper { identifier: identifier()?, data: Bytes::copy_from_slice(data.get().as_bytes()) }
        }
        "join" => Command::Join { identifier: identifier()? },
        "leave" => Command::Leave { identifier: identifier()? },
        "presence" => Command::Presence { identifier: identifier()? },
        "ping" => Command::Ping,
        "pong" => Command::Pong,
        _ => return Err(Skipped::Unknown(ShownWord(&name).to_string())),
    })
}

fn text(raw: Option<&RawValue>) -> Option<String> {
    serde_json::from_str(raw?.get()).ok()
}

/// Takes what makes sense: `since` that is no positive number counts as absent, `streams` that is no object too.
fn wanted(history: Option<&RawValue>) -> HistoryRequest {
    let Some([since, streams]) = history.and_then(|raw| fields(raw.get(), ["since", "streams"]).ok()) else {
        return HistoryRequest::default();
    };
    let since = since
        .and_then(|raw| serde_json::from_str::<f64>(raw.get()).ok())
        .filter(|seconds| *seconds >= 1.0)
        .map(|seconds| seconds as u64);
    let streams = streams
        .and_then(|raw| serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(raw.get()).ok())
        .map(|map| map.into_iter().map(|(stream, value)| (stream, position(&value))).collect());
    HistoryRequest { since, streams }
}

/// A position that cannot be read is one that cannot be proved: an offset beyond every log.
fn position(value: &serde_json::Value) -> Position {
    let epoch = value.get("epoch").and_then(|epoch| epoch.as_str()).unwrap_or_default();
    let offset = value.get("offset").and_then(|offset| offset.as_u64()).unwrap_or(u64::MAX);
    Position { epoch: Epoch::from(epoch), offset }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_stock_client_sends() {
        let frame = r#"{"identifier":"i","command":"history","history":{"since":false,"streams":{"chat/7":{"epoch":"kq3X","offset":32}}}}"#;
        let Ok(Command::History { identifier, history }) = decode(frame) else { panic!("no history command") };
        assert_eq!(&*identifier, "i");
        assert_eq!(history.since, None);
        assert_eq!(history.position("chat/7"), Some(&Position { epoch: "kq3X".into(), offset: 32 }));
    }

    #[test]
    fn names_what_it_skips() {
        let cases = [
            ("", Skipped::NotAnObject),
            ("[1]", Skipped::NotAnObject),
            ("null", Skipped::Null),
            ("{}", Skipped::NoCommand),
            (r#"{"command":7}"#, Skipped::NoCommand),
            (r#"{"command":"dance","identifier":"i"}"#, Skipped::Unknown("dance".into())),
            (r#"{"command":"subscribe"}"#, Skipped::NoIdentifier),
            (r#"{"command":"message","identifier":"i","data":{"a":1}}"#, Skipped::DataNotText),
        ];
        for (frame, expected) in cases {
            assert_eq!(decode(frame), Err(expected), "{frame}");
        }
    }

    #[test]
    fn row_25_the_last_of_repeated_fields_counts() {
        let frame = r#"{"command":"ping","command":"unsubscribe","identifier":"a","identifier":"b"}"#;
        assert_eq!(decode(frame), Ok(Command::Unsubscribe { identifier: "b".into() }));
        let frame = r#"{"command":"history","identifier":"i","history":{"since":1,"since":2}}"#;
        let Ok(Command::History { history, .. }) = decode(frame) else { panic!("no history command") };
        assert_eq!(history.since, Some(2));
    }

    #[test]
    fn row_25_null_can_be_whispered() {
        let whisper =
            |data: &'static str| Command::Whisper { identifier: "i".into(), data: Bytes::from_static(data.as_bytes()) };
        assert_eq!(decode(r#"{"command":"whisper","identifier":"i","data":null}"#), Ok(whisper("null")));
        assert_eq!(decode(r#"{"command":"whisper","identifier":"i"}"#), Err(Skipped::NoData));
    }

    #[test]
    fn history_is_lenient() {
        let of = |history: &str| {
            let frame = format!(r#"{{"command":"history","identifier":"i","history":{history}}}"#);
            match decode(&frame) {
                Ok(Command::History { history, .. }) => history,
                other => panic!("{history}: {other:?}"),
            }
        };
        assert_eq!(of("null"), HistoryRequest::default());
        assert_eq!(of("7"), HistoryRequest::default());
        assert_eq!(of(r#"{"since":12.7}"#).since, Some(12));
        assert_eq!(of(r#"{"since":-3}"#).since, None);
        assert_eq!(of(r#"{"streams":[]}"#).streams, None);
        assert_eq!(of(r#"{"streams":{}}"#).streams, Some(vec![]));
        assert_eq!(of(r#"{"streams":{"a":{"epoch":"e","offset":"1"}}}"#).position("a").unwrap().offset, u64::MAX);
    }
}
