//! An application that takes its time, and clients that do not wait for it.

use super::*;
use tokio::time::Instant;

const CHAT: &str = r#"{"channel":"Chat"}"#;

#[tokio::test(start_paused = true)]
async fn a_slow_call_delays_only_its_own_connection() {
    let cluster = Cluster::new(Script::default());
    let (mut quick, _) = cluster.welcomed().await;
    quick.subscribed(CHAT).await;
    let (mut slow, _) = cluster.welcomed().await;
    slow.subscribed(CHAT).await;
    cluster.app.slow(10 * SECOND);
    slow.perform(CHAT, "{}");
    slow.send(serde_json::json!({ "command": "ping" }));
    eventually("the call runs", || cluster.app.commands().len() == 3).await;
    let started = Instant::now();
    cluster.publish("a", "x").await;
    quick.send(serde_json::json!({ "command": "ping" }));
    for browser in [&mut quick, &mut slow] {
        assert_eq!(browser.next().await["message"], "x");
    }
    assert_eq!(quick.next().await["type"], "pong");
    assert!(started.elapsed() < SECOND);
    assert_eq!(slow.next().await["type"], "pong", "commands keep their order");
    assert!(started.elapsed() > 9 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_call_is_given_up_when_its_client_goes_away() {
    let cluster = Cluster::new(Script::default());
    let (mut browser, _) = cluster.welcomed().await;
    browser.subscribed(CHAT).await;
    cluster.app.slow(3_600 * SECOND);
    let connecting = cluster.connect();
    browser.perform(CHAT, "{}");
    eventually("both calls run", || cluster.app.calls().len() == 4).await;
    browser.vanish();
    connecting.vanish();
    eventually("both are given up", || cluster.app.cancelled.load(Ordering::Relaxed) == 2).await;
    eventually("nobody is left", || cluster.nodes[0].registry.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn commands_before_the_welcome_wait_for_it() {
    let cluster = Cluster::new(Script::default());
    cluster.app.slow(2 * SECOND);
    let mut browser = cluster.connect();
    browser.subscribe(CHAT);
    assert_eq!(browser.next().await["type"], "welcome");
    assert_eq!(browser.next().await, json(&confirm(CHAT)));
}

#[tokio::test(start_paused = true)]
async fn nobody_is_missed_while_a_call_runs() {
    let cluster = Cluster::with(Script::default(), Setup { pong_timeout: SECOND, ..Setup::default() });
    let (mut browser, _) = cluster.welcomed_with(0, Hello { ping_interval: Some(3 * SECOND), ..hello(None) }).await;
    cluster.app.slow(8 * SECOND);
    browser.subscribe(CHAT);
    loop {
        let frame = browser.next().await;
        match frame["type"].as_str() {
            Some("ping") => {}
            _ => break assert_eq!(frame, json(&confirm(CHAT))),
        }
    }
}
