//! Subscribing: confirmations, the duplicate rule, refusals, unsubscribing, welcome.

use crate::harness::*;
use serde_json::json;

on_every_backend!(
    welcome_carries_a_fresh_sid_and_nothing_else,
    welcome_on_the_base_protocol_carries_a_sid,
    confirmation_names_type_and_identifier_only,
    a_second_subscribe_is_not_answered,
    a_retry_before_the_answer_gets_one_confirmation,
    a_restored_subscription_is_confirmed_once_if_asked_for,
    a_restored_subscription_is_confirmed_and_replayed_if_asked_for_with_history,
    identifiers_are_compared_byte_for_byte,
    signed_streams_are_served,
    refusals_answer_once_and_leave_nothing,
    a_refused_client_may_try_again,
    unsubscribing_stops_the_stream,
    one_identifier_leaves_the_other_stays,
    unsubscribe_and_subscribe_again,
);

async fn welcome_carries_a_fresh_sid_and_nothing_else(server: SharedServer) {
    let (one, two) = (server.connect().await, server.connect().await);
    assert_eq!(one.welcome, json!({"type": "welcome", "sid": one.sid}));
    assert_ne!(one.sid, two.sid);
}

async fn welcome_on_the_base_protocol_carries_a_sid(server: SharedServer) {
    let client = server.connect_base().await;
    assert_eq!(client.welcome, json!({"type": "welcome", "sid": client.sid}));
}

async fn confirmation_names_type_and_identifier_only(server: SharedServer) {
    let identifier = public(&stream("chat"));
    let mut client = server.connect().await;
    client.send(json!({"command": "subscribe", "identifier": identifier})).await;
    client.expect(json!({"type": "confirm_subscription", "identifier": identifier})).await;
}

async fn a_second_subscribe_is_not_answered(server: SharedServer) {
    let stream = stream("chat");
    let mut client = server.subscriber(&stream).await;
    client.send(json!({"command": "subscribe", "identifier": public(&stream)})).await;
    client.barrier().await;
    server.publish(&stream, json!(1)).await;
    client.expect_message(&public(&stream), json!(1)).await;
    client.expect_silence().await;
}

async fn a_retry_before_the_answer_gets_one_confirmation(server: SharedServer) {
    let stream = stream("chat");
    let mut client = server.connect().await;
    for _ in 0..3 {
        client.send(json!({"command": "subscribe", "identifier": public(&stream)})).await;
    }
    client.expect(confirm(&public(&stream))).await;
    client.barrier().await;
    client.expect_silence().await;
}

async fn a_restored_subscription_is_confirmed_once_if_asked_for(server: SharedServer) {
    let stream = stream("chat");
    let sid = server.subscriber(&stream).await.drop_hard();
    let mut client = server.resume(&sid).await;
    assert_eq!(client.restored(), [public(&stream)]);
    client.subscribe(&public(&stream)).await;
    client.send(json!({"command": "subscribe", "identifier": public(&stream)})).await;
    client.barrier().await;
    server.publish(&stream, json!(1)).await;
    assert_eq!(client.next().await["message"], 1);
    client.expect_silence().await;
}

async fn a_restored_subscription_is_confirmed_and_replayed_if_asked_for_with_history(server: SharedServer) {
    let stream = stream("chat");
    let client = server.subscriber(&stream).await;
    let position = server.publish(&stream, json!(1)).await;
    let sid = client.drop_hard();
    server.publish(&stream, json!(2)).await;
    let mut client = server.resume(&sid).await;
    client.subscribe_with(&public(&stream), after(&position)).await;
    client.expect(confirm(&public(&stream))).await;
    assert_eq!(client::messages(&client.replay(&public(&stream)).await), [2]);
}

async fn identifiers_are_compared_byte_for_byte(server: SharedServer) {
    let stream = stream("chat");
    let spaced = format!(r#"{{ "stream_name": "{stream}",  "channel":"$pubsub" }}"#);
    let mut client = server.subscriber(&stream).await;
    client.subscribe(&spaced).await;
    server.publish(&stream, json!(1)).await;
    let mut identifiers = [client.next().await, client.next().await].map(|frame| frame["identifier"].clone());
    identifiers.sort_by_key(|identifier| identifier.to_string().len());
    assert_eq!(identifiers, [json!(public(&stream)), json!(spaced)]);
}

async fn signed_streams_are_served(server: SharedServer) {
    let stream = stream("naïve \"quotes\"");
    let mut client = server.connect().await;
    client.subscribe(&signed(&stream)).await;
    let position = server.publish(&stream, json!(1)).await;
    let delivery = client.expect_message(&signed(&stream), json!(1)).await;
    assert_eq!(delivery.at(), position);
    assert_eq!(position.stream, stream);
}

async fn refusals_answer_once_and_leave_nothing(server: SharedServer) {
    let stream = stream("chat");
    let mut client = server.connect().await;
    let forged = sign(&stream, "other-secret");
    for identifier in [
        json!({"channel": "$pubsub", "signed_stream_name": forged}).to_string(),
        json!({"channel": "$pubsub", "signed_stream_name": "no-dashes"}).to_string(),
        // The signed name counts, even if it is wrong.
        json!({"channel": "$pubsub", "stream_name": stream, "signed_stream_name": forged}).to_string(),
        json!({"channel": "$pubsub"}).to_string(),
        json!({"channel": "$pubsub", "stream_name": ""}).to_string(),
        json!({"channel": "$pubsub", "stream_name": 7}).to_string(),
    ] {
        client.send(json!({"command": "subscribe", "identifier": identifier})).await;
        client.expect(reject(&identifier)).await;
    }
    client.barrier().await;
    server.publish(&stream, json!(1)).await;
    client.expect_silence().await;
}

async fn a_refused_client_may_try_again(server: SharedServer) {
    let mut client = server.connect().await;
    let identifier = json!({"channel": "$pubsub", "signed_stream_name": "forged--00"}).to_string();
    for _ in 0..2 {
        client.send(json!({"command": "subscribe", "identifier": identifier})).await;
        client.expect(reject(&identifier)).await;
    }
    client.subscribe(&public(&stream("chat"))).await;
}

async fn unsubscribing_stops_the_stream(server: SharedServer) {
    let stream = stream("chat");
    let mut client = server.subscriber(&stream).await;
    client.unsubscribe(&public(&stream)).await;
    server.publish(&stream, json!(1)).await;
    client.expect_silence().await;
}

async fn one_identifier_leaves_the_other_stays(server: SharedServer) {
    let stream = stream("chat");
    let mut client = server.subscriber(&stream).await;
    client.subscribe(&public_again(&stream)).await;
    client.unsubscribe(&public(&stream)).await;
    server.publish(&stream, json!(1)).await;
    client.expect_message(&public_again(&stream), json!(1)).await;
    client.expect_silence().await;
}

async fn unsubscribe_and_subscribe_again(server: SharedServer) {
    let stream = stream("chat");
    let mut client = server.subscriber(&stream).await;
    for round in 1..=3 {
        client.unsubscribe(&public(&stream)).await;
        client.subscribe(&public(&stream)).await;
        server.publish(&stream, json!(round)).await;
        client.expect_message(&public(&stream), json!(round)).await;
    }
}
