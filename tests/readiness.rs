//! What `/ready` says while NATS refuses a node something, or its live feed brings nothing: messages that only come by
//! polling are no service, although nothing of them is lost.

use crate::harness::backend::unused_prefix;
use crate::harness::carrick::Builder;
use crate::harness::nats::{NODE, Users};
use crate::harness::proxy::NatsProxy;
use crate::harness::*;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A node that logs in as [`NODE`], and has an empty store in this nats-server.
fn node(nats: &NatsServer, prefix: &str) -> Builder {
    let builder = Backend::on_nats(&nats.url(), prefix).option("nats_user", NODE).option("nats_password", NODE);
    builder.option("metrics_http", "/metrics")
}

async fn readiness(server: &Server) -> (u16, String) {
    let answer = server.get("/ready").await;
    (answer.status, answer.body)
}

async fn until_not_ready(server: &Server, reason: &str) {
    eventually(&format!("/ready is 503: {reason}"), async || {
        let (status, body) = readiness(server).await;
        (status == 503 && body.contains(reason)).then_some(())
    })
    .await;
}

async fn until_ready(server: &Server) {
    eventually("/ready is 200", async || server.is_ready().await.then_some(())).await;
}

/// Publishes numbers from this one on until one comes live, and was not found missing by a head check. On a busy machine a
/// head check may be ahead of the feed now and then. Answers with the number after it.
async fn until_live(server: &Server, client: &mut Client, from: u64) -> u64 {
    let mut number = from;
    eventually("a message comes live", async || {
        let missed = server.metric("feed_gaps_total").await;
        server.publish("chat", json!(number)).await;
        client.expect_message(&public("chat"), json!(number)).await;
        number += 1;
        (server.metric("feed_gaps_total").await == missed).then_some(())
    })
    .await;
    number
}

#[tokio::test]
async fn row_08_a_denied_live_feed_is_said_and_noticed_again_when_it_is_allowed() {
    let prefix = unused_prefix();
    let mut nats = NatsServer::with_users(&Users::default().deny_subscribe(&format!("{prefix}.live.>")));
    let server = node(&nats, &prefix).option("head_check_interval", "1").start_unready();
    until_not_ready(&server, &format!("{prefix}.live.>")).await;
    server.metric_becomes("feed_broken", 1).await;
    let log = server.log();
    assert!(log.contains(&format!("allow this user to subscribe: {prefix}.live.>")), "{log}");

    // Nothing is lost meanwhile: it comes by polling.
    let mut client = server.subscriber("chat").await;
    server.publish("chat", json!(1)).await;
    client.expect_message(&public("chat"), json!(1)).await;

    nats.set_users(&Users::default());
    until_ready(&server).await;
    server.metric_becomes("feed_broken", 0).await;
    let next = until_live(&server, &mut client, 2).await;

    // Taken away at run time.
    nats.set_users(&Users::default().deny_subscribe(&format!("{prefix}.live.>")));
    until_not_ready(&server, &format!("{prefix}.live.>")).await;
    server.publish("chat", json!(next)).await;
    client.expect_message(&public("chat"), json!(next)).await;
}

/// Everything else that a node needs, one at a time.
#[tokio::test(flavor = "multi_thread")]
async fn row_08_whatever_permission_is_missing_is_named() {
    let p = unused_prefix();
    let subscribing = [format!("{p}.ctllive.>"), "_INBOX.>".to_owned()];
    let publishing = [
        format!("{p}.log.>"),
        format!("{p}.live.>"),
        format!("{p}.ctl.>"),
        format!("$KV.{p}_sessions.>"),
        format!("$KV.{p}_meta.>"),
        "$JS.API.DIRECT.GET.>".to_owned(),
    ];
    let mut nats = NatsServer::with_users(&Users::default());
    // What stands in NATS already needs no permission to be created.
    drop(node(&nats, &p).start());
    let all = subscribing.iter().map(|subject| (true, subject)).chain(publishing.iter().map(|s| (false, s)));
    for (subscribe, subject) in all {
        let users = Users::default();
        let users = if subscribe { users.deny_subscribe(subject) } else { users.deny_publish(subject) };
        nats.set_users(&users);
        let server = node(&nats, &p).start_unready();
        until_not_ready(&server, subject).await;
        nats.set_users(&Users::default());
        until_ready(&server).await;
    }
}

/// A publisher is told at once, before and after the node has become ready.
#[tokio::test]
async fn row_08_a_publisher_hears_why_nothing_can_be_stored() {
    let prefix = unused_prefix();
    let denied = Users::default().deny_publish(&format!("{prefix}.log.>"));
    let mut nats = NatsServer::with_users(&Users::default());
    let server = node(&nats, &prefix).start();
    server.publish("chat", json!(1)).await;
    nats.set_users(&denied);
    let body = json!({"stream": "chat", "data": "2"}).to_string();
    let ask = async || {
        let begun = Instant::now();
        let answer = server.post(&body).await;
        (answer.status, answer.body, begun.elapsed())
    };
    // A reload takes a moment.
    let (body, took) = eventually("publishing is refused", async || {
        let (status, body, took) = ask().await;
        (status == 503).then_some((body, took))
    })
    .await;
    assert!(body.contains(&format!("allow this user to publish: {prefix}.log.>")), "{body}");
    // An answer of the store would be awaited for ten seconds.
    assert!(took < Duration::from_secs(7), "told after {took:?}");
    until_not_ready(&server, &format!("{prefix}.log.>")).await;
    nats.set_users(&Users::default());
    until_ready(&server).await;
    server.publish("chat", json!(3)).await;
}

/// A limit is no permission, but its error names no subject at all.
#[tokio::test]
async fn row_08_a_limit_of_subscriptions_is_said() {
    let prefix = unused_prefix();
    let nats = NatsServer::with_settings("max_subscriptions: 60");
    let server = Backend::on_nats(&nats.url(), &prefix).start();
    let mut client = server.connect().await;
    for number in 0..80 {
        client.subscribe(&public(&format!("s{number}"))).await;
    }
    until_not_ready(&server, "max_subscriptions").await;
}

/// An operator changed the log: the rule that feeds live messages is gone.
#[tokio::test]
async fn row_08_a_republish_rule_that_was_taken_away_is_put_back() {
    let prefix = unused_prefix();
    let nats = NatsServer::start();
    let server = Backend::on_nats(&nats.url(), &prefix).option("metrics_http", "/metrics").start();
    let mut client = server.subscriber("chat").await;
    server.publish("chat", json!(1)).await;
    client.expect_message(&public("chat"), json!(1)).await;
    let operator = nats.operator().await;
    let ask = async |what: &str, body: Value| -> Value {
        let answer = operator.request(format!("$JS.API.{what}"), body.to_string().into()).await.expect("an answer");
        serde_json::from_slice(&answer.payload).expect("JSON")
    };
    let names = ask("STREAM.NAMES", json!({"subject": format!("{prefix}.log.>")})).await;
    let log = names["streams"][0].as_str().expect("a log").to_owned();
    let mut settings = ask(&format!("STREAM.INFO.{log}"), Value::Null).await["config"].take();
    settings.as_object_mut().expect("settings").remove("republish");
    settings["allow_direct"] = json!(false);
    let changed = ask(&format!("STREAM.UPDATE.{log}"), settings).await;
    assert!(changed["error"].is_null() && changed["config"]["republish"].is_null(), "{changed}");
    server.publish("chat", json!(2)).await;
    eventually("the rule is back", async || {
        let now = ask(&format!("STREAM.INFO.{log}"), Value::Null).await;
        (now["config"]["republish"]["dest"].is_string() && now["config"]["allow_direct"] == true).then_some(())
    })
    .await;
    client.expect_message(&public("chat"), json!(2)).await;
    until_live(&server, &mut client, 3).await;
}

/// Subscriptions are granted and markers come back, but what the log's leader sends does not come: a route or an account
/// lets it not pass.
#[tokio::test]
async fn row_08_a_feed_that_brings_nothing_that_is_stored_is_noticed() {
    let (prefix, nats) = (unused_prefix(), NatsServer::start());
    let proxy = NatsProxy::start(nats.address());
    let builder = Backend::on_nats(&proxy.url(), &prefix).option("metrics_http", "/metrics");
    let server = builder.option("head_check_interval", "1").start();
    let mut client = server.subscriber("chat").await;
    proxy.lose_stored(true);
    let mut number = 0;
    eventually("/ready is 503", async || {
        number += 1;
        server.publish("chat", json!(number)).await;
        client.expect_message(&public("chat"), json!(number)).await;
        let (status, body) = readiness(&server).await;
        (status == 503 && body.contains("come by polling only")).then_some(())
    })
    .await;
    assert!(server.metric("feed_late_total").await > 0);
    proxy.lose_stored(false);
    until_ready(&server).await;
}
