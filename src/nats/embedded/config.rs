//! What is asked of an embedded server.

use crate::secret::Secret;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Configuration of one embedded server.
#[derive(Clone, Debug)]
pub struct EmbeddedConfig {
    /// Client listener.
    pub addr: ListenAddr,
    /// Unique in a cluster and the same after each restart. `None`: made of the address, see
    /// [`EmbeddedConfig::server_name`].
    pub server_name: Option<String>,
    /// Where streams are kept; created if missing. Must be on a local disk: network file systems do not lock.
    pub store_dir: PathBuf,
    /// A nats-server to run instead of the one that is built in.
    pub bin: Option<PathBuf>,
    /// Largest message in bytes, headers included. 0: 1 MiB.
    pub max_payload: u32,
    /// Pass on everything that the server logs, not only warnings and errors.
    pub debug: bool,
    /// Pass on the protocol trace as well.
    pub trace: bool,
    /// When stored messages are flushed to the disk. `None`: the server's default (every two minutes).
    pub sync: Option<SyncMode>,
    /// JetStream on.
    pub jetstream: bool,
    /// User and password of clients. `None`: a password of its own for each start (in a cluster: one that is derived
    /// from its secret, because clients move on to other members).
    pub credentials: Option<Credentials>,
    pub cluster: Option<ClusterConfig>,
    pub gateway: Option<GatewayConfig>,
    /// After that time without JetStream an error is logged; nothing else happens.
    pub ready_timeout: Duration,
    /// How long a start waits for the client listener. With JetStream, which recovers its store first, the start then
    /// goes on without it (the broker finds it later); without, it fails.
    pub listen_timeout: Duration,
    /// How long to wait for a store that a dying process still holds.
    pub lock_timeout: Duration,
}

impl Default for EmbeddedConfig {
    fn default() -> Self {
        Self {
            addr: ListenAddr { host: "127.0.0.1".to_owned(), port: Some(4222) },
            server_name: None,
            store_dir: PathBuf::from("./carrick-data"),
            bin: None,
            max_payload: 0,
            debug: false,
            trace: false,
            sync: None,
            jetstream: true,
            credentials: None,
            cluster: None,
            gateway: None,
            ready_timeout: Duration::from_secs(30),
            listen_timeout: Duration::from_secs(5),
            lock_timeout: Duration::from_secs(3),
        }
    }
}

impl EmbeddedConfig {
    /// The configured name, or one made of host and port (`127.0.0.1-4222`). It has no random part: JetStream knows the
    /// members of a cluster by name. A server that listens on all addresses goes by the machine's name, because members
    /// of a cluster share that address.
    pub fn server_name(&self) -> String {
        if let Some(name) = &self.server_name {
            return name.clone();
        }
        let host = if self.addr.is_unspecified() {
            rustix::system::uname().nodename().to_string_lossy().into_owned()
        } else {
            self.addr.host.clone()
        };
        let port = self.addr.port.map_or("any".to_owned(), |port| port.to_string());
        format!("{host}-{port}").replace([':', '/', ' ', '\t'], "-")
    }
}

/// When stored messages are flushed to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMode {
    /// Before each acknowledgement: survives a crash of the machine, some twenty times slower.
    Always,
    Every(Duration),
}

impl FromStr for SyncMode {
    type Err = String;

    /// `always`, or whole seconds.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<u64>() {
            Ok(seconds) if seconds > 0 => Ok(Self::Every(Duration::from_secs(seconds))),
            _ if text == "always" => Ok(Self::Always),
            _ => Err(format!("«{text}» is not a sync interval; give seconds or always")),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    pub user: String,
    pub password: Secret,
}

/// Listener and peers of a cluster.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    pub addr: ListenAddr,
    pub name: String,
    /// `nats://host:port` of other members. Credentials are added where a URL has none.
    pub routes: Vec<Secret>,
    /// Known to all members: routes authenticate with passwords derived from it.
    pub secret: Secret,
}

/// Listener of this cluster for other clusters, and their addresses.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    pub addr: ListenAddr,
    /// This cluster's name; must be [`ClusterConfig::name`] where there is one.
    pub name: String,
    /// `host:port` that others should use, if not the listener's.
    pub advertise: Option<String>,
    pub remotes: Vec<RemoteGateway>,
    /// Known to all clusters.
    pub secret: Secret,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteGateway {
    pub name: String,
    pub urls: Vec<Secret>,
}

/// Host and port of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenAddr {
    /// Name or address; IPv6 without brackets.
    pub host: String,
    /// `None`: any free port, written `-1`.
    pub port: Option<u16>,
}

impl ListenAddr {
    pub fn is_unspecified(&self) -> bool {
        self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified())
    }

    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl FromStr for ListenAddr {
    type Err = String;

    /// `nats://host:port` or `host:port`; port -1 is any free one.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |why: &str| format!("«{text}» is not a listener address: {why}; example: nats://127.0.0.1:4222");
        let rest = text.strip_prefix("nats://").unwrap_or(text).trim_end_matches('/');
        if rest.contains(['@', '/']) {
            return Err(bad("only host and port are expected"));
        }
        let (host, port) = rest.rsplit_once(':').ok_or_else(|| bad("the port is missing"))?;
        let port = match port {
            "-1" => None,
            port => match port.parse::<u16>() {
                Ok(port) if port > 0 => Some(port),
                _ => return Err(bad("the port must be 1 to 65535, or -1 for any")),
            },
        };
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(inner) if inner.parse::<std::net::Ipv6Addr>().is_ok() => inner,
            Some(_) => return Err(bad("the IPv6 address in brackets is wrong")),
            None if host.contains(':') => return Err(bad("an IPv6 address needs brackets")),
            None => host,
        };
        // What NATS takes for an empty host.
        let host = if host.is_empty() { "0.0.0.0" } else { host };
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.port.map_or(-1, i32::from);
        if self.host.contains(':') { write!(f, "[{}]:{port}", self.host) } else { write!(f, "{}:{port}", self.host) }
    }
}
