//! What the memory broker holds depends on what it keeps, and has a limit.

use crate::harness::*;
use serde_json::{Value, json};
use std::time::Duration;

/// Two hundred thousand publications of which one is kept.
#[tokio::test]
async fn row_15_memory_depends_on_what_is_kept_not_on_what_passed() {
    let options = Server::on(Backend::Memory).option("history_limit", 1).option("metrics_http", "/metrics");
    let server = options.start();
    let batch: Value = (0..1_000).map(|n| json!({"stream": "chat", "data": n.to_string()})).collect();
    let publish = async |batches: usize| {
        for _ in 0..batches {
            server.accepted(batch.clone()).await;
        }
    };
    publish(20).await;
    let before = server.resident();
    publish(200).await;
    let grown = server.resident().saturating_sub(before);
    assert!(grown < 6 << 20, "{} KiB for 200,000 publications", grown >> 10);
    let kept = server.metric("memory_history_bytes").await;
    assert!(kept < 2_000, "{kept} bytes are kept");
}

#[tokio::test]
async fn row_15_full_memory_refuses_and_keeps_what_it_has() {
    let options = Server::on(Backend::Memory).option("memory_history_size", 1 << 20).option("history_ttl", 10);
    let server = options.option("metrics_http", "/metrics").start();
    let text = json!("x".repeat(100_000)).to_string();
    let publish = async |n: usize| server.post(&json!({"stream": format!("chat/{n}"), "data": text}).to_string()).await;
    let first = Position::of(&publish(0).await.json());
    let refused = eventually("there is no room", async || {
        let answer = publish(usize::try_from(server.metric("memory_history_bytes").await).expect("positive")).await;
        (answer.status != 201).then_some(answer)
    })
    .await;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.body.contains(r#""stored":false"#) && refused.body.contains("memory_history_size"), "{refused:?}");
    assert!(server.metric("memory_history_bytes").await <= 1 << 20);
    // What is kept is kept, and what replaces a message is taken.
    let mut client = server.connect().await;
    client.subscribe(&public("chat/0")).await;
    let before = after_offset(&first, first.offset - 1);
    assert_eq!(client.history(&public("chat/0"), before).await.len(), 1);
    // What has aged gives room, also while nothing is published.
    server.metric_becomes("memory_history_bytes", 0).await;
    assert_eq!(publish(1).await.status, 201);
}

/// The same key again within the window, whatever has passed meanwhile.
#[tokio::test]
async fn row_15_a_retry_is_known_whatever_has_passed() {
    let server = Server::on(Backend::Memory).option("history_limit", 1).start();
    let keyed = json!({"stream": "chat", "data": "1", "meta": {"id": "once"}});
    let first = server.accepted(keyed.clone()).await;
    let batch: Value = (0..1_000).map(|n| json!({"stream": "chat", "data": n.to_string()})).collect();
    let began = std::time::Instant::now();
    for _ in 0..20 {
        server.accepted(batch.clone()).await;
    }
    assert!(began.elapsed() < Duration::from_secs(25), "the window has not passed");
    let again = server.accepted(keyed).await;
    assert_eq!((&again["offset"], &again["duplicate"]), (&first["offset"], &json!(true)));
}
