//! What became of a saved session when it was restored: kept beside it, longer than it lives, and changed by one writer at
//! a time.

use crate::broker::Over;
use serde::{Deserialize, Serialize};

/// Restores that one saved session gives while none of them has proved that its client heard of it.
const MAX_RESTORES: u32 = 5;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Succession {
    restores: u32,
    /// Key of the session that was restored from it last.
    by: Option<String>,
    /// Nobody restores it any more.
    over: Option<Over>,
    /// Its own client has spoken after another one had taken its place.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    spoke: bool,
}

impl Succession {
    /// A session that is over, and not because the client of one that was restored from it has spoken.
    pub fn closed(over: Over) -> Self {
        Self { over: Some(over), ..Self::default() }
    }

    pub fn decode(body: &[u8]) -> Self {
        // What cannot be read is of another version: nothing is restored from it.
        serde_json::from_slice(body).unwrap_or_else(|_| Self::closed(Over::Ended))
    }

    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain fields are always JSON")
    }

    /// Why nobody restores it any more, if that is so.
    pub fn over(&self) -> Option<Over> {
        self.over
    }

    /// The session may be restored once more.
    pub fn may_restore(&self) -> bool {
        self.over.is_none() && self.restores < MAX_RESTORES
    }

    /// Key of the session that was restored from it last.
    pub fn by(&self) -> Option<&str> {
        self.by.as_deref()
    }

    /// It is restored under another key, which takes the place of an earlier one.
    pub fn restored(&self, by: &str) -> Self {
        Self { restores: self.restores + 1, by: Some(by.into()), ..self.clone() }
    }

    /// The client of the session with this key, which was restored from it, has spoken: it knows its new sid.
    pub fn replaced(&self, by: &str) -> Self {
        Self { by: Some(by.into()), over: Some(Over::Replaced), ..self.clone() }
    }

    /// Its client has spoken: whoever took its place in silence cannot close it any more.
    pub fn spoken(&self) -> Self {
        Self { spoke: true, ..self.clone() }
    }

    pub fn has_spoken(&self) -> bool {
        self.spoke
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
        assert!(!Succession::default().replaced("a").may_restore());
        assert!(!Succession::closed(Over::Ended).may_restore());
        assert!(Succession::default().restored("a").spoken().may_restore());
    }

    #[test]
    fn another_version_is_over() {
        for body in ["?", r#"{"restores":0,"by":null,"over":null,"more":1}"#] {
            assert_eq!(Succession::decode(body.as_bytes()).over(), Some(Over::Ended), "{body}");
        }
    }
}
