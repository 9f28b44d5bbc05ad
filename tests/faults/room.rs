//! What an embedded store may take, on a small disk that others fill and give back.

use crate::disk::{Disk, Kind};
use crate::harness::carrick::Builder;
use crate::harness::{Backend, Server, eventually};
use serde_json::json;
use std::path::PathBuf;

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
    eventually("it is restarted", async || (restarts().await == 1).then_some(())).await;
    eventually("it stores again", async || (publish(&server).await == 201).then_some(())).await;
    let little = server.metric("embedded_nats_store_limit_bytes").await.unsigned_abs();
    assert!(little < 45 * MIB, "{little}");
    std::fs::remove_file(others).expect("it was written");
    for number in 0..80 {
        let what = format!("message {number} of 80 is stored, at {} MiB of room", disk.room() / MIB);
        eventually(&what, async || (publish(&server).await == 201).then_some(())).await;
    }
    let much = server.metric("embedded_nats_store_limit_bytes").await.unsigned_abs();
    assert!(much > 100 * MIB, "{much}");
    assert_eq!(restarts().await, 1, "nobody was cut off for it");
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
