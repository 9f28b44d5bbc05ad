//! Pings, pongs and their timeouts.

use crate::harness::*;
use serde_json::json;
use std::time::{Duration, Instant};
use tokio_tungstenite::tungstenite::Message;

#[tokio::test]
async fn pings_carry_growing_seconds() {
    let mut client = Backend::Memory.shared().dial().query("pi=1").connect().await;
    let mut last = unix_now() - 5;
    for _ in 0..3 {
        let time = client.next_ping(PATIENCE).await.expect("a ping");
        assert!(time > last && time <= unix_now() + 1, "{time} after {last}");
        last = time;
    }
}

#[tokio::test]
async fn the_first_ping_comes_within_one_and_a_half_intervals() {
    const INTERVAL: Duration = Duration::from_secs(5);
    let start = Instant::now();
    let dial = Backend::Memory.shared().dial().query(&format!("pi={}", INTERVAL.as_secs()));
    let mut client = dial.connect().await;
    // A machine that stands still for a while may add its part; an interval more is too much.
    client.next_ping(INTERVAL * 5 / 2).await.expect("a ping");
    assert!(start.elapsed() >= INTERVAL * 45 / 100, "not before half an interval");
}

#[tokio::test]
async fn timestamp_precision_of_one_connection() {
    let server = Backend::Memory.shared();
    for (precision, per_second) in [("s", 1), ("ms", 1_000), ("ns", 1_000_000_000), ("fortnights", 1)] {
        let mut client = server.dial().query("pi=1").query(&format!("ptp={precision}")).connect().await;
        let time = client.next_ping(PATIENCE).await.expect("a ping");
        assert!(time / per_second >= unix_now() - 10 && time / per_second <= unix_now() + 1, "{precision}: {time}");
    }
}

#[tokio::test]
async fn timestamp_precision_of_all_connections() {
    let options = Server::on(Backend::Memory).option("ping_interval", 1);
    let server = options.option("ping_timestamp_precision", "ms").start();
    let time = server.connect().await.next_ping(PATIENCE).await.expect("a ping");
    assert!(time / 1_000 >= unix_now() - 10, "{time}");
}

#[tokio::test]
async fn no_pings_if_the_client_wants_none() {
    let server = Server::on(Backend::Memory).option("ping_interval", 1).start();
    for none in ["pi=0", "pi=-1"] {
        assert_eq!(server.dial().query(none).connect().await.next_ping(Duration::from_secs(2)).await, None, "{none}");
    }
}

#[tokio::test]
async fn an_interval_that_is_no_integer_is_ignored() {
    let server = Server::on(Backend::Memory).option("ping_interval", 1).start();
    for nonsense in ["pi=often", "pi=1.5", "pi="] {
        server.dial().query(nonsense).connect().await.next_ping(PATIENCE).await.expect("a ping");
    }
}

#[tokio::test]
async fn the_last_of_repeated_parameters_wins() {
    let server = Backend::Memory.shared();
    let mut client = server.dial().query("pi=1000").query("pi=1").connect().await;
    client.next_ping(PATIENCE).await.expect("a ping");
}

#[tokio::test]
async fn ping_is_answered_and_pong_is_not() {
    let mut client = Backend::Memory.shared().connect().await;
    client.send(json!({"command": "pong"})).await;
    client.send(json!({"command": "ping"})).await;
    client.expect(json!({"type": "pong"})).await;
    client.expect_silence().await;
}

#[tokio::test]
async fn native_pings_of_the_client_are_answered() {
    let mut client = Backend::Memory.shared().connect().await;
    client.send_message(Message::Ping("hello".into())).await;
    client.barrier().await;
}

#[tokio::test]
async fn a_client_that_pongs_stays() {
    const PONG_TIMEOUT: Duration = Duration::from_secs(5);
    let server = Server::on(Backend::Memory).option("pong_timeout", PONG_TIMEOUT.as_secs()).start();
    let mut client = server.dial().query("pi=1").query("ptp=ns").connect().await;
    let start = Instant::now();
    while start.elapsed() < PONG_TIMEOUT * 2 {
        client.next_ping(PATIENCE).await.expect("a ping");
        tokio::time::sleep(Duration::from_millis(500)).await;
        client.send(json!({"command": "pong"})).await;
    }
    client.barrier().await;
}

#[tokio::test]
async fn a_client_that_stops_ponging_is_closed_and_may_return() {
    let server = Server::on(Backend::Memory).option("pong_timeout", 4).start();
    let mut client = server.dial().query("pi=1").connect().await;
    client.subscribe(&public("chat")).await;
    client.expect(disconnect("no_pong", true)).await;
    client.expect_close(1000, "No Pong").await;
    assert_eq!(server.resume(&client.sid).await.restored(), [public("chat")]);
}

#[tokio::test]
async fn base_clients_need_not_pong() {
    let server = Server::on(Backend::Memory).option("pong_timeout", 1).start();
    let mut client = server.dial().base().query("pi=1").connect().await;
    for _ in 0..4 {
        client.next_ping(PATIENCE).await.expect("a ping");
    }
}

/// Our client answers native pings by itself, which counts as life; on any subprotocol.
#[tokio::test]
async fn native_pongs_count_as_life() {
    const PONG_TIMEOUT: Duration = Duration::from_secs(5);
    let options = Server::on(Backend::Memory).option("pong_timeout", PONG_TIMEOUT.as_secs());
    let server = options.option("enable_native_pings", true).start();
    let stays = async |dial: client::Dial| {
        let mut client = dial.query("pi=1").connect().await;
        let start = Instant::now();
        while start.elapsed() < PONG_TIMEOUT * 2 {
            client.next_ping(PATIENCE).await.expect("a ping");
        }
    };
    tokio::join!(stays(server.dial()), stays(server.dial().base()));
}
