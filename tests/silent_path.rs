//! A path to NATS that goes silent and heals: packets vanish, nothing is closed. With real kernels, because what is left in
//! the send buffer of a connection that was given up is theirs.
//!
//! Each trial is a program of its own in a network namespace of its own, with nats-server in a second one. Three pairs of
//! virtual devices join the two: two paths for Carrick, one for the test to look. A path is made silent by telling both ends
//! a wrong hardware address of the other. Making namespaces takes root, or a system that lets users have them.

use crate::harness::backend::unused_prefix;
use crate::harness::http::Response;
use crate::harness::namespaces::{done, in_a_new_one, possible, second};
use crate::harness::nats::binary;
use crate::harness::process::Process;
use crate::harness::*;
use serde_json::json;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Names the trial to the program that is to run it.
const TRIAL: &str = "CARRICK_SILENT_PATH";
/// Another program than the one under test.
const PROGRAM: &str = "CARRICK_SILENT_PATH_SERVER";
const PORT: u16 = 4222;
/// Paths of Carrick's, and the one to look by.
const PATHS: [u8; 2] = [1, 2];
const WATCH: u8 = 3;
/// More bytes than unanswered pings have.
const PINGS: u64 = 100;
const AT_ONCE: usize = 9;
const NOBODY: &str = "02:00:00:00:00:ff";

#[derive(Clone, Copy, Debug)]
enum What {
    Publication,
    WithKey,
    Disconnect,
}

#[derive(Clone, Copy, Debug)]
struct Trial {
    what: What,
    /// `--dedup_window`; 0: the default.
    window: u64,
    /// Seconds.
    silence: u64,
}

impl Trial {
    fn name(self) -> String {
        format!("{:?} {} {}", self.what, self.window, self.silence)
    }

    fn named(text: &str) -> Self {
        let words: Vec<&str> = text.split(' ').collect();
        let number = |at: usize| words[at].parse().expect("a number");
        let all = [What::Publication, What::WithKey, What::Disconnect];
        let what = all.into_iter().find(|what| format!("{what:?}") == words[0]).expect("a kind of trial");
        Self { what, window: number(1), silence: number(2) }
    }

    /// Runs in namespaces of its own. Answers with what it said.
    fn run(&self) -> String {
        let folder = tempfile::Builder::new().prefix("silent-").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
        let folder = folder.expect("a folder can be created").keep();
        let mut command = in_a_new_one();
        command.arg(std::env::current_exe().expect("this program has a path"));
        command.args(["--ignored", "--exact", "--nocapture", "silent_path::one_trial"]).env(TRIAL, self.name());
        let mut process = Process::spawn(command, &folder.join("trial.log"));
        let status = process.wait(Duration::from_secs(120 + self.silence));
        let said = process.log();
        assert!(status.success() && said.contains("1 passed"), "{self:?}: {status}\n{said}");
        said
    }
}

#[test]
fn row_01_a_silent_path_beyond_the_window_delivers_nothing_twice() {
    if possible() {
        Trial { what: What::WithKey, window: 10, silence: 12 }.run();
    }
}

#[test]
fn row_01_a_silent_path_within_the_window_delivers_nothing_twice() {
    if possible() {
        Trial { what: What::Publication, window: 20, silence: 8 }.run();
    }
}

/// All trials, three times each: scripts/silent-path.
#[test]
#[ignore = "takes minutes"]
fn all_trials() {
    assert!(possible());
    let kinds = [What::Publication, What::WithKey, What::Disconnect];
    let times = [(0, 36), (0, 15), (10, 15), (10, 6)];
    let each = times.into_iter().flat_map(|(window, silence)| kinds.map(|what| Trial { what, window, silence }));
    let trials: Vec<Trial> = each.flat_map(|trial| [trial; 3]).collect();
    let mut failed = 0;
    // Each has networks of its own.
    for some in trials.chunks(AT_ONCE) {
        let said: Vec<_> = std::thread::scope(|scope| {
            let running: Vec<_> = some.iter().map(|trial| scope.spawn(|| trial.run())).collect();
            running.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
        });
        for (trial, outcome) in some.iter().zip(said) {
            failed += u32::from(outcome.is_err());
            let said = outcome.unwrap_or_else(|error| *error.downcast::<String>().expect("a text"));
            let result = said.lines().find_map(|line| Some(line.split_once("RESULT ")?.1));
            println!("{trial:?}: {}", result.unwrap_or(&said));
        }
    }
    assert_eq!(failed, 0, "trials failed");
}

/// What [`Trial::run`] starts.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a network namespace of its own"]
async fn one_trial() {
    let trial = Trial::named(&std::env::var(TRIAL).expect("the trial's name"));
    let network = Network::new();
    let prefix = unused_prefix();
    let servers = PATHS.map(|path| format!("nats://{}:{PORT}", far(path))).join(",");
    let mut carrick = Backend::on_nats(&servers, &prefix).option("metrics_http", "/metrics");
    if trial.window > 0 {
        carrick = carrick.option("dedup_window", trial.window);
    }
    if let Some(program) = std::env::var_os(PROGRAM) {
        carrick = carrick.binary(Path::new(&program));
    }
    let server = carrick.start();
    server.publish("chat", json!("before")).await;
    let log = if matches!(trial.what, What::Disconnect) { "ctl" } else { "log" };
    let before = network.stored(&prefix, log).await;

    let used = connections(|_| true);
    let [path] = PATHS.into_iter().filter(|path| used.iter().any(|c| c.path == *path)).collect::<Vec<_>>()[..] else {
        panic!("one path is in use: {used:?}")
    };
    network.silence(path);
    let begin = Instant::now();
    let sending = async {
        let answer = send(&server, trial.what).await;
        (answer, begin.elapsed())
    };
    let stuck = eventually("the first try is in the kernel", async || {
        connections(|c| c.path == path).iter().map(|c| c.unsent).max().filter(|unsent| *unsent > PINGS)
    });
    let ((answer, answered), stuck) = tokio::join!(sending, stuck);
    assert_eq!(answer.status, 201, "{answer:?}\n{}", server.log());
    assert!(connections(|c| c.path != path).iter().any(|c| c.established), "it was repeated on the other path");
    assert_eq!(network.stored(&prefix, log).await, before + 1);
    let_pass(Duration::from_secs(trial.silence).saturating_sub(begin.elapsed())).await;
    let left: u64 = connections(|c| c.path == path).iter().map(|c| c.unsent).sum();

    network.heal(path);
    // A kernel that still holds bytes sends them when its timer says so, at last as late again as the path was silent.
    let patience = Instant::now() + Duration::from_secs(trial.silence * 2);
    while connections(|c| c.path == path && c.unsent > 0).iter().any(|_| Instant::now() < patience) {
        let_pass(Duration::from_millis(100)).await;
    }
    let_pass(Duration::from_secs(1)).await;
    let stored = network.stored(&prefix, log).await - before;
    println!(
        "RESULT answered after {:.1} s; {stuck} bytes in the kernel at first, {left} when the path healed; stored {stored} \
         time(s)",
        answered.as_secs_f64()
    );
    assert_eq!(stored, 1, "one was sent");
    assert_eq!(left, 0, "nothing of a connection that was given up stays in the kernel");
}

async fn send(server: &Server, what: What) -> Response {
    let publication = br#"{"stream":"chat","data":"\"x\""}"#;
    let command = br#"{"command":"disconnect","payload":{"identifier":"{\"user\":1}","reconnect":true}}"#;
    match what {
        What::Publication => server.post_with(&[], publication).await,
        What::WithKey => server.post_with(&[("Idempotency-Key", "one")], publication).await,
        What::Disconnect => server.post_with(&[], command).await,
    }
}

fn near(path: u8) -> String {
    format!("10.77.{path}.1")
}

fn far(path: u8) -> String {
    format!("10.77.{path}.2")
}

/// Hardware address of an end (1: near, 2: far).
fn hardware(path: u8, end: u8) -> String {
    format!("02:00:00:00:{path:02x}:{end:02x}")
}

/// nats-server in a namespace of its own, and the paths to it.
struct Network {
    _folder: tempfile::TempDir,
    /// Holds the other namespace.
    there: Process,
    _nats: Process,
}

impl Network {
    fn new() -> Self {
        done(Command::new("ip").args(["link", "set", "lo", "up"]));
        let folder = tempfile::Builder::new().prefix("silent-").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
        let folder = folder.expect("a folder can be created");
        let held = folder.path().join("held");
        std::fs::create_dir(&held).expect("a folder can be created");
        let there = second(&held.join("log"));
        let mut network = Self { _nats: Self::nats(&there, folder.path()), _folder: folder, there };
        for path in PATHS.into_iter().chain([WATCH]) {
            network.join(path);
        }
        network.wait_for_nats();
        network
    }

    /// With the settings that nats-server has by itself: it pings every two minutes.
    fn nats(there: &Process, folder: &Path) -> Process {
        let mut command = Command::new("nsenter");
        command.args(["-t", &there.pid().to_string(), "--net", "--"]).arg(binary());
        command.args(["-js", "-a", "0.0.0.0", "-p", &PORT.to_string(), "-sd"]).arg(folder.join("store"));
        let own = folder.join("nats");
        std::fs::create_dir(&own).expect("a folder can be created");
        Process::spawn(command, &own.join("log"))
    }

    fn wait_for_nats(&mut self) {
        let answers = || std::net::TcpStream::connect((far(WATCH).as_str(), PORT)).map_err(|error| error.to_string());
        patience::eventually_blocking(answers).expect("nats-server listens");
    }

    fn join(&self, path: u8) {
        let (here, there) = (format!("here{path}"), format!("there{path}"));
        let pid = self.there.pid().to_string();
        let (near_mac, far_mac) = (hardware(path, 1), hardware(path, 2));
        let link = ["link", "add", &here, "address", &near_mac, "type", "veth"];
        done(Command::new("ip").args(link).args(["peer", "name", &there, "address", &far_mac, "netns", &pid]));
        done(self.ip(false, &["addr", "add", &format!("{}/24", near(path)), "dev", &here]));
        done(self.ip(true, &["addr", "add", &format!("{}/24", far(path)), "dev", &there]));
        done(self.ip(false, &["link", "set", &here, "up"]));
        done(self.ip(true, &["link", "set", &there, "up"]));
        self.heal(path);
    }

    fn ip(&self, there: bool, arguments: &[&str]) -> Command {
        let mut command = Command::new(if there { "nsenter" } else { "ip" });
        if there {
            command.args(["-t", &self.there.pid().to_string(), "--net", "--", "ip"]);
        }
        command.args(arguments);
        command
    }

    fn silence(&self, path: u8) {
        self.neighbours(path, NOBODY, NOBODY);
    }

    fn heal(&self, path: u8) {
        self.neighbours(path, &hardware(path, 1), &hardware(path, 2));
    }

    fn neighbours(&self, path: u8, near_mac: &str, far_mac: &str) {
        let ends = [(false, far(path), far_mac, "here"), (true, near(path), near_mac, "there")];
        for (there, address, mac, device) in ends {
            let device = format!("{device}{path}");
            done(self.ip(there, &["neigh", "replace", &address, "lladdr", mac, "dev", &device, "nud", "permanent"]));
        }
    }

    /// Messages in Carrick's log, or that of its commands.
    async fn stored(&self, prefix: &str, log: &str) -> u64 {
        let client = async_nats::connect(format!("{}:{PORT}", far(WATCH))).await.expect("nats-server answers");
        let jetstream = async_nats::jetstream::new(client);
        use futures_util::TryStreamExt;
        let streams: Vec<_> = jetstream.streams().try_collect().await.expect("a list of the streams");
        let start = format!("{prefix}_{log}_");
        streams.iter().filter(|s| s.config.name.starts_with(&start)).map(|s| s.state.messages).sum()
    }
}

/// A connection of this namespace's to nats-server, by one of Carrick's paths.
#[derive(Debug)]
struct Connection {
    path: u8,
    established: bool,
    /// Bytes that the other kernel has not acknowledged.
    unsent: u64,
}

fn connections(wanted: impl Fn(&Connection) -> bool) -> Vec<Connection> {
    let table = std::fs::read_to_string("/proc/self/net/tcp").expect("the kernel tells its connections");
    let parsed = table.lines().skip(1).filter_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let (address, port) = words[2].split_once(':')?;
        let address = u32::from_str_radix(address, 16).ok()?.to_le_bytes();
        let path = PATHS.into_iter().find(|path| address == [10, 77, *path, 2])?;
        let unsent = u64::from_str_radix(words[4].split_once(':')?.0, 16).ok()?;
        (u16::from_str_radix(port, 16).ok()? == PORT).then_some(Connection {
            path,
            established: words[3] == "01",
            unsent,
        })
    });
    parsed.filter(wanted).collect()
}
