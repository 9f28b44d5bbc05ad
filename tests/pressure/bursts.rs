//! Who is slow: whoever does not read for a while, never whoever was sent much in one step.

use crate::harness::application::{Application, Reply, Wire};
use crate::harness::carrick::{Builder, Server};
use crate::harness::client::Event;
use crate::harness::*;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

/// Servers that bursts are tried on, with the limits of size that everybody has. Clients share this process, which may have
/// no time for them for a while: the time that they have is longer.
fn each() -> [(&'static str, Builder); 3] {
    let patient = |builder: Builder| builder.option("ws_write_timeout", 10).option("metrics_http", "/metrics");
    let on = |backend| patient(Server::on(backend));
    let none = patient(Builder::open());
    [("memory", on(Backend::Memory)), ("none", none), ("embedded nats", on(Backend::EmbeddedNats))]
}

/// A batch of 120 messages of 10 KiB.
fn batch(stream: &str) -> Value {
    let text = "x".repeat(10 << 10);
    (0..120).map(|number| json!({"stream": stream, "data": json!({"n": number, "text": text}).to_string()})).collect()
}

async fn nobody_was_slow(server: &Server, what: &str) {
    assert_eq!(server.metric("disconnected_slow_clients_total").await, 0, "{what}");
}

#[tokio::test]
async fn row_04_a_batch_does_not_make_a_reading_client_slow() {
    for (what, builder) in each() {
        let server = builder.start();
        for round in 0..5 {
            let mut client = server.subscriber("chat").await;
            let ((), _) = tokio::join!(
                async {
                    for number in 0..120 {
                        let got = client.next().await["message"]["n"].clone();
                        assert_eq!(got, number, "{what}, round {round}");
                    }
                },
                server.accepted(batch("chat")),
            );
        }
        nobody_was_slow(&server, what).await;
    }
}

/// One message, twelve subscriptions of one connection: 1.2 MiB in one step.
#[tokio::test]
async fn row_04_copies_of_one_message_do_not_make_a_reading_client_slow() {
    for (what, builder) in each() {
        let server = builder.start();
        let mut client = server.connect().await;
        let again = |n: usize| json!({"channel": "$pubsub", "stream_name": "chat", "n": n}).to_string();
        for n in 0..12 {
            client.subscribe(&again(n)).await;
        }
        let text = "x".repeat(100 << 10);
        for number in 0..4 {
            let data = json!({"number": number, "text": text});
            server.accepted(json!({"stream": "chat", "data": data.to_string()})).await;
            let mut got = Vec::new();
            for _ in 0..12 {
                let frame = client.next().await;
                assert_eq!(frame["message"]["number"], number, "{what}: copies come back to back");
                got.push(frame["identifier"].as_str().expect("text").to_owned());
            }
            got.sort();
            let mut wanted: Vec<_> = (0..12).map(again).collect();
            wanted.sort();
            assert_eq!(got, wanted, "{what}");
        }
        nobody_was_slow(&server, what).await;
    }
}

/// What an application says in one answer cannot be read again.
#[tokio::test]
async fn row_04_an_answer_of_the_application_does_not_make_a_reading_client_slow() {
    let text = "x".repeat(100 << 10);
    let app = Application::start(Wire::Http, move |call| match call.command() {
        "message" => (0..15).fold(Reply::success(), |reply, n| reply.say(call, json!({"n": n, "text": text.as_str()}))),
        _ => Reply::usual(call),
    });
    let server = app.server().option("ws_write_timeout", 10).start();
    let identifier = json!({"channel": "Chat"}).to_string();
    let mut client = server.connect().await;
    client.subscribe(&identifier).await;
    for _ in 0..5 {
        client.perform(&identifier, json!({})).await;
        for number in 0..15 {
            assert_eq!(client.next().await["message"]["n"], number);
        }
    }
    nobody_was_slow(&server, "answers").await;
}

/// Restored subscriptions of one stream replay jointly: much more than may be queued, at a client that reads.
#[tokio::test]
async fn row_04_a_joint_replay_reaches_a_client_that_comes_back() {
    for backend in [Backend::Memory, Backend::EmbeddedNats] {
        let server = Server::on(backend).option("metrics_http", "/metrics").start();
        let mut client = server.subscriber("chat").await;
        client.subscribe(&public_again("chat")).await;
        let first = server.publish("chat", json!({"n": 0})).await;
        for _ in 0..2 {
            assert_eq!(client.next().await["message"]["n"], 0);
        }
        let sid = client.drop_hard();
        let text = "x".repeat(50 << 10);
        for number in 1..=60 {
            server.publish("chat", json!({"n": number, "text": text})).await;
        }
        let mut client = server.resume(&sid).await;
        assert!(client.is_restored());
        for identifier in [public("chat"), public_again("chat")] {
            client.ask_history(&identifier, after(&first)).await;
        }
        for number in 1..=60 {
            for _ in 0..2 {
                assert_eq!(client.next().await["message"]["n"], number, "{backend:?}");
            }
        }
        let mut confirmed = [client.next().await, client.next().await].map(|frame| frame["identifier"].to_string());
        confirmed.sort();
        let mut wanted = [public("chat"), public_again("chat")].map(|text| json!(text).to_string());
        wanted.sort();
        assert_eq!(confirmed, wanted);
        nobody_was_slow(&server, "a replay").await;
    }
}

/// A client that reads slowly, but reads, keeps its connection and gets every stored message in order; it holds no more of
/// the server's memory than its limit.
#[tokio::test]
async fn row_04_a_client_that_reads_slowly_is_paced() {
    for backend in [Backend::Memory, Backend::EmbeddedNats] {
        let options = Server::on(backend).option("ws_max_pending_size", 200_000).option("history_limit", 1_000);
        // It does not read while the messages are published.
        let server = options.option("ws_write_timeout", 60).option("metrics_http", "/metrics").start();
        let mut slow = server.dial().receive_buffer(4_096).connect().await;
        slow.subscribe(&public("chat")).await;
        let text = "x".repeat(20_000);
        for number in 0..300 {
            server.publish("chat", json!({"n": number, "text": text})).await;
        }
        assert!(server.metric("paced_total").await > 0);
        let pending = server.metric("client_pending_bytes").await;
        assert!(pending < 300_000, "{pending} bytes wait");
        for number in 0..300 {
            assert_eq!(slow.next().await["message"]["n"], number, "{backend:?}");
        }
        nobody_was_slow(&server, "a slow reader").await;
    }
}

/// A client that reads nothing is closed even where nothing more comes for it.
#[tokio::test]
async fn row_04_a_client_that_reads_nothing_is_closed() {
    let options = Server::on(Backend::Memory).option("ws_write_timeout", "500ms").option("ping_interval", 0);
    let server = options.option("metrics_http", "/metrics").start();
    let mut stuck = server.dial().receive_buffer(4_096).connect().await;
    stuck.subscribe(&public("chat")).await;
    // 20 MiB: more than the kernel takes.
    let text = "x".repeat(1 << 20);
    for _ in 0..20 {
        server.publish("chat", json!(text)).await;
    }
    server.metric_becomes("clients_num", 0).await;
    assert_eq!(server.metric("disconnected_slow_clients_total").await, 1);
    server.metric_becomes("client_pending_bytes", 0).await;
}

/// Without a store what waits for a client that does not read is bounded, and the client is told.
#[tokio::test]
async fn row_04_eight_times_the_limit_closes_at_once() {
    let builder = Builder::open().option("metrics_http", "/metrics").option("ws_max_pending_size", 100_000);
    let server = builder.option("ws_write_timeout", 30).start();
    let mut stuck = server.dial().receive_buffer(4_096).connect().await;
    stuck.subscribe(&public("chat")).await;
    let data = json!("x".repeat(50_000)).to_string();
    let mut most = 0;
    for _ in 0..400 {
        server.accepted(json!({"stream": "chat", "data": data})).await;
        most = most.max(server.metric("client_pending_bytes").await);
        // The word for it waits no longer than `ws_write_timeout` for the client to read.
        if server.metric("disconnected_slow_clients_total").await > 0 {
            break;
        }
    }
    assert_eq!(server.metric("disconnected_slow_clients_total").await, 1);
    assert!(most < 1_100_000, "{most} bytes waited");
    let last = loop {
        match stuck.event().await {
            Event::Frame(text) if text.contains(r#""message""#) => {}
            Event::Frame(text) => break text,
            other => panic!("no word before the end: {other:?}"),
        }
    };
    assert_eq!(serde_json::from_str::<Value>(&last).expect("JSON"), disconnect("too_slow", true));
}

/// Pings of a client that does not read: only the newest answer waits.
#[tokio::test]
async fn row_04_unread_pongs_hold_no_memory() {
    let options = Server::on(Backend::Memory).option("ws_write_timeout", 60).option("ws_max_pending_size", 32 << 20);
    let server = options.start();
    let mut client = server.dial().receive_buffer(4_096).connect().await;
    client.subscribe(&public("chat")).await;
    // Fills the kernel's buffers, so that answers have to wait.
    let text = "x".repeat(1 << 20);
    for _ in 0..12 {
        server.publish("chat", json!(text)).await;
    }
    let before = server.peak();
    for _ in 0..500_000 {
        client.send_message(Message::Ping(Vec::new().into())).await;
    }
    client.send(json!({"command": "ping"})).await;
    let answer = json!({"type": "pong"});
    while client.next().await != answer {}
    let grown = server.peak().saturating_sub(before);
    assert!(grown < 8 << 20, "{} KiB for pings", grown >> 10);
}
