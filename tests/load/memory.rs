//! Resident memory of the server and of its nats-server.

use crate::target::Target;

#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Bytes; `None` where the process is not known.
    pub carrick: Option<u64>,
    pub nats: Option<u64>,
}

impl Memory {
    pub fn of(target: &Target) -> Self {
        Self { carrick: target.pid().and_then(resident), nats: target.nats_pid().and_then(resident) }
    }
}

fn resident(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}
