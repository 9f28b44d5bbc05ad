//! What knows NATS the product: client connections.

pub mod connect;
