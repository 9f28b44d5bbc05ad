//! What the metrics page says of calls to the application.

use crate::harness::*;
use serde_json::{Value, json};
use std::time::Duration;

const CHAT: &str = r#"{"channel":"Chat"}"#;

async fn read(server: &Server, names: &[&str]) -> Vec<i64> {
    let mut values = Vec::new();
    for name in names {
        values.push(server.metric(name).await);
    }
    values
}

/// Waits until the metrics have exactly these values.
async fn become_these(server: &Server, metrics: &[(&str, i64)]) {
    for (name, value) in metrics {
        server.metric_becomes(name, *value).await;
    }
}

/// Commands fail by the client's action.
fn script(call: &Call) -> Reply {
    match call.action().as_str() {
        "hang" => Fault::Hang.into(),
        "cut" => Fault::Cut.into(),
        "break" => Fault::Broken.into(),
        "wait" => Reply::success().after(Duration::from_secs(4)),
        _ if call.url().contains("stranger") => Reply::unauthorized(),
        _ => Reply::usual(call),
    }
}

fn act(action: &str) -> Value {
    json!({"command": "message", "identifier": CHAT, "data": json!({"action": action}).to_string()})
}

async fn subscribed(server: &Server) -> Client {
    let mut client = server.connect().await;
    client.subscribe(CHAT).await;
    client
}

#[tokio::test]
async fn calls_and_how_they_end_are_counted() {
    let app = Application::start(Wire::Grpc, script);
    let server = app.server().option("rpc_command_timeout", 5_000).start();
    assert_eq!(read(&server, &["rpc_call_total", "rpc_capacity_num"]).await, [0, 28]);

    let mut client = subscribed(&server).await;
    client.send(act("fine")).await;
    become_these(&server, &[("rpc_call_total", 3), ("rpc_error_total", 0), ("grpc_active_conn_num", 1)]).await;
    become_these(&server, &[("rpc_call_duration_seconds_count", 3), ("rpc_pending_num", 0)]).await;

    client.send(act("break")).await;
    become_these(&server, &[("rpc_call_total", 4), ("rpc_error_total", 1), ("failed_client_msg_total", 1)]).await;
    assert_eq!(read(&server, &["rpc_retries_total", "rpc_timeout_total"]).await, [0, 0]);

    client.send(act("hang")).await;
    become_these(&server, &[("rpc_timeout_total", 1), ("rpc_error_total", 2), ("failed_client_msg_total", 2)]).await;

    client.send(act("cut")).await;
    become_these(&server, &[("rpc_error_total", 3), ("rpc_call_total", 6), ("failed_client_msg_total", 3)]).await;
    let [retries, uncertain] = read(&server, &["rpc_retries_total", "rpc_uncertain_retries_total"]).await[..] else {
        panic!()
    };
    assert!(1 <= uncertain && uncertain <= retries, "{uncertain} of {retries} retries");
    assert!(server.log().contains("a call that the application may have executed is made again"), "{}", server.log());

    // Of the next one nobody waits for the answer.
    client.barrier().await;
    client.send(act("hang")).await;
    eventually("it has arrived", async || (app.running() == 1).then_some(())).await;
    client.drop_hard();
    become_these(&server, &[("rpc_canceled_total", 1), ("rpc_pending_num", 0)]).await;

    let mut stranger = server.dial().query("stranger=1").open().await;
    stranger.expect(disconnect("unauthorized", false)).await;
    become_these(&server, &[("failed_auths_total", 1)]).await;
}

#[tokio::test]
async fn what_may_have_been_executed_is_made_again_only_where_that_is_allowed() {
    let app = Application::start(Wire::Grpc, script);
    let server = app.server().option("rpc_retry_sent", "false").start();
    let mut client = subscribed(&server).await;
    client.send(act("cut")).await;
    become_these(&server, &[("rpc_error_total", 1), ("rpc_retries_total", 0), ("failed_client_msg_total", 1)]).await;
    assert!(server.log().contains("which the application may have executed"), "{}", server.log());
    let cut = app.calls().iter().filter(|call| call.action() == "cut").count();
    assert_eq!(cut, 1);
}

#[tokio::test]
async fn calls_that_wait_are_shown() {
    let app = Application::start(Wire::Http, script);
    let server = app.server().option("rpc_concurrency", 1).start();
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(subscribed(&server).await);
    }
    for client in &mut clients {
        client.send(act("wait")).await;
    }
    become_these(&server, &[("rpc_pending_num", 2), ("rpc_capacity_num", 1)]).await;
    become_these(&server, &[("rpc_pending_num", 0), ("rpc_call_duration_seconds_count", 9)]).await;
    assert_eq!(read(&server, &["grpc_active_conn_num", "rpc_error_total"]).await, [0, 0]);
    for client in clients {
        client.drop_hard();
    }
    become_these(&server, &[("rpc_call_total", 12)]).await;
}

#[tokio::test]
async fn calls_about_who_left_are_shown_while_they_wait_and_when_they_are_dropped() {
    let mut app = Application::start(Wire::Grpc, script);
    let options = app.server().option("disconnect_backlog_size", 2).option("rpc_command_timeout", 5_000);
    let server = options.start();
    let mut clients = Vec::new();
    for _ in 0..6 {
        clients.push(subscribed(&server).await);
    }
    // They wait for as long as it is away.
    app.kill();
    for client in clients {
        client.drop_hard();
    }
    become_these(&server, &[("clients_num", 0), ("disconnect_queue_size", 2), ("disconnects_dropped_total", 4)]).await;
    app.restart();
    become_these(&server, &[("disconnect_queue_size", 0)]).await;
}

#[tokio::test]
async fn the_start_tells_how_the_application_is_called() {
    let app = Application::usual(Wire::Grpc);
    let server = app.server().option("rpc_concurrency", 0).option("proxy-cookies", "a,b").start();
    let expected = format!(
        "RPC controller initialized: {} (concurrency: auto (initial=25, min=5, max=100), impl: grpc, enable_tls: false, \
         proto_versions: v1, proxy_headers: cookie, proxy_cookies: a,b)",
        app.host()
    );
    assert!(server.log().contains(&expected), "{}", server.log());
    assert_eq!(server.metric("rpc_capacity_num").await, 25);
}
