//! What becomes of broadcast data, and who is left out.

use super::following;
use crate::harness::*;
use serde_json::json;

over_every_wire!(
    broadcast_object,
    broadcast_custom_string,
    broadcast_json_string,
    only_other_clients_receive_the_message_when_broadcasted_to_others,
    only_other_clients_receive_the_whisper_message,
);

async fn broadcast_object(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().start();
    let mut client = server.connect_base().await;
    client.subscribe(&following(&["a"])).await;
    let object = json!({"data": {"user_id": 1, "status": "left", "meta": {"connection_time": "10s"}}});
    server.publish("a", object.clone()).await;
    client.expect_message(&following(&["a"]), object).await;
}

async fn broadcast_custom_string(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().start();
    let mut client = server.connect_base().await;
    client.subscribe(&following(&["a"])).await;
    let text = "<script>alert('Message!');</script>";
    server.accepted(json!({"stream": "a", "data": text})).await;
    client.expect_message(&following(&["a"]), json!(text)).await;
    server.publish("a", json!(text)).await;
    client.expect_message(&following(&["a"]), json!(text)).await;
}

async fn broadcast_json_string(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().start();
    let mut client = server.connect_base().await;
    client.subscribe(&following(&["a"])).await;
    let text = r#"{"script":{"alert":"Message!"}}"#;
    server.publish("a", json!(text)).await;
    client.expect_message(&following(&["a"]), json!(text)).await;
}

/// The application knows the performer's session from the call, and leaves it out.
async fn only_other_clients_receive_the_message_when_broadcasted_to_others(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().start();
    let mut clients = [server.connect_base().await, server.connect_base().await, server.connect_base().await];
    for client in &mut clients {
        client.subscribe(&following(&["a"])).await;
    }
    app.forget();
    let [performer, others @ ..] = &mut clients;
    performer.perform(&following(&["a"]), json!({"action": "broadcast_to_others"})).await;
    let performed = &app.called(Method::Command, 1).await[0];
    server.publish_with("a", json!("hi"), json!({"exclude_socket": performed.sid()})).await;
    for client in others {
        client.expect_message(&following(&["a"]), json!("hi")).await;
    }
    performer.expect_silence().await;
}

/// The application names the whispers' stream in the subscription's state.
async fn only_other_clients_receive_the_whisper_message(wire: Wire) {
    let app = Application::start(wire, |call| match call.command() {
        "subscribe" => Reply::usual(call).istate("$w", "a"),
        _ => Reply::usual(call),
    });
    let server = app.server().start();
    let mut clients = [server.connect_base().await, server.connect_base().await, server.connect_base().await];
    for client in &mut clients {
        client.subscribe(&following(&["a"])).await;
    }
    app.forget();
    let [whisperer, others @ ..] = &mut clients;
    whisperer.whisper(&following(&["a"]), json!({"event": "typing", "user": "john"})).await;
    for client in others {
        client.expect_message(&following(&["a"]), json!({"event": "typing", "user": "john"})).await;
    }
    whisperer.expect_silence().await;
    assert_eq!(app.commands(), [] as [&str; 0], "a whisper is none of the application's business");
}
