//! What knows NATS the product: client connections and the embedded server.

pub mod connect;
#[cfg(unix)]
pub mod embedded;
pub mod mark;
pub mod private;
pub mod socket;
#[cfg(test)]
mod test_files;
