pub mod listener;
pub mod origin;
pub mod socket;
pub mod tls;
