//! Ending the process: signals, and phases that share one budget.
//!
//! The first SIGINT or SIGTERM starts the shutdown; a second one ends the process at once.

use crate::critical::critical;
use crate::log_limit;
use std::io;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

/// SIGINT and SIGTERM. From here on they do not end the process by themselves.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Starts to listen. Fails only where the system refuses a signal handler.
    pub fn new() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for the next signal and answers with its name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            Some(()) = self.interrupt.recv() => "SIGINT",
            Some(()) = self.terminate.recv() => "SIGTERM",
        }
    }

    /// From now on the next signal ends the process with exit code 0, whatever it is doing. The task lives as long as
    /// the process; abort it to undo.
    pub fn exit_on_next(mut self) -> tokio::task::JoinHandle<()> {
        tokio::spawn(critical("app.signals", async move {
            let name = self.next().await;
            tracing::info!(signal = name, "Immediate termination requested. Stopped");
            log_limit::tell_all();
            std::process::exit(0);
        }))
    }
}

/// The phases of a shutdown: one after another, all within one budget that runs from the signal.
///
/// A phase that overruns is cut off and named in the log; later ones still get a first step, so that what can be done at
/// once is done.
pub struct Phases {
    deadline: Instant,
    /// Kept for the phases that must not be starved by those before, see [`Phases::reserve`].
    reserved: Duration,
    overran: Vec<&'static str>,
}

impl Phases {
    pub fn new(budget: Duration) -> Self {
        Self { deadline: Instant::now() + budget, reserved: Duration::ZERO, overran: Vec::new() }
    }

    /// Keeps part of the budget from the phases that follow, until it is set again (to zero, for the last ones).
    pub fn reserve(&mut self, time: Duration) {
        self.reserved = time;
    }

    /// What the next phase may take.
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now()).saturating_sub(self.reserved)
    }

    /// Sleeps for the configured delay, at most for what remains: everything still works meanwhile.
    pub async fn delay(&self, delay: Duration) {
        tokio::time::sleep(delay.min(self.remaining())).await;
    }

    /// Runs a phase within the remaining budget. Nothing: it was cut off.
    pub async fn run<F: Future>(&mut self, name: &'static str, phase: F) -> Option<F::Output> {
        self.run_within(name, Duration::MAX, phase).await
    }

    /// Runs a phase within `limit` and the remaining budget.
    pub async fn run_within<F: Future>(&mut self, name: &'static str, limit: Duration, phase: F) -> Option<F::Output> {
        let started = Instant::now();
        let limit = limit.min(self.remaining());
        match tokio::time::timeout(limit, phase).await {
            Ok(output) => {
                tracing::debug!(phase = name, took_ms = millis(started), "shutdown phase done");
                Some(output)
            }
            Err(_) => {
                tracing::warn!(
                    phase = name,
                    took_ms = millis(started),
                    "shutdown phase overran its time and was cut off"
                );
                self.overran.push(name);
                None
            }
        }
    }

    /// Names of the phases that were cut off.
    pub fn overran(&self) -> &[&'static str] {
        &self.overran
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, ready};

    const S: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn phases_share_one_budget() {
        let mut phases = Phases::new(10 * S);
        phases.delay(2 * S).await;
        assert_eq!(phases.remaining(), 8 * S);
        assert_eq!(phases.run("quick", ready(7)).await, Some(7));
        assert_eq!(phases.run_within("limited", 3 * S, pending::<()>()).await, None);
        assert_eq!(phases.remaining(), 5 * S);
        assert_eq!(phases.run("endless", pending::<()>()).await, None);
        assert_eq!(phases.remaining(), Duration::ZERO);
        assert_eq!(phases.run("what can be done at once", ready(8)).await, Some(8));
        assert_eq!(phases.overran(), ["limited", "endless"]);
    }

    #[tokio::test(start_paused = true)]
    async fn last_phases_are_not_starved() {
        let mut phases = Phases::new(10 * S);
        phases.reserve(4 * S);
        phases.delay(60 * S).await;
        assert_eq!(phases.run("endless", pending::<()>()).await, None);
        phases.reserve(Duration::ZERO);
        assert_eq!(phases.remaining(), 4 * S);
        assert_eq!(phases.run("last", tokio::time::sleep(3 * S)).await, Some(()));
    }

    /// Runs in a process of its own, as signals concern the whole one.
    #[test]
    fn second_signal_ends_the_process() {
        const CHILD: &str = "CARRICK_TEST_SIGNALS";
        if std::env::var_os(CHILD).is_some() {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            runtime.block_on(async {
                let mut signals = Signals::new().unwrap();
                eprintln!("listening");
                eprintln!("first {}", signals.next().await);
                signals.exit_on_next();
                tokio::time::sleep(30 * S).await;
            });
            // Not reached unless the test has failed.
            std::process::exit(1);
        }
        use std::io::{BufRead, BufReader};
        use std::process::{Command, Stdio};
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "ops::shutdown::tests::second_signal_ends_the_process"])
            .env(CHILD, "1")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let kill = |name: &str| {
            let status = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
            assert!(status.success());
        };
        assert!(lines.any(|line| line.contains("listening")));
        kill("-INT");
        assert!(lines.any(|line| line.contains("first SIGINT")));
        kill("-TERM");
        assert!(child.wait().unwrap().success(), "exit code 0");
    }
}
