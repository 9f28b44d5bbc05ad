//! Calls that survive the node that was to make them.

use super::*;
use crate::broker::Broker;
use crate::node::tests::{Browser, Cluster, SECOND, Script, Setup, eventually, hello};
use crate::rpc::Env;

fn cluster() -> Cluster {
    let farewells = FarewellConfig { grace: 10 * SECOND, ..FarewellConfig::default() };
    Cluster::with(Script::default(), Setup { farewells, shared: true, ..Setup::default() })
}

/// A node that noted its calls and died.
async fn dead_node(cluster: &Cluster, sids: &[&str]) -> Book {
    let book = Book::new(cluster.nodes[0].hub.clone());
    for sid in sids {
        book.add(&(*sid).into(), call(sid));
    }
    book.write().await.unwrap();
    book
}

fn call(sid: &str) -> DisconnectCall {
    let env = Env { url: "http://acme.test/cable".into(), ..Env::default() };
    DisconnectCall { identifiers: format!("user of {sid}"), subscriptions: vec!["chat".into()], env }
}

async fn is_empty(cluster: &Cluster) -> bool {
    Book::new(cluster.nodes[0].hub.clone()).foreign().await.unwrap().is_empty()
}

#[tokio::test(start_paused = true)]
async fn ruling_30_the_calls_of_a_dead_node_are_made_once_each_by_the_others() {
    let cluster = cluster();
    dead_node(&cluster, &["one", "two"]).await;
    tokio::time::sleep(10 * SECOND).await;
    assert_eq!(cluster.app.disconnects(), [], "its grace is not over");
    tokio::time::sleep(60 * SECOND).await;
    let mut told = cluster.app.disconnects();
    told.sort_by(|a, b| a.identifiers.cmp(&b.identifiers));
    assert_eq!(told, [call("one"), call("two")]);
    assert!(is_empty(&cluster).await);
}

#[tokio::test(start_paused = true)]
async fn ruling_30_a_node_that_died_during_the_call_has_it_made_again() {
    let cluster = cluster();
    dead_node(&cluster, &["one"]).await;
    cluster.broker.save_session(&note(&"one".into()), Bytes::from_static(LEFT), None, Life::Last).await.unwrap();
    tokio::time::sleep(90 * SECOND).await;
    assert_eq!(cluster.app.disconnects(), [call("one")]);
    assert!(is_empty(&cluster).await);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_was_restored_is_not_taken_over() {
    let cluster = cluster();
    dead_node(&cluster, &["one"]).await;
    cluster.broker.save_session(&note(&"one".into()), Bytes::from_static(b"restored"), None, Life::Last).await.unwrap();
    tokio::time::sleep(90 * SECOND).await;
    assert_eq!(cluster.app.disconnects(), []);
    assert!(is_empty(&cluster).await);
}

#[tokio::test(start_paused = true)]
async fn who_leaves_a_living_node_is_told_of_once() {
    let cluster = cluster();
    for _ in 0..20 {
        cluster.welcomed().await.0.vanish();
    }
    tokio::time::sleep(9 * SECOND).await;
    assert!(!is_empty(&cluster).await, "the store knows of them");
    tokio::time::sleep(120 * SECOND).await;
    assert_eq!(cluster.app.disconnects().len(), 20);
    assert!(is_empty(&cluster).await);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_leaves_calls_in_their_grace_to_the_others() {
    let cluster = cluster();
    let mut browsers = Vec::new();
    let mut sids = Vec::new();
    for _ in 0..5 {
        let (browser, sid) = cluster.welcomed().await;
        browsers.push(browser);
        sids.push(sid);
    }
    cluster.nodes[0].close_all();
    eventually("all have left", || cluster.nodes[0].registry.is_empty()).await;
    let started = Instant::now();
    cluster.nodes[0].farewells.as_ref().unwrap().drain(20 * SECOND).await;
    assert!(started.elapsed() < SECOND);
    assert_eq!(cluster.app.disconnects(), []);
    // Two of them go on elsewhere.
    let back: Vec<Browser> = vec![
        cluster.welcomed_with(1, hello(Some(&sids[0]))).await.0,
        cluster.welcomed_with(1, hello(Some(&sids[1]))).await.0,
    ];
    tokio::time::sleep(120 * SECOND).await;
    assert_eq!(cluster.app.disconnects().len(), 3);
    drop(back);
}

#[tokio::test(start_paused = true)]
async fn ruling_30_calls_that_wait_for_the_application_are_made_by_one_node_alone() {
    let cluster = cluster();
    cluster.app.go_away(true);
    for _ in 0..20 {
        cluster.welcomed().await.0.vanish();
    }
    // Longer than another node waits before it takes a claimed call over.
    tokio::time::sleep(90 * SECOND).await;
    assert_eq!(cluster.app.disconnects(), []);
    cluster.app.go_away(false);
    tokio::time::sleep(90 * SECOND).await;
    assert_eq!(cluster.app.disconnects().len(), 20);
    assert!(is_empty(&cluster).await);
}

#[tokio::test(start_paused = true)]
async fn ruling_30_calls_that_the_application_missed_at_a_shutdown_are_made_by_the_others() {
    let cluster = cluster();
    cluster.app.go_away(true);
    for _ in 0..5 {
        cluster.welcomed().await.0.vanish();
    }
    tokio::time::sleep(15 * SECOND).await;
    cluster.nodes[0].farewells.as_ref().unwrap().drain(5 * SECOND).await;
    tokio::time::sleep(SECOND).await;
    cluster.app.go_away(false);
    tokio::time::sleep(120 * SECOND).await;
    assert_eq!(cluster.app.disconnects().len(), 5);
    assert!(is_empty(&cluster).await);
}
