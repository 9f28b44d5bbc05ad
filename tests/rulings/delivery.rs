//! Rulings on delivery: one cursor per stream, the hold after a restore, replays, pings.

use crate::harness::client::{Event, messages, offsets};
use crate::harness::*;
use serde_json::{Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

on_every_backend!(
    ruling_01_two_subscriptions_share_one_cursor,
    ruling_01_restored_subscriptions_of_a_stream_replay_jointly,
    ruling_01_a_replay_below_what_was_sent_carries_no_positions,
    ruling_02_the_hold_lasts_until_history_comes,
    ruling_02_after_the_hold_live_messages_carry_no_position,
    ruling_02_the_hold_ends_for_each_stream_alone,
    ruling_03_history_already_sent_is_replayed_between_live_messages,
    ruling_09_a_subscription_that_received_nothing_replays_from_its_beginning,
    ruling_25_a_restored_session_is_excluded_under_its_old_sids,
);

/// (identifier, number) of the data messages up to the given last number of both identifiers, and what else came.
async fn read_copies(client: &mut Client, last: u64) -> (Vec<(String, u64)>, Vec<Value>) {
    let (mut copies, mut others) = (Vec::new(), Vec::new());
    while copies.iter().filter(|(_, number)| *number == last).count() < 2 {
        let frame = client.next().await;
        match (frame["identifier"].as_str(), frame["message"].as_u64()) {
            (Some(identifier), Some(number)) => copies.push((identifier.to_owned(), number)),
            _ => others.push(frame),
        }
    }
    (copies, others)
}

fn numbers_of(copies: &[(String, u64)], identifier: &str) -> Vec<u64> {
    copies.iter().filter(|copy| copy.0 == identifier).map(|copy| copy.1).collect()
}

/// The client keeps one position per stream. If one subscription ran ahead while the other replays, the other's
/// messages would be lost after the next drop.
async fn ruling_01_two_subscriptions_share_one_cursor(server: SharedServer) {
    let stream = stream("chat");
    let (page, component) = (public(&stream), public_again(&stream));
    let positions = server.publish_numbers(&stream, 1..=30).await;
    let mut client = server.subscriber(&stream).await;
    client.subscribe_with(&component, after(&positions[0])).await;
    let (_, (copies, others)) = tokio::join!(server.publish_numbers(&stream, 31..=60), read_copies(&mut client, 60));
    assert_eq!(others, [confirm(&component), confirm_history(&component)]);
    assert_eq!(numbers_of(&copies, &page), (31..=60).collect::<Vec<_>>());
    assert_eq!(numbers_of(&copies, &component), (2..=60).collect::<Vec<_>>());
    // Live copies leave back to back: in each pair the same number.
    let live = &copies[copies.len() - 20..];
    assert!(live.chunks(2).all(|pair| pair[0].1 == pair[1].1), "{live:?}");
}

async fn ruling_01_restored_subscriptions_of_a_stream_replay_jointly(server: SharedServer) {
    let stream = stream("chat");
    let identifiers = [public(&stream), public_again(&stream)];
    let mut client = server.subscriber(&stream).await;
    client.subscribe(&identifiers[1]).await;
    let position = server.publish(&stream, json!(0)).await;
    let (copies, _) = read_copies(&mut client, 0).await;
    assert_eq!(copies.len(), 2);
    let sid = client.drop_hard();
    server.publish_numbers(&stream, 1..=10).await;
    let mut client = server.resume(&sid).await;
    for identifier in &identifiers {
        client.ask_history(identifier, after(&position)).await;
    }
    let (copies, _) = read_copies(&mut client, 10).await;
    let numbers: Vec<_> = copies.iter().map(|copy| copy.1).collect();
    assert_eq!(numbers, (1..=10).flat_map(|number| [number, number]).collect::<Vec<_>>());
}

/// The other subscription's position never moves back.
async fn ruling_01_a_replay_below_what_was_sent_carries_no_positions(server: SharedServer) {
    let stream = stream("chat");
    let (page, component) = (public(&stream), public_again(&stream));
    let mut client = server.subscriber(&stream).await;
    let positions = server.publish_numbers(&stream, 1..=5).await;
    client.expect_numbers(&page, 1..=5).await;
    client.subscribe_with(&component, after(&positions[0])).await;
    client.expect(confirm(&component)).await;
    let replayed = client.replay(&component).await;
    assert_eq!(messages(&replayed), [2, 3, 4, 5]);
    assert!(replayed.iter().all(|delivery| delivery.position.is_none()), "{replayed:?}");
    let position = server.publish(&stream, json!(6)).await;
    for _ in 0..2 {
        let delivery = Delivery::of(&client.next().await).expect("a data message");
        assert_eq!(delivery.at(), position);
    }
}

async fn ruling_02_the_hold_lasts_until_history_comes(server: SharedServer) {
    let stream = stream("chat");
    let mut client = server.subscriber(&stream).await;
    let position = server.publish(&stream, json!(1)).await;
    client.expect_message(&public(&stream), json!(1)).await;
    let sid = client.drop_hard();
    server.publish(&stream, json!(2)).await;
    let mut client = server.resume(&sid).await;
    server.publish(&stream, json!(3)).await;
    client.expect_silence().await;
    let replayed = client.history(&public(&stream), after(&position)).await;
    assert_eq!(messages(&replayed), [2, 3]);
    assert_eq!(offsets(&replayed).len(), 2, "both with positions");
    let position = server.publish(&stream, json!(4)).await;
    assert_eq!(client.expect_message(&public(&stream), json!(4)).await.at(), position);
}

/// The client's position stays where it was; a late `history` brings what was not sent, then positions resume.
async fn ruling_02_after_the_hold_live_messages_carry_no_position(server: SharedServer) {
    let stream = stream("chat");
    let mut client = server.subscriber(&stream).await;
    let position = server.publish(&stream, json!(1)).await;
    client.expect_message(&public(&stream), json!(1)).await;
    let sid = client.drop_hard();
    server.publish(&stream, json!(2)).await;
    let mut client = server.resume(&sid).await;
    server.publish(&stream, json!(3)).await;
    assert_eq!(client.expect_message(&public(&stream), json!(3)).await.position, None);
    server.publish(&stream, json!(4)).await;
    assert_eq!(client.expect_message(&public(&stream), json!(4)).await.position, None);
    let replayed = client.history(&public(&stream), after(&position)).await;
    assert_eq!(messages(&replayed), [2]);
    assert!(replayed[0].at().offset > position.offset);
    let position = server.publish(&stream, json!(5)).await;
    assert_eq!(client.expect_message(&public(&stream), json!(5)).await.at(), position);
}

async fn ruling_02_the_hold_ends_for_each_stream_alone(server: SharedServer) {
    let (one, two) = (stream("chat"), stream("chat"));
    let mut client = server.subscriber(&one).await;
    client.subscribe(&public(&two)).await;
    let sid = client.drop_hard();
    let mut client = server.resume(&sid).await;
    assert_eq!(client.history(&public(&one), json!({"since": unix_now()})).await, []);
    server.publish(&two, json!("held")).await;
    let position = server.publish(&one, json!("free")).await;
    assert_eq!(client.expect_message(&public(&one), json!("free")).await.at(), position);
    assert_eq!(messages(&client.history(&public(&two), json!({"since": unix_now()})).await), ["held"]);
}

async fn ruling_03_history_already_sent_is_replayed_between_live_messages(server: SharedServer) {
    let stream = stream("chat");
    let mut client = server.subscriber(&stream).await;
    let positions = server.publish_numbers(&stream, 1..=20).await;
    client.expect_numbers(&public(&stream), 1..=20).await;
    let identifier = public(&stream);
    let history = client.history(&identifier, after(&positions[4]));
    let (_, replayed) = tokio::join!(server.publish_numbers(&stream, 21..=40), history);
    let numbers: Vec<u64> = replayed.iter().map(|delivery| delivery.message.as_u64().expect("a number")).collect();
    // Live messages may come before the replay begins; from its first message on nothing interrupts it.
    let start = numbers.iter().position(|number| *number == 6).expect("the replay begins behind the position");
    let last = *numbers.last().expect("there is a replay");
    assert_eq!(numbers[start..], (6..=last).collect::<Vec<_>>());
    assert!(last >= 20 && numbers[..start].iter().all(|number| *number > 20));
    client.expect_numbers(&public(&stream), last + 1..=40).await;
}

/// Such a client's request has no entry for the stream, and a time that may be later than what it missed.
async fn ruling_09_a_subscription_that_received_nothing_replays_from_its_beginning(server: SharedServer) {
    let stream = stream("chat");
    server.publish(&stream, json!("before")).await;
    let sid = server.subscriber(&stream).await.drop_hard();
    server.publish_numbers(&stream, 1..=3).await;
    let mut client = server.resume(&sid).await;
    let history = json!({"since": unix_now() + 60, "streams": {}});
    assert_eq!(messages(&client.history(&public(&stream), history).await), [1, 2, 3]);
}

async fn ruling_25_a_restored_session_is_excluded_under_its_old_sids(server: SharedServer) {
    let stream = stream("chat");
    let mut other = server.subscriber(&stream).await;
    let first = server.subscriber(&stream).await.drop_hard();
    server.publish_with(&stream, json!(1), json!({"exclude_socket": first})).await;
    let second = server.resume(&first).await.drop_hard();
    let mut client = server.resume(&second).await;
    assert_eq!(client.history(&public(&stream), json!({"since": unix_now() - 60, "streams": {}})).await, []);
    for sid in [&first, &second, &client.sid.clone()] {
        server.publish_with(&stream, json!(2), json!({"exclude_socket": sid})).await;
    }
    client.expect_silence().await;
    for number in [1, 2, 2, 2] {
        other.expect_message(&public(&stream), json!(number)).await;
    }
}

fn now_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    u64::try_from(since_epoch.as_millis()).expect("the year is below 584 million")
}

/// The client takes a ping's time as `since`: a ping that overtook queued data would make it skip that data.
#[tokio::test]
async fn ruling_08_pings_queue_in_order_with_data() {
    let options = Server::on(Backend::Memory).option("ws_write_timeout", 30).option("ws_max_pending_size", 0);
    let server = options.start();
    let mut client = server.dial().query("pi=1").query("ptp=ms").receive_buffer(4_096).connect().await;
    client.subscribe(&public("chat")).await;
    let text = "x".repeat(100_000);
    let mut answered = Vec::new();
    for number in 0..100 {
        server.publish("chat", json!({"number": number, "text": text})).await;
        answered.push(now_ms());
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    let (mut pinged, mut pings, mut read) = (0, 0, 0);
    while read < 100 {
        let Some(Event::Frame(frame)) = client.event_within(PATIENCE).await else { panic!("the connection ended") };
        let frame: Value = serde_json::from_str(&frame).expect("frames are JSON");
        if frame["type"] == "ping" {
            pinged = frame["message"].as_u64().expect("a ping carries a time");
            pings += 1;
        } else {
            assert_eq!(frame["message"]["number"], read);
            let at = answered[read];
            // It was queued by then, or in the next moment; two seconds of queued data would be far behind it.
            assert!(at + 400 > pinged, "published by {at}, behind the ping of {pinged}");
            read += 1;
        }
    }
    assert!(pings >= 2, "pings came while data was queued");
}
