//! Flags, environment, file and presets become one typed [`Config`].
//!
//! `options` defines every option once: flag, key, default, kind and help text. From it come the command line
//! (`command`), the environment, the file (`file`), `--print-config` (`print`), the documentation (`docs`) and the
//! structs themselves. `load` reads the sources by precedence; what was given is then turned into what it means by
//! `presets` and `resolve`. Values at fault are refused here, before a socket is bound.

mod application;
mod command;
mod deprecated;
#[cfg(test)]
mod docs;
mod endpoint;
mod file;
mod history;
mod kinds;
mod load;
mod network;
mod options;
mod presets;
mod print;
mod resolve;
mod row;
#[cfg(test)]
mod tests;
mod values;

pub use crate::secret::Secret;
pub use command::{command, double_dashes};
pub use endpoint::{Credentials, Endpoint, EndpointPort, Gateway};
pub use history::{HistoryPolicies, HistoryPolicy, HistoryStorage};
pub use kinds::parse_time;
pub use load::{ConfigError, Fault, Invocation, Origin, Surroundings};
pub use network::Network;
pub use options::{
    App, Broker, Config, Disconnector, EmbeddedNats, HttpBroadcast, Jwt, Logging, Nats, NatsBroadcast, NatsPubsub, Rpc,
    Server, Streams, Ws,
};
pub use values::{
    BroadcastAdapter, BroadcastListener, BrokerKind, DisconnectMode, LogFormat, LogLevel, Preset, PubsubKind, RpcKind,
    ShutdownMode, SyncPolicy, TimePrecision,
};

use std::path::{Path, PathBuf};

/// Carrick's version, as `--version` prints it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Where the settings came from, for the start lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// The file that was read.
    pub file: Option<PathBuf>,
    /// Presets that were applied.
    pub presets: Vec<Preset>,
    /// What the operator should know: deprecated names, settings without effect.
    pub warnings: Vec<String>,
}

impl Jwt {
    /// There is something to verify tokens with.
    pub fn is_on(&self) -> bool {
        self.secret.is_some() || self.key_file.is_some() || self.jwks_file.is_some()
    }
}

impl Server {
    /// Certificate and key; `None`: no TLS.
    pub fn ssl(&self) -> Option<(&Path, &Path)> {
        self.ssl_cert_path.as_deref().zip(self.ssl_key_path.as_deref())
    }
}
