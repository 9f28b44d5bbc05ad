//! For tests of what is safe to use of a store: whose a file is, who may use it, and what is said where it is refused.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

/// A user that no test runs as. Error texts name it.
pub const STRANGER: u32 = 12_345;

/// The mode bits of what has this name, be it a link.
pub fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

pub fn set(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Giving files away takes root, as in CI; elsewhere a test has nothing to try.
pub fn given_away(path: &Path) -> bool {
    chown(path, Some(STRANGER), None).is_ok()
}

/// What the operator is told: the error must be one that refuses, not one of something that failed.
pub fn refusal<T, E: std::error::Error>(result: Result<T, E>, refuses: impl Fn(&E) -> bool) -> String {
    match result {
        Err(error) if refuses(&error) => error.to_string(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("not refused"),
    }
}
