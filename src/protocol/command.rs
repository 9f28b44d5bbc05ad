//! Commands from clients, decoded leniently: a frame that makes no sense is named and skipped, it never stalls a
//! connection.

use super::{Epoch, Position, ShownWord};
use bytes::Bytes;
use serde::Deserialize;
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

#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(borrow, default)]
    command: Option<&'a RawValue>,
    #[serde(borrow, default)]
    identifier: Option<&'a RawValue>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(borrow, default)]
    history: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct RawHistory<'a> {
    #[serde(borrow, default)]
    since: Option<&'a RawValue>,
    #[serde(borrow, default)]
    streams: Option<&'a RawValue>,
}

/// Decodes one JSON frame.
pub fn decode(frame: &str) -> Result<Command, Skipped> {
    if frame.trim() == "null" {
        return Err(Skipped::Null);
    }
    let raw: Raw<'_> = serde_json::from_str(frame).map_err(|_| Skipped::NotAnObject)?;
    let name: String = text(raw.command).ok_or(Skipped::NoCommand)?;
    let identifier = || text(raw.identifier).map(Arc::from).ok_or(Skipped::NoIdentifier);
    Ok(match name.as_str() {
        "subscribe" => {
            let history = history(raw.history);
            Command::Subscribe { identifier: identifier()?, history: history.is_wanted().then_some(history) }
        }
        "unsubscribe" => Command::Unsubscribe { identifier: identifier()? },
        "message" => Command::Perform { identifier: identifier()?, data: text(raw.data).ok_or(Skipped::DataNotText)? },
        "history" => Command::History { identifier: identifier()?, history: history(raw.history) },
        "whisper" => {
            let data = raw.data.ok_or(Skipped::NoData)?;
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
fn history(raw: Option<&RawValue>) -> HistoryRequest {
    let Some(parts) = raw.and_then(|raw| serde_json::from_str::<RawHistory<'_>>(raw.get()).ok()) else {
        return HistoryRequest::default();
    };
    let since = parts
        .since
        .and_then(|raw| serde_json::from_str::<f64>(raw.get()).ok())
        .filter(|seconds| *seconds >= 1.0)
        .map(|seconds| seconds as u64);
    let streams = parts
        .streams
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
            ("[1]", Skipped::NoCommand),
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
