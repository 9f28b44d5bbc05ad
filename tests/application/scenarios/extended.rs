//! History, restored sessions, liveness: scenarios that AnyCable's server adds.

use super::following;
use crate::harness::*;
use serde_json::json;

over_every_wire!(
    fetching_history_by_timestamp,
    fetching_history_by_offset,
    subscribing_with_history,
    restore_session_by_session_id,
    a_client_sets_its_own_ping_interval,
    a_client_without_pongs_is_disconnected,
);

async fn fetching_history_by_timestamp(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().start();
    for text in ["one", "two"] {
        server.publish("a", json!(text)).await;
    }
    let mut client = server.connect_base().await;
    client.subscribe(&following(&["a"])).await;
    let replayed = client.history(&following(&["a"]), since(unix_now() - 30)).await;
    assert_eq!(client::messages(&replayed), [json!("one"), json!("two")]);
}

async fn fetching_history_by_offset(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().start();
    let mut first = server.connect_base().await;
    first.subscribe(&following(&["a"])).await;
    let position = server.publish("a", json!("one")).await;
    let seen = first.expect_message(&following(&["a"]), json!("one")).await.at();
    assert_eq!(seen, position);
    let mut second = server.connect_base().await;
    second.subscribe(&following(&["a"])).await;
    let replayed = second.history(&following(&["a"]), after_offset(&seen, seen.offset - 1)).await;
    assert_eq!(client::messages(&replayed), [json!("one")]);
}

async fn subscribing_with_history(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().start();
    for text in ["one", "two"] {
        server.publish("a", json!(text)).await;
    }
    let mut client = server.connect_base().await;
    client.subscribe_with(&following(&["a"]), since(unix_now() - 30)).await;
    client.expect(confirm(&following(&["a"]))).await;
    let replayed = client.replay(&following(&["a"])).await;
    assert_eq!(client::messages(&replayed), [json!("one"), json!("two")]);
}

/// The header is taken in any case, and messages come without a history command, once the hold is over.
async fn restore_session_by_session_id(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().start();
    let mut client = server.connect().await;
    client.subscribe(&following(&["a"])).await;
    let sid = client.sid.clone();
    client.close().await;
    let mut client = server.dial().header("X-ANYCABLE-RESTORE-SID", &sid).connect().await;
    assert_eq!(client.restored(), [following(&["a"])]);
    server.publish("a", json!("still here")).await;
    let frame = client.next().await;
    assert_eq!((&frame["identifier"], &frame["message"]), (&json!(following(&["a"])), &json!("still here")));
    assert_eq!(app.count(Method::Connect), 1);
    assert_eq!(app.commands(), ["subscribe"]);
}

async fn a_client_sets_its_own_ping_interval(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().option("ping_interval", 100).start();
    let mut client = server.dial().query("pi=1").connect().await;
    // The first one comes after up to one and a half intervals.
    assert!(client.next_ping(PATIENCE).await.is_some());
}

async fn a_client_without_pongs_is_disconnected(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().option("pong_timeout", 4).start();
    let mut client = server.dial().query("pi=1").query("ptp=ns").connect().await;
    for _ in 0..3 {
        client.next_ping(PATIENCE).await.expect("a ping");
        client.send(json!({"command": "pong"})).await;
    }
    client.expect(disconnect("no_pong", true)).await;
    app.called(Method::Disconnect, 1).await;
}
