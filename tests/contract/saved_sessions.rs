//! When sessions are written, and how long they live.

use crate::harness::patience::let_pass;
use crate::harness::*;
use serde_json::json;
use std::time::Duration;

on_every_backend!(
    a_session_without_subscriptions_is_saved,
    a_confirmed_subscription_is_saved,
    an_ended_subscription_is_not_restored,
    a_restored_session_is_saved_under_its_new_id,
    a_client_that_says_goodbye_may_return,
    base_sessions_are_not_saved,
);

with_own_server_on_every_backend!(
    a_connected_session_does_not_expire,
    a_session_expires_after_its_client_left,
    without_sessions_ttl_nothing_is_restored,
);

async fn a_session_without_subscriptions_is_saved(server: SharedServer) {
    let sid = server.connect().await.drop_hard();
    let client = server.resume(&sid).await;
    assert_eq!(client.welcome, json!({"type": "welcome", "sid": client.sid, "restored": true, "restored_ids": []}));
}

/// `confirm_subscription` leaves after the session is saved: a client that drops the moment it reads it loses nothing.
async fn a_confirmed_subscription_is_saved(server: SharedServer) {
    for _ in 0..10 {
        let stream = stream("chat");
        let sid = server.subscriber(&stream).await.drop_hard();
        assert_eq!(server.resume(&sid).await.restored(), [public(&stream)]);
    }
}

async fn an_ended_subscription_is_not_restored(server: SharedServer) {
    let (kept, ended) = (stream("chat"), stream("chat"));
    let mut client = server.subscriber(&kept).await;
    client.subscribe(&public(&ended)).await;
    client.unsubscribe(&public(&ended)).await;
    let sid = client.drop_hard();
    assert_eq!(server.resume(&sid).await.restored(), [public(&kept)]);
}

async fn a_restored_session_is_saved_under_its_new_id(server: SharedServer) {
    let stream = stream("chat");
    let first = server.subscriber(&stream).await.drop_hard();
    let second = server.resume(&first).await.drop_hard();
    let third = server.resume(&second).await;
    assert_eq!(third.restored(), [public(&stream)]);
    assert_ne!(first, second);
    assert_ne!(second, third.sid);
}

async fn a_client_that_says_goodbye_may_return(server: SharedServer) {
    let stream = stream("chat");
    let client = server.subscriber(&stream).await;
    let sid = client.sid.clone();
    client.close().await;
    assert_eq!(server.resume(&sid).await.restored(), [public(&stream)]);
}

async fn base_sessions_are_not_saved(server: SharedServer) {
    let mut client = server.connect_base().await;
    client.subscribe(&public(&stream("chat"))).await;
    let sid = client.drop_hard();
    assert!(!server.resume(&sid).await.is_restored());
}

async fn a_connected_session_does_not_expire(backend: Backend) {
    let server = Server::on(backend).option("sessions_ttl", 5).start();
    let client = server.subscriber("chat").await;
    // Longer than any session lives that is not written anew.
    let_pass(Duration::from_secs(12)).await;
    let sid = client.drop_hard();
    assert_eq!(server.resume(&sid).await.restored(), [public("chat")]);
}

async fn a_session_expires_after_its_client_left(backend: Backend) {
    let server = Server::on(backend).option("sessions_ttl", 2).start();
    let sid = server.subscriber("chat").await.drop_hard();
    let_pass(Duration::from_secs(8)).await;
    let client = server.resume(&sid).await;
    assert_eq!(client.welcome, json!({"type": "welcome", "sid": client.sid}));
}

async fn without_sessions_ttl_nothing_is_restored(backend: Backend) {
    let server = Server::on(backend).option("sessions_ttl", 0).start();
    let mut client = server.subscriber("chat").await;
    let position = server.publish("chat", json!(1)).await;
    assert_eq!(client.expect_message(&public("chat"), json!(1)).await.at(), position);
    let sid = client.drop_hard();
    assert_eq!(sid.len(), 21);
    assert!(!server.resume(&sid).await.is_restored());
}
