//! What the store holds of a session while it refuses writes, is slow, or is away.

use super::store::{Fault, Writes};
use super::*;
use crate::broker::SessionKey;
use crate::node::stored;
use crate::session::{SavedSession, SubscriptionLimits};
use serde_json::{Value, json as value};

const CHAT: &str = r#"{"channel":"Chat"}"#;

pub(super) fn public(stream: impl std::fmt::Display) -> String {
    value!({ "channel": "$pubsub", "stream_name": stream.to_string() }).to_string()
}

/// A stream with a long name.
pub(super) fn long(n: usize, size: usize) -> String {
    public(format!("{n:0>size$}"))
}

pub(super) fn streams_only(writes: &Arc<Writes>, setup: Setup) -> Cluster {
    let subscriptions = SubscriptionLimits::default();
    let setup = Setup { noauth: true, no_application: true, writes: writes.clone(), subscriptions, ..setup };
    Cluster::with(Script::default(), setup)
}

pub(super) async fn head(cluster: &Cluster, sid: &str) -> Option<String> {
    let stored = cluster.broker.load_session(&SessionKey::of(sid)).await.unwrap()?;
    SavedSession::decode(&stored.body).unwrap();
    Some(String::from_utf8(stored.body.to_vec()).unwrap())
}

/// Waits until this holds for what is stored of a session; virtual time passes meanwhile.
pub(super) async fn until(cluster: &Cluster, sid: &str, what: &str, holds: impl Fn(Option<&str>) -> bool) {
    for _ in 0..2_000 {
        if holds(head(cluster, sid).await.as_deref()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("20 s have passed without: {what}");
}

pub(super) async fn restored_ids(cluster: &Cluster, sid: &str) -> Option<usize> {
    let mut back = cluster.connect_with(1, hello(Some(sid)));
    back.next().await["restored_ids"].as_array().map(Vec::len)
}

#[tokio::test(start_paused = true)]
async fn row_05_a_removal_that_could_not_be_committed_is_tried_again_while_the_connection_lives() {
    let writes = Arc::<Writes>::default();
    let cluster = streams_only(&writes, Setup::default());
    let (mut browser, sid) = cluster.welcomed().await;
    browser.subscribed(&public("stays")).await;
    browser.subscribed(&public("leaves")).await;
    for outage in [Duration::from_millis(100), 20 * SECOND] {
        writes.fail(Fault::Away);
        browser.unsubscribe(&public("leaves"));
        tokio::time::sleep(outage).await;
        writes.fail(None);
        until(&cluster, &sid, "it is not in what is stored", |head| !head.unwrap().contains("leaves")).await;
        browser.subscribed(&public("leaves")).await;
    }
    assert_eq!(restored_ids(&cluster, &sid).await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn row_05_a_stream_that_the_application_stopped_while_the_store_was_stuck_does_not_come_back() {
    let app = Script::on_command(|call| {
        let stop_streams = call.kind == CommandKind::Message;
        let transmissions = if stop_streams { vec![said(CHAT, value!("stopped"))] } else { vec![] };
        let effects = confirmed(call, &["a"]);
        Ok(CommandEffects {
            stop_streams,
            transmissions: [effects.transmissions.clone(), transmissions].concat(),
            ..effects
        })
    });
    let writes = Arc::<Writes>::default();
    let cluster = Cluster::with(app, Setup { writes: writes.clone(), ..Setup::default() });
    let (mut browser, sid) = cluster.welcomed().await;
    browser.subscribed(CHAT).await;
    writes.stuck.store(true, Ordering::Relaxed);
    browser.perform(CHAT, "{}");
    assert_eq!(browser.next().await["message"], "stopped");
    writes.stuck.store(false, Ordering::Relaxed);
    until(&cluster, &sid, "the stream is not in what is stored", |head| !head.unwrap().contains("[\"a\"")).await;
    // The connection is still there.
    let mut back = cluster.connect_with(1, hello(Some(&sid)));
    assert_eq!(back.next().await["restored_ids"], value!([CHAT]));
    cluster.publish("a", "1").await;
    back.silence().await;
}

/// Stops what it follows, and begins what takes long to open.
fn moving() -> Script {
    Script::on_command(|call| match call.kind {
        CommandKind::Message => {
            let transmissions = vec![said(CHAT, value!("moved"))];
            let streams = vec!["slow".into()];
            Ok(CommandEffects { stop_streams: true, streams, transmissions, ..nothing(Outcome::Success) })
        }
        _ => Ok(confirmed(call, &["a"])),
    })
}

#[tokio::test(start_paused = true)]
async fn row_05_a_removal_does_not_wait_for_streams_that_open_beside_it() {
    let cluster = Cluster::new(moving());
    let (mut browser, sid) = cluster.welcomed().await;
    browser.subscribed(CHAT).await;
    browser.perform(CHAT, "{}");
    // The other one takes a second.
    tokio::time::sleep(SECOND / 2).await;
    assert!(!head(&cluster, &sid).await.unwrap().contains("[\"a\""), "it is not in what is stored");
    browser.silence().await;
    assert_eq!(browser.next().await["message"], "moved");

    let cluster = streams_only(&Arc::default(), Setup::default());
    let (mut browser, sid) = cluster.welcomed().await;
    browser.subscribed(&public("leaves")).await;
    browser.unsubscribe(&public("leaves"));
    browser.subscribe(&public("slow"));
    tokio::time::sleep(SECOND / 2).await;
    assert!(!head(&cluster, &sid).await.unwrap().contains("leaves"), "it is not in what is stored");
    assert_eq!(browser.next().await["type"], "confirm_subscription");
    assert_eq!(restored_ids(&cluster, &sid).await, Some(1));
}

/// The session before has more than its client may have, and is the only one that is stored.
#[tokio::test(start_paused = true)]
async fn row_12_what_was_taken_away_does_not_come_back_with_the_session_before() {
    let writes = Arc::<Writes>::default();
    let cluster = Cluster::with(moving(), Setup { writes: writes.clone(), ..Setup::default() });
    let (mut browser, first) = cluster.welcomed().await;
    browser.subscribed(CHAT).await;
    browser.vanish();
    eventually("it has left", || cluster.nodes[0].registry.is_empty()).await;
    writes.fail(Fault::Full);
    let (mut restored, _) = cluster.welcomed_with(1, hello(Some(&first))).await;
    restored.perform(CHAT, "{}");
    assert_eq!(restored.next().await["message"], "moved");
    restored.vanish();
    eventually("it has left", || cluster.nodes[1].registry.is_empty()).await;
    until(&cluster, &first, "it is gone", |head| head.is_none()).await;
    writes.fail(None);
    assert_eq!(restored_ids(&cluster, &first).await, None);
}

#[tokio::test(start_paused = true)]
async fn row_13_parts_without_a_head_take_no_room_when_their_connection_is_over() {
    let writes = Arc::<Writes>::default();
    let cluster = streams_only(&writes, Setup::default());
    writes.fail(Fault::HeadsFull);
    let (mut browser, _) = cluster.welcomed().await;
    (0..60).for_each(|n| browser.subscribe(&long(n, 1_000)));
    for _ in 0..60 {
        assert_eq!(browser.next().await["type"], "confirm_subscription");
    }
    browser.vanish();
    eventually("it has left", || cluster.nodes[0].registry.is_empty()).await;
    eventually("nothing is left", || writes.entries.lock().unwrap().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn row_13_who_goes_before_it_is_welcomed_leaves_no_parts_behind() {
    let writes = Arc::<Writes>::default();
    let cluster = streams_only(&writes, Setup::default());
    let (mut browser, first) = cluster.welcomed().await;
    (0..60).for_each(|n| browser.subscribe(&long(n, 1_000)));
    for _ in 0..60 {
        assert_eq!(browser.next().await["type"], "confirm_subscription");
    }
    browser.vanish();
    eventually("it has left", || cluster.nodes[0].registry.is_empty()).await;
    tokio::time::sleep(SECOND).await;
    let before = writes.entries.lock().unwrap().len();
    writes.heads_stuck.store(true, Ordering::Relaxed);
    let gone = cluster.connect_with(1, hello(Some(&first)));
    // What became of the session before is noted, its parts are written, and no head names them.
    eventually("parts are written", || writes.entries.lock().unwrap().len() > before + 3).await;
    gone.vanish();
    eventually("it has left", || cluster.nodes[1].registry.is_empty()).await;
    writes.heads_stuck.store(false, Ordering::Relaxed);
    eventually("what is left is of the first", || writes.entries.lock().unwrap().len() <= before + 1).await;
    assert_eq!(restored_ids(&cluster, &first).await, Some(60));
}

#[tokio::test(start_paused = true)]
async fn row_12_what_a_client_may_not_have_any_more_is_deleted_where_the_smaller_session_is_refused() {
    for (fault, size) in [(Fault::Full, 10), (Fault::TooLarge, 10), (Fault::Full, 1_000), (Fault::TooLarge, 1_000)] {
        let writes = Arc::<Writes>::default();
        let cluster = streams_only(&writes, Setup::default());
        let (mut browser, sid) = cluster.welcomed().await;
        for n in 0..30 {
            browser.subscribed(&long(n, size)).await;
        }
        writes.fail(fault);
        // Together they need a part.
        (30..40).for_each(|n| browser.subscribe(&long(n, size)));
        browser.unsubscribe(&long(0, size));
        until(&cluster, &sid, "it is gone", |head| head.is_none()).await;
        for _ in 30..40 {
            assert_eq!(browser.next().await["type"], "confirm_subscription", "{fault:?}");
        }
        writes.fail(None);
        tokio::time::sleep(6 * SECOND).await;
        browser.subscribed(&long(50, size)).await;
        assert_eq!(restored_ids(&cluster, &sid).await, Some(40), "{fault:?}, {size}");
    }
}

#[tokio::test(start_paused = true)]
async fn row_12_the_deletion_of_a_session_that_did_not_fit_does_not_take_the_one_that_does() {
    let writes = Arc::<Writes>::default();
    let cluster = streams_only(&writes, Setup::default());
    let (mut browser, sid) = cluster.welcomed().await;
    browser.subscribed(&public("a")).await;
    browser.subscribed(&public("b")).await;
    writes.fail(Fault::Full);
    writes.take_long(SECOND / 2);
    browser.unsubscribe(&public("a"));
    tokio::time::sleep(Duration::from_millis(600)).await;
    // The deletion is under way; there is room again.
    writes.fail(None);
    writes.take_long(Duration::ZERO);
    browser.subscribed(&public("c")).await;
    until(&cluster, &sid, "it is stored", |head| head.is_some_and(|head| head.contains("\"c\\"))).await;
    tokio::time::sleep(5 * SECOND).await;
    assert_eq!(restored_ids(&cluster, &sid).await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn row_12_a_session_that_was_stored_without_an_answer_ends_the_one_before() {
    let writes = Arc::<Writes>::default();
    let cluster = streams_only(&writes, Setup::default());
    let (mut browser, first) = cluster.welcomed().await;
    (0..100).for_each(|n| browser.subscribe(&long(n, 500)));
    for _ in 0..100 {
        assert_eq!(browser.next().await["type"], "confirm_subscription");
    }
    browser.vanish();
    eventually("nobody is left", || cluster.nodes[0].registry.is_empty()).await;
    writes.fail(Fault::Unanswered);
    let mut back = cluster.connect_with(1, hello(Some(&first)));
    assert_eq!(back.next().await["restored_ids"].as_array().map(Vec::len), Some(100));
    writes.fail(None);
    for n in 0..2 {
        back.subscribed(&public(n)).await;
    }
    back.send(value!({ "command": "pong" }));
    until(&cluster, &first, "the session before is over", |head| head.is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn row_13_a_session_that_is_too_large_is_not_deleted_more_often_than_it_was_written() {
    let writes = Arc::<Writes>::default();
    let cluster = streams_only(&writes, Setup { max_session_size: Some(100_000), ..Setup::default() });
    let (mut browser, sid) = cluster.welcomed().await;
    (0..150).for_each(|n| browser.subscribe(&long(n, 1_000)));
    for _ in 0..150 {
        assert_eq!(browser.next().await["type"], "confirm_subscription");
    }
    until(&cluster, &sid, "it is gone", |head| head.is_none()).await;
    for _ in 0..30 {
        browser.unsubscribe(&long(0, 1_000));
        browser.subscribed(&long(0, 1_000)).await;
        tokio::time::sleep(6 * SECOND).await;
    }
    browser.vanish();
    eventually("nobody is left", || cluster.nodes[0].registry.is_empty()).await;
    tokio::time::sleep(10 * SECOND).await;
    let (written, _) = writes.take();
    let deleted = writes.deletions.load(Ordering::Relaxed);
    assert!(deleted <= written + 2, "{deleted} deletions of {written} entries");
}

#[tokio::test(start_paused = true)]
async fn row_13_parts_that_are_mostly_empty_do_not_make_a_session_too_large() {
    let writes = Arc::<Writes>::default();
    let cluster = streams_only(&writes, Setup { max_session_size: Some(170_000), ..Setup::default() });
    let (mut browser, sid) = cluster.welcomed().await;
    let subscribe = async |browser: &mut Browser, from: usize, to: usize| {
        (from..to).for_each(|n| browser.subscribe(&long(n, 200)));
        for _ in from..to {
            assert_eq!(browser.next().await["type"], "confirm_subscription");
        }
    };
    subscribe(&mut browser, 0, 160).await;
    assert!(head(&cluster, &sid).await.unwrap().contains("\"parts\""));
    (0..160).filter(|n| n % 5 > 2).for_each(|n| browser.unsubscribe(&long(n, 200)));
    subscribe(&mut browser, 160, 220).await;
    tokio::time::sleep(SECOND).await;
    let kept: usize = 96 + 60;
    assert_eq!(restored_ids(&cluster, &sid).await, Some(kept));
}

#[tokio::test(start_paused = true)]
async fn row_13_a_slow_store_is_given_a_large_session_once() {
    let writes = Arc::<Writes>::default();
    let cluster = streams_only(&writes, Setup::default());
    let (mut browser, sid) = cluster.welcomed().await;
    writes.take();
    // Longer than a command waits.
    writes.take_long(5 * SECOND);
    let count = 60;
    (0..count).for_each(|n| browser.subscribe(&long(n, 2_000)));
    for _ in 0..count {
        assert_eq!(browser.next().await["type"], "confirm_subscription");
    }
    for n in 0..10 {
        browser.subscribed(&public(n)).await;
    }
    until(&cluster, &sid, "it is stored", |head| head.is_some_and(|head| head.contains("\"parts\""))).await;
    tokio::time::sleep(20 * SECOND).await;
    let (_, bytes) = writes.take();
    // The name is in the identifier, and in what follows from it.
    let size = count as u64 * 4 * 2_000;
    assert!(bytes < size * 3 / 2, "{bytes} bytes for {size}");
    writes.take_long(Duration::ZERO);
    assert_eq!(restored_ids(&cluster, &sid).await, Some(count + 10));
}

/// What the store refuses so of a session with parts is not offered with each command, and is once it takes them again.
pub(super) async fn rests(fault: Fault) {
    let writes = Arc::<Writes>::default();
    let cluster = streams_only(&writes, Setup::default());
    let (mut browser, sid) = cluster.welcomed().await;
    writes.fail(fault);
    writes.take();
    (0..100).for_each(|n| browser.subscribe(&long(n, 1_000)));
    for _ in 0..100 {
        assert_eq!(browser.next().await["type"], "confirm_subscription");
    }
    for n in 0..200 {
        browser.subscribed(&public(n)).await;
    }
    let (number, _) = writes.take();
    assert!(number < 30, "{number} writes");
    writes.fail(None);
    tokio::time::sleep(6 * SECOND).await;
    browser.subscribed(&public("last")).await;
    assert_eq!(restored_ids(&cluster, &sid).await, Some(301));
}

/// A part that was not taken is not left behind.
#[tokio::test(start_paused = true)]
async fn row_13_without_room_for_its_parts_a_session_rests() {
    rests(Fault::Full).await;
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_never_succeeds_pauses() {
    let writes = Arc::<Writes>::default();
    let cluster = streams_only(&writes, Setup::default());
    let (browser, sid) = cluster.welcomed().await;
    writes.fail(Fault::Stubborn);
    stored::forget(&cluster.nodes[0], SessionKey::of(&sid));
    tokio::time::sleep(5 * SECOND + SECOND / 4).await;
    let tries = writes.deletions.load(Ordering::Relaxed);
    assert!((20..=120).contains(&tries), "{tries} tries in 5 s");
    writes.fail(None);
    until(&cluster, &sid, "it is gone", |head| head.is_none()).await;
    drop::<(Browser, Value)>((browser, Value::Null));
}

/// All of what is stored of a session can be used.
pub(super) async fn is_complete(cluster: &Cluster, sid: &str) -> bool {
    let key = SessionKey::of(sid);
    match cluster.broker.load_session(&key).await.unwrap() {
        Some(head) => stored::complete(&cluster.nodes[1], &key, head).await.unwrap().is_some(),
        None => false,
    }
}

/// Proofs of what was not missed do not grow old before half of `sessions_ttl` is over, which is 300 s here.
pub(super) fn written_rarely() -> Setup {
    Setup { history_ttl: Some(1_200 * SECOND), ..Setup::default() }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_dies_right_before_it_writes_a_session_anew_leaves_all_of_its_time() {
    for parts in [false, true] {
        let writes = Arc::<Writes>::default();
        let cluster = streams_only(&writes, written_rarely());
        let (mut browser, sid) = cluster.welcomed().await;
        let size = if parts { 1_000 } else { 10 };
        for n in 0..20 {
            browser.subscribed(&long(n, size)).await;
        }
        assert_eq!(head(&cluster, &sid).await.unwrap().contains("\"parts\""), parts);
        tokio::time::sleep(149 * SECOND).await;
        // Nothing of it reaches the store any more.
        writes.stuck.store(true, Ordering::Relaxed);
        tokio::time::sleep(300 * SECOND).await;
        assert!(is_complete(&cluster, &sid).await, "with parts: {parts}");
        tokio::time::sleep(5 * SECOND).await;
        assert!(head(&cluster, &sid).await.is_none(), "no longer than that, and the time for the write");
    }
}

#[tokio::test(start_paused = true)]
async fn the_parts_of_a_session_outlive_a_head_that_was_written_right_before_its_node_died() {
    let writes = Arc::<Writes>::default();
    let cluster = streams_only(&writes, written_rarely());
    let (mut browser, sid) = cluster.welcomed().await;
    for n in 0..20 {
        browser.subscribed(&long(n, 1_000)).await;
    }
    tokio::time::sleep(149 * SECOND).await;
    writes.take();
    browser.subscribed(&public("late")).await;
    let (number, _) = writes.take();
    assert_eq!(number, 1, "the head alone");
    writes.stuck.store(true, Ordering::Relaxed);
    tokio::time::sleep(451 * SECOND + SECOND / 2).await;
    assert!(is_complete(&cluster, &sid).await);
    tokio::time::sleep(5 * SECOND).await;
    assert!(head(&cluster, &sid).await.is_none());
}

/// One write more than before is not needed for that: the last one was always made.
#[tokio::test(start_paused = true)]
async fn a_session_whose_connection_has_ended_lives_for_its_time_and_no_longer_although_nothing_had_changed() {
    for after in [1, 149, 151, 1_000] {
        let writes = Arc::<Writes>::default();
        let cluster = streams_only(&writes, Setup::default());
        let (mut browser, sid) = cluster.welcomed().await;
        browser.subscribed(&public("a")).await;
        tokio::time::sleep(after * SECOND).await;
        writes.take();
        browser.vanish();
        eventually("it has left", || cluster.nodes[0].registry.is_empty()).await;
        let (number, _) = writes.take();
        assert_eq!(number, 1);
        tokio::time::sleep(299 * SECOND).await;
        assert!(is_complete(&cluster, &sid).await, "after {after} s");
        tokio::time::sleep(2 * SECOND).await;
        assert!(head(&cluster, &sid).await.is_none(), "after {after} s");
    }
}

#[tokio::test(start_paused = true)]
async fn a_deletion_is_tried_again_for_as_long_as_a_session_lives_whose_connection_stood() {
    let writes = Arc::<Writes>::default();
    let cluster = streams_only(&writes, Setup::default());
    let (browser, sid) = cluster.welcomed().await;
    writes.fail(Fault::Away);
    stored::forget(&cluster.nodes[0], SessionKey::of(&sid));
    tokio::time::sleep(400 * SECOND).await;
    assert!(head(&cluster, &sid).await.is_some());
    writes.fail(None);
    until(&cluster, &sid, "it is gone", |head| head.is_none()).await;
    drop::<Browser>(browser);
}
