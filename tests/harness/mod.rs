//! What the tests stand on: real Carrick and nats-server processes, a raw WebSocket client, a small HTTP publisher.
//!
//! Reading order: [`backend`] (which servers there are), [`carrick`] (one server), [`client`] (one connection),
//! [`frames`] (what goes over it), [`application`] (the user's, behind a server).

#[macro_use]
pub mod application;
#[macro_use]
pub mod backend;
pub mod carrick;
pub mod client;
pub mod frames;
pub mod http;
pub mod monitor;
pub mod namespaces;
pub mod nats;
pub mod patience;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod resident;
pub mod stock;

pub use application::{Application, Call, Fault, Method, Reply, Wire};
pub use backend::{Backend, SharedServer};
pub use carrick::Server;
pub use client::{Client, Delivery, Position};
pub use frames::*;
pub use nats::NatsServer;
pub use patience::{PATIENCE, SILENCE, eventually, let_pass, unix_now};
pub use ports::free_port;
