//! What a published text means: one publication, a batch, or a remote command. Pure.
//!
//! Forms, tried in this order: an object with a non-empty string `stream`; an array of such objects; an object with a
//! non-empty string `command`. Unknown fields are ignored and of a repeated field the last one counts, as publishers'
//! JSON libraries have it. Everything else is [`Malformed`], with a reason that names the place.

use crate::broker::RemoteDisconnect;
use crate::protocol::{MessageId, Meta, Publication, StreamName};
use bytes::Bytes;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// Longest stream name, bytes. A long name, `exclude_socket` and `broadcast_type` travel in a message's headers; with every
/// byte escaped all three still fit into the 64 KiB that NATS takes.
pub const MAX_STREAM_NAME: usize = 32 * 1024;
/// Longest `exclude_socket` or `broadcast_type`, bytes. A session id has 21.
pub const MAX_META: usize = 2 * 1024;

/// A well-formed payload.
#[derive(Debug)]
pub enum Payload {
    One(Publication),
    /// Never empty; every item is checked.
    Batch(Vec<Publication>),
    Disconnect(RemoteDisconnect),
    /// A remote command that we do not know: accepted and ignored, newer publishers may send it.
    OtherCommand(String),
}

/// Why a payload is none, in words for the publisher.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

/// Parses a payload. `key` is the publisher's idempotency key for the whole of it; an item's own `meta.id` wins.
pub fn parse(body: &[u8], key: Option<&str>) -> Result<Payload, Malformed> {
    let text = std::str::from_utf8(body).map_err(|_| Malformed("the body is not UTF-8 text".to_owned()))?;
    let text = text.trim_ascii();
    match text.as_bytes().first() {
        Some(b'{') => object(text, key),
        Some(b'[') => batch(text, key),
        Some(_) => Err(Malformed(
            "the body must be a JSON object with a \"stream\" or a \"command\", or an array of publications".to_owned(),
        )),
        None => Err(Malformed("the body is empty".to_owned())),
    }
}

fn object(text: &str, key: Option<&str>) -> Result<Payload, Malformed> {
    let [stream, data, meta, command, payload] = fields(text, ["stream", "data", "meta", "command", "payload"])?;
    if !is_text(stream) {
        if let Some(command) = command.and_then(string).filter(|name| !name.is_empty()) {
            return remote_command(&command, payload);
        }
        if stream.is_none() {
            return Err(Malformed("neither a \"stream\" nor a \"command\" is given".to_owned()));
        }
    }
    publication(&Place::Single, [stream, data, meta], key).map(Payload::One)
}

fn batch(text: &str, key: Option<&str>) -> Result<Payload, Malformed> {
    let items: Vec<&RawValue> = serde_json::from_str(text).map_err(not_json)?;
    if items.is_empty() {
        return Err(Malformed("the batch is empty".to_owned()));
    }
    let publications = items.iter().enumerate().map(|(index, raw)| {
        let place = Place::Item(index);
        if !raw.get().starts_with('{') {
            return Err(place.fault("", format_args!("must be an object with a \"stream\", not {}", kind(raw))));
        }
        publication(&place, fields(raw.get(), ["stream", "data", "meta"])?, key)
    });
    publications.collect::<Result<_, _>>().map(Payload::Batch)
}

fn remote_command(command: &str, payload: Option<&RawValue>) -> Result<Payload, Malformed> {
    if command != "disconnect" {
        return Ok(Payload::OtherCommand(command.to_owned()));
    }
    let Some(payload) = payload.filter(|raw| raw.get().starts_with('{')) else {
        return Err(Malformed("payload must be an object with an \"identifier\"".to_owned()));
    };
    let [identifier, reconnect] = fields(payload.get(), ["identifier", "reconnect"])?;
    let Some(identifiers) = identifier.and_then(string).filter(|text| !text.is_empty()) else {
        return Err(Malformed(
            "payload.identifier must be a non-empty string, the identifiers of the connections to close".to_owned(),
        ));
    };
    let reconnect = boolean(&Place::Single, "payload.reconnect", reconnect)?;
    Ok(Payload::Disconnect(RemoteDisconnect { identifiers: identifiers.into_owned(), reconnect }))
}

fn publication(
    place: &Place,
    [stream, data, meta]: [Option<&RawValue>; 3],
    key: Option<&str>,
) -> Result<Publication, Malformed> {
    let stream = required(place, "stream", stream)?;
    if stream.is_empty() {
        return Err(place.fault("stream", format_args!("must not be empty")));
    }
    if stream.len() > MAX_STREAM_NAME {
        let len = stream.len();
        return Err(place.fault("stream", format_args!("of {len} bytes exceeds the limit of {MAX_STREAM_NAME} bytes")));
    }
    let stream = StreamName::from(stream.as_ref());
    // An own copy even where the text could be borrowed: messages live on in snapshots and must not keep the whole
    // request's buffer alive.
    let data = Bytes::from(required(place, "data", data)?.into_owned());

    let mut publication = Publication { stream, data, meta: Meta::default(), transient: false, id: MessageId([0; 16]) };
    let mut own_key = None;
    if let Some(raw) = meta.filter(|raw| raw.get() != "null") {
        if !raw.get().starts_with('{') {
            return Err(place.fault("meta", format_args!("must be an object, not {}", kind(raw))));
        }
        let [id, exclude, broadcast_type, transient] =
            fields(raw.get(), ["id", "exclude_socket", "broadcast_type", "transient"])?;
        own_key = optional(place, "meta.id", id)?;
        if own_key.as_deref() == Some("") {
            return Err(place.fault("meta.id", format_args!("must not be empty")));
        }
        publication.meta.exclude_socket = short(place, "meta.exclude_socket", exclude)?;
        publication.meta.broadcast_type = short(place, "meta.broadcast_type", broadcast_type)?;
        if publication.meta.broadcast_type.as_deref().is_some_and(is_protocol_type) {
            return Err(place.fault("meta.broadcast_type", format_args!("must not be a type of the protocol itself")));
        }
        publication.transient = boolean(place, "meta.transient", transient)?;
    }
    publication.id = match (own_key, key) {
        // Independent of the place: the same item may be retried alone or in another batch.
        (Some(id), _) => MessageId::from_key(&publication.stream, &id, 0),
        (None, Some(key)) => MessageId::from_key(&publication.stream, key, place.number()),
        (None, None) => MessageId::random(),
    };
    Ok(publication)
}

/// Message types that clients take for the protocol's own; publishers may not forge them.
fn is_protocol_type(name: &str) -> bool {
    matches!(name, "welcome" | "disconnect" | "ping" | "pong" | "presence")
        || name.starts_with("confirm_")
        || name.starts_with("reject_")
}

/// A text that becomes a header; an empty one is none.
fn short<T: for<'a> From<&'a str>>(place: &Place, field: &str, raw: Option<&RawValue>) -> Result<Option<T>, Malformed> {
    let Some(text) = optional(place, field, raw)?.filter(|text| !text.is_empty()) else { return Ok(None) };
    if text.len() > MAX_META {
        let len = text.len();
        return Err(place.fault(field, format_args!("of {len} bytes exceeds the limit of {MAX_META} bytes")));
    }
    Ok(Some(T::from(text.as_ref())))
}

/// Where in the payload something is wrong.
enum Place {
    Single,
    /// Counted from 0, like the results of a batch.
    Item(usize),
}

impl Place {
    fn number(&self) -> u32 {
        match self {
            Self::Single => 0,
            Self::Item(index) => u32::try_from(*index).expect("a body's limit keeps batches far below 2^32 items"),
        }
    }

    #[cold]
    fn fault(&self, field: &str, what: fmt::Arguments<'_>) -> Malformed {
        match (self, field) {
            (Self::Single, field) => Malformed(format!("{field} {what}")),
            (Self::Item(index), "") => Malformed(format!("[{index}] {what}")),
            (Self::Item(index), field) => Malformed(format!("[{index}].{field} {what}")),
        }
    }
}

fn required<'a>(place: &Place, field: &str, raw: Option<&'a RawValue>) -> Result<Cow<'a, str>, Malformed> {
    let Some(raw) = raw else { return Err(place.fault(field, format_args!("is missing"))) };
    text_of(place, field, raw)
}

fn optional<'a>(place: &Place, field: &str, raw: Option<&'a RawValue>) -> Result<Option<Cow<'a, str>>, Malformed> {
    raw.filter(|raw| raw.get() != "null").map(|raw| text_of(place, field, raw)).transpose()
}

fn text_of<'a>(place: &Place, field: &str, raw: &'a RawValue) -> Result<Cow<'a, str>, Malformed> {
    string(raw).ok_or_else(|| match kind(raw) {
        "a string" => place.fault(field, format_args!("is a string with an invalid escape")),
        other => place.fault(field, format_args!("must be a string, not {other}")),
    })
}

fn boolean(place: &Place, field: &str, raw: Option<&RawValue>) -> Result<bool, Malformed> {
    match raw.map(RawValue::get) {
        None | Some("null" | "false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(place.fault(field, format_args!("must be true or false"))),
    }
}

/// The text of a JSON string, borrowed where it has no escapes.
fn string(raw: &RawValue) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    serde_json::from_str::<Text<'_>>(raw.get()).ok().map(|text| text.0)
}

fn is_text(raw: Option<&RawValue>) -> bool {
    raw.is_some_and(|raw| raw.get().starts_with('"') && raw.get() != "\"\"")
}

fn kind(raw: &RawValue) -> &'static str {
    match raw.get().as_bytes().first() {
        Some(b'"') => "a string",
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

fn not_json(error: serde_json::Error) -> Malformed {
    Malformed(format!("the body is not JSON: {error}"))
}

/// The named fields of a JSON object, unparsed; absent ones are `None`.
fn fields<'a, const N: usize>(text: &'a str, names: [&str; N]) -> Result<[Option<&'a RawValue>; N], Malformed> {
    let mut json = serde_json::Deserializer::from_str(text);
    let fields = Fields(&names).deserialize(&mut json).map_err(not_json)?;
    json.end().map_err(not_json)?;
    Ok(fields)
}

/// Unlike a derived struct, takes repeated fields (the last one counts) and leaves the values' types to the caller,
/// who can say more about a wrong one.
struct Fields<'n, const N: usize>(&'n [&'n str; N]);

impl<'de, const N: usize> DeserializeSeed<'de> for Fields<'_, N> {
    type Value = [Option<&'de RawValue>; N];

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de, const N: usize> Visitor<'de> for Fields<'_, N> {
    type Value = [Option<&'de RawValue>; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = [None; N];
        while let Some(index) = map.next_key_seed(Key(self.0))? {
            match index {
                Some(index) => fields[index] = Some(map.next_value()?),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(fields)
    }
}

/// The index of a field's name among those wanted.
struct Key<'n>(&'n [&'n str]);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().position(|wanted| *wanted == name))
    }
}

#[cfg(test)]
mod tests;
