//! Integration tests: a real server process, real sockets, a real nats-server.
//!
//! * `contract`: what every broker must do, run on memory, embedded NATS and external NATS
//! * `rulings`: the hard cases, one test per ruling, named after it
//! * `wire`: handshake, frames, pings, limits and close codes; no broker involved
//! * `publishing`: the HTTP entrance
//! * `policies`: history policies, and the subcommands about them
//! * `cluster`: two nodes on one nats-server
//! * `embedded_cluster`: nodes whose embedded nats-servers form a cluster
//! * `embedded_store`: what can happen to the store of an embedded nats-server
//! * `gateways`: two clusters joined
//! * `outages`: the store away, frozen, full, replaced
//! * `application`: with the user's application, over gRPC and HTTP
//! * `application_metrics`: what the metrics page says of it
//! * `bad_input`: whatever comes, the server goes on
//! * `pressure`: bursts, floods, clients that do not read, memory

#[macro_use]
mod harness;

mod application;
mod application_metrics;
mod bad_input;
mod cluster;
mod contract;
mod embedded_cluster;
mod embedded_store;
mod gateways;
mod outages;
mod policies;
mod pressure;
mod publishing;
mod rulings;
mod wire;
