//! What a server sends: one JSON object per text frame.

use crate::protocol::Sid;
use serde::Deserialize;
use serde_json::value::RawValue;

/// One frame from a server, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    Welcome {
        sid: Option<Sid>,
        restored: bool,
        /// `None` where the server left the field out.
        restored_ids: Option<Vec<String>>,
    },
    Disconnect {
        reason: String,
        /// `None` where the server left the flag out: the clients differ in what they take that for.
        reconnect: Option<bool>,
    },
    /// The timestamp as JSON text, in whatever precision was agreed.
    Ping(String),
    Pong,
    ConfirmSubscription(String),
    RejectSubscription(String),
    ConfirmHistory(String),
    RejectHistory(String),
    /// A presence event or answer.
    Presence {
        identifier: String,
        /// JSON text.
        message: String,
    },
    Data(Data),
}

/// A message to a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    pub identifier: String,
    /// `type` given by the publisher, if any.
    pub kind: Option<String>,
    /// The payload as JSON text, exactly as it came.
    pub message: String,
    /// `None` for messages that are not stored.
    pub position: Option<StreamPosition>,
}

/// Where a stored message stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamPosition {
    pub stream: String,
    pub epoch: String,
    pub offset: u64,
}

/// A frame that is none of the protocol's.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("frame is not a JSON object of the protocol: {0}")]
    Json(#[from] serde_json::Error),
    #[error("frame of type {kind:?} lacks {field:?}")]
    Missing { kind: String, field: &'static str },
    #[error("frame carries some of stream_id, epoch and offset, but not all")]
    HalfPosition,
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(rename = "type")]
    kind: Option<String>,
    identifier: Option<String>,
    #[serde(borrow)]
    message: Option<&'a RawValue>,
    stream_id: Option<String>,
    epoch: Option<String>,
    offset: Option<u64>,
    sid: Option<String>,
    #[serde(default)]
    restored: bool,
    restored_ids: Option<Vec<String>>,
    reason: Option<String>,
    reconnect: Option<bool>,
}

impl Frame {
    /// Decodes the text of one frame.
    ///
    /// # Errors
    /// Text that is no JSON object, or lacks a field that its type needs.
    pub fn parse(text: &str) -> Result<Self, FrameError> {
        let mut wire: Wire<'_> = serde_json::from_str(text)?;
        let kind = wire.kind.take();
        Ok(match kind.as_deref() {
            Some("welcome") => {
                Self::Welcome { sid: wire.sid.map(Sid::from), restored: wire.restored, restored_ids: wire.restored_ids }
            }
            Some("disconnect") => {
                Self::Disconnect { reason: wire.reason.unwrap_or_default(), reconnect: wire.reconnect }
            }
            Some("ping") => Self::Ping(wire.message.map(|raw| raw.get().to_owned()).unwrap_or_default()),
            Some("pong") => Self::Pong,
            Some("confirm_subscription") => Self::ConfirmSubscription(wire.identifier("confirm_subscription")?),
            Some("reject_subscription") => Self::RejectSubscription(wire.identifier("reject_subscription")?),
            Some("confirm_history") => Self::ConfirmHistory(wire.identifier("confirm_history")?),
            Some("reject_history") => Self::RejectHistory(wire.identifier("reject_history")?),
            Some("presence") => {
                let message = wire.message("presence")?;
                Self::Presence { identifier: wire.identifier("presence")?, message }
            }
            other => {
                let message = wire.message(other.unwrap_or_default())?;
                let position = wire.position()?;
                let identifier = wire.identifier(other.unwrap_or_default())?;
                Self::Data(Data { identifier, kind, message, position })
            }
        })
    }
}

impl Wire<'_> {
    fn identifier(&mut self, kind: &str) -> Result<String, FrameError> {
        self.identifier.take().ok_or_else(|| FrameError::Missing { kind: kind.to_owned(), field: "identifier" })
    }

    fn message(&self, kind: &str) -> Result<String, FrameError> {
        let raw = self.message.ok_or_else(|| FrameError::Missing { kind: kind.to_owned(), field: "message" })?;
        Ok(raw.get().to_owned())
    }

    fn position(&mut self) -> Result<Option<StreamPosition>, FrameError> {
        match (self.stream_id.take(), self.epoch.take(), self.offset) {
            (None, None, None) => Ok(None),
            (Some(stream), Some(epoch), Some(offset)) => Ok(Some(StreamPosition { stream, epoch, offset })),
            _ => Err(FrameError::HalfPosition),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn welcome_tells_a_missing_list_from_an_empty_one() {
        let plain = Frame::parse(r#"{"type":"welcome","sid":"s1"}"#).unwrap();
        assert_eq!(plain, Frame::Welcome { sid: Some("s1".into()), restored: false, restored_ids: None });
        let restored = Frame::parse(r#"{"type":"welcome","sid":"s2","restored":true,"restored_ids":[]}"#).unwrap();
        assert_eq!(restored, Frame::Welcome { sid: Some("s2".into()), restored: true, restored_ids: Some(vec![]) });
    }

    #[test]
    fn a_payload_is_kept_as_it_was_written() {
        let text = r#"{"identifier":"a","message":{"b":1.50,"a":12345678901234567890},"stream_id":"s","epoch":"e","offset":7}"#;
        let Frame::Data(data) = Frame::parse(text).unwrap() else { panic!("data expected") };
        assert_eq!(data.message, r#"{"b":1.50,"a":12345678901234567890}"#);
        assert_eq!(data.position, Some(StreamPosition { stream: "s".into(), epoch: "e".into(), offset: 7 }));
    }

    #[test]
    fn custom_types_are_data() {
        let Frame::Data(data) = Frame::parse(r#"{"type":"alert","identifier":"a","message":"x"}"#).unwrap() else {
            panic!("data expected")
        };
        assert_eq!((data.kind.as_deref(), data.message.as_str()), (Some("alert"), r#""x""#));
    }

    #[test]
    fn half_a_position_and_half_a_frame_are_errors() {
        assert!(matches!(Frame::parse(r#"{"identifier":"a","message":1,"offset":7}"#), Err(FrameError::HalfPosition)));
        assert!(matches!(Frame::parse(r#"{"type":"confirm_history"}"#), Err(FrameError::Missing { .. })));
        assert!(matches!(Frame::parse("[]"), Err(FrameError::Json(_))));
    }
}
