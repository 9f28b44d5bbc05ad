//! Where a client really is, behind proxies that are trusted to say so. Pure.

use crate::config::Network;
use http::HeaderMap;
use std::net::IpAddr;

const FORWARDED_FOR: &str = "x-forwarded-for";

/// Proxies whose `X-Forwarded-For` is believed. Empty: nobody's.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies(Vec<Network>);

impl TrustedProxies {
    pub fn new(networks: Vec<Network>) -> Self {
        Self(networks)
    }

    pub fn trusts(&self, peer: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(peer))
    }

    /// The address of the client. Each proxy appends the address of whoever it was asked by, so the list is read from its
    /// end, for as long as the one that wrote an entry is trusted; what stands before could be made up by the client.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        if self.0.is_empty() {
            return client;
        }
        let lines = headers.get_all(FORWARDED_FOR).iter().rev();
        let mut entries = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
        while self.trusts(client)
            && let Some(said) = entries.next().and_then(address)
        {
            client = said;
        }
        client
    }
}

/// An address, with a port or without.
fn address(entry: &[u8]) -> Option<IpAddr> {
    let entry = std::str::from_utf8(entry).ok()?.trim();
    let bracketed = entry.strip_prefix('[').and_then(|rest| rest.split_once(']')).map(|(address, _)| address);
    let with_port = || entry.parse::<std::net::SocketAddr>().ok().map(|address| address.ip());
    let address = bracketed.unwrap_or(entry).parse().ok().or_else(with_port)?;
    Some(IpAddr::to_canonical(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(trusted: &[&str], peer: &str, forwarded: &[&str]) -> String {
        let networks = trusted.iter().map(|text| Network::parse(text).unwrap()).collect();
        let mut headers = HeaderMap::new();
        for line in forwarded {
            headers.append(FORWARDED_FOR, line.parse().unwrap());
        }
        TrustedProxies::new(networks).client(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn only_trusted_proxies_are_believed_and_only_about_whom_they_saw() {
        let proxies = &["10.0.0.0/8", "fd00::/8"][..];
        let cases: &[(&[&str], &str, &[&str], &str)] = &[
            (&[], "10.0.0.1", &["192.0.2.1"], "10.0.0.1"),
            (proxies, "198.51.100.1", &["192.0.2.1"], "198.51.100.1"),
            (proxies, "10.0.0.1", &[], "10.0.0.1"),
            (proxies, "10.0.0.1", &["192.0.2.1"], "192.0.2.1"),
            (proxies, "::ffff:10.0.0.1", &["::ffff:192.0.2.1"], "192.0.2.1"),
            (proxies, "10.0.0.1", &["203.0.113.9, 192.0.2.1, 10.0.0.2"], "192.0.2.1"),
            (proxies, "10.0.0.1", &["203.0.113.9, 192.0.2.1", "10.0.0.2 , 10.0.0.3"], "192.0.2.1"),
            (proxies, "10.0.0.1", &["10.0.0.9"], "10.0.0.9"),
            (proxies, "10.0.0.1", &["192.0.2.1, unknown, 10.0.0.2"], "10.0.0.2"),
            (proxies, "10.0.0.1", &["192.0.2.1:4711"], "192.0.2.1"),
            (proxies, "fd00::1", &["[2001:db8::7]:4711"], "2001:db8::7"),
            (proxies, "fd00::1", &["[2001:db8::7]"], "2001:db8::7"),
            (proxies, "10.0.0.1", &[""], "10.0.0.1"),
        ];
        for (trusted, peer, forwarded, expected) in cases {
            assert_eq!(client(trusted, peer, forwarded), *expected, "{peer} {forwarded:?}");
        }
    }
}
