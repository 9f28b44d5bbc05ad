//! Subscriptions take memory, so what those of all clients may hold together has a limit.

use crate::harness::client::Event;
use crate::harness::*;
use serde_json::json;

const BUDGET: i64 = 60_000;

/// Subscribes to so many streams at once; answers with those that it was granted, all others were rejected.
async fn ask_for(client: &mut Client, name: &str, number: usize) -> Vec<String> {
    let identifiers: Vec<_> = (0..number).map(|n| public(&format!("{name}/{n}"))).collect();
    for identifier in &identifiers {
        client.send(json!({"command": "subscribe", "identifier": identifier})).await;
    }
    let mut granted = Vec::new();
    for identifier in identifiers {
        let answer = client.next().await;
        assert_eq!(answer["identifier"], identifier, "{answer}");
        match answer["type"].as_str() {
            Some("confirm_subscription") => granted.push(identifier),
            Some("reject_subscription") => {}
            _ => panic!("{answer}"),
        }
    }
    granted.sort();
    granted
}

/// Nobody but one client is left, with one subscription.
async fn holds_one(server: &Server) {
    let is_one = async || (server.metric("subscriptions_bytes").await < 2_000).then_some(());
    eventually("what others held is given back", is_one).await;
}

/// Anonymous clients ask for more than all may have, beside one that follows a stream; one of them comes back.
#[tokio::test]
async fn row_13_subscriptions_of_all_clients_together_hold_what_they_may_and_nobody_loses_one() {
    let server =
        Server::on(Backend::Memory).option("subscriptions_budget", BUDGET).option("metrics_http", "/metrics").start();
    let mut honest = server.connect().await;
    honest.subscribe(&public("chat")).await;
    let mut leaving = server.connect().await;
    let kept = ask_for(&mut leaving, "kept", 20).await;
    assert_eq!(kept.len(), 20, "there is room");
    let sid = leaving.drop_hard();
    holds_one(&server).await;

    let mut greedy = Vec::new();
    let mut granted = 0;
    for one in ["a", "b"] {
        let mut client = server.connect().await;
        granted += ask_for(&mut client, one, 40).await.len();
        greedy.push(client);
    }
    assert!((20..60).contains(&granted), "{granted} of 80");
    let held = server.metric("subscriptions_bytes").await;
    // What their streams take counts once those are open: the last ones that came together may be a little more.
    assert!((BUDGET / 2..BUDGET * 5 / 4).contains(&held), "{held} bytes");
    assert!(server.metric("subscriptions_full_total").await >= 80 - granted as i64);
    assert!(server.log().contains("subscriptions_budget"), "the operator is told");

    // It keeps its session and may try again; who is subscribed has noticed nothing.
    for _ in 0..3 {
        let mut back = server.dial().sid(&sid).open().await;
        let end = back.event().await;
        let Event::Closed(code, reason) = end else { panic!("{end:?}") };
        assert_eq!((code, reason.as_str()), (1013, "Too many subscriptions: subscriptions_budget"));
    }
    server.publish("chat", json!(1)).await;
    honest.expect_message(&public("chat"), json!(1)).await;

    // Those who leave make room.
    for client in greedy {
        client.drop_hard();
    }
    holds_one(&server).await;
    let back = server.resume(&sid).await;
    assert_eq!(back.restored(), kept);
    honest.subscribe(&public("news")).await;
}
