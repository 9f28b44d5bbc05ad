//! Whispers: to all others on the stream, as they are, never stored.

use crate::harness::client::messages;
use crate::harness::*;
use serde_json::json;

on_every_backend!(
    others_hear_the_sender_does_not,
    the_senders_other_subscriptions_hear_nothing,
    any_json_is_delivered_as_it_is,
    whispers_have_no_position_and_no_history,
    whispers_work_on_the_base_protocol,
    whispers_on_signed_streams_need_the_option,
    whispers_of_unknown_identifiers_are_ignored,
);

async fn others_hear_the_sender_does_not(server: SharedServer) {
    let stream = stream("chat");
    let (mut sender, mut other) = (server.subscriber(&stream).await, server.subscriber(&stream).await);
    other.subscribe(&public_again(&stream)).await;
    sender.whisper(&public(&stream), json!({"event": "typing", "user": "Ann"})).await;
    let mut heard = [other.next().await, other.next().await];
    heard.sort_by_key(|frame| frame["identifier"].to_string().len());
    for (frame, identifier) in heard.iter().zip([public(&stream), public_again(&stream)]) {
        assert_eq!(frame, &json!({"identifier": identifier, "message": {"event": "typing", "user": "Ann"}}));
    }
    sender.expect_silence().await;
}

async fn the_senders_other_subscriptions_hear_nothing(server: SharedServer) {
    let stream = stream("chat");
    let mut sender = server.subscriber(&stream).await;
    sender.subscribe(&public_again(&stream)).await;
    sender.whisper(&public(&stream), json!("psst")).await;
    sender.barrier().await;
    sender.expect_silence().await;
}

async fn any_json_is_delivered_as_it_is(server: SharedServer) {
    let stream = stream("chat");
    let (mut sender, mut other) = (server.subscriber(&stream).await, server.subscriber(&stream).await);
    for data in [json!("text"), json!(7), json!([1, 2]), json!({"a": {"b": null}}), json!("{\"a\":1}"), json!(false)] {
        sender.whisper(&public(&stream), data.clone()).await;
        other.expect_message(&public(&stream), data).await;
    }
}

async fn whispers_have_no_position_and_no_history(server: SharedServer) {
    let stream = stream("chat");
    let (mut sender, mut other) = (server.subscriber(&stream).await, server.subscriber(&stream).await);
    let first = server.publish(&stream, json!(1)).await;
    other.expect_message(&public(&stream), json!(1)).await;
    sender.whisper(&public(&stream), json!("psst")).await;
    assert_eq!(other.expect_message(&public(&stream), json!("psst")).await.position, None);
    server.publish(&stream, json!(2)).await;
    let mut late = server.subscriber(&stream).await;
    assert_eq!(messages(&late.history(&public(&stream), after(&first)).await), [2]);
}

async fn whispers_work_on_the_base_protocol(server: SharedServer) {
    let stream = stream("chat");
    let (mut sender, mut other) = (server.connect_base().await, server.connect_base().await);
    sender.subscribe(&public(&stream)).await;
    other.subscribe(&public(&stream)).await;
    sender.whisper(&public(&stream), json!("psst")).await;
    other.expect_message(&public(&stream), json!("psst")).await;
}

async fn whispers_on_signed_streams_need_the_option(server: SharedServer) {
    let stream = stream("chat");
    let (mut sender, mut other) = (server.connect().await, server.subscriber(&stream).await);
    sender.subscribe(&signed(&stream)).await;
    sender.whisper(&signed(&stream), json!("psst")).await;
    sender.barrier().await;
    other.expect_silence().await;
}

async fn whispers_of_unknown_identifiers_are_ignored(server: SharedServer) {
    let stream = stream("chat");
    let (mut sender, mut other) = (server.connect().await, server.subscriber(&stream).await);
    sender.whisper(&public(&stream), json!("psst")).await;
    sender.barrier().await;
    other.expect_silence().await;
}
