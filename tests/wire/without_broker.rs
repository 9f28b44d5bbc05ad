//! No broker: live delivery works, nothing is stored.

use crate::harness::carrick::Builder;
use crate::harness::*;
use serde_json::json;

#[tokio::test]
async fn everything_but_history_and_sessions_works() {
    let server = Builder::open().start();
    let (mut client, mut other) = (server.subscriber("chat").await, server.subscriber("chat").await);
    server.accepted(json!({"stream": "chat", "data": "1"})).await;
    for client in [&mut client, &mut other] {
        assert_eq!(client.expect_message(&public("chat"), json!(1)).await.position, None);
    }
    client.whisper(&public("chat"), json!("psst")).await;
    other.expect_message(&public("chat"), json!("psst")).await;
    client.ask_history(&public("chat"), since(unix_now() - 60)).await;
    client.expect(reject_history(&public("chat"))).await;
    server.disconnect(&other.identifiers(), true).await;
    other.expect(disconnect("remote", true)).await;
    let sid = client.drop_hard();
    assert!(!server.resume(&sid).await.is_restored());
}

#[tokio::test]
async fn presence_is_answered_with_an_error() {
    let mut client = Backend::Memory.shared().connect().await;
    let identifier = public(&stream("chat"));
    client.subscribe(&identifier).await;
    client.send(json!({"command": "presence", "identifier": identifier, "data": {"return_records": true}})).await;
    client
        .expect(json!({"type": "presence", "identifier": identifier, "message": {"type": "error", "total": 0}}))
        .await;
    client.send(json!({"command": "join", "identifier": identifier, "presence": {"id": "42"}})).await;
    client.send(json!({"command": "leave", "identifier": identifier})).await;
    client.barrier().await;
}
