//! Whatever is sent, the log stays short: of each kind of event one line in ten seconds, and one that says how many more.

use crate::harness::backend::{shared_nats, unused_prefix};
use crate::harness::proxy::NatsProxy;
use crate::harness::*;
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PERIOD: Duration = Duration::from_secs(10);

/// What the log of a server holds about one event.
struct Told {
    /// Lines with what the event says.
    lines: u64,
    /// How many events further lines speak of.
    counted: u64,
}

impl Told {
    fn of(server: &Server, event: &str, says: &str) -> Self {
        let log = server.log();
        let lines = log.lines().filter(|line| line.contains(says)).count() as u64;
        let name = format!("event={event}");
        let of_event = log.lines().filter(|line| line.contains(&name) && line.contains("more of these in the last"));
        let number = |line: &str| line.split_once("num=")?.1.split(' ').next()?.parse::<u64>().ok();
        let counted = of_event.map(|line| number(line).unwrap_or_else(|| panic!("no number in {line}"))).sum();
        Self { lines, counted }
    }
}

/// Ends the server and looks at what it has logged of `number` events since `begun`: nothing is lost, and little is said.
fn told_once(mut server: Server, begun: Instant, number: u64, event: &str, says: &str) {
    server.stop();
    let told = Told::of(&server, event, says);
    println!("{event}: {} lines for {number}, {} more counted", told.lines, told.counted);
    let periods = begun.elapsed().as_secs() / PERIOD.as_secs() + 1;
    assert!((1..=periods).contains(&told.lines), "{} lines in {periods} periods", told.lines);
    assert_eq!(told.lines + told.counted, number, "lines and events counted");
}

async fn events(server: &Server, event: &str) -> u64 {
    server.metric(&format!("log_events_total{{event=\"{event}\"}}")).await.unsigned_abs()
}

fn server() -> carrick::Builder {
    Server::on(Backend::Memory).option("metrics_http", "/metrics")
}

async fn until_end(mut client: Client) {
    while matches!(client.event().await, client::Event::Frame(_)) {}
}

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

fn action(identifier: &str) -> Value {
    json!({"command": "message", "identifier": identifier, "data": "{}"})
}

#[tokio::test]
async fn row_17_commands_that_fail_do_not_fill_the_log() {
    let mut app = Application::start(Wire::Http, |call| match call.command() {
        "message" => Reply::error("no"),
        _ => Reply::usual(call),
    });
    let server = app.server().option("rpc_command_timeout", 200).start();
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
    for _ in 0..10 {
        client.send(action(&identifier)).await;
    }
    server.metric_becomes("failed_client_msg_total", 210).await;
    told_once(server, begun, 210, "command_failed", "a command failed");
}

#[tokio::test]
async fn row_17_calls_that_are_made_again_do_not_fill_the_log() {
    let app = Application::start(Wire::Http, |call| match call.command() {
        "message" => Fault::Cut.into(),
        _ => Reply::usual(call),
    });
    let server = app.server().option("rpc_command_timeout", 400).start();
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
