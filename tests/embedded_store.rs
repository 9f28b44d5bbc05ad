//! The epoch as proof that the past is what it was: what can happen to the store of an embedded nats-server, and what
//! clients with positions of before are told.
//!
//! A crash of the machine is simulated: the process is killed, the note of how the store was left gets another boot id,
//! and the end of the log is cut off, as it is where the kernel had not written it yet.

use crate::harness::client::messages;
use crate::harness::*;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn store(server: &Server) -> PathBuf {
    server.folder().join("store")
}

/// The newest block of the log.
fn newest_block(server: &Server) -> PathBuf {
    let streams = store(server).join("jetstream/$G/streams");
    let streams = fs::read_dir(streams).expect("the store has streams").map(|entry| entry.expect("listed").path());
    let is_log = |path: &PathBuf| path.to_string_lossy().contains("_log_default_");
    let blocks = streams.filter(is_log).flat_map(|log| fs::read_dir(log.join("msgs")).expect("a log has blocks"));
    let blocks = blocks.map(|entry| entry.expect("listed").path());
    blocks.filter(|path| path.extension().is_some_and(|end| end == "blk")).max().expect("the log has a block")
}

/// The store as it was at some moment: where the log ended, and what the node had noted of it.
struct Moment {
    block: PathBuf,
    length: u64,
    witness: Vec<u8>,
}

impl Moment {
    /// Waits until the witness beside the store knows this position.
    async fn after(server: &Server, position: &Position) -> Self {
        let block = newest_block(server);
        let length = fs::metadata(&block).expect("the block is there").len();
        let witness = eventually("the witness is written", async || {
            let text = fs::read(store(server).join("witness")).ok()?;
            let mark: Value = serde_json::from_slice(&text).ok()?;
            (mark["seq"].as_u64() == Some(position.offset)).then_some(text)
        })
        .await;
        Self { block, length, witness }
    }

    /// Cuts off what the log got since.
    fn cut(&self) {
        let block = fs::File::options().write(true).open(&self.block).expect("the block is there");
        assert!(block.metadata().expect("it has a length").len() > self.length, "there is something to cut off");
        block.set_len(self.length).expect("it can be cut");
        // Written at an orderly end only.
        let _ = fs::remove_file(self.block.with_file_name("index.db"));
    }

    fn put_witness_back(&self, server: &Server) {
        fs::write(store(server).join("witness"), &self.witness).expect("the witness can be written");
    }
}

/// Makes the store one that was last open before the machine was started.
fn start_the_machine_anew(server: &Server) {
    let path = store(server).join("boot");
    let mut note: Value = serde_json::from_slice(&fs::read(&path).expect("a note")).expect("JSON");
    note["boot"] = json!("00000000-0000-0000-0000-000000000000");
    fs::write(&path, note.to_string()).expect("it can be written");
}

/// A client with this position is told that it is void, and new messages have positions of another epoch.
async fn expect_another_epoch(server: &Server, old: &Position) {
    let fresh = server.publish("chat", json!("fresh")).await;
    assert_ne!(fresh.epoch, old.epoch);
    let mut client = server.subscriber("chat").await;
    client.ask_history(&public("chat"), after(old)).await;
    client.expect(reject_history(&public("chat"))).await;
    assert_eq!(server.publish("chat", json!("next")).await.epoch, fresh.epoch, "and it stays");
}

/// A client with this position gets what came since.
async fn expect_the_same_epoch(server: &Server, old: &Position) {
    let fresh = server.publish("chat", json!("fresh")).await;
    assert_eq!(fresh.epoch, old.epoch);
    assert!(fresh.offset > old.offset);
    let mut client = server.subscriber("chat").await;
    assert_eq!(messages(&client.history(&public("chat"), after(old)).await), ["fresh"]);
}

#[tokio::test]
async fn ruling_12_after_a_crash_of_the_machine_the_epoch_is_another_and_sessions_are_gone() {
    let mut server = Server::on(Backend::EmbeddedNats).start();
    let mut client = server.subscriber("chat").await;
    let kept = server.publish("chat", json!(1)).await;
    let moment = Moment::after(&server, &kept).await;
    let lost = server.publish("chat", json!(2)).await;
    client.expect_numbers(&public("chat"), 1..=2).await;
    let sid = client.drop_hard();
    server.kill();
    start_the_machine_anew(&server);
    moment.cut();
    moment.put_witness_back(&server);
    server.start();
    // Without a new epoch another message would get the lost one's offset.
    let fresh = server.publish("chat", json!("other")).await;
    assert_eq!(fresh.offset, lost.offset);
    expect_another_epoch(&server, &lost).await;
    expect_another_epoch(&server, &kept).await;
    assert!(!server.resume(&sid).await.is_restored(), "what revoked it may have been lost");
    assert!(server.log().contains("the machine was started anew"), "{}", server.log());
}

#[tokio::test]
async fn ruling_12_a_crash_of_the_machine_is_dealt_with_once() {
    let mut server = Server::on(Backend::EmbeddedNats).start();
    let position = server.publish("chat", json!(1)).await;
    server.kill();
    start_the_machine_anew(&server);
    server.start();
    expect_another_epoch(&server, &position).await;
    let position = server.publish("chat", json!(2)).await;
    server.kill();
    server.start();
    expect_the_same_epoch(&server, &position).await;
}

#[tokio::test]
async fn ruling_12_a_clean_stop_keeps_the_epoch_on_another_boot() {
    let mut server = Server::on(Backend::EmbeddedNats).start();
    let mut client = server.subscriber("chat").await;
    let position = server.publish("chat", json!(1)).await;
    client.expect_message(&public("chat"), json!(1)).await;
    let sid = client.drop_hard();
    server.stop();
    start_the_machine_anew(&server);
    server.start();
    assert_eq!(server.resume(&sid).await.restored(), [public("chat")]);
    expect_the_same_epoch(&server, &position).await;
}

#[tokio::test]
async fn ruling_12_a_killed_process_keeps_the_epoch() {
    let mut server = Server::on(Backend::EmbeddedNats).start();
    let position = server.publish("chat", json!(1)).await;
    server.kill();
    server.start();
    expect_the_same_epoch(&server, &position).await;
}

#[tokio::test]
async fn ruling_12_a_store_that_is_always_synced_keeps_the_epoch() {
    let mut server = Server::on(Backend::EmbeddedNats).option("enats_sync", "always").start();
    let position = server.publish("chat", json!(1)).await;
    server.kill();
    start_the_machine_anew(&server);
    server.start();
    expect_the_same_epoch(&server, &position).await;
}

/// The whole folder is put back, with the witness and the note of its clean end in it.
#[tokio::test]
async fn ruling_12_an_old_copy_of_the_whole_folder_is_another_epoch() {
    let mut server = Server::on(Backend::EmbeddedNats).start();
    server.publish("chat", json!(1)).await;
    server.stop();
    let (folder, backup) = (store(&server), server.folder().join("backup"));
    let copied = Command::new("cp").arg("-a").arg(&folder).arg(&backup).status().expect("cp can be started");
    assert!(copied.success());
    server.start();
    let lost = server.publish("chat", json!(2)).await;
    server.stop();
    fs::remove_dir_all(&folder).expect("it can be removed");
    fs::rename(&backup, &folder).expect("the copy is on the same disk");
    server.start();
    expect_another_epoch(&server, &lost).await;
    assert!(server.log().contains("it is a copy"), "{}", server.log());
}

/// The machine did not crash as far as anybody knows; the witness remembers more than there is.
#[tokio::test]
async fn ruling_12_a_log_that_went_back_is_another_epoch() {
    let mut server = Server::on(Backend::EmbeddedNats).start();
    let kept = server.publish("chat", json!(1)).await;
    let moment = Moment::after(&server, &kept).await;
    let lost = server.publish("chat", json!(2)).await;
    server.stop();
    moment.cut();
    server.start();
    expect_another_epoch(&server, &lost).await;
    assert!(server.log().contains("the log's past has changed"), "{}", server.log());
}

/// The end of the log was lost, and somebody who did not know what had been there wrote on.
#[tokio::test]
async fn ruling_12_a_tail_written_over_is_another_epoch() {
    let mut server = Server::on(Backend::EmbeddedNats).start();
    let kept = server.publish("chat", json!(1)).await;
    let moment = Moment::after(&server, &kept).await;
    let lost = server.publish("chat", json!(2)).await;
    server.stop();
    let witness = fs::read(store(&server).join("witness")).expect("it was written at the end");
    moment.cut();
    moment.put_witness_back(&server);
    server.start();
    let over = server.publish("chat", json!("other")).await;
    assert_eq!((&over.epoch, over.offset), (&lost.epoch, lost.offset), "nobody noticed");
    server.publish("chat", json!("another")).await;
    server.stop();
    fs::write(store(&server).join("witness"), witness).expect("the witness can be written");
    server.start();
    expect_another_epoch(&server, &lost).await;
}

#[tokio::test]
async fn ruling_12_a_wiped_store_is_another_epoch() {
    for part in ["store/jetstream", "store"] {
        let mut server = Server::on(Backend::EmbeddedNats).start();
        let position = server.publish("chat", json!(1)).await;
        server.stop();
        fs::remove_dir_all(server.folder().join(part)).expect("it can be removed");
        server.start();
        expect_another_epoch(&server, &position).await;
    }
}

#[tokio::test]
async fn ruling_13_a_log_deleted_from_an_embedded_store_is_another_epoch() {
    let mut server = Server::on(Backend::EmbeddedNats).start();
    let position = server.publish("chat", json!(1)).await;
    server.stop();
    let log = newest_block(&server);
    let log: &Path = log.ancestors().nth(2).expect("a log's blocks lie in a folder of it");
    fs::remove_dir_all(log).expect("it can be removed");
    server.start();
    expect_another_epoch(&server, &position).await;
    assert!(server.log().contains("a log has disappeared"), "{}", server.log());
}
