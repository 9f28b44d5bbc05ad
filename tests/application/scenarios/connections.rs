//! Welcome, pings, and what the application knows of a client's request.

use super::channel;
use crate::harness::*;
use serde_json::json;

over_every_wire!(
    client_receives_welcome,
    client_receives_pings_with_timestamps,
    channel_has_access_to_request,
    url_is_set_during_connection,
    reject_when_required_cookies_are_not_set,
    accepts_when_required_cookies_are_set,
    reject_when_required_header_is_missing,
    accepts_when_required_header_is_set,
    receives_disconnect_message_when_rejected,
    a_refusal_without_words_just_closes,
    an_application_that_fails_closes_without_words,
    commands_wait_for_the_welcome,
);

async fn client_receives_welcome(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().start();
    let client = server.connect_base().await;
    let calls = app.calls();
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0].method, Method::Connect);
    assert_eq!(client.welcome, json!({"type": "welcome", "sid": calls[0].sid()}));
    let version = calls[0].headers.get("protov").or_else(|| calls[0].headers.get("x-anycable-meta-protov"));
    assert_eq!(version.map(String::as_str), Some("v1"));
    let env = json!({"url": format!("http://{}/cable", server.address()), "headers": {"REMOTE_ADDR": "127.0.0.1"}});
    assert_eq!(calls[0].body, json!({"env": env}), "nothing else is sent");
}

async fn client_receives_pings_with_timestamps(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().start();
    let mut client = server.dial().base().query("pi=1").connect().await;
    let first = client.next_ping(PATIENCE).await.expect("a ping");
    let second = client.next_ping(PATIENCE).await.expect("another ping");
    assert!(first < second, "{first} {second}");
}

/// The URL comes with every call, not only when the client connects.
async fn channel_has_access_to_request(wire: Wire) {
    let app = Application::start(wire, |call| match call.command() {
        "subscribe" if !call.url().ends_with("?token=secret") => Reply::reject(call),
        _ => Reply::usual(call),
    });
    let server = app.server().start();
    let mut client = server.dial().base().query("token=secret").connect().await;
    client.subscribe(&channel("Request")).await;
    let mut stranger = server.connect_base().await;
    stranger.send(json!({"command": "subscribe", "identifier": channel("Request")})).await;
    stranger.expect(reject(&channel("Request"))).await;
}

async fn url_is_set_during_connection(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().start();
    server.dial().base().query("test=request_url").query("x=%20").connect().await;
    assert_eq!(app.calls()[0].url(), format!("http://{}/cable?test=request_url&x=%20", server.address()));
}

fn wants_the_cookie(call: &Call) -> Reply {
    match call.header("cookie") {
        Some(cookie) if cookie.contains("username=john green") => Reply::usual(call),
        _ => Reply::unauthorized(),
    }
}

async fn reject_when_required_cookies_are_not_set(wire: Wire) {
    let app = Application::start(wire, wants_the_cookie);
    let server = app.server().start();
    let mut client = server.dial().base().query("test=cookies").open().await;
    client.expect(disconnect("unauthorized", false)).await;
    client.expect_close(1000, "Auth Failed").await;
}

async fn accepts_when_required_cookies_are_set(wire: Wire) {
    let app = Application::start(wire, wants_the_cookie);
    let server = app.server().start();
    server.dial().base().query("test=cookies").header("Cookie", "a=1; username=john green").connect().await;
    assert_eq!(app.calls()[0].header("cookie"), Some("a=1; username=john green"));
}

fn wants_the_header(call: &Call) -> Reply {
    if call.header("x-api-token") == Some("abc") { Reply::usual(call) } else { Reply::unauthorized() }
}

async fn reject_when_required_header_is_missing(wire: Wire) {
    let app = Application::start(wire, wants_the_header);
    let server = app.server().option("headers", "cookie,x-api-token").start();
    let mut client = server.dial().base().query("test=headers").open().await;
    client.expect(disconnect("unauthorized", false)).await;
    client.expect_close(1000, "Auth Failed").await;
}

async fn accepts_when_required_header_is_set(wire: Wire) {
    let app = Application::start(wire, wants_the_header);
    let server = app.server().option("headers", "cookie,x-api-token").start();
    server.dial().base().query("test=headers").header("X-API-TOKEN", "abc").header("X-Other", "no").connect().await;
    assert_eq!(app.calls()[0].body["env"]["headers"], json!({"REMOTE_ADDR": "127.0.0.1", "x-api-token": "abc"}));
}

async fn receives_disconnect_message_when_rejected(wire: Wire) {
    let app = Application::start(wire, |_| Reply::unauthorized());
    let server = app.server().start();
    for dial in [server.dial(), server.dial().base()] {
        let mut client = dial.query("test=reasons").query("reason=unauthorized").open().await;
        client.expect(json!({"type": "disconnect", "reason": "unauthorized", "reconnect": false})).await;
        client.expect_close(1000, "Auth Failed").await;
    }
    assert_eq!(server.metric("failed_auths_total").await, 2);
    server.metric_becomes("clients_num", 0).await;
    assert_eq!(app.count(Method::Disconnect), 0, "nobody was let in");
}

async fn a_refusal_without_words_just_closes(wire: Wire) {
    let app = Application::start(wire, |_| Reply::failure());
    let server = app.server().start();
    server.dial().open().await.expect_close(1000, "Auth Failed").await;
}

async fn an_application_that_fails_closes_without_words(wire: Wire) {
    let app = Application::start(wire, |_| Reply::error("no database"));
    let server = app.server().start();
    server.dial().open().await.expect_close(1011, "Auth Error").await;
    app.answer(|_| Fault::Broken.into());
    server.dial().open().await.expect_close(1011, "Auth Error").await;
    assert_eq!(app.count(Method::Connect), 2, "neither is tried again");
    assert!(server.log().contains("no database"), "{}", server.log());
}

async fn commands_wait_for_the_welcome(wire: Wire) {
    let app = Application::start(wire, |call| match call.method {
        Method::Connect => Reply::usual(call).after(SILENCE),
        _ => Reply::usual(call),
    });
    let server = app.server().start();
    let mut client = server.dial().base().open().await;
    client.send(json!({"command": "subscribe", "identifier": channel("A")})).await;
    assert_eq!(client.next().await["type"], "welcome");
    client.expect(confirm(&channel("A"))).await;
}
