//! The configuration file that nats-server reads: a pure function, compared with `testdata/nats/*.conf` in tests.

use super::config::{Credentials, EmbeddedConfig, ListenAddr, SyncMode};
use crate::secret::Secret;
use std::fmt::Write;
use std::path::Path;

/// User name on every listener of ours.
pub(super) const USER: &str = "carrick";
/// Of the system account, where a cluster is asked about its members.
pub(super) const SYSTEM_USER: &str = "carrick-system";

/// Where things are and what was chosen at this start.
#[derive(Clone, Debug)]
pub struct Runtime<'a> {
    pub server_name: &'a str,
    /// Absolute.
    pub store_dir: &'a Path,
    /// Where the server writes the ports it listens on.
    pub ports_dir: &'a Path,
    pub credentials: &'a Credentials,
    /// The client listener, with the port of the first start if any free one was asked for.
    pub addr: &'a ListenAddr,
    /// Bytes that JetStream may take.
    pub max_store: u64,
}

/// The file's text.
pub fn generate(config: &EmbeddedConfig, runtime: &Runtime<'_>) -> String {
    let mut out = String::new();
    let w = &mut out;
    line(w, 0, "# generated at each start, changes are lost");
    line(w, 0, &format!("server_name: {}", quote(runtime.server_name)));
    listen(w, 0, runtime.addr);
    line(w, 0, &format!("ports_file_dir: {}", quote(&runtime.ports_dir.to_string_lossy())));
    let max_payload = if config.max_payload == 0 { 1 << 20 } else { config.max_payload };
    line(w, 0, &format!("max_payload: {max_payload}"));
    line(w, 0, "# a peer that went silent is dropped within 6 s");
    line(w, 0, "ping_interval: \"2s\"");
    line(w, 0, "ping_max: 2");
    line(w, 0, "# the shortest that the server takes; it leaves as soon as its clients have");
    line(w, 0, "lame_duck_duration: \"30s\"");
    line(w, 0, "lame_duck_grace_period: \"1s\"");
    line(w, 0, "logtime: false");
    if config.debug {
        line(w, 0, "debug: true");
    }
    if config.trace {
        line(w, 0, "trace: true");
        line(w, 0, "max_traced_msg_len: 1024");
    }
    match system_credentials(config) {
        None => authorization(w, 0, runtime.credentials),
        Some(system) => {
            line(w, 0, &format!("authorization {{ users: [{}], timeout: 2 }}", user(runtime.credentials)));
            line(w, 0, "# who may ask about members, and remove one");
            line(w, 0, &format!("accounts {{ $SYS {{ users: [{}] }} }}", user(&system)));
        }
    }
    if config.jetstream {
        line(w, 0, "jetstream {");
        line(w, 1, &format!("store_dir: {}", quote(&runtime.store_dir.to_string_lossy())));
        // Unset, the server takes three quarters of what is free at its start, which shrinks from restart to restart.
        line(w, 1, &format!("max_file_store: {}", runtime.max_store));
        match config.sync {
            None => {}
            Some(SyncMode::Always) => line(w, 1, "sync_interval: always"),
            Some(SyncMode::Every(interval)) => {
                line(w, 1, &format!("sync_interval: \"{}s\"", interval.as_secs().max(1)))
            }
        }
        line(w, 0, "}");
    }
    if let Some(cluster) = &config.cluster {
        line(w, 0, "cluster {");
        line(w, 1, &format!("name: {}", quote(&cluster.name)));
        listen(w, 1, &cluster.addr);
        let credentials = Credentials { user: USER.to_owned(), password: cluster.secret.derive("cluster") };
        authorization(w, 1, &credentials);
        line(w, 1, "# a frozen member would swallow reads until it is dropped");
        line(w, 1, "ping_interval: \"1s\"");
        line(w, 1, "ping_max: 2");
        if runtime.addr.is_loopback() {
            line(w, 1, "# clients cannot reach the other members' loopback addresses");
            line(w, 1, "no_advertise: true");
        }
        let routes: Vec<String> =
            cluster.routes.iter().map(|url| with_credentials(url.expose(), &credentials)).collect();
        line(w, 1, &format!("routes: {}", list(&routes)));
        line(w, 0, "}");
    }
    if let Some(gateway) = &config.gateway {
        line(w, 0, "gateway {");
        line(w, 1, &format!("name: {}", quote(&gateway.name)));
        listen(w, 1, &gateway.addr);
        if let Some(advertise) = &gateway.advertise {
            line(w, 1, &format!("advertise: {}", quote(advertise)));
        }
        let credentials = Credentials { user: USER.to_owned(), password: gateway.secret.derive("gateway") };
        authorization(w, 1, &credentials);
        line(w, 1, "gateways: [");
        for remote in &gateway.remotes {
            let urls: Vec<String> =
                remote.urls.iter().map(|url| with_credentials(url.expose(), &credentials)).collect();
            line(w, 2, &format!("{{ name: {}, urls: {} }}", quote(&remote.name), list(&urls)));
        }
        line(w, 1, "]");
        line(w, 0, "}");
    }
    out
}

/// The password of clients: given, shared by the cluster, or new.
pub(super) fn client_credentials(config: &EmbeddedConfig) -> Result<Credentials, getrandom::Error> {
    if let Some(credentials) = &config.credentials {
        return Ok(credentials.clone());
    }
    Ok(match &config.cluster {
        Some(cluster) => Credentials::of_cluster(&cluster.secret),
        None => Credentials { user: USER.to_owned(), password: Secret::random()? },
    })
}

/// User and password of the system account; `None` for a server that is alone.
pub(super) fn system_credentials(config: &EmbeddedConfig) -> Option<Credentials> {
    config.cluster.as_ref().map(|cluster| cluster_system_credentials(&cluster.secret))
}

/// The same on all members that share this secret.
pub fn cluster_system_credentials(secret: &Secret) -> Credentials {
    Credentials { user: SYSTEM_USER.to_owned(), password: secret.derive("system") }
}

impl Credentials {
    /// What clients of every member of a cluster with this secret present.
    pub fn of_cluster(secret: &Secret) -> Self {
        Self { user: USER.to_owned(), password: secret.derive("client") }
    }
}

fn line(out: &mut String, depth: usize, text: &str) {
    writeln!(out, "{:indent$}{text}", "", indent = depth * 2).expect("writing to a string cannot fail");
}

fn listen(out: &mut String, depth: usize, addr: &ListenAddr) {
    line(out, depth, &format!("host: {}", quote(&addr.host)));
    line(out, depth, &format!("port: {}", addr.port.map_or(-1, i32::from)));
}

fn authorization(out: &mut String, depth: usize, credentials: &Credentials) {
    let (user, password) = (quote(&credentials.user), quote(credentials.password.expose()));
    line(out, depth, &format!("authorization {{ user: {user}, password: {password}, timeout: 2 }}"));
}

fn user(credentials: &Credentials) -> String {
    format!("{{ user: {}, password: {} }}", quote(&credentials.user), quote(credentials.password.expose()))
}

fn list(items: &[String]) -> String {
    format!("[{}]", items.iter().map(|item| quote(item)).collect::<Vec<_>>().join(", "))
}

/// Puts user and password into a URL that has none.
fn with_credentials(url: &str, credentials: &Credentials) -> String {
    match url.split_once("://") {
        _ if url.contains('@') => url.to_owned(),
        Some((scheme, rest)) => format!("{scheme}://{}:{}@{rest}", credentials.user, credentials.password.expose()),
        None => format!("nats://{}:{}@{url}", credentials.user, credentials.password.expose()),
    }
}

/// A string of the configuration language. Always quoted: bare words may be taken for numbers or variables.
fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
