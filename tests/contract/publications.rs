//! What becomes of a publication: payload, transient, excluded socket, type.

use crate::harness::client::messages;
use crate::harness::*;
use serde_json::json;

on_every_backend!(
    payloads_are_parsed_once,
    payloads_are_embedded_as_they_came,
    transient_messages_have_no_position_and_no_history,
    the_excluded_socket_gets_nothing,
    the_excluded_socket_gets_nothing_on_replay,
    an_unknown_excluded_socket_excludes_nobody,
    a_broadcast_type_becomes_the_messages_type,
    positions_come_on_the_base_protocol_too,
    history_does_not_need_listeners,
);

with_own_server_on_every_backend!(without_history_messages_are_delivered_and_not_stored);

async fn without_history_messages_are_delivered_and_not_stored(backend: Backend) {
    for option in ["history_limit", "history_ttl"] {
        let server = Server::on(backend).option(option, 0).start();
        let mut client = server.subscriber("chat").await;
        server.accepted(json!({"stream": "chat", "data": "1"})).await;
        assert_eq!(client.expect_message(&public("chat"), json!(1)).await.position, None);
        // Sessions are another matter.
        let sid = client.drop_hard();
        assert_eq!(server.resume(&sid).await.restored(), [public("chat")]);
    }
}

async fn payloads_are_parsed_once(server: SharedServer) {
    let stream = stream("chat");
    let mut client = server.subscriber(&stream).await;
    let table = [
        (r#"{"text":"hey"}"#, json!({"text": "hey"})),
        (r#""<b>hi</b>""#, json!("<b>hi</b>")),
        ("<b>hi</b>", json!("<b>hi</b>")),
        (r#""{\"a\":1}""#, json!(r#"{"a":1}"#)),
        ("null", json!("null")),
        ("", json!("")),
        ("7", json!(7)),
        ("{broken", json!("{broken")),
        ("two words", json!("two words")),
        ("[1,null,\"é\"]", json!([1, null, "é"])),
    ];
    for (data, message) in table {
        server.accepted(json!({"stream": stream, "data": data})).await;
        client.expect_message(&public(&stream), message).await;
    }
}

/// Number spelling, key order and big integers survive, live and on replay.
async fn payloads_are_embedded_as_they_came(server: SharedServer) {
    let stream = stream("chat");
    let mut client = server.subscriber(&stream).await;
    let data = r#"{"z":1.50,"a":12345678901234567890123,"e":1E3,"dup":1}"#;
    let position = Position::of(&server.accepted(json!({"stream": stream, "data": data})).await);
    let live = client.next_text().await;
    assert!(live.contains(&format!(r#""message":{data}"#)), "{live}");
    client.ask_history(&public(&stream), after_offset(&position, position.offset - 1)).await;
    let replayed = client.next_text().await;
    assert!(replayed.contains(&format!(r#""message":{data}"#)), "{replayed}");
}

async fn transient_messages_have_no_position_and_no_history(server: SharedServer) {
    let stream = stream("chat");
    let mut client = server.subscriber(&stream).await;
    let first = server.publish(&stream, json!(1)).await;
    client.expect_message(&public(&stream), json!(1)).await;
    let transient = json!({"stream": stream, "data": "\"typing\"", "meta": {"transient": true}});
    let answer = server.accepted(transient).await;
    assert_eq!(answer["offset"].as_u64().unwrap_or(0), 0, "{answer}");
    let delivery = client.expect_message(&public(&stream), json!("typing")).await;
    assert_eq!(delivery.position, None);
    server.publish(&stream, json!(2)).await;
    client.expect_message(&public(&stream), json!(2)).await;
    let mut late = server.subscriber(&stream).await;
    assert_eq!(messages(&late.history(&public(&stream), after(&first)).await), [2]);
}

async fn the_excluded_socket_gets_nothing(server: SharedServer) {
    let stream = stream("chat");
    let (mut one, mut two) = (server.subscriber(&stream).await, server.subscriber(&stream).await);
    one.subscribe(&public_again(&stream)).await;
    server.publish_with(&stream, json!("to others"), json!({"exclude_socket": one.sid})).await;
    two.expect_message(&public(&stream), json!("to others")).await;
    one.expect_silence().await;
    let meta = json!({"exclude_socket": one.sid, "transient": true});
    server.accepted(json!({"stream": stream, "data": "\"again\"", "meta": meta})).await;
    two.expect_message(&public(&stream), json!("again")).await;
    one.expect_silence().await;
}

async fn the_excluded_socket_gets_nothing_on_replay(server: SharedServer) {
    let stream = stream("chat");
    let mut client = server.subscriber(&stream).await;
    let first = server.publish(&stream, json!(1)).await;
    server.publish_with(&stream, json!(2), json!({"exclude_socket": client.sid})).await;
    server.publish(&stream, json!(3)).await;
    client.expect_message(&public(&stream), json!(1)).await;
    client.expect_message(&public(&stream), json!(3)).await;
    assert_eq!(messages(&client.history(&public(&stream), after(&first)).await), [3]);
    let mut other = server.subscriber(&stream).await;
    assert_eq!(messages(&other.history(&public(&stream), after(&first)).await), [2, 3]);
}

async fn an_unknown_excluded_socket_excludes_nobody(server: SharedServer) {
    let stream = stream("chat");
    let mut client = server.subscriber(&stream).await;
    server.publish_with(&stream, json!("hey"), json!({"exclude_socket": "nobody"})).await;
    client.expect_message(&public(&stream), json!("hey")).await;
}

async fn a_broadcast_type_becomes_the_messages_type(server: SharedServer) {
    let stream = stream("chat");
    let mut client = server.subscriber(&stream).await;
    let first = server.publish(&stream, json!(1)).await;
    client.expect_message(&public(&stream), json!(1)).await;
    server.publish_with(&stream, json!("hey"), json!({"broadcast_type": "note"})).await;
    let live = client.next().await;
    assert_eq!((&live["type"], &live["message"]), (&json!("note"), &json!("hey")));
    let mut late = server.subscriber(&stream).await;
    late.ask_history(&public(&stream), after(&first)).await;
    assert_eq!(late.next().await, live);
    late.expect(confirm_history(&public(&stream))).await;
}

async fn positions_come_on_the_base_protocol_too(server: SharedServer) {
    let stream = stream("chat");
    let mut client = server.connect_base().await;
    client.subscribe(&public(&stream)).await;
    let position = server.publish(&stream, json!(1)).await;
    assert_eq!(client.expect_message(&public(&stream), json!(1)).await.at(), position);
    assert!(position.offset > 0 && position.offset < 1 << 53);
}

async fn history_does_not_need_listeners(server: SharedServer) {
    let stream = stream("chat");
    let start = unix_now();
    server.publish_numbers(&stream, 1..=2).await;
    let mut client = server.subscriber(&stream).await;
    assert_eq!(messages(&client.history(&public(&stream), since(start)).await), [1, 2]);
}
