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
//! * `openings`: thousands of streams that are asked for while the store does not answer
//! * `outages`: the store away, frozen, full, replaced
//! * `silent_path`: packets to NATS vanish, and the path heals
//! * `application`: with the user's application, over gRPC and HTTP
//! * `application_metrics`: what the metrics page says of it
//! * `edge`: what clients, publishers and web pages can do from outside, and where that ends
//! * `bad_input`: whatever comes, the server goes on
//! * `secrets`: what must not stand in a log

#[macro_use]
mod harness;

mod application;
mod application_metrics;
mod bad_input;
mod cluster;
mod contract;
mod edge;
mod embedded_cluster;
mod embedded_store;
mod gateways;
mod openings;
mod outages;
mod policies;
mod publishing;
mod rulings;
mod secrets;
mod silent_path;
mod wire;
