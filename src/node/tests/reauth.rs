//! Remote disconnects may have been missed: everybody authenticates anew, a few at a time, and hears nothing meanwhile.

use super::*;
use crate::hub::Commands as _;
use tokio::time::Instant;

const CHAT: &str = r#"{"channel":"Chat"}"#;

fn pinged(restore: Option<&str>) -> Hello {
    Hello { ping_interval: Some(SECOND), ping_precision: Some(PingPrecision::Milliseconds), ..hello(restore) }
}

#[tokio::test(start_paused = true)]
async fn row_07_clients_are_closed_one_after_another_and_get_pings_only_until_then() {
    let cluster = Cluster::new(Script::default());
    let mut browsers = Vec::new();
    for _ in 0..12 {
        let (mut browser, sid) = cluster.welcomed_with(0, pinged(None)).await;
        browser.subscribe(CHAT);
        while browser.next().await["type"] != "confirm_subscription" {}
        browsers.push((browser, sid));
    }
    let (mut elsewhere, _) = cluster.welcomed_with(1, pinged(None)).await;
    let (begin, seen) = (Instant::now(), crate::node::save::unix_ms());
    cluster.nodes[0].registry.commands_lost();
    cluster.publish("a", "secret").await;
    let mut turns = Vec::new();
    for (browser, sid) in &mut browsers {
        browser.perform(CHAT, "{}");
        loop {
            let frame = browser.next().await;
            match frame["type"].as_str() {
                // Frozen: who has no position asks for history since the last ping.
                Some("ping") => assert!(frame["message"].as_u64().unwrap() <= seen + 1_000, "{frame}"),
                Some(_) => panic!("unexpected {frame}"),
                None if frame["close"] == 1013 => break,
                None => panic!("delivered: {frame}"),
            }
        }
        turns.push(begin.elapsed());
        let mut back = cluster.connect_with(1, hello(Some(sid)));
        assert_eq!(back.next().await["restored"], serde_json::Value::Null, "it authenticates anew");
    }
    assert!(begin.elapsed() > 50 * SECOND && begin.elapsed() <= 61 * SECOND, "{turns:?}");
    assert!(cluster.app.commands().iter().all(|call| call.kind != CommandKind::Message), "nothing is done for them");
    assert_eq!(elsewhere.next().await["type"], "ping", "the other node has missed nothing");
}

#[tokio::test(start_paused = true)]
async fn row_07_who_is_being_let_in_meanwhile_comes_again() {
    let cluster = Cluster::new(Script::default());
    cluster.app.slow(5 * SECOND);
    let mut browser = cluster.connect();
    eventually("the application is asked", || !cluster.app.calls().is_empty()).await;
    let begin = Instant::now();
    cluster.nodes[0].registry.commands_lost();
    assert_eq!(browser.next().await["close"], 1013);
    assert!(begin.elapsed() < 6 * SECOND);
}
