//! Lines that everybody would cause who waits while the application or the store is away, full, or has lost something.

use super::*;
use crate::harness::backend::{shared_nats, unused_prefix};
use crate::harness::proxy::NatsProxy;
use futures_util::future::join_all;
use std::collections::BTreeSet;

#[tokio::test]
async fn row_17_calls_that_are_made_again_do_not_fill_the_log() {
    let app = Application::start(Wire::Http, |call| match call.command() {
        "message" => Fault::Cut.into(),
        _ => Reply::usual(call),
    });
    let server = app.server().option("rpc_command_timeout", 5_000).start();
    let identifier = json!({"channel": "Chat"}).to_string();
    let begun = Instant::now();
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = server.connect().await;
        client.subscribe(&identifier).await;
        client.send(action(&identifier)).await;
        clients.push(client);
    }
    server.metric_becomes("failed_client_msg_total", 20).await;
    let repeated = server.metric("rpc_uncertain_retries_total").await.unsigned_abs();
    assert!(repeated >= 10, "{repeated}");
    told_once(server, begun, repeated, "call_repeated", "is made again");
}

#[tokio::test]
async fn row_17_clients_that_leave_do_not_fill_the_log() {
    let app = Application::start(Wire::Http, |call| match call.method {
        Method::Disconnect => Reply::error("no"),
        _ => Reply::usual(call),
    });
    let server = app.server().start();
    let begun = Instant::now();
    for _ in 0..50 {
        server.connect().await.drop_hard();
    }
    app.called(Method::Disconnect, 50).await;
    server.metric_becomes("rpc_error_total", 50).await;
    told_once(server, begun, 50, "disconnect_not_told", "could not be told");
}

/// Each stream keeps one message, and the live one before it is lost.
#[tokio::test]
async fn row_17_streams_that_lose_messages_do_not_fill_the_log() {
    const STREAMS: u64 = 60;
    let (proxy, prefix) = (NatsProxy::start(shared_nats().address()), unused_prefix());
    let settings = |builder: carrick::Builder| {
        let builder = builder.option("history_limit", 1).option("head_check_interval", 60);
        builder.option("metrics_http", "/metrics")
    };
    let publisher = settings(Backend::on_nats(&shared_nats().url(), &prefix)).start();
    let server = settings(Backend::on_nats(&proxy.url(), &prefix)).start();
    let mut client = server.connect().await;
    let streams: BTreeSet<_> = (0..STREAMS).map(|number| format!("chat/{number}")).collect();
    for stream in &streams {
        client.subscribe(&public(stream)).await;
        publisher.publish(stream, json!("before")).await;
        client.expect_message(&public(stream), json!("before")).await;
    }
    let begun = Instant::now();
    proxy.lose_live(0, STREAMS);
    for stream in &streams {
        publisher.publish(stream, json!("lost")).await;
    }
    eventually("all were lost on the way", async || (proxy.lost() == STREAMS).then_some(())).await;
    for stream in &streams {
        publisher.publish(stream, json!("after")).await;
    }
    server.metric_becomes("feed_gaps_lost_total", STREAMS.cast_signed()).await;
    told_once(server, begun, STREAMS, "messages_lost", "messages were lost before this node");
}

#[tokio::test]
async fn row_17_commands_that_cannot_be_read_do_not_fill_the_log() {
    let prefix = unused_prefix();
    let server = Backend::on_nats(&shared_nats().url(), &prefix).start();
    let log = async_nats::jetstream::new(shared_nats().operator().await);
    let begun = Instant::now();
    for _ in 0..100 {
        let stored = log.publish(format!("{prefix}.ctl.x"), "nonsense".into()).await.expect("it is sent");
        stored.await.expect("it is stored");
    }
    let told = async || Told::of(&server, "unreadable_command", "unreadable remote command");
    eventually("one is told of", async || (told().await.lines > 0).then_some(())).await;
    // What is stored is passed on in order: when this one is heard the others have been.
    let mut client = server.connect().await;
    let identifiers = json!({"sid": client.sid}).to_string();
    server.disconnect(&identifiers, false).await;
    while !matches!(client.event().await, client::Event::Closed(..) | client::Event::Lost) {}
    told_once(server, begun, 100, "unreadable_command", "unreadable remote command");
}

/// There is room again every few seconds, and not for long.
#[tokio::test]
async fn row_17_a_memory_that_is_full_again_and_again_does_not_fill_the_log() {
    let builder = server().option("memory_history_size", 100_000).option("history_ttl", 4).option("dedup_window", 1);
    let server = builder.start();
    let begun = Instant::now();
    let body = json!({"stream": "chat", "data": json!("x".repeat(20_000)).to_string()}).to_string();
    for _ in 0..3 {
        let mut kept = 0;
        while server.post(&body).await.status == 201 {
            kept += 1;
            assert!(kept < 100, "messages age out faster than they come");
        }
        eventually("there is room", async || (server.metric("memory_history_bytes").await < 50_000).then_some(()))
            .await;
    }
    told_once(server, begun, 3, "memory_full", "the memory for history is full");
}

/// Calls about who left wait in the store, each with the address that its client came by.
#[tokio::test]
async fn row_17_clients_that_leave_with_long_addresses_do_not_fill_the_log() {
    let app = Application::usual(Wire::Http);
    let builder = app.behind(Backend::on_nats(&shared_nats().url(), &unused_prefix()));
    let server = builder.option("disconnect_grace", 60).start();
    let begun = Instant::now();
    let padding = format!("padding={}", "x".repeat(50_000));
    for turn in 1..=6 {
        let dials: Vec<_> = (0..50).map(|_| server.dial().query(&padding)).collect();
        let clients = join_all(dials.iter().map(|dial| dial.connect())).await;
        for client in clients {
            client.drop_hard();
        }
        server.metric_becomes("disconnect_queue_size", turn * 50).await;
    }
    let says = "a page of waiting calls is full";
    eventually("pages are full", async || (Told::of(&server, "disconnect_page_full", says).lines > 0).then_some(()))
        .await;
    told_seldom(server, begun, 10, "disconnect_page_full", says);
}

/// It comes and goes, and somebody calls it all the time.
#[tokio::test]
async fn row_17_an_application_that_comes_and_goes_does_not_fill_the_log() {
    const TURNS: u64 = 6;
    let mut app = Application::usual(Wire::Grpc);
    let server = app.server().option("rpc_command_timeout", 5_000).start();
    let mut client = server.connect().await;
    let identifier = json!({"channel": "Chat"}).to_string();
    client.subscribe(&identifier).await;
    let begun = Instant::now();
    for _ in 0..TURNS {
        app.kill();
        let failed = server.metric("failed_client_msg_total").await;
        client.send(action(&identifier)).await;
        server.metric_becomes("failed_client_msg_total", failed + 1).await;
        app.restart();
        eventually("it is called again", async || {
            let before = app.calls_of(Method::Command).len();
            client.send(action(&identifier)).await;
            client.barrier().await;
            (app.calls_of(Method::Command).len() > before).then_some(())
        })
        .await;
    }
    for (event, says) in [("application_lost", "connection is lost"), ("application_found", "connection is restored")] {
        let told = Told::of(&server, event, says);
        println!("{event}: {} lines for {TURNS}", told.lines);
        assert!(told.lines <= begun.elapsed().as_secs() / PERIOD.as_secs() + 1, "{} lines", told.lines);
    }
}

/// Whoever waits for NATS is told so; the log says it once.
#[tokio::test]
async fn row_17_an_outage_of_nats_is_told_once_whoever_waits() {
    let mut nats = NatsServer::start();
    let builder = Backend::on_nats(&nats.url(), "outage").option("publish_timeout", 5).option("broker_timeout", 5);
    let server = builder.start();
    let mut sids = Vec::new();
    for _ in 0..50 {
        sids.push(server.subscriber("chat").await.drop_hard());
    }
    let before = server.log().lines().count();
    nats.kill();
    eventually("it is noticed", async || (!server.is_ready().await).then_some(())).await;
    join_all(sids.iter().map(async |sid| {
        assert_eq!(server.post(r#"{"stream":"chat","data":"1"}"#).await.status, 503);
        until_end(server.dial().sid(sid).open().await).await;
    }))
    .await;
    nats.restart();
    eventually("ready", async || server.is_ready().await.then_some(())).await;
    let log = server.log();
    let lines: Vec<_> = log.lines().skip(before).collect();
    println!("{} lines for 50 publications and 50 clients", lines.len());
    assert!(lines.len() < 10, "{lines:#?}");
}

/// Of several servers another one is tried first each time.
#[tokio::test]
async fn row_17_servers_that_are_away_are_told_of_once() {
    let servers: Vec<_> = (0..3).map(|_| format!("nats://127.0.0.1:{}", free_port())).collect();
    let server = Backend::on_nats(&servers.join(","), "away").option("metrics_http", "/metrics").start_unready();
    let (begun, says) = (Instant::now(), "NATS is not available");
    eventually("it is told", async || server.log().contains(says).then_some(())).await;
    // Several attempts later.
    patience::let_pass(Duration::from_secs(5)).await;
    let lines = server.log().lines().filter(|line| line.contains(says)).count();
    let periods = begun.elapsed().as_secs() as usize / PERIOD.as_secs() as usize + 1;
    println!("{lines} lines in {:?}", begun.elapsed());
    assert!((1..=periods).contains(&lines), "{}", server.log());
}

/// Each time that it is away somebody leaves whom it must be told of.
#[tokio::test]
async fn row_17_an_application_that_is_told_late_again_and_again_does_not_fill_the_log() {
    const TURNS: usize = 4;
    let mut app = Application::usual(Wire::Grpc);
    let server = app.server().option("rpc_command_timeout", 5_000).start();
    let mut clients = Vec::new();
    for _ in 0..TURNS {
        clients.push(server.connect().await);
    }
    let begun = Instant::now();
    for (told, client) in clients.into_iter().enumerate() {
        let failed = server.metric("rpc_error_total").await;
        app.kill();
        client.drop_hard();
        eventually("it is not reached", async || (server.metric("rpc_error_total").await > failed).then_some(())).await;
        app.restart();
        app.called(Method::Disconnect, told + 1).await;
    }
    for (event, says) in [
        ("application_reached", "the application is reached again"),
        ("application_unreached", "calls about who left wait"),
    ] {
        let told = Told::of(&server, event, says);
        println!("{event}: {} lines for {TURNS}", told.lines);
        assert!((1..=begun.elapsed().as_secs() / PERIOD.as_secs() + 1).contains(&told.lines), "{} lines", told.lines);
    }
}
