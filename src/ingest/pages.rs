//! Keeping web pages out where publishing is open to whoever reaches it: a page may send what it likes to this machine and
//! its network, from the browser of somebody who is there. Pure.

use crate::transport::origin::AllowedOrigins;
use http::header::{HOST, HeaderMap, HeaderValue, ORIGIN};
use http::uri::{Authority, Uri};
use std::net::IpAddr;

/// What a request without a key must be.
#[derive(Clone, Debug, Default)]
pub struct PagePolicy {
    /// Pages of these origins may publish; `None`: no page.
    pub origins: Option<AllowedOrigins>,
    /// The listener is bound to loopback, under this name: a request that calls it otherwise comes from a page whose
    /// name was made to point here (DNS rebinding). Elsewhere publishers use names that we cannot know.
    pub loopback: Option<String>,
}

const FROM_A_PAGE: &str = "publishing is open here, so it takes nothing from web pages: set broadcast_key, or \
                           http_broadcast_cors and allowed_origins for pages that may publish";
const FOREIGN_PAGE: &str = "pages of this origin may not publish: they are not in allowed_origins";
const FOREIGN_HOST: &str = "publishing is open here, so on loopback it is called localhost, by a loopback address or by the \
                            configured host: set broadcast_key, or host, for another name in the Host header";

impl PagePolicy {
    /// Why a request is refused, if it is.
    pub fn refusal(&self, uri: &Uri, headers: &HeaderMap) -> Option<&'static str> {
        let origin = headers.get_all(ORIGIN).iter().next_back();
        let is_allowed = |origins: &AllowedOrigins, origin: &HeaderValue| origins.allows(origin.to_str().ok());
        match (&self.origins, origin) {
            (None, Some(_)) => return Some(FROM_A_PAGE),
            // Only browsers send it, and `none` is a person's own doing.
            (None, None) if headers.get("sec-fetch-site").is_some_and(|site| site != "none") => {
                return Some(FROM_A_PAGE);
            }
            (Some(origins), Some(origin)) if !is_allowed(origins, origin) => return Some(FOREIGN_PAGE),
            _ => {}
        }
        let own = self.loopback.as_deref()?;
        let named = headers.get_all(HOST).iter().map(|host| host.to_str().unwrap_or_default());
        let mut named = named.chain(uri.authority().map(Authority::as_str));
        named.any(|host| !is_ours(host, own)).then_some(FOREIGN_HOST)
    }
}

/// `host[:port]`, whatever the port: it may be another one outside of a container.
fn is_ours(named: &str, own: &str) -> bool {
    let Ok(authority) = named.parse::<Authority>() else { return false };
    // `user@localhost` is a user here, and a host to whoever reads it from its beginning.
    if authority.as_str().contains('@') {
        return false;
    }
    let host = authority.host().trim_end_matches('.');
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let is_loopback = bare.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
    is_loopback || bare.eq_ignore_ascii_case("localhost") || bare.eq_ignore_ascii_case(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(policy: &PagePolicy, headers: &[(&'static str, &str)]) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        policy.refusal(&Uri::from_static("/_broadcast"), &map).is_some()
    }

    #[test]
    fn pages_are_refused_unless_they_are_meant() {
        let none = PagePolicy::default();
        assert!(!refused(&none, &[("host", "any.test")]));
        for page in [
            ("origin", "http://evil.test"),
            ("origin", "null"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-origin"),
        ] {
            assert!(refused(&none, &[page]), "{page:?}");
        }
        assert!(!refused(&none, &[("sec-fetch-site", "none")]));
        let some = PagePolicy { origins: Some(AllowedOrigins::new(["acme.test"])), loopback: None };
        assert!(!refused(&some, &[("origin", "https://acme.test"), ("sec-fetch-site", "cross-site")]));
        assert!(refused(&some, &[("origin", "https://evil.test")]));
        assert!(!refused(&some, &[]), "publishers send none");
        let all = PagePolicy { origins: Some(AllowedOrigins::default()), loopback: None };
        assert!(!refused(&all, &[("origin", "https://evil.test")]));
    }

    #[test]
    fn on_loopback_only_its_own_names_are_answered() {
        let policy = PagePolicy { origins: None, loopback: Some("carrick.internal".to_owned()) };
        for host in [
            "localhost",
            "LOCALHOST:8090",
            "127.0.0.1:8090",
            "127.9.9.9",
            "[::1]:8090",
            "carrick.internal:1",
            "localhost.",
        ] {
            assert!(!refused(&policy, &[("host", host)]), "{host}");
        }
        assert!(!refused(&policy, &[]), "HTTP/1.0, which no browser speaks");
        for host in [
            "evil.test",
            "evil.test:8090",
            "localhost.evil.test",
            "192.0.2.1",
            "",
            "a b",
            "user@evil.test",
            "evil.test@localhost",
        ] {
            assert!(refused(&policy, &[("host", host)]), "{host}");
        }
        assert!(refused(&policy, &[("host", "localhost"), ("host", "evil.test")]));
        for uri in ["http://evil.test/_broadcast", "http://evil.test@localhost/_broadcast"] {
            assert!(policy.refusal(&Uri::from_static(uri), &HeaderMap::new()).is_some(), "{uri}");
        }
    }
}
