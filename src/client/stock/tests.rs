use super::*;

fn welcome(sid: &str, restored: Option<&[&str]>) -> String {
    match restored {
        None => serde_json::json!({"type": "welcome", "sid": sid}).to_string(),
        Some(ids) => {
            serde_json::json!({"type": "welcome", "sid": sid, "restored": true, "restored_ids": ids}).to_string()
        }
    }
}

fn message(identifier: &str, stream: &str, offset: u64) -> String {
    serde_json::json!({"identifier": identifier, "message": {"n": offset}, "stream_id": stream, "epoch": "e1", "offset": offset})
        .to_string()
}

fn confirm(identifier: &str) -> String {
    serde_json::json!({"type": "confirm_subscription", "identifier": identifier}).to_string()
}

fn events(client: &mut StockClient) -> Vec<StockEvent> {
    std::iter::from_fn(|| client.poll_event()).collect()
}

/// A client with `a` confirmed on session `s1`, opened at second 100.
fn connected() -> StockClient {
    let mut client = StockClient::new(["a"]);
    client.on_open(100);
    client.on_frame(&welcome("s1", None), 100);
    client.on_frame(&confirm("a"), 100);
    assert!(client.is_settled());
    client
}

#[test]
fn the_first_subscribe_asks_from_page_time() {
    let mut client = StockClient::new(["a"]);
    assert_eq!(client.url_sid(), None);
    client.on_open(100);
    let sent = client.on_frame(&welcome("s1", None), 103);
    assert_eq!(sent, [r#"{"command":"subscribe","identifier":"a","history":{"since":100,"streams":{}}}"#]);
    assert_eq!(client.url_sid(), Some("s1"));
}

#[test]
fn a_restored_session_asks_for_history_from_the_last_message_and_ping() {
    let mut client = connected();
    client.on_frame(r#"{"type":"ping","message":1}"#, 150);
    client.on_frame(&message("a", "chat", 7), 151);
    client.on_close();
    client.on_open(160);
    let sent = client.on_frame(&welcome("s2", Some(&["a"])), 160);
    assert_eq!(
        sent,
        [
            r#"{"command":"history","identifier":"a","history":{"since":150,"streams":{"chat":{"epoch":"e1","offset":7}}}}"#
        ]
    );
    assert!(client.is_settled());
    assert!(events(&mut client).contains(&StockEvent::Restored("a".into())));
}

#[test]
fn the_last_message_overwrites_the_position_even_if_smaller_and_nothing_is_de_duplicated() {
    let mut client = connected();
    for offset in [9, 5, 5] {
        client.on_frame(&message("a", "chat", offset), 101);
    }
    assert_eq!(client.position("chat").unwrap().offset, 5);
    let delivered = events(&mut client).into_iter().filter(|event| matches!(event, StockEvent::Delivery(_)));
    assert_eq!(delivered.count(), 3);
}

#[test]
fn two_identifiers_on_one_stream_share_one_position() {
    let mut client = StockClient::new(["a", "b"]);
    client.on_open(1);
    client.on_frame(&welcome("s", None), 1);
    for id in ["a", "b"] {
        client.on_frame(&confirm(id), 1);
        client.on_frame(&message(id, "chat", 3), 1);
    }
    client.on_frame(&message("a", "chat", 4), 1);
    client.on_close();
    client.on_open(2);
    let sent = client.on_frame(&welcome("t", Some(&["a", "b"])), 2);
    assert!(sent.iter().all(|text| text.contains(r#""offset":4"#)), "{sent:?}");
}

#[test]
fn without_a_restore_everything_is_subscribed_anew_with_positions() {
    let mut client = connected();
    client.on_frame(&message("a", "chat", 7), 101);
    client.on_close();
    client.on_open(110);
    let sent = client.on_frame(&welcome("s2", None), 110);
    assert_eq!(
        sent,
        [
            r#"{"command":"subscribe","identifier":"a","history":{"since":100,"streams":{"chat":{"epoch":"e1","offset":7}}}}"#
        ]
    );
    assert!(!client.is_settled());
}

#[test]
fn identifiers_that_were_not_restored_are_subscribed_and_dropped_ones_still_ask_for_history() {
    let mut client = StockClient::new(["a", "b"]);
    client.on_open(1);
    client.on_frame(&welcome("s", None), 1);
    client.on_frame(&confirm("a"), 1);
    client.on_frame(&confirm("b"), 1);
    client.on_close();
    assert!(client.unsubscribe("a").is_empty(), "no command while offline");
    client.on_open(2);
    let sent = client.on_frame(&welcome("t", Some(&["a"])), 2);
    assert_eq!(sent.len(), 2);
    assert!(sent[0].contains(r#""command":"history","identifier":"a""#), "{sent:?}");
    assert!(sent[1].contains(r#""command":"subscribe","identifier":"b""#), "{sent:?}");
    client.on_frame(&message("a", "chat", 1), 2);
    assert!(events(&mut client).iter().any(|event| matches!(event, StockEvent::Unshown(_))));
}

#[test]
fn a_missing_list_means_everything_ever_confirmed() {
    let mut client = connected();
    client.on_close();
    client.on_open(2);
    let sent = client.on_frame(r#"{"type":"welcome","sid":"t","restored":true}"#, 2);
    assert_eq!(sent.len(), 1);
    assert!(client.is_settled());
}

#[test]
fn a_disconnect_forgets_the_session_and_keeps_positions() {
    let mut client = connected();
    client.on_frame(&message("a", "chat", 7), 101);
    client.on_frame(r#"{"type":"disconnect","reason":"server_restart","reconnect":true}"#, 102);
    assert_eq!((client.url_sid(), client.is_terminal()), (Some(""), false));
    client.on_open(103);
    let sent = client.on_frame(&welcome("s2", None), 103);
    assert!(sent[0].contains(r#""offset":7"#), "{sent:?}");
}

#[test]
fn a_disconnect_without_reconnect_is_the_end_and_a_missing_flag_is_not() {
    let mut client = connected();
    client.on_frame(r#"{"type":"disconnect","reason":"remote"}"#, 102);
    assert!(!client.is_terminal());
    let mut client = connected();
    client.on_frame(r#"{"type":"disconnect","reason":"remote","reconnect":false}"#, 102);
    assert!(client.is_terminal());
}

#[test]
fn an_unexpected_confirmation_unsubscribes() {
    let mut client = connected();
    assert_eq!(client.on_frame(&confirm("a"), 101), [r#"{"command":"unsubscribe","identifier":"a"}"#]);
    assert!(events(&mut client).contains(&StockEvent::UnexpectedConfirmation("a".into())));
}

#[test]
fn an_unanswered_subscribe_is_repeated_once_and_then_given_up() {
    let mut client = StockClient::new(["a"]);
    client.on_open(100);
    client.on_frame(&welcome("s", None), 100);
    assert!(client.on_tick(104).is_empty());
    assert_eq!(client.on_tick(105).len(), 1);
    assert!(client.on_tick(106).is_empty());
    assert!(client.on_tick(110).is_empty());
    assert!(events(&mut client).contains(&StockEvent::GaveUp("a".into())));
}

#[test]
fn without_a_history_timestamp_pings_do_not_start_one() {
    let mut client = StockClient::new(["a"]).with_history_timestamp(Since::Off);
    client.on_open(100);
    let sent = client.on_frame(&welcome("s", None), 100);
    assert_eq!(sent, [r#"{"command":"subscribe","identifier":"a"}"#]);
    client.on_frame(&confirm("a"), 100);
    client.on_frame(r#"{"type":"ping","message":1}"#, 150);
    client.on_frame(&message("a", "chat", 7), 151);
    client.on_close();
    client.on_open(160);
    let sent = client.on_frame(&welcome("t", Some(&["a"])), 160);
    assert!(sent[0].contains(r#""history":{"since":false,"streams":{"chat""#), "{sent:?}");
}

#[test]
fn messages_that_javascript_takes_for_false_do_not_count() {
    let mut client = connected();
    client.on_frame(r#"{"identifier":"a","message":0,"stream_id":"chat","epoch":"e","offset":3}"#, 101);
    assert_eq!(client.position("chat"), None);
    assert!(matches!(events(&mut client).last(), Some(StockEvent::Ignored(_))));
}
