//! Text that must not show up in a log line: keys, passwords, tokens. A leaf that every part may use.

use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use std::fmt::{self, Write};
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// A secret: `Debug` and `Display` print `***`, [`Secret::expose`] is the only way to the text. Cheap to clone.
///
/// A fingerprint would let whoever reads the log check guesses of a password that somebody chose. What is random or signed,
/// and stands in many lines, has one: see [`Fingerprint`].
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into().into())
    }

    /// 256 random bits as hexadecimal text.
    ///
    /// # Errors
    ///
    /// The system's random source does not answer.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)?;
        Ok(Self(hex(&bytes).into()))
    }

    /// A secret for one purpose: lower-case hexadecimal HMAC-SHA256 of the phrase, keyed with this one. The same
    /// wherever the same secret is configured.
    pub fn derive(&self, phrase: &str) -> Self {
        Self(self.sign(phrase.as_bytes()).into())
    }

    /// Lower-case hexadecimal HMAC-SHA256 of a text, keyed with this secret.
    pub fn sign(&self, text: &[u8]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.as_bytes()).expect("HMAC takes keys of any length");
        mac.update(text);
        hex(&mac.finalize().into_bytes())
    }

    /// The text itself: for comparing, signing and sending, never for logging.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `candidate` is this secret, in a time that depends on the lengths alone.
    pub fn matches(&self, candidate: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(candidate).into()
    }
}

/// Names a credential in a log line without giving it away: `<kind>#` and the first six hexadecimal digits of the text's
/// SHA-256, so that lines about the same one are found together (`printf %s TEXT | sha256sum | cut -c1-6`). Only for what
/// nobody can guess: ids that we made, signed tokens and names.
pub struct Fingerprint<'a> {
    pub kind: &'a str,
    pub text: &'a str,
}

impl fmt::Display for Fingerprint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digest = Sha256::digest(self.text);
        write!(f, "{}#{:02x}{:02x}{:02x}", self.kind, digest[0], digest[1], digest[2])
    }
}

/// Why text from outside is not the JSON that was expected, without quoting it: of a value of the wrong kind the library
/// prints all.
pub fn json_fault(error: &serde_json::Error) -> String {
    match error.classify() {
        serde_json::error::Category::Data => {
            format!("a value is missing or of the wrong kind at line {} column {}", error.line(), error.column())
        }
        _ => error.to_string(),
    }
}

/// A URL for messages, or a list of them: without user, password, query and fragment, any of which may be a credential.
/// Text that is no URL is treated alike, because it may be one with a mistake.
pub fn bare_url(text: &str) -> String {
    let bare = |item: &str| {
        let (scheme, rest) = item.split_once("://").map_or(("", item), |(scheme, rest)| (scheme, rest));
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        let address = rest.rsplit_once('@').map_or(rest, |(_, address)| address);
        if scheme.is_empty() { address.to_owned() } else { format!("{scheme}://{address}") }
    };
    text.split(',').map(bare).collect::<Vec<_>>().join(",")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("writing to a string cannot fail");
        hex
    })
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(Arc::from(text))
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(Arc::from(text))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_19_a_url_is_printed_without_its_credentials() {
        for (text, shown) in [
            ("nats://h:4222", "nats://h:4222"),
            ("nats://u:p@h:4222/", "nats://h:4222/"),
            ("u:p@h:4222", "h:4222"),
            ("https://u:p/w@x@h/path?token=t#f", "https://h/path"),
            ("grpc-list://u:p@a:1,b:2", "grpc-list://a:1,b:2"),
            ("wss://h/cable?jid=t&sid=s", "wss://h/cable"),
            ("", ""),
        ] {
            assert_eq!(bare_url(text), shown, "{text}");
        }
    }

    #[test]
    fn row_19_a_fingerprint_names_a_text_and_hides_it() {
        let shown = Fingerprint { kind: "sid", text: "abc" }.to_string();
        assert_eq!(shown, "sid#ba7816", "the example of the SHA-256 standard");
    }

    #[test]
    fn row_19_a_fault_of_json_does_not_quote_it() {
        for text in [r#"{"a":"s3cr3t"}"#, r#"["s3cr3t"]"#, r#""s3cr3t""#, r#"{"s3cr3t":1}"#, r#"{"a" s3cr3t"#, "s3cr3t"]
        {
            let fault = serde_json::from_str::<std::collections::BTreeMap<String, Vec<u8>>>(text).map(|_| ());
            if let Err(error) = fault {
                assert!(!json_fault(&error).contains("s3cr3t"), "{}", json_fault(&error));
            }
        }
    }

    #[test]
    fn never_prints_and_compares_whole() {
        let secret = Secret::from("s3cr3t-alpha");
        assert_eq!(format!("{secret} {secret:?} {:?}", Some(&secret)), "*** *** Some(***)");
        assert!(secret.matches(b"s3cr3t-alpha"));
        for other in [&b"s3cr3t-alph"[..], b"s3cr3t-alphaa", b"S3cr3t-alpha", b""] {
            assert!(!secret.matches(other));
        }
    }
}
