//! The store away at start, away later; Carrick itself gone and back.

use crate::harness::backend::unused_prefix;
use crate::harness::client::messages;
use crate::harness::stock::StockClient;
use crate::harness::*;
use serde_json::json;
use std::time::Duration;

with_own_server_on_durable_backends!(
    after_a_crash_nothing_is_lost,
    after_a_graceful_stop_nothing_is_lost,
    crashes_under_load_lose_nothing_that_was_accepted,
);

async fn after_a_crash_nothing_is_lost(backend: Backend) {
    let mut server = Server::on(backend).start();
    let mut client = server.subscriber("chat").await;
    let position = server.publish("chat", json!(1)).await;
    client.expect_message(&public("chat"), json!(1)).await;
    server.publish_numbers("chat", 2..=10).await;
    let sid = client.drop_hard();
    server.kill();
    server.start();
    let mut client = server.resume(&sid).await;
    assert_eq!(client.restored(), [public("chat")]);
    let replayed = client.history(&public("chat"), after(&position)).await;
    assert_eq!(messages(&replayed), (2..=10).map(|number| json!(number)).collect::<Vec<_>>());
    server.publish("chat", json!(11)).await;
    client.expect_message(&public("chat"), json!(11)).await;
}

async fn after_a_graceful_stop_nothing_is_lost(backend: Backend) {
    let mut server = Server::on(backend).start();
    let client = server.subscriber("chat").await;
    let position = server.publish("chat", json!(1)).await;
    let sid = client.drop_hard();
    server.stop();
    server.start();
    let mut client = server.resume(&sid).await;
    assert_eq!(client.restored(), [public("chat")]);
    let replayed = client.history(&public("chat"), after_offset(&position, position.offset - 1)).await;
    assert_eq!(messages(&replayed), [1]);
}

/// A patient publisher with keys, a stock client, and three crashes.
async fn crashes_under_load_lose_nothing_that_was_accepted(backend: Backend) {
    let mut server = Server::on(backend).start();
    let mut client = StockClient::new(&[public("chat")]);
    client.connect(&server).await;
    let mut total = 0;
    for _ in 0..3 {
        for _ in 0..20 {
            server.publish_eventually("chat", json!(total)).await;
            total += 1;
        }
        client.listen(Duration::from_millis(5)).await;
        server.kill();
        client.drop_connection();
        server.start();
        client.connect(&server).await;
    }
    client.listen_until(total).await;
    assert_eq!(client.received[&public("chat")], (0..total).map(|number| json!(number)).collect::<Vec<_>>());
    assert_eq!((client.rejected, client.restored), (0, 3));
}

#[tokio::test]
async fn without_nats_at_start_it_waits_and_refuses_and_comes_up_by_itself() {
    let mut nats = NatsServer::start();
    nats.kill();
    let server = Backend::on_nats(&nats.url(), &unused_prefix()).start_unready();
    assert_eq!(server.get("/health").await.status, 200);
    assert_eq!(server.get("/ready").await.status, 503);
    let answer = server.post(r#"{"stream":"chat","data":"1"}"#).await;
    assert_eq!((answer.status, &answer.json()["stored"]), (503, &json!(false)));
    assert!(answer.header("Retry-After").is_some(), "{answer:?}");
    nats.restart();
    eventually("ready", async || server.is_ready().await.then_some(())).await;
    let mut client = server.subscriber("chat").await;
    server.publish("chat", json!(1)).await;
    client.expect_message(&public("chat"), json!(1)).await;
}

#[tokio::test]
async fn while_nats_is_away_connections_stay_and_then_every_stream_is_healed() {
    let (mut nats, prefix) = (NatsServer::start(), unused_prefix());
    let node = || Backend::on_nats(&nats.url(), &prefix);
    let (server, other) = (node().start(), node().start());
    let mut client = server.subscriber("chat").await;
    server.publish("chat", json!(1)).await;
    client.expect_message(&public("chat"), json!(1)).await;
    nats.kill();
    eventually("not ready", async || (!server.is_ready().await).then_some(())).await;
    assert_eq!(server.get("/health").await.status, 200);
    assert_eq!(server.post(r#"{"stream":"chat","data":"2"}"#).await.status, 503);
    client.barrier().await;
    nats.restart();
    // Whichever node is back first publishes: the other one has to catch up.
    for number in 2..=5 {
        other.publish_eventually("chat", json!(number)).await;
    }
    client.expect_numbers(&public("chat"), 2..=5).await;
    client.expect_silence().await;
}

/// Longer than a session's life and than half a remote disconnect's: that nothing was missed is a question of the log of
/// remote commands, not of the time.
#[tokio::test]
async fn row_07_however_long_nats_is_away_nobody_is_thrown_out() {
    let mut nats = NatsServer::start();
    let server = Backend::on_nats(&nats.url(), &unused_prefix()).option("sessions_ttl", 1).start();
    let (mut client, mut base) = (server.subscriber("chat").await, server.connect_base().await);
    base.subscribe(&public("chat")).await;
    nats.kill();
    patience::let_pass(Duration::from_millis(31_500)).await;
    nats.restart();
    server.publish_eventually("chat", json!(1)).await;
    client.expect_message(&public("chat"), json!(1)).await;
    base.expect_message(&public("chat"), json!(1)).await;
    client.barrier().await;
}

/// Its clients' sessions were to be written anew a moment later.
#[tokio::test]
async fn a_node_that_is_killed_leaves_its_sessions_all_of_their_time() {
    let (nats, prefix) = (NatsServer::start(), unused_prefix());
    let node = || Backend::on_nats(&nats.url(), &prefix).option("sessions_ttl", 20).start();
    let (mut dies, stays) = (node(), node());
    let client = dies.subscriber("chat").await;
    // They are at 10 s.
    patience::let_pass(Duration::from_millis(9_000)).await;
    dies.kill();
    // Longer than 20 s since it was written, and some seconds less than 20 s since its node died.
    patience::let_pass(Duration::from_millis(13_000)).await;
    assert_eq!(stays.resume(&client.sid).await.restored(), [public("chat")]);
}

#[tokio::test]
async fn a_frozen_nats_delays_but_loses_nothing() {
    let (nats, prefix) = (NatsServer::start(), unused_prefix());
    let server = Backend::on_nats(&nats.url(), &prefix).start();
    let mut client = server.subscriber("chat").await;
    server.publish("chat", json!(0)).await;
    client.expect_message(&public("chat"), json!(0)).await;
    for number in 1..=2 {
        nats.freeze();
        let thawing = async {
            patience::let_pass(Duration::from_secs(3)).await;
            nats.thaw();
        };
        tokio::join!(server.publish_eventually("chat", json!(number)), thawing);
        client.expect_message(&public("chat"), json!(number)).await;
    }
    client.expect_silence().await;
}

#[tokio::test]
async fn a_nats_without_jetstream_is_a_start_error_that_says_so() {
    let nats = NatsServer::without_jetstream();
    let (code, said) = Backend::on_nats(&nats.url(), &unused_prefix()).refused();
    assert_eq!(code, Some(1));
    assert!(said.contains("JetStream"), "{said}");
}
