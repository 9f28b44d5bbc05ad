//! Processes as Linux shows them under `/proc`, and signals to those that we started.

use rustix::process::{Pid, Signal};
use std::time::{Duration, Instant};

/// Processes whose parent is `parent`, zombies left out.
pub fn children(parent: u32) -> Vec<u32> {
    pids().filter(|pid| stat(*pid).is_some_and(|(state, ppid)| ppid == parent && state != 'Z')).collect()
}

/// The process exists and is not a zombie.
pub fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != 'Z')
}

/// Its arguments, separated by blanks; empty if it is gone.
pub fn command_line(pid: u32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// Sends a signal to a process of ours.
pub fn signal(pid: u32, signal: Signal) -> Result<(), String> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| format!("{pid} is no process id"))?;
    rustix::process::kill_process(raw, signal).map_err(|error| format!("cannot signal {pid}: {error}"))
}

/// Asks again until there is an answer, or an error that names what was waited for.
pub fn eventually<T>(patience: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> Result<T, String> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ask() {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            return Err(format!("{what}: not within {patience:?}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// State letter and parent.
pub fn stat(pid: u32) -> Option<(char, u32)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may hold blanks and brackets.
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}
