//! Who may connect and who may subscribe, as far as that is decided without the application.
//!
//! * [`connect`] answers a new connection with its identifiers or a refusal.
//! * [`access`] says which subscriptions are streams of our own and whether they are allowed.
//! * [`jwt`] verifies the tokens that clients bring, and finds them in a request.
//! * [`streams`] signs and verifies stream names; [`keys`] derives bearer keys; [`secret`] keeps secrets out of logs.

pub mod access;
pub mod connect;
pub mod jwt;
pub mod keys;
pub mod streams;

pub use access::{Access, Resolution, StreamsConfig};
pub use connect::{Authenticator, Identity, Refused};
pub use streams::Secrets;
