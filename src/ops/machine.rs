//! What the machine, or the container, leaves this process.

use std::path::Path;

/// What a stream takes while it is open and nothing is published: about 8 KiB with its one follower, and as much for the
/// store and the allocator.
const STREAM: u64 = 16 << 10;

/// Room for the subscriptions of a few clients is always there.
const LEAST: usize = 16 << 20;

/// Where nobody says how much memory there is.
const UNKNOWN: u64 = 4 << 30;

/// Streams for which half of the memory has room.
pub fn streams(memory: Option<u64>) -> usize {
    usize::try_from(memory.unwrap_or(UNKNOWN) / 2 / STREAM).unwrap_or(usize::MAX).max(1_000)
}

/// Bytes that subscriptions may hold: a quarter of the memory. Half is for streams, which they follow.
pub fn subscriptions(memory: Option<u64>) -> usize {
    usize::try_from(memory.unwrap_or(UNKNOWN) / 4).unwrap_or(usize::MAX).max(LEAST)
}

/// Bytes of memory that the process may use: the machine's, or less if its control group has a limit.
pub fn memory() -> Option<u64> {
    let total = machine_memory(&std::fs::read_to_string("/proc/meminfo").ok()?)?;
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(group_limits(&groups, Path::new("/sys/fs/cgroup")).fold(total, u64::min))
}

fn machine_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1 << 10)
}

/// Limits of the process's control group and of those above it, as far as they can be seen from here. `groups`: what
/// `/proc/self/cgroup` says, of version 2 (`0::/path`) or 1 (`5:memory:/path`).
fn group_limits<'a>(groups: &'a str, root: &'a Path) -> impl Iterator<Item = u64> + 'a {
    let paths = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let (folder, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            list if list.split(',').any(|one| one == "memory") => (root.join("memory"), "memory.limit_in_bytes"),
            _ => return None,
        };
        Some((folder, Path::new(path.trim_start_matches('/')).to_owned(), file))
    });
    paths.flat_map(|(folder, path, file)| {
        // In a container the path may be that of the host, where the folder itself is the group.
        let limits: Vec<u64> = path
            .ancestors()
            .filter_map(|group| std::fs::read_to_string(folder.join(group).join(file)).ok())
            // "max": no limit.
            .filter_map(|text| text.trim().parse().ok())
            .collect();
        limits
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_memory_is_for_streams() {
        assert_eq!(streams(Some(8 << 30)), 262_144);
        assert_eq!(streams(Some(64 << 20)), 2_048);
        assert_eq!(streams(Some(0)), 1_000, "some always");
        assert_eq!(streams(None), 131_072);
    }

    #[test]
    fn a_quarter_of_the_memory_is_for_subscriptions() {
        assert_eq!(subscriptions(Some(8 << 30)), 2 << 30);
        assert_eq!(subscriptions(Some(0)), 16 << 20, "some always");
        assert_eq!(subscriptions(None), 1 << 30);
    }

    #[test]
    fn the_machines_memory_is_read() {
        assert_eq!(machine_memory("MemTotal:       24598024 kB\nMemFree: 1 kB\n"), Some(24_598_024 << 10));
        assert_eq!(machine_memory("MemFree: 1 kB\n"), None);
        if cfg!(target_os = "linux") {
            assert!(memory().is_some_and(|bytes| bytes > 1 << 20));
        }
    }

    #[test]
    fn the_smallest_limit_of_the_groups_above_counts() {
        let root = tempfile::tempdir().unwrap();
        let group = root.path().join("system.slice/carrick.service");
        std::fs::create_dir_all(&group).unwrap();
        std::fs::write(group.join("memory.max"), "max\n").unwrap();
        std::fs::write(root.path().join("system.slice/memory.max"), "1073741824\n").unwrap();
        let old = root.path().join("memory/docker/1");
        std::fs::create_dir_all(&old).unwrap();
        std::fs::write(old.join("memory.limit_in_bytes"), "536870912\n").unwrap();
        let limits = |groups: &str| group_limits(groups, root.path()).collect::<Vec<_>>();
        assert_eq!(limits("0::/system.slice/carrick.service\n"), [1 << 30]);
        assert_eq!(limits("7:cpu,cpuacct:/\n5:memory:/docker/1\n"), [512 << 20]);
        assert_eq!(limits("0::/of/the/host\n"), [0; 0]);
    }
}
