//! What one connection may ask for, and what it costs.

use super::*;
use crate::metrics;
use crate::session::SubscriptionLimits;
use serde_json::json as value;
use tokio::time::Instant;

fn public(stream: impl std::fmt::Display) -> String {
    value!({ "channel": "$pubsub", "stream_name": stream.to_string() }).to_string()
}

fn streams_only(setup: Setup) -> Cluster {
    Cluster::with(Script::default(), Setup { noauth: true, no_application: true, ..setup })
}

#[tokio::test(start_paused = true)]
async fn row_13_subscriptions_beyond_the_limit_are_rejected_and_ended_ones_make_room() {
    let subscriptions = SubscriptionLimits { number: 3, identifier: 60, ..SubscriptionLimits::default() };
    let cluster = streams_only(Setup { subscriptions, ..Setup::default() });
    let (mut browser, _) = cluster.welcomed().await;
    // Together, so that the limit counts those that are not recorded yet.
    (0..5).for_each(|stream| browser.subscribe(&public(stream)));
    for stream in 0..5 {
        let answer = browser.next().await;
        let expected = if stream < 3 { "confirm_subscription" } else { "reject_subscription" };
        assert_eq!((&answer["type"], &answer["identifier"]), (&value!(expected), &value!(public(stream))));
    }
    browser.unsubscribe(&public(0));
    browser.subscribe(&public(4));
    assert_eq!(browser.next().await["type"], "confirm_subscription");
    browser.unsubscribe(&public(4));
    let long = public("x".repeat(60));
    browser.subscribe(&long);
    let answer = browser.next().await;
    assert_eq!((&answer["type"], &answer["identifier"]), (&value!("reject_subscription"), &value!(long)));
    cluster.publish("1", "still here").await;
    assert_eq!(browser.next().await["message"], "still here");
}

#[tokio::test(start_paused = true)]
async fn row_13_subscriptions_that_come_together_share_a_commit_and_are_answered_in_order() {
    let writes = Arc::<store::Writes>::default();
    let cluster = streams_only(Setup { writes: writes.clone(), ..Setup::default() });
    let (mut browser, sid) = cluster.welcomed().await;
    writes.take();
    let count = 640;
    (0..count).for_each(|stream| browser.subscribe(&public(stream)));
    for stream in 0..count {
        let answer = browser.next().await;
        assert_eq!(
            (&answer["type"], &answer["identifier"]),
            (&value!("confirm_subscription"), &value!(public(stream)))
        );
    }
    let (number, _) = writes.take();
    assert!(number <= 2 * count / 64 + 2, "{number} writes for {count} subscriptions");
    // The last answer was sent after the commit that it belongs to.
    browser.vanish();
    let mut back = cluster.connect_with(1, hello(Some(&sid)));
    assert_eq!(back.next().await["restored_ids"].as_array().unwrap().len() as u64, count);
}

#[tokio::test(start_paused = true)]
async fn row_13_subscribing_and_leaving_in_turn_ends_as_it_was_asked() {
    let cluster = streams_only(Setup::default());
    let (mut browser, sid) = cluster.welcomed().await;
    for _ in 0..20 {
        browser.subscribe(&public("a"));
        browser.subscribe(&public("b"));
        browser.unsubscribe(&public("a"));
    }
    let mut confirmed = Vec::new();
    for _ in 0..21 {
        confirmed.push(browser.next().await["identifier"].as_str().unwrap().to_owned());
    }
    assert_eq!(confirmed.iter().filter(|one| **one == public("a")).count(), 20);
    browser.subscribe(&public("c"));
    assert_eq!(browser.next().await["identifier"], public("c"));
    cluster.publish("a", "1").await;
    cluster.publish("b", "2").await;
    assert_eq!(browser.next().await["message"], 2);
    browser.vanish();
    let mut back = cluster.connect_with(1, hello(Some(&sid)));
    let mut ids: Vec<_> = back.next().await["restored_ids"].as_array().unwrap().clone();
    ids.sort_by_key(|id| id.to_string());
    assert_eq!(ids, [value!(public("b")), value!(public("c"))]);
}

#[tokio::test(start_paused = true)]
async fn row_13_a_flood_of_commands_is_read_more_slowly_and_nobody_is_closed() {
    let subscriptions = SubscriptionLimits { number: 10, ..SubscriptionLimits::default() };
    let setup = Setup { subscriptions, max_commands_rate: 10, pong_timeout: SECOND, ..Setup::default() };
    let cluster = streams_only(setup);
    let mut browser = cluster.connect_with(0, Hello { ping_interval: None, ..hello(None) });
    assert_eq!(browser.next().await["type"], "welcome");
    let started = Instant::now();
    // 120 at once, then ten per second.
    (0..320).for_each(|_| browser.send(value!({ "command": "ping" })));
    let mut pongs = 0;
    let mut at_once = 0;
    while pongs < 320 {
        let frame = browser.next().await;
        match frame["type"].as_str() {
            Some("pong") => pongs += 1,
            Some("ping") => {}
            _ => panic!("after {pongs} pongs: {frame}"),
        }
        at_once += u32::from(frame["type"] == "pong" && started.elapsed() < SECOND / 20);
    }
    assert_eq!(at_once, 120);
    let took = started.elapsed();
    assert!(took > 19 * SECOND && took < 22 * SECOND, "{took:?}");
}

/// Identifiers of a size at which four fill the budget, but for what their streams take.
fn wide(name: impl std::fmt::Display) -> String {
    value!({ "channel": "$pubsub", "stream_name": name.to_string(), "wide": "x".repeat(20_000) }).to_string()
}

fn of_all(total: usize) -> Setup {
    Setup { subscriptions: SubscriptionLimits { identifier: 1 << 15, total, ..Default::default() }, ..Setup::default() }
}

#[tokio::test(start_paused = true)]
async fn row_13_the_subscriptions_of_all_clients_together_hold_what_they_may_and_give_it_back() {
    let cluster = streams_only(of_all(90_000));
    let budget = &cluster.nodes[0].subscriptions;
    let full = metrics::SUBSCRIPTIONS_FULL.get();
    let (mut one, _) = cluster.welcomed().await;
    let (mut other, _) = cluster.welcomed().await;
    for stream in 0..3 {
        one.subscribed(&wide(stream)).await;
    }
    other.subscribed(&wide("other")).await;
    assert!((80_000..90_000).contains(&budget.held()), "{} bytes", budget.held());
    for client in [&mut one, &mut other] {
        client.subscribe(&wide("beyond"));
        let answer = client.next().await;
        assert_eq!((&answer["type"], &answer["identifier"]), (&value!("reject_subscription"), &value!(wide("beyond"))));
    }
    assert!(metrics::SUBSCRIPTIONS_FULL.get() >= full + 2);
    // A small one still fits, and what was there goes on.
    other.subscribed(&public("small")).await;
    cluster.publish("2", "1").await;
    assert_eq!(one.next().await["message"], 1);
    // Whoever leaves one makes room for one, and whoever leaves for all.
    one.unsubscribe(&wide(0));
    eventually("there is room", || budget.held() < 70_000).await;
    other.subscribed(&wide("beyond")).await;
    one.vanish();
    eventually("its subscriptions are gone", || budget.held() < 50_000).await;
    other.subscribed(&wide(0)).await;
    other.vanish();
    eventually("all are gone", || budget.held() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn row_13_a_session_that_finds_no_room_is_kept_and_tries_again() {
    let cluster = streams_only(of_all(70_000));
    let budget = &cluster.nodes[0].subscriptions;
    let (mut browser, sid) = cluster.welcomed().await;
    for stream in 0..2 {
        browser.subscribed(&wide(stream)).await;
    }
    browser.vanish();
    eventually("it has left", || budget.held() == 0).await;
    let (mut other, _) = cluster.welcomed().await;
    for stream in 0..2 {
        other.subscribed(&wide(stream)).await;
    }
    let before = budget.held();
    for _ in 0..10 {
        let mut back = cluster.connect_with(0, hello(Some(&sid)));
        let reason = "Too many subscriptions: subscriptions_budget";
        assert_eq!(back.next().await, value!({ "close": 1013, "reason": reason }));
    }
    eventually("nothing of it stays", || budget.held() == before).await;
    // Others have made room: it goes on where it was. What it holds is counted once.
    other.vanish();
    eventually("there is room", || budget.held() == 0).await;
    let (mut back, _) = cluster.welcomed_with(0, hello(Some(&sid))).await;
    assert_eq!(budget.held(), before);
    back.send(value!({ "command": "history", "identifier": wide(1), "history": { "since": 1 } }));
    assert_eq!(back.next().await["type"], "confirm_history");
    cluster.publish("1", "7").await;
    assert_eq!(back.next().await["message"], 7);
    back.vanish();
    eventually("all are gone", || budget.held() == 0).await;
}
