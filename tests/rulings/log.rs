//! Rulings on the log in NATS and on the embedded server's store.

use crate::harness::backend::unused_prefix;
use crate::harness::client::{Event, messages};
use crate::harness::*;
use async_nats::jetstream::{self, stream::Config};
use futures_util::TryStreamExt;
use serde_json::json;
use std::path::Path;
use std::process::Command;

/// A nats-server and a node of its own.
fn own_nats() -> (NatsServer, Server, String) {
    let (nats, prefix) = (NatsServer::start(), unused_prefix());
    let server = Backend::on_nats(&nats.url(), &prefix).start();
    (nats, server, prefix)
}

/// Configuration of the JetStream stream that holds the messages of this deployment.
async fn log_of(jetstream: &jetstream::Context, prefix: &str) -> Config {
    let streams: Vec<_> = jetstream.streams().try_collect().await.expect("streams can be listed");
    let subjects = format!("{prefix}.log.");
    let mut configs = streams.into_iter().map(|info| info.config);
    let log = configs.find(|config| config.subjects.iter().any(|subject| subject.starts_with(&subjects)));
    log.unwrap_or_else(|| panic!("no stream takes subjects {subjects}"))
}

#[tokio::test]
async fn ruling_05_the_log_cannot_be_purged() {
    let (nats, server, prefix) = own_nats();
    let position = server.publish("chat", json!(1)).await;
    let jetstream = jetstream::new(nats.operator().await);
    let log = jetstream.get_stream(log_of(&jetstream, &prefix).await.name).await.expect("the log is there");
    assert!(log.purge().await.is_err());
    assert!(log.delete_message(position.offset).await.is_err());
    let mut client = server.subscriber("chat").await;
    let replayed = client.history(&public("chat"), after_offset(&position, position.offset - 1)).await;
    assert_eq!(messages(&replayed), [1]);
}

#[tokio::test]
async fn ruling_05_a_log_with_a_size_limit_is_a_start_error() {
    let (nats, mut server, prefix) = own_nats();
    server.stop();
    let jetstream = jetstream::new(nats.operator().await);
    let config = Config { max_bytes: 1_000_000, ..log_of(&jetstream, &prefix).await };
    jetstream.update_stream(config).await.expect("an operator may do that");
    let (code, said) = server.start_refused();
    assert_eq!(code, Some(1));
    assert!(said.contains("max_bytes"), "{said}");
}

/// The number of JetStream streams and consumers does not depend on the number of streams of the application.
#[tokio::test]
async fn one_log_whatever_the_number_of_streams_and_no_consumers() {
    let (nats, server, _prefix) = own_nats();
    let jetstream = jetstream::new(nats.operator().await);
    let count = async || {
        let streams: Vec<_> = jetstream.streams().try_collect().await.expect("streams can be listed");
        (streams.len(), streams.iter().map(|info| info.state.consumer_count).sum::<usize>())
    };
    let before = count().await;
    let batch: Vec<_> = (0..500).map(|number| json!({"stream": format!("chat/{number}"), "data": "1"})).collect();
    server.accepted(json!(batch)).await;
    let mut client = server.connect().await;
    for number in 0..20 {
        client.subscribe(&public(&format!("chat/{number}"))).await;
    }
    assert_eq!(count().await, (before.0, 0));
}

/// Missing is not unavailable: neither a rejection nor an ordinary connection, but a close that keeps sid and positions.
#[tokio::test]
async fn ruling_11_a_restore_from_an_unreachable_store_is_closed_without_a_word() {
    let (nats, prefix) = (NatsServer::start(), unused_prefix());
    let server = Backend::on_nats(&nats.url(), &prefix).option("broker_timeout", 5).start();
    let mut client = server.subscriber("chat").await;
    let position = server.publish("chat", json!(1)).await;
    client.expect_message(&public("chat"), json!(1)).await;
    let sid = client.drop_hard();
    nats.freeze();
    let mut refused = server.dial().sid(&sid).open().await;
    let event = refused.event().await;
    assert!(matches!(event, Event::Closed(..) | Event::Lost), "{event:?}");
    nats.thaw();
    let mut client = eventually("the session is restored", async || {
        let mut client = server.dial().sid(&sid).open().await;
        match client.event().await {
            Event::Frame(text) => {
                client.welcome = serde_json::from_str(&text).expect("frames are JSON");
                Some(client)
            }
            _ => None,
        }
    })
    .await;
    assert_eq!(client.restored(), [public("chat")]);
    assert_eq!(client.history(&public("chat"), after(&position)).await, []);
}

#[tokio::test]
async fn ruling_11_history_from_an_unreachable_store_is_never_rejected() {
    let (mut nats, prefix) = (NatsServer::start(), unused_prefix());
    let server = Backend::on_nats(&nats.url(), &prefix).option("broker_timeout", 5).start();
    let position = server.publish("chat", json!(1)).await;
    let mut client = server.connect().await;
    nats.kill();
    client.subscribe_with(&public("chat"), after_offset(&position, position.offset - 1)).await;
    while let Event::Frame(text) = client.event().await {
        assert!(!text.contains("reject") && !text.contains("disconnect"), "{text}");
    }
    nats.restart();
    eventually("ready again", async || server.is_ready().await.then_some(())).await;
    let mut client = server.subscriber("chat").await;
    let replayed = client.history(&public("chat"), after_offset(&position, position.offset - 1)).await;
    assert_eq!(messages(&replayed), [1]);
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(status.is_ok_and(|status| status.success()), "cannot copy {} to {}", from.display(), to.display());
}

/// Puts the copy of a store back in place of what became of it.
fn put_back(copy_of_store: &Path, store: &Path) {
    std::fs::remove_dir_all(store).expect("the store is a folder");
    std::fs::rename(copy_of_store, store).expect("the copy is on the same disk");
}

#[tokio::test]
async fn ruling_12_an_old_store_put_back_under_a_running_node_is_another_epoch() {
    let (mut nats, server, _prefix) = own_nats();
    let mut client = server.subscriber("chat").await;
    server.publish_numbers("chat", 1..=3).await;
    client.expect_numbers(&public("chat"), 1..=3).await;
    nats.stop();
    let backup = nats.store().with_extension("backup");
    copy(&nats.store(), &backup);
    nats.restart();
    let lost = server.publish_eventually("chat", json!(4)).await;
    client.expect_message(&public("chat"), json!(4)).await;
    nats.stop();
    put_back(&backup, &nats.store());
    nats.restart();
    client.expect(reject_history(&public("chat"))).await;
    let fresh = server.publish_eventually("chat", json!("other")).await;
    assert_ne!(fresh.epoch, lost.epoch);
    assert_eq!(client.expect_message(&public("chat"), json!("other")).await.at(), fresh);
    let mut late = server.subscriber("chat").await;
    late.ask_history(&public("chat"), after(&lost)).await;
    late.expect(reject_history(&public("chat"))).await;
}

/// The witness beside the embedded store remembers what the store held.
#[tokio::test]
async fn ruling_12_an_old_embedded_store_put_back_is_another_epoch() {
    let mut server = Server::on(Backend::EmbeddedNats).start();
    server.publish_numbers("chat", 1..=3).await;
    server.stop();
    let store = find_folder(server.folder(), "jetstream");
    let backup = server.folder().join("backup");
    copy(&store, &backup);
    server.start();
    let lost = server.publish("chat", json!(4)).await;
    server.stop();
    put_back(&backup, &store);
    server.start();
    let fresh = server.publish("chat", json!("other")).await;
    assert_ne!(fresh.epoch, lost.epoch);
    let mut client = server.subscriber("chat").await;
    client.ask_history(&public("chat"), after(&lost)).await;
    client.expect(reject_history(&public("chat"))).await;
}

fn find_folder(under: &Path, name: &str) -> std::path::PathBuf {
    let output = Command::new("find").arg(under).args(["-type", "d", "-name", name]).output().expect("find");
    let found = String::from_utf8(output.stdout).expect("paths are text");
    found.lines().next().unwrap_or_else(|| panic!("no folder {name} under {}", under.display())).into()
}

#[tokio::test]
async fn ruling_12_the_epoch_survives_restarts_and_crashes() {
    let (mut nats, mut server, _prefix) = own_nats();
    let first = server.publish("chat", json!(1)).await;
    server.kill();
    server.start();
    assert_eq!(server.publish("chat", json!(2)).await.epoch, first.epoch);
    nats.kill();
    nats.restart();
    assert_eq!(server.publish_eventually("chat", json!(3)).await.epoch, first.epoch);
    let mut client = server.subscriber("chat").await;
    assert_eq!(messages(&client.history(&public("chat"), after(&first)).await), [2, 3]);
}

#[tokio::test]
async fn ruling_13_a_log_that_disappears_is_created_anew_with_another_epoch() {
    let (nats, server, prefix) = own_nats();
    let mut client = server.subscriber("chat").await;
    let before = server.publish("chat", json!(1)).await;
    client.expect_message(&public("chat"), json!(1)).await;
    let jetstream = jetstream::new(nats.operator().await);
    jetstream.delete_stream(log_of(&jetstream, &prefix).await.name).await.expect("an operator may do that");
    // The signal covers whatever the new log got before the stream was open again.
    client.expect(reject_history(&public("chat"))).await;
    let after = server.publish_eventually("chat", json!(2)).await;
    assert_ne!(after.epoch, before.epoch);
    assert_eq!(client.expect_message(&public("chat"), json!(2)).await.at(), after);
}

#[tokio::test]
async fn ruling_14_without_a_connection_nothing_is_stored_and_the_publisher_knows() {
    let (mut nats, server, _prefix) = own_nats();
    server.publish("chat", json!(1)).await;
    nats.kill();
    let body = json!({"stream": "chat", "data": "2"}).to_string();
    let answer = eventually("the connection's loss is noticed", async || {
        let answer = server.post(&body).await;
        assert_eq!(answer.status, 503, "{answer:?}");
        (answer.json()["stored"] == false).then_some(answer)
    })
    .await;
    assert!(answer.header("Retry-After").is_some_and(|seconds| seconds.parse::<u64>().is_ok()), "{answer:?}");
}

#[tokio::test]
async fn ruling_14_without_an_answer_in_time_the_publisher_is_told_so() {
    let (nats, prefix) = (NatsServer::start(), unused_prefix());
    let server = Backend::on_nats(&nats.url(), &prefix).option("publish_timeout", 5).start();
    server.publish("chat", json!(1)).await;
    nats.freeze();
    let item = json!({"stream": "chat", "data": "2", "meta": {"id": "order-9"}});
    let answer = server.post(&item.to_string()).await;
    nats.thaw();
    assert_eq!((answer.status, &answer.json()["stored"]), (503, &json!("unknown")), "{answer:?}");
    // The retry with the key is safe, whichever it was.
    let position = server.publish_body_eventually(item).await;
    let mut client = server.subscriber("chat").await;
    let replayed = client.history(&public("chat"), since(unix_now() - 60)).await;
    assert_eq!(messages(&replayed), [1, 2]);
    assert_eq!(replayed[1].at(), position);
}

fn nats_servers_of(carrick: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").expect("/proc can be read");
    let numbers = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let is_child = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent =
            stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)).and_then(|text| text.parse().ok());
        parent == Some(carrick)
    };
    numbers.filter(is_child).collect()
}

/// It never outlives its parent, and the same store opens again.
#[tokio::test]
async fn ruling_20_the_embedded_server_dies_with_carrick() {
    let mut server = Server::on(Backend::EmbeddedNats).start();
    let position = server.publish("chat", json!(1)).await;
    let children = nats_servers_of(server.pid());
    assert_eq!(children.len(), 1, "one nats-server");
    server.kill();
    eventually("the nats-server is gone", async || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", children[0])).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    })
    .await;
    server.start();
    let mut client = server.subscriber("chat").await;
    let replayed = client.history(&public("chat"), after_offset(&position, position.offset - 1)).await;
    assert_eq!((messages(&replayed), replayed[0].at()), (vec![json!(1)], position));
}

#[tokio::test]
async fn ruling_20_a_dead_embedded_server_comes_back() {
    let server = Server::on(Backend::EmbeddedNats).start();
    let mut client = server.subscriber("chat").await;
    let first = server.publish("chat", json!(1)).await;
    client.expect_message(&public("chat"), json!(1)).await;
    process::signal(nats_servers_of(server.pid())[0], "KILL");
    let second = server.publish_eventually("chat", json!(2)).await;
    assert_eq!(second.epoch, first.epoch);
    assert_eq!(client.expect_message(&public("chat"), json!(2)).await.at(), second);
}

#[tokio::test]
async fn ruling_20_two_servers_never_share_a_store() {
    let mut server = Server::on(Backend::EmbeddedNats).start();
    let store = server.folder().join("store");
    let mut second = Backend::EmbeddedNats.builder();
    second = second.replace("enats_store_dir", store.display());
    let (code, said) = second.refused();
    assert_eq!(code, Some(1));
    assert!(said.contains("store"), "{said}");
    assert!(server.is_running());
    server.publish("chat", json!(1)).await;
}

#[tokio::test]
async fn ruling_20_the_default_store_is_named_at_start() {
    let options = carrick::Builder::open().option("broker", "nats").option("embed_nats", "true");
    let server = options.option("enats_addr", "nats://127.0.0.1:-1").start();
    assert!(server.folder().join("carrick-data").is_dir());
    assert!(server.log().contains("carrick-data"), "{}", server.log());
}

/// Nothing is discarded to make room.
#[tokio::test]
async fn ruling_21_a_full_store_refuses_and_keeps_what_it_has() {
    let nats = NatsServer::with_storage(3_000_000);
    let server = Backend::on_nats(&nats.url(), &unused_prefix()).start();
    let first = server.publish("chat", json!(0)).await;
    let body = json!({"stream": "other", "data": "x".repeat(200_000)}).to_string();
    let mut accepted = 0;
    let answer = loop {
        let answer = server.post(&body).await;
        if answer.status != 201 {
            break answer;
        }
        accepted += 1;
        assert!(accepted < 30, "3 MB cannot hold this");
    };
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("storage full"), "{answer:?}");
    eventually("not ready", async || (!server.is_ready().await).then_some(())).await;
    let mut client = server.subscriber("chat").await;
    let replayed = client.history(&public("chat"), after_offset(&first, first.offset - 1)).await;
    assert_eq!(messages(&replayed), [0]);
}

/// A node alone may change the policy at its start; what is stored stays.
#[tokio::test]
async fn ruling_21b_a_sole_node_changes_the_limits_in_place() {
    let (_nats, mut server, _prefix) = own_nats();
    let positions = server.publish_numbers("chat", 1..=5).await;
    server.stop();
    server.set("history_limit", 3);
    server.start();
    assert_eq!(server.publish("chat", json!(6)).await.epoch, positions[0].epoch);
    let mut client = server.subscriber("chat").await;
    assert_eq!(messages(&client.history(&public("chat"), since(unix_now() - 60)).await), [4, 5, 6]);
}

#[tokio::test]
async fn ruling_21b_a_second_node_with_other_limits_refuses_to_start() {
    let (nats, mut server, prefix) = own_nats();
    let (code, said) = Backend::on_nats(&nats.url(), &prefix).option("history_limit", 3).refused();
    assert_eq!(code, Some(1));
    assert!(said.contains("100 messages") && said.contains("other nodes are running"), "{said}");
    assert!(server.is_running());
    server.publish("chat", json!(1)).await;
}

/// What another log sends to the live subject (behind a gateway, or forged) is not delivered as a stored message.
#[tokio::test]
async fn ruling_19_live_messages_of_another_log_are_not_ours() {
    let (nats, server, prefix) = own_nats();
    let mut client = server.subscriber("chat").await;
    let first = server.publish("chat", json!(1)).await;
    client.expect_message(&public("chat"), json!(1)).await;
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Stream", "another_log");
    headers.insert("Nats-Sequence", (first.offset + 1).to_string().as_str());
    headers.insert("Nats-Last-Sequence", first.offset.to_string().as_str());
    let operator = nats.operator().await;
    // base64url of the stream's name.
    operator
        .publish_with_headers(format!("{prefix}.live.default.Y2hhdA"), headers, "\"foreign\"".into())
        .await
        .unwrap();
    operator.flush().await.unwrap();
    server.publish("chat", json!(2)).await;
    client.expect_message(&public("chat"), json!(2)).await;
}
