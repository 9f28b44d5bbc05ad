//! A small Action Cable client: what `carrick tail`, `carrick publish`, the load program and the kill tests speak to a
//! server with. Not a general client library: it knows the JSON encodings, and it keeps the state that the stock
//! JavaScript client keeps, no more.

/// A checker of delivery: publish, drop, return, compare.
pub mod check;
/// Commands, as a client writes them.
pub mod command;
/// One WebSocket, from the handshake to its end.
pub mod connection;
/// Frames, as a server writes them.
pub mod frame;
/// Publishing over HTTP, with retries that are safe.
pub mod publisher;
/// A stock client that reconnects by itself.
pub mod resumable;
/// Keys, signed stream names and the identifiers that carry them.
pub mod signed;
/// The stock JavaScript client's state and decisions, without I/O.
pub mod stock;
/// TCP and TLS below a connection.
mod wire;

pub use command::{HistoryRequest, Since};
pub use connection::{Connection, Received};
pub use frame::{Data, Frame, StreamPosition};
pub use publisher::{Outgoing, Published, Publisher};
pub use resumable::{Resumable, Update};
pub use stock::{StockClient, StockEvent};
pub use wire::{Trust, TrustError};

/// Subprotocol of clients that resume.
pub const EXT_JSON: &str = "actioncable-v1-ext-json";
/// Subprotocol of Rails' own client.
pub const BASE_JSON: &str = "actioncable-v1-json";

/// Unix time in whole seconds by this machine's clock.
pub fn now_secs() -> u64 {
    use std::time::{SystemTime, UNIX_EPOCH};
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
