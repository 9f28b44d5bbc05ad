//! A real nats-server of the tests' own.

use super::patience::eventually_blocking;
use super::process::Process;
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;
use tempfile::TempDir;

/// Name and password of the user that nodes log in as, see [`NatsServer::with_users`].
#[allow(dead_code, reason = "the suites that share this file do not all restrict permissions")]
pub const NODE: &str = "node";

/// What nodes may not do.
#[derive(Clone, Default)]
pub struct Users {
    publish: Vec<String>,
    subscribe: Vec<String>,
}

#[allow(dead_code, reason = "the suites that share this file do not all restrict permissions")]
impl Users {
    pub fn deny_publish(mut self, subjects: &str) -> Self {
        self.publish.push(subjects.to_owned());
        self
    }

    pub fn deny_subscribe(mut self, subjects: &str) -> Self {
        self.subscribe.push(subjects.to_owned());
        self
    }

    fn write(&self, path: &Path) {
        let (publish, subscribe) = (&self.publish, &self.subscribe);
        let permissions = format!("publish: {{ deny: {publish:?} }}, subscribe: {{ deny: {subscribe:?} }}");
        let node = format!("{{ user: {NODE}, password: {NODE}, permissions: {{ {permissions} }} }}");
        let text = format!("authorization {{ users: [ {{ user: operator, password: operator }}, {node} ] }}\n");
        std::fs::write(path, text).expect("the configuration can be written");
    }
}

pub struct NatsServer {
    folder: TempDir,
    process: Option<Process>,
    address: SocketAddr,
    /// See [`super::monitor`].
    pub(super) monitor: SocketAddr,
}

impl NatsServer {
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// Starts a server that stores nothing.
    pub fn without_jetstream() -> Self {
        let mut server = Self::prepare();
        server.launch();
        server
    }

    /// Starts a server where nodes log in as [`NODE`]; everybody else is an operator who may do anything.
    #[allow(dead_code, reason = "the suites that share this file do not all restrict permissions")]
    pub fn with_users(users: &Users) -> Self {
        let server = Self::prepare();
        users.write(&server.folder.path().join("users.conf"));
        server.configure("include \"users.conf\"\nno_auth_user: operator\n");
        server.finish_start("")
    }

    /// Changes what nodes may do, without a restart.
    #[allow(dead_code, reason = "the suites that share this file do not all restrict permissions")]
    pub fn set_users(&mut self, users: &Users) {
        users.write(&self.folder.path().join("users.conf"));
        let reloads = |server: &Self| server.process().log().matches("Reloaded server configuration").count();
        let before = reloads(self);
        self.process().signal("HUP");
        let done = || (reloads(self) > before).then_some(()).ok_or_else(|| "not reloaded".to_owned());
        eventually_blocking(done).unwrap_or_else(|reason| panic!("{reason}\n{}", self.process().log_tail()));
    }

    /// Starts a server with further settings, one a line.
    #[allow(dead_code, reason = "the suites that share this file do not all need settings")]
    pub fn with_settings(settings: &str) -> Self {
        let server = Self::prepare();
        server.configure(settings);
        server.configure("\n");
        server.finish_start("")
    }

    /// Starts a server whose storage is limited to this many bytes.
    pub fn with_storage(bytes: u64) -> Self {
        Self::start_with(&format!("max_file_store: {bytes}"))
    }

    fn start_with(limits: &str) -> Self {
        Self::prepare().finish_start(limits)
    }

    fn finish_start(mut self, limits: &str) -> Self {
        let store = self.store();
        self.configure(&format!("jetstream {{ store_dir: {store:?}, {limits} }}\n"));
        self.restart();
        self
    }

    fn configure(&self, text: &str) {
        let mut config = std::fs::OpenOptions::new().append(true).open(self.config()).expect("it was written");
        config.write_all(text.as_bytes()).expect("the configuration can be written");
    }

    fn prepare() -> Self {
        let folder = tempfile::Builder::new().prefix("nats-").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
        let folder = folder.expect("a folder can be created");
        let config = format!("ports_file_dir: {:?}\nping_interval: \"2s\"\nhttp: \"127.0.0.1:-1\"\n", folder.path());
        std::fs::write(folder.path().join("server.conf"), config).expect("the configuration can be written");
        let unbound = SocketAddr::from(([127, 0, 0, 1], 0));
        Self { folder, process: None, address: unbound, monitor: unbound }
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("server.conf")
    }

    /// Starts it (again) on the same port and store and waits until JetStream answers.
    pub fn restart(&mut self) {
        self.launch();
        let ready = eventually_blocking(|| jetstream_answers(self.address).map_err(|error| error.to_string()));
        ready.unwrap_or_else(|reason| panic!("JetStream does not answer: {reason}\n{}", self.process().log_tail()));
    }

    fn launch(&mut self) {
        let port = if self.address.port() == 0 { "-1".to_owned() } else { self.address.port().to_string() };
        let mut command = Command::new(binary());
        command.arg("-c").arg(self.config()).args(["-a", "127.0.0.1", "-p", &port]);
        let process = Process::spawn(command, &self.folder.path().join("nats.log"));
        let ports = self.folder.path().join(ports_file(process.pid()));
        let address = eventually_blocking(|| {
            let text = std::fs::read_to_string(&ports).map_err(|error| error.to_string())?;
            let ports: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            let bound = |what: &str, scheme: &str| {
                let url = ports[what][0].as_str().ok_or("no port yet")?;
                url.trim_start_matches(scheme).parse::<SocketAddr>().map_err(|error| error.to_string())
            };
            Ok((bound("nats", "nats://")?, bound("monitoring", "http://")?))
        });
        (self.address, self.monitor) =
            address.unwrap_or_else(|reason| panic!("nats-server: {reason}\n{}", process.log_tail()));
        self.process = Some(process);
    }

    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    fn process(&self) -> &Process {
        self.process.as_ref().expect("the server has been started")
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        self.process.as_mut().expect("the server has been started").kill();
    }

    /// Stops it gracefully.
    pub fn stop(&mut self) {
        self.process().signal("TERM");
        self.process.as_mut().expect("the server has been started").wait(Duration::from_secs(10));
    }

    /// Freezes it: connections stand, nothing is answered.
    pub fn freeze(&self) {
        let process = self.process();
        process.signal("STOP");
        let stopped = eventually_blocking(|| process.is_stopped().then_some(()).ok_or_else(|| "it runs on".to_owned()));
        stopped.expect("nats-server can be frozen");
    }

    pub fn thaw(&self) {
        self.process().signal("CONT");
    }

    /// An operator's connection.
    pub async fn operator(&self) -> async_nats::Client {
        async_nats::connect(self.url()).await.expect("nats-server takes connections")
    }
}

fn ports_file(pid: u32) -> String {
    let name = binary().file_name().expect("a program has a name").to_string_lossy().into_owned();
    format!("{name}_{pid}.ports")
}

/// One JetStream request in NATS' own words: the tests of an async client's server need no runtime to start it.
fn jetstream_answers(to: SocketAddr) -> std::io::Result<()> {
    let mut connection = TcpStream::connect(to)?;
    connection.set_read_timeout(Some(Duration::from_secs(1)))?;
    connection.write_all(b"CONNECT {\"verbose\":false}\r\nSUB ready 1\r\nPUB $JS.API.INFO ready 0\r\n\r\n")?;
    for line in BufReader::new(connection).lines() {
        if line?.starts_with("MSG ready") {
            return Ok(());
        }
    }
    Err(std::io::ErrorKind::UnexpectedEof.into())
}

/// The pinned nats-server: the one that `CARRICK_TEST_NATS_SERVER` names, else what `scripts/nats-server` fetches.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("CARRICK_TEST_NATS_SERVER") {
            return PathBuf::from(path);
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/nats-server");
        let output = Command::new(&script).output().expect("scripts/nats-server can be started");
        assert!(output.status.success(), "scripts/nats-server: {}", String::from_utf8_lossy(&output.stderr));
        PathBuf::from(String::from_utf8(output.stdout).expect("a path is text").trim())
    })
}
