//! Replay since a time: every row of the table.

use crate::harness::client::messages;
use crate::harness::patience::let_pass;
use crate::harness::*;
use serde_json::json;
use std::time::Duration;

on_every_backend!(
    stream_without_messages_is_complete,
    messages_since_then_come_in_order,
    messages_before_then_do_not_come,
    a_time_in_the_future_brings_nothing,
    milliseconds_by_mistake_bring_nothing,
    a_time_before_everything_brings_what_is_kept,
    zero_and_negative_times_count_as_not_given,
    odd_times_mean_the_same_in_both_commands,
);

with_own_server_on_every_backend!(truncation_is_not_reported, expired_messages_do_not_come);

async fn stream_without_messages_is_complete(server: SharedServer) {
    let stream = stream("chat");
    let mut client = server.subscriber(&stream).await;
    assert_eq!(client.history(&public(&stream), since(unix_now() - 60)).await, []);
}

/// The boundary second is included.
async fn messages_since_then_come_in_order(server: SharedServer) {
    let stream = stream("chat");
    let start = unix_now();
    let positions = server.publish_numbers(&stream, 1..=3).await;
    let mut client = server.subscriber(&stream).await;
    let replayed = client.history(&public(&stream), since(start)).await;
    assert_eq!(messages(&replayed), [1, 2, 3]);
    assert_eq!(replayed.iter().map(Delivery::at).collect::<Vec<_>>(), positions);
}

async fn messages_before_then_do_not_come(server: SharedServer) {
    let stream = stream("chat");
    server.publish(&stream, json!(1)).await;
    let_pass(Duration::from_millis(2_100)).await;
    let start = unix_now();
    server.publish_numbers(&stream, 2..=3).await;
    let mut client = server.subscriber(&stream).await;
    assert_eq!(messages(&client.history(&public(&stream), since(start)).await), [2, 3]);
}

async fn a_time_in_the_future_brings_nothing(server: SharedServer) {
    let stream = stream("chat");
    server.publish(&stream, json!(1)).await;
    let mut client = server.subscriber(&stream).await;
    assert_eq!(client.history(&public(&stream), since(unix_now() + 3_600)).await, []);
}

async fn milliseconds_by_mistake_bring_nothing(server: SharedServer) {
    let stream = stream("chat");
    server.publish(&stream, json!(1)).await;
    let mut client = server.subscriber(&stream).await;
    assert_eq!(client.history(&public(&stream), since(unix_now() * 1_000)).await, []);
}

async fn a_time_before_everything_brings_what_is_kept(server: SharedServer) {
    let stream = stream("chat");
    server.publish_numbers(&stream, 1..=3).await;
    let mut client = server.subscriber(&stream).await;
    assert_eq!(messages(&client.history(&public(&stream), since(1)).await), [1, 2, 3]);
}

async fn zero_and_negative_times_count_as_not_given(server: SharedServer) {
    let stream = stream("chat");
    server.publish(&stream, json!(1)).await;
    let mut client = server.subscriber(&stream).await;
    for nothing in [0, -1, -1_790_211_800] {
        assert_eq!(client.history(&public(&stream), json!({"since": nothing})).await, []);
    }
}

/// A time is in the past, in the future, or none. `subscribe` and `history` take it for the same; only `subscribe` has another
/// answer besides, and says no more where it is asked for nothing.
async fn odd_times_mean_the_same_in_both_commands(server: SharedServer) {
    let stream = stream("chat");
    server.publish(&stream, json!(1)).await;
    let identifier = public(&stream);
    let frame = |command: &str, since: &str| {
        let identifier = json!(identifier);
        format!(r#"{{"command":"{command}","identifier":{identifier},"history":{{"since":{since}}}}}"#)
    };
    let future = ["9223372036854775807", "18446744073709551616", "1e308"];
    let none = ["-1", "0", "0.5", "\"5\"", "null", "true", "false", "[1]"];
    for since in future.iter().chain(&none) {
        let mut client = server.subscriber(&stream).await;
        client.send_text(&frame("history", since)).await;
        client.expect(confirm_history(&identifier)).await;
        client.barrier().await;

        let mut client = server.connect().await;
        client.send_text(&frame("subscribe", since)).await;
        client.expect(confirm(&identifier)).await;
        if future.contains(since) {
            client.expect(confirm_history(&identifier)).await;
        }
        client.barrier().await;
    }
}

async fn truncation_is_not_reported(backend: Backend) {
    let server = Server::on(backend).option("history_limit", 5).start();
    server.publish_numbers("chat", 1..=8).await;
    let mut client = server.subscriber("chat").await;
    assert_eq!(messages(&client.history(&public("chat"), since(unix_now() - 60)).await), [4, 5, 6, 7, 8]);
}

async fn expired_messages_do_not_come(backend: Backend) {
    let server = Server::on(backend).option("history_ttl", 6).start();
    server.publish("chat", json!(1)).await;
    let_pass(Duration::from_millis(7_600)).await;
    server.publish("chat", json!(2)).await;
    let mut client = server.subscriber("chat").await;
    assert_eq!(messages(&client.history(&public("chat"), since(unix_now() - 60)).await), [2]);
}
