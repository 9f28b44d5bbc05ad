//! No input makes a task panic; and if one does, nothing half-dead goes on.

use crate::harness::*;
use serde_json::json;

const HUGE: [&str; 8] = [
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "-9223372036854775808",
    "86400000",
    "1e308",
    "-0",
    "0x7f",
];

fn server() -> carrick::Builder {
    Server::on(Backend::Memory).option("metrics_http", "/metrics")
}

#[tokio::test]
async fn row_11_an_endless_ping_interval_is_bounded_and_its_client_served() {
    let server = server().start();
    let mut clients = Vec::new();
    for wanted in HUGE {
        let mut client = server.dial().query(&format!("pi={wanted}")).connect().await;
        client.subscribe(&public("chat")).await;
        clients.push(client);
    }
    server.publish("chat", json!(1)).await;
    for client in &mut clients {
        client.expect_message(&public("chat"), json!(1)).await;
    }
    drop(clients);
    server.metric_becomes("clients_num", 0).await;
    assert_eq!(server.metric("panics_total").await, 0, "{}", server.log());
}

#[tokio::test]
async fn row_11_no_number_of_a_client_or_publisher_makes_anything_panic() {
    let server = server().start();
    let position = server.publish("chat", json!(1)).await;
    let mut client = server.subscriber("chat").await;
    let numbers = HUGE.iter().chain(&["1e400", "0.5", "\"1\"", "null", "[]", "{}", "true", "1", "0"]);
    for number in numbers.clone() {
        let identifier = public("chat");
        for history in [
            format!(r#"{{"since":{number}}}"#),
            format!(r#"{{"streams":{{"chat":{{"epoch":"{}","offset":{number}}}}}}}"#, position.epoch),
        ] {
            let identifier = json!(identifier);
            for command in ["history", "subscribe"] {
                let frame = format!(r#"{{"command":"{command}","identifier":{identifier},"history":{history}}}"#);
                client.send_text(&frame).await;
            }
        }
        client.send_text(&format!(r#"{{"command":"pong","identifier":{number}}}"#)).await;
    }
    for number in numbers {
        for body in [
            format!(r#"{{"stream":{number},"data":"1"}}"#),
            format!(r#"{{"stream":"chat","data":{number}}}"#),
            format!(r#"{{"stream":"chat","data":"1","meta":{{"id":{number},"transient":{number}}}}}"#),
            format!(r#"{{"command":"disconnect","payload":{{"identifier":{number},"reconnect":{number}}}}}"#),
        ] {
            let answer = server.post(&body).await;
            assert!(matches!(answer.status, 201 | 422), "{answer:?} to {body}");
        }
    }
    client.send(json!({"command": "ping"})).await;
    while client.next().await != json!({"type": "pong"}) {}
    assert_eq!(server.metric("panics_total").await, 0, "{}", server.log());
}

/// A debug build panics on demand in one named part.
#[test]
fn row_11_a_part_that_panics_ends_the_process_and_says_so() {
    let parts = ["hub.heads", "hub.open", "memory.sweep", "http.listener", "disconnector.run"];
    let nats =
        ["broker.connection", "broker.commands", "broker.feed", "enats.supervisor", "enats.output", "app.readiness"];
    let ends = |builder: carrick::Builder, part: &str| {
        let (status, log) = builder.env("CARRICK_TEST_PANIC", part).refused();
        assert_eq!(status, Some(70), "{part}: {log}");
        let panic = log.lines().find(|line| line.contains("ERR panic: ")).unwrap_or_else(|| panic!("{part}: {log}"));
        assert!(panic.contains("location=src/critical.rs:") && panic.contains("thread="), "{panic}");
        let named = log.lines().any(|line| line.contains("ERR") && line.contains(&format!("part={part}")));
        assert!(named, "{part}: {log}");
    };
    for part in parts {
        let builder = Server::on(Backend::Memory).without("norpc").option("rpc_host", "127.0.0.1:1");
        ends(builder, part);
    }
    for part in nats {
        ends(Server::on(Backend::EmbeddedNats), part);
    }
}
