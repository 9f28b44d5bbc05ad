//! Coming back with a session id.

use crate::harness::client::messages;
use crate::harness::*;
use serde_json::json;

on_every_backend!(
    a_restored_client_goes_on_without_subscribing,
    restored_identifiers_are_not_confirmed,
    an_unknown_sid_is_an_ordinary_connection,
    an_empty_sid_counts_as_none,
    strange_sids_are_ordinary_connections,
    the_header_wins_over_the_query,
    the_base_protocol_ignores_sids,
    one_sid_restores_many_times,
    a_half_open_connection_lives_until_its_successor_has_spoken,
    what_was_missed_comes_after_the_welcome,
    several_subscriptions_come_back_together,
    whispers_reach_restored_clients,
);

async fn a_restored_client_goes_on_without_subscribing(server: SharedServer) {
    let stream = stream("chat");
    let mut client = server.subscriber(&stream).await;
    let position = server.publish(&stream, json!(1)).await;
    client.expect_message(&public(&stream), json!(1)).await;
    let sid = client.drop_hard();
    let mut client = server.resume(&sid).await;
    assert_eq!(client.restored(), [public(&stream)]);
    assert_eq!(client.history(&public(&stream), after(&position)).await, []);
    server.publish(&stream, json!(2)).await;
    client.expect_message(&public(&stream), json!(2)).await;
}

async fn restored_identifiers_are_not_confirmed(server: SharedServer) {
    let stream = stream("chat");
    let sid = server.subscriber(&stream).await.drop_hard();
    let mut client = server.resume(&sid).await;
    client.expect_silence().await;
}

async fn an_unknown_sid_is_an_ordinary_connection(server: SharedServer) {
    let client = server.resume("Zt0gq8m1J7bVnX4_kLr2P").await;
    assert_eq!(client.welcome, json!({"type": "welcome", "sid": client.sid}));
    assert_ne!(client.sid, "Zt0gq8m1J7bVnX4_kLr2P");
}

async fn an_empty_sid_counts_as_none(server: SharedServer) {
    let mut client = server.resume("").await;
    assert!(!client.is_restored());
    client.subscribe(&public(&stream("chat"))).await;
}

async fn strange_sids_are_ordinary_connections(server: SharedServer) {
    let long = "x".repeat(4_000);
    for sid in ["*", "%3E", "a.b", "%00", "%F0%9F%90%A8", "%20", "../../etc", "%FF", long.as_str()] {
        assert!(!server.resume(sid).await.is_restored(), "{sid}");
    }
}

async fn the_header_wins_over_the_query(server: SharedServer) {
    let (by_header, by_query) = (stream("chat"), stream("chat"));
    let header_sid = server.subscriber(&by_header).await.drop_hard();
    let query_sid = server.subscriber(&by_query).await.drop_hard();
    let dial = server.dial().sid(&query_sid).header("X-ANYCABLE-RESTORE-SID", &header_sid);
    assert_eq!(dial.connect().await.restored(), [public(&by_header)]);
    let lower_case = server.dial().header("x-anycable-restore-sid", &query_sid);
    assert_eq!(lower_case.connect().await.restored(), [public(&by_query)]);
}

async fn the_base_protocol_ignores_sids(server: SharedServer) {
    let sid = server.subscriber(&stream("chat")).await.drop_hard();
    assert!(!server.dial().base().sid(&sid).connect().await.is_restored());
    assert!(!server.dial().no_protocol().sid(&sid).connect().await.is_restored());
}

async fn one_sid_restores_many_times(server: SharedServer) {
    let stream = stream("chat");
    let sid = server.subscriber(&stream).await.drop_hard();
    let mut sids = vec![sid.clone()];
    for _ in 0..3 {
        let client = server.resume(&sid).await;
        assert_eq!(client.restored(), [public(&stream)]);
        sids.push(client.sid.clone());
        client.drop_hard();
    }
    sids.sort();
    sids.dedup();
    assert_eq!(sids.len(), 4, "each connection has a sid of its own");
}

/// Half-open sockets are the normal case: the server has not yet noticed that the first connection is dead. It lives until
/// the client has spoken on the second one.
async fn a_half_open_connection_lives_until_its_successor_has_spoken(server: SharedServer) {
    let stream = stream("chat");
    let mut old = server.subscriber(&stream).await;
    let mut new = server.resume(&old.sid).await;
    server.publish(&stream, json!(1)).await;
    old.expect_message(&public(&stream), json!(1)).await;
    assert_eq!(new.next().await["message"], 1);
    new.subscribe(&public(&stream)).await;
    old.expect_close(1000, "Session resumed elsewhere").await;
    assert!(!server.resume(&old.sid).await.is_restored());
    server.publish(&stream, json!(2)).await;
    new.expect_message(&public(&stream), json!(2)).await;
}

async fn what_was_missed_comes_after_the_welcome(server: SharedServer) {
    let stream = stream("chat");
    let mut client = server.subscriber(&stream).await;
    let position = server.publish(&stream, json!(0)).await;
    client.expect_message(&public(&stream), json!(0)).await;
    let mut sid = client.drop_hard();
    // Publications race the restore: whatever comes first must be `welcome`, and nothing may be lost.
    for round in 0..5 {
        let numbers = round * 10 + 1..=round * 10 + 10;
        let (_, mut client) = tokio::join!(server.publish_numbers(&stream, numbers), server.resume(&sid));
        let replayed = client.history(&public(&stream), after(&position)).await;
        let expected: Vec<_> = (1..=round * 10 + 10).map(|number| json!(number)).collect();
        let mut seen = messages(&replayed);
        while seen.len() < expected.len() {
            seen.push(client.next().await["message"].clone());
        }
        assert_eq!(seen, expected);
        sid = client.drop_hard();
    }
}

async fn several_subscriptions_come_back_together(server: SharedServer) {
    let streams = [stream("chat"), stream("chat"), stream("chat")];
    let mut client = server.connect().await;
    let mut identifiers: Vec<_> = streams.iter().map(|stream| public(stream)).collect();
    identifiers.push(public_again(&streams[0]));
    for identifier in &identifiers {
        client.subscribe(identifier).await;
    }
    let sid = client.drop_hard();
    let client = server.resume(&sid).await;
    identifiers.sort();
    assert_eq!(client.restored(), identifiers);
}

async fn whispers_reach_restored_clients(server: SharedServer) {
    let stream = stream("chat");
    let sid = server.subscriber(&stream).await.drop_hard();
    let (mut restored, mut other) = (server.resume(&sid).await, server.subscriber(&stream).await);
    assert_eq!(restored.history(&public(&stream), json!({})).await, []);
    other.whisper(&public(&stream), json!("psst")).await;
    restored.expect_message(&public(&stream), json!("psst")).await;
    restored.whisper(&public(&stream), json!("you too")).await;
    other.expect_message(&public(&stream), json!("you too")).await;
}
