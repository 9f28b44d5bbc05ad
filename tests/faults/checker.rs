//! `carrick verify` as a process, with its report.

use crate::deployment::Deployment;
use crate::harness::{BROADCAST_KEY, PATIENCE};
use crate::proc::eventually;
use serde_json::Value;
use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// A run under way. Killed when dropped.
pub struct Checker {
    child: Child,
    folder: TempDir,
}

/// How it ended.
#[derive(Debug)]
pub struct Checked {
    pub status: Option<i32>,
    /// `Null` if there is none.
    pub report: Value,
    pub errors: String,
}

impl Checked {
    pub fn count(&self, name: &str) -> u64 {
        self.report[name].as_u64().unwrap_or(0)
    }
}

impl Checker {
    /// Starts it against all nodes of a deployment. `spare_first`: nobody publishes through the first node, if there is
    /// another.
    pub fn start(deployment: &Deployment, spare_first: bool, arguments: &[String]) -> Self {
        // What a deployment is not found to have is not checked: here that is a failure.
        let mut all = vec!["--public-streams".to_owned(), format!("--key={BROADCAST_KEY}"), "--require=all".to_owned()];
        let spare = spare_first && deployment.nodes().len() > 1;
        for (number, node) in deployment.nodes().iter().enumerate() {
            all.push(format!("--url=ws://{}/cable", node.address()));
            if number > 0 || !spare {
                all.push(format!("--publish-url=http://{}/_broadcast", node.broadcast_address()));
            }
        }
        all.extend_from_slice(arguments);
        Self::with(&all)
    }

    pub fn with(arguments: &[String]) -> Self {
        let folder = tempfile::Builder::new().prefix("verify-").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
        let folder = folder.expect("a folder can be created");
        let file = |name: &str| File::create(folder.path().join(name)).expect("a file can be created");
        // An old server is checked by a new checker.
        let checker = std::env::var_os("CARRICK_CHECKER").map_or_else(crate::deployment::program, Into::into);
        let child = Command::new(checker)
            .args(["verify", "--json"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file("report"))
            .stderr(file("errors"))
            .spawn()
            .expect("carrick can be started");
        Self { child, folder }
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
    }

    /// Waits until all clients are subscribed and messages are published.
    pub fn wait_publishing(&mut self) {
        let begun = eventually(PATIENCE * 4, "the checker's publications", || {
            let ended = self.child.try_wait().expect("a child can be waited for");
            assert!(ended.is_none(), "the checker ended early: {ended:?}\n{}", self.read("errors"));
            self.read("errors").contains("publishing for").then_some(())
        });
        begun.unwrap_or_else(|error| panic!("{error}\n{}", self.read("errors")));
    }

    /// Ends publishing; the last messages are waited for.
    pub fn end_publishing(&self) {
        crate::harness::process::signal(self.child.id(), "INT");
    }

    /// Waits for its end, at most that long.
    pub fn wait(mut self, patience: Duration) -> Checked {
        let child = &mut self.child;
        let status = eventually(patience, "the checker's end", || child.try_wait().ok().flatten());
        let status = status.unwrap_or_else(|error| panic!("{error}\n{}", self.read("errors")));
        let report = serde_json::from_str(&self.read("report")).unwrap_or(Value::Null);
        Checked { status: status.code(), report, errors: self.read("errors") }
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
