//! Telling the application who left and who came back.

use super::connect::{token, tokens, with_token};
use super::*;
use tokio::time::Instant;

const CHAT: &str = r#"{"channel":"Chat"}"#;
const PUBLIC: &str = r#"{"channel":"$pubsub","stream_name":"p"}"#;

fn with(farewells: FarewellConfig) -> Cluster {
    Cluster::with(Script::default(), Setup { farewells, ..Setup::default() })
}

fn graced() -> FarewellConfig {
    FarewellConfig { grace: 10 * SECOND, ..FarewellConfig::default() }
}

#[tokio::test(start_paused = true)]
async fn a_leaving_client_is_told_of_once_with_all_its_subscriptions_and_states() {
    let app = Script::on_command(|call| {
        let room = if call.identifier == CHAT { "7" } else { "8" };
        Ok(CommandEffects {
            istate: state(&[("room", room)]),
            cstate: state(&[("plan", "pro")]),
            ..confirmed(call, &["a"])
        })
    });
    let cluster = Cluster::new(app);
    let (mut browser, sid) = cluster.welcomed().await;
    for identifier in [CHAT, "{}", PUBLIC] {
        browser.subscribed(identifier).await;
    }
    browser.unsubscribe("{}");
    browser.subscribed(r#"{"channel":"More"}"#).await;
    browser.vanish();
    eventually("it is told", || !cluster.app.disconnects().is_empty()).await;
    tokio::time::sleep(30 * SECOND).await;
    let calls: Vec<_> = cluster.app.calls().into_iter().filter(|call| matches!(call, Call::Disconnect(..))).collect();
    let [Call::Disconnect(about, call)] = &calls[..] else { panic!("exactly one: {calls:?}") };
    assert_eq!(*about, sid);
    assert_eq!(call.identifiers, "{\"user\":\"5\"}");
    assert_eq!(call.subscriptions, [PUBLIC, CHAT, r#"{"channel":"More"}"#]);
    assert_eq!(call.env.cstate, state(&[("plan", "pro")]));
    assert_eq!(call.env.istate[CHAT], r#"{"room":"7"}"#);
    assert_eq!(call.env.istate[PUBLIC], r#"{"$p":"p","$w":"p"}"#);
    assert_eq!(call.env.url, "http://acme.test/cable");
}

#[tokio::test(start_paused = true)]
async fn the_mode_says_who_is_told_of() {
    use DisconnectMode::*;
    // Mode, whether it subscribed to a channel of the application, how many calls.
    let cases = [(Auto, false, 0), (Auto, true, 1), (Always, false, 1), (Never, true, 0)];
    for (mode, subscribes, calls) in cases {
        let farewells = FarewellConfig { mode, ..FarewellConfig::default() };
        let setup = Setup { farewells, jwt: Some(tokens()), ..Setup::default() };
        let cluster = Cluster::with(Script::default(), setup);
        let token = token(serde_json::json!({ "ext": "u" }));
        let (mut browser, _) = cluster.welcomed_with(0, with_token(None, Some(&token))).await;
        browser.subscribed(PUBLIC).await;
        if subscribes {
            browser.subscribed(CHAT).await;
        }
        browser.vanish();
        eventually("it has left", || cluster.nodes[0].registry.is_empty()).await;
        tokio::time::sleep(SECOND).await;
        assert_eq!(cluster.app.disconnects().len(), calls, "{mode:?}, subscribes: {subscribes}");
    }
}

#[tokio::test(start_paused = true)]
async fn interest_survives_a_restore() {
    let cluster = Cluster::new(Script::default());
    let (browser, sid) = cluster.welcomed().await;
    browser.vanish();
    eventually("the first is told", || cluster.app.disconnects().len() == 1).await;
    let (back, _) = cluster.welcomed_with(1, hello(Some(&sid))).await;
    back.vanish();
    eventually("the second, too", || cluster.app.disconnects().len() == 2).await;
}

#[tokio::test(start_paused = true)]
async fn ruling_30_with_grace_a_short_drop_is_not_told_and_leaving_is_told_once() {
    for node in [0, 1] {
        let cluster = with(graced());
        let (browser, sid) = cluster.welcomed().await;
        browser.vanish();
        tokio::time::sleep(5 * SECOND).await;
        let (back, _) = cluster.welcomed_with(node, hello(Some(&sid))).await;
        tokio::time::sleep(60 * SECOND).await;
        assert_eq!(cluster.app.disconnects(), [], "restored on node {node}");
        back.vanish();
        tokio::time::sleep(9 * SECOND).await;
        assert_eq!(cluster.app.disconnects(), [], "its grace is not over");
        tokio::time::sleep(60 * SECOND).await;
        assert_eq!(cluster.app.disconnects().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn with_grace_a_connection_that_ends_after_its_restore_is_not_told() {
    let cluster = with(graced());
    let (half_open, sid) = cluster.welcomed().await;
    let (_back, _) = cluster.welcomed_with(1, hello(Some(&sid))).await;
    half_open.vanish();
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(cluster.app.disconnects(), []);
}

#[tokio::test(start_paused = true)]
async fn who_cannot_come_back_gets_no_grace() {
    let cluster = with(graced());
    let (_closed, _) = cluster.welcomed().await;
    cluster.disconnect("{\"user\":\"5\"}").await;
    let base = Hello { subprotocol: Subprotocol::Json, ..hello(None) };
    cluster.welcomed_with(0, base).await.0.vanish();
    tokio::time::sleep(SECOND).await;
    assert_eq!(cluster.app.disconnects().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_restore_is_told_exactly_once_where_that_is_wanted() {
    let cluster = with(FarewellConfig { tell_restores: true, ..graced() });
    let (mut browser, sid) = cluster.welcomed().await;
    browser.subscribed(CHAT).await;
    browser.vanish();
    let (_back, _) = cluster.welcomed_with(1, hello(Some(&sid))).await;
    tokio::time::sleep(60 * SECOND).await;
    let restores = cluster.app.restores();
    assert_eq!(restores.len(), 1);
    assert_eq!(
        (restores[0].identifiers.as_str(), &restores[0].subscriptions[..]),
        ("{\"user\":\"5\"}", &[CHAT.to_owned()][..])
    );
}

#[tokio::test(start_paused = true)]
async fn an_application_without_the_method_is_left_alone() {
    let app = Script { knows_restore: false, ..Script::default() };
    let farewells = FarewellConfig { tell_restores: true, ..FarewellConfig::default() };
    let cluster = Cluster::with(app, Setup { farewells, ..Setup::default() });
    let (_browser, sid) = cluster.welcomed().await;
    for _ in 0..3 {
        cluster.welcomed_with(1, hello(Some(&sid))).await;
        tokio::time::sleep(SECOND).await;
    }
    assert_eq!(cluster.app.restores().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn ruling_29_calls_keep_to_the_rate_and_a_full_backlog_drops_the_oldest() {
    let cluster = with(FarewellConfig { rate: 1, backlog: 5, ..FarewellConfig::default() });
    let mut browsers = Vec::new();
    for _ in 0..10 {
        browsers.push(cluster.welcomed().await.0);
    }
    let dropped = crate::metrics::FAREWELLS_DROPPED.get();
    let started = Instant::now();
    browsers.into_iter().for_each(Browser::vanish);
    eventually("all have left", || cluster.nodes[0].registry.is_empty()).await;
    let farewells = cluster.nodes[0].farewells.as_ref().unwrap();
    eventually("the backlog is empty", || farewells.is_empty()).await;
    let told = cluster.app.disconnects().len();
    assert!((5..=6).contains(&told), "{told}");
    assert!(started.elapsed() >= 4 * SECOND);
    assert!(crate::metrics::FAREWELLS_DROPPED.get() >= dropped + 4);
}

#[tokio::test(start_paused = true)]
async fn ruling_30_calls_wait_while_the_application_is_away_and_are_made_once() {
    for farewells in [FarewellConfig { tell_restores: true, ..FarewellConfig::default() }, graced()] {
        let cluster = with(farewells);
        let mut sids = Vec::new();
        cluster.app.go_away(true);
        for _ in 0..20 {
            let (browser, sid) = cluster.welcomed().await;
            sids.push(sid);
            browser.vanish();
        }
        tokio::time::sleep(60 * SECOND).await;
        let farewells = cluster.nodes[0].farewells.as_ref().unwrap();
        assert_eq!((farewells.len(), cluster.app.disconnects().len()), (20, 0));
        cluster.app.go_away(false);
        let started = Instant::now();
        eventually("all are told of", || farewells.is_empty()).await;
        assert!(started.elapsed() < 7 * SECOND, "soon: {:?}", started.elapsed());
        tokio::time::sleep(60 * SECOND).await;
        let mut told: Vec<_> = cluster
            .app
            .calls()
            .into_iter()
            .filter_map(|call| match call {
                Call::Disconnect(sid, _) => Some(sid),
                _ => None,
            })
            .collect();
        told.sort();
        sids.sort();
        assert_eq!(told, sids, "each once");
    }
}

#[tokio::test(start_paused = true)]
async fn a_backlog_is_bounded_while_the_application_is_away() {
    let cluster = with(FarewellConfig { backlog: 5, ..FarewellConfig::default() });
    cluster.app.go_away(true);
    for _ in 0..30 {
        let (browser, _) = cluster.welcomed().await;
        browser.vanish();
        tokio::time::sleep(SECOND).await;
    }
    let farewells = cluster.nodes[0].farewells.as_ref().unwrap();
    assert!(farewells.len() <= 5, "{}", farewells.len());
    cluster.app.go_away(false);
    eventually("the backlog is empty", || farewells.is_empty()).await;
    assert!((4..=6).contains(&cluster.app.disconnects().len()), "{}", cluster.app.disconnects().len());
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_tells_of_everybody_without_the_rate() {
    for farewells in [FarewellConfig { rate: 1, ..FarewellConfig::default() }, FarewellConfig { rate: 1, ..graced() }] {
        let cluster = with(farewells);
        let mut browsers = Vec::new();
        for _ in 0..30 {
            browsers.push(cluster.welcomed().await.0);
        }
        cluster.nodes[0].close_all();
        eventually("all have left", || cluster.nodes[0].registry.is_empty()).await;
        let started = Instant::now();
        cluster.nodes[0].farewells.as_ref().unwrap().drain(2 * SECOND).await;
        assert_eq!(cluster.app.disconnects().len(), 30);
        assert!(started.elapsed() < 3 * SECOND, "{:?}", started.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_mass_departure_delays_nobody() {
    let cluster = Cluster::new(Script::default());
    let (mut stays, _) = cluster.welcomed().await;
    stays.subscribed(CHAT).await;
    let mut browsers = Vec::new();
    for _ in 0..1_000 {
        browsers.push(cluster.welcomed().await.0);
    }
    cluster.app.slow(SECOND / 2);
    browsers.into_iter().for_each(Browser::vanish);
    for number in 0..100 {
        let started = Instant::now();
        cluster.publish("a", &number.to_string()).await;
        assert_eq!(stays.next().await["message"], number);
        assert!(started.elapsed() < SECOND / 100, "{:?}", started.elapsed());
        tokio::time::sleep(SECOND / 10).await;
    }
    assert!(!cluster.nodes[0].farewells.as_ref().unwrap().is_empty(), "it was busy meanwhile");
}
