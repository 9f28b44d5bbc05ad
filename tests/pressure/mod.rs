//! What clients and publishers may do to a server at the most, and what it does then: nothing is lost that was promised,
//! nobody else notices, memory stays bounded.

mod bursts;
mod memory;
mod sessions;
mod streams;
mod whispers;

use crate::harness::carrick::Server;

/// Bytes of memory that the server's process has in use now.
fn resident(server: &Server) -> u64 {
    memory(server, "VmRSS:")
}

/// The most that it has had in use.
fn peak(server: &Server) -> u64 {
    memory(server, "VmHWM:")
}

fn memory(server: &Server, what: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix(what)).expect("every process has one");
    let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse().expect("a number of kB");
    kib * 1024
}
