//! Rulings on what publishers may do and are told.

use crate::harness::client::messages;
use crate::harness::*;
use serde_json::json;

on_every_backend!(
    ruling_15_a_publication_after_anothers_success_comes_later,
    ruling_16_same_key_other_data_the_first_wins,
    ruling_17_any_stream_name_works,
    ruling_17_names_are_not_patterns,
    ruling_21d_a_batch_is_checked_before_anything_is_stored,
    ruling_26_protocol_types_are_refused,
);

with_own_server_on_durable_backends!(
    ruling_16_a_key_outlives_a_restart_of_the_node,
    ruling_18_an_item_too_large_for_the_store_is_413,
);

async fn ruling_15_a_publication_after_anothers_success_comes_later(server: SharedServer) {
    let (one, two) = (stream("chat"), stream("chat"));
    let mut last = 0;
    for number in 0..20 {
        let position = server.publish(if number % 2 == 0 { &one } else { &two }, json!(number)).await;
        assert!(position.offset > last);
        last = position.offset;
    }
}

async fn ruling_16_same_key_other_data_the_first_wins(server: SharedServer) {
    let stream = stream("chat");
    let item = |data: &str| json!({"stream": stream, "data": data, "meta": {"id": "order-9"}});
    let first = server.accepted(item("1")).await;
    let second = server.accepted(item("2")).await;
    assert_eq!(second["duplicate"], true);
    assert_eq!(Position::of(&first), Position::of(&second));
    let mut client = server.subscriber(&stream).await;
    assert_eq!(messages(&client.history(&public(&stream), since(unix_now() - 60)).await), [1]);
}

async fn ruling_17_any_stream_name_works(server: SharedServer) {
    let mut client = server.connect().await;
    let long = "x".repeat(2_000);
    let names = ["a.b/c", "a*b", "a>b", "with blanks", "tab\tand\nline", "🐨", "Ω/.. /$JS.API.>", "\"quoted\"", &long];
    for name in names.map(|name| format!("{name}{}", stream(""))) {
        client.subscribe(&public(&name)).await;
        let positions = server.publish_numbers(&name, 1..=2).await;
        assert_eq!(positions[0].stream, name);
        assert_eq!(client.expect_message(&public(&name), json!(1)).await.at(), positions[0]);
        assert_eq!(client.expect_message(&public(&name), json!(2)).await.at(), positions[1]);
        assert_eq!(messages(&client.history(&public(&name), after(&positions[0])).await), [2]);
    }
}

async fn ruling_17_names_are_not_patterns(server: SharedServer) {
    let stream = stream("chat");
    let mut client = server.connect().await;
    for name in [">", "*", "chat/*", "chat.>", "$JS.>", "_INBOX.>", "carrick.log.>", "__anycable_internal__", "#", "?"]
    {
        client.subscribe(&public(name)).await;
    }
    server.publish(&stream, json!(1)).await;
    client.barrier().await;
    client.expect_silence().await;
}

async fn ruling_21d_a_batch_is_checked_before_anything_is_stored(server: SharedServer) {
    let stream = stream("chat");
    let mut client = server.subscriber(&stream).await;
    let batch =
        json!([{"stream": stream, "data": "1"}, {"stream": stream, "data": 2}, {"stream": stream, "data": "3"}]);
    assert_eq!(server.post(&batch.to_string()).await.status, 422);
    client.expect_silence().await;
    server.publish(&stream, json!(4)).await;
    client.expect_message(&public(&stream), json!(4)).await;
}

async fn ruling_26_protocol_types_are_refused(server: SharedServer) {
    let stream = stream("chat");
    let mut client = server.subscriber(&stream).await;
    let types = ["welcome", "disconnect", "ping", "confirm_subscription", "reject_subscription", "confirm_history"];
    for kind in types.into_iter().chain(["reject_history", "presence"]) {
        let body = json!({"stream": stream, "data": "1", "meta": {"broadcast_type": kind}});
        let answer = server.post(&body.to_string()).await;
        assert_eq!(answer.status, 422, "{kind}: {answer:?}");
    }
    client.expect_silence().await;
}

async fn ruling_16_a_key_outlives_a_restart_of_the_node(backend: Backend) {
    let mut server = Server::on(backend).start();
    let item = json!({"stream": "chat", "data": "1", "meta": {"id": "order-9"}});
    let first = server.accepted(item.clone()).await;
    server.kill();
    server.start();
    let second = server.accepted(item).await;
    assert_eq!((Position::of(&first), &second["duplicate"]), (Position::of(&second), &json!(true)));
}

async fn ruling_18_an_item_too_large_for_the_store_is_413(backend: Backend) {
    let server = Server::on(backend).start();
    server.publish("chat", json!("x".repeat(900_000))).await;
    let body = json!({"stream": "chat", "data": "x".repeat(1_048_000)}).to_string();
    let answer = server.post(&body).await;
    assert!(matches!(answer.status, 201 | 413), "{}", answer.status);
    let body = json!({"stream": "chat", "data": "x".repeat(1_100_000)}).to_string();
    let answer = server.post(&body).await;
    assert_eq!(answer.status, 413);
    assert!(answer.body.contains("limit"), "{answer:?}");
    server.publish("chat", json!(1)).await;
}
