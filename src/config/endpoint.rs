//! Addresses of NATS listeners and peers.

use super::kinds::{EmptyEnv, Kind, Raw, Shown, has_credentials, items, parse_time, show_time};
use super::{Secret, SyncPolicy};
use std::fmt;

/// `scheme://[user[:password]@]host:port`. `Display` leaves the credentials out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `nats`, `tls` or `nats-route`.
    pub scheme: String,
    pub credentials: Option<Credentials>,
    /// Name or address; an IPv6 address without its brackets.
    pub host: String,
    pub port: EndpointPort,
}

/// The user part of a URL. `Debug` does not print it: a bare token is a user without a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub user: String,
    /// As in the URL, percent signs and all; absent for a bare token.
    pub password: Option<Secret>,
}

/// A port, which must be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointPort {
    /// `-1`: any free one.
    Any,
    Fixed(u16),
}

impl Endpoint {
    /// With the credentials: for connecting and for generated configurations, never for logging.
    pub fn url(&self) -> String {
        let credentials = match &self.credentials {
            Some(Credentials { user, password: Some(password) }) => format!("{user}:{}@", password.expose()),
            Some(Credentials { user, password: None }) => format!("{user}@"),
            None => String::new(),
        };
        format!("{}://{credentials}{}", self.scheme, self.address())
    }

    /// `host:port`, an IPv6 address in brackets.
    pub fn address(&self) -> String {
        let port = match self.port {
            EndpointPort::Any => "-1".to_owned(),
            EndpointPort::Fixed(port) => port.to_string(),
        };
        if self.host.contains(':') { format!("[{}]:{port}", self.host) } else { format!("{}:{port}", self.host) }
    }

    /// `None` if the text is not such a URL.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        if !matches!(scheme, "nats" | "tls" | "nats-route") {
            return None;
        }
        let (credentials, address) = match rest.rsplit_once('@') {
            Some((user_info, address)) => (Some(Credentials::parse(user_info)?), address),
            None => (None, rest),
        };
        let (host, port) = split_address(address.strip_suffix('/').unwrap_or(address))?;
        Some(Self { scheme: scheme.to_owned(), credentials, host, port })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Credentials {
    fn parse(user_info: &str) -> Option<Self> {
        let (user, password) = match user_info.split_once(':') {
            Some((user, password)) => (user, Some(Secret::new(password))),
            None => (user_info, None),
        };
        (!user.is_empty()).then(|| Self { user: user.to_owned(), password })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.address())
    }
}

/// Host and port of `host:port` or `[v6]:port`.
fn split_address(address: &str) -> Option<(String, EndpointPort)> {
    let (host, port) = address.rsplit_once(':')?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_v6 = bare.is_some_and(|host| host.parse::<std::net::Ipv6Addr>().is_ok());
    let host = if is_v6 { bare? } else { host };
    if !is_v6 && !is_host(host) {
        return None;
    }
    let port = match port {
        "-1" => EndpointPort::Any,
        _ => EndpointPort::Fixed(port.parse().ok().filter(|port| *port != 0)?),
    };
    Some((host.to_owned(), port))
}

fn is_host(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

/// `host:port` with a fixed port.
pub fn is_address(text: &str) -> bool {
    matches!(split_address(text), Some((_, EndpointPort::Fixed(_))))
}

/// Something the client library connects to: a URL of scheme `nats` or `tls`, or a bare host with or without a port.
pub fn is_server(text: &str) -> bool {
    let address = match text.split_once("://") {
        Some(("nats" | "tls", rest)) => rest.rsplit_once('@').map_or(rest, |(_, address)| address),
        Some(_) => return false,
        None => text,
    };
    let address = address.strip_suffix('/').unwrap_or(address);
    is_host(address) || is_address(address)
}

const ALLOWED: &str = "a URL with a port, such as nats://127.0.0.1:4222 (port -1: any free one)";

/// Kind of one [`Endpoint`].
pub struct Listen;

impl Kind<Endpoint> for Listen {
    fn read(&self, raw: Raw<'_>) -> Result<Endpoint, String> {
        raw.text().and_then(Endpoint::parse).ok_or_else(|| ALLOWED.to_owned())
    }
    fn show(&self, value: &Endpoint) -> Shown {
        Shown { literal: toml::Value::from(value.url()).to_string(), off: false, secret: value.credentials.is_some() }
    }
    fn value_name(&self) -> &'static str {
        "URL"
    }
}

impl Kind<Option<Endpoint>> for Listen {
    fn read(&self, raw: Raw<'_>) -> Result<Option<Endpoint>, String> {
        match raw.text() {
            Some("") => Ok(None),
            _ => Kind::<Endpoint>::read(self, raw).map(Some),
        }
    }
    fn show(&self, value: &Option<Endpoint>) -> Shown {
        match value {
            Some(endpoint) => self.show(endpoint),
            None => Shown { literal: "\"\"".to_owned(), off: true, secret: false },
        }
    }
    fn value_name(&self) -> &'static str {
        "URL"
    }
    fn empty_env(&self) -> EmptyEnv {
        EmptyEnv::Means("")
    }
}

/// Kind of several peers.
pub struct Peers;

fn peers(text: &str) -> Option<Vec<Endpoint>> {
    let parse = |url: &str| Endpoint::parse(url).filter(|peer| peer.port != EndpointPort::Any);
    text.split(',').map(str::trim).filter(|url| !url.is_empty()).map(parse).collect()
}

impl Kind<Vec<Endpoint>> for Peers {
    fn read(&self, raw: Raw<'_>) -> Result<Vec<Endpoint>, String> {
        items(raw, ',')
            .and_then(|urls| peers(&urls.join(",")))
            .ok_or_else(|| "URLs with a port, separated by commas, such as nats://10.0.0.2:5222".to_owned())
    }
    fn show(&self, value: &Vec<Endpoint>) -> Shown {
        Shown {
            literal: toml::Value::from(value.iter().map(Endpoint::url).collect::<Vec<_>>()).to_string(),
            off: value.is_empty(),
            secret: value.iter().any(|peer| peer.credentials.is_some()),
        }
    }
    fn value_name(&self) -> &'static str {
        "URLS"
    }
    fn empty_env(&self) -> EmptyEnv {
        EmptyEnv::Means("")
    }
}

/// Another cluster and the ways to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    pub name: String,
    pub urls: Vec<Endpoint>,
}

/// Kind of several [`Gateway`]s: `nameA:url1,url2;nameB:url3`.
pub struct Gateways;

fn gateway(text: &str) -> Option<Gateway> {
    let (name, urls) = text.split_once(':')?;
    let urls = peers(urls).filter(|urls| !urls.is_empty())?;
    let is_name = !name.is_empty() && !name.contains(char::is_whitespace);
    is_name.then(|| Gateway { name: name.to_owned(), urls })
}

impl Kind<Vec<Gateway>> for Gateways {
    fn read(&self, raw: Raw<'_>) -> Result<Vec<Gateway>, String> {
        items(raw, ';')
            .and_then(|gateways| gateways.iter().map(|text| gateway(text)).collect())
            .ok_or_else(|| "clusters and their URLs: `nameA:url1,url2;nameB:url3`".to_owned())
    }
    fn show(&self, value: &Vec<Gateway>) -> Shown {
        let show = |gateway: &Gateway| {
            let urls: Vec<_> = gateway.urls.iter().map(Endpoint::url).collect();
            format!("{}:{}", gateway.name, urls.join(","))
        };
        let texts: Vec<_> = value.iter().map(show).collect();
        let secret = texts.iter().any(|text| has_credentials(text));
        Shown { literal: toml::Value::from(texts).to_string(), off: value.is_empty(), secret }
    }
    fn value_name(&self) -> &'static str {
        "GATEWAYS"
    }
    fn empty_env(&self) -> EmptyEnv {
        EmptyEnv::Means("")
    }
}

/// Kind of [`SyncPolicy`].
pub struct Sync;

impl Kind<SyncPolicy> for Sync {
    fn read(&self, raw: Raw<'_>) -> Result<SyncPolicy, String> {
        match raw.text() {
            Some("") => Ok(SyncPolicy::ServerDefault),
            Some("always") => Ok(SyncPolicy::Always),
            text => text
                .filter(|text| text.ends_with(|c: char| c.is_ascii_alphabetic()))
                .and_then(parse_time)
                .filter(|time| !time.is_zero())
                .map(SyncPolicy::Every)
                .ok_or_else(|| "`always`, a time with its unit such as `10s`, or nothing".to_owned()),
        }
    }
    fn show(&self, value: &SyncPolicy) -> Shown {
        let text = match value {
            SyncPolicy::ServerDefault => String::new(),
            SyncPolicy::Always => "always".to_owned(),
            SyncPolicy::Every(time) => show_time(*time),
        };
        Shown { off: text.is_empty(), literal: toml::Value::from(text).to_string(), secret: false }
    }
    fn value_name(&self) -> &'static str {
        "SYNC"
    }
    fn empty_env(&self) -> EmptyEnv {
        EmptyEnv::Means("")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_need_scheme_host_and_port() {
        for text in
            ["nats://127.0.0.1:4222", "nats://0.0.0.0:-1", "tls://a.b-c.d:1", "nats://[::1]:4222", "nats://u:p@h:5"]
        {
            assert_eq!(Endpoint::parse(text).expect(text).url(), text);
        }
        for text in [
            "",
            "127.0.0.1:4222",
            "nats://127.0.0.1",
            "nats://h:0",
            "nats://h:65536",
            "nats://h:-2",
            "nats://:4222",
            "http://h:1",
            "nats://a b:1",
            "nats://@h:1",
            "nats://::1:4222",
        ] {
            assert_eq!(Endpoint::parse(text), None, "{text}");
        }
    }

    #[test]
    fn credentials_of_an_endpoint_are_not_printed() {
        let endpoint = Endpoint::parse("nats://ann:pa:ss@h:5222").unwrap();
        assert_eq!(endpoint.to_string(), "nats://h:5222");
        assert!(!format!("{endpoint:?}").contains("pa:ss"));
        assert_eq!(endpoint.credentials.unwrap().password.unwrap().expose(), "pa:ss");
    }

    #[test]
    fn servers_may_leave_scheme_and_port_out() {
        for text in ["nats://h:4222", "tls://u:p@h", "h", "h:4222", "nats://t0k3n@[::1]:4222/"] {
            assert!(is_server(text), "{text}");
        }
        for text in ["http://h:4222", "ws://h", "nats://", "nats://h:port", "h:0", "a b", "nats://h:4222/x"] {
            assert!(!is_server(text), "{text}");
        }
    }

    #[test]
    fn gateways_have_a_name_and_urls() {
        let given = "east:nats://a:7222,nats://b:7222; west:nats://c:7222";
        let gateways = Gateways.read(Raw::Text(given)).unwrap();
        assert_eq!(gateways.len(), 2);
        assert_eq!((gateways[0].name.as_str(), gateways[0].urls.len()), ("east", 2));
        assert_eq!(gateways[1].urls[0].to_string(), "nats://c:7222");
        for bad in ["east", "east:", ":nats://a:1", "east:nats://a", "east:nats://a:-1"] {
            assert!(Gateways.read(Raw::Text(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn sync_is_always_a_time_with_unit_or_nothing() {
        assert_eq!(Sync.read(Raw::Text("always")), Ok(SyncPolicy::Always));
        assert_eq!(Sync.read(Raw::Text("10s")), Ok(SyncPolicy::Every(std::time::Duration::from_secs(10))));
        assert_eq!(Sync.read(Raw::Text("")), Ok(SyncPolicy::ServerDefault));
        assert!(Sync.read(Raw::Text("10")).is_err());
        assert!(Sync.read(Raw::Text("never")).is_err());
    }
}
