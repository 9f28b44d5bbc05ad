//! Backend edge: how applications publish.
//!
//! [`payload`] is the pure part, what a published text means; [`http`] is the way in by HTTP, with [`cors`] and
//! [`answer`] for its headers and bodies, and [`budget`] for what all publications may take.

mod answer;
mod budget;
mod cors;
pub mod http;
pub mod pages;
pub mod payload;

pub use http::{HttpBroadcast, HttpBroadcastConfig};
