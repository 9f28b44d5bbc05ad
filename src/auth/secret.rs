//! A text that must not show up in a log line.

use std::fmt;
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// A secret: prints as `***`, compares in constant time. Cheap to clone.
#[derive(Clone)]
pub struct Secret(Arc<str>);

impl Secret {
    /// The text itself, for the place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `candidate` is this secret, in a time that depends on the lengths alone.
    pub fn matches(&self, candidate: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(candidate).into()
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_prints_and_compares_whole() {
        let secret = Secret::from("s3cr3t-alpha");
        assert_eq!(format!("{secret:?}"), "***");
        assert!(secret.matches(b"s3cr3t-alpha"));
        for other in [&b"s3cr3t-alph"[..], b"s3cr3t-alphaa", b"S3cr3t-alpha", b""] {
            assert!(!secret.matches(other));
        }
    }
}
