//! Session ids, and how text of clients looks in a log line.

use crate::secret::Fingerprint;
use std::fmt;
use std::sync::Arc;

/// A session id. Whoever knows it can go on with the session, so it is never printed: `Display` and `Debug` write its
/// [`Fingerprint`], `sid#1a2b3c`, and [`Sid::expose`] is the only way to the text. Cheap to clone.
///
/// It is not `Serialize` on purpose: the few places that send or store it name it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sid(Arc<str>);

impl Sid {
    /// The text itself: for the protocol and the store, never for logging.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Sid {
    fn from(text: &str) -> Self {
        Self(Arc::from(text))
    }
}

impl From<String> for Sid {
    fn from(text: String) -> Self {
        Self(Arc::from(text))
    }
}

impl fmt::Display for Sid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Fingerprint { kind: "sid", text: &self.0 }.fmt(f)
    }
}

impl fmt::Debug for Sid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A subscription's identifier for a log line: `ChatChannel#1a2b3c`, the channel and a fingerprint of the whole. Its
/// parameters may hold what grants access, as a signed stream name does.
pub struct ShownIdentifier<'a>(pub &'a str);

impl fmt::Display for ShownIdentifier<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[derive(serde::Deserialize)]
        struct Parts<'a> {
            #[serde(borrow)]
            channel: std::borrow::Cow<'a, str>,
        }
        let parts = serde_json::from_str::<Parts<'_>>(self.0).ok();
        let channel = parts.map(|parts| parts.channel).filter(|channel| is_channel(channel));
        Fingerprint { kind: channel.as_deref().unwrap_or("identifier"), text: self.0 }.fmt(f)
    }
}

/// A name of a class, `Admin::ChatChannel`, or one of ours, `$pubsub`. Anything else may be a secret in the wrong place.
fn is_channel(text: &str) -> bool {
    let is_word = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_uppercase()) && word.bytes().all(|b| b.is_ascii_alphabetic() || b == b'_')
    };
    let ours = text.strip_prefix('$').is_some_and(is_plain_word);
    text.len() <= 80 && (ours || text.split("::").all(is_word))
}

/// A word that a client chose, for a log line: as it is if it consists of a few small letters, as names of commands do,
/// else its fingerprint.
pub struct ShownWord<'a>(pub &'a str);

impl fmt::Display for ShownWord<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match is_plain_word(self.0) {
            true => f.write_str(self.0),
            false => Fingerprint { kind: "text", text: self.0 }.fmt(f),
        }
    }
}

fn is_plain_word(text: &str) -> bool {
    (1..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_19_a_sid_is_printed_as_a_short_hash() {
        let sid = Sid::from("k3Jq_-0123456789abcde");
        assert_eq!(format!("{sid} {sid:?} {:?}", Some(&sid)), "sid#c02aab sid#c02aab Some(sid#c02aab)");
        assert_eq!(sid.expose(), "k3Jq_-0123456789abcde");
        assert_ne!(sid.to_string(), Sid::from("k3Jq_-0123456789abcdf").to_string());
    }

    #[test]
    fn row_19_an_identifier_is_printed_as_its_channel_and_a_short_hash() {
        let shown = |text: &str| ShownIdentifier(text).to_string();
        let signed = r#"{"channel":"Turbo::StreamsChannel","signed_stream_name":"ImNoYXQi--a1b2"}"#;
        let (channel, hash) = signed_parts(&shown(signed));
        assert_eq!((channel.as_str(), hash.len()), ("Turbo::StreamsChannel", 6));
        assert!(shown(r#"{"channel":"$pubsub","signed_stream_name":"x"}"#).starts_with("$pubsub#"));
        for odd in ["", "chat", "{}", r#"{"channel":7}"#, r#"{"channel":"eyJh.eyJl.c2ln"}"#, r#"{"channel":"Ab1_-c"}"#]
        {
            assert!(shown(odd).starts_with("identifier#"), "{odd}: {}", shown(odd));
        }
    }

    fn signed_parts(shown: &str) -> (String, String) {
        let (channel, hash) = shown.rsplit_once('#').unwrap();
        (channel.to_owned(), hash.to_owned())
    }

    #[test]
    fn row_19_a_word_of_a_client_is_printed_only_if_it_can_be_no_secret() {
        assert_eq!(ShownWord("dance").to_string(), "dance");
        for odd in ["", "k3Jq", "eyJh.eyJl", "two words", "s3cr3t"] {
            assert!(ShownWord(odd).to_string().starts_with("text#"), "{odd}");
        }
    }
}
