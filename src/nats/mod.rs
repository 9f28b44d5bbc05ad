//! What knows NATS the product: client connections and the embedded server.

#[cfg(unix)]
pub mod embedded;
