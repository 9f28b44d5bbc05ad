//! What things are called on the wire: streams, epochs, positions.

use std::fmt;
use std::sync::Arc;

/// Name of an application's topic (`chat/42`): any UTF-8 text, compared byte for byte. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct StreamName(Arc<str>);

impl StreamName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for StreamName {
    fn from(name: &str) -> Self {
        Self(Arc::from(name))
    }
}

impl From<String> for StreamName {
    fn from(name: String) -> Self {
        Self(Arc::from(name))
    }
}

impl fmt::Debug for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// Names one life of a log. Offsets of different epochs cannot be compared.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Epoch(Arc<str>);

impl Epoch {
    /// The epoch of a broker that keeps no log.
    pub fn none() -> Self {
        Self(Arc::from(""))
    }

    /// A fresh random epoch: 8 characters of `A-Za-z0-9_-`.
    pub fn random() -> Self {
        Self(Arc::from(super::names::random_text(8)))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Epoch {
    fn from(text: &str) -> Self {
        Self(Arc::from(text))
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a stored message stands: an offset means something only within its epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    pub epoch: Epoch,
    pub offset: u64,
}

/// Unguessable text of `len` characters of `A-Za-z0-9_-` (6 bits each) from the system's generator.
pub fn random_text(len: usize) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-";
    let mut bytes = vec![0u8; len];
    getrandom::fill(&mut bytes).expect("the operating system's random source works");
    bytes.iter().map(|b| char::from(ALPHABET[usize::from(b & 63)])).collect()
}
