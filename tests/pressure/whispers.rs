//! Floods of whispers: they cost whoever sends them, and followers at most other whispers.

use crate::harness::carrick::Server;
use crate::harness::*;
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Fourteen followers that read ten frames a second, one client that whispers as fast as it can: all keep their
/// connections and get what is stored.
#[tokio::test]
async fn row_18_a_whisper_flood_closes_nobody() {
    // Followers and flood share this process: it may have no time for a follower for a while.
    let options = Server::on(Backend::Memory).option("max_whisper_rate", 0).option("ws_write_timeout", 30);
    let server = options.option("metrics_http", "/metrics").start();
    let mut followers = Vec::new();
    for _ in 0..14 {
        let mut follower = server.dial().receive_buffer(128 << 10).connect().await;
        follower.subscribe(&public("chat")).await;
        followers.push(follower);
    }
    let mut loud = server.subscriber("chat").await;
    let flood = async {
        let text = "x".repeat(60_000);
        for _ in 0..1_000 {
            loud.whisper(&public("chat"), json!(text)).await;
        }
        loud.barrier().await;
        server.publish("chat", json!("stored")).await;
    };
    let follow = |mut follower: client::Client| async move {
        loop {
            match follower.event().await {
                client::Event::Frame(text) if text.contains("stored") => return follower,
                client::Event::Frame(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                other => panic!("a follower's connection ended: {other:?}"),
            }
        }
    };
    let (_, followers) = tokio::join!(flood, join_all(followers.into_iter().map(follow)));
    assert_eq!(followers.len(), 14);
    assert_eq!(server.metric("disconnected_slow_clients_total").await, 0);
    assert!(server.metric("unstored_dropped_total").await > 0);
}

#[tokio::test]
async fn row_18_whispers_have_a_rate() {
    let server = Server::on(Backend::Memory).option("metrics_http", "/metrics").option("max_whisper_rate", 10).start();
    let (mut loud, mut follower) = (server.subscriber("chat").await, server.subscriber("chat").await);
    let begun = Instant::now();
    for number in 0..1_000 {
        loud.whisper(&public("chat"), json!(number)).await;
    }
    loud.barrier().await;
    let dropped = server.metric("whispers_dropped_total").await;
    let heard = 1_000 - dropped;
    let most = 20 + 10 * begun.elapsed().as_secs().cast_signed() + 10;
    assert!((20..=most).contains(&heard), "{heard} of 1,000 were passed on: a burst of two seconds and 10 a second");
    for number in 0..20 {
        follower.expect_message(&public("chat"), json!(number)).await;
    }
    // Another client has a rate of its own, and this one has its rate again when it keeps to it.
    let mut quiet = server.subscriber("chat").await;
    quiet.whisper(&public("chat"), json!("psst")).await;
    while follower.next().await["message"] != "psst" {}
    eventually("a whisper is passed on again", async || {
        loud.whisper(&public("chat"), json!("again")).await;
        let frame: Option<Value> = match follower.event_within(Duration::from_millis(200)).await {
            Some(client::Event::Frame(text)) => serde_json::from_str(&text).ok(),
            _ => None,
        };
        frame.filter(|frame| frame["message"] == "again")
    })
    .await;
}
