//! What saved sessions cost the store: a restore leaves nothing behind, and a command costs the same in a session of any
//! size.

use crate::harness::carrick::{Builder, Server};
use crate::harness::client::Event;
use crate::harness::nats::NatsServer;
use crate::harness::*;
use serde_json::json;

const MIB: u64 = 1 << 20;

fn on(nats: &NatsServer) -> Builder {
    Builder::open().option("metrics_http", "/metrics").option("broker", "nats").option("nats_servers", nats.url())
}

/// As long as the signed name of a Turbo stream.
fn identifier(n: usize) -> String {
    json!({"channel": "$pubsub", "stream_name": format!("row/{n:0>90}")}).to_string()
}

/// A client with this many subscriptions, which it asked for at once.
async fn with_subscriptions(server: &Server, number: usize) -> Client {
    let mut client = server.connect().await;
    for n in 0..number {
        client.send(json!({"command": "subscribe", "identifier": identifier(n)})).await;
    }
    for _ in 0..number {
        assert_eq!(client.next().await["type"], "confirm_subscription");
    }
    client
}

/// Comes back with this session. On a busy machine the store may not answer in time: then the client may try again.
async fn back(server: &Server, sid: &str) -> Client {
    eventually("it is let in", async || {
        let mut client = server.dial().sid(sid).open().await;
        let Event::Frame(welcome) = client.event().await else { return None };
        client.welcome = serde_json::from_str(&welcome).expect("frames are JSON");
        client.sid = client.welcome["sid"].as_str().expect("`welcome` carries the sid").to_owned();
        Some(client)
    })
    .await
}

#[tokio::test]
async fn row_12_one_session_restored_300_times_in_silence_is_stored_a_few_times() {
    let nats = NatsServer::start();
    let server = on(&nats).start();
    let sid = with_subscriptions(&server, 1_000).await.drop_hard();
    let (stored, memory) = (nats.stored_bytes().await, nats.memory().await);
    let mut restored = 0;
    for _ in 0..300 {
        let client = server.resume(&sid).await;
        restored += usize::from(client.is_restored());
        client.drop_hard();
    }
    let grown = nats.stored_bytes().await.saturating_sub(stored);
    let more = nats.memory().await.saturating_sub(memory);
    println!("{restored} of 300 restored; store +{} KiB, nats-server +{} MiB", grown >> 10, more / MIB);
    assert!((1..=5).contains(&restored), "{restored}");
    // Five copies of a session of about 260 KiB, and 295 clients that are let in anew.
    assert!(grown < 3 * MIB, "{grown}");
}

#[tokio::test]
async fn row_12_sixty_restores_of_2000_subscriptions_are_stored_once() {
    let nats = NatsServer::start();
    let server = on(&nats).start();
    let mut client = with_subscriptions(&server, 2_000).await;
    let stored = nats.stored_bytes().await;
    for _ in 0..60 {
        client = back(&server, &client.drop_hard()).await;
        assert_eq!(client.restored().len(), 2_000);
        client.barrier().await;
    }
    let last = nats.stored_bytes().await;
    eventually("what was restored is deleted", async || (nats.stored_bytes().await < stored + MIB).then_some(())).await;
    let grown = last.saturating_sub(stored);
    println!("60 restores: store +{} KiB at the end, +{} KiB soon after", grown >> 10, {
        nats.stored_bytes().await.saturating_sub(stored) >> 10
    });
}

#[tokio::test]
async fn row_13_subscribing_2000_times_one_by_one_writes_little() {
    let nats = NatsServer::start();
    let server = on(&nats).start();
    let mut client = server.connect().await;
    let before = nats.received_bytes().await;
    for n in 0..2_000 {
        client.subscribe(&identifier(n)).await;
    }
    let all = nats.received_bytes().await - before;
    println!("2,000 subscriptions one by one: {:.1} MiB into NATS", all as f64 / MIB as f64);
    // A head of 4 KiB of subscriptions at most, the names of the parts, headers, and what opening a stream asks for.
    assert!(all < 2_000 * (8 << 10), "{all}");

    let before = nats.received_bytes().await;
    for n in 2_000..2_250 {
        client.unsubscribe(&identifier(n - 1)).await;
        client.subscribe(&identifier(n)).await;
    }
    let toggling = (nats.received_bytes().await - before) / 500;
    println!("in a session of 2,000: {toggling} bytes into NATS per command");
    assert!(toggling < 8 << 10, "{toggling}");
    let back = server.resume(&client.drop_hard()).await;
    let mut restored = back.restored();
    restored.sort();
    let mut wanted: Vec<_> = (0..1_999).chain(2_249..2_250).map(identifier).collect();
    wanted.sort();
    assert_eq!(restored, wanted);
}

/// What is taken away while there is no room does not come back, nobody's messages are in the way of it, and who is let in
/// then is not told that it can come back.
#[tokio::test]
async fn row_12_a_full_share_of_the_sessions_costs_resuming_and_nothing_else() {
    let nats = NatsServer::start();
    let server = on(&nats).option("sessions_budget", 128 << 10).option("metrics_http", "/metrics").start();
    let mut client = server.connect().await;
    for n in 0..3 {
        client.subscribe(&identifier(n)).await;
    }
    let mut others = Vec::new();
    while server.metric("sessions_full_total").await == 0 {
        assert!(others.len() < 40, "no limit");
        others.push(with_subscriptions(&server, 40).await);
    }
    client.unsubscribe(&identifier(0)).await;
    client.subscribe(&identifier(3)).await;
    server.publish("row", json!(1)).await;
    let back = server.resume(&client.drop_hard()).await;
    assert!(!back.is_restored() || !back.restored().contains(&identifier(0)), "{:?}", back.restored());
    assert!(server.is_ready().await);
}
