//! Client edge: listeners, and the WebSocket side of a connection. Transports only adapt a source and a sink; what a
//! client means is decided by [`crate::session`] and carried out by [`crate::node`].

pub mod asked;
pub mod connections;
pub mod listener;
pub mod origin;
mod places;
pub mod proxies;
mod refusals;
mod serving;
pub mod socket;
pub mod tls;
mod unacknowledged;
mod unsent;
mod upgrade;
pub mod ws;
