//! Replay from a position `(stream, epoch, offset)`: every row of the table, as far as completeness can be proved.

use crate::harness::carrick::Builder;
use crate::harness::client::{messages, offsets};
use crate::harness::patience::{let_pass, unix_now};
use crate::harness::*;
use serde_json::json;
use std::time::Duration;

on_every_backend!(
    another_epoch_is_rejected,
    replays_what_follows_a_kept_position,
    the_newest_position_is_complete,
    position_before_everything_stored_is_complete,
    position_beyond_the_log_is_rejected,
    replayed_messages_look_like_live_ones,
    large_history_comes_whole,
);

with_own_server_on_every_backend!(
    offset_zero_is_complete_if_nothing_was_removed,
    position_of_another_stream_counts_for_a_stream_without_messages,
    trimmed_messages_are_missed,
    a_kept_position_survives_trimming,
    all_expired_and_nothing_missed_is_complete,
    all_expired_and_something_missed_is_rejected,
    an_open_stream_proves_that_nothing_was_missed,
    a_saved_session_proves_that_nothing_was_missed,
    offsets_are_not_used_again_after_expiry,
    a_herd_that_is_far_behind_shares_its_reading,
);

/// A server that keeps five messages per stream, for six seconds: proofs outlive a machine that stands still for half of that.
fn forgetful(backend: Backend) -> Builder {
    Server::on(backend).option("history_limit", 5).option("history_ttl", 6)
}

/// Longer than the life of messages on a [`forgetful`] server, expiry in the store included.
const LIFE: Duration = Duration::from_millis(7_600);

async fn another_epoch_is_rejected(server: SharedServer) {
    let stream = stream("chat");
    let mut position = server.publish(&stream, json!(1)).await;
    position.epoch = "elsewhere".into();
    let mut client = server.subscriber(&stream).await;
    client.ask_history(&public(&stream), after_offset(&position, 0)).await;
    client.expect(reject_history(&public(&stream))).await;
    server.publish(&stream, json!(2)).await;
    client.expect_message(&public(&stream), json!(2)).await;
}

async fn replays_what_follows_a_kept_position(server: SharedServer) {
    let stream = stream("chat");
    let positions = server.publish_numbers(&stream, 1..=5).await;
    let mut client = server.subscriber(&stream).await;
    let replayed = client.history(&public(&stream), after(&positions[1])).await;
    assert_eq!(messages(&replayed), [3, 4, 5]);
    assert_eq!(replayed.iter().map(Delivery::at).collect::<Vec<_>>(), positions[2..]);
}

async fn the_newest_position_is_complete(server: SharedServer) {
    let stream = stream("chat");
    let positions = server.publish_numbers(&stream, 1..=2).await;
    let mut client = server.subscriber(&stream).await;
    assert_eq!(client.history(&public(&stream), after(&positions[1])).await, []);
}

async fn position_before_everything_stored_is_complete(server: SharedServer) {
    let stream = stream("chat");
    let positions = server.publish_numbers(&stream, 1..=3).await;
    let mut client = server.subscriber(&stream).await;
    let replayed = client.history(&public(&stream), after_offset(&positions[0], positions[0].offset - 1)).await;
    assert_eq!(messages(&replayed), [1, 2, 3]);
}

async fn position_beyond_the_log_is_rejected(server: SharedServer) {
    let stream = stream("chat");
    let position = server.publish(&stream, json!(1)).await;
    let mut client = server.subscriber(&stream).await;
    client.ask_history(&public(&stream), after_offset(&position, position.offset + 1_000_000_000)).await;
    client.expect(reject_history(&public(&stream))).await;
    // A client's position says nothing about the log: the epoch stays.
    assert_eq!(server.publish(&stream, json!(2)).await.epoch, position.epoch);
}

async fn replayed_messages_look_like_live_ones(server: SharedServer) {
    let stream = stream("chat");
    let mut live = server.subscriber(&stream).await;
    let first = server.publish(&stream, json!({"text": "hey", "n": 1})).await;
    let frame = live.next().await;
    assert_eq!(
        frame,
        json!({
            "identifier": public(&stream), "message": {"text": "hey", "n": 1},
            "stream_id": stream, "epoch": first.epoch, "offset": first.offset,
        })
    );
    let mut late = server.subscriber(&stream).await;
    late.ask_history(&public(&stream), after_offset(&first, first.offset - 1)).await;
    assert_eq!(late.next().await, frame);
    late.expect(confirm_history(&public(&stream))).await;
}

/// More than fits one read of the store or one outgoing queue.
async fn large_history_comes_whole(server: SharedServer) {
    let stream = stream("chat");
    let text = "x".repeat(40_000);
    let body: Vec<_> = (1..=10).map(|_| json!({"stream": stream, "data": json!(text).to_string()})).collect();
    let mut first = None;
    for _ in 0..10 {
        let results = server.accepted(json!(body)).await;
        first.get_or_insert(Position::of(&results[0]));
    }
    let first = first.expect("there was a first one");
    let mut client = server.subscriber(&stream).await;
    let replayed = client.history(&public(&stream), after(&first)).await;
    assert_eq!(replayed.len(), 99);
    assert!(offsets(&replayed).is_sorted_by(|a, b| a < b));
}

async fn offset_zero_is_complete_if_nothing_was_removed(backend: Backend) {
    let server = Server::on(backend).option("history_limit", 5).start();
    let positions = server.publish_numbers("chat", 1..=3).await;
    let mut client = server.subscriber("chat").await;
    let replayed = client.history(&public("chat"), after_offset(&positions[0], 0)).await;
    assert_eq!(messages(&replayed), [1, 2, 3]);
    server.publish_numbers("chat", 4..=7).await;
    client.expect_numbers(&public("chat"), 4..=7).await;
    let mut late = server.subscriber("chat").await;
    late.ask_history(&public("chat"), after_offset(&positions[0], 0)).await;
    late.expect(reject_history(&public("chat"))).await;
}

/// All streams share one log: its positions are valid for each of them.
async fn position_of_another_stream_counts_for_a_stream_without_messages(backend: Backend) {
    let server = Server::on(backend).start();
    let mut position = server.publish("elsewhere", json!(1)).await;
    position.stream = "chat".into();
    let mut client = server.subscriber("chat").await;
    assert_eq!(client.history(&public("chat"), after(&position)).await, []);
    client.ask_history(&public("chat"), after_offset(&position, position.offset + 1)).await;
    client.expect(reject_history(&public("chat"))).await;
}

async fn trimmed_messages_are_missed(backend: Backend) {
    let server = Server::on(backend).option("history_limit", 5).start();
    let positions = server.publish_numbers("chat", 1..=8).await;
    let mut client = server.subscriber("chat").await;
    for missed in [&positions[0], &positions[1]] {
        client.ask_history(&public("chat"), after(missed)).await;
        client.expect(reject_history(&public("chat"))).await;
    }
}

async fn a_kept_position_survives_trimming(backend: Backend) {
    let server = Server::on(backend).option("history_limit", 5).start();
    let positions = server.publish_numbers("chat", 1..=8).await;
    let mut client = server.subscriber("chat").await;
    let replayed = client.history(&public("chat"), after(&positions[3])).await;
    assert_eq!(messages(&replayed), [5, 6, 7, 8]);
}

async fn all_expired_and_nothing_missed_is_complete(backend: Backend) {
    let server = forgetful(backend).start();
    let position = server.publish("chat", json!(1)).await;
    let_pass(LIFE).await;
    let mut client = server.subscriber("chat").await;
    assert_eq!(client.history(&public("chat"), after(&position)).await, []);
}

async fn all_expired_and_something_missed_is_rejected(backend: Backend) {
    let server = forgetful(backend).start();
    let positions = server.publish_numbers("chat", 1..=2).await;
    let_pass(LIFE).await;
    let mut client = server.subscriber("chat").await;
    client.ask_history(&public("chat"), after(&positions[0])).await;
    client.expect(reject_history(&public("chat"))).await;
}

/// What else is published lets the log's front move past the position; a stream that has been open since knows better.
async fn an_open_stream_proves_that_nothing_was_missed(backend: Backend) {
    let server = forgetful(backend).start();
    let mut watcher = server.subscriber("chat").await;
    let position = server.publish("chat", json!(1)).await;
    watcher.expect_message(&public("chat"), json!(1)).await;
    for n in 0..8 {
        server.publish("elsewhere", json!(n)).await;
        let_pass(LIFE / 8).await;
    }
    let mut client = server.subscriber("chat").await;
    assert_eq!(client.history(&public("chat"), after(&position)).await, []);
}

/// The same for a client that comes back alone: its session was saved with a proof.
async fn a_saved_session_proves_that_nothing_was_missed(backend: Backend) {
    let server = forgetful(backend).option("stream_linger", 0).start();
    let mut client = server.subscriber("chat").await;
    let position = server.publish("chat", json!(1)).await;
    client.expect_message(&public("chat"), json!(1)).await;
    for n in 0..8 {
        server.publish("elsewhere", json!(n)).await;
        let_pass(LIFE / 8).await;
    }
    let sid = client.drop_hard();
    let mut client = server.resume(&sid).await;
    assert_eq!(client.restored(), [public("chat")]);
    assert_eq!(client.history(&public("chat"), after(&position)).await, []);
}

async fn offsets_are_not_used_again_after_expiry(backend: Backend) {
    let server = forgetful(backend).start();
    let before = server.publish_numbers("chat", 1..=3).await;
    let_pass(LIFE).await;
    let after = server.publish("chat", json!(4)).await;
    assert_eq!(after.epoch, before[2].epoch);
    assert!(after.offset > before[2].offset, "{after:?} after {before:?}");
}

/// Sixty clients come back at once, a thousand messages behind: each gets all of them, and the store is read once, not
/// sixty times.
async fn a_herd_that_is_far_behind_shares_its_reading(backend: Backend) {
    const HERD: usize = 60;
    let server = Server::on(backend).option("history_limit", 5_000).option("metrics_http", "/metrics").start();
    let first = server.publish("chat", json!(0)).await;
    for hundred in 0..15 {
        let numbers = hundred * 100 + 1..=hundred * 100 + 100;
        let body: Vec<_> = numbers.map(|n| json!({"stream": "chat", "data": n.to_string()})).collect();
        server.accepted(json!(body)).await;
    }
    // Two thirds of them name a position, the others a time; some are a little further than the rest.
    let mut clients = Vec::new();
    for _ in 0..HERD {
        clients.push(server.subscriber("chat").await);
    }
    let replays = clients.iter_mut().enumerate().map(async |(number, client)| {
        let asked = match number % 3 {
            0 => after(&first),
            1 => after_offset(&first, first.offset + 7),
            _ => since(unix_now() - 100),
        };
        (number, messages(&client.history(&public("chat"), asked).await))
    });
    for (number, replayed) in futures_util::future::join_all(replays).await {
        let expected: Vec<u64> = match number % 3 {
            0 => (1..=1_500).collect(),
            1 => (8..=1_500).collect(),
            _ => (0..=1_500).collect(),
        };
        assert!(replayed == expected, "client {number} got {} of {}", replayed.len(), expected.len());
    }
    let page = server.get("/metrics").await.body;
    let read = page.lines().find_map(|line| line.strip_prefix("anycable_go_history_pages_read_total "));
    let read: usize = read.expect("the metric is there").parse().expect("a number");
    assert!((4..HERD).contains(&read), "{read} pages were read");
}
