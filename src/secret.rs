//! Text that must not show up in a log line: keys, passwords, tokens. A leaf that every part may use.

use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::fmt::{self, Write};
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// A secret: `Debug` and `Display` print `***`, [`Secret::expose`] is the only way to the text. Cheap to clone.
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
    fn never_prints_and_compares_whole() {
        let secret = Secret::from("s3cr3t-alpha");
        assert_eq!(format!("{secret} {secret:?} {:?}", Some(&secret)), "*** *** Some(***)");
        assert!(secret.matches(b"s3cr3t-alpha"));
        for other in [&b"s3cr3t-alph"[..], b"s3cr3t-alphaa", b"S3cr3t-alpha", b""] {
            assert!(!secret.matches(other));
        }
    }
}
