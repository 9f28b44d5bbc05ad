//! A real nats-server, supervised as a child process.
//!
//! * [`config`]: what is asked for; [`conf`]: the file that nats-server reads, a pure function of it.
//! * [`lock`]: one server per store. nats-server does not lock its store itself, and two on one store would both start.
//! * [`own`]: what is safe to use of a store directory; [`ancestors`]: and of the directories above it.
//! * [`binary`]: the server's executable, built in or named by the operator.
//! * [`spawn`]: starting a process that cannot outlive this one; [`output`]: its log lines; [`probe`]: its ports and
//!   whether JetStream answers.
//! * [`room`]: how many bytes the store may take; [`growth`]: what a server is told of that; [`full_disk`]: one that has met a
//!   full disk.
//! * [`members`]: who belongs to a cluster, and how one is removed; [`current`]: whether the copies of this one are up to date.
//! * [`server`]: the handle; [`supervisor`]: one process; [`restarts`]: one after another; [`ending`]: the end of one, and of
//!   all.
//!
//! Layout of a store directory: `carrick.lock`, `boot` (how the store was left, see [`crate::nats::mark`]), `witness` (the
//! broker's), `bin/` (the executable), `run/` (generated configuration and ports file, emptied at each start),
//! `jetstream/` (nats-server's own).

mod ancestors;
mod binary;
pub mod conf;
pub mod config;
mod current;
mod ending;
mod full_disk;
mod growth;
mod lock;
pub mod members;
mod output;
mod own;
mod probe;
mod restarts;
mod room;
mod server;
mod spawn;
#[cfg(test)]
#[cfg(feature = "embedded-nats")]
mod supervised_tests;
mod supervisor;
#[cfg(test)]
#[cfg(feature = "embedded-nats")]
mod tests;

pub use conf::cluster_system_credentials;
pub use config::{ClusterConfig, Credentials, EmbeddedConfig, GatewayConfig, ListenAddr, RemoteGateway, SyncMode};
pub use server::{EmbeddedServer, State, Status, reachable};

use std::path::PathBuf;
use std::process::ExitStatus;

/// Licence and notice of the nats-server that ships inside the binary.
pub const LICENSE: &str = concat!(include_str!("../../../nats/NOTICE"), "\n", include_str!("../../../nats/LICENSE"));

/// Version of the nats-server that is built in; `None` if this build has none.
pub const VERSION: Option<&str> = option_env!("CARRICK_NATS_VERSION");

/// Why the embedded server could not be started. After a start its troubles are log lines and [`Status`], not errors.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    #[error("embedded nats-server: {0}")]
    Config(String),
    #[error(
        "this build has no nats-server inside; name one with --enats_bin, or use a running one with --nats_servers \
         instead of --embed_nats"
    )]
    NotBuiltIn,
    #[error("store directory {path} of the embedded nats-server: {action} failed: {source}; {}", advice(.source))]
    Store { path: PathBuf, action: &'static str, source: std::io::Error },
    #[error("store directory {path} is in use{}; stop that process or choose another --enats_store_dir", held_by(.holders))]
    Locked { path: PathBuf, holders: String },
    #[error("{path} is not safe for the store of the embedded nats-server: {why}; {cure}")]
    Unsafe { path: PathBuf, why: String, cure: String },
    #[error("{path} cannot be run: {reason}")]
    Binary { path: PathBuf, reason: String },
    #[error("cannot listen on {addr} for the embedded nats-server: {source}; choose another {option}")]
    Listen { addr: String, option: &'static str, source: std::io::Error },
    #[error("cannot start nats-server: {0}")]
    Spawn(#[source] std::io::Error),
    #[error("nats-server ended while starting ({status}){}", said(.lines))]
    Died { status: ExitStatus, lines: Vec<String> },
    #[error("no listener of the embedded nats-server on {addr} within {seconds} s")]
    NotListening { addr: String, seconds: u64 },
}

impl EmbeddedError {
    /// For `map_err`: names the path and what was tried on it.
    fn store(path: impl Into<PathBuf>, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Store { path, action, source }
    }
}

impl EmbeddedError {
    /// It goes on as soon as there is room.
    fn is_out_of_space(&self) -> bool {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Self::Store { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }
}

fn advice(error: &std::io::Error) -> &'static str {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "the disk is full, make room",
        ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => {
            "point --enats_store_dir at a directory on a persistent disk that this user may write"
        }
        _ => "check --enats_store_dir",
    }
}

fn held_by(holders: &str) -> String {
    if holders.is_empty() { String::new() } else { format!(" by {holders}") }
}

fn said(lines: &[String]) -> String {
    if lines.is_empty() { String::new() } else { format!(": {}", lines.join("; ")) }
}

#[cfg(test)]
#[cfg(not(feature = "embedded-nats"))]
#[tokio::test]
async fn a_build_without_the_server_says_what_to_do() {
    let store = tempfile::tempdir().unwrap();
    let addr = "127.0.0.1:-1".parse().unwrap();
    let config = EmbeddedConfig { addr, store_dir: store.path().to_owned(), ..EmbeddedConfig::default() };
    let error = EmbeddedServer::start(config).await.unwrap_err().to_string();
    assert!(error.contains("--enats_bin") && error.contains("--nats_servers"), "{error}");
}
