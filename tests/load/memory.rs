//! Resident memory of the server and of its nats-server.

use crate::resident;
use crate::target::Target;

#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Bytes; `None` where the process is not known.
    pub carrick: Option<u64>,
    pub nats: Option<u64>,
}

impl Memory {
    pub fn of(target: &Target) -> Self {
        Self { carrick: target.pid().and_then(resident::now), nats: target.nats_pid().and_then(resident::now) }
    }
}

/// Watches for the most that the server holds at any time.
pub struct Peak {
    /// `None` where the system does not tell.
    pid: Option<u32>,
}

impl Peak {
    /// From now on.
    pub fn watch(target: &Target) -> Self {
        let forget = |pid: &u32| std::fs::write(format!("/proc/{pid}/clear_refs"), "5").is_ok();
        Self { pid: target.pid().filter(forget) }
    }

    /// Bytes.
    pub fn reached(&self) -> Option<u64> {
        resident::peak(self.pid?)
    }
}
