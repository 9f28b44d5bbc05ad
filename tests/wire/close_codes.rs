//! Limits, slow clients, shutdown: the message before, the code, the reason.

use crate::harness::carrick::Builder;
use crate::harness::client::Event;
use crate::harness::*;
use serde_json::json;
use std::time::{Duration, Instant};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

#[tokio::test]
async fn a_message_over_the_limit_closes_1009() {
    let server = Backend::Memory.shared();
    let mut client = server.connect().await;
    let padding = "x".repeat(65_536);
    client.send_text(&json!({"command": "pong", "padding": padding}).to_string()).await;
    client.expect_close(1009, "").await;
    assert!(server.resume(&client.sid).await.is_restored());
}

#[tokio::test]
async fn a_message_at_the_limit_is_taken() {
    let server = Server::on(Backend::Memory).option("max_message_size", 1_000).start();
    let mut client = server.connect().await;
    let frame = json!({"command": "ping", "padding": ""}).to_string();
    let padding = "x".repeat(1_000 - frame.len());
    let frame = json!({"command": "ping", "padding": padding}).to_string();
    assert_eq!(frame.len(), 1_000);
    client.send_text(&frame).await;
    client.expect(json!({"type": "pong"})).await;
    client.send_text(&format!("{frame} ")).await;
    client.expect_close(1009, "").await;
}

/// The limit counts the message after reassembly.
#[tokio::test]
async fn fragments_are_reassembled_and_counted_together() {
    let mut client = Backend::Memory.shared().connect().await;
    let fragment = |text: &str, opcode, last| {
        Message::Frame(Frame::message(text.to_owned().into_bytes(), OpCode::Data(opcode), last))
    };
    client.send_message(fragment(r#"{"command""#, Data::Text, false)).await;
    client.send_message(fragment(r#":"ping"}"#, Data::Continue, true)).await;
    client.expect(json!({"type": "pong"})).await;
    let chunk = " ".repeat(20_000);
    client.send_message(fragment(&chunk, Data::Text, false)).await;
    for _ in 0..3 {
        // The server may close before it has seen the last fragment.
        let _ = client.try_send(fragment(&chunk, Data::Continue, false)).await;
    }
    client.expect_close(1009, "").await;
}

#[tokio::test]
async fn client_frames_may_be_binary() {
    let mut client = Backend::Memory.shared().connect().await;
    client.send_message(Message::binary(r#"{"command":"ping"}"#.as_bytes().to_vec())).await;
    client.expect(json!({"type": "pong"})).await;
}

#[tokio::test]
async fn a_client_that_closes_gets_a_close_frame() {
    let mut client = Backend::Memory.shared().connect().await;
    client.send_message(Message::Close(None)).await;
    let event = client.event().await;
    assert!(matches!(event, Event::Closed(1000 | 1005, _)), "{event:?}");
}

/// A client that does not read is told and closed; another one on the same stream does not notice. Without a broker,
/// because stored messages would wait in the log.
#[tokio::test]
async fn a_slow_client_is_closed_and_delays_nobody() {
    const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
    let options = Builder::open().option("ws_max_pending_size", 100_000).option("metrics_http", "/metrics");
    let server = options.option("ws_write_timeout", WRITE_TIMEOUT.as_secs()).start();
    let mut slow = server.dial().receive_buffer(4_096).connect().await;
    slow.subscribe(&public("chat")).await;
    let mut quick = server.subscriber("chat").await;
    let text = "x".repeat(50_000);
    for number in 0..60 {
        let start = Instant::now();
        let data = json!({"number": number, "text": text}).to_string();
        server.accepted(json!({"stream": "chat", "data": data})).await;
        assert_eq!(quick.next().await["message"]["number"], number);
        assert!(start.elapsed() < WRITE_TIMEOUT / 2, "message {number} took {:?}", start.elapsed());
    }
    server.metric_becomes("disconnected_slow_clients_total", 1).await;
    let mut seen = 0;
    let last = loop {
        match slow.event().await {
            Event::Frame(text) if text.contains(r#""message""#) => seen += 1,
            Event::Frame(text) => break text,
            other => panic!("no word before the end: {other:?}"),
        }
    };
    assert!(seen < 60);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&last).expect("JSON"), disconnect("too_slow", true));
    slow.expect_close(1000, "").await;
}

/// A socket that takes nothing at all is dropped after ten write timeouts, within its limit too.
#[tokio::test]
async fn a_stuck_socket_is_dropped() {
    let options = Server::on(Backend::Memory).option("ws_write_timeout", "500ms").option("ws_max_pending_size", 0);
    let server = options.option("metrics_http", "/metrics").start();
    let mut stuck = server.dial().receive_buffer(4_096).connect().await;
    stuck.subscribe(&public("chat")).await;
    let text = "x".repeat(100_000);
    for _ in 0..100 {
        server.publish("chat", json!(text)).await;
    }
    server.metric_becomes("timeout_server_msg_total", 1).await;
    let told = async || server.log().contains("event=client_not_reading").then_some(());
    eventually("the operator is told", told).await;
    let mut seen = 0;
    while let Event::Frame(_) = stuck.event().await {
        seen += 1;
    }
    assert!(seen < 100, "{seen} of 100 came through");
}

/// A replay is paced by the outgoing queue: it never makes a client "slow".
#[tokio::test]
async fn a_replay_larger_than_the_queue_is_paced() {
    let options = Server::on(Backend::Memory).option("ws_max_pending_size", 100_000).option("ws_write_timeout", 30);
    let server = options.start();
    let text = "x".repeat(50_000);
    for number in 0..60 {
        server.publish("chat", json!({"number": number, "text": text})).await;
    }
    let mut client = server.dial().receive_buffer(4_096).connect().await;
    client.subscribe_with(&public("chat"), since(unix_now() - 60)).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    client.expect(confirm(&public("chat"))).await;
    let numbers: Vec<_> =
        client.replay(&public("chat")).await.iter().map(|one| one.message["number"].clone()).collect();
    assert_eq!(numbers, (0..60).map(|number| json!(number)).collect::<Vec<_>>());
}

/// A memory store ends with the process: everybody is told.
#[tokio::test]
async fn shutdown_tells_every_client() {
    let mut server = Server::on(Backend::Memory).start();
    let (mut extended, mut base) = (server.connect().await, server.connect_base().await);
    server.begin_stop();
    for client in [&mut extended, &mut base] {
        client.expect(disconnect("server_restart", true)).await;
        client.expect_close(1001, "Server restart").await;
    }
    server.wait_stopped();
}

#[tokio::test]
async fn a_second_signal_forces_the_end() {
    const DELAY: Duration = Duration::from_secs(25);
    let mut server = Server::on(Backend::Memory).option("shutdown_delay", DELAY.as_secs()).start();
    server.begin_stop();
    // Two signals at once are one.
    let heard = async || server.log().contains("a second signal stops at once").then_some(());
    eventually("it has heard the first one", heard).await;
    assert!(server.is_running(), "it waits for the delay");
    let start = Instant::now();
    server.begin_stop();
    server.wait_stopped();
    assert!(start.elapsed() < DELAY / 2, "it does not wait for the delay: {:?}", start.elapsed());
}
