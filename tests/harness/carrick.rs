//! One Carrick process: started with options, reachable, stopped when dropped.

use super::backend::Backend;
use super::client::{Client, Dial, Position};
use super::http::{self, Response};
use super::patience::{PATIENCE, eventually, eventually_blocking};
use super::process::Process;
use super::{BROADCAST_KEY, SECRET, resident};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

/// Options of a server that is about to start.
#[derive(Clone)]
pub struct Builder {
    options: Vec<String>,
    env: Vec<(String, String)>,
    open_files: Option<u32>,
    /// Process whose network namespace it enters.
    namespace: Option<u32>,
    binary: PathBuf,
}

impl Builder {
    /// Everybody may connect and subscribe to public streams; publishing needs the key that follows from [`SECRET`].
    pub fn open() -> Self {
        let builder = Self::closed().option("noauth", "true").option("public_streams", "true");
        builder.option("secret", SECRET).option("jwt_secret", "none")
    }

    /// As few options as possible; nobody may connect.
    pub fn closed() -> Self {
        // Another build, to see what a test says of it.
        let other = std::env::var_os("CARRICK_BIN").map(PathBuf::from);
        let binary = other.unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_carrick")));
        Self { options: Vec::new(), env: Vec::new(), open_files: None, namespace: None, binary }
            .option("host", "127.0.0.1")
            .option("norpc", "true")
    }

    /// Another program than the one under test.
    #[allow(dead_code, reason = "only the fault suite, which shares this file, runs other builds")]
    pub fn binary(mut self, path: &Path) -> Self {
        self.binary = path.to_owned();
        self
    }

    pub fn option(mut self, name: &str, value: impl ToString) -> Self {
        self.options.push(format!("--{name}={}", value.to_string()));
        self
    }

    /// Sets an environment variable of the process.
    #[allow(dead_code, reason = "the suites that share this file do not all need it")]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Limits the file descriptors of the process; it cannot raise them again.
    #[allow(dead_code, reason = "the suites that share this file do not all need it")]
    pub fn open_files(mut self, limit: u32) -> Self {
        self.open_files = Some(limit);
        self
    }

    /// Runs it in the network namespace of this process.
    #[allow(dead_code, reason = "only the fault suite, which shares this file, has several")]
    pub fn namespace(mut self, pid: u32) -> Self {
        self.namespace = Some(pid);
        self
    }

    /// Gives an option another value.
    pub fn replace(self, name: &str, value: impl ToString) -> Self {
        self.without(name).option(name, value)
    }

    /// Leaves an option at its default.
    pub fn without(mut self, name: &str) -> Self {
        let prefix = format!("--{name}=");
        self.options.retain(|option| !option.starts_with(&prefix));
        self
    }

    /// Starts the server and waits until it is ready.
    pub fn start(self) -> Server {
        let mut server = self.prepare();
        server.start();
        server
    }

    /// Starts the server and waits until it listens, ready or not.
    pub fn start_unready(self) -> Server {
        let mut server = self.prepare();
        server.launch();
        server
    }

    /// Starts a server that is expected to refuse; the answer is its exit code and all that it said.
    pub fn refused(self) -> (Option<i32>, String) {
        self.prepare().start_refused()
    }

    fn prepare(self) -> Server {
        let folder = tempfile::Builder::new()
            .prefix("carrick-")
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .expect("a folder can be created");
        let unbound = SocketAddr::from(([127, 0, 0, 1], 0));
        Server { builder: self, folder, process: None, http: unbound, broadcast: unbound }
    }
}

pub struct Server {
    builder: Builder,
    folder: TempDir,
    process: Option<Process>,
    http: SocketAddr,
    broadcast: SocketAddr,
}

impl Server {
    /// A server of one's own on this backend; `Server::on(backend).option(…).start()`.
    pub fn on(backend: Backend) -> Builder {
        backend.builder()
    }

    /// Starts (again) with the same options, port and store, and waits until it is ready.
    pub fn start(&mut self) {
        self.launch();
        let http = self.http;
        let ready = eventually_blocking(|| match http::status_of(http, "/ready") {
            Ok(200) => Ok(()),
            other => Err(format!("GET /ready: {other:?}")),
        });
        if let Err(reason) = ready {
            panic!("carrick does not get ready: {reason}\n{}", self.process().log_tail());
        }
    }

    /// Starts (again) and waits until it listens.
    pub fn launch(&mut self) {
        let port_file = self.folder.path().join("ports.json");
        // A file of an earlier run would name a dead process's ports.
        let _ = std::fs::remove_file(&port_file);
        let mut process = Process::spawn(self.command(), &self.log_path());
        let bound = eventually_blocking(|| {
            if let Some(status) = process.exited() {
                panic!("carrick ended at start with {status}\n{}", process.log_tail());
            }
            let text = std::fs::read_to_string(&port_file).map_err(|error| error.to_string())?;
            serde_json::from_str::<Value>(&text).map_err(|error| error.to_string())
        });
        let bound = bound.unwrap_or_else(|reason| panic!("carrick does not listen: {reason}\n{}", process.log_tail()));
        let address = |name: &str| -> SocketAddr {
            let text = bound[name].as_str().unwrap_or_else(|| panic!("no address `{name}` in {bound}"));
            text.parse().unwrap_or_else(|error| panic!("bad address `{text}`: {error}"))
        };
        (self.http, self.broadcast) = (address("http"), address("broadcast"));
        self.process = Some(process);
    }

    /// Starts (again) and is expected to refuse; exit code and all that it said.
    pub fn start_refused(&mut self) -> (Option<i32>, String) {
        let mut process = Process::spawn(self.command(), &self.log_path());
        let status = process.wait(PATIENCE);
        (status.code(), process.log())
    }

    /// Runs a subcommand with this server's settings and further arguments; its exit code and all that it said.
    #[allow(dead_code, reason = "the suites that share this file do not all run subcommands")]
    pub fn tool(&self, words: &[&str], more: &[&str]) -> (Option<i32>, String) {
        let mut command = self.bare_command();
        command.args(words).args(&self.builder.options).args(more);
        let output = command.output().expect("the program can be run");
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        (output.status.code(), said.concat())
    }

    fn command(&self) -> Command {
        let mut command = self.bare_command();
        command.arg(format!("--port={}", self.http.port()));
        command.arg(format!("--port_file={}", self.folder.path().join("ports.json").display()));
        command.args(&self.builder.options);
        command
    }

    fn bare_command(&self) -> Command {
        let mut command = match (self.builder.open_files, self.builder.namespace) {
            (None, None) => Command::new(&self.builder.binary),
            (None, Some(pid)) => {
                // It becomes the program: the process id stays.
                let mut entered = Command::new("nsenter");
                entered.args(["-t", &pid.to_string(), "--net", "--"]).arg(&self.builder.binary);
                entered
            }
            (Some(limit), _) => {
                let mut limited = Command::new("sh");
                limited.args(["-c", "ulimit -n \"$0\" && exec \"$@\"", &limit.to_string()]).arg(&self.builder.binary);
                limited
            }
        };
        for (name, _) in std::env::vars_os() {
            let foreign = name.to_str().is_some_and(|name| name.starts_with("ANYCABLE_"));
            if foreign || name == "PORT" || name == "REDIS_URL" {
                command.env_remove(name);
            }
        }
        command.envs(self.builder.env.iter().map(|(name, value)| (name, value)));
        command.current_dir(self.folder.path());
        command
    }

    fn process(&self) -> &Process {
        self.process.as_ref().expect("the server has been started")
    }

    fn process_mut(&mut self) -> &mut Process {
        self.process.as_mut().expect("the server has been started")
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("carrick.log")
    }

    /// Where it works: its log, and its embedded store by default.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn log(&self) -> String {
        self.process().log()
    }

    pub fn pid(&self) -> u32 {
        self.process().pid()
    }

    /// Bytes of memory that its process has in use now.
    pub fn resident(&self) -> u64 {
        resident::now(self.pid()).expect("it runs, and the kernel counts its memory")
    }

    /// The most that it has had in use.
    pub fn peak(&self) -> u64 {
        resident::peak(self.pid()).expect("it runs, and the kernel counts its memory")
    }

    pub fn address(&self) -> SocketAddr {
        self.http
    }

    /// Where it takes publications.
    pub fn broadcast_address(&self) -> SocketAddr {
        self.broadcast
    }

    /// Replaces an option for the next start.
    pub fn set(&mut self, name: &str, value: impl ToString) {
        self.builder = self.builder.clone().replace(name, value);
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        self.process_mut().kill();
    }

    /// Asks it to stop (`SIGTERM`), without waiting.
    pub fn begin_stop(&self) {
        self.process().signal("TERM");
    }

    /// Stops it gracefully and waits; it must end with success.
    pub fn stop(&mut self) {
        self.begin_stop();
        self.wait_stopped();
    }

    pub fn wait_stopped(&mut self) {
        let status = self.process_mut().wait(PATIENCE * 2);
        assert!(status.success(), "carrick ended with {status}\n{}", self.process().log_tail());
    }

    pub fn is_running(&mut self) -> bool {
        self.process_mut().exited().is_none()
    }

    // --- its clients -------------------------------------------------------------------------------------------------

    /// A connection to be made: `server.dial().query("pi=1").connect().await`.
    pub fn dial(&self) -> Dial {
        Dial::to(self.http)
    }

    /// A welcomed client of the extended protocol.
    pub async fn connect(&self) -> Client {
        self.dial().connect().await
    }

    /// A welcomed client of the base protocol.
    pub async fn connect_base(&self) -> Client {
        self.dial().base().connect().await
    }

    /// A client of the extended protocol that comes back with its session id.
    pub async fn resume(&self, sid: &str) -> Client {
        self.dial().sid(sid).connect().await
    }

    /// A client that is subscribed to this public stream.
    pub async fn subscriber(&self, stream: &str) -> Client {
        let mut client = self.connect().await;
        client.subscribe(&super::public(stream)).await;
        client
    }

    // --- its publishers ----------------------------------------------------------------------------------------------

    /// Publishes one message whose data is this JSON value; it must be accepted.
    pub async fn publish(&self, stream: &str, message: Value) -> Position {
        self.publish_with(stream, message, json!({})).await
    }

    /// Publishes one message with `meta`; it must be accepted.
    pub async fn publish_with(&self, stream: &str, message: Value, meta: Value) -> Position {
        let body = json!({"stream": stream, "data": message.to_string(), "meta": meta});
        Position::of(&self.accepted(body).await)
    }

    /// Publishes numbers from..=to as messages of their own; the answer is their positions.
    pub async fn publish_numbers(&self, stream: &str, numbers: std::ops::RangeInclusive<u64>) -> Vec<Position> {
        let mut positions = Vec::new();
        for number in numbers {
            positions.push(self.publish(stream, json!(number)).await);
        }
        positions
    }

    /// Posts a publication, batch or command that must be accepted; the answer is the body of the 201.
    pub async fn accepted(&self, body: Value) -> Value {
        let answer = self.post(&body.to_string()).await;
        assert_eq!(answer.status, 201, "{answer:?} to {body}");
        if answer.body.is_empty() { Value::Null } else { answer.json() }
    }

    /// Posts any text to the broadcast endpoint with the right key.
    pub async fn post(&self, body: &str) -> Response {
        self.post_with(&[], body.as_bytes()).await
    }

    /// Posts to the broadcast endpoint with the right key and further headers.
    pub async fn post_with(&self, headers: &[(&str, &str)], body: &[u8]) -> Response {
        let key = format!("Bearer {BROADCAST_KEY}");
        let headers = [&[("Authorization", key.as_str())], headers].concat();
        http::request(self.broadcast, "POST", "/_broadcast", &headers, body).await
    }

    /// Publishes as a patient application does: again, with the same key, until it is accepted.
    pub async fn publish_eventually(&self, stream: &str, message: Value) -> Position {
        let id = format!("{stream}-{message}");
        self.publish_body_eventually(json!({"stream": stream, "data": message.to_string(), "meta": {"id": id}})).await
    }

    pub async fn publish_body_eventually(&self, body: Value) -> Position {
        let body = body.to_string();
        eventually("the publication is accepted", async || {
            let answer = self.post(&body).await;
            assert!(matches!(answer.status, 201 | 503), "{answer:?}");
            (answer.status == 201).then(|| Position::of(&answer.json()))
        })
        .await
    }

    /// Asks for a remote disconnect of these connection identifiers.
    pub async fn disconnect(&self, identifiers: &str, reconnect: bool) {
        let payload = json!({"identifier": identifiers, "reconnect": reconnect});
        self.accepted(json!({"command": "disconnect", "payload": payload})).await;
    }

    pub async fn get(&self, path: &str) -> Response {
        http::request(self.http, "GET", path, &[], b"").await
    }

    /// The present value of a metric; the server needs `--metrics_http=/metrics`.
    pub async fn metric(&self, name: &str) -> i64 {
        let page = self.get("/metrics").await.body;
        let start = format!("anycable_go_{name} ");
        let value = page.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok());
        value.unwrap_or_else(|| panic!("no metric {name} in {page}"))
    }

    /// Waits until a metric has this value.
    pub async fn metric_becomes(&self, name: &str, value: i64) {
        super::eventually(&format!("{name} is {value}"), async || (self.metric(name).await == value).then_some(()))
            .await;
    }

    pub async fn is_ready(&self) -> bool {
        self.get("/ready").await.status == 200
    }

    /// Prints what the server said, for the report of a failed test.
    pub fn report(&self) {
        if let Some(process) = &self.process {
            eprintln!("--- carrick {} said last:\n{}", process.pid(), process.log_tail());
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.report();
        }
        // A graceful end lets an embedded nats-server go first; `Process` kills what is left.
        if let Some(process) = &mut self.process
            && process.exited().is_none()
        {
            process.signal("TERM");
            let deadline = std::time::Instant::now() + Duration::from_secs(2);
            while process.exited().is_none() && std::time::Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}
