//! Commands whose connection ends while they are executed.

use super::*;

const A: &str = r#"{"channel":"$pubsub","stream_name":"a"}"#;

/// What the store keeps of a session whose unsubscription it did not take must not be resumed.
#[tokio::test(start_paused = true)]
async fn row_05_an_unsubscription_holds_although_its_connection_ends_first() {
    let writes = Arc::<store::Writes>::default();
    let setup = Setup { noauth: true, no_application: true, writes: writes.clone(), ..Setup::default() };
    let cluster = Cluster::with(Script::default(), setup);
    let (mut browser, sid) = cluster.welcomed().await;
    browser.subscribed(A).await;
    writes.stuck.store(true, Ordering::Relaxed);
    browser.unsubscribe(A);
    tokio::time::sleep(SECOND / 4).await;
    browser.vanish();
    eventually("nobody is left", || cluster.nodes[0].registry.is_empty()).await;
    writes.stuck.store(false, Ordering::Relaxed);
    tokio::time::sleep(2 * SECOND).await;
    let mut back = cluster.connect_with(1, hello(Some(&sid)));
    let welcome = back.next().await;
    assert_eq!((&welcome["type"], &welcome["restored_ids"]), (&"welcome".into(), &serde_json::Value::Null));
}
