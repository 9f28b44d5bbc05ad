//! File descriptors run out for clients first, and for nobody else.

use crate::harness::*;
use serde_json::json;
use std::time::{Duration, Instant};

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
        assert!(asked.elapsed() < Duration::from_secs(5), "an answer comes at once");
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
