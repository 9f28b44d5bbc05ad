//! What becomes of saved sessions where the store has little room for them, or none.

use super::saving::*;
use super::store::{Fault, Writes};
use super::supersede::fill;
use super::*;
use crate::broker::SessionKey;
use crate::session::SavedSession;
use tokio::time::Instant;

async fn subscribe_all(browser: &mut Browser, numbers: std::ops::Range<usize>, size: usize) {
    let count = numbers.len();
    numbers.for_each(|n| browser.subscribe(&long(n, size)));
    for _ in 0..count {
        assert_eq!(browser.next().await["type"], "confirm_subscription");
    }
}

/// What is stored never vanishes until this holds for it.
async fn stays_until(cluster: &Cluster, sid: &str, what: &str, holds: impl Fn(&str) -> bool) {
    for _ in 0..2_000 {
        let head = head(cluster, sid).await.unwrap_or_else(|| panic!("it was deleted before: {what}"));
        if holds(&head) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("20 s have passed without: {what}");
}

/// The store is slow: what is refused is of a time when the client had more.
#[tokio::test(start_paused = true)]
async fn row_12_a_smaller_session_is_offered_before_what_is_stored_is_deleted() {
    let writes = Arc::<Writes>::default();
    let setup = Setup { sessions_budget: 20_000, ..Setup::default() };
    let cluster = streams_only(&writes, setup);
    let (mut browser, sid) = cluster.welcomed().await;
    for name in ["leaves", "stays"] {
        browser.subscribed(&public(name)).await;
    }
    fill(&cluster).await;
    // Longer than a command waits.
    writes.take_long(3 * SECOND);
    browser.subscribed(&public("grows")).await;
    browser.unsubscribe(&public("grows"));
    browser.unsubscribe(&public("leaves"));
    stays_until(&cluster, &sid, "it is smaller", |head| !head.contains("leaves")).await;
    writes.take_long(Duration::ZERO);
    assert_eq!(restored_ids(&cluster, &sid).await, Some(1));
}

/// Its parts were refused a moment ago.
#[tokio::test(start_paused = true)]
async fn row_12_a_smaller_session_is_offered_although_a_larger_one_was_refused_a_moment_ago() {
    for fault in [Fault::Full, Fault::TooLarge] {
        let writes = Arc::<Writes>::default();
        let cluster = streams_only(&writes, Setup::default());
        let (mut browser, sid) = cluster.welcomed().await;
        subscribe_all(&mut browser, 0..30, 1_000).await;
        writes.fail(fault);
        subscribe_all(&mut browser, 30..40, 1_000).await;
        writes.fail(None);
        // What is left of the change needs a part, too.
        let before = head(&cluster, &sid).await.unwrap();
        browser.unsubscribe(&long(0, 1_000));
        stays_until(&cluster, &sid, "it is written", |head| head != before).await;
        assert_eq!(restored_ids(&cluster, &sid).await, Some(39), "{fault:?}");
    }
}

/// A head and all of what it names, with the bytes that they take.
async fn size(cluster: &Cluster, sid: &str) -> usize {
    let key = SessionKey::of(sid);
    let head = cluster.broker.load_session(&key).await.unwrap().unwrap().body;
    let mut size = head.len();
    for part in SavedSession::decode(&head).unwrap().parts() {
        let place = crate::node::stored::place(&key, part.number);
        size += cluster.broker.load_session(&place).await.unwrap().map_or(0, |part| part.body.len());
    }
    size
}

const ROOMY: usize = 40_000;

/// A session of several parts, in a share that has room for one of them besides, and not for all.
async fn tight(writes: &Arc<Writes>) -> (Cluster, Browser, String) {
    // What it takes is found where there is room for everything.
    let measured = {
        let cluster = streams_only(&Arc::default(), written_rarely());
        let (mut browser, sid) = cluster.welcomed().await;
        subscribe_all(&mut browser, 0..60, 1_000).await;
        size(&cluster, &sid).await
    };
    assert!(measured > 4 * ROOMY, "{measured}");
    let sessions_budget = (measured + ROOMY) as u64;
    let cluster = streams_only(writes, Setup { sessions_budget, ..written_rarely() });
    let (mut browser, sid) = cluster.welcomed().await;
    subscribe_all(&mut browser, 0..60, 1_000).await;
    assert!(is_complete(&cluster, &sid).await);
    (cluster, browser, sid)
}

#[tokio::test(start_paused = true)]
async fn row_12_a_large_session_in_a_share_without_room_for_it_twice_lives_as_long_as_its_connection() {
    for with_commands in [false, true] {
        let (cluster, mut browser, sid) = tight(&Arc::default()).await;
        for n in 0..60 {
            tokio::time::sleep(50 * SECOND).await;
            if with_commands {
                browser.subscribed(&public("now and then")).await;
                browser.unsubscribe(&public("now and then"));
                tokio::time::sleep(SECOND).await;
            }
            assert!(is_complete(&cluster, &sid).await, "after {} s, with commands: {with_commands}", n * 50);
        }
        browser.vanish();
        eventually("it has left", || cluster.nodes[0].registry.is_empty()).await;
        tokio::time::sleep(299 * SECOND).await;
        assert!(is_complete(&cluster, &sid).await, "with commands: {with_commands}");
        tokio::time::sleep(3 * SECOND).await;
        assert!(head(&cluster, &sid).await.is_none(), "with commands: {with_commands}");
    }
}

/// Its node may die between any two of them.
#[tokio::test(start_paused = true)]
async fn row_12_a_session_that_is_written_anew_part_by_part_is_whole_after_each_write() {
    let writes = Arc::<Writes>::default();
    let (cluster, mut browser, sid) = tight(&writes).await;
    let parts = async || {
        let head = cluster.broker.load_session(&SessionKey::of(&sid)).await.unwrap().unwrap();
        SavedSession::decode(&head.body).unwrap().parts().iter().map(|part| part.number).collect::<Vec<_>>()
    };
    let before = parts().await;
    writes.take_long(SECOND / 10);
    tokio::time::sleep(149 * SECOND).await;
    let mut seen = vec![before.clone()];
    for _ in 0..1_500 {
        tokio::time::sleep(SECOND / 100).await;
        assert!(is_complete(&cluster, &sid).await);
        let now = parts().await;
        if seen.last() != Some(&now) {
            seen.push(now);
        }
    }
    assert!(seen.len() > 4, "one after the other: {seen:?}");
    assert!(parts().await.iter().all(|part| !before.contains(part)), "all of them: {seen:?}");
    // Commands do not wait for all of that.
    tokio::time::sleep(135 * SECOND + SECOND / 2).await;
    let begun = Instant::now();
    browser.subscribed(&public("late")).await;
    assert!(begun.elapsed() < 2 * SECOND, "{:?}", begun.elapsed());
    // What it wrote is all that is left.
    tokio::time::sleep(20 * SECOND).await;
    let named = parts().await.len();
    let key = SessionKey::of(&sid);
    assert_eq!(writes.entries.lock().unwrap().iter().filter(|entry| **entry != key).count(), named);
}

/// Then it has the life of its parts.
#[tokio::test(start_paused = true)]
async fn row_12_a_large_session_without_room_for_another_part_is_resumable_until_its_parts_expire() {
    let setup = Setup { sessions_budget: 300_000, ..written_rarely() };
    let cluster = streams_only(&Arc::default(), setup);
    let (mut browser, sid) = cluster.welcomed().await;
    subscribe_all(&mut browser, 0..30, 1_000).await;
    for n in 0..14 {
        fill(&cluster).await;
        tokio::time::sleep(50 * SECOND).await;
        assert!(is_complete(&cluster, &sid).await, "after {} s", n * 50);
    }
    // There is room again.
    cluster.broker.delete_session(&SessionKey::of("filler"), None).await.unwrap();
    for n in 0..20 {
        tokio::time::sleep(50 * SECOND).await;
        assert!(is_complete(&cluster, &sid).await, "{} s after there was room", n * 50);
    }
    drop::<Browser>(browser);
}

#[tokio::test(start_paused = true)]
async fn row_13_a_session_whose_head_the_store_does_not_take_rests() {
    rests(Fault::HeadsTooLarge).await;
}

/// More came while they were written, so that further parts were begun before there was a head.
#[tokio::test(start_paused = true)]
async fn row_13_parts_that_no_head_was_to_name_yet_are_not_left_behind() {
    let writes = Arc::<Writes>::default();
    let cluster = streams_only(&writes, Setup::default());
    let (mut browser, sid) = cluster.welcomed().await;
    writes.take_long(3 * SECOND);
    subscribe_all(&mut browser, 0..60, 1_000).await;
    subscribe_all(&mut browser, 60..120, 1_000).await;
    eventually("parts are written", || writes.entries.lock().unwrap().len() > 4).await;
    writes.stuck.store(true, Ordering::Relaxed);
    tokio::time::sleep(3 * SECOND).await;
    browser.vanish();
    eventually("it has left", || cluster.nodes[0].registry.is_empty()).await;
    writes.stuck.store(false, Ordering::Relaxed);
    let is_left = || writes.entries.lock().unwrap().iter().all(|key| *key == SessionKey::of(&sid));
    eventually("its head is left", is_left).await;
    assert!(!head(&cluster, &sid).await.unwrap().contains("\"parts\""), "it names none of them");
}
