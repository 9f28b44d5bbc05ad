//! A disk that is slow: a file system in a file, behind a loop device. The device lets few writes through in a second, where
//! the system can limit them (control groups of version 1), and the file system stands still for a while.
//!
//! Only who waits for the disk notices the limit. The stores are therefore told to flush each message.

use crate::disk::{Disk, Kind, run};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const GROUPS: &str = "/sys/fs/cgroup/blkio";
const LIMIT: &str = "blkio.throttle.write_iops_device";
const SERVED: &str = "blkio.throttle.io_serviced";

pub struct Device {
    path: PathBuf,
    /// `7:0`.
    number: String,
    /// Processes in it are limited. `None`: the system cannot do that.
    group: Option<PathBuf>,
}

/// Why no disk can be slowed down here.
pub fn impossible() -> Option<String> {
    static WHY: OnceLock<Option<String>> = OnceLock::new();
    let tried = || {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).map_err(|error| error.to_string())?;
        Disk::mount(folder.path(), Kind::File).map(drop)
    };
    WHY.get_or_init(|| tried().err()).clone()
}

impl Device {
    /// Mounts an empty one at this folder.
    pub fn mount(path: &Path, size: &str) -> Result<Self, String> {
        // In memory: the machine's own disk is busy with other things.
        let folder = path.with_extension("image");
        fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        run(Command::new("mount").args(["-t", "tmpfs", "carrick-test"]).arg(&folder))?;
        let image = folder.join("image");
        let mounted = run(Command::new("truncate").args(["-s", size]).arg(&image))
            .and_then(|_| run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image)))
            .and_then(|_| run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(path)));
        // The device holds it.
        run(Command::new("umount").arg("-l").arg(&folder))?;
        fs::remove_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        mounted?;
        let source = run(Command::new("findmnt").args(["-n", "-o", "MAJ:MIN", "--target"]).arg(path))?;
        Ok(Self { path: path.to_owned(), number: source.trim().to_owned(), group: group() })
    }

    pub fn group(&self) -> Option<&Path> {
        self.group.as_deref()
    }

    /// Lets only so many writes of this process through in a second. `None`: not on this system.
    pub fn limit(&self, pid: u32, writes: u32) -> Result<Option<Limit<'_>>, String> {
        let Some(group) = &self.group else { return Ok(None) };
        write(&group.join("cgroup.procs"), &pid.to_string())?;
        let before = self.served(group);
        write(&group.join(LIMIT), &format!("{} {writes}", self.number))?;
        Ok(Some(Limit { device: self, group, before }))
    }

    /// Writes of the group that the device has let through.
    fn served(&self, group: &Path) -> u64 {
        let text = fs::read_to_string(group.join(SERVED)).unwrap_or_default();
        let start = format!("{} Write ", self.number);
        text.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok()).unwrap_or(0)
    }

    /// Lets the file system stand still for that long: every write waits.
    pub fn stand_still(&self, time: Duration) -> Result<Duration, String> {
        run(Command::new("fsfreeze").arg("-f").arg(&self.path))?;
        let begun = Instant::now();
        std::thread::sleep(time);
        run(Command::new("fsfreeze").arg("-u").arg(&self.path))?;
        Ok(begun.elapsed())
    }
}

/// While it lives.
pub struct Limit<'a> {
    device: &'a Device,
    group: &'a Path,
    before: u64,
}

impl Limit<'_> {
    /// Ends it. Answers with the writes that passed meanwhile.
    pub fn end(self) -> u64 {
        self.device.served(self.group) - self.before
    }
}

impl Drop for Limit<'_> {
    fn drop(&mut self) {
        // 0: none.
        if let Err(error) = write(&self.group.join(LIMIT), &format!("{} 0", self.device.number)) {
            eprintln!("the disk stays slow: {error}");
        }
    }
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

/// A group of our own, where the system lets us make one.
fn group() -> Option<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = Path::new(GROUPS).join(format!("carrick-test-{}-{number}", std::process::id()));
    fs::create_dir(&path).is_ok().then_some(())?;
    if !path.join(LIMIT).exists() {
        // Another file system than that of groups.
        let _ = fs::remove_dir(&path);
        return None;
    }
    Some(path)
}
