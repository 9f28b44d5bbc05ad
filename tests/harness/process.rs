//! A child process that writes to a log file, can be signalled, and never outlives the test run.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

pub struct Process {
    child: Child,
    /// Kills the child and removes its folder when this test process ends in whatever way: it waits for the end of a
    /// pipe that we hold.
    leash: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; both its outputs are appended to `log`, a file in a folder of the process's own.
    pub fn spawn(mut command: Command, log: &Path) -> Self {
        let output = File::options().create(true).append(true).open(log).expect("the log file can be created");
        let errors = output.try_clone().expect("a file handle can be cloned");
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let leash = Command::new("sh")
            .args(["-c", "read -r _; kill -9 \"$1\" 2>/dev/null; rm -rf \"$2\"", "leash", &child.id().to_string()])
            .arg(log.parent().expect("a log file lies in its process's folder"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh can be started");
        Self { child, leash, log: log.to_owned() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name (`TERM`, `STOP`, `CONT`).
    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// Every thread of it is stopped (by `STOP`); a signal takes a moment to reach them.
    pub fn is_stopped(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("/proc can be read");
        let mut states = threads.map(|thread| fs::read_to_string(thread.expect("listed").path().join("stat")));
        states.all(|stat| stat.is_ok_and(|stat| stat.contains(") T ")))
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        // It may have ended by itself already, which is what is wanted.
        let _ = self.child.kill();
        self.child.wait().expect("a child can be waited for");
    }

    /// `None` while it runs.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Waits for its end; panics if it takes longer than `limit`.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.exited() {
                return status;
            }
            assert!(Instant::now() < deadline, "process {} still runs after {limit:?}\n{}", self.pid(), self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// All that it has written.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The end of what it has written, for the report of a failed test.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The leash first: it must not kill a process number that somebody else has got meanwhile.
        let _ = self.leash.kill();
        let _ = self.leash.wait();
        self.kill();
    }
}

/// Sends a signal by name to a process of ours.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
    assert!(status.is_ok_and(|status| status.success()), "cannot send {name} to process {pid}");
}
