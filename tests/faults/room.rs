//! What an embedded store may take, on a small disk that others fill and give back.

use crate::disk::{Disk, Kind};
use crate::harness::carrick::Builder;
use crate::harness::client::messages;
use crate::harness::{Backend, Server, eventually, public, since, unix_now};
use carrick::log_limit::PERIOD;
use serde_json::json;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// A disk of its own for a store, and a server that keeps it there. `None`: there can be none here, which CI does not accept.
fn on_a_small_disk() -> Option<(tempfile::TempDir, Disk, Builder)> {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder can be created");
    match Disk::mount(folder.path(), Kind::Memory) {
        Ok(disk) => {
            let builder = Server::on(Backend::EmbeddedNats).replace("enats_store_dir", folder.path().display());
            let builder = builder.option("history_limit", 100_000).option("metrics_http", "/metrics");
            Some((folder, disk, builder))
        }
        Err(why) => {
            assert!(std::env::var_os("CI").is_none(), "CI must be able to run this: {why}");
            eprintln!("NOT RUN: {why}");
            None
        }
    }
}

/// Others write to the disk until it has only so much room.
fn leave(disk: &Disk, room: u64) -> PathBuf {
    let file = disk.path().join("of-others");
    let size = usize::try_from(disk.room().checked_sub(room).expect("there is more room")).expect("a small disk");
    std::fs::write(&file, vec![b'x'; size]).expect("there is room");
    file
}

/// A big message. The store may have it or not.
async fn publish(server: &Server) -> u16 {
    server.post(&json!({"stream": "chat", "data": "x".repeat(900_000)}).to_string()).await.status
}

/// A full disk gets a little room, so that nats-server is restarted, and then much.
#[tokio::test]
async fn row_12_a_store_gets_the_room_that_others_give_back_without_a_restart() {
    let Some((_folder, disk, builder)) = on_a_small_disk() else { return };
    let server = builder.start();
    assert_eq!(publish(&server).await, 201);
    let others = leave(&disk, 40 * MIB);
    disk.fill();
    eventually("the disk is full", async || (publish(&server).await == 503).then_some(())).await;
    let restarts = async || server.metric("embedded_nats_restarts_total").await;
    disk.make_room();
    eventually("it is restarted", async || (restarts().await > 0).then_some(())).await;
    eventually("it stores again", async || (publish(&server).await == 201).then_some(())).await;
    let before = restarts().await;
    let little = server.metric("embedded_nats_store_limit_bytes").await.unsigned_abs();
    assert!(little < 45 * MIB, "{little}");
    std::fs::remove_file(others).expect("it was written");
    for number in 0..80 {
        let what = format!("message {number} of 80 is stored, at {} MiB of room", disk.room() / MIB);
        eventually(&what, async || (publish(&server).await == 201).then_some(())).await;
    }
    let much = server.metric("embedded_nats_store_limit_bytes").await.unsigned_abs();
    assert!(much > 100 * MIB, "{much}");
    assert_eq!(restarts().await, before, "nobody was cut off for it");
}

/// The sessions' share was made of a free disk, and is more than others have left since.
#[tokio::test]
async fn row_12_policies_change_on_a_disk_with_less_room_than_the_sessions_have_reserved() {
    let Some((_folder, disk, builder)) = on_a_small_disk() else { return };
    let mut server = builder.start();
    assert_eq!(publish(&server).await, 201);
    server.stop();
    leave(&disk, 8 * MIB);
    let (code, said) = server.tool(&["policy", "apply"], &["--history=pattern=news/*,limit=5"]);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = server.tool(&["policy", "apply"], &["--history=pattern=news/*,limit=9,ttl=1h"]);
    assert_eq!(code, Some(0), "{said}");
    server.set("history", "pattern=news/*,limit=9,ttl=1h");
    server.start();
    assert_eq!(publish(&server).await, 201);
}

/// For a flood to fill a store.
const FLOOD: Duration = Duration::from_secs(120);
/// Bytes of a message of a flood.
const DROP: u64 = 100_000;

/// Publishes as fast as it goes until so many messages are stored and some were refused.
async fn flood(server: &Server, enough: u64) {
    let body = json!({"stream": "flood", "data": "x".repeat(usize::try_from(DROP).expect("small"))}).to_string();
    let (stored, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    let begun = Instant::now();
    let publisher = async || {
        while stored.load(Relaxed) < enough || refused.load(Relaxed) == 0 {
            assert!(begun.elapsed() < FLOOD, "it is not filled: {stored:?} of {enough} stored, {refused:?} not");
            match server.post(&body).await.status {
                201 => stored.fetch_add(1, Relaxed),
                503 => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    refused.fetch_add(1, Relaxed)
                }
                other => panic!("{other}"),
            };
        }
    };
    futures_util::future::join_all((0..8).map(|_| publisher())).await;
}

/// Expired messages keep their place in a block until all of it has expired: the server's files take more than it counts.
#[tokio::test]
async fn row_12_a_store_that_its_own_messages_fill_leaves_the_disk_room_and_goes_on_when_they_expire() {
    let Some((_folder, disk, builder)) = on_a_small_disk() else { return };
    let mut server = builder.replace("history_ttl", "4s").replace("dedup_window", "4s").start();
    server.stop();
    // The limit is of what is free at the start.
    leave(&disk, 64 * MIB);
    let started = Instant::now();
    server.start();
    let limit = server.metric("embedded_nats_store_limit_bytes").await.unsigned_abs();
    // It is filled, and again.
    flood(&server, limit * 3 / 2 / DROP).await;
    eventually("it stores again", async || (publish(&server).await == 201).then_some(())).await;
    let log = server.log();
    assert!(!log.contains("no space left on device"), "{log}");
    assert_eq!(server.metric("embedded_nats_restarts_total").await, 0);
    let about_limit = log.lines().filter(|line| line.contains("the store has reached its limit")).count() as u64;
    let periods = 1 + started.elapsed().as_secs() / PERIOD.as_secs();
    assert!((1..=periods).contains(&about_limit), "{about_limit} lines in {periods} periods: {log}");
}

/// Once it has met a full disk nats-server removes nothing any more. A new one does.
#[tokio::test]
async fn row_12_a_full_disk_gets_room_from_expired_messages_alone() {
    let Some((_folder, disk, builder)) = on_a_small_disk() else { return };
    let builder = builder
        .replace("history_ttl", "3s")
        .replace("dedup_window", "3s")
        .option("history", "pattern=kept/*,limit=100,ttl=1h");
    let begun = unix_now();
    let server = builder.start();
    server.publish_numbers("kept/1", 1..=20).await;
    let room = disk.room();
    for _ in 0..60 {
        assert_eq!(publish(&server).await, 201);
    }
    // On a busy machine the first ones have expired by now.
    let stored = room - disk.room();
    let last = server.publish("chat", json!("last")).await;
    disk.fill();
    assert_eq!(disk.room(), 0);
    let of_others = || std::fs::metadata(disk.path().join("ballast")).expect("it is there").len();
    let others = of_others();
    let met = async || {
        let status = publish(&server).await;
        (status == 503 && server.log().contains("the disk of the store is full")).then_some(())
    };
    eventually("nats-server meets it", met).await;
    eventually("it stores again", async || (publish(&server).await == 201).then_some(())).await;
    assert_eq!(of_others(), others, "nobody made room");
    // They expire one after another.
    eventually("there is room", async || (disk.room() > stored / 2).then_some(())).await;
    let next = server.publish_eventually("chat", json!("next")).await;
    assert!(next.epoch == last.epoch && next.offset > last.offset, "{last:?}, then {next:?}");
    server.publish_eventually("kept/1", json!(21)).await;
    let mut client = server.connect().await;
    client.subscribe(&public("kept/1")).await;
    let kept = client.history(&public("kept/1"), since(begun)).await;
    assert_eq!(
        messages(&kept),
        (1..=21).map(|number| json!(number)).collect::<Vec<_>>(),
        "what has not expired is there"
    );
    let complaints = server.log().matches("no space left on device").count();
    assert!(complaints < 10, "{complaints} lines of the server about one full disk: {}", server.log());
}
