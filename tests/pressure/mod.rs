//! What clients and publishers may do to a server at the most, and what it does then: nothing is lost that was promised,
//! nobody else notices, memory stays bounded.

mod answers;
mod bursts;
mod memory;
mod sessions;
mod slow_lines;
mod streams;
mod subscriptions;
mod whispers;
