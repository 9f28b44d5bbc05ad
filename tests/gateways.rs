//! Two clusters joined by a gateway: what crosses, and what does not.

use crate::harness::carrick::Builder;
use crate::harness::client::messages;
use crate::harness::*;
use serde_json::json;

/// A cluster of one member with a gateway to the other one.
fn cluster(name: &str, gateway: u16, other: &str, other_gateway: u16) -> Builder {
    Backend::EmbeddedNats
        .builder()
        .option("enats_server_name", format!("{name}-1"))
        .option("enats_cluster_name", name)
        .option("enats_gateway", format!("nats://127.0.0.1:{gateway}"))
        .option("enats_gateways", format!("{other}:nats://127.0.0.1:{other_gateway}"))
}

fn builders() -> [Builder; 2] {
    let (east, west) = (free_port(), free_port());
    [cluster("east", east, "west", west), cluster("west", west, "east", east)]
}

/// Their metadata needs a majority of both, so they start together.
fn start_both() -> [Server; 2] {
    let builders = builders();
    std::thread::scope(|scope| {
        builders
            .map(|builder| scope.spawn(|| builder.start()))
            .map(|starting| starting.join().expect("a cluster starts"))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn ruling_19_live_messages_cross_without_positions_and_nothing_else_does() {
    let [mut east, west] = start_both();
    let mut here = east.subscriber("chat").await;
    let mut there = west.subscriber("chat").await;
    // Interest crosses a moment after the subscription: whispers until the first one is heard.
    let first = eventually("a whisper crosses", async || {
        here.whisper(&public("chat"), json!("psst")).await;
        here.barrier().await;
        match there.event_within(std::time::Duration::from_millis(200)).await {
            Some(client::Event::Frame(text)) if text.contains("psst") => Some(text),
            _ => None,
        }
    })
    .await;
    assert!(!first.contains("offset"), "{first}");
    // Others may be on their way yet.
    here.whisper(&public("chat"), json!("that was all")).await;
    while there.next().await["message"] != "that was all" {}

    // Stored in the east, live in the west: once, without a position.
    let position = east.publish("chat", json!(1)).await;
    assert_eq!(here.expect_message(&public("chat"), json!(1)).await.at(), position);
    let delivery = there.expect_message(&public("chat"), json!(1)).await;
    assert_eq!(delivery.position, None);
    there.expect_silence().await;
    let meta = json!({"transient": true});
    east.accepted(json!({"stream": "chat", "data": "2", "meta": meta})).await;
    here.expect_message(&public("chat"), json!(2)).await;
    assert_eq!(there.expect_message(&public("chat"), json!(2)).await.position, None);

    // The west's own log knows nothing of it, and is of another epoch.
    let own = west.publish("chat", json!(3)).await;
    assert_ne!(own.epoch, position.epoch);
    assert_eq!(own.offset, 1);
    assert_eq!(there.expect_message(&public("chat"), json!(3)).await.at(), own);
    assert_eq!(here.expect_message(&public("chat"), json!(3)).await.position, None);
    let mut late = west.subscriber("chat").await;
    assert_eq!(messages(&late.history(&public("chat"), after_offset(&own, 0)).await), [3]);

    // Positions and sessions stay where they are; so do remote disconnects.
    late.ask_history(&public("chat"), after(&position)).await;
    late.expect(reject_history(&public("chat"))).await;
    west.disconnect(&here.identifiers(), true).await;
    here.barrier().await;
    let sid = here.drop_hard();
    assert!(!west.resume(&sid).await.is_restored());
    assert!(east.resume(&sid).await.is_restored());

    // A cluster alone goes on with what it has.
    east.kill();
    let next = west.publish_eventually("chat", json!(4)).await;
    assert_eq!(next.epoch, own.epoch);
    there.expect_message(&public("chat"), json!(4)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_with_another_secret_is_refused_and_said_so() {
    let [east, west] = builders();
    let east = east.start_unready();
    let west = west.replace("secret", "another").start_unready();
    eventually("the refusal is in the log", async || {
        let logs = format!("{}{}", east.log(), west.log());
        (logs.contains("Authorization Violation") || logs.contains("authentication error")).then_some(())
    })
    .await;
    // Two of two are needed, and they do not meet.
    assert!(!east.is_ready().await && !west.is_ready().await);
}
