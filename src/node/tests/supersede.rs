//! A restored session takes the place of the one before.

use super::*;
use crate::broker::{Life, Over, SaveError, SessionKey};
use crate::node::supersede;
use crate::session::Succession;
use serde_json::{Value, json as value};

const CHAT: &str = r#"{"channel":"Chat"}"#;

pub(super) fn elsewhere() -> Value {
    value!({ "close": 1000, "reason": "Session resumed elsewhere" })
}

pub(super) fn ended() -> Value {
    value!({ "close": 1000, "reason": "Session ended" })
}

pub(super) fn sid(welcome: &Value) -> String {
    welcome["sid"].as_str().unwrap_or_else(|| panic!("{welcome}")).to_owned()
}

async fn is_stored(cluster: &Cluster, sid: &str) -> bool {
    cluster.broker.load_session(&SessionKey::of(sid)).await.unwrap().is_some()
}

pub(super) async fn until_gone(cluster: &Cluster, sid: &str) {
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
        assert_eq!(old.next().await, elsewhere());
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
    assert_eq!(supersede::end(&cluster.nodes[1], &one, &other, None).await.unwrap(), None);
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

/// The application disconnects whoever sends it something.
pub(super) fn ending() -> Script {
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
            assert_eq!(old.next().await, elsewhere(), "{what}, node {node}");
            until_gone(&cluster, &first).await;
            let mut late = cluster.connect_with(1, hello(Some(&first)));
            assert_eq!(late.next().await["restored"], Value::Null, "{what}, node {node}");
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

/// Writes what became of a session, as another node would.
pub(super) async fn note(cluster: &Cluster, sid: &str, succession: &Succession) {
    let place = SessionKey::of(sid).derived("succession");
    cluster.broker.save_beside(&place, Bytes::from(succession.encode()), None).await.unwrap();
}

pub(super) async fn noted(cluster: &Cluster, sid: &str) -> Option<Over> {
    supersede::over(&cluster.nodes[0], &SessionKey::of(sid)).await.unwrap()
}

/// Uses up the share of saved sessions to the last byte.
pub(super) async fn fill(cluster: &Cluster) {
    let (mut size, mut step) = (0, 1 << 14);
    while step > 0 {
        let body = Bytes::from(vec![b' '; size + step]);
        match cluster.broker.save_session(&SessionKey::of("filler"), body, None, Life::Last).await {
            Ok(_) => size += step,
            Err(SaveError::Full(_)) => step /= 2,
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn row_12_a_full_share_does_not_delay_the_end_of_what_was_restored_in_silence() {
    let cluster = Cluster::with(Script::default(), Setup { sessions_budget: 20_000, ..Setup::default() });
    let (mut browser, first) = cluster.welcomed().await;
    browser.subscribed(CHAT).await;
    browser.vanish();
    let mut unheard = cluster.connect_with(1, hello(Some(&first)));
    let second = sid(&unheard.next().await);
    fill(&cluster).await;
    let (_again, _) = cluster.welcomed_with(0, hello(Some(&first))).await;
    assert_eq!(unheard.next().await, elsewhere());
    until_gone(&cluster, &second).await;
    // What was deleted has made room.
    for _ in 0..100 {
        tokio::time::sleep(SECOND / 100).await;
        if noted(&cluster, &second).await.is_some() {
            return;
        }
    }
    panic!("it was not noted");
}

#[tokio::test(start_paused = true)]
async fn row_12_a_full_share_keeps_nobody_from_ending_a_session_and_is_not_asked_again_and_again() {
    let writes = Arc::new(store::Writes::default());
    let cluster = Cluster::with(ending(), Setup { writes: writes.clone(), ..Setup::default() });
    let mut all = Vec::new();
    for n in 0..20 {
        let (mut old, first) = cluster.welcomed().await;
        old.subscribed(CHAT).await;
        let mut silent = cluster.connect_with(n % 2, hello(Some(&first)));
        let second = sid(&silent.next().await);
        all.push((old, silent, [first, second]));
    }
    writes.fail(store::Fault::Full);
    writes.take();
    for (old, silent, sids) in &mut all {
        old.perform(CHAT, "{}");
        assert_eq!(old.next().await["close"], 1011);
        assert_eq!(silent.next().await, ended());
        for sid in sids {
            until_gone(&cluster, sid).await;
        }
    }
    tokio::time::sleep(60 * SECOND).await;
    let (number, _) = writes.take();
    assert!(number <= 20 * 6, "{number} writes for 20 sessions");
}

#[tokio::test(start_paused = true)]
async fn row_12_a_full_share_does_not_keep_a_first_frame_from_ending_the_session_before() {
    let cluster = Cluster::with(Script::default(), Setup { sessions_budget: 20_000, ..Setup::default() });
    let (mut old, first) = cluster.welcomed().await;
    old.subscribed(CHAT).await;
    let mut new = cluster.connect_with(1, hello(Some(&first)));
    let second = sid(&new.next().await);
    fill(&cluster).await;
    new.send(value!({ "command": "pong" }));
    assert_eq!(old.next().await, elsewhere());
    until_gone(&cluster, &first).await;
    assert_eq!(noted(&cluster, &first).await, Some(Over::Replaced));
    assert!(is_stored(&cluster, &second).await);
}

/// What comes after the welcome counts while it is still being noted that the session goes on.
#[tokio::test(start_paused = true)]
async fn row_12_a_first_frame_counts_while_the_restore_is_being_noted() {
    let farewells = FarewellConfig { grace: 10 * SECOND, ..FarewellConfig::default() };
    let writes = Arc::new(store::Writes::default());
    let cluster = Cluster::with(Script::default(), Setup { farewells, writes: writes.clone(), ..Setup::default() });
    let (mut old, first) = cluster.welcomed().await;
    old.subscribed(CHAT).await;
    writes.notes_stuck.store(true, Ordering::Relaxed);
    let (new, _) = cluster.welcomed_with(1, hello(Some(&first))).await;
    // Its welcome is written, and the note is not.
    tokio::time::sleep(SECOND / 100).await;
    new.send(value!({ "command": "pong" }));
    let _ = new.commands.send(Incoming::Closed);
    assert_eq!(old.next().await, elsewhere());
    until_gone(&cluster, &first).await;
}

#[tokio::test(start_paused = true)]
async fn row_12_a_client_that_goes_before_it_is_welcomed_uses_up_no_restore_and_closes_nobody() {
    let writes = Arc::new(store::Writes::default());
    let cluster = Cluster::with(Script::default(), Setup { writes: writes.clone(), ..Setup::default() });
    let (mut browser, first) = cluster.welcomed().await;
    browser.subscribed(CHAT).await;
    browser.vanish();
    eventually("it has left", || cluster.nodes[0].registry.is_empty()).await;
    let (mut silent, _) = cluster.welcomed_with(0, hello(Some(&first))).await;
    for _ in 0..5 {
        writes.stuck.store(true, Ordering::Relaxed);
        let gone = cluster.connect_with(1, hello(Some(&first)));
        eventually("it is about to be let in", || cluster.nodes[1].registry.len() == 1).await;
        tokio::time::sleep(SECOND / 2).await;
        gone.vanish();
        writes.stuck.store(false, Ordering::Relaxed);
        eventually("it has gone", || cluster.nodes[1].registry.is_empty()).await;
    }
    cluster.publish("a", "1").await;
    assert_eq!(silent.next().await["message"], 1, "nobody has taken its place");
    let mut back = cluster.connect_with(1, hello(Some(&first)));
    assert_eq!(back.next().await["restored"], true);
}

/// Another restore has taken its place in silence, and its connection is about to be closed.
#[tokio::test(start_paused = true)]
async fn row_12_of_two_restores_at_one_moment_the_one_that_speaks_stays() {
    for spoken_to in [0, 1] {
        let cluster = Cluster::new(Script::default());
        let (mut browser, first) = cluster.welcomed().await;
        browser.subscribed(CHAT).await;
        browser.vanish();
        let (mut speaks, second) = cluster.welcomed_with(spoken_to, hello(Some(&first))).await;
        let (one, silent) = (SessionKey::of(&first), SessionKey::of("silent"));
        let node = &cluster.nodes[1];
        let known = supersede::succession(node, &one).await.unwrap();
        let claim = supersede::claim(node, &one, &silent, known).await.unwrap();
        speaks.send(value!({ "command": "pong" }));
        until_gone(&cluster, &first).await;
        claim.keep(node);
        tokio::time::sleep(10 * SECOND).await;
        cluster.publish("a", "1").await;
        assert_eq!(speaks.next().await["message"], 1);
        assert_eq!(noted(&cluster, "silent").await, Some(Over::Replaced));
        speaks.vanish();
        let mut back = cluster.connect_with(0, hello(Some(&second)));
        assert_eq!(back.next().await["restored"], true);
    }
}
