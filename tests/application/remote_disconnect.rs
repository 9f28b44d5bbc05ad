//! Remote disconnects of identifiers that the application gave: it is asked again when the client comes back.

use crate::harness::backend::{shared_nats, unused_prefix};
use crate::harness::*;
use serde_json::json;
use std::time::Duration;

over_every_wire!(
    it_reaches_every_node_and_those_who_are_offline,
    it_reaches_a_client_that_is_being_let_in,
    who_comes_back_is_a_new_client,
    a_refused_client_has_no_session,
);

const USER: &str = r#"{"user":"5"}"#;

fn nodes(app: &Application) -> [Server; 2] {
    let prefix = unused_prefix();
    std::array::from_fn(|_| app.behind(Backend::on_nats(&shared_nats().url(), &prefix)).start())
}

fn channel() -> String {
    json!({"channel": "Chat", "streams": ["a"]}).to_string()
}

async fn user(server: &Server) -> Client {
    let mut client = server.dial().query("user=5").connect().await;
    client.subscribe(&channel()).await;
    client
}

async fn it_reaches_every_node_and_those_who_are_offline(wire: Wire) {
    let app = Application::usual(wire);
    let [one, two] = nodes(&app);
    let (mut here, mut there) = (user(&one).await, user(&two).await);
    let mut other = one.dial().query("user=6").connect().await;
    let offline = [user(&one).await.drop_hard(), user(&two).await.drop_hard()];
    let told = app.called(Method::Disconnect, 2).await.len();
    one.disconnect(USER, true).await;
    for client in [&mut here, &mut there] {
        client.expect(disconnect("remote", true)).await;
        client.expect_close(1000, "Closed remotely").await;
    }
    app.called(Method::Disconnect, told + 2).await;
    let asked = app.count(Method::Connect);
    let sids = offline.iter().chain([&here.sid, &there.sid]);
    for (count, sid) in (1..).zip(sids) {
        for node in [&one, &two] {
            let client = node.dial().query("user=5").sid(sid).connect().await;
            assert!(!client.is_restored(), "{sid}");
        }
        assert_eq!(app.count(Method::Connect), asked + 2 * count, "the application is asked");
    }
    other.expect_silence().await;
}

/// Who it is is known only when the application has answered.
async fn it_reaches_a_client_that_is_being_let_in(wire: Wire) {
    let app = Application::start(wire, |call| match call.method {
        Method::Connect => Reply::usual(call).after(Duration::from_secs(5)),
        _ => Reply::usual(call),
    });
    let [one, two] = nodes(&app);
    let mut client = two.dial().query("user=5").open().await;
    app.called(Method::Connect, 1).await;
    one.disconnect(USER, false).await;
    client.expect(disconnect("remote", false)).await;
    client.expect_close(1000, "Closed remotely").await;
    app.called(Method::Disconnect, 1).await;
}

async fn who_comes_back_is_a_new_client(wire: Wire) {
    let app = Application::usual(wire);
    let [one, two] = nodes(&app);
    let mut client = user(&one).await;
    one.disconnect(USER, true).await;
    client.expect(disconnect("remote", true)).await;
    app.answer(|call| match call.method {
        Method::Connect => Reply::unauthorized(),
        _ => Reply::usual(call),
    });
    let mut client = two.dial().query("user=5").sid(&client.sid).open().await;
    client.expect(disconnect("unauthorized", false)).await;
    app.answer(Reply::usual);
    let mut client = user(&two).await;
    two.publish("a", json!("hello")).await;
    client.expect_message(&channel(), json!("hello")).await;
    let sid = client.drop_hard();
    assert!(one.dial().query("user=5").sid(&sid).connect().await.is_restored(), "an old command does not reach it");
}

async fn a_refused_client_has_no_session(wire: Wire) {
    let app = Application::start(wire, |_| Reply::unauthorized());
    let [one, two] = nodes(&app);
    let mut client = one.dial().open().await;
    client.expect(disconnect("unauthorized", false)).await;
    client.expect_close(1000, "Auth Failed").await;
    let sid = app.calls()[0].sid().to_owned();
    app.answer(Reply::usual);
    assert!(!two.resume(&sid).await.is_restored());
}
