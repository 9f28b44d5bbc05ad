//! A Carrick that stands still: no time passes for it, and then much at once. A suspended machine is the same.

use super::{FREEZE, PATIENCE, Scene};
use crate::harness::process::signal;
use crate::proc::{self, eventually};
use std::ops::Range;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Stops and the time between them; together longer than messages live, each of them or not.
const STOPS: usize = 5;
const STOP: Range<Duration> = Duration::from_millis(500)..Duration::from_secs(8);
const BETWEEN: Range<Duration> = Duration::from_millis(500)..Duration::from_millis(2_500);

/// Stops a process for that long. `within` runs meanwhile, at the latest when it goes on.
pub(crate) fn freeze_process(pid: u32, time: Duration, within: impl FnOnce()) -> Result<Duration, String> {
    let begun = Instant::now();
    signal(pid, "STOP");
    let stopped = || proc::stat(pid).is_some_and(|(state, _)| state == 'T').then_some(());
    let stopped = eventually(Duration::from_secs(1), "a stopped Carrick", stopped);
    within();
    sleep((begun + time).saturating_duration_since(Instant::now()));
    let took = begun.elapsed();
    signal(pid, "CONT");
    stopped.map(|()| took)
}

impl Scene<'_> {
    /// Once, for longer than all timeouts and than NATS waits for a pong.
    pub(super) fn freeze_node(&mut self) -> Result<(), String> {
        let pid = self.deployment.nodes()[0].pid();
        let took = freeze_process(pid, FREEZE, || {})?;
        self.proof
            .require(proc::is_alive(pid), format!("node 0 (process {pid}) stopped for {:.1} s", took.as_secs_f64()));
        self.pulse.wait(PATIENCE)
    }

    /// For random times. Two times in three its connections to NATS end meanwhile, where that can be done.
    pub(super) fn freeze_node_again_and_again(&mut self) -> Result<(), String> {
        let pid = self.deployment.nodes()[0].pid();
        let mut times = Vec::new();
        let mut cut = 0;
        for _ in 0..STOPS {
            let (time, ends) = (self.dice.within(&STOP), self.dice.below(3) > 0);
            let proxies = &self.deployment.proxies;
            let took = freeze_process(pid, time, || {
                if ends {
                    cut += proxies.iter().map(|proxy| proxy.cut()).sum::<usize>();
                }
            })?;
            times.push(format!("{:.1}", took.as_secs_f64()));
            sleep(self.dice.within(&BETWEEN));
        }
        let alive = proc::is_alive(pid);
        self.proof.require(alive, format!("node 0 (process {pid}) stopped for {} s", times.join(", ")));
        if !self.deployment.proxies.is_empty() {
            self.proof.note(format!("{cut} of its connections to NATS ended meanwhile"));
        }
        self.pulse.wait(PATIENCE)
    }
}
