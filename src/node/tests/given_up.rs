//! A restored session's connection ends before it could be noted that the session before is over.

use super::saving::*;
use super::store::{Fault, Writes};
use super::supersede::{elsewhere, noted};
use super::*;
use crate::broker::Over;
use serde_json::{Value, json as value};

/// Stops what it follows.
fn stopping() -> Script {
    Script::on_command(|call| match call.kind {
        CommandKind::Message => {
            let transmissions = vec![said(&call.identifier, value!("stopped"))];
            Ok(CommandEffects { stop_streams: true, transmissions, ..nothing(Outcome::Success) })
        }
        _ => Ok(confirmed(call, &["a"])),
    })
}

const CHAT: &str = r#"{"channel":"Chat"}"#;

/// The connection before is half-open, and would take its entry for lost.
#[tokio::test(start_paused = true)]
async fn row_12_what_was_taken_away_does_not_come_back_with_a_half_open_connection_of_the_session_before() {
    for node in [0, 1] {
        let writes = Arc::<Writes>::default();
        let cluster = Cluster::with(stopping(), Setup { writes: writes.clone(), ..Setup::default() });
        let (mut old, first) = cluster.welcomed().await;
        old.subscribed(CHAT).await;
        let (mut restored, _) = cluster.welcomed_with(node, hello(Some(&first))).await;
        writes.fail(Fault::Away);
        tokio::time::sleep(SECOND / 100).await;
        restored.perform(CHAT, "{}");
        assert_eq!(restored.next().await["message"], "stopped");
        restored.vanish();
        eventually("it has left", || cluster.nodes.iter().map(|node| node.registry.len()).sum::<usize>() == 1).await;
        writes.fail(None);
        assert_eq!(old.next().await, elsewhere(), "node {node}");
        assert_eq!(noted(&cluster, &first).await, Some(Over::Replaced));
        until(&cluster, &first, "it is gone", |head| head.is_none()).await;
        tokio::time::sleep(400 * SECOND).await;
        assert_eq!(restored_ids(&cluster, &first).await, None, "node {node}");
    }
}

/// Nothing was delivered to it any more, because it may have been told to leave.
#[tokio::test(start_paused = true)]
async fn row_12_the_session_before_that_of_a_suspended_client_is_not_written_again() {
    let cluster = Cluster::new(Script::default());
    let (mut old, first) = cluster.welcomed().await;
    old.subscribed(CHAT).await;
    let (silent, second) = cluster.welcomed_with(1, hello(Some(&first))).await;
    cluster.nodes[1].registry.all().iter().for_each(|handle| handle.suspend());
    silent.vanish();
    assert_eq!(old.next().await, elsewhere());
    assert_eq!(noted(&cluster, &first).await, Some(Over::Replaced));
    for sid in [&first, &second] {
        until(&cluster, sid, "it is gone", |head| head.is_none()).await;
        let mut back = cluster.connect_with(0, hello(Some(sid)));
        assert_eq!(back.next().await["restored"], Value::Null);
    }
}
