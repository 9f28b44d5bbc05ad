//! Remote disconnects: who is closed, and that their sessions are dead.

use crate::harness::*;
use serde_json::json;

on_every_backend!(
    the_client_is_told_and_closed,
    the_clients_session_is_dead,
    an_offline_clients_session_is_dead,
    every_session_with_the_identifiers_is_closed,
    reconnect_defaults_to_false,
    nobody_with_these_identifiers_is_no_error,
    other_commands_are_ignored,
    other_clients_are_left_alone,
    base_clients_are_closed_too,
);

with_own_server_on_every_backend!(each_command_counts_once);

async fn each_command_counts_once(backend: Backend) {
    let server = Server::on(backend).option("metrics_http", "/metrics").start();
    for number in 1..=3 {
        let mut client = server.connect().await;
        server.disconnect(&client.identifiers(), true).await;
        client.expect(disconnect("remote", true)).await;
        server.metric_becomes("remote_commands_total", number).await;
    }
    let_pass(SILENCE).await;
    assert_eq!(server.metric("remote_commands_total").await, 3);
}

async fn the_client_is_told_and_closed(server: SharedServer) {
    for reconnect in [true, false] {
        let mut client = server.connect().await;
        server.disconnect(&client.identifiers(), reconnect).await;
        client.expect(disconnect("remote", reconnect)).await;
        client.expect_close(1000, "Closed remotely").await;
    }
}

async fn the_clients_session_is_dead(server: SharedServer) {
    let mut client = server.subscriber(&stream("chat")).await;
    server.disconnect(&client.identifiers(), true).await;
    client.expect(disconnect("remote", true)).await;
    client.expect_close(1000, "Closed remotely").await;
    assert!(!server.resume(&client.sid).await.is_restored());
}

/// The command is answered after it is stored: from then on no sid of these identifiers works.
async fn an_offline_clients_session_is_dead(server: SharedServer) {
    let client = server.subscriber(&stream("chat")).await;
    let identifiers = client.identifiers();
    let first = client.drop_hard();
    let second = server.resume(&first).await;
    assert!(second.is_restored());
    let second = second.drop_hard();
    server.disconnect(&identifiers, true).await;
    assert!(!server.resume(&first).await.is_restored());
    assert!(!server.resume(&second).await.is_restored());
}

async fn every_session_with_the_identifiers_is_closed(server: SharedServer) {
    let mut first = server.subscriber(&stream("chat")).await;
    // It has not spoken yet: the connection before it is still there.
    let mut second = server.resume(&first.sid).await;
    server.disconnect(&first.identifiers(), true).await;
    for client in [&mut first, &mut second] {
        client.expect(disconnect("remote", true)).await;
        client.expect_close(1000, "Closed remotely").await;
    }
}

async fn reconnect_defaults_to_false(server: SharedServer) {
    let mut client = server.connect().await;
    server.accepted(json!({"command": "disconnect", "payload": {"identifier": client.identifiers()}})).await;
    client.expect(disconnect("remote", false)).await;
}

async fn nobody_with_these_identifiers_is_no_error(server: SharedServer) {
    server.disconnect(r#"{"user_id":"nobody"}"#, true).await;
}

async fn other_commands_are_ignored(server: SharedServer) {
    let mut client = server.connect().await;
    let payload = json!({"identifier": client.identifiers()});
    server.accepted(json!({"command": "subscribe", "payload": payload})).await;
    client.expect_silence().await;
}

async fn other_clients_are_left_alone(server: SharedServer) {
    let (mut one, mut two) = (server.connect().await, server.connect().await);
    let similar = format!(" {}", two.identifiers());
    server.disconnect(&similar, true).await;
    server.disconnect(&one.identifiers(), true).await;
    one.expect(disconnect("remote", true)).await;
    two.expect_silence().await;
    let sid = two.drop_hard();
    assert!(server.resume(&sid).await.is_restored());
}

async fn base_clients_are_closed_too(server: SharedServer) {
    let mut client = server.connect_base().await;
    server.disconnect(&client.identifiers(), true).await;
    client.expect(disconnect("remote", true)).await;
    client.expect_close(1000, "Closed remotely").await;
}
