//! What of a client's request is kept for those who decide about it: tokens and the application. Pure.

use crate::auth::jwt::{TokenSource, token_of};
use crate::node::Asked;
use http::{HeaderMap, header};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What to keep. The default keeps nothing: an idle connection then pays for nothing.
#[derive(Clone, Debug, Default)]
pub struct AskedConfig {
    /// There is an application that wants URL and headers.
    pub application: bool,
    /// Clients come over TLS: their URLs are `https`.
    pub tls: bool,
    /// Headers to pass on, in lower case.
    pub headers: Vec<String>,
    /// Cookies to pass on; empty: all of them.
    pub cookies: Vec<String>,
    /// Tokens are accepted: name of their query parameter and, after `x-`, of their header.
    pub token_param: Option<String>,
}

impl AskedConfig {
    pub fn keeps_something(&self) -> bool {
        self.application || self.token_param.is_some()
    }

    /// `target`: path and query. `peer`: the socket's, not what a proxy says about it.
    pub fn asked(&self, headers: &HeaderMap, target: &str, peer: Option<IpAddr>) -> Asked {
        let query = target.split_once('?').map_or("", |(_, query)| query);
        let found = self.token_param.as_ref().and_then(|param| token_of(headers, query, param));
        let (url, mut passed) = match self.application {
            true => (self.url(headers, target), self.passed(headers, peer)),
            false => Default::default(),
        };
        let token = found.map(|(token, source)| {
            // From the query the application has it in the URL.
            if let Some(param) = self.token_param.as_ref().filter(|_| self.application && source != TokenSource::Query)
            {
                passed.insert(format!("x-{param}"), token.expose().to_owned());
            }
            token
        });
        Asked { url, headers: passed, token }
    }

    fn url(&self, headers: &HeaderMap, target: &str) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        let host = headers.get(header::HOST).map(text).unwrap_or_default();
        format!("{scheme}://{host}{target}")
    }

    fn passed(&self, headers: &HeaderMap, peer: Option<IpAddr>) -> BTreeMap<String, String> {
        let mut passed = BTreeMap::new();
        for name in &self.headers {
            let value = match name.as_str() {
                "cookie" => self.cookies(headers),
                name => headers.get(name).map(text).unwrap_or_default(),
            };
            if !value.is_empty() {
                passed.insert(name.clone(), value);
            }
        }
        if let Some(peer) = peer {
            passed.insert("REMOTE_ADDR".to_owned(), peer.to_canonical().to_string());
        }
        passed
    }

    /// All cookies as they came, or those that are wanted, each followed by `;`. A value may hold `=`.
    fn cookies(&self, headers: &HeaderMap) -> String {
        let all: Vec<_> = headers.get_all(header::COOKIE).iter().map(text).collect();
        let all = all.join("; ");
        if self.cookies.is_empty() {
            return all;
        }
        let pairs = all.split(';').map(str::trim);
        let kept = pairs.filter(|pair| {
            let name = pair.split_once('=').map_or(*pair, |(name, _)| name).trim();
            self.cookies.iter().any(|wanted| wanted == name)
        });
        kept.fold(String::new(), |kept, pair| kept + pair + ";")
    }
}

fn text(value: &http::HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    const PEER: IpAddr = IpAddr::V6(std::net::Ipv4Addr::new(10, 0, 0, 9).to_ipv6_mapped());

    fn config() -> AskedConfig {
        let headers = ["cookie", "x-api-token"].map(str::to_owned).to_vec();
        AskedConfig { application: true, headers, ..AskedConfig::default() }
    }

    fn request(headers: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        map
    }

    fn passed(asked: &Asked) -> Vec<(&str, &str)> {
        asked.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    #[test]
    fn the_url_is_absolute_and_only_wanted_headers_are_passed_on() {
        let headers = request(&[("host", "ws.acme.test"), ("cookie", "username=john green"), ("x-other", "1")]);
        let asked = config().asked(&headers, "/cable?x=1&y=%20", Some(PEER));
        assert_eq!(asked.url, "http://ws.acme.test/cable?x=1&y=%20");
        assert_eq!(passed(&asked), [("REMOTE_ADDR", "10.0.0.9"), ("cookie", "username=john green")]);
        let tls = AskedConfig { tls: true, ..config() };
        assert_eq!(tls.asked(&headers, "/cable", None).url, "https://ws.acme.test/cable");
    }

    #[test]
    fn wanted_cookies_are_found_wherever_they_stand_and_keep_their_values() {
        let headers = request(&[("cookie", "a=1; b=2; c=x==; session =s"), ("cookie", "d=4")]);
        let only = |names: &[&str]| {
            let cookies = names.iter().map(|name| name.to_string()).collect();
            let asked = AskedConfig { cookies, ..config() }.asked(&headers, "/", None);
            asked.headers.get("cookie").cloned()
        };
        assert_eq!(only(&["c", "d"]).as_deref(), Some("c=x==;d=4;"));
        assert_eq!(only(&["session"]).as_deref(), Some("session =s;"));
        assert_eq!(only(&["none"]), None);
        assert_eq!(only(&[]).as_deref(), Some("a=1; b=2; c=x==; session =s; d=4"));
    }

    #[test]
    fn a_token_is_passed_on_unless_it_came_in_the_query() {
        let config = AskedConfig { token_param: Some("jid".into()), ..config() };
        let asked = config.asked(&request(&[("x-jid", "t")]), "/", None);
        assert_eq!(
            (asked.token.as_ref().map(|token| token.expose()), passed(&asked)),
            (Some("t"), vec![("x-jid", "t")])
        );
        let offered = request(&[("sec-websocket-protocol", "actioncable-v1-ext-json, anycable-token.t")]);
        assert_eq!(passed(&config.asked(&offered, "/", None)), [("x-jid", "t")]);
        let asked = config.asked(&request(&[]), "/cable?jid=q", None);
        assert_eq!((asked.token.as_ref().map(|token| token.expose()), passed(&asked)), (Some("q"), vec![]));
    }

    #[test]
    fn without_an_application_only_the_token_is_kept() {
        let config = AskedConfig { token_param: Some("jid".into()), ..AskedConfig::default() };
        let asked = config.asked(&request(&[("x-jid", "t"), ("cookie", "a=1")]), "/", Some(PEER));
        assert_eq!(asked, Asked { token: Some("t".into()), ..Asked::default() });
    }
}
