//! What waits has a limit in bytes, whoever sends it.

use crate::harness::client::Event;
use crate::harness::*;
use serde_json::json;
use std::io::Write;
use std::time::{Duration, Instant};
use tokio_tungstenite::tungstenite::Message;

/// An application that takes connections and never answers; it lives as long as the listener.
fn silent_application() -> (std::net::TcpListener, carrick::Builder) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port can be bound");
    let address = listener.local_addr().expect("it is bound");
    let builder = Server::on(Backend::Memory).without("norpc").replace("noauth", "false");
    let builder = builder.option("rpc_host", format!("http://{address}/")).option("metrics_http", "/metrics");
    (listener, builder.option("rpc_command_timeout", 600_000).option("rpc_request_timeout", 600_000))
}

/// From now on the application answers: it fails.
fn let_it_fail(application: std::net::TcpListener) {
    std::thread::spawn(move || {
        for mut caller in application.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let _ = caller.write_all(b"HTTP/1.1 500 no\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
                let _ = caller.shutdown(std::net::Shutdown::Write);
                // A socket that is closed with something unread in it takes the answer back.
                let _ = std::io::copy(&mut caller, &mut std::io::sink());
            });
        }
    });
}

/// Commands of a flood that the kernel has room for, however slow the server is.
const SURE: usize = 4;

/// Sends commands of 64 KB for as long as the server takes them, at least [`SURE`] and at most 64.
async fn flood(client: &mut Client) {
    let padding = "x".repeat(64_000);
    let frame = json!({"command": "pong", "padding": padding}).to_string();
    for _ in 0..SURE {
        client.try_send(Message::text(frame.as_str())).await.expect("the connection stands");
    }
    for _ in SURE..64 {
        let sending = client.try_send(Message::text(frame.as_str()));
        if !matches!(tokio::time::timeout(Duration::from_millis(300), sending).await, Ok(Ok(()))) {
            return;
        }
    }
}

#[tokio::test]
async fn row_14_commands_of_clients_that_are_not_let_in_take_little() {
    let (application, builder) = silent_application();
    let server = builder.option("auth_timeout", 600).start();
    let mut clients = Vec::new();
    for _ in 0..40 {
        clients.push(server.dial().open().await);
    }
    let before = server.resident() >> 20;
    futures_util::future::join_all(clients.iter_mut().map(flood)).await;
    eventually("they wait", async || {
        let queued = server.metric("queued_commands_bytes").await;
        assert!(queued < 40 * 3 * 65_536, "at most twice the largest message, and one on top: {queued}");
        (queued > 40 * 64_000).then_some(())
    })
    .await;
    let grown = (server.resident() >> 20).saturating_sub(before);
    eprintln!("40 clients of 64 x 64 KB: +{grown} MiB");
    assert!(grown < 30, "{grown} MiB more");
    // That they have gone is seen when they are read again.
    drop(clients);
    let_it_fail(application);
    server.metric_becomes("queued_commands_bytes", 0).await;
}

#[tokio::test]
async fn row_14_commands_of_all_clients_together_are_limited() {
    let (_application, builder) = silent_application();
    let server = builder.option("ws_max_queued_size", 300_000).start();
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(server.dial().open().await);
    }
    futures_util::future::join_all(clients.iter_mut().map(flood)).await;
    eventually("what may wait does", async || {
        let queued = server.metric("queued_commands_bytes").await;
        // Those that read at the same moment may each add a command.
        assert!(queued < 500_000, "{queued}");
        (queued >= 300_000).then_some(())
    })
    .await;
    assert!(server.metric("queued_commands_full_total").await > 0);
}

#[tokio::test]
async fn row_14_a_connection_that_nobody_lets_in_is_closed_in_time() {
    let (_application, builder) = silent_application();
    let server = builder.option("auth_timeout", 1).start();
    let mut client = server.dial().open().await;
    let asked = Instant::now();
    loop {
        match client.event().await {
            Event::Frame(text) => assert!(text.contains("ping"), "{text}"),
            Event::Closed(code, reason) => {
                assert_eq!((code, reason.as_str()), (1011, "Auth Error"));
                break;
            }
            Event::Lost => panic!("closed without a word"),
        }
    }
    // The default is a minute, and the application has ten.
    assert!(asked.elapsed() < PATIENCE, "{:?}", asked.elapsed());
    server.metric_becomes("auth_timeout_total", 1).await;
    server.metric_becomes("clients_num", 0).await;
}

#[tokio::test]
async fn row_14_publications_that_are_under_way_are_limited_in_bytes() {
    const LIMIT: i64 = 8 << 20;
    const PUBLISH_TIMEOUT: Duration = Duration::from_secs(20);
    let nats = NatsServer::start();
    let server = Backend::on_nats(&nats.url(), "budget")
        .option("http_broadcast_max_pending", LIMIT)
        .option("http_broadcast_max_body", 4 << 20)
        .option("publish_timeout", PUBLISH_TIMEOUT.as_secs())
        .option("metrics_http", "/metrics")
        .start();
    server.publish("chat", json!(1)).await;
    nats.freeze();
    let body = json!({"stream": "chat", "data": "x".repeat(900_000)}).to_string();
    let begun = Instant::now();
    let mut publishing: Vec<_> = (0..40).map(|_| Box::pin(server.post(&body))).collect();
    let mut refused = 0;
    // Some are refused after a second, while those under way still wait for the store.
    while refused < 10 {
        let (answer, _, rest) = futures_util::future::select_all(publishing).await;
        assert_eq!(answer.status, 503, "{answer:?}");
        if answer.body.contains("http_broadcast_max_pending") {
            assert_eq!((answer.json()["stored"].as_bool(), answer.header("Retry-After")), (Some(false), Some("1")));
            refused += 1;
        }
        publishing = rest;
        let pending = server.metric("http_broadcast_pending_bytes").await;
        assert!(pending <= LIMIT, "{pending}");
    }
    assert!(begun.elapsed() < PUBLISH_TIMEOUT, "those under way still wait: {:?}", begun.elapsed());
    assert!(server.metric("http_broadcast_refused_total").await >= refused);
    nats.thaw();
    futures_util::future::join_all(publishing).await;
    server.metric_becomes("http_broadcast_pending_bytes", 0).await;
    server.publish_eventually("chat", json!(2)).await;
}
