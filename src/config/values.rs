//! Closed sets of values, and what text may be.

use super::kinds::{Choice, Int, Kind, Raw};
use std::time::Duration;

/// Where history and sessions are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerKind {
    None,
    Memory,
    Nats,
}

pub const BROKER_KINDS: Choice<BrokerKind> = Choice {
    values: &[
        ("none", BrokerKind::None),
        ("", BrokerKind::None),
        ("memory", BrokerKind::Memory),
        ("nats", BrokerKind::Nats),
    ],
    later: &["redis"],
};

/// How applications publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BroadcastAdapter {
    Http,
    Nats,
    Redis,
    Redisx,
}

/// Adapters that are named but not implemented are refused when the configuration is resolved, because the usual list
/// `http,redis` is not.
pub const BROADCAST_ADAPTERS: Choice<BroadcastAdapter> = Choice {
    values: &[
        ("http", BroadcastAdapter::Http),
        ("nats", BroadcastAdapter::Nats),
        ("redis", BroadcastAdapter::Redis),
        ("redisx", BroadcastAdapter::Redisx),
    ],
    later: &[],
};

/// How nodes pass on what is not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PubsubKind {
    /// Whatever suits the broker.
    Auto,
    None,
    Nats,
}

pub const PUBSUB_KINDS: Choice<PubsubKind> = Choice {
    values: &[("", PubsubKind::Auto), ("none", PubsubKind::None), ("nats", PubsubKind::Nats)],
    later: &["redis"],
};

/// How the application is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RpcKind {
    /// HTTP for an `http` URL, else gRPC.
    ByScheme,
    Grpc,
    Http,
    None,
}

pub const RPC_KINDS: Choice<RpcKind> = Choice {
    values: &[("", RpcKind::ByScheme), ("grpc", RpcKind::Grpc), ("http", RpcKind::Http), ("none", RpcKind::None)],
    later: &[],
};

/// Whose leaving the application is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DisconnectMode {
    /// Of those it has authenticated, or had a subscription of.
    Auto,
    Always,
    Never,
}

pub const DISCONNECT_MODES: Choice<DisconnectMode> = Choice {
    values: &[("auto", DisconnectMode::Auto), ("always", DisconnectMode::Always), ("never", DisconnectMode::Never)],
    later: &[],
};

/// A set of defaults for a purpose or a platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// Applies nothing and stops detection.
    None,
    Broker,
    Heroku,
}

pub const PRESETS: Choice<Preset> = Choice {
    values: &[("broker", Preset::Broker), ("heroku", Preset::Heroku), ("none", Preset::None)],
    later: &["fly"],
};

impl Preset {
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Broker => "broker",
            Self::Heroku => "heroku",
        }
    }
}

/// Lowest level that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    Debug,
    Info,
    Warn,
    Error,
}

pub const LOG_LEVELS: Choice<LogLevel> = Choice {
    values: &[
        ("debug", LogLevel::Debug),
        ("info", LogLevel::Info),
        ("warn", LogLevel::Warn),
        ("error", LogLevel::Error),
    ],
    later: &[],
};

/// Form of a log record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

pub const LOG_FORMATS: Choice<LogFormat> =
    Choice { values: &[("text", LogFormat::Text), ("json", LogFormat::Json)], later: &[] };

/// Unit of the number in a ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimePrecision {
    Seconds,
    Milliseconds,
    Nanoseconds,
}

pub const TIME_PRECISIONS: Choice<TimePrecision> = Choice {
    values: &[("s", TimePrecision::Seconds), ("ms", TimePrecision::Milliseconds), ("ns", TimePrecision::Nanoseconds)],
    later: &[],
};

/// What resumable clients are told when the node stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownMode {
    /// `Resume` where the store survives this process, else `Disconnect`.
    Auto,
    /// Close without a `disconnect` message: the client resumes on another node.
    Resume,
    /// Send `disconnect` with reason `server_restart`.
    Disconnect,
}

pub const SHUTDOWN_MODES: Choice<ShutdownMode> = Choice {
    values: &[("auto", ShutdownMode::Auto), ("resume", ShutdownMode::Resume), ("disconnect", ShutdownMode::Disconnect)],
    later: &[],
};

/// When the embedded server writes its store to disk (`sync_interval`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncPolicy {
    ServerDefault,
    /// After every message.
    Always,
    /// At least this often.
    Every(Duration),
}

/// Where publishing over HTTP listens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BroadcastListener {
    /// With everything else: a key guards it, or it was asked for.
    #[default]
    Main,
    /// On a port of its own (8090 when nothing guards it), so that it can be kept from the public. 0: any free port,
    /// which is what an unguarded endpoint gets beside a main port of 0.
    Own(u16),
}

/// Number of copies in a cluster: odd, because even ones tolerate no more failures than one less.
pub struct Replicas;
pub const REPLICAS: Replicas = Replicas;

impl Kind<u16> for Replicas {
    fn read(&self, raw: Raw<'_>) -> Result<u16, String> {
        let any = Int { min: 0, max: 5, name: "N" };
        let number = Kind::<u16>::read(&any, raw).ok().filter(|n| matches!(n, 0 | 1 | 3 | 5));
        number.ok_or_else(|| "0 (automatic), 1, 3 or 5".to_owned())
    }
    fn show(&self, value: &u16) -> super::kinds::Shown {
        Int { min: 0, max: 5, name: "N" }.show(value)
    }
    fn value_name(&self) -> &'static str {
        "N"
    }
}

/// `/…` without blanks, query or fragment.
pub fn is_path(text: &str) -> bool {
    text.starts_with('/') && !text.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '?' | '#'))
}

/// A path whose segments may be `{name}`, and whose last one may be `*`.
pub fn is_ws_path(text: &str) -> bool {
    let body = text.strip_suffix("/*").unwrap_or(text);
    let is_segment = |segment: &str| match segment.strip_prefix('{').and_then(|s| s.strip_suffix('}')) {
        Some(name) => is_word(name),
        None => !segment.contains(['{', '}', '*']),
    };
    is_path(text) && body.split('/').all(is_segment)
}

/// `host[:port]` with an IPv6 address in brackets, or `*` and the end of such; a bare `*` is everybody.
pub fn is_origin(text: &str) -> bool {
    let (is_suffix, text) = text.strip_prefix('*').map_or((false, text), |suffix| (true, suffix));
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_name = |host: &str| host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b));
    let is_host = match bare {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => (is_suffix || !host.is_empty()) && is_name(host),
    };
    is_host
        && port.is_none_or(|port| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|n| n > 0))
}

/// What NATS takes for the name of a stream, and for one word of a subject.
pub fn is_word(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// A NATS subject without wildcards.
pub fn is_subject(text: &str) -> bool {
    let is_token = |token: &str| {
        !token.is_empty() && !token.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '*' | '>'))
    };
    text.len() <= 255 && text.split('.').all(is_token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn websocket_paths_may_have_segments_and_an_open_end() {
        for path in ["/cable", "/", "/t/{tenant}/cable", "/cable/*", "/*"] {
            assert!(is_ws_path(path), "{path}");
        }
        for path in ["", "cable", "/a b", "/a?b", "/t/{}/c", "/t/x{y}", "/*/cable", "/a*", "/t/{a b}"] {
            assert!(!is_ws_path(path), "{path}");
        }
    }

    #[test]
    fn row_25_origins_are_hosts_with_a_possible_port() {
        for origin in
            ["acme.test", "localhost:3000", "*", "*.acme.test", "*.acme.test:8080", "[::1]:8080", "[::1]", "a_b.test"]
        {
            assert!(is_origin(origin), "{origin}");
        }
        for origin in [
            "",
            "a;b",
            "acme.test:",
            "acme.test:0",
            "acme.test:65536",
            "acme.test:x",
            "https://a",
            "a/b",
            "a b",
            "[::g]",
            "a@b",
        ] {
            assert!(!is_origin(origin), "{origin}");
        }
    }

    #[test]
    fn subjects_have_no_wildcards_and_no_blanks() {
        assert!(is_subject("__anycable__") && is_subject("a.b-c"));
        for subject in ["", "a..b", ".a", "a.", "a.*", ">", "a b"] {
            assert!(!is_subject(subject), "{subject}");
        }
    }

    #[test]
    fn replicas_are_odd() {
        for (text, allowed) in
            [("0", true), ("1", true), ("3", true), ("5", true), ("2", false), ("7", false), ("x", false)]
        {
            assert_eq!(REPLICAS.read(Raw::Text(text)).is_ok(), allowed, "{text}");
        }
    }
}
