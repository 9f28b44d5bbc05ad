//! What clients, publishers and web pages can do to a server from outside, and where that ends.

mod addresses;
mod files;
mod headers;
mod log;
mod memory;
mod pages;
mod panics;
