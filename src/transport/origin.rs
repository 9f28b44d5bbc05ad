//! Which web pages may talk to us: the check of the `Origin` header. Pure.

use std::fmt;

/// The origins allowed by configuration. Empty: no check.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct AllowedOrigins(Vec<Entry>);

#[derive(Clone, PartialEq, Eq)]
enum Entry {
    /// `host[:port]`
    Exact(String),
    /// `*suffix`
    Suffix(String),
}

impl AllowedOrigins {
    /// From entries `host[:port]` or `*suffix`, in any letter case. Blanks around entries and empty ones are dropped.
    pub fn new<S: AsRef<str>>(entries: impl IntoIterator<Item = S>) -> Self {
        let entries = entries.into_iter().filter_map(|entry| {
            let entry = entry.as_ref().trim().to_lowercase();
            match entry.strip_prefix('*') {
                _ if entry.is_empty() => None,
                Some(suffix) => Some(Entry::Suffix(suffix.to_owned())),
                None => Some(Entry::Exact(entry)),
            }
        });
        Self(entries.collect())
    }

    /// Every origin may connect, also a client that sends none.
    pub fn is_unchecked(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a request with this `Origin` header is allowed. With a list, a missing or unparsable one is not.
    pub fn allows(&self, origin: Option<&str>) -> bool {
        if self.is_unchecked() {
            return true;
        }
        let Some(origin) = origin.map(str::to_lowercase) else { return false };
        let Some(host) = host_of(&origin) else { return false };
        self.0.iter().any(|entry| match entry {
            Entry::Exact(allowed) => allowed == host,
            Entry::Suffix(suffix) => host.ends_with(suffix.as_str()),
        })
    }
}

impl fmt::Debug for AllowedOrigins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.0.iter().map(|entry| match entry {
            Entry::Exact(host) => host.clone(),
            Entry::Suffix(suffix) => format!("*{suffix}"),
        });
        f.debug_list().entries(entries).finish()
    }
}

/// `host[:port]` of `scheme://host[:port]`, the only form of an origin (RFC 6454 §6.2, §7): no path, no user, nothing else.
fn host_of(origin: &str) -> Option<&str> {
    let (scheme, host) = origin.split_once("://")?;
    let valid_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    (valid_scheme && is_host(host)).then_some(host)
}

/// `host[:port]`; the host is a name in ASCII, or an address (IPv6 in brackets).
fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => {
            let is_address = address.parse::<std::net::Ipv6Addr>().is_ok();
            match rest.strip_prefix(':') {
                _ if !is_address => return false,
                Some(port) => ("v6", Some(port)),
                None if rest.is_empty() => ("v6", None),
                None => return false,
            }
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let is_name = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b));
    let is_port = |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|n| n > 0);
    is_name && port.is_none_or(is_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(list: &[&str], origin: &str) -> bool {
        AllowedOrigins::new(list).allows(Some(origin))
    }

    #[test]
    fn without_a_list_nothing_is_checked() {
        for empty in [&[][..], &["", " "][..]] {
            let origins = AllowedOrigins::new(empty);
            assert!(origins.allows(None) && origins.allows(Some("null")) && origins.allows(Some("http://a.test")));
        }
    }

    #[test]
    fn exact_entries_compare_host_and_port_in_any_case() {
        let list = ["Acme.test", "other.test:3000", "[::1]:8080"];
        for good in ["http://acme.test", "https://ACME.test", "http://other.test:3000", "http://[::1]:8080"] {
            assert!(allows(&list, good), "{good}");
        }
        for bad in ["http://acme.test:80", "http://a.acme.test", "http://other.test", "http://acme.test.evil.test"] {
            assert!(!allows(&list, bad), "{bad}");
        }
    }

    #[test]
    fn suffix_entries() {
        assert!(allows(&["*.acme.test"], "https://a.acme.test"));
        assert!(allows(&["*.acme.test"], "https://a.b.acme.test"));
        assert!(!allows(&["*.acme.test"], "https://acme.test"));
        assert!(!allows(&["*.acme.test"], "https://a.acme.test:8080"));
        assert!(allows(&["*acme.test"], "https://acme.test"));
        assert!(allows(&["*.acme.test:8080"], "https://a.acme.test:8080"));
        assert!(allows(&["*"], "https://any.test"));
    }

    #[test]
    fn missing_or_doubtful_origins_fail() {
        let origins = AllowedOrigins::new(["acme.test", "*"]);
        assert!(!origins.allows(None));
        let doubtful = [
            "",
            "null",
            "acme.test",
            "://acme.test",
            "http://",
            "http:///acme.test",
            "http://evil@acme.test",
            "http://evil\\.acme.test",
            "http://evil.test .acme.test",
            "http://evil.test%2eacme.test",
            "http://evil.test;acme.test",
            "http://acme.test;x",
            "http://acme.test:",
            "http://acme.test:x",
            "http://acme.test:0",
            "http://acme.test:65536",
            "http://acme.test:80:80",
            "http://acme.test/",
            "1ttp://acme.test",
            "http://[::1",
            "http://[::g]",
            "http://[::1]x",
            "http://acme.test, http://acme.test",
        ];
        for origin in doubtful {
            assert!(!origins.allows(Some(origin)), "{origin:?}");
        }
    }

    #[test]
    fn only_the_host_counts() {
        assert!(!allows(&["acme.test", "*acme.test"], "http://evil.test/acme.test"));
        assert!(!allows(&["acme.test", "*acme.test"], "http://evil.test?acme.test"));
        assert!(!allows(&["acme.test", "*acme.test"], "http://evil.test#acme.test"));
    }
}
