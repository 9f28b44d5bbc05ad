//! Faults of the program while it serves a client: nothing of the client stays behind.

use super::*;

const CHAT: &str = r#"{"channel":"Chat","id":1}"#;

/// Whoever still holds something of a client holds its outbox: registry, streams, and what runs for it.
async fn nothing_is_left(cluster: &Cluster, browser: &Browser) {
    eventually("the outbox is ours alone", || Arc::strong_count(&browser.outbox) == 1).await;
    assert!(cluster.nodes[0].registry.is_empty());
    assert!(browser.outbox.is_over(), "its socket is closed");
}

#[tokio::test(start_paused = true)]
async fn row_11_a_panic_in_a_command_leaves_nothing_of_its_client() {
    let app = Script::on_command(|call| {
        assert!(call.kind != CommandKind::Message, "a fault of the program");
        Ok(confirmed(call, &["a", "b"]))
    });
    let cluster = Cluster::new(app);
    let (mut browser, sid) = cluster.welcomed().await;
    let (mut other, _) = cluster.welcomed().await;
    browser.subscribed(CHAT).await;
    other.subscribed(CHAT).await;
    browser.perform(CHAT, "{}");
    eventually("the outbox is ours alone", || Arc::strong_count(&browser.outbox) == 1).await;
    assert!(browser.outbox.is_over(), "its socket is closed");
    assert_eq!(cluster.nodes[0].registry.len(), 1, "the other client is still there");
    eventually("the application is told", || !cluster.app.disconnects().is_empty()).await;
    let told: Vec<_> = cluster.app.disconnects();
    assert_eq!((told.len(), told[0].subscriptions.as_slice()), (1, &[CHAT.to_owned()][..]));
    cluster.publish("a", "x").await;
    assert_eq!(other.next().await["message"], "x");
    // What was saved of it survives the fault.
    let mut back = cluster.connect_with(0, hello(Some(&sid)));
    assert_eq!(back.next().await["restored"], true);
}

#[tokio::test(start_paused = true)]
async fn row_11_a_panic_while_a_client_is_let_in_leaves_nothing_of_it() {
    let cluster = Cluster::new(Script::on_connect(|_, _| panic!("a fault of the program")));
    let browser = cluster.connect();
    eventually("the outbox is ours alone", || Arc::strong_count(&browser.outbox) == 1).await;
    assert!(cluster.nodes[0].registry.is_empty());
}

/// The task of a connection may also be dropped at any point, as it is when a runtime ends.
#[tokio::test(start_paused = true)]
async fn row_11_a_dropped_connection_leaves_nothing_of_its_client() {
    let cluster = Cluster::new(Script::default());
    let outbox = Arc::new(Outbox::new(Encoding::Json, 1 << 20));
    let (commands, source) = mpsc::unbounded_channel();
    let driving = tokio::spawn(drive(cluster.nodes[0].clone(), hello(None), Source(source), outbox.clone()));
    let mut browser = Browser { outbox, commands, frames: VecDeque::new() };
    assert_eq!(browser.next().await["type"], "welcome");
    browser.subscribed(CHAT).await;
    driving.abort();
    nothing_is_left(&cluster, &browser).await;
    eventually("the application is told", || cluster.app.disconnects().len() == 1).await;
}
