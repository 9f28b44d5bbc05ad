//! Confirmations, rejections, actions and what is transmitted.

use super::channel;
use crate::harness::*;
use serde_json::json;

over_every_wire!(
    client_receives_subscription_confirmation,
    client_receives_subscription_rejection,
    client_subscribes_to_the_same_channel_with_different_params,
    client_perform_actions_without_arguments,
    client_perform_actions_with_arguments,
    client_receives_transmissions_from_subscribed_callback,
    a_repeated_subscription_is_neither_asked_nor_answered,
    a_client_retry_while_the_first_still_runs_is_answered_once,
    commands_for_unknown_identifiers_ask_nobody,
    the_application_may_close_the_connection,
);

async fn client_receives_subscription_confirmation(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().start();
    let mut client = server.dial().base().query("user=5").connect().await;
    client.subscribe(&channel("A")).await;
    let call = &app.called(Method::Command, 1).await[0];
    let env =
        json!({"url": format!("http://{}/cable?user=5", server.address()), "headers": {"REMOTE_ADDR": "127.0.0.1"}});
    let connection = json!({"user": "5"}).to_string();
    let whole = json!({
        "command": "subscribe", "identifier": channel("A"), "connection_identifiers": connection, "env": env
    });
    assert_eq!(call.body, whole, "nothing else is sent");
    assert_eq!(call.sid(), client.sid);
}

async fn client_receives_subscription_rejection(wire: Wire) {
    let app = Application::start(wire, |call| match call.command() {
        "subscribe" => Reply::reject(call).stream("a"),
        _ => Reply::usual(call),
    });
    let server = app.server().start();
    let mut client = server.connect_base().await;
    client.send(json!({"command": "subscribe", "identifier": channel("A")})).await;
    client.expect(reject(&channel("A"))).await;
    server.publish("a", json!("not for it")).await;
    client.expect_silence().await;
    app.answer(Reply::usual);
    client.subscribe(&channel("A")).await;
}

async fn client_subscribes_to_the_same_channel_with_different_params(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().start();
    let mut client = server.connect_base().await;
    for id in [1, 2] {
        client.subscribe(&json!({"channel": "A", "id": id}).to_string()).await;
    }
    assert_eq!(app.commands(), ["subscribe", "subscribe"]);
}

fn acts(call: &Call) -> Reply {
    match call.action().as_str() {
        "tick" => Reply::success().say(call, json!("tock")),
        "echo" => Reply::success().say(call, json!({"response": call.data()["text"]})),
        _ => Reply::usual(call),
    }
}

async fn client_perform_actions_without_arguments(wire: Wire) {
    let app = Application::start(wire, acts);
    let server = app.server().start();
    let mut client = server.connect_base().await;
    client.subscribe(&channel("Actions")).await;
    client.perform(&channel("Actions"), json!({"action": "tick"})).await;
    client.expect_message(&channel("Actions"), json!("tock")).await;
}

async fn client_perform_actions_with_arguments(wire: Wire) {
    let app = Application::start(wire, acts);
    let server = app.server().start();
    let mut client = server.connect_base().await;
    client.subscribe(&channel("Actions")).await;
    // The data is passed on as it is written.
    let data = r#"{"action":"echo",  "text":"hello", "n": 1.10}"#;
    client.send(json!({"command": "message", "identifier": channel("Actions"), "data": data})).await;
    client.expect_message(&channel("Actions"), json!({"response": "hello"})).await;
    assert_eq!(app.calls()[2].body["data"], data);
}

async fn client_receives_transmissions_from_subscribed_callback(wire: Wire) {
    let app = Application::start(wire, |call| match call.command() {
        "subscribe" => {
            Reply::success().say(call, json!("hello")).say(call, json!("world")).transmit(confirm(call.identifier()))
        }
        _ => Reply::usual(call),
    });
    let server = app.server().start();
    let mut client = server.connect_base().await;
    client.send(json!({"command": "subscribe", "identifier": channel("A")})).await;
    client.expect_message(&channel("A"), json!("hello")).await;
    client.expect_message(&channel("A"), json!("world")).await;
    client.expect(confirm(&channel("A"))).await;
}

async fn a_repeated_subscription_is_neither_asked_nor_answered(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().start();
    let mut client = server.connect_base().await;
    client.subscribe(&channel("A")).await;
    client.send(json!({"command": "subscribe", "identifier": channel("A")})).await;
    client.expect_silence().await;
    client.barrier().await;
    assert_eq!(app.commands(), ["subscribe"]);
    assert_eq!(server.metric("failed_client_msg_total").await, 1);
}

async fn a_client_retry_while_the_first_still_runs_is_answered_once(wire: Wire) {
    let app = Application::start(wire, |call| match call.command() {
        "subscribe" => Reply::usual(call).after(SILENCE),
        _ => Reply::usual(call),
    });
    let server = app.server().start();
    let mut client = server.connect_base().await;
    for _ in 0..3 {
        client.send(json!({"command": "subscribe", "identifier": channel("A")})).await;
    }
    client.expect(confirm(&channel("A"))).await;
    client.expect_silence().await;
    assert_eq!(app.commands(), ["subscribe"]);
}

async fn commands_for_unknown_identifiers_ask_nobody(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().start();
    let mut client = server.connect_base().await;
    client.perform(&channel("A"), json!({"action": "tick"})).await;
    client.unsubscribe(&channel("A")).await;
    // The data of an action is text, or else it is none.
    client.subscribe(&channel("A")).await;
    client.send(json!({"command": "message", "identifier": channel("A"), "data": {"action": "tick"}})).await;
    client.barrier().await;
    assert_eq!(app.commands(), ["subscribe"]);
    assert_eq!(server.metric("failed_client_msg_total").await, 3);
}

async fn the_application_may_close_the_connection(wire: Wire) {
    let app = Application::start(wire, |call| match call.action().as_str() {
        "leave" => Reply::success().say(call, json!("bye")).disconnect(),
        _ => Reply::usual(call),
    });
    let server = app.server().start();
    let mut client = server.connect_base().await;
    client.subscribe(&channel("A")).await;
    client.perform(&channel("A"), json!({"action": "leave"})).await;
    client.expect_message(&channel("A"), json!("bye")).await;
    client.expect_close(1011, "Command Failed").await;
    assert_eq!(app.called(Method::Disconnect, 1).await[0].subscriptions(), [channel("A")]);
}
