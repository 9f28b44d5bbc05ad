//! A real server and its supervisor, from the inside.

use super::config::EmbeddedConfig;
use super::lock::StoreLock;
use super::room::Room;
use super::server::{State, Status};
use super::supervisor::{Process, Supervisor, signal};
use super::{binary, conf};
use crate::nats::mark::StoreMark;
use crate::nats::test_files::set;
use rustix::process::Signal;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);

async fn supervisor(store: &Path) -> (Supervisor, watch::Receiver<Status>) {
    supervisor_of(store, None).await
}

async fn supervisor_of(store: &Path, bin: Option<&Path>) -> (Supervisor, watch::Receiver<Status>) {
    let config = EmbeddedConfig {
        addr: "127.0.0.1:-1".parse().unwrap(),
        store_dir: store.to_owned(),
        ..EmbeddedConfig::default()
    };
    let lock = StoreLock::acquire(store, PATIENCE).await.unwrap();
    let binary = binary::obtain(bin, store).await.unwrap();
    let credentials = conf::client_credentials(&config).unwrap();
    let mark = Arc::new(StoreMark::open(store, false).unwrap());
    let (status, watched) = watch::channel(Status { state: State::Starting, pid: None, restarts: 0 });
    (Supervisor::new(config, lock, mark, binary, credentials, status), watched)
}

/// Has the server read its configuration again. It says so after everything that it has said before.
async fn reload(supervisor: &Supervisor, process: &mut Process) -> io::Result<()> {
    process.told.max_store += 1 << 20;
    let mut heard = process.heard.clone();
    supervisor.reload(process.pid, &process.told, &mut heard).await
}

/// Sends these bytes to the client port, and waits until the server has hung up.
async fn say(supervisor: &Supervisor, bytes: &[u8]) -> String {
    let mut peer = TcpStream::connect(supervisor.addr.to_string()).await.unwrap();
    peer.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // What was not read when it hung up is a reset.
    let _ = tokio::time::timeout(PATIENCE, peer.read_to_end(&mut answer)).await.expect("the server hangs up");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_peer_without_a_password_makes_nobody_believe_that_the_disk_is_full() {
    let store = tempfile::tempdir().unwrap();
    let (mut supervisor, _) = supervisor(store.path()).await;
    let mut process = supervisor.start().await.unwrap();
    let refused = say(&supervisor, b"Cno space left on device\r\n").await;
    assert!(refused.contains("-ERR"), "{refused}");
    for user in ["no space left on device", "JetStream out of File resources, will be DISABLED", "[MSG_PAYLOAD:"] {
        let connect = format!("CONNECT {{\"user\":\"{user}\",\"pass\":\"x\",\"verbose\":false}}\r\nPING\r\n");
        let refused = say(&supervisor, connect.as_bytes()).await;
        assert!(refused.contains("Authorization Violation"), "{refused}");
    }
    reload(&supervisor, &mut process).await.unwrap();
    let heard = *process.heard.borrow();
    assert_eq!((heard.out_of_space, heard.reloads), (false, 1));
}

#[tokio::test]
async fn row_22_a_directory_in_place_of_the_generated_files_is_neither_written_nor_read() {
    let store = tempfile::tempdir().unwrap();
    let (mut supervisor, _) = supervisor(store.path()).await;
    let mut process = supervisor.start().await.unwrap();
    let (run, away) = (store.path().join("run"), store.path().join("away"));
    std::fs::rename(&run, &away).unwrap();
    std::fs::create_dir(&run).unwrap();
    let planted = run.join("nats-server.conf");
    std::fs::write(&planted, "port: 1\n").unwrap();
    let again = reload(&supervisor, &mut process).await;
    if cfg!(target_os = "linux") {
        again.expect("it reads its own");
        let limit = format!("max_file_store: {}", process.told.max_store);
        assert!(std::fs::read_to_string(away.join("nats-server.conf")).unwrap().contains(&limit));
    } else {
        assert!(again.unwrap_err().to_string().contains("another directory"));
    }
    assert_eq!(std::fs::read_to_string(&planted).unwrap(), "port: 1\n");
    assert_eq!(std::fs::read_dir(&run).unwrap().count(), 1, "no password goes there");
}

/// JetStream stays off after it has met a full disk, also where somebody has made room at once.
#[tokio::test]
async fn a_disk_that_has_room_again_is_not_called_full_but_the_server_is_restarted() {
    let store = tempfile::tempdir().unwrap();
    let real = binary::obtain(None, store.path()).await.unwrap().path;
    let (program, said) = (store.path().join("says"), store.path().join("said"));
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] || [ -e {said} ] || {{ : >{said}; \
         echo '[1] [ERR] JetStream out of File resources, will be DISABLED' >&2; }}\nexec {real} \"$@\"\n",
        said = said.display(),
        real = real.display()
    );
    std::fs::write(&program, script).unwrap();
    set(&program, 0o700);
    let (mut supervisor, mut status) = supervisor_of(store.path(), Some(&program)).await;
    let process = supervisor.start().await.unwrap();
    let stop = CancellationToken::new();
    let (_keep, timeout) = watch::channel(PATIENCE);
    let running = tokio::spawn(supervisor.run(process, stop.clone(), timeout));
    let restarted = status.wait_for(|status| {
        assert_ne!(status.state, State::StorageFull);
        status.state == State::Ready && status.restarts == 1
    });
    tokio::time::timeout(PATIENCE, restarted).await.unwrap().unwrap();
    stop.cancel();
    tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap();
}

/// A look at a store that is so large that it does not end.
fn endless(_: &Path, given_up: &CancellationToken) -> io::Result<Room> {
    while !given_up.is_cancelled() {
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(io::ErrorKind::Interrupted.into())
}

#[tokio::test]
async fn a_long_look_at_the_store_holds_up_no_stop() {
    static LOOKING: Notify = Notify::const_new();
    fn look(store: &Path, given_up: &CancellationToken) -> io::Result<Room> {
        LOOKING.notify_one();
        endless(store, given_up)
    }
    let store = tempfile::tempdir().unwrap();
    let (mut supervisor, status) = supervisor(store.path()).await;
    let process = supervisor.start().await.unwrap();
    (supervisor.look, supervisor.look_patience) = (look, PATIENCE * 100);
    signal(process.pid, Signal::KILL);
    let stop = CancellationToken::new();
    let (_keep, timeout) = watch::channel(PATIENCE);
    let running = tokio::spawn(supervisor.run(process, stop.clone(), timeout));
    tokio::time::timeout(PATIENCE, LOOKING.notified()).await.unwrap();
    assert_eq!(status.borrow().state, State::Restarting);
    stop.cancel();
    tokio::time::timeout(PATIENCE, running).await.expect("a stop waits for no look").unwrap();
    assert_eq!(status.borrow().state, State::Stopped);
}

#[tokio::test]
async fn a_long_look_at_the_store_holds_up_no_restart() {
    let store = tempfile::tempdir().unwrap();
    let (mut supervisor, mut status) = supervisor(store.path()).await;
    let process = supervisor.start().await.unwrap();
    (supervisor.look, supervisor.look_patience) = (endless, Duration::from_millis(100));
    let limit = process.store_limit();
    signal(process.pid, Signal::KILL);
    let stop = CancellationToken::new();
    let (_keep, timeout) = watch::channel(PATIENCE);
    let running = tokio::spawn(supervisor.run(process, stop.clone(), timeout));
    let back = status.wait_for(|status| status.state == State::Ready && status.restarts == 1);
    tokio::time::timeout(PATIENCE, back).await.unwrap().unwrap();
    let text = std::fs::read_to_string(store.path().join("run/nats-server.conf")).unwrap();
    assert!(text.contains(&format!("max_file_store: {limit}\n")), "{text}");
    stop.cancel();
    tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap();
}
