//! Where a request carries its token.

use crate::secret::Fingerprint;
use http::{HeaderMap, header};
use std::fmt;

/// A subprotocol that is none: browsers cannot set headers of a WebSocket handshake, but they can offer subprotocols.
const SUBPROTOCOL: &str = "anycable-token.";

/// A token. Whoever has it is its owner until it expires, so it is never printed: `Display` and `Debug` write its
/// [`Fingerprint`], `token#1a2b3c`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The text itself: for verifying and passing on, never for logging.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Token {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Token {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Fingerprint { kind: "token", text: &self.0 }.fmt(f)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a token was. Tokens of the query are not passed on to the application as a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// Header `x-<param>`.
    Header,
    /// Offered subprotocol `anycable-token.<token>`.
    Subprotocol,
    /// Query parameter `<param>`.
    Query,
}

/// The token of a request, from the first of these places that has one: header `x-<param>`, the first subprotocol
/// `anycable-token.<token>`, query parameter `<param>` (its last value). An empty one counts as none.
///
/// Bytes that are no text become text that no key verifies, so that a broken token is refused rather than not seen.
pub fn token_of(headers: &HeaderMap, query: &str, param: &str) -> Option<(Token, TokenSource)> {
    let header = headers.get(format!("x-{param}")).map(|value| String::from_utf8_lossy(value.as_bytes()));
    if let Some(token) = header.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()) {
        return Some((token.into(), TokenSource::Header));
    }
    for offers in headers.get_all(header::SEC_WEBSOCKET_PROTOCOL) {
        let offers = String::from_utf8_lossy(offers.as_bytes());
        let token = offers.split(',').find_map(|offer| offer.trim().strip_prefix(SUBPROTOCOL));
        if let Some(token) = token.filter(|token| !token.is_empty()) {
            return Some((token.into(), TokenSource::Subprotocol));
        }
    }
    let values = url::form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == param);
    let token = values.last().map(|(_, value)| value.into_owned()).filter(|token| !token.is_empty())?;
    Some((token.into(), TokenSource::Query))
}

#[cfg(test)]
mod tests {
    use super::*;
    use TokenSource::{Header, Query, Subprotocol};
    use http::HeaderValue;

    fn of(headers: &[(&'static str, &str)], query: &str) -> Option<(Token, TokenSource)> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        token_of(&map, query, "jid")
    }

    fn token(text: &str, source: TokenSource) -> Option<(Token, TokenSource)> {
        Some((text.into(), source))
    }

    #[test]
    fn header_wins_over_subprotocol_and_that_over_query() {
        let header = ("x-jid", "h");
        let subprotocol = ("sec-websocket-protocol", "actioncable-v1-ext-json, anycable-token.s");
        assert_eq!(of(&[header, subprotocol], "jid=q"), token("h", Header));
        assert_eq!(of(&[subprotocol], "jid=q"), token("s", Subprotocol));
        assert_eq!(of(&[], "a=1&jid=q"), token("q", Query));
        assert_eq!(of(&[], "a=1&jidd=q"), None);
    }

    #[test]
    fn empty_ones_count_as_none() {
        let empty = [("x-jid", " "), ("sec-websocket-protocol", "anycable-token.")];
        assert_eq!(of(&empty, "jid=q"), token("q", Query));
        assert_eq!(of(&empty, "jid="), None);
    }

    #[test]
    fn the_first_subprotocol_and_the_last_query_value_count() {
        let offers = [
            ("sec-websocket-protocol", "actioncable-v1-json"),
            ("sec-websocket-protocol", "anycable-token.one,anycable-token.two"),
        ];
        assert_eq!(of(&offers, ""), token("one", Subprotocol));
        assert_eq!(of(&[], "jid=one&jid=t%2Ew%6F"), token("t.wo", Query));
    }

    #[test]
    fn another_name_is_for_header_and_query() {
        let headers = HeaderMap::from_iter([("x-access-token".parse().unwrap(), HeaderValue::from_static("h"))]);
        assert_eq!(token_of(&headers, "", "Access-Token"), token("h", Header));
        assert_eq!(token_of(&HeaderMap::new(), "jid=j&access=q", "access"), token("q", Query));
    }

    #[test]
    fn a_broken_token_is_still_a_token() {
        assert_eq!(of(&[("x-jid", "é")], "jid=q"), token("é", Header));
        let headers = HeaderMap::from_iter([("x-jid".parse().unwrap(), HeaderValue::from_bytes(b"\xff").unwrap())]);
        assert_eq!(token_of(&headers, "", "jid"), token("\u{fffd}", Header));
    }
}
