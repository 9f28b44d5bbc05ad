//! Carrick: a real-time server for Action Cable and AnyCable clients whose streams are reliable and whose sessions are
//! resumable, on NATS JetStream.
//!
//! The tree in reading order (left may use right, never back):
//! `main → cli → app → {transport, ingest, ops} → node → {session, hub, auth} → broker → nats`, all of them on
//! `protocol`; `boottime`, `critical`, `log_limit`, `metrics` and `secret` are leaves that anyone may use.

/// Composition root: configuration → parts → listeners → drain.
pub mod app;
/// Subcommands, one file each.
pub mod cli;
/// A small Action Cable client, shared by `carrick tail`, the load program and the tests.
pub mod client;
/// Flags, environment, file, presets: one definition per option.
pub mod config;

/// Backend edge: how applications publish.
pub mod ingest;
/// What an operator sees: health, logging, shutdown.
pub mod ops;
/// Client edge: listeners and WebSocket.
pub mod transport;

/// Use cases, one file each: connect, command, publish, resume, disconnect.
pub mod node;

/// Who may connect and subscribe: signed and public streams.
pub mod auth;
/// All local clients: streams, cursors, fan-out, outboxes.
pub mod hub;
/// One client: a state machine without I/O.
pub mod session;

pub mod broker;
/// What knows NATS the product: client connections, the embedded server.
pub mod nats;
/// The application side: gRPC and HTTP.
pub mod rpc;

/// A clock that goes on while the machine is suspended.
pub mod boottime;
/// Tasks that the process cannot do without.
pub mod critical;
/// Log lines that somebody outside can cause at will.
pub mod log_limit;
/// Counters and gauges.
pub mod metrics;
pub mod protocol;
/// Text that is never shown.
pub mod secret;

#[cfg(test)]
mod layering;
#[cfg(test)]
#[path = "../tests/harness/ports.rs"]
mod test_ports;
