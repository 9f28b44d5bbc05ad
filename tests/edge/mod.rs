//! What clients, publishers and web pages can do to a server from outside, and where that ends.

mod addresses;
mod files;
mod headers;
mod memory;
mod pages;
mod panics;
