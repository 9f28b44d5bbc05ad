//! A session is told to leave for good: what was restored from it goes, too, and what it was restored from.

use super::supersede::{ended, ending, note, noted, sid, until_gone};
use super::*;
use crate::broker::{Over, SessionKey};
use crate::node::supersede;
use crate::session::Succession;
use serde_json::{Value, json as value};

const CHAT: &str = r#"{"channel":"Chat"}"#;

#[tokio::test(start_paused = true)]
async fn row_12_the_applications_disconnect_ends_the_session() {
    let cluster = Cluster::new(ending());
    let (mut browser, first) = cluster.welcomed().await;
    browser.subscribed(CHAT).await;
    browser.perform(CHAT, "{}");
    assert_eq!(browser.next().await["close"], 1011);
    until_gone(&cluster, &first).await;
}

#[tokio::test(start_paused = true)]
async fn row_12_the_applications_disconnect_ends_what_was_restored_in_silence() {
    for node in [0, 1] {
        let cluster = Cluster::new(ending());
        let (mut old, first) = cluster.welcomed().await;
        old.subscribed(CHAT).await;
        let mut silent = cluster.connect_with(node, hello(Some(&first)));
        let second = sid(&silent.next().await);
        old.perform(CHAT, "{}");
        assert_eq!(old.next().await["close"], 1011);
        assert_eq!(silent.next().await, ended(), "node {node}");
        until_gone(&cluster, &first).await;
        until_gone(&cluster, &second).await;
        for sid in [&first, &second] {
            let mut late = cluster.connect_with(1, hello(Some(sid)));
            assert_eq!(late.next().await["restored"], Value::Null, "node {node}");
        }
    }
}

/// The application hears of the end of each session that it knows, once.
#[tokio::test(start_paused = true)]
async fn row_12_the_application_hears_of_the_end_of_what_was_restored_in_silence() {
    let told = FarewellConfig { tell_restores: true, ..FarewellConfig::default() };
    let graced = FarewellConfig { grace: 10 * SECOND, ..FarewellConfig::default() };
    for node in [0, 1] {
        for farewells in [told.clone(), graced.clone()] {
            let with_grace = !farewells.grace.is_zero();
            let cluster = Cluster::with(ending(), Setup { farewells, ..Setup::default() });
            let (mut old, first) = cluster.welcomed().await;
            old.subscribed(CHAT).await;
            let mut silent = cluster.connect_with(node, hello(Some(&first)));
            let second = sid(&silent.next().await);
            // It has been noted that the session goes on.
            tokio::time::sleep(SECOND).await;
            old.perform(CHAT, "{}");
            assert_eq!(silent.next().await, ended(), "node {node}");
            tokio::time::sleep(60 * SECOND).await;
            let calls = cluster.app.calls();
            let about =
                |sid: &str| calls.iter().filter(|call| matches!(call, Call::Disconnect(of, _) if of == sid)).count();
            // With grace it is one session for the application, whatever its sid.
            let expected = (usize::from(!with_grace), 1);
            assert_eq!((about(&first), about(&second)), expected, "node {node}, grace: {with_grace}");
        }
    }
}

/// Whoever ended the session died before it could close what was restored from it.
#[tokio::test(start_paused = true)]
async fn row_12_what_was_restored_from_a_session_that_was_ended_goes_nowhere() {
    let cluster = Cluster::new(Script::default());
    let (mut old, first) = cluster.welcomed().await;
    old.subscribed(CHAT).await;
    let mut silent = cluster.connect_with(1, hello(Some(&first)));
    let second = sid(&silent.next().await);
    note(&cluster, &first, &Succession::closed(Over::Ended)).await;
    let mut back = cluster.connect_with(0, hello(Some(&second)));
    assert_eq!(back.next().await["restored"], Value::Null);
    silent.send(value!({ "command": "pong" }));
    assert_eq!(silent.next().await, ended());
    eventually("the application knows", || cluster.app.disconnects().len() == 1).await;
}

/// A session is ended while the one that was restored from it is restored once more.
#[tokio::test(start_paused = true)]
async fn row_12_the_end_of_a_session_reaches_all_that_were_restored_from_it_one_after_the_other() {
    let cluster = Cluster::new(Script::default());
    let (mut browser, first) = cluster.welcomed().await;
    browser.subscribed(CHAT).await;
    browser.vanish();
    let (unheard, second) = cluster.welcomed_with(0, hello(Some(&first))).await;
    unheard.vanish();
    let (mut last, third) = cluster.welcomed_with(1, hello(Some(&second))).await;
    until_gone(&cluster, &first).await;
    // As if the first one were not over yet.
    note(&cluster, &first, &Succession::default().restored(&SessionKey::of(&second).0)).await;
    supersede::end_for_good(&cluster.nodes[0], SessionKey::of(&first));
    assert_eq!(last.next().await, ended());
    for sid in [&second, &third] {
        until_gone(&cluster, sid).await;
        assert_eq!(noted(&cluster, sid).await, Some(Over::Ended));
        let mut late = cluster.connect_with(0, hello(Some(sid)));
        assert_eq!(late.next().await["restored"], Value::Null);
    }
}

/// It is noted that a session is over, and the answer to that gets lost.
#[tokio::test(start_paused = true)]
async fn row_12_the_end_of_a_session_reaches_what_was_restored_from_it_although_an_answer_is_lost() {
    let writes = Arc::new(store::Writes::default());
    let cluster = Cluster::with(Script::default(), Setup { writes: writes.clone(), ..Setup::default() });
    let (mut browser, first) = cluster.welcomed().await;
    browser.subscribed(CHAT).await;
    browser.vanish();
    let (mut silent, second) = cluster.welcomed_with(1, hello(Some(&first))).await;
    writes.fail(store::Fault::BesideUnanswered);
    supersede::end_for_good(&cluster.nodes[0], SessionKey::of(&first));
    while noted(&cluster, &first).await != Some(Over::Ended) {
        tokio::time::sleep(SECOND / 10).await;
    }
    writes.fail(None);
    assert_eq!(silent.next().await, ended());
    until_gone(&cluster, &second).await;
}

/// The session before is all that can be resumed then.
#[tokio::test(start_paused = true)]
async fn row_12_the_applications_disconnect_ends_the_session_before_where_the_restored_one_is_not_stored() {
    for full in [true, false] {
        let writes = Arc::new(store::Writes::default());
        let cluster = Cluster::with(ending(), Setup { writes: writes.clone(), ..Setup::default() });
        let (mut browser, first) = cluster.welcomed().await;
        browser.subscribed(CHAT).await;
        browser.vanish();
        eventually("it has left", || cluster.nodes[0].registry.is_empty()).await;
        writes.fail(full.then_some(store::Fault::Full));
        writes.heads_stuck.store(!full, Ordering::Relaxed);
        let (mut restored, second) = cluster.welcomed_with(1, hello(Some(&first))).await;
        restored.perform(CHAT, "{}");
        assert_eq!(restored.next().await["close"], 1011, "full: {full}");
        eventually("it has left", || cluster.nodes[1].registry.is_empty()).await;
        writes.fail(None);
        writes.heads_stuck.store(false, Ordering::Relaxed);
        until_gone(&cluster, &first).await;
        for sid in [&first, &second] {
            let mut back = cluster.connect_with(0, hello(Some(sid)));
            assert_eq!(back.next().await["restored"], Value::Null, "full: {full}");
        }
    }
}

/// It is the end of the session, however soon the connection ends after the answer.
#[tokio::test(start_paused = true)]
async fn row_12_the_applications_disconnect_counts_although_its_client_leaves_before_anything_is_stored() {
    type Act = fn(&Browser);
    let acts: [(&str, Act); 3] = [
        ("an action", |browser| browser.perform(CHAT, "{}")),
        ("an unsubscription", |browser| browser.unsubscribe(CHAT)),
        ("a subscription", |browser| browser.subscribe(r#"{"channel":"Chat","id":2}"#)),
    ];
    for (what, act) in acts {
        for is_stuck in [true, false] {
            let app = Script::on_command(|call| {
                if call.kind == CommandKind::Subscribe && call.identifier == CHAT {
                    return Ok(confirmed(call, &["a"]));
                }
                // Streams that take long to open.
                let streams = vec!["slow".into()];
                let cstate = state(&[("left", "yes")]);
                Ok(CommandEffects { disconnect: true, streams, cstate, ..nothing(Outcome::Success) })
            });
            let writes = Arc::new(store::Writes::default());
            let cluster = Cluster::with(app, Setup { writes: writes.clone(), ..Setup::default() });
            let (mut browser, first) = cluster.welcomed().await;
            browser.subscribed(CHAT).await;
            writes.stuck.store(is_stuck, Ordering::Relaxed);
            act(&browser);
            eventually("the application has answered", || cluster.app.commands().len() == 2).await;
            tokio::time::sleep(SECOND / 100).await;
            browser.vanish();
            tokio::time::sleep(SECOND / 100).await;
            writes.stuck.store(false, Ordering::Relaxed);
            eventually("it has left", || cluster.nodes[0].registry.is_empty()).await;
            until_gone(&cluster, &first).await;
            let mut back = cluster.connect_with(1, hello(Some(&first)));
            assert_eq!(back.next().await["restored"], Value::Null, "{what}, stuck: {is_stuck}");
        }
    }
}

/// Neither the restore nor the restored session found room; then the session before was ended, on its own connection.
#[tokio::test(start_paused = true)]
async fn row_12_the_end_of_a_session_closes_what_was_restored_from_it_without_room_when_its_client_is_heard_of() {
    let writes = Arc::new(store::Writes::default());
    let cluster = Cluster::with(ending(), Setup { writes: writes.clone(), ..Setup::default() });
    let (mut old, first) = cluster.welcomed().await;
    old.subscribed(CHAT).await;
    writes.fail(store::Fault::Full);
    let (mut restored, _) = cluster.welcomed_with(1, hello(Some(&first))).await;
    tokio::time::sleep(SECOND / 100).await;
    restored.send(value!({ "command": "pong" }));
    restored.silence().await;
    writes.fail(None);
    old.perform(CHAT, "{}");
    assert_eq!(old.next().await["close"], 1011);
    until_gone(&cluster, &first).await;
    for _ in 0..3 {
        // As pongs come.
        tokio::time::sleep(3 * SECOND).await;
        restored.send(value!({ "command": "pong" }));
    }
    assert_eq!(restored.next().await, ended());
}
