//! A real server and its supervisor, from the inside.

use super::config::EmbeddedConfig;
use super::ending::{Stop, ask, signal};
use super::lock::StoreLock;
use super::room::{ENOUGH, Limit, Room};
use super::server::{State, Status};
use super::supervisor::{Process, Supervisor};
use super::{binary, conf};
use crate::nats::mark::StoreMark;
use crate::nats::test_files::set;
use rustix::process::Signal;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
    let (status, watched) = watch::channel(Status::default());
    (Supervisor::new(config, lock, mark, binary, credentials, status), watched)
}

/// Has the server read its configuration again. It says so after everything that it has said before.
async fn reload(supervisor: &Supervisor, process: &mut Process) -> io::Result<()> {
    process.told.limit.bytes += 1 << 20;
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
        let limit = format!("max_file_store: {}", process.store_limit());
        assert!(std::fs::read_to_string(away.join("nats-server.conf")).unwrap().contains(&limit));
    } else {
        assert!(again.unwrap_err().to_string().contains("another directory"));
    }
    assert_eq!(std::fs::read_to_string(&planted).unwrap(), "port: 1\n");
    assert_eq!(std::fs::read_dir(&run).unwrap().count(), 1, "no password goes there");
}

/// A nats-server whose first process says that it has met a full disk.
async fn meets_a_full_disk(store: &Path) -> PathBuf {
    let real = binary::obtain(None, store).await.unwrap().path;
    let (program, said) = (store.join("says"), store.join("said"));
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] || [ -e {said} ] || {{ : >{said}; \
         echo '[1] [ERR] JetStream out of File resources, will be DISABLED' >&2; }}\nexec {real} \"$@\"\n",
        said = said.display(),
        real = real.display()
    );
    std::fs::write(&program, script).unwrap();
    set(&program, 0o700);
    program
}

/// JetStream stays off after it has met a full disk, also where somebody has made room at once.
#[tokio::test]
async fn a_disk_that_has_room_again_is_not_called_full_but_the_server_is_restarted() {
    let store = tempfile::tempdir().unwrap();
    let (mut supervisor, mut status) = supervisor_of(store.path(), Some(&meets_a_full_disk(store.path()).await)).await;
    let process = supervisor.start().await.unwrap();
    let (asker, stop) = Stop::new();
    let running = tokio::spawn(supervisor.run(process, stop));
    let restarted = status.wait_for(|status| {
        assert!(status.state != State::StorageFull && !status.disk_full);
        status.state == State::Ready && status.restarts == 1
    });
    tokio::time::timeout(PATIENCE, restarted).await.unwrap().unwrap();
    ask(&asker, PATIENCE);
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
    let (asker, stop) = Stop::new();
    let running = tokio::spawn(supervisor.run(process, stop));
    tokio::time::timeout(PATIENCE, LOOKING.notified()).await.unwrap();
    assert_eq!(status.borrow().state, State::Restarting);
    ask(&asker, PATIENCE);
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
    let (asker, stop) = Stop::new();
    let running = tokio::spawn(supervisor.run(process, stop));
    let back = status.wait_for(|status| status.state == State::Ready && status.restarts == 1);
    tokio::time::timeout(PATIENCE, back).await.unwrap().unwrap();
    let text = std::fs::read_to_string(store.path().join("run/nats-server.conf")).unwrap();
    assert!(text.contains(&format!("max_file_store: {limit}\n")), "{text}");
    ask(&asker, PATIENCE);
    tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap();
}

/// Others have filled the disk that the limit was made of.
#[tokio::test]
async fn a_restart_for_space_without_a_look_brings_the_limit_down_to_what_is_free() {
    let store = tempfile::tempdir().unwrap();
    let (mut supervisor, mut status) = supervisor_of(store.path(), Some(&meets_a_full_disk(store.path()).await)).await;
    let mut process = supervisor.start().await.unwrap();
    const TAKEN: u64 = 1 << 40;
    let seen = Room { taken: TAKEN, reserved: 0, free: 1 << 50 };
    process.told.limit = Limit::of(seen);
    (supervisor.look, supervisor.look_patience) = (endless, Duration::from_millis(100));
    supervisor.free = |_| Ok(TAKEN);
    let other_end = supervisor.limit_at_restart(process.told.limit, false).await;
    assert_eq!(other_end.bytes, process.store_limit(), "nothing says that it is too much");
    let (asker, stop) = Stop::new();
    let running = tokio::spawn(supervisor.run(process, stop));
    let back = status.wait_for(|status| status.state == State::Ready && status.restarts == 1);
    tokio::time::timeout(PATIENCE, back).await.unwrap().unwrap();
    let text = std::fs::read_to_string(store.path().join("run/nats-server.conf")).unwrap();
    let limit = Limit::of(Room { free: TAKEN, ..seen }).bytes;
    assert!(limit < 2 * TAKEN && text.contains(&format!("max_file_store: {limit}\n")), "{limit}: {text}");
    ask(&asker, PATIENCE);
    tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap();
}

/// The limit of the process before is kept for a moment only: it may be far too low.
#[tokio::test]
async fn a_server_with_a_limit_that_nobody_has_looked_for_is_looked_at_first_of_all() {
    static LOOKING: Notify = Notify::const_new();
    fn look(_: &Path, _: &CancellationToken) -> io::Result<Room> {
        LOOKING.notify_one();
        Ok(Room { taken: 0, reserved: 0, free: 1 << 50 })
    }
    let store = tempfile::tempdir().unwrap();
    let (mut supervisor, _) = supervisor(store.path()).await;
    let process = supervisor.start().await.unwrap();
    supervisor.look = look;
    let mut told = process.told;
    told.limit = told.limit.without_a_look();
    let following = supervisor.follow_room(process.pid, &mut told, process.heard.clone());
    // Others are looked at ten seconds later.
    tokio::select! {
        () = following => {}
        looked = tokio::time::timeout(Duration::from_secs(8), LOOKING.notified()) => looked.unwrap(),
    }
}

#[tokio::test]
async fn a_full_disk_counts_as_full_through_a_restart_that_makes_no_room() {
    static FREE: AtomicU64 = AtomicU64::new(0);
    let store = tempfile::tempdir().unwrap();
    let (mut supervisor, mut status) = supervisor_of(store.path(), Some(&meets_a_full_disk(store.path()).await)).await;
    let process = supervisor.start().await.unwrap();
    supervisor.free = |_| Ok(FREE.load(Ordering::Relaxed));
    supervisor.first_patience = Duration::from_millis(1);
    let (asker, stop) = Stop::new();
    let running = tokio::spawn(supervisor.run(process, stop));
    let mut when = async |wanted: &dyn Fn(&Status) -> bool| {
        let reached = tokio::time::timeout(PATIENCE, status.wait_for(wanted)).await;
        *reached.expect("it comes to that").unwrap()
    };
    when(&|status| status.state == State::StorageFull && status.disk_full).await;
    // Every state from there on is seen by whoever tells the publishers.
    let restarted = when(&|status| !status.disk_full || (status.state == State::Ready && status.restarts == 1)).await;
    assert!(restarted.disk_full, "{restarted:?}");
    FREE.store(ENOUGH - 1, Ordering::Relaxed);
    let room = when(&|status| !status.disk_full).await;
    assert_eq!((room.state, room.restarts), (State::Ready, 1), "messages have expired");
    ask(&asker, PATIENCE);
    tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap();
}

/// What the store's note says of how it was left.
fn was_closed(store: &Path) -> bool {
    let note: serde_json::Value =
        serde_json::from_slice(&std::fs::read(store.join(crate::nats::mark::FILE)).unwrap()).unwrap();
    note["clean"].as_bool().unwrap()
}

#[tokio::test]
async fn a_stop_between_two_processes_closes_the_store_that_the_first_one_left_in_order() {
    static LOOKING: Notify = Notify::const_new();
    fn look(store: &Path, given_up: &CancellationToken) -> io::Result<Room> {
        LOOKING.notify_one();
        endless(store, given_up)
    }
    let store = tempfile::tempdir().unwrap();
    let (mut supervisor, status) = supervisor_of(store.path(), Some(&meets_a_full_disk(store.path()).await)).await;
    let process = supervisor.start().await.unwrap();
    (supervisor.look, supervisor.look_patience) = (look, PATIENCE * 100);
    let (asker, stop) = Stop::new();
    let running = tokio::spawn(supervisor.run(process, stop));
    tokio::time::timeout(PATIENCE, LOOKING.notified()).await.unwrap();
    assert_eq!(status.borrow().state, State::Restarting);
    assert!(!was_closed(store.path()));
    ask(&asker, PATIENCE);
    tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap();
    assert!(was_closed(store.path()));
}

#[tokio::test]
async fn a_stop_cuts_short_the_end_of_a_process_that_was_to_be_restarted() {
    let store = tempfile::tempdir().unwrap();
    let (mut supervisor, _) = supervisor(store.path()).await;
    let process = supervisor.start().await.unwrap();
    signal(process.pid, Signal::STOP);
    let (asker, stop) = Stop::new();
    let mut finishing = std::pin::pin!(supervisor.finish(process, &stop));
    assert!(futures_util::poll!(&mut finishing).is_pending());
    ask(&asker, Duration::ZERO);
    let in_order =
        tokio::time::timeout(Duration::from_secs(3), finishing).await.expect("it is not waited for any more");
    assert!(!in_order, "it was killed");
}

#[tokio::test]
async fn the_ports_are_read_again_after_an_attempt_that_failed() {
    let store = tempfile::tempdir().unwrap();
    let (supervisor, _) = supervisor(store.path()).await;
    let (away, run) = (store.path().join("away"), store.path().join("there"));
    std::fs::create_dir(&away).unwrap();
    std::fs::write(away.join("nats-server_7.ports"), r#"{"nats":["nats://127.0.0.1:4333"]}"#).unwrap();
    let mut port = std::pin::pin!(supervisor.wait_for_port(7, &run));
    assert!(futures_util::poll!(&mut port).is_pending(), "there is nothing to be read");
    std::fs::rename(away, &run).unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, port).await.unwrap(), 4333);
}
