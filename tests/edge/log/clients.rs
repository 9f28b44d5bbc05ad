//! Lines that clients, publishers and strangers cause at will.

use super::*;
use crate::harness::backend::{shared_nats, unused_prefix};
use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn row_17_one_request_is_one_line_and_the_number_comes_though_nothing_follows() {
    const SAYS: &str = "ignored ping interval";
    let server = server().start();
    let begun = Instant::now();
    server.dial().query(&"pi=x&".repeat(12_000)).open().await;
    let told = Told::of(&server, "ping_interval", SAYS);
    assert_eq!(told.lines, 1, "at once");
    assert_eq!(events(&server, "ping_interval").await, 12_000);
    eventually("the number is in the log", async || {
        (Told::of(&server, "ping_interval", SAYS).counted == 11_999).then_some(())
    })
    .await;
    assert!(begun.elapsed() >= PERIOD - Duration::from_secs(1), "{:?}", begun.elapsed());
    // What comes later has a line of its own again.
    server.dial().query("pi=y").open().await;
    told_once(server, begun, 12_001, "ping_interval", SAYS);
}

#[tokio::test]
async fn row_17_at_level_debug_each_one_is_logged() {
    let mut server = server().option("log_level", "debug").start();
    server.dial().query(&"pi=x&".repeat(50)).open().await;
    server.stop();
    let log = server.log();
    let of_level = |level: &str| log.lines().filter(|l| l.contains(&format!(" {level} ignored ping interval"))).count();
    assert_eq!((of_level("WRN"), of_level("DBG")), (1, 49), "{log}");
}

/// Everybody may publish: no key is asked for.
#[tokio::test]
async fn row_17_malformed_publications_do_not_fill_the_log() {
    let server = carrick::Builder::closed().option("public", true).option("broker", "memory").start();
    let begun = Instant::now();
    for body in ["{", r#"{"command":"dance"}"#].repeat(300) {
        http::request(server.broadcast_address(), "POST", "/_broadcast", &[], body.as_bytes()).await;
    }
    let commands = Told::of(&server, "unknown_remote_command", "ignored an unknown remote command");
    assert!(commands.lines <= begun.elapsed().as_secs() / PERIOD.as_secs() + 1, "{} lines", commands.lines);
    told_once(server, begun, 300, "malformed_publication", "refused a malformed publication");
}

#[tokio::test]
async fn row_17_commands_that_fail_do_not_fill_the_log() {
    let mut app = Application::start(Wire::Http, |call| match call.command() {
        "message" => Reply::error("no"),
        _ => Reply::usual(call),
    });
    let server = app.server().option("rpc_command_timeout", 2_000).start();
    let mut client = server.connect().await;
    let identifier = json!({"channel": "Chat"}).to_string();
    client.subscribe(&identifier).await;
    let begun = Instant::now();
    for _ in 0..200 {
        client.send(action(&identifier)).await;
    }
    server.metric_becomes("failed_client_msg_total", 200).await;
    // The same while the application is away.
    app.kill();
    for failed in 201..=210 {
        client.send(action(&identifier)).await;
        server.metric_becomes("failed_client_msg_total", failed).await;
    }
    told_once(server, begun, 210, "command_failed", "a command failed");
}

#[tokio::test]
async fn row_17_clients_that_the_application_fails_for_do_not_fill_the_log() {
    let app = Application::start(Wire::Http, |_| Reply::error("no"));
    let server = app.server().start();
    let begun = Instant::now();
    for _ in 0..100 {
        until_end(server.dial().open().await).await;
    }
    told_once(server, begun, 100, "authentication_failed", "could not be authenticated");
}

#[tokio::test]
async fn row_17_presence_without_a_stream_does_not_fill_the_log() {
    let app = Application::start(Wire::Http, |call| match call.command() {
        "message" => Reply::message(json!({"status": 1, "presence": {"type": "join", "id": "1", "info": "{}"}})),
        _ => Reply::usual(call),
    });
    let server = app.server().start();
    let mut client = server.connect().await;
    let identifier = json!({"channel": "Chat"}).to_string();
    client.subscribe(&identifier).await;
    let begun = Instant::now();
    for _ in 0..100 {
        client.send(action(&identifier)).await;
    }
    client.barrier().await;
    told_once(server, begun, 100, "presence_without_stream", "presence without a stream");
}

#[tokio::test]
async fn row_17_sessions_that_cannot_be_used_do_not_fill_the_log() {
    let prefix = unused_prefix();
    let server = Backend::on_nats(&shared_nats().url(), &prefix).start();
    let sid = server.subscriber("chat").await.drop_hard();
    // Nobody else writes to this deployment's sessions any more.
    let store = async_nats::jetstream::new(shared_nats().operator().await);
    let sessions = store.get_key_value(format!("{prefix}_sessions")).await.expect("it is there");
    let keys: Vec<_> = sessions.keys().await.expect("they can be listed").collect().await;
    assert!(!keys.is_empty());
    for key in keys {
        sessions.put(key.expect("a key"), "nonsense".into()).await.expect("it is stored");
    }
    let begun = Instant::now();
    for _ in 0..50 {
        let client = server.dial().sid(&sid).connect().await;
        assert_ne!(client.welcome["restored"], true, "{}", client.welcome);
    }
    told_once(server, begun, 50, "unusable_session", "a saved session cannot be used");
}

/// Whoever reaches the port of the embedded nats-server may try to log in.
#[tokio::test]
async fn row_17_strangers_at_the_embedded_nats_server_do_not_fill_the_log() {
    let port = free_port();
    let server = Server::on(Backend::EmbeddedNats).replace("enats_addr", format!("nats://127.0.0.1:{port}")).start();
    let begun = Instant::now();
    for _ in 0..100 {
        let mut stranger = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
        stranger.write_all(b"CONNECT {\"user\":\"a\",\"pass\":\"b\"}\r\nPING\r\n").await.expect("it reads");
        let mut answer = Vec::new();
        let _ = stranger.read_to_end(&mut answer).await;
        assert!(String::from_utf8_lossy(&answer).contains("-ERR"), "{answer:?}");
    }
    told_once(server, begun, 100, "nats_connection", "authentication error");
}
