//! Resident memory of a process in bytes, as the kernel counts it; `None` where it has ended, or the system does not tell.

pub fn now(pid: u32) -> Option<u64> {
    field(pid, "VmRSS:")
}

/// The most that it has had, since it began or was last made to forget it.
pub fn peak(pid: u32) -> Option<u64> {
    field(pid, "VmHWM:")
}

fn field(pid: u32, name: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}
