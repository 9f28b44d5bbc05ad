//! A leader that was just elected may still be applying what it has agreed to: positions of others are not wrong because
//! it has not come to them yet.

use super::*;
use serde_json::json as value;
use std::sync::atomic::{AtomicU64, Ordering};

const A: &str = r#"{"channel":"$pubsub","stream_name":"a"}"#;

/// A subscription from position 3 of three, at a store that shows two; for how long the third stays unseen.
async fn answer_after(lag: Duration) -> serde_json::Value {
    let hidden = Arc::new(AtomicU64::new(0));
    let setup = Setup { noauth: true, no_application: true, shared: true, lag: hidden.clone(), ..Setup::default() };
    let cluster = Cluster::with(Script::default(), setup);
    for number in ["1", "2", "3"] {
        cluster.publish("a", number).await;
    }
    hidden.store(1, Ordering::Relaxed);
    tokio::spawn(async move {
        tokio::time::sleep(lag).await;
        hidden.store(0, Ordering::Relaxed);
    });
    let (mut browser, _) = cluster.welcomed().await;
    let epoch = cluster.broker.status().borrow().logs.of(&"a".into()).epoch.as_str().to_owned();
    let history = value!({"streams": {"a": {"epoch": epoch, "offset": 3}}});
    browser.send(value!({"command": "subscribe", "identifier": A, "history": history}));
    assert_eq!(browser.next().await, json(&confirm(A)));
    browser.next().await
}

#[tokio::test(start_paused = true)]
async fn a_position_that_a_new_leader_has_not_come_to_yet_is_not_rejected() {
    let answer = answer_after(2 * SECOND).await;
    assert_eq!(answer, value!({"type": "confirm_history", "identifier": A}));
}

#[tokio::test(start_paused = true)]
async fn a_position_that_stays_beyond_the_end_is_rejected() {
    let answer = answer_after(60 * SECOND).await;
    assert_eq!(answer, value!({"type": "reject_history", "identifier": A}));
}

/// The stock client would be sent what follows its position without positions, and once more after its next drop.
#[tokio::test(start_paused = true)]
async fn ruling_02_the_hold_ends_when_the_command_arrives_not_when_the_store_answers_it() {
    let hidden = Arc::new(AtomicU64::new(0));
    let setup = Setup { noauth: true, no_application: true, shared: true, lag: hidden.clone(), ..Setup::default() };
    let cluster = Cluster::with(Script::default(), setup);
    let (mut browser, sid) = cluster.welcomed().await;
    browser.subscribed(A).await;
    let mut last = value!(null);
    for number in ["1", "2", "3"] {
        cluster.publish("a", number).await;
        last = browser.next().await;
    }
    assert_eq!(last["offset"], 3);
    browser.vanish();

    hidden.store(1, Ordering::Relaxed);
    let mut back = cluster.connect_with(1, hello(Some(&sid)));
    assert_eq!(back.next().await["restored_ids"], value!([A]));
    let history = value!({"streams": {"a": {"epoch": last["epoch"], "offset": 3}}});
    back.send(value!({"command": "history", "identifier": A, "history": history}));
    // Longer than the hold, shorter than the store is given to answer.
    tokio::time::sleep(5 * SECOND / 2).await;
    cluster.publish("a", "4").await;
    let message = back.next().await;
    assert_eq!((&message["message"], &message["offset"]), (&value!(4), &value!(4)), "{message}");
    assert_eq!(back.next().await, value!({"type": "confirm_history", "identifier": A}));
    back.silence().await;
}
