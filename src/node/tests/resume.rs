//! Going on with a session that an application or a token let in.

use super::connect::{token, tokens, with_token};
use super::*;
use crate::auth::jwt::JwtConfig;
use serde_json::json as value;

const CHAT: &str = r#"{"channel":"Chat"}"#;

#[tokio::test(start_paused = true)]
async fn a_restore_makes_no_call_and_keeps_streams_and_state() {
    let app = Script::on_command(|call| {
        let effects = confirmed(call, &["a", "b"]);
        Ok(CommandEffects { istate: state(&[("room", "7")]), cstate: state(&[("plan", "pro")]), ..effects })
    });
    let cluster = Cluster::new(app);
    let (mut browser, sid) = cluster.welcomed().await;
    browser.subscribed(CHAT).await;
    browser.vanish();
    eventually("it has left", || cluster.app.disconnects().len() == 1).await;
    let before = cluster.app.calls().len();

    let asked = Asked { url: "http://acme.test/cable?again".into(), ..Asked::default() };
    let mut back = cluster.connect_with(1, Hello { asked: Some(Arc::new(asked)), ..hello(Some(&sid)) });
    let welcome = back.next().await;
    assert_eq!((&welcome["restored"], &welcome["restored_ids"]), (&value!(true), &value!([CHAT])));
    cluster.publish("a", "1").await;
    cluster.publish("b", "2").await;
    // There is no order across streams.
    let mut messages = [back.next().await["message"].as_u64(), back.next().await["message"].as_u64()];
    messages.sort_unstable();
    assert_eq!(messages, [Some(1), Some(2)]);
    assert_eq!(cluster.app.calls().len(), before, "a restore asks nobody");

    back.perform(CHAT, "{}");
    eventually("the action", || cluster.app.calls().len() == before + 1).await;
    let call = cluster.app.commands().pop().unwrap();
    assert_eq!(call.connection_identifiers, "{\"user\":\"5\"}");
    assert_eq!((call.env.cstate, call.env.istate), (state(&[("plan", "pro")]), state(&[("room", "7")])));
    assert_eq!(call.env.url, "http://acme.test/cable?again", "the new request counts");
}

#[tokio::test(start_paused = true)]
async fn a_stopped_stream_does_not_come_back_with_a_restore() {
    let app = Script::on_command(|call| {
        let mut effects = confirmed(call, &["a", "b"]);
        if call.kind == CommandKind::Message {
            effects.stopped_streams = vec!["a".into()];
            effects.transmissions = vec![said(&call.identifier, "done".into())];
        }
        Ok(effects)
    });
    let cluster = Cluster::new(app);
    let (mut browser, sid) = cluster.welcomed().await;
    browser.subscribed(CHAT).await;
    browser.perform(CHAT, "{}");
    assert_eq!(browser.next().await["message"], "done");
    // Committed before the answer: also a connection that is still open cannot bring it back.
    let (mut back, _) = cluster.welcomed_with(1, hello(Some(&sid))).await;
    cluster.publish("a", "1").await;
    cluster.publish("b", "2").await;
    assert_eq!(back.next().await["message"], 2);
}

#[tokio::test(start_paused = true)]
async fn a_remote_disconnect_reaches_who_the_application_let_in_on_every_node_and_offline() {
    let cluster = Cluster::new(Script::default());
    let (gone, offline) = cluster.welcomed().await;
    gone.vanish();
    let (mut here, first) = cluster.welcomed().await;
    let (mut there, second) = cluster.welcomed_with(1, hello(None)).await;
    cluster.disconnect("{\"user\":\"5\"}").await;
    for browser in [&mut here, &mut there] {
        assert_eq!(browser.next().await, json(r#"{"type":"disconnect","reason":"remote","reconnect":true}"#));
    }
    let before = cluster.app.calls().iter().filter(|call| matches!(call, Call::Connect(..))).count();
    for sid in [offline, first, second] {
        cluster.welcomed_with(1, hello(Some(&sid))).await;
    }
    let after = cluster.app.calls().iter().filter(|call| matches!(call, Call::Connect(..))).count();
    assert_eq!(after, before + 3, "each is authenticated anew");
}

fn expiring(user: &str, seconds: u64) -> String {
    token(value!({ "ext": user, "exp": crate::node::save::unix_ms() / 1_000 + seconds }))
}

async fn restored(cluster: &Cluster, hello: Hello) -> serde_json::Value {
    cluster.connect_with(1, hello).next().await
}

#[tokio::test]
async fn a_session_ends_with_its_token() {
    for (restore_expired, reason) in [(false, Some("token_expired")), (true, None)] {
        let jwt = JwtConfig { restore_expired, ..tokens() };
        let cluster = Cluster::with(Script::default(), Setup { jwt: Some(jwt), ..Setup::default() });
        let short = expiring("u", 4);
        let (_browser, sid) = cluster.welcomed_with(0, with_token(None, Some(&short))).await;
        let welcome = restored(&cluster, with_token(Some(&sid), Some(&short))).await;
        assert_eq!(welcome["restored"], true, "it has not expired yet: {welcome}");
        let again = welcome["sid"].as_str().unwrap().to_owned();
        let is_over = || tokens_verdict(&short);
        eventually("the token expires", is_over).await;
        let frame = restored(&cluster, with_token(Some(&again), Some(&short))).await;
        match reason {
            Some(reason) => assert_eq!(frame["reason"], reason),
            None => assert_eq!(frame["restored"], true),
        }
        let over = restored(&cluster, with_token(Some(&sid), Some(&short))).await;
        assert_eq!(over["restored"], value!(null), "who knew the later sid has ended the earlier session");
    }
}

/// A connection outlives its token, and a fresh one for the same client gives the session its own life.
#[tokio::test]
async fn row_12_a_stale_token_neither_closes_a_session_nor_hides_its_end() {
    let cluster = Cluster::with(Script::default(), Setup { jwt: Some(tokens()), ..Setup::default() });
    // Both connections are there before.
    let stale = expiring("u", 6);
    let (mut first, kept) = cluster.welcomed_with(0, with_token(None, Some(&stale))).await;
    let (mut second, given_up) = cluster.welcomed_with(0, with_token(None, Some(&stale))).await;
    first.subscribed(CHAT).await;
    second.subscribed(CHAT).await;
    eventually("the token expires", || tokens_verdict(&stale)).await;
    for sid in [&kept, &given_up] {
        let frame = restored(&cluster, with_token(Some(sid), Some(&stale))).await;
        assert_eq!(frame["reason"], "token_expired");
    }
    cluster.publish("a", "1").await;
    assert_eq!((&first.next().await["message"], &second.next().await["message"]), (&value!(1), &value!(1)));
    second.vanish();
    eventually("its end is told", || cluster.app.disconnects().len() == 1).await;
    let welcome = restored(&cluster, with_token(Some(&kept), Some(&expiring("u", 60)))).await;
    assert_eq!((&welcome["restored"], &welcome["restored_ids"]), (&value!(true), &value!([CHAT])));
}

fn tokens_verdict(token: &str) -> bool {
    let now = crate::node::save::unix_ms() / 1_000;
    Jwt::new(tokens()).unwrap().verify(token, now).is_err()
}

#[tokio::test(start_paused = true)]
async fn a_sid_does_not_help_somebody_else() {
    let cluster = Cluster::with(Script::default(), Setup { jwt: Some(tokens()), ..Setup::default() });
    let (_browser, sid) = cluster.welcomed_with(0, with_token(None, Some(&expiring("u", 60)))).await;
    let other = restored(&cluster, with_token(Some(&sid), Some(&expiring("v", 60)))).await;
    assert_eq!((&other["type"], &other["restored"]), (&value!("welcome"), &value!(null)));
    let own = restored(&cluster, with_token(Some(&sid), Some(&expiring("u", 70)))).await;
    assert_eq!(own["restored"], true);
    let without = restored(&cluster, with_token(Some(&sid), Some("nonsense"))).await;
    assert_eq!(without["restored"], true, "only a valid token proves anything");
}

/// A session may be restored long after it was saved last, and its id be named by a publication just before.
#[tokio::test]
async fn ruling_25_a_client_is_excluded_under_an_id_that_was_saved_longer_ago_than_messages_live() {
    const PUBSUB: &str = r#"{"channel":"$pubsub","stream_name":"a"}"#;
    let setup = Setup { noauth: true, no_application: true, history_ttl: Some(SECOND), ..Setup::default() };
    let cluster = Cluster::with(Script::default(), setup);
    let (mut browser, sid) = cluster.welcomed().await;
    browser.subscribed(PUBSUB).await;
    cluster.publish("a", "0").await;
    let last = browser.next().await;
    assert_eq!(last["message"], 0);
    browser.vanish();
    // By the clock of the machine, which dates what is saved.
    tokio::time::sleep(SECOND * 3 / 2).await;
    let meta = Meta { exclude_socket: Some(sid.as_str().into()), ..Meta::default() };
    cluster.publish_with("a", "1", meta).await;

    let (mut back, _) = cluster.welcomed_with(1, hello(Some(&sid))).await;
    let from = value!({ "a": { "epoch": last["epoch"], "offset": last["offset"] } });
    back.send(value!({ "command": "history", "identifier": PUBSUB, "history": { "streams": from } }));
    assert_eq!(back.next().await["type"], "confirm_history", "what it said itself is not said to it");
    cluster.publish("a", "2").await;
    assert_eq!(back.next().await["message"], 2);
}

/// Connections that waited for a process that was stopped are taken in by one that shuts down.
#[tokio::test(start_paused = true)]
async fn who_comes_while_a_node_shuts_down_is_not_told_to_forget_its_session() {
    let cluster = Cluster::new(Script::default());
    let (browser, sid) = cluster.welcomed().await;
    browser.vanish();
    cluster.nodes[0].close_all();
    let mut back = cluster.connect_with(0, hello(Some(&sid)));
    assert_eq!(back.next().await["close"], 1001, "without a message");
    let base = Hello { subprotocol: Subprotocol::Json, ..hello(None) };
    let mut base = cluster.connect_with(0, base);
    assert_eq!(base.next().await["type"], "disconnect");
}
