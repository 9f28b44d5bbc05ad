//! With the real server.

use super::conf::{self, Runtime};
use super::*;
use crate::nats::embedded::lock::StoreLock;
use crate::secret::Secret;
use rustix::process::{Pid, Signal};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);
/// Names the store for [`parent_to_be_killed`], which otherwise does nothing.
const PARENT_STORE: &str = "CARRICK_TEST_ENATS_STORE";

/// Waits for the lock: a process that another test is just starting holds a copy of each descriptor, also of a lock that
/// was given back, until its program is executed.
fn config(store: &Path) -> EmbeddedConfig {
    EmbeddedConfig {
        addr: "127.0.0.1:-1".parse().unwrap(),
        store_dir: store.to_owned(),
        lock_timeout: PATIENCE,
        ..EmbeddedConfig::default()
    }
}

async fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !check() {
        assert!(tokio::time::Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn ready(server: &EmbeddedServer) {
    let mut status = server.status();
    tokio::time::timeout(PATIENCE, status.wait_for(|s| s.state == State::Ready)).await.unwrap().unwrap();
}

async fn jetstream(server: &EmbeddedServer) -> async_nats::jetstream::Context {
    // async-nats does not take credentials out of a URL.
    let url: url::Url = server.client_url().parse().unwrap();
    let options = async_nats::ConnectOptions::with_user_and_password(
        url.username().to_owned(),
        url.password().unwrap().to_owned(),
    );
    async_nats::jetstream::new(options.connect(url.as_str()).await.unwrap())
}

async fn store_message(server: &EmbeddedServer) {
    try_store(server).await.unwrap();
}

async fn try_store(server: &EmbeddedServer) -> Result<(), async_nats::Error> {
    let js = jetstream(server).await;
    let config = async_nats::jetstream::stream::Config {
        name: "log".into(),
        subjects: vec!["log.>".into()],
        ..Default::default()
    };
    js.get_or_create_stream(config).await?;
    js.publish("log.a", "kept".into()).await?.await?;
    Ok(())
}

async fn stored_messages(server: &EmbeddedServer) -> u64 {
    jetstream(server).await.get_stream("log").await.unwrap().cached_info().state.messages
}

fn kill(pid: u32) {
    rustix::process::kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
}

/// A process that has ended counts as gone, also while nobody has collected its status.
fn is_gone(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X'])),
        Err(_) => rustix::process::test_kill_process(Pid::from_raw(pid as i32).unwrap()).is_err(),
    }
}

#[tokio::test]
async fn starts_answers_and_stops() {
    let store = tempfile::tempdir().unwrap();
    let server = EmbeddedServer::start(config(&store.path().join("new"))).await.unwrap();
    ready(&server).await;
    assert_eq!(server.version(), VERSION.unwrap());
    assert_eq!(server.server_name(), "127.0.0.1-any");
    let pid = server.pid().unwrap();
    store_message(&server).await;
    assert_eq!(stored_messages(&server).await, 1);

    server.stop(PATIENCE).await;
    assert!(is_gone(pid));
    assert_eq!(server.status().borrow().state, State::Stopped);
    assert_eq!(server.pid(), None);
    // A second stop has nothing to wait for.
    server.stop(PATIENCE).await;
}

#[tokio::test]
async fn clients_without_the_password_are_refused() {
    let store = tempfile::tempdir().unwrap();
    let server = EmbeddedServer::start(config(store.path())).await.unwrap();
    let open = format!("nats://{}", server.addr());
    let error = async_nats::connect(open).await.unwrap_err();
    assert_eq!(error.kind(), async_nats::ConnectErrorKind::AuthorizationViolation, "{error}");
    server.stop(PATIENCE).await;
}

#[tokio::test]
async fn a_killed_server_comes_back_with_its_store_and_port() {
    let store = tempfile::tempdir().unwrap();
    let server = EmbeddedServer::start(config(store.path())).await.unwrap();
    store_message(&server).await;
    let (url, pid) = (server.client_url(), server.pid().unwrap());

    kill(pid);
    let mut status = server.status();
    let back = status.wait_for(|s| s.state == State::Ready && s.restarts == 1);
    let back = *tokio::time::timeout(PATIENCE, back).await.unwrap().unwrap();
    assert_ne!(back.pid, Some(pid));
    assert_eq!(server.client_url(), url);
    assert_eq!(stored_messages(&server).await, 1);
    server.stop(PATIENCE).await;
}

#[tokio::test]
async fn a_frozen_server_is_killed_when_its_time_is_over() {
    let store = tempfile::tempdir().unwrap();
    let server = EmbeddedServer::start(config(store.path())).await.unwrap();
    let pid = server.pid().unwrap();
    rustix::process::kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::STOP).unwrap();
    server.stop(Duration::from_millis(200)).await;
    assert!(is_gone(pid));
}

#[tokio::test]
async fn dropping_the_handle_stops_the_server() {
    let store = tempfile::tempdir().unwrap();
    let server = EmbeddedServer::start(config(store.path())).await.unwrap();
    let pid = server.pid().unwrap();
    drop(server);
    eventually("the server ends", || is_gone(pid)).await;
}

#[tokio::test]
async fn a_second_start_on_a_store_is_refused_and_names_the_holder() {
    let store = tempfile::tempdir().unwrap();
    let server = EmbeddedServer::start(config(store.path())).await.unwrap();
    let impatient = EmbeddedConfig { lock_timeout: Duration::ZERO, ..config(store.path()) };
    let error = EmbeddedServer::start(impatient).await.unwrap_err().to_string();
    assert!(error.contains(&store.path().display().to_string()), "{error}");
    assert!(error.contains(&format!("nats-server (pid {})", server.pid().unwrap())), "{error}");

    server.stop(PATIENCE).await;
    let next = EmbeddedServer::start(config(store.path())).await.unwrap();
    next.stop(PATIENCE).await;
}

#[tokio::test]
async fn the_lock_is_held_by_an_orphan_alone() {
    let store = tempfile::tempdir().unwrap();
    let lock = StoreLock::acquire(store.path(), Duration::ZERO).await.unwrap();
    let mut command = tokio::process::Command::new("sleep");
    command.arg("60");
    let mut orphan = spawn::spawn(command, [lock.descriptor()]).await.unwrap();
    drop(lock);
    let refused = StoreLock::acquire(store.path(), Duration::ZERO).await.unwrap_err();
    assert!(matches!(refused, EmbeddedError::Locked { .. }), "{refused}");

    orphan.kill().await.unwrap();
    StoreLock::acquire(store.path(), PATIENCE).await.unwrap();
}

/// The program that [`a_killed_parent_leaves_no_orphan`] kills: this very test binary, running only this.
#[tokio::test]
async fn parent_to_be_killed() {
    let Some(store) = std::env::var_os(PARENT_STORE) else { return };
    let server = EmbeddedServer::start(config(Path::new(&store))).await.unwrap();
    store_message(&server).await;
    println!("\nserver={}", server.pid().unwrap());
    std::future::pending::<()>().await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_killed_parent_leaves_no_orphan() {
    let store = tempfile::tempdir().unwrap();
    let mut parent = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "nats::embedded::tests::parent_to_be_killed", "--nocapture"])
        .env(PARENT_STORE, store.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(parent.stdout.take().unwrap()).lines();
    let pid: u32 = lines.map(|l| l.unwrap()).find_map(|l| l.strip_prefix("server=")?.parse().ok()).unwrap();
    assert!(!is_gone(pid));

    parent.kill().unwrap();
    parent.wait().unwrap();
    eventually("the server dies with its parent", || is_gone(pid)).await;

    // The same store opens at once after the crash, with what was acknowledged.
    let server = EmbeddedServer::start(config(store.path())).await.unwrap();
    assert_eq!(stored_messages(&server).await, 1);
    server.stop(PATIENCE).await;
}

#[tokio::test]
async fn an_address_in_use_is_a_start_error() {
    let store = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string().parse().unwrap();
    let error = EmbeddedServer::start(EmbeddedConfig { addr, ..config(store.path()) }).await.unwrap_err();
    assert!(matches!(error, EmbeddedError::Listen { option: "--enats_addr", .. }), "{error}");
}

#[tokio::test]
async fn something_else_than_a_nats_server_is_a_start_error() {
    let store = tempfile::tempdir().unwrap();
    for bin in ["/bin/ls", "/nowhere/nats-server"] {
        let config = EmbeddedConfig { bin: Some(bin.into()), ..config(store.path()) };
        let error = EmbeddedServer::start(config).await.unwrap_err();
        assert!(matches!(error, EmbeddedError::Binary { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_refuses_its_store_is_a_start_error_with_its_words() {
    let store = tempfile::tempdir().unwrap();
    std::fs::write(store.path().join("jetstream"), "in the way").unwrap();
    let error = EmbeddedServer::start(config(store.path())).await.unwrap_err();
    let EmbeddedError::Died { lines, .. } = &error else { panic!("{error}") };
    assert!(!lines.is_empty());
}

#[tokio::test]
async fn a_damaged_executable_is_replaced() {
    let store = tempfile::tempdir().unwrap();
    let path = binary::obtain(None, store.path()).await.unwrap().path;
    std::fs::write(&path, "damaged").unwrap();
    let again = binary::obtain(None, store.path()).await.unwrap();
    assert_eq!(again.path, path);
    assert_eq!(Some(again.version.as_str()), VERSION);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_executable_runs_from_memory() {
    assert_eq!(Some(binary::run_from_memory().await.unwrap().version.as_str()), VERSION);
}

#[tokio::test]
async fn a_slow_recovery_is_not_a_start_error() {
    let store = tempfile::tempdir().unwrap();
    let real = binary::obtain(None, store.path()).await.unwrap().path;
    let slow = store.path().join("slow");
    let script = format!("#!/bin/sh\n[ \"$1\" = --version ] || sleep 1\nexec {} \"$@\"\n", real.display());
    std::fs::write(&slow, script).unwrap();
    std::fs::set_permissions(&slow, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let config = EmbeddedConfig {
        addr: format!("127.0.0.1:{}", free_ports::<1>()[0]).parse().unwrap(),
        bin: Some(slow),
        listen_timeout: Duration::from_millis(100),
        ..config(store.path())
    };
    let server = EmbeddedServer::start(config).await.unwrap();
    assert_eq!(server.status().borrow().state, State::Starting);
    ready(&server).await;
    assert_eq!(server.status().borrow().restarts, 0);
    server.stop(PATIENCE).await;
}

/// Ports that were free just now, all different.
fn free_ports<const N: usize>() -> [u16; N] {
    [(); N].map(|()| crate::test_ports::free_port())
}

#[tokio::test]
async fn three_members_form_a_cluster_and_survive_one_that_leaves() {
    let stores = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let ports = free_ports::<3>();
    let mut servers = Vec::new();
    for (n, (store, port)) in stores.iter().zip(ports).enumerate() {
        let cluster = ClusterConfig {
            addr: format!("127.0.0.1:{port}").parse().unwrap(),
            name: "test".into(),
            routes: ports.iter().filter(|p| **p != port).map(|p| format!("nats://127.0.0.1:{p}").into()).collect(),
            secret: Secret::new("shared"),
        };
        let name = Some(format!("member-{n}"));
        let config = EmbeddedConfig { server_name: name, cluster: Some(cluster), ..config(store.path()) };
        servers.push(EmbeddedServer::start(config).await.unwrap());
    }
    for server in &servers {
        ready(server).await;
    }
    // A client may move on to any member.
    assert_eq!(servers[0].credentials(), servers[1].credentials());

    let leaving = servers.remove(0);
    let pid = leaving.pid().unwrap();
    leaving.stop(PATIENCE).await;
    assert!(is_gone(pid));
    tokio::time::timeout(PATIENCE, async { while try_store(&servers[0]).await.is_err() {} }).await.unwrap();
    for server in &servers {
        server.stop(PATIENCE).await;
    }
}

const SNAPSHOT_ADDR: &str = "nats://127.0.0.1:4222";

fn snapshot(config: &EmbeddedConfig) -> String {
    let runtime = Runtime {
        server_name: &config.server_name(),
        store_dir: Path::new("/srv/carrick-data"),
        ports_dir: Path::new("/srv/carrick-data/run"),
        credentials: &Credentials { user: "carrick".into(), password: Secret::new("p\"\\w") },
        addr: &config.addr,
        max_store: 95_000_000_000,
    };
    conf::generate(config, &runtime)
}

/// Compares with `testdata/nats/<name>.conf`; with `UPDATE_TESTDATA` set it writes the file instead.
fn assert_snapshot(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("testdata/nats/{name}.conf"));
    if std::env::var_os("UPDATE_TESTDATA").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{}", path.display());
}

#[tokio::test]
async fn generated_configurations_are_as_recorded_and_accepted_by_the_server() {
    let single = EmbeddedConfig { addr: SNAPSHOT_ADDR.parse().unwrap(), ..EmbeddedConfig::default() };
    let secret = Secret::new("shared");
    let cluster = EmbeddedConfig {
        addr: "[::]:4222".parse().unwrap(),
        server_name: Some("node-1".into()),
        max_payload: 8 << 20,
        debug: true,
        trace: true,
        sync: Some(SyncMode::Always),
        cluster: Some(ClusterConfig {
            addr: "0.0.0.0:6222".parse().unwrap(),
            name: "east".into(),
            routes: vec!["nats://node-2:6222".into(), "nats://other:pw@node-3:6222".into()],
            secret: secret.clone(),
        }),
        gateway: Some(GatewayConfig {
            addr: "0.0.0.0:7222".parse().unwrap(),
            name: "east".into(),
            advertise: Some("east.example:7222".into()),
            remotes: vec![RemoteGateway { name: "west".into(), urls: vec!["nats://west.example:7222".into()] }],
            secret,
        }),
        ..EmbeddedConfig::default()
    };
    let loopback_cluster = EmbeddedConfig { addr: single.addr.clone(), gateway: None, debug: false, ..cluster.clone() };

    let store = tempfile::tempdir().unwrap();
    let binary = binary::obtain(None, store.path()).await.unwrap();
    for (name, config) in [("single", single), ("cluster", cluster), ("loopback-cluster", loopback_cluster)] {
        let text = snapshot(&config);
        assert_snapshot(name, &text);
        let file = store.path().join("checked.conf");
        std::fs::write(&file, text).unwrap();
        let checked = std::process::Command::new(&binary.path).arg("-t").arg("-c").arg(&file).output().unwrap();
        assert!(checked.status.success(), "{name}: {}", String::from_utf8_lossy(&checked.stderr));
    }
}

#[test]
fn listener_addresses_are_read_and_written() {
    for (text, host, port, written) in [
        ("nats://127.0.0.1:4222", "127.0.0.1", Some(4222), "127.0.0.1:4222"),
        ("nats://0.0.0.0:-1/", "0.0.0.0", None, "0.0.0.0:-1"),
        ("[::1]:4222", "::1", Some(4222), "[::1]:4222"),
        (":4222", "0.0.0.0", Some(4222), "0.0.0.0:4222"),
    ] {
        let addr: ListenAddr = text.parse().unwrap();
        assert_eq!((addr.host.as_str(), addr.port), (host, port));
        assert_eq!(addr.to_string(), written);
    }
    for text in ["", "nats://localhost", "localhost:0", "localhost:70000", "::1:4222", "[x]:1", "nats://u:p@h:1"] {
        assert!(text.parse::<ListenAddr>().is_err(), "{text}");
    }
}

#[test]
fn secrets_do_not_show() {
    let config = EmbeddedConfig {
        credentials: Some(Credentials { user: "u".into(), password: Secret::new("hush") }),
        ..EmbeddedConfig::default()
    };
    assert!(!format!("{config:?}").contains("hush"));
}

#[test]
fn the_licence_ships() {
    assert!(LICENSE.contains("Apache License"));
    assert!(LICENSE.contains(&format!("nats-server {}", VERSION.unwrap())), "nats/NOTICE names another version");
}
