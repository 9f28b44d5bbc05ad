//! Network namespaces: a test's own, and a second one behind a cable.

use super::patience::eventually_blocking;
use super::process::Process;
use std::path::Path;
use std::process::{Command, Output};

/// False where the system does not let this user make network namespaces; then it says so, and in CI it fails.
pub fn possible() -> bool {
    let tried = in_a_new_one().args(["ip", "link", "set", "lo", "up"]).output();
    let why = match tried {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    assert!(std::env::var_os("CI").is_none(), "no network namespaces, and CI must have them: {why}");
    eprintln!("NOT RUN, no network namespaces here (unshare of util-linux and ip of iproute2 are needed): {why}");
    false
}

/// A program in a network namespace of its own; its name and arguments follow.
pub fn in_a_new_one() -> Command {
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--net", "--"]);
    command
}

/// A process that holds another namespace than this program's.
pub fn second(log: &Path) -> Process {
    let mut command = Command::new("unshare");
    command.args(["--net", "--", "sleep", "infinity"]);
    let there = Process::spawn(command, log);
    let namespace = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/net")).map_err(|error| error.to_string());
    let apart = || {
        let (own, other) = (namespace("self")?, namespace(&there.pid().to_string())?);
        (own != other).then_some(()).ok_or_else(|| "no namespace yet".to_owned())
    };
    eventually_blocking(apart).expect("a second namespace");
    there
}

/// Runs a command that must succeed.
pub fn done(mut command: impl std::borrow::BorrowMut<Command>) {
    let command = command.borrow_mut();
    let Output { status, stderr, .. } = command.output().expect("ip and nsenter can be run");
    assert!(status.success(), "{command:?}: {}", String::from_utf8_lossy(&stderr));
}
