//! The `history` command and `subscribe` with history: what is asked, what is answered, in which order.

use crate::harness::client::messages;
use crate::harness::*;
use serde_json::json;

on_every_backend!(
    since_false_is_accepted_beside_positions,
    since_null_is_accepted_beside_positions,
    asking_for_nothing_is_confirmed,
    positions_of_other_streams_are_ignored,
    since_serves_streams_without_a_position,
    a_position_wins_over_since,
    history_works_on_the_base_protocol,
    subscribe_confirms_then_replays_then_confirms_history,
    subscribe_with_the_stock_clients_first_request,
    subscribe_with_empty_history_asks_for_nothing,
    rejected_history_leaves_the_subscription,
    refused_subscription_asks_for_no_history,
    history_of_an_unknown_identifier_brings_no_messages,
    replay_meets_live_without_gap_or_overlap,
);

async fn since_false_is_accepted_beside_positions(server: SharedServer) {
    let stream = stream("chat");
    let positions = server.publish_numbers(&stream, 1..=3).await;
    let mut client = server.subscriber(&stream).await;
    let mut history = after(&positions[0]);
    history["since"] = json!(false);
    assert_eq!(messages(&client.history(&public(&stream), history).await), [2, 3]);
    assert_eq!(client.history(&public(&stream), json!({"since": false})).await, []);
}

async fn since_null_is_accepted_beside_positions(server: SharedServer) {
    let stream = stream("chat");
    let positions = server.publish_numbers(&stream, 1..=3).await;
    let mut client = server.subscriber(&stream).await;
    let mut history = after(&positions[0]);
    history["since"] = json!(null);
    assert_eq!(messages(&client.history(&public(&stream), history).await), [2, 3]);
}

/// The stock client asks so after a restore when its time-based catch-up is off; "nothing" is not "lost".
async fn asking_for_nothing_is_confirmed(server: SharedServer) {
    let stream = stream("chat");
    server.publish(&stream, json!(1)).await;
    let mut client = server.subscriber(&stream).await;
    for history in [json!({}), json!({"streams": {}}), json!({"since": false, "streams": {}})] {
        assert_eq!(client.history(&public(&stream), history).await, []);
    }
    client.send(json!({"command": "history", "identifier": public(&stream)})).await;
    client.expect(confirm_history(&public(&stream))).await;
}

async fn positions_of_other_streams_are_ignored(server: SharedServer) {
    let (here, there) = (stream("chat"), stream("chat"));
    let position = server.publish(&there, json!("there")).await;
    server.publish(&here, json!("here")).await;
    let mut client = server.subscriber(&here).await;
    assert_eq!(client.history(&public(&here), after_offset(&position, 0)).await, []);
    let stale = json!({"streams": {there: {"offset": 1, "epoch": "elsewhere"}}});
    assert_eq!(client.history(&public(&here), stale).await, []);
}

async fn since_serves_streams_without_a_position(server: SharedServer) {
    let (here, there) = (stream("chat"), stream("chat"));
    let position = server.publish(&there, json!("there")).await;
    server.publish_numbers(&here, 1..=2).await;
    let mut client = server.subscriber(&here).await;
    let mut history = after(&position);
    history["since"] = json!(unix_now() - 60);
    assert_eq!(messages(&client.history(&public(&here), history).await), [1, 2]);
}

async fn a_position_wins_over_since(server: SharedServer) {
    let stream = stream("chat");
    let positions = server.publish_numbers(&stream, 1..=3).await;
    let mut client = server.subscriber(&stream).await;
    let mut history = after(&positions[1]);
    history["since"] = json!(unix_now() - 60);
    assert_eq!(messages(&client.history(&public(&stream), history).await), [3]);
}

async fn history_works_on_the_base_protocol(server: SharedServer) {
    let stream = stream("chat");
    let positions = server.publish_numbers(&stream, 1..=2).await;
    let mut client = server.connect_base().await;
    client.subscribe(&public(&stream)).await;
    let replayed = client.history(&public(&stream), after(&positions[0])).await;
    assert_eq!(messages(&replayed), [2]);
    assert_eq!(replayed[0].at(), positions[1]);
}

async fn subscribe_confirms_then_replays_then_confirms_history(server: SharedServer) {
    let stream = stream("chat");
    let positions = server.publish_numbers(&stream, 1..=3).await;
    let mut client = server.connect().await;
    client.subscribe_with(&public(&stream), after(&positions[0])).await;
    client.expect(confirm(&public(&stream))).await;
    assert_eq!(messages(&client.replay(&public(&stream)).await), [2, 3]);
    server.publish(&stream, json!(4)).await;
    client.expect_message(&public(&stream), json!(4)).await;
}

async fn subscribe_with_the_stock_clients_first_request(server: SharedServer) {
    let stream = stream("chat");
    server.publish(&stream, json!(1)).await;
    let mut client = server.connect().await;
    client.subscribe_with(&public(&stream), json!({"since": unix_now() - 30, "streams": {}})).await;
    client.expect(confirm(&public(&stream))).await;
    assert_eq!(messages(&client.replay(&public(&stream)).await), [1]);
}

async fn subscribe_with_empty_history_asks_for_nothing(server: SharedServer) {
    let stream = stream("chat");
    server.publish(&stream, json!(1)).await;
    let mut client = server.connect().await;
    client.subscribe_with(&public(&stream), json!({})).await;
    client.expect(confirm(&public(&stream))).await;
    client.barrier().await;
    client.expect_silence().await;
}

async fn rejected_history_leaves_the_subscription(server: SharedServer) {
    let stream = stream("chat");
    let mut client = server.connect().await;
    client.subscribe_with(&public(&stream), json!({"streams": {&stream: {"offset": 1, "epoch": "elsewhere"}}})).await;
    client.expect(confirm(&public(&stream))).await;
    client.expect(reject_history(&public(&stream))).await;
    let position = server.publish(&stream, json!(1)).await;
    assert_eq!(client.expect_message(&public(&stream), json!(1)).await.at(), position);
}

async fn refused_subscription_asks_for_no_history(server: SharedServer) {
    let mut client = server.connect().await;
    let identifier = json!({"channel": "$pubsub", "signed_stream_name": "forged--00"}).to_string();
    client.subscribe_with(&identifier, since(unix_now() - 60)).await;
    client.expect(reject(&identifier)).await;
    client.barrier().await;
}

async fn history_of_an_unknown_identifier_brings_no_messages(server: SharedServer) {
    let stream = stream("chat");
    server.publish(&stream, json!(1)).await;
    let mut client = server.connect().await;
    client.ask_history(&public(&stream), since(1)).await;
    client.send(json!({"command": "ping"})).await;
    let mut answer = client.next().await;
    if answer == reject_history(&public(&stream)) {
        answer = client.next().await;
    }
    assert_eq!(answer, json!({"type": "pong"}));
}

/// A publisher that does not pause while clients come and ask: each gets every message once, in order.
async fn replay_meets_live_without_gap_or_overlap(server: SharedServer) {
    let stream = stream("chat");
    let first = server.publish(&stream, json!(0)).await;
    let publishing = async {
        for number in 1..=80 {
            server.publish(&stream, json!(number)).await;
        }
    };
    let following = async {
        for _ in 0..8 {
            let mut client = server.connect().await;
            client.subscribe_with(&public(&stream), after(&first)).await;
            client.expect(confirm(&public(&stream))).await;
            let mut last = 0;
            let mut is_confirmed = false;
            while !is_confirmed || last < 10 {
                let frame = client.next().await;
                if frame == confirm_history(&public(&stream)) {
                    is_confirmed = true;
                } else {
                    last += 1;
                    assert_eq!(frame["message"], last, "{frame}");
                }
            }
        }
    };
    tokio::join!(publishing, following);
}
