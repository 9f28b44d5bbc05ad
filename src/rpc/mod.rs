//! The application side: who may connect, what a channel's commands do, who has left. Two wire forms, gRPC and HTTP, with
//! the same meaning; both implement [`Application`].

mod calls;
mod capacity;
mod dial;
mod grpc;
mod http;
pub mod proto;
mod remote;
mod scrub;
mod start;
#[cfg(test)]
mod tests;
mod tls;
mod wire;

pub use start::{Concurrency, ConcurrencyRange, Implementation, RpcConfig, RpcStartError, TlsFiles, start};

use crate::protocol::Sid;
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::fmt;

/// State that the application keeps with us, per connection or per subscription.
pub type State = BTreeMap<String, String>;

/// What a call is about, besides its own fields. `Debug` shows names, and the URL without its query: values of headers and
/// parameters may be credentials, states whatever the application keeps with us.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Env {
    /// Absolute URL of the client's request, `http://` or `https://`.
    pub url: String,
    /// Proxied headers in lower case, and `REMOTE_ADDR`.
    pub headers: BTreeMap<String, String>,
    pub cstate: State,
    /// A command: the state of its subscription. A disconnect: per identifier the JSON text of its state.
    pub istate: State,
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |map: &BTreeMap<String, String>| map.keys().cloned().collect::<Vec<_>>();
        f.debug_struct("Env")
            .field("url", &self.url.split(['?', '#']).next())
            .field("headers", &names(&self.headers))
            .field("cstate", &names(&self.cstate))
            .field("istate", &names(&self.istate))
            .finish()
    }
}

/// Which client command a call carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandKind {
    Subscribe,
    Unsubscribe,
    Message,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandCall {
    pub kind: CommandKind,
    pub identifier: String,
    pub connection_identifiers: String,
    /// The client's data, untouched; empty but for `Message`.
    pub data: String,
    pub env: Env,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DisconnectCall {
    pub identifiers: String,
    pub subscriptions: Vec<String>,
    pub env: Env,
}

/// The application's word: done, or refused. An error of the application is an [`RpcError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    Failure,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected {
    pub outcome: Outcome,
    pub identifiers: String,
    /// Complete protocol messages, written verbatim, in order.
    pub transmissions: Vec<String>,
    /// Merged into the connection's state: an empty value deletes its key.
    pub cstate: State,
}

/// Presence that the application joins or leaves for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresenceChange {
    /// `join` or `leave`.
    pub kind: String,
    pub id: String,
    /// JSON text, or plain text.
    pub info: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandEffects {
    pub outcome: Outcome,
    /// Close the connection after everything else.
    pub disconnect: bool,
    /// Drop all streams of the identifier; `stopped_streams` is ignored then.
    pub stop_streams: bool,
    pub stopped_streams: Vec<String>,
    pub streams: Vec<String>,
    pub transmissions: Vec<String>,
    pub istate: State,
    pub cstate: State,
    pub presence: Option<PresenceChange>,
}

/// Why a call brought nothing. Whose fault it was decides how it is logged; what the client sees does not depend on it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RpcError {
    /// The application answered `ERROR`, or refused the call.
    #[error("the application failed: {0}")]
    Application(String),
    /// Nobody answered within the budget, retries included.
    #[error("the application cannot be reached: {0}")]
    Unreachable(String),
    /// The call was sent and got no answer; it is not tried again lest it is executed twice (`rpc_retry_sent=false`).
    #[error("the connection broke during the call, which the application may have executed: {0}")]
    Broken(String),
    #[error("no answer within the time limit")]
    Timeout,
    /// The answer makes no sense.
    #[error("unreadable answer of the application: {0}")]
    Garbage(String),
    /// The application does not know this method.
    #[error("the application does not implement {0}")]
    Unimplemented(&'static str),
}

/// The application. Calls share one limit of concurrency, with fair queueing; dropping a call's future cancels it.
#[async_trait]
pub trait Application: Send + Sync + 'static {
    async fn connect(&self, sid: &Sid, env: Env) -> Result<Connected, RpcError>;
    async fn command(&self, sid: &Sid, call: CommandCall) -> Result<CommandEffects, RpcError>;
    async fn disconnect(&self, sid: &Sid, call: DisconnectCall) -> Result<(), RpcError>;
    /// Tells of a resumed session (`--rpc_restore`): same state as a disconnect call.
    async fn restore(&self, sid: &Sid, call: DisconnectCall) -> Result<(), RpcError>;
}
