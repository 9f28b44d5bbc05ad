//! What became of a saved session when it was restored: kept beside it, longer than it lives, and changed by one writer at
//! a time.

use serde::{Deserialize, Serialize};

/// Restores that one saved session gives while none of them has proved that its client heard of it.
const MAX_RESTORES: u32 = 5;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Succession {
    restores: u32,
    /// Key of the session that was restored from it last.
    by: Option<String>,
    /// That session's client has spoken: it knows its new sid. The old one is over.
    ended: bool,
}

impl Succession {
    /// A session that another restore has taken the place of.
    pub fn over() -> Self {
        Self { ended: true, ..Self::default() }
    }

    pub fn decode(body: &[u8]) -> Self {
        // What cannot be read is of another version: nothing is restored from it.
        serde_json::from_slice(body).unwrap_or_else(|_| Self::over())
    }

    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain fields are always JSON")
    }

    pub fn is_over(&self) -> bool {
        self.ended
    }

    /// The session may be restored once more.
    pub fn may_restore(&self) -> bool {
        !self.ended && self.restores < MAX_RESTORES
    }

    /// Key of the session that was restored from it last.
    pub fn by(&self) -> Option<&str> {
        self.by.as_deref()
    }

    /// It is restored under another key, which takes the place of an earlier one.
    pub fn restored(&self, by: &str) -> Self {
        Self { restores: self.restores + 1, by: Some(by.into()), ended: false }
    }

    pub fn ended(self) -> Self {
        Self { ended: true, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_restores_and_none_after_the_end() {
        let mut succession = Succession::default();
        for n in 0..5 {
            assert!(succession.may_restore(), "{n}");
            succession = Succession::decode(&succession.restored(&n.to_string()).encode());
        }
        assert!(!succession.may_restore());
        assert_eq!(succession.by(), Some("4"));
        assert!(!Succession::default().restored("a").ended().may_restore());
        assert!(Succession::decode(b"?").is_over());
    }
}
