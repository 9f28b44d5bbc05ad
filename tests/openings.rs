//! Streams that are asked for while NATS does not answer: more than any queue holds, by clients that wait and by clients
//! that give up. And thousands of open streams of which something was lost at once.

use crate::harness::backend::unused_prefix;
use crate::harness::client::Event;
use crate::harness::proxy::NatsProxy;
use crate::harness::*;
use futures_util::future::join_all;
use serde_json::json;
use std::time::{Duration, Instant};

const CLIENTS: usize = 10;
const STREAMS: usize = 2_000;
/// 20,000 openings begin within it, on a busy machine too.
const BROKER_TIMEOUT: Duration = Duration::from_secs(8);

fn channel(client: usize) -> String {
    json!({"channel": "Chat", "client": client}).to_string()
}

/// An application whose clients follow many streams each.
fn application() -> Application {
    Application::start(Wire::Grpc, |call| match (call.command(), call.param("client").as_u64()) {
        ("subscribe", Some(client)) => {
            let streams = (0..STREAMS).map(|stream| format!("openings/{client}/{stream}"));
            streams.fold(Reply::confirm(call), |reply, stream| reply.stream(&stream))
        }
        _ => Reply::usual(call),
    })
}

/// Clients whose subscriptions wait for a frozen NATS: 20,000 streams.
async fn waiting(server: &Server, nats: &NatsServer) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(server.connect().await);
    }
    nats.freeze();
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(json!({"command": "subscribe", "identifier": channel(number)})).await;
        let pending = i64::try_from((number + 1) * STREAMS).expect("a small number");
        server.metric_becomes("broadcast_streams_num", pending).await;
    }
    clients
}

#[tokio::test]
async fn row_05_openings_end_in_time_and_can_be_repeated_however_many_are_pending() {
    let (app, nats) = (application(), NatsServer::start());
    let options = app.behind(Backend::on_nats(&nats.url(), &unused_prefix()));
    let server = options.option("broker_timeout", BROKER_TIMEOUT.as_secs()).start();
    let clients = waiting(&server, &nats).await;
    let began = Instant::now();
    let (mut patient, mut impatient) = (Vec::new(), Vec::new());
    for (number, client) in clients.into_iter().enumerate() {
        if number % 2 == 0 { patient.push(client) } else { impatient.push(client.drop_hard()) }
    }
    for client in &mut patient {
        client.expect_close(1013, "Store unavailable").await;
    }
    let waited = began.elapsed();
    assert!(waited < BROKER_TIMEOUT * 2, "closed after {waited:?}");
    nats.thaw();
    eventually("ready", async || server.is_ready().await.then_some(())).await;
    // All of them come back while their streams linger; on a busy machine the store may not have caught up at once.
    join_all((0..CLIENTS).map(async |number| {
        eventually("the client follows its streams", async || {
            let mut client = server.connect().await;
            client.send(json!({"command": "subscribe", "identifier": channel(number)})).await;
            match client.event().await {
                Event::Frame(text) => text.contains("confirm_subscription").then_some(()),
                Event::Closed(..) | Event::Lost => None,
            }
        })
        .await;
    }))
    .await;
    println!("waiting clients were closed within {waited:?}");
}

#[tokio::test]
async fn row_05_what_nobody_waits_for_any_more_is_not_subscribed() {
    let (app, nats) = (application(), NatsServer::start());
    let options = app.behind(Backend::on_nats(&nats.url(), &unused_prefix()));
    let server = options.option("stream_linger", "100ms").option("broker_timeout", BROKER_TIMEOUT.as_secs()).start();
    let before = nats.subscriptions().await;
    for client in waiting(&server, &nats).await {
        client.drop_hard();
    }
    server.metric_becomes("broadcast_streams_num", 0).await;
    nats.thaw();
    eventually("ready", async || server.is_ready().await.then_some(())).await;
    // What is opened from now on stands behind everything that was asked for.
    let mut client = server.connect().await;
    client.subscribe(&json!({"channel": "Chat", "streams": ["later"]}).to_string()).await;
    let left = eventually("subscriptions are counted", async || {
        let now = nats.subscriptions().await;
        (now <= before + 1).then_some(now)
    })
    .await;
    println!("{before} subscriptions before, {left} after, one of them wanted");
}

#[tokio::test]
async fn row_06_holes_that_come_together_are_read_together() {
    let (app, nats, prefix) = (application(), NatsServer::start(), unused_prefix());
    let proxy = NatsProxy::start(nats.address());
    let behind = |url: &str| app.behind(Backend::on_nats(url, &prefix).option("head_check_interval", 1));
    let (deaf, whole) = (behind(&proxy.url()).start(), behind(&nats.url()).start());
    // Of a log that has never had a message nothing is known of when it had none: streams that keep nothing are read once.
    whole.accepted(json!({"stream": "openings/first", "data": "1"})).await;
    let mut client = deaf.connect().await;
    client.subscribe(&channel(0)).await;

    let before = nats.received().await;
    proxy.lose_live(0, STREAMS as u64);
    let items: Vec<_> =
        (0..STREAMS).map(|stream| json!({"stream": format!("openings/0/{stream}"), "data": "1"})).collect();
    for batch in items.chunks(500) {
        whole.accepted(json!(batch)).await;
    }
    for _ in 0..STREAMS {
        client.expect_message(&channel(0), json!(1)).await;
    }
    assert_eq!(proxy.lost(), STREAMS as u64, "the fault acted");
    client.expect_silence().await;
    assert_eq!(deaf.metric("feed_gaps_repaired_total").await, STREAMS as i64);
    let requests = nats.received().await - before - STREAMS as u64;
    println!("{requests} requests for {STREAMS} holes");
    assert!(requests < STREAMS as u64, "{requests} requests for {STREAMS} holes");
}
