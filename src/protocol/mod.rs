//! The wire, pure: names, positions, commands in, replies out, close codes. No I/O, no clock.

pub mod close;
pub mod command;
pub mod encoding;
pub mod message;
pub mod names;
pub mod pattern;
pub mod reply;
pub mod sid;
pub mod subprotocol;

pub use close::Close;
pub use command::{Command, HistoryRequest};
pub use encoding::Encoding;
pub use message::{Message, MessageId, Meta, Payload, Publication};
pub use names::{Epoch, Position, StreamName, random_text};
pub use pattern::Pattern;
pub use sid::{ShownIdentifier, ShownWord, Sid};
pub use subprotocol::Subprotocol;
