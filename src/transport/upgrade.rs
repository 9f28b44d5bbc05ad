//! The WebSocket handshake (RFC 6455 §4.2) and what a client says in it. Pure.

use crate::log_limit::limited;
use crate::node::{Hello, PingPrecision};
use crate::protocol::{Sid, Subprotocol};
use http::{HeaderMap, Method, StatusCode, header};
use std::time::Duration;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// The longest time between pings that a client can ask for with `pi`; a larger number means this. Nothing between a
/// client and us keeps a silent connection longer.
const LONGEST_PING_INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// A handshake that can be answered with 101.
#[derive(Debug)]
pub struct Accepted {
    pub accept_key: String,
    /// To be echoed in `Sec-WebSocket-Protocol`.
    pub subprotocol: Option<&'static str>,
    pub hello: Hello,
}

/// Checks a request. The error is the status to answer with.
pub fn handshake(method: &Method, headers: &HeaderMap, query: &str) -> Result<Accepted, StatusCode> {
    if method != Method::GET {
        return Err(StatusCode::METHOD_NOT_ALLOWED);
    }
    let has_token = |name: header::HeaderName, token: &str| {
        let values = headers.get_all(name);
        values
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
    };
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let key = text(header::SEC_WEBSOCKET_KEY).trim();
    let valid = has_token(header::CONNECTION, "upgrade")
        && has_token(header::UPGRADE, "websocket")
        && text(header::SEC_WEBSOCKET_VERSION).trim() == "13"
        && is_key(key);
    if !valid {
        return Err(StatusCode::BAD_REQUEST);
    }
    let offers: Vec<_> =
        headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok()).collect();
    let (echo, subprotocol) = Subprotocol::negotiate(&offers.join(","));
    Ok(Accepted {
        accept_key: derive_accept_key(key.as_bytes()),
        subprotocol: echo,
        hello: hello(headers, query, subprotocol),
    })
}

/// 16 bytes in padded base64.
fn is_key(key: &str) -> bool {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16)
}

/// Header and query parameters; of repeated ones the last counts, a header wins over the query.
fn hello(headers: &HeaderMap, query: &str, subprotocol: Subprotocol) -> Hello {
    let mut hello = Hello { subprotocol, restore: None, ping_interval: None, ping_precision: None, asked: None };
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "sid" => hello.restore = (!value.is_empty()).then(|| Sid::from(&*value)),
            "pi" => match value.parse::<i64>() {
                Ok(seconds) => {
                    let wanted = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
                    hello.ping_interval = Some(wanted.min(LONGEST_PING_INTERVAL));
                }
                Err(_) => {
                    limited!(WARN, PingInterval, "ignored ping interval `pi` that is not a whole number of seconds")
                }
            },
            "ptp" => {
                hello.ping_precision = Some(match &*value {
                    "ms" => PingPrecision::Milliseconds,
                    "ns" => PingPrecision::Nanoseconds,
                    _ => PingPrecision::Seconds,
                });
            }
            _ => {}
        }
    }
    let header = headers.get_all("x-anycable-restore-sid").iter().filter_map(|value| value.to_str().ok()).next_back();
    if let Some(sid) = header.filter(|sid| !sid.is_empty()) {
        hello.restore = Some(sid.into());
    }
    hello
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(changes: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let usual = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        for (name, value) in usual.iter().chain(changes) {
            headers.insert(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn answers_the_example_of_the_rfc() {
        let accepted = handshake(&Method::GET, &headers(&[]), "").unwrap();
        assert_eq!(accepted.accept_key, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(accepted.subprotocol, None);
    }

    #[test]
    fn faults_have_their_status() {
        assert_eq!(handshake(&Method::POST, &headers(&[]), "").unwrap_err(), StatusCode::METHOD_NOT_ALLOWED);
        let faults = [
            ("connection", "close"),
            ("upgrade", "h2c"),
            ("sec-websocket-version", "8"),
            ("sec-websocket-key", "short"),
        ];
        for fault in faults {
            let status = handshake(&Method::GET, &headers(&[fault]), "").unwrap_err();
            assert_eq!(status, StatusCode::BAD_REQUEST, "{fault:?}");
        }
    }

    #[test]
    fn reads_sid_and_ping_settings() {
        let hello = |headers: &HeaderMap, query: &str| handshake(&Method::GET, headers, query).unwrap().hello;
        let plain = headers(&[]);
        assert_eq!(hello(&plain, "sid=a&sid=b%2Fc").restore.as_ref().map(Sid::expose), Some("b/c"));
        assert_eq!(hello(&plain, "sid=").restore, None);
        assert_eq!(
            hello(&headers(&[("x-anycable-restore-sid", "h")]), "sid=q").restore.as_ref().map(Sid::expose),
            Some("h")
        );
        assert_eq!(hello(&plain, "pi=7").ping_interval, Some(Duration::from_secs(7)));
        assert_eq!(hello(&plain, "pi=-1").ping_interval, Some(Duration::ZERO));
        assert_eq!(hello(&plain, "pi=86399").ping_interval, Some(Duration::from_secs(86_399)));
        for endless in ["86401", "9223372036854775807"] {
            let query = format!("pi={endless}");
            assert_eq!(hello(&plain, &query).ping_interval, Some(LONGEST_PING_INTERVAL));
        }
        assert_eq!(hello(&plain, "pi=9223372036854775808").ping_interval, None);
        assert_eq!(hello(&plain, "pi=x").ping_interval, None);
        assert_eq!(hello(&plain, "ptp=ns").ping_precision, Some(PingPrecision::Nanoseconds));
        assert_eq!(hello(&plain, "ptp=fortnights").ping_precision, Some(PingPrecision::Seconds));
    }
}
