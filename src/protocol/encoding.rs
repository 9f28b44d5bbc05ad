//! Frames as they leave: complete, so that one encoding of a message serves all its receivers.

use super::Payload;
use bytes::{BufMut, Bytes, BytesMut};

/// How a client wants its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// JSON in WebSocket text frames.
    Json,
}

/// A position as it stands in a delivery.
#[derive(Clone, Copy, Debug)]
pub struct EncodedPosition<'a> {
    /// The stream's name as JSON text, quotes included.
    pub stream_json: &'a str,
    /// The epoch as JSON text, quotes included.
    pub epoch_json: &'a str,
    pub offset: u64,
}

impl Encoding {
    /// A delivery, ready for the socket. `identifier_json` is JSON text, quotes included.
    pub fn delivery(
        self,
        identifier_json: &str,
        broadcast_type: Option<&str>,
        payload: &Payload,
        position: Option<EncodedPosition<'_>>,
    ) -> Bytes {
        let kind = broadcast_type.map(json_text);
        let offset = position.map(|at| at.offset.to_string());
        let kind_parts: [&str; 2] = kind.as_deref().map_or(["", ""], |kind| [",\"type\":", kind]);
        let position_parts: [&str; 6] = match (&position, &offset) {
            (Some(at), Some(offset)) => {
                [",\"stream_id\":", at.stream_json, ",\"epoch\":", at.epoch_json, ",\"offset\":", offset]
            }
            _ => [""; 6],
        };
        let [type_key, kind] = kind_parts;
        let [stream_key, stream, epoch_key, epoch, offset_key, offset] = position_parts;
        self.frame(&[
            b"{\"identifier\":",
            identifier_json.as_bytes(),
            type_key.as_bytes(),
            kind.as_bytes(),
            b",\"message\":",
            payload.json(),
            stream_key.as_bytes(),
            stream.as_bytes(),
            epoch_key.as_bytes(),
            epoch.as_bytes(),
            offset_key.as_bytes(),
            offset.as_bytes(),
            b"}",
        ])
    }

    /// A whole protocol message (JSON text) as a frame.
    pub fn text(self, json: &str) -> Bytes {
        self.frame(&[json.as_bytes()])
    }

    /// Text in parts as a frame, in memory of just its size.
    fn frame(self, parts: &[&[u8]]) -> Bytes {
        let Self::Json = self;
        let len = parts.iter().map(|part| part.len()).sum();
        let (header, header_len) = frame_header(OPCODE_TEXT, len);
        let mut frame = Vec::with_capacity(header_len + len);
        frame.extend_from_slice(&header[..header_len]);
        for part in parts {
            frame.extend_from_slice(part);
        }
        frame.into()
    }
}

const MAX_HEADER: usize = 10;
const OPCODE_TEXT: u8 = 1;
const OPCODE_CLOSE: u8 = 8;
const OPCODE_PING: u8 = 9;
#[cfg(test)]
const OPCODE_PONG: u8 = 10;

/// Header of a final, unmasked frame (RFC 6455 §5.2) and its length.
fn frame_header(opcode: u8, len: usize) -> ([u8; MAX_HEADER], usize) {
    let mut header = [0; MAX_HEADER];
    header[0] = 0x80 | opcode;
    match len {
        0..=125 => {
            header[1] = len as u8;
            (header, 2)
        }
        126..=65535 => {
            header[1] = 126;
            header[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            (header, 4)
        }
        _ => {
            header[1] = 127;
            header[2..10].copy_from_slice(&(len as u64).to_be_bytes());
            (header, 10)
        }
    }
}

/// A WebSocket close frame.
pub fn close_frame((code, reason): (u16, &str)) -> Bytes {
    let mut frame = BytesMut::with_capacity(4 + reason.len());
    let (header, len) = frame_header(OPCODE_CLOSE, 2 + reason.len());
    frame.put_slice(&header[..len]);
    frame.put_u16(code);
    frame.put_slice(reason.as_bytes());
    frame.freeze()
}

/// An empty WebSocket ping frame.
pub fn ping_frame() -> Bytes {
    let (header, len) = frame_header(OPCODE_PING, 0);
    Bytes::copy_from_slice(&header[..len])
}

/// A WebSocket pong frame. `payload`: at most 125 bytes, those of the ping.
#[cfg(test)]
pub fn pong_frame(payload: &[u8]) -> Bytes {
    let (header, len) = frame_header(OPCODE_PONG, payload.len());
    [&header[..len], payload].concat().into()
}

/// Text as JSON, quotes included.
pub fn json_text(text: &str) -> String {
    serde_json::to_string(text).expect("a string is always JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_have_the_length_that_the_body_needs() {
        for len in [0usize, 125, 126, 65535, 65536] {
            let frame = Encoding::Json.text(&"x".repeat(len));
            let expected = len
                + match len {
                    0..=125 => 2,
                    126..=65535 => 4,
                    _ => 10,
                };
            assert_eq!(frame.len(), expected, "body of {len}");
            assert_eq!(frame[0], 0x81);
        }
    }

    #[test]
    fn embeds_the_payload_without_touching_it() {
        let payload = Payload::from_data(&Bytes::from_static(b"{\"b\":1.10,\"a\":12345678901234567890}"));
        let at = EncodedPosition { stream_json: "\"s\"", epoch_json: "\"e\"", offset: 7 };
        let frame = Encoding::Json.delivery("\"id\"", None, &payload, Some(at));
        let text = std::str::from_utf8(&frame[2..]).unwrap();
        assert_eq!(
            text,
            r#"{"identifier":"id","message":{"b":1.10,"a":12345678901234567890},"stream_id":"s","epoch":"e","offset":7}"#
        );
    }
}
