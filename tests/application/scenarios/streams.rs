//! Streams that the application gives and takes.

use super::{following, following_as};
use crate::harness::*;
use serde_json::json;

over_every_wire!(
    client_receives_messages_from_the_stream,
    client_does_not_receive_messages_after_removing_subscription,
    client_receives_multiple_messages_when_subscribed_with_different_params,
    client_receives_messages_from_both_streams,
    client_does_not_receive_messages_from_any_stream_after_removing_subscription,
    multiple_clients_receive_messages_from_stream,
    client_receives_messages_when_another_client_removes_subscription,
    client_unsubscribes_from_the_stream,
    all_streams_are_stopped_before_others_are_added,
);

async fn client_receives_messages_from_the_stream(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().start();
    let mut client = server.connect_base().await;
    client.subscribe(&following(&["a"])).await;
    for text in ["X", "Y"] {
        server.publish("a", json!({"data": text})).await;
    }
    for text in ["X", "Y"] {
        client.expect_message(&following(&["a"]), json!({"data": text})).await;
    }
}

async fn client_does_not_receive_messages_after_removing_subscription(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().start();
    let mut client = server.connect_base().await;
    client.subscribe(&following(&["a"])).await;
    client.unsubscribe(&following(&["a"])).await;
    server.publish("a", json!("X")).await;
    client.expect_silence().await;
    assert_eq!(app.commands(), ["subscribe", "unsubscribe"]);
}

async fn client_receives_multiple_messages_when_subscribed_with_different_params(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().start();
    let mut client = server.connect_base().await;
    for id in [1, 2] {
        client.subscribe(&following_as(id, &["a"])).await;
    }
    server.publish("a", json!("XX")).await;
    let mut seen = Vec::new();
    for _ in 0..2 {
        let delivery = Delivery::of(&client.next().await).expect("a data message");
        assert_eq!(delivery.message, "XX");
        seen.push(delivery.identifier);
    }
    seen.sort();
    assert_eq!(seen, [following_as(1, &["a"]), following_as(2, &["a"])]);
    client.expect_silence().await;
}

async fn client_receives_messages_from_both_streams(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().start();
    let mut client = server.connect_base().await;
    client.subscribe(&following(&["a", "b"])).await;
    for stream in ["a", "b"] {
        server.publish(stream, json!(stream)).await;
        client.expect_message(&following(&["a", "b"]), json!(stream)).await;
    }
}

async fn client_does_not_receive_messages_from_any_stream_after_removing_subscription(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().start();
    let mut client = server.connect_base().await;
    client.subscribe(&following(&["a", "b"])).await;
    client.unsubscribe(&following(&["a", "b"])).await;
    for stream in ["a", "b"] {
        server.publish(stream, json!(stream)).await;
    }
    client.expect_silence().await;
}

async fn multiple_clients_receive_messages_from_stream(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().start();
    let mut clients = [server.connect_base().await, server.connect_base().await];
    for client in &mut clients {
        client.subscribe(&following(&["a"])).await;
    }
    server.publish("a", json!("X")).await;
    for client in &mut clients {
        client.expect_message(&following(&["a"]), json!("X")).await;
    }
}

async fn client_receives_messages_when_another_client_removes_subscription(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().start();
    let (mut leaves, mut stays) = (server.connect_base().await, server.connect_base().await);
    leaves.subscribe(&following(&["a"])).await;
    stays.subscribe(&following(&["a"])).await;
    leaves.unsubscribe(&following(&["a"])).await;
    server.publish("a", json!("X")).await;
    stays.expect_message(&following(&["a"]), json!("X")).await;
    leaves.expect_silence().await;
}

async fn client_unsubscribes_from_the_stream(wire: Wire) {
    let app = Application::start(wire, |call| match call.action().as_str() {
        "stop" => Reply::success().stop("a").stop("unknown"),
        _ => Reply::usual(call),
    });
    let server = app.server().start();
    let mut client = server.connect_base().await;
    let identifier = following(&["a", "b"]);
    client.subscribe(&identifier).await;
    client.perform(&identifier, json!({"action": "stop"})).await;
    client.barrier().await;
    for stream in ["a", "b"] {
        server.publish(stream, json!(stream)).await;
    }
    client.expect_message(&identifier, json!("b")).await;
    client.expect_silence().await;
}

async fn all_streams_are_stopped_before_others_are_added(wire: Wire) {
    let app = Application::start(wire, |call| match call.action().as_str() {
        "move" => Reply::success().stop_all().stream("b").stream("c"),
        _ => Reply::usual(call),
    });
    let server = app.server().start();
    let mut client = server.connect_base().await;
    let identifier = following(&["a", "b"]);
    client.subscribe(&identifier).await;
    client.perform(&identifier, json!({"action": "move"})).await;
    client.barrier().await;
    for stream in ["a", "b", "c"] {
        server.publish(stream, json!(stream)).await;
    }
    client.expect_message(&identifier, json!("b")).await;
    client.expect_message(&identifier, json!("c")).await;
    client.expect_silence().await;
}
