//! Integration tests: a real server process, real sockets, a real nats-server.
//!
//! * `contract`: what every broker must do, run on memory, embedded NATS and external NATS
//! * `rulings`: the hard cases, one test per ruling, named after it
//! * `wire`: handshake, frames, pings, limits and close codes; no broker involved
//! * `publishing`: the HTTP entrance
//! * `cluster`: two nodes on one nats-server
//! * `embedded_cluster`: nodes whose embedded nats-servers form a cluster
//! * `embedded_store`: what can happen to the store of an embedded nats-server
//! * `gateways`: two clusters joined
//! * `outages`: the store away, frozen, full, replaced
//! * `bad_input`: whatever comes, the server goes on

#[macro_use]
mod harness;

mod bad_input;
mod cluster;
mod contract;
mod embedded_cluster;
mod embedded_store;
mod gateways;
mod outages;
mod publishing;
mod rulings;
mod wire;
