//! The wire without regard to any broker: handshake, pings, limits, close codes.

mod access;
mod close_codes;
mod handshake;
mod liveness;
mod without_broker;
