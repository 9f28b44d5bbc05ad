//! Choosing the WebSocket subprotocol.

use super::Encoding;

/// What was agreed with the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subprotocol {
    /// `actioncable-v1-json`, also served to clients that offer nothing we know.
    Json,
    /// `actioncable-v1-ext-json`: sessions, pongs.
    ExtJson,
}

impl Subprotocol {
    /// In the server's order of preference, which wins over the client's.
    const OURS: [(&'static str, Self); 2] =
        [("actioncable-v1-json", Self::Json), ("actioncable-v1-ext-json", Self::ExtJson)];

    /// The value to echo and what it means. No match: nothing to echo, base rules. The sentinel
    /// `actioncable-unsupported` and `anycable-token.…` are never chosen.
    pub fn negotiate(offered: &str) -> (Option<&'static str>, Self) {
        let offers = || offered.split(',').map(str::trim);
        Self::OURS
            .into_iter()
            .find(|(name, _)| offers().any(|offer| offer == *name))
            .map_or((None, Self::Json), |(name, protocol)| (Some(name), protocol))
    }

    /// Sessions can be resumed, and pongs are expected.
    pub fn extended(self) -> bool {
        self == Self::ExtJson
    }

    pub fn encoding(self) -> Encoding {
        Encoding::Json
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefers_our_order_and_never_picks_sentinels() {
        let both = "actioncable-v1-ext-json, actioncable-v1-json";
        assert_eq!(Subprotocol::negotiate(both), (Some("actioncable-v1-json"), Subprotocol::Json));
        let ext = "actioncable-v1-ext-json, anycable-token.abc";
        assert_eq!(Subprotocol::negotiate(ext), (Some("actioncable-v1-ext-json"), Subprotocol::ExtJson));
        for none in ["", "actioncable-unsupported", "anycable-token.x", "graphql-ws"] {
            assert_eq!(Subprotocol::negotiate(none), (None, Subprotocol::Json));
        }
    }
}
