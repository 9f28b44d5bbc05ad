//! Tokens over real sockets, in front of an application.

use crate::harness::carrick::Builder;
use crate::harness::client::Dial;
use crate::harness::*;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

over_every_wire!(
    a_token_in_query_header_or_subprotocol_lets_in_without_a_call,
    enforced_without_a_token_is_unauthorized,
    without_a_token_the_application_decides,
    a_bad_token_is_refused_whatever_the_application_would_say,
    an_expired_token_is_told_apart,
    a_token_without_identifiers_is_the_applications_mistake,
    the_application_gets_the_tokens_identifiers_and_the_token,
    a_session_is_not_restored_after_its_token_has_expired,
    restoring_after_expiry_can_be_allowed,
    a_fresh_token_gives_a_restored_session_its_own_life,
    a_token_of_another_user_does_not_take_over_a_session,
    a_client_that_never_asked_the_application_leaves_silently,
    a_remote_disconnect_reaches_the_tokens_identifiers,
);

const KEY: &str = "top-secret";

fn token(claims: Value) -> String {
    token_by(KEY, claims)
}

fn token_by(key: &str, claims: Value) -> String {
    let [head, claims] =
        [json!({"alg": "HS256", "typ": "JWT"}), claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
    let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("a key may have any length");
    mac.update(format!("{head}.{claims}").as_bytes());
    format!("{head}.{claims}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}

fn ext(user: u32) -> String {
    json!({"user_id": user}).to_string()
}

/// For this user, valid for so many seconds.
fn token_of(user: u32, seconds: u64) -> String {
    token(json!({"ext": ext(user), "exp": unix_now() + seconds}))
}

fn expired() -> String {
    token(json!({"ext": ext(42), "exp": unix_now() - 1}))
}

fn verifying(app: &Application) -> Builder {
    app.server().replace("jwt_secret", KEY).option("jwt_param", "token")
}

fn with_token(server: &Server, token: &str) -> Dial {
    server.dial().query(&format!("token={token}"))
}

fn channel() -> String {
    json!({"channel": "Chat", "streams": ["a"]}).to_string()
}

async fn a_token_in_query_header_or_subprotocol_lets_in_without_a_call(wire: Wire) {
    let app = Application::usual(wire);
    let server = verifying(&app).option("enforce_jwt", true).start();
    let token = token_of(42, 60);
    for dial in [
        with_token(&server, &token),
        server.dial().header("X-Token", &token),
        server.dial().protocols(&format!("anycable-token.{token}")),
        server.dial().protocols(&format!("actioncable-v1-ext-json, anycable-token.{token}")),
        with_token(&server, &token).base(),
    ] {
        let client = dial.connect().await;
        assert_eq!(client.welcome, json!({"type": "welcome", "sid": client.sid}));
    }
    assert_eq!(app.count(Method::Connect), 0);
}

async fn enforced_without_a_token_is_unauthorized(wire: Wire) {
    let app = Application::usual(wire);
    let server = verifying(&app).option("enforce_jwt", true).start();
    for dial in [server.dial(), server.dial().query("token="), server.dial().query("jid=other"), server.dial().base()] {
        let mut client = dial.open().await;
        client.expect(disconnect("unauthorized", false)).await;
        client.expect_close(1000, "Auth Failed").await;
    }
    assert_eq!(app.count(Method::Connect), 0);
}

async fn without_a_token_the_application_decides(wire: Wire) {
    let app = Application::usual(wire);
    let server = verifying(&app).start();
    server.dial().query("user=7").connect().await;
    assert_eq!(app.count(Method::Connect), 1);
    app.answer(|_| Reply::unauthorized());
    let mut client = server.dial().open().await;
    client.expect(disconnect("unauthorized", false)).await;
}

async fn a_bad_token_is_refused_whatever_the_application_would_say(wire: Wire) {
    let app = Application::usual(wire);
    let server = verifying(&app).start();
    let good = token_of(42, 60);
    let not_yet = token(json!({"ext": ext(42), "nbf": unix_now() + 60}));
    let forged = token_by("other", json!({"ext": ext(42)}));
    for bad in [&good[..good.len() - 3], "x", "a.b.c", &not_yet, &forged] {
        let mut client = with_token(&server, bad).open().await;
        client.expect(disconnect("unauthorized", false)).await;
        client.expect_close(1000, "Auth Failed").await;
    }
    assert_eq!(app.count(Method::Connect), 0);
}

async fn an_expired_token_is_told_apart(wire: Wire) {
    let app = Application::usual(wire);
    let server = verifying(&app).start();
    let mut client = with_token(&server, &expired()).open().await;
    client.expect(disconnect("token_expired", false)).await;
    client.expect_close(1000, "Auth Failed").await;
    assert_eq!(app.count(Method::Connect), 0);
}

async fn a_token_without_identifiers_is_the_applications_mistake(wire: Wire) {
    let app = Application::usual(wire);
    let server = verifying(&app).start();
    for claims in [json!({"exp": unix_now() + 60}), json!({"ext": {"user_id": 42}})] {
        with_token(&server, &token(claims)).open().await.expect_close(1011, "Auth Error").await;
    }
}

async fn the_application_gets_the_tokens_identifiers_and_the_token(wire: Wire) {
    let app = Application::usual(wire);
    let server = verifying(&app).start();
    let token = token_of(42, 60);
    let mut client = server.dial().header("x-token", &token).connect().await;
    client.subscribe(&channel()).await;
    let mut by_query = with_token(&server, &token).connect().await;
    by_query.subscribe(&channel()).await;
    let calls = app.called(Method::Command, 2).await;
    assert_eq!((calls[0].connection(), calls[0].header("x-token")), (ext(42).as_str(), Some(token.as_str())));
    assert_eq!((calls[1].connection(), calls[1].header("x-token")), (ext(42).as_str(), None));
    assert!(calls[1].url().ends_with(&format!("?token={token}")), "from the query it is in the URL");
    client.close().await;
    assert_eq!(app.called(Method::Disconnect, 1).await[0].connection(), ext(42));
}

/// A session that was let in by a token which is valid for moments, after these.
async fn outlived(server: &Server) -> (String, String) {
    let token = token_of(42, 8);
    let mut client = with_token(server, &token).connect().await;
    client.subscribe(&channel()).await;
    let mut again = with_token(server, &token).sid(&client.drop_hard()).connect().await;
    assert_eq!(again.restored(), [channel()], "it is not over yet");
    eventually("the token expires", async || {
        again.barrier().await;
        let mut client = with_token(server, &token).open().await;
        (client.next().await["type"] == "disconnect").then_some(())
    })
    .await;
    again.barrier().await;
    (again.drop_hard(), token)
}

async fn a_session_is_not_restored_after_its_token_has_expired(wire: Wire) {
    let app = Application::usual(wire);
    let server = verifying(&app).start();
    let (sid, token) = outlived(&server).await;
    let mut client = with_token(&server, &token).sid(&sid).open().await;
    client.expect(disconnect("token_expired", false)).await;
    client.expect_close(1000, "Auth Failed").await;
    // Without the token it is a stranger to the application.
    assert!(!server.resume(&sid).await.is_restored());
    assert_eq!(app.count(Method::Connect), 1);
}

async fn restoring_after_expiry_can_be_allowed(wire: Wire) {
    let app = Application::usual(wire);
    let server = verifying(&app).option("jwt_restore_expired", true).start();
    let (sid, token) = outlived(&server).await;
    let client = with_token(&server, &token).sid(&sid).connect().await;
    assert_eq!(client.restored(), [channel()]);
}

async fn a_fresh_token_gives_a_restored_session_its_own_life(wire: Wire) {
    let app = Application::usual(wire);
    let server = verifying(&app).start();
    let (sid, old) = outlived(&server).await;
    let client = with_token(&server, &token_of(42, 60)).sid(&sid).connect().await;
    assert_eq!(client.restored(), [channel()]);
    // The session goes by the new token now, whatever the URL still says.
    let client = with_token(&server, &old).sid(&client.drop_hard()).connect().await;
    assert_eq!(client.restored(), [channel()]);
    assert_eq!(app.commands(), ["subscribe"]);
}

async fn a_token_of_another_user_does_not_take_over_a_session(wire: Wire) {
    let app = Application::usual(wire);
    let server = verifying(&app).start();
    let mut client = with_token(&server, &token_of(42, 60)).connect().await;
    client.subscribe(&channel()).await;
    let sid = client.drop_hard();
    assert!(!with_token(&server, &token_of(43, 60)).sid(&sid).connect().await.is_restored());
    assert!(with_token(&server, &token_of(42, 60)).sid(&sid).connect().await.is_restored());
}

/// Neither let in by the application nor subscribed to one of its channels.
async fn a_client_that_never_asked_the_application_leaves_silently(wire: Wire) {
    let app = Application::usual(wire);
    let server = verifying(&app).option("public_streams", true).start();
    let token = token_of(42, 60);
    let mut silent = with_token(&server, &token).connect().await;
    silent.subscribe(&public("a")).await;
    silent.close().await;
    let mut asked = with_token(&server, &token).connect().await;
    asked.subscribe(&channel()).await;
    let sid = asked.sid.clone();
    asked.close().await;
    assert_eq!(app.called(Method::Disconnect, 1).await[0].sid(), sid);
    server.metric_becomes("clients_num", 0).await;
    server.metric_becomes("disconnect_queue_size", 0).await;
    assert_eq!(app.calls().len(), 2, "the subscription and its end");
}

async fn a_remote_disconnect_reaches_the_tokens_identifiers(wire: Wire) {
    let app = Application::usual(wire);
    let server = verifying(&app).start();
    let token = token_of(42, 60);
    let mut online = with_token(&server, &token).connect().await;
    let offline = with_token(&server, &token).connect().await.drop_hard();
    server.disconnect(&ext(42), true).await;
    online.expect(disconnect("remote", true)).await;
    assert!(!with_token(&server, &token).sid(&offline).connect().await.is_restored());
    assert!(!with_token(&server, &token).sid(&online.sid).connect().await.is_restored());
}
