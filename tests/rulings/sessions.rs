//! Rulings on sessions and security.

use crate::harness::backend::{shared_nats, unused_prefix};
use crate::harness::client::{Event, messages};
use crate::harness::*;
use futures_util::TryStreamExt;
use serde_json::json;

on_every_backend!(
    ruling_22_a_remote_disconnect_wins_against_a_restore,
    ruling_23a_an_ended_subscription_never_comes_back,
    ruling_27_the_sid_is_always_ours,
);

with_own_server_on_durable_backends!(
    ruling_28_a_graceful_stop_lets_sessions_go_on,
    ruling_28_shutdown_mode_disconnect_tells_everybody,
);

/// Whatever the order: a session that was restored meanwhile is closed, and its sids are dead afterwards.
async fn ruling_22_a_remote_disconnect_wins_against_a_restore(server: SharedServer) {
    for _ in 0..15 {
        let client = server.subscriber(&stream("chat")).await;
        let identifiers = client.identifiers();
        let sid = client.drop_hard();
        let dial = server.dial().sid(&sid);
        let ((), mut client) = tokio::join!(server.disconnect(&identifiers, true), dial.open());
        let mut first = client.next().await;
        let is_restored = first["restored"] == true;
        let second = first["sid"].as_str().map(str::to_owned);
        if is_restored {
            first = client.next().await;
        }
        if is_restored || first["type"] != "welcome" {
            assert_eq!(first, disconnect("remote", true));
            client.expect_close(1000, "Closed remotely").await;
        }
        assert!(!server.resume(&sid).await.is_restored());
        if let Some(second) = second.filter(|_| is_restored) {
            assert!(!server.resume(&second).await.is_restored());
        }
    }
}

async fn ruling_23a_an_ended_subscription_never_comes_back(server: SharedServer) {
    for _ in 0..10 {
        let stream = stream("chat");
        let mut client = server.subscriber(&stream).await;
        client.unsubscribe(&public(&stream)).await;
        let sid = client.drop_hard();
        assert_eq!(server.resume(&sid).await.restored(), Vec::<String>::new());
    }
}

async fn ruling_27_the_sid_is_always_ours(server: SharedServer) {
    let client = server.dial().header("X-Request-ID", "Zt0gq8m1J7bVnX4_kLr2P").connect().await;
    assert_ne!(client.sid, "Zt0gq8m1J7bVnX4_kLr2P");
    assert_eq!(client.sid.len(), 21);
}

/// The store survives this process, so resumable clients are closed without a word and come back by their sid.
async fn ruling_28_a_graceful_stop_lets_sessions_go_on(backend: Backend) {
    let mut server = Server::on(backend).start();
    let (mut extended, mut base) = (server.subscriber("chat").await, server.connect_base().await);
    let position = server.publish("chat", json!(1)).await;
    extended.expect_message(&public("chat"), json!(1)).await;
    server.begin_stop();
    base.expect(disconnect("server_restart", true)).await;
    base.expect_close(1001, "Server restart").await;
    let event = extended.event().await;
    assert!(matches!(event, Event::Closed(..) | Event::Lost), "{event:?}");
    server.wait_stopped();
    server.start();
    server.publish("chat", json!(2)).await;
    let mut client = server.resume(&extended.sid).await;
    assert_eq!(client.restored(), [public("chat")]);
    assert_eq!(messages(&client.history(&public("chat"), after(&position)).await), [2]);
}

async fn ruling_28_shutdown_mode_disconnect_tells_everybody(backend: Backend) {
    let mut server = Server::on(backend).option("shutdown_mode", "disconnect").start();
    let (mut extended, mut base) = (server.connect().await, server.connect_base().await);
    server.begin_stop();
    for client in [&mut extended, &mut base] {
        client.expect(disconnect("server_restart", true)).await;
        client.expect_close(1001, "Server restart").await;
    }
    server.wait_stopped();
}

/// Whoever can read the store's keys learns no credential.
#[tokio::test]
async fn ruling_23_keys_of_saved_sessions_reveal_no_sid() {
    let prefix = unused_prefix();
    let server = Backend::on_nats(&shared_nats().url(), &prefix).start();
    let client = server.subscriber("chat").await;
    let jetstream = async_nats::jetstream::new(shared_nats().operator().await);
    let streams: Vec<_> = jetstream.streams().try_collect().await.expect("streams can be listed");
    let mut subjects = Vec::new();
    for info in streams {
        let stream = jetstream.get_stream(&info.config.name).await.expect("it was listed");
        let of_stream: Vec<_> =
            stream.info_with_subjects(">").await.expect("subjects").try_collect().await.expect("all");
        subjects.extend(of_stream.into_iter().map(|(subject, _)| subject));
    }
    assert!(subjects.len() >= 2, "the session is saved: {subjects:?}");
    assert!(!subjects.iter().any(|subject| subject.contains(&client.sid)), "{subjects:?}");
}
