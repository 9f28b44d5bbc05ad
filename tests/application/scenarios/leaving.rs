//! The end of connections: by the client, by the application, by a restart.

use super::{following, following_as};
use crate::harness::*;
use serde_json::json;

over_every_wire!(
    client_disconnect_invokes_unsubscribe_callbacks_for_different_channels,
    client_disconnect_invokes_unsubscribe_callbacks_for_the_same_channel,
    close_single_connection_by_id,
    client_receives_disconnect_message_on_server_restart,
);

async fn client_disconnect_invokes_unsubscribe_callbacks_for_different_channels(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().start();
    let (mut stays, mut leaves) = (server.connect_base().await, server.connect_base().await);
    for channel in ["A", "B"] {
        let identifier = json!({"channel": channel, "streams": [channel]}).to_string();
        stays.subscribe(&identifier).await;
        leaves.subscribe(&identifier).await;
    }
    let sid = leaves.sid.clone();
    leaves.close().await;
    let call = &app.called(Method::Disconnect, 1).await[0];
    assert_eq!(call.sid(), sid);
    assert_eq!(call.connection(), json!({"user": sid}).to_string());
    // What an application does in its callbacks.
    for identifier in call.subscriptions() {
        let channel: serde_json::Value = serde_json::from_str(&identifier).expect("JSON");
        server.publish(channel["channel"].as_str().expect("text"), json!({"data": "user left"})).await;
    }
    let mut seen = Vec::new();
    for _ in 0..2 {
        let delivery = Delivery::of(&stays.next().await).expect("a data message");
        assert_eq!(delivery.message, json!({"data": "user left"}));
        seen.push(delivery.identifier);
    }
    seen.sort();
    assert_eq!(seen, call.subscriptions());
    assert_eq!(app.count(Method::Disconnect), 1);
}

async fn client_disconnect_invokes_unsubscribe_callbacks_for_the_same_channel(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().start();
    let (mut stays, mut leaves) = (server.connect_base().await, server.connect_base().await);
    stays.subscribe(&following(&["a"])).await;
    for id in [1, 2] {
        leaves.subscribe(&following_as(id, &["a"])).await;
    }
    leaves.drop_hard();
    let call = &app.called(Method::Disconnect, 1).await[0];
    let expected = [following_as(1, &["a"]), following_as(2, &["a"])];
    assert_eq!(call.subscriptions(), expected);
    for text in ["user left1", "user left2"] {
        server.publish("a", json!(text)).await;
        stays.expect_message(&following(&["a"]), json!(text)).await;
    }
}

async fn close_single_connection_by_id(wire: Wire) {
    let app = Application::start(wire, |call| match call.method {
        Method::Connect => Reply::welcome(call, r#"{"uid":"26"}"#),
        _ => Reply::usual(call),
    });
    let server = app.server().start();
    let mut client = server.connect_base().await;
    server.disconnect(r#"{"uid":"26"}"#, true).await;
    client.expect(disconnect("remote", true)).await;
    client.expect_close(1000, "Closed remotely").await;
}

async fn client_receives_disconnect_message_on_server_restart(wire: Wire) {
    let app = Application::usual(wire);
    let mut server = app.server().start();
    let mut client = server.connect_base().await;
    client.subscribe(&following(&["a"])).await;
    server.begin_stop();
    client.expect(disconnect("server_restart", true)).await;
    client.expect_close(1001, "Server restart").await;
    server.wait_stopped();
    assert_eq!(app.count(Method::Disconnect), 1, "it was told before the server ended");
    server.start();
    let mut client = server.connect_base().await;
    client.subscribe(&following(&["a"])).await;
}
