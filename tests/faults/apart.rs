//! A network namespace for a test: the test runs once more there, in a process of its own, with a loopback interface that
//! nobody else uses. Making one takes root, or a system that lets users have them.

use crate::harness::nats;
use std::process::{Command, Stdio};

/// Set in the process that runs in the namespace.
const APART: &str = "CARRICK_FAULTS_APART";

pub enum Place {
    /// In a namespace of our own: go on.
    Apart,
    /// The test has run in one, and passed: there is nothing left to do.
    Done,
    /// There can be none here, and CI does not ask for it. The reason has been told.
    Nowhere,
}

/// This process has a network of its own.
pub fn is_apart() -> bool {
    std::env::var_os(APART).is_some()
}

/// Why packets cannot be made to vanish here.
pub fn impossible() -> Option<String> {
    let tried =
        Command::new("unshare").args(flags()).args(["sh", "-c", "ip link set lo up && nft list ruleset"]).output();
    let why = match tried {
        Ok(output) if output.status.success() => return None,
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    Some(format!("no network namespace (unshare of util-linux, ip of iproute2 and nft are needed): {why}"))
}

fn flags() -> &'static [&'static str] {
    if rustix::process::geteuid().is_root() { &["--net"] } else { &["--user", "--map-root-user", "--net"] }
}

/// Runs the test of this name in a namespace of its own, unless this is it. `needed`: without one it proves nothing, so
/// that it says that it did not run, and fails in CI.
pub fn run(test: &str, needed: bool) -> Place {
    if is_apart() {
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.is_ok_and(|status| status.success()), "a loopback interface");
        return Place::Apart;
    }
    if let Some(why) = impossible() {
        assert!(!needed || std::env::var_os("CI").is_none(), "CI must be able to run this: {why}");
        eprintln!("{}{why}", if needed { "NOT RUN: " } else { "" });
        return Place::Nowhere;
    }
    let mut command = Command::new("unshare");
    command.args(flags()).arg("--").arg(std::env::current_exe().expect("this program has a path"));
    command.args(["--exact", test, "--include-ignored", "--nocapture"]).env(APART, "1").stdin(Stdio::null());
    // There is no network to fetch it by.
    command.env("CARRICK_TEST_NATS_SERVER", nats::binary());
    let mut child = command.spawn().expect("unshare can be started");
    // It ends with this process, in whatever way that ends.
    let leash = Command::new("sh")
        .args(["-c", "read -r _; kill -9 \"$1\" 2>/dev/null", "leash", &child.id().to_string()])
        .stdin(Stdio::piped())
        .spawn();
    let mut leash = leash.expect("sh can be started");
    let status = child.wait().expect("a child can be waited for");
    // It must not kill a process number that somebody else has got meanwhile.
    let _ = leash.kill();
    let _ = leash.wait();
    assert!(status.success(), "{test}, in a namespace of its own: {status}");
    Place::Done
}
