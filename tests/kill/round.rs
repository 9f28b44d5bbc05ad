//! One round: a server, publishers, clients, a fault in the middle, and the verdict.

use crate::clients::{Client, Phase, Progress, Record, Silent};
use crate::judge::{Verdict, judge};
use crate::plan::{Fault, Kind, Plan, SILENT_STREAMS, silent_name, stream_name};
use crate::proc::{self, eventually};
use crate::publishers::{Published, Source};
use crate::server::Server;
use rustix::process::Signal;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use url::Url;

/// For all clients to connect and subscribe.
const SETUP_PATIENCE: Duration = Duration::from_secs(60);
/// From the last publication to the last delivery, beyond the longest absence.
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(30);
/// Without a delivery for so long, nothing more comes.
const AFTERGLOW: Duration = Duration::from_secs(1);
const FREEZE: Duration = Duration::from_secs(5);
/// A silent stream is not worth more than a trickle.
const SILENT_INTERVAL: Duration = Duration::from_millis(200);

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
    pub retries: u64,
    pub duplicate_acks: u64,
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
            self.retries,
            self.duplicate_acks,
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
            v.reject_history,
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
    let mut cast = Cast::gather(plan, &server, &runtime)?;
    cast.wait_settled(SETUP_PATIENCE)?;

    cast.phase.send_replace(Phase::Run);
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
    cast.phase.send_replace(Phase::Finish);
    let published = cast.end_publishing(&runtime)?;
    let span = started.elapsed();
    let caught_up = cast.wait_caught_up(&published, plan.away.end + CATCH_UP_PATIENCE);
    cast.phase.send_replace(Phase::Stop);
    let records = cast.end_clients(&runtime)?;
    let stopped = server.stop();
    let orphans = seen.orphans(dir);

    let verdict = judge(&published, &records);
    let mut failures = verdict.failures();
    failures.extend(caught_up.err());
    failures.extend(orphans.err());
    failures.extend(match stopped {
        Ok(status) if status.success() => None,
        Ok(status) => Some(format!("carrick did not stop cleanly: {status}")),
        Err(error) => Some(error),
    });
    let ack_gap = longest_gap(&published);
    failures.extend(unproven(plan, ack_gap, &verdict));
    let proof = proof.unwrap_or_else(|error| {
        failures.push(format!("the fault did not act: {error}"));
        error
    });
    Ok(Outcome {
        fault: plan.fault,
        seed: plan.seed,
        ack_gap,
        retries: published.iter().map(|source| source.retries).sum(),
        duplicate_acks: published.iter().flat_map(|source| &source.acks).filter(|ack| ack.duplicate).count() as u64,
        rate: verdict.acknowledged as f64 / span.as_secs_f64(),
        recovery,
        verdict,
        proof,
        failures,
    })
}

/// Everybody but the server.
struct Cast {
    phase: watch::Sender<Phase>,
    clients: Vec<JoinHandle<Record>>,
    progress: Vec<Arc<Progress>>,
    /// Streams of each client's subscriptions, as in its plan.
    follows: Vec<Vec<String>>,
    sources: Vec<JoinHandle<Published>>,
}

impl Cast {
    fn gather(plan: &Plan, server: &Server, runtime: &Runtime) -> Result<Self, String> {
        let (phase, watching) = watch::channel(Phase::Setup);
        let url = Url::parse(&format!("ws://{}/cable", server.http())).map_err(|error| error.to_string())?;
        let followers = plan.followers();
        let silents: Vec<Arc<Silent>> = (0..SILENT_STREAMS)
            .map(|index| {
                let of_stream = |f: &&crate::plan::Follower| f.kind == Kind::Silent && f.id % SILENT_STREAMS == index;
                let followers = followers.iter().filter(of_stream).count();
                Arc::new(Silent { followers, away: 0.into(), published: watch::channel(false).0 })
            })
            .collect();
        let mut cast =
            Self { phase, clients: Vec::new(), progress: Vec::new(), follows: Vec::new(), sources: Vec::new() };
        for follower in followers {
            let progress = Arc::new(Progress {
                arrived: follower.follows.iter().map(|_| AtomicU64::new(0)).collect(),
                ..Progress::default()
            });
            let silent = (follower.kind == Kind::Silent).then(|| Arc::clone(&silents[follower.id % SILENT_STREAMS]));
            cast.follows.push(follower.follows.iter().map(|follow| follow.stream.clone()).collect());
            cast.progress.push(Arc::clone(&progress));
            let client = Client::new(url.clone(), plan.clone(), follower, watching.clone(), silent, progress);
            cast.clients.push(runtime.spawn(client.run()));
        }
        let publishers = plan.streams * usize::from(plan.lanes);
        let busy = Duration::from_secs(1) * u32::try_from(publishers).unwrap_or(u32::MAX) / plan.rate;
        let busy = (0..publishers).map(|index| {
            let (index, lane) = (index % plan.streams, index / plan.streams);
            (stream_name(index), u16::try_from(lane).expect("below the number of lanes"), busy, None)
        });
        let quiet = (0..SILENT_STREAMS).map(|i| (silent_name(i), 0, SILENT_INTERVAL, Some(Arc::clone(&silents[i]))));
        for (index, (stream, lane, interval, silent)) in busy.chain(quiet).enumerate() {
            let share = (index % publishers) as f64 / publishers as f64;
            let source = Source {
                url: format!("http://{}/_broadcast", server.broadcast()),
                stream,
                lane,
                seed: plan.seed,
                interval,
                delay: interval.mul_f64(share),
                phase: watching.clone(),
                silent,
            };
            cast.sources.push(runtime.spawn(source.run()));
        }
        Ok(cast)
    }

    fn wait_settled(&self, patience: Duration) -> Result<(), String> {
        let settled = || self.progress.iter().filter(|progress| progress.settled.load(Ordering::Acquire)).count();
        eventually(patience, "subscriptions of all clients", || (settled() == self.progress.len()).then_some(()))
            .map_err(|error| format!("{error}: {} of {} settled", settled(), self.progress.len()))
    }

    fn end_publishing(&mut self, runtime: &Runtime) -> Result<Vec<Published>, String> {
        let sources = std::mem::take(&mut self.sources);
        runtime.block_on(async {
            let mut all = Vec::new();
            for source in sources {
                all.push(source.await.map_err(|error| format!("a publisher failed: {error}"))?);
            }
            Ok(all)
        })
    }

    /// As many messages at every subscription as its stream has, and then nothing more.
    fn wait_caught_up(&self, published: &[Published], patience: Duration) -> Result<(), String> {
        let mut acknowledged: HashMap<&str, u64> = HashMap::new();
        for source in published {
            *acknowledged.entry(&source.stream).or_default() += source.acks.len() as u64;
        }
        let behind = || {
            let mut behind = Vec::new();
            for (id, (streams, progress)) in self.follows.iter().zip(&self.progress).enumerate() {
                let excusable = progress.excusable.load(Ordering::Acquire);
                for (stream, arrived) in streams.iter().zip(&progress.arrived) {
                    let all = acknowledged.get(stream.as_str()).copied().unwrap_or(0);
                    if arrived.load(Ordering::Acquire) + excusable < all {
                        behind.push(format!("client {id} on {stream}"));
                    }
                }
            }
            behind
        };
        let all = eventually(patience, "every message everywhere", || behind().is_empty().then_some(()));
        all.map_err(|error| {
            let behind = behind();
            format!("{error}: {} subscriptions behind, such as {:?}", behind.len(), &behind[..behind.len().min(5)])
        })?;
        let arrived = || self.progress.iter().flat_map(|p| &p.arrived).map(|n| n.load(Ordering::Acquire)).sum::<u64>();
        let mut last = (arrived(), Instant::now());
        eventually(patience, "the end of deliveries", || {
            let now = arrived();
            if now != last.0 {
                last = (now, Instant::now());
            }
            (last.1.elapsed() > AFTERGLOW).then_some(())
        })
    }

    fn end_clients(&mut self, runtime: &Runtime) -> Result<Vec<Record>, String> {
        let clients = std::mem::take(&mut self.clients);
        runtime.block_on(async {
            let mut all = Vec::new();
            for client in clients {
                all.push(client.await.map_err(|error| format!("a client failed: {error}"))?);
            }
            Ok(all)
        })
    }
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
            let frozen = eventually(Duration::from_secs(1), "a stopped nats-server", || {
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

fn longest_gap(published: &[Published]) -> Duration {
    let mut times: Vec<_> = published.iter().flat_map(|source| &source.acks).map(|ack| ack.at).collect();
    times.sort_unstable();
    times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

/// The binary under test.
pub fn binary() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_carrick"))
}
