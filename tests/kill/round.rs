//! One round: a server, publishers, clients, a fault in the middle, and the verdict.

use crate::plan::{Fault, Plan};
use crate::proc::{self, eventually};
use crate::server::Server;
use carrick::client::check::source::Outlet;
use carrick::client::check::{Check, RETRY_FOR, Verdict};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use url::Url;

/// For all clients to connect and subscribe.
const SETUP_PATIENCE: Duration = Duration::from_secs(60);
/// From the last publication to the last delivery, beyond the longest absence.
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(30);
const FREEZE: Duration = Duration::from_secs(5);

/// What a round has shown.
#[derive(Debug)]
pub struct Outcome {
    pub fault: Fault,
    pub seed: u64,
    pub verdict: Verdict,
    /// What proves that the fault acted.
    pub proof: String,
    /// Longest time without any acknowledgement.
    pub ack_gap: Duration,
    /// Acknowledged per second over the time of publishing, outage included.
    pub rate: f64,
    /// From the fault to the first message stored after it.
    pub recovery: Duration,
    pub failures: Vec<String>,
}

impl Outcome {
    pub const HEADER: &'static str = "fault         seed  acked  acked/s  ack gap  retries  dup acks  arrived  drops  lost  restored  fresh  missing  doubled  disorder  excused  no pos  rejected  disconn  verdict";

    /// What was done, and how long it took to store messages again.
    pub fn proof(&self) -> String {
        format!("{} (stored again after {:.2} s)", self.proof, self.recovery.as_secs_f64())
    }

    pub fn line(&self) -> String {
        let v = &self.verdict;
        format!(
            "{:12} {:>5} {:>6} {:>8.0} {:>7.2}s {:>8} {:>9} {:>8} {:>6} {:>5} {:>9} {:>6} {:>8} {:>8} {:>9} {:>8} {:>7} {:>9} {:>8}  {}",
            self.fault,
            self.seed,
            v.acknowledged,
            self.rate,
            self.ack_gap.as_secs_f64(),
            v.retries,
            v.duplicate_acks,
            v.arrived,
            v.drops,
            v.losses,
            v.restored,
            v.fresh,
            v.missing.count,
            v.doubled.count,
            v.disordered.count,
            v.excused,
            v.unpositioned,
            v.rejects.count,
            v.disconnects,
            if self.failures.is_empty() { "pass" } else { "FAIL" },
        )
    }
}

/// Runs a round with this binary in a directory of its own, which stays if the round failed.
///
/// # Errors
/// The round could not be run at all.
pub fn run(plan: &Plan, binary: &Path) -> Result<Outcome, String> {
    let dir = tempfile::Builder::new().prefix("carrick-kill-").tempdir().map_err(|error| error.to_string())?;
    let outcome = run_in(plan, binary, dir.path());
    let failed = outcome.as_ref().map_or(true, |outcome| !outcome.failures.is_empty());
    if failed {
        let kept = dir.keep();
        let log = Server::log_tail(&kept, 40);
        eprintln!("round {} seed {} failed; its directory stays: {}\n{log}", plan.fault, plan.seed, kept.display());
    }
    outcome
}

fn run_in(plan: &Plan, binary: &Path, dir: &Path) -> Result<Outcome, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let mut server = Server::start(binary, dir, &["--history_limit=10000".to_owned()])?;
    let mut seen = Processes::default();
    seen.note(&server)?;
    let url = Url::parse(&format!("ws://{}/cable", server.http())).map_err(|error| error.to_string())?;
    let outlet = Outlet {
        urls: vec![format!("http://{}/_broadcast", server.broadcast())],
        key: None,
        trust: None,
        run: plan.seed.to_string(),
        retry_for: RETRY_FOR,
    };
    let entered = runtime.enter();
    let check = Check::start(&plan.roster(), &plan.pace(), &plan.habits(), &[url], &outlet);
    drop(entered);
    runtime.block_on(check.settle(SETUP_PATIENCE))?;

    check.begin();
    let started = Instant::now();
    std::thread::sleep(plan.before);
    let struck = Instant::now();
    let proof = strike(plan.fault, &mut server, &mut seen);
    if proof.is_ok() {
        server.wait_ready()?;
    }
    let recovery = struck.elapsed();
    seen.note(&server)?;
    std::thread::sleep(plan.after);
    let span = started.elapsed();
    let (outcome, behind) = runtime.block_on(check.finish(CATCH_UP_PATIENCE))?;
    let stopped = server.stop();
    let orphans = seen.orphans(dir);

    let ack_gap = outcome.longest_ack_gap;
    let verdict = outcome.verdict;
    let mut failures = verdict.failures();
    failures.extend(behind);
    failures.extend(orphans.err());
    failures.extend(match stopped {
        Ok(status) if status.success() => None,
        Ok(status) => Some(format!("carrick did not stop cleanly: {status}")),
        Err(error) => Some(error),
    });
    failures.extend(unproven(plan, ack_gap, &verdict));
    let proof = proof.unwrap_or_else(|error| {
        failures.push(format!("the fault did not act: {error}"));
        error
    });
    Ok(Outcome {
        fault: plan.fault,
        seed: plan.seed,
        ack_gap,
        rate: verdict.acknowledged as f64 / span.as_secs_f64(),
        recovery,
        verdict,
        proof,
        failures,
    })
}

/// Every nats-server of the round.
#[derive(Default)]
struct Processes {
    nats: BTreeSet<u32>,
}

impl Processes {
    fn note(&mut self, server: &Server) -> Result<u32, String> {
        let what = "a nats-server among carrick's children";
        let pid = eventually(Duration::from_secs(10), what, || server.nats_pid())?;
        self.nats.insert(pid);
        Ok(pid)
    }

    /// No nats-server of ours outlives the round, known to us or not.
    fn orphans(&self, dir: &Path) -> Result<(), String> {
        eventually(Duration::from_secs(5), "end of all nats-servers", || {
            let ours = |pid: &u32| proc::command_line(*pid).contains(&dir.display().to_string());
            let known = self.nats.iter().any(|pid| proc::is_alive(*pid));
            let others = proc::children(1).iter().any(ours);
            (!known && !others).then_some(())
        })
    }
}

/// Does the harm, undoes what can be undone, and tells what proves it.
fn strike(fault: Fault, server: &mut Server, seen: &mut Processes) -> Result<String, String> {
    let carrick = server.pid();
    let nats = seen.note(server)?;
    let gone =
        |pid| eventually(Duration::from_secs(5), "end of the old nats-server", || (!proc::is_alive(pid)).then_some(()));
    match fault {
        Fault::None => Ok("nothing was done".to_owned()),
        Fault::KillCarrick => {
            proc::signal(carrick, Signal::KILL)?;
            let status = server.wait_exit()?;
            gone(nats)?;
            server.start_again()?;
            Ok(format!(
                "carrick {carrick} ended by {status}, now {}; nats-server {nats}, now {}",
                server.pid(),
                seen.note(server)?
            ))
        }
        Fault::KillNats => {
            proc::signal(nats, Signal::KILL)?;
            gone(nats)?;
            let new = eventually(Duration::from_secs(20), "a new nats-server", || {
                server.nats_pid().filter(|pid| *pid != nats)
            })?;
            seen.nats.insert(new);
            if server.pid() != carrick || !proc::is_alive(carrick) {
                return Err("carrick itself ended".to_owned());
            }
            Ok(format!("nats-server {nats}, now {new}; carrick stayed {carrick}"))
        }
        Fault::FreezeNats => {
            proc::signal(nats, Signal::STOP)?;
            let frozen = eventually(Duration::from_secs(10), "a stopped nats-server", || {
                proc::stat(nats).is_some_and(|(state, _)| state == 'T').then_some(())
            });
            if frozen.is_ok() {
                std::thread::sleep(FREEZE);
            }
            let survived = server.nats_pid() == Some(nats);
            // It may have been replaced meanwhile.
            if proc::is_alive(nats) {
                proc::signal(nats, Signal::CONT)?;
            }
            frozen?;
            Ok(format!(
                "nats-server {nats} stopped for {FREEZE:?}, {}",
                if survived { "went on" } else { "was replaced" }
            ))
        }
        Fault::TermCarrick => {
            proc::signal(carrick, Signal::TERM)?;
            let status = server.wait_exit()?;
            gone(nats)?;
            if !status.success() {
                return Err(format!("carrick ended by SIGTERM with {status}"));
            }
            server.start_again()?;
            Ok(format!(
                "carrick {carrick} ended with {status}, now {}; nats-server {nats}, now {}",
                server.pid(),
                seen.note(server)?
            ))
        }
    }
}

/// What must show in the figures if the fault acted.
fn unproven(plan: &Plan, ack_gap: Duration, verdict: &Verdict) -> Option<String> {
    match plan.fault {
        Fault::None => None,
        Fault::KillCarrick | Fault::TermCarrick => {
            let few = verdict.losses < plan.clients as u64 / 10;
            few.then(|| format!("only {} connections were lost to the server", verdict.losses))
        }
        Fault::KillNats => {
            (ack_gap < Duration::from_millis(30)).then(|| format!("publishing never paused: {ack_gap:?}"))
        }
        Fault::FreezeNats => (ack_gap < FREEZE.mul_f64(0.8)).then(|| format!("publishing paused for {ack_gap:?} only")),
    }
}

/// The binary under test.
pub fn binary() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_carrick"))
}
