//! Another build of Carrick, for rolling upgrades.

use crate::deployment;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The build that `CARRICK_FAULTS_OLD` names, else a copy of the program under test that says another version.
pub fn path() -> PathBuf {
    static COPY: OnceLock<PathBuf> = OnceLock::new();
    match std::env::var_os("CARRICK_FAULTS_OLD") {
        Some(path) => PathBuf::from(path),
        None => COPY.get_or_init(patched).clone(),
    }
}

fn patched() -> PathBuf {
    let (version, other) = (env!("CARGO_PKG_VERSION").as_bytes(), older(env!("CARGO_PKG_VERSION")));
    let mut program = std::fs::read(deployment::program()).expect("the program under test can be read");
    let mut at = 0;
    while let Some(found) = program[at..].windows(version.len()).position(|text| text == version) {
        at += found;
        program[at..at + version.len()].copy_from_slice(other.as_bytes());
    }
    // One file for all runs; another run may be using the one that is there.
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("carrick-{other}"));
    let fresh = path.with_extension(std::process::id().to_string());
    std::fs::write(&fresh, program).expect("a program can be written");
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&fresh, permissions).expect("it can be made executable");
    std::fs::rename(&fresh, &path).expect("a file can be renamed");
    path
}

/// Another version of the same length: its last digit changed.
fn older(version: &str) -> String {
    let (rest, last) = version.split_at(version.len() - 1);
    format!("{rest}{}", if last == "9" { "8" } else { "9" })
}

/// What a process runs: version and size in bytes.
pub fn identity(pid: u32) -> (String, u64) {
    let program = format!("/proc/{pid}/exe");
    let size = std::fs::metadata(&program).map_or(0, |metadata| metadata.len());
    let output = Command::new(&program).arg("--version").output();
    let said = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    (said.unwrap_or_else(|error| error.to_string()), size)
}
