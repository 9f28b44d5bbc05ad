//! File descriptors: how many there may be, how many there are, and how many clients may have.

use crate::metrics::{OPEN_FILES, OPEN_FILES_LIMIT};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What "no limit" is taken for; Linux does not allow more to a process unless it is told to.
const UNLIMITED: u64 = 1 << 20;

/// Descriptors that are not for clients: store, application, publishers, health, files.
const RESERVE: std::ops::RangeInclusive<u64> = 128..=1024;

/// Raises the limit of open files as far as it may be raised, and returns it.
pub fn raise_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(context = "node", %error, "the limit of open files cannot be raised");
        }
    }
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(UNLIMITED);
    OPEN_FILES_LIMIT.set(i64::try_from(limit).unwrap_or(i64::MAX));
    limit
}

/// How the descriptors are shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// Connections at a time.
    pub connections: usize,
    /// Further connections, for what is no client.
    pub reserve: usize,
}

/// Shares out a limit: an eighth is kept, at least 128 and at most 1,024, and never more than half; a quarter of what is
/// kept is for connections beyond.
pub fn shares(limit: u64) -> Shares {
    let kept = (limit / 8).clamp(*RESERVE.start(), *RESERVE.end()).min(limit / 2);
    let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    Shares { connections: size((limit - kept).max(1)), reserve: size((kept / 4).max(1)) }
}

/// Counts the open descriptors for the metrics page.
pub fn measure() {
    let folder = if cfg!(target_os = "linux") { "/proc/self/fd" } else { "/dev/fd" };
    // The listing itself is one of them.
    if let Ok(entries) = std::fs::read_dir(folder) {
        OPEN_FILES.set(i64::try_from(entries.count()).unwrap_or(i64::MAX) - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_all_but_a_reserve() {
        let shared = |limit| (shares(limit).connections, shares(limit).reserve);
        assert_eq!(shared(256), (128, 32));
        assert_eq!(shared(1_024), (896, 32));
        assert_eq!(shared(65_536), (64_512, 256));
        assert_eq!(shared(1 << 20), ((1 << 20) - 1_024, 256));
        assert_eq!(shared(2), (1, 1));
    }

    #[test]
    fn open_files_are_counted() {
        measure();
        assert!(OPEN_FILES.get() >= 3, "standard input, output and error at least");
    }
}
