//! File descriptors run out for clients first, and for nobody else.

use crate::harness::*;
use serde_json::json;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The embedded nats-server of a Carrick.
fn nats_of(carrick: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{carrick}/task/{carrick}/children")).unwrap_or_default();
    let threads = std::fs::read_dir(format!("/proc/{carrick}/task")).ok()?;
    let of_threads = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("children")).ok());
    let all = of_threads.fold(children, |all, children| all + " " + &children);
    let mut pids = all.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok());
    pids.find(|pid| {
        std::fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains("server.conf"))
    })
}

#[tokio::test]
async fn row_16_clients_cannot_take_the_descriptors_of_the_others() {
    const FILES: u32 = 256;
    let server = Server::on(Backend::EmbeddedNats).option("metrics_http", "/metrics").open_files(FILES).start();
    let mut clients = Vec::new();
    let mut refused = 0;
    for _ in 0..FILES + 100 {
        let asked = Instant::now();
        let handshake = server.dial().handshake().await;
        assert!(asked.elapsed() < Duration::from_secs(10), "an answer comes at once");
        match handshake.status {
            101 => clients.push(handshake),
            503 => {
                assert!(handshake.header("Retry-After").is_some());
                refused += 1;
            }
            other => panic!("{other}"),
        }
    }
    assert!(clients.len() >= 100 && refused >= 100, "{} clients, {refused} refused", clients.len());
    // Publishing stands on the same port here.
    for _ in 0..20 {
        server.publish("chat", json!(1)).await;
    }
    assert!(server.is_ready().await);
    assert_eq!(server.get("/health").await.status, 200);
    assert_eq!(server.metric("open_files_limit_num").await, i64::from(FILES));
    let open = server.metric("open_files_num").await;
    assert!(open > clients.len() as i64 && open < i64::from(FILES), "{open} open files");
    assert!(server.metric("connections_refused_total").await >= refused);

    let nats = nats_of(server.pid()).expect("the embedded nats-server runs");
    process::signal(nats, "KILL");
    eventually("another nats-server", async || nats_of(server.pid()).filter(|pid| *pid != nats)).await;
    server.publish_eventually("chat", json!(2)).await;

    drop(clients);
    eventually("there is room again", async || (server.dial().handshake().await.status == 101).then_some(())).await;
}

/// What `max_conn` says holds where it is less than the descriptors allow.
#[tokio::test]
async fn row_16_max_conn_refuses_websockets_at_once_and_answers_the_rest() {
    let server = Server::on(Backend::Memory).option("max-conn", 3).start();
    let clients = [server.connect().await, server.connect().await, server.connect().await];
    let refused = server.dial().handshake().await;
    assert_eq!((refused.status, refused.header("Connection")), (503, Some("close")));
    server.publish("chat", json!(1)).await;
    assert!(server.is_ready().await);
    drop(clients);
    eventually("there is room again", async || (server.dial().handshake().await.status == 101).then_some(())).await;
}

/// A connection that has said this, and stays open in silence.
async fn silent_after(server: SocketAddr, said: &str) -> TcpStream {
    let mut connection = TcpStream::connect(server).await.expect("the server listens");
    connection.write_all(said.as_bytes()).await.expect("the connection is open");
    connection
}

/// More connections than the reserve has places, all of which ask for something and then say nothing any more.
const IDLE: usize = 150;

async fn idle(server: SocketAddr, said: &str) -> Vec<TcpStream> {
    let mut idle = Vec::new();
    for _ in 0..IDLE {
        idle.push(silent_after(server, said).await);
    }
    idle
}

/// Publishing, health and metrics are answered in the time that idle connections could have stayed (75 s), not only after it.
async fn is_served(server: &Server, what: &str) {
    let begin = Instant::now();
    loop {
        let mut refused = Vec::new();
        let body = json!({"stream": "chat", "data": "1"}).to_string();
        let key = format!("Bearer {BROADCAST_KEY}");
        for (path, wanted) in [("/health", 200), ("/ready", 200), ("/metrics", 200)] {
            match http::try_request(server.address(), "GET", path, &[], b"").await {
                Ok(answer) if answer.status == wanted => {}
                other => refused.push(format!("{path}: {other:?}")),
            }
        }
        match http::try_request(
            server.broadcast_address(),
            "POST",
            "/_broadcast",
            &[("Authorization", &key)],
            body.as_bytes(),
        )
        .await
        {
            Ok(answer) if answer.status == 201 => {}
            other => refused.push(format!("publishing: {other:?}")),
        }
        if refused.is_empty() {
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "{what}: {refused:?}");
        let_pass(Duration::from_millis(50)).await;
    }
}

/// What anybody may ask for.
const HEALTH: &str = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
const NOWHERE: &str = "GET /favicon.ico HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Everything that a silent connection may have said before.
fn beginnings() -> [String; 5] {
    let no_upgrade = "GET /cable HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let key = format!("Authorization: Bearer {BROADCAST_KEY}");
    let body = format!("POST /_broadcast HTTP/1.1\r\nHost: localhost\r\n{key}\r\nContent-Length: 500\r\n\r\n{{");
    [HEALTH.to_owned(), NOWHERE.to_owned(), no_upgrade.to_owned(), "GET /rea".to_owned(), body]
}

#[tokio::test]
async fn row_16_idle_connections_do_not_take_the_reserve() {
    let server = Server::on(Backend::Memory).option("max-conn", 3).option("metrics_http", "/metrics").open_files(256);
    let server = server.start();
    let _clients = [server.connect().await, server.connect().await, server.connect().await];
    for said in beginnings() {
        let mut held = idle(server.address(), &said).await;
        is_served(&server, &said).await;
        // They were answered, or not, and closed: their places are those of others.
        for one in &mut held {
            let mut answer = Vec::new();
            let reading = tokio::time::timeout(Duration::from_secs(40), one.read_to_end(&mut answer));
            let _ = reading.await.expect("closed long before the idle time of a connection is over");
        }
    }
    assert!(server.metric("connections_reserve_full_total").await > 0);
    assert!(server.metric("connections_displaced_total").await > 0);
    assert!(server.log().contains("event=connections_full"), "{}", server.log());
}

#[tokio::test]
async fn row_16_idle_connections_of_one_port_do_not_shut_the_other_one() {
    let server = Server::on(Backend::Memory)
        .option("max-conn", 3)
        .option("metrics_http", "/metrics")
        .without("secret")
        .option("broadcast_key", "none")
        .option("port", 0)
        .open_files(256)
        .start();
    assert_ne!(server.address(), server.broadcast_address());
    let _clients = [server.connect().await, server.connect().await, server.connect().await];
    for said in [HEALTH, NOWHERE, "GET /rea"] {
        // While they are opened, too: no port takes what is the other one's.
        let publishing = async {
            for _ in 0..20 {
                server.publish("chat", json!(1)).await;
            }
        };
        let (_held, ()) = tokio::join!(idle(server.address(), said), publishing);
        is_served(&server, said).await;
    }
}

/// Where no WebSocket is there, idle connections do not keep the first ones out.
#[tokio::test]
async fn row_16_clients_get_the_places_of_idle_connections() {
    let server = Server::on(Backend::Memory).option("max-conn", 10).option("metrics_http", "/metrics").open_files(256);
    let server = server.start();
    let _held = idle(server.address(), HEALTH).await;
    is_served(&server, "idle connections").await;
    let client = async || (server.dial().handshake().await.status == 101).then_some(());
    eventually("a client is let in", client).await;
    server.publish("chat", json!(1)).await;
}
