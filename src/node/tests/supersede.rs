//! A restored session takes the place of the one before.

use super::*;
use crate::broker::SessionKey;
use serde_json::{Value, json as value};

const CHAT: &str = r#"{"channel":"Chat"}"#;

fn sid(welcome: &Value) -> String {
    welcome["sid"].as_str().unwrap_or_else(|| panic!("{welcome}")).to_owned()
}

async fn is_stored(cluster: &Cluster, sid: &str) -> bool {
    cluster.broker.load_session(&SessionKey::of(sid)).await.unwrap().is_some()
}

async fn until_gone(cluster: &Cluster, sid: &str) {
    for _ in 0..600 {
        if !is_stored(cluster, sid).await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{sid} is still there");
}

#[tokio::test(start_paused = true)]
async fn row_12_the_first_frame_after_the_welcome_ends_the_session_before_and_its_half_open_connection() {
    for node in [0, 1] {
        let cluster = Cluster::new(Script::default());
        let (mut old, first) = cluster.welcomed().await;
        old.subscribed(CHAT).await;
        let mut new = cluster.connect_with(node, hello(Some(&first)));
        let second = sid(&new.next().await);
        // Nobody knows yet whether it heard of its new sid.
        assert!(is_stored(&cluster, &first).await);
        cluster.publish("a", "1").await;
        assert_eq!(old.next().await["message"], 1);
        assert_eq!(new.next().await["message"], 1);
        new.send(value!({ "command": "pong" }));
        assert_eq!(old.next().await, value!({ "close": 1000, "reason": "Session resumed elsewhere" }));
        until_gone(&cluster, &first).await;
        assert!(is_stored(&cluster, &second).await);
        let mut late = cluster.connect_with(1, hello(Some(&first)));
        assert_eq!(late.next().await["restored"], Value::Null);
        cluster.publish("a", "2").await;
        assert_eq!(new.next().await["message"], 2);
        assert!(cluster.app.disconnects().is_empty(), "nobody has left");
    }
}

#[tokio::test(start_paused = true)]
async fn row_12_without_a_sign_of_its_client_a_session_is_restored_five_times_and_stored_twice_at_most() {
    let cluster = Cluster::new(Script::default());
    let (mut browser, first) = cluster.welcomed().await;
    browser.subscribed(CHAT).await;
    browser.vanish();
    let mut before: Option<(Browser, String)> = None;
    for n in 0..5 {
        let mut next = cluster.connect_with(n % 2, hello(Some(&first)));
        let welcome = next.next().await;
        assert_eq!(welcome["restored"], true, "{n}: {welcome}");
        if let Some((mut unproved, unheard)) = before.replace((next, sid(&welcome))) {
            assert_eq!(unproved.next().await["close"], 1000);
            until_gone(&cluster, &unheard).await;
        }
    }
    let mut sixth = cluster.connect_with(0, hello(Some(&first)));
    let welcome = sixth.next().await;
    assert_eq!((&welcome["type"], &welcome["restored"]), (&value!("welcome"), &Value::Null));
    // The last one that was restored goes on.
    let (unproved, fifth) = before.unwrap();
    unproved.vanish();
    let mut back = cluster.connect_with(1, hello(Some(&fifth)));
    assert_eq!(back.next().await["restored"], true);
    until_gone(&cluster, &first).await;
}

#[tokio::test(start_paused = true)]
async fn row_12_a_session_that_is_restored_again_and_again_is_one_session() {
    let cluster = Cluster::new(Script::default());
    let (mut browser, mut last) = cluster.welcomed().await;
    browser.subscribed(CHAT).await;
    let mut sids = vec![last.clone()];
    for n in 0..300 {
        browser.vanish();
        browser = cluster.connect_with(n % 2, hello(Some(&last)));
        let welcome = browser.next().await;
        assert_eq!(welcome["restored"], true, "{n}: {welcome}");
        last = sid(&welcome);
        sids.push(last.clone());
    }
    for earlier in &sids[..299] {
        until_gone(&cluster, earlier).await;
    }
    let body = cluster.broker.load_session(&SessionKey::of(&last)).await.unwrap().unwrap().body;
    assert!(body.len() < 8_000, "{} bytes", body.len());
}

#[tokio::test(start_paused = true)]
async fn row_12_a_connection_whose_session_goes_on_elsewhere_does_not_write_it_again() {
    let cluster = Cluster::new(Script::default());
    let (mut old, first) = cluster.welcomed().await;
    old.subscribed(CHAT).await;
    // Another node went on with it, and its message to this one was lost.
    let (one, other) = (SessionKey::of(&first), SessionKey::of("other"));
    assert!(crate::node::supersede::end(&cluster.nodes[1], &one, &other).await.unwrap());
    cluster.broker.delete_session(&one, None).await.unwrap();
    old.perform(CHAT, "{}");
    old.subscribe(r#"{"channel":"Chat","id":2}"#);
    let last = loop {
        let frame = old.next().await;
        if frame["close"].is_u64() {
            break frame;
        }
    };
    assert_eq!(last["reason"], "Session resumed elsewhere");
    eventually("it has left", || cluster.nodes[0].registry.is_empty()).await;
    assert!(!is_stored(&cluster, &first).await);
}

#[tokio::test(start_paused = true)]
async fn row_12_an_entry_that_was_lost_is_written_again() {
    let cluster = Cluster::new(Script::default());
    let (mut browser, first) = cluster.welcomed().await;
    cluster.broker.delete_session(&SessionKey::of(&first), None).await.unwrap();
    browser.subscribed(CHAT).await;
    browser.vanish();
    let mut back = cluster.connect_with(1, hello(Some(&first)));
    assert_eq!(back.next().await["restored_ids"], value!([CHAT]));
}

#[tokio::test(start_paused = true)]
async fn row_12_the_applications_disconnect_ends_the_session() {
    let app = Script::on_command(|call| {
        let disconnect = call.kind == CommandKind::Message;
        Ok(CommandEffects { disconnect, ..confirmed(call, &["a"]) })
    });
    let cluster = Cluster::new(app);
    let (mut browser, first) = cluster.welcomed().await;
    browser.subscribed(CHAT).await;
    browser.perform(CHAT, "{}");
    assert_eq!(browser.next().await["close"], 1011);
    until_gone(&cluster, &first).await;
}

fn ending() -> Script {
    Script::on_command(|call| {
        let disconnect = call.kind == CommandKind::Message;
        Ok(CommandEffects { disconnect, ..confirmed(call, &["a"]) })
    })
}

/// The proof that the client heard of its new sid does not depend on the connection that it came on.
#[tokio::test(start_paused = true)]
async fn row_12_a_first_frame_counts_however_soon_the_connection_ends() {
    type Act = fn(&Browser);
    let acts: [(&str, Act); 4] = [
        ("gone", |new| {
            new.send(value!({ "command": "pong" }));
            let _ = new.commands.send(Incoming::Closed);
        }),
        ("too big", |new| drop(new.commands.send(Incoming::TooBig))),
        ("faulty", |new| drop(new.commands.send(Incoming::Faulty(crate::protocol::Close::TooBig)))),
        ("told to leave", |new| new.perform(CHAT, "{}")),
    ];
    for node in [0, 1] {
        for (what, act) in acts {
            let cluster = Cluster::new(ending());
            let (mut old, first) = cluster.welcomed().await;
            old.subscribed(CHAT).await;
            let mut new = cluster.connect_with(node, hello(Some(&first)));
            new.next().await;
            tokio::time::sleep(Duration::from_millis(10)).await;
            act(&new);
            let told = old.next().await;
            assert_eq!(told, value!({ "close": 1000, "reason": "Session resumed elsewhere" }), "{what}, node {node}");
            until_gone(&cluster, &first).await;
            let mut late = cluster.connect_with(1, hello(Some(&first)));
            assert_eq!(late.next().await["restored"], Value::Null, "{what}, node {node}");
        }
    }
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
        assert_eq!(silent.next().await["close"], 1000, "node {node}");
        until_gone(&cluster, &first).await;
        until_gone(&cluster, &second).await;
        for sid in [&first, &second] {
            let mut late = cluster.connect_with(1, hello(Some(sid)));
            assert_eq!(late.next().await["restored"], Value::Null, "node {node}");
        }
    }
}

/// What was saved before the share was full can be resumed, as often as its client comes.
#[tokio::test(start_paused = true)]
async fn row_12_a_full_share_does_not_keep_saved_sessions_from_being_resumed() {
    let cluster = Cluster::with(Script::default(), Setup { sessions_budget: 8_000, ..Setup::default() });
    let (mut browser, first) = cluster.welcomed().await;
    browser.subscribed(CHAT).await;
    browser.vanish();
    let mut others = Vec::new();
    for n in 0..30 {
        let (mut other, _) = cluster.welcomed().await;
        other.subscribed(&format!(r#"{{"channel":"Chat","id":{n}}}"#)).await;
        others.push(other);
    }
    for node in [0, 1] {
        let mut back = cluster.connect_with(node, hello(Some(&first)));
        assert_eq!(back.next().await["restored_ids"], value!([CHAT]), "node {node}");
        back.send(value!({ "command": "pong" }));
        cluster.publish("a", "7").await;
        assert_eq!(back.next().await["message"], 7);
        back.vanish();
    }
}

#[tokio::test(start_paused = true)]
async fn row_12_a_session_too_large_or_without_room_is_not_resumable_and_its_client_unaffected() {
    let limits = [(Some(2_000), 0), (None, 3_000)];
    for (max_session_size, sessions_budget) in limits {
        let cluster = Cluster::with(Script::default(), Setup { max_session_size, sessions_budget, ..Setup::default() });
        let (mut browser, first) = cluster.welcomed().await;
        for n in 0..40 {
            browser.subscribed(&format!(r#"{{"channel":"Chat","id":{n}}}"#)).await;
        }
        cluster.publish("a", "1").await;
        for _ in 0..40 {
            assert_eq!(browser.next().await["message"], 1);
        }
        browser.vanish();
        let what = format!("{max_session_size:?}, {sessions_budget}");
        if max_session_size.is_some() {
            until_gone(&cluster, &first).await;
        }
        let mut back = cluster.connect_with(1, hello(Some(&first)));
        let welcome = back.next().await;
        // Without room what was stored before stays: its client asks for the rest anew.
        let restored = welcome["restored_ids"].as_array().map_or(0, Vec::len);
        assert!(restored < if max_session_size.is_some() { 1 } else { 40 }, "{what}: {welcome}");
    }
}
