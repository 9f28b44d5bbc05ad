//! A small disk of its own for a store, where mounting is permitted. A file system in memory can be filled; one in a file
//! can be filled and slowed down, see [`crate::slow`].

use crate::slow::Device;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Room for a run's log and for the unpacked nats-server.
const SIZE: &str = "192m";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It can be filled.
    Memory,
    /// It can be slowed down, too.
    File,
}

pub struct Disk {
    path: PathBuf,
    device: Option<Device>,
    /// Unmounts it when this process ends in whatever way: it waits for the end of a pipe that we hold.
    leash: Child,
}

impl Disk {
    /// Mounts an empty one at this folder, which exists.
    ///
    /// # Errors
    /// Mounting is not permitted here.
    pub fn mount(path: &Path, kind: Kind) -> Result<Self, String> {
        // A store that everybody may write to is refused.
        let size = format!("size={SIZE},mode=0755");
        let device = match kind {
            Kind::Memory => {
                run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "carrick-test"]).arg(path))?;
                None
            }
            Kind::File => Some(Device::mount(path, SIZE)?),
        };
        let group = device.as_ref().and_then(Device::group);
        let undo = "read -r _; fsfreeze -u \"$1\"; umount -l \"$1\"; test -z \"$2\" && exit; \
                    while read -r pid; do echo \"$pid\" >\"${2%/*}/cgroup.procs\"; done <\"$2/cgroup.procs\"; rmdir \"$2\"";
        let leash = Command::new("sh")
            .args(["-c", undo, "leash"])
            .arg(path)
            .arg(group.unwrap_or(Path::new("")))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("sh cannot be started: {error}"))?;
        Ok(Self { path: path.to_owned(), device, leash })
    }

    /// What slows it down; only of a [`Kind::File`].
    pub fn device(&self) -> &Device {
        self.device.as_ref().expect("the variant has disks that can be slowed down")
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    /// Writes until nothing more goes in; answers with the bytes written.
    pub fn fill(&self) -> u64 {
        let mut file = File::create(self.ballast()).expect("a file can be created");
        let mut written = 0;
        for size in [1 << 20, 4 << 10, 1] {
            let block = vec![b'x'; size];
            while file.write_all(&block).is_ok() {
                written += size as u64;
            }
        }
        written
    }

    /// Bytes that fit in.
    pub fn room(&self) -> u64 {
        let disk = rustix::fs::statvfs(&self.path).expect("a mounted disk can be measured");
        disk.f_bavail.saturating_mul(disk.f_frsize)
    }

    pub fn make_room(&self) {
        std::fs::remove_file(self.ballast()).expect("it was written");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(self.leash.stdin.take());
        // Whoever cannot be waited for is gone.
        let _ = self.leash.wait();
    }
}

/// Runs what needs permissions.
pub fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?} cannot be run: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("a small disk needs the permission to mount one: {command:?}: {}", said.trim()))
}

/// Deletes everything in a folder; the folder itself may be a disk. Answers with the number of files.
pub fn empty(folder: &Path) -> Result<usize, String> {
    let deleted = files(folder);
    let fault = |error: std::io::Error| format!("{}: {error}", folder.display());
    for entry in std::fs::read_dir(folder).map_err(fault)? {
        let path = entry.map_err(fault)?.path();
        let gone = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        gone.map_err(fault)?;
    }
    Ok(deleted)
}

/// Number of files below a folder.
pub fn files(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { files(&entry.path()) } else { 1 }).sum()
}
