//! The wire, pure: names, positions, commands in, replies out, close codes. No I/O, no clock.

pub mod message;
pub mod names;

pub use message::{Message, MessageId, Meta, Payload, Publication};
pub use names::{Epoch, Position, StreamName};
