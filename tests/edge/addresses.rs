//! Connections of one address, and whom a proxy speaks for.

use crate::harness::*;

#[tokio::test]
async fn row_14_clients_behind_a_trusted_proxy_are_limited_by_their_own_address() {
    let server = Server::on(Backend::Memory)
        .option("max_conn_per_address", 2)
        .option("trusted_proxies", "10.0.0.0/8,127.0.0.1")
        .option("metrics_http", "/metrics")
        .start();
    let from = |address: &str| server.dial().header("X-Forwarded-For", address);
    let first = from("192.0.2.1").connect().await;
    let _second = from("203.0.113.9, 192.0.2.1, 10.0.0.7").connect().await;
    let refused = from("192.0.2.1").handshake().await;
    assert_eq!(refused.status, 429);
    assert!(refused.header("Retry-After").is_some());
    let _other = from("192.0.2.2").connect().await;
    let _ipv6 = from("2001:db8::1").connect().await;
    drop(first);
    eventually("there is room again", async || (from("192.0.2.1").handshake().await.status == 101).then_some(())).await;
    assert!(server.metric("connections_refused_address_total").await >= 1);
    // Publishers and probes do not count.
    for _ in 0..5 {
        server.publish("chat", serde_json::json!(1)).await;
        assert!(server.is_ready().await);
    }
}

#[tokio::test]
async fn row_14_nobody_else_is_believed_about_addresses() {
    let server =
        Server::on(Backend::Memory).option("max_conn_per_address", 2).option("trusted_proxies", "10.0.0.0/8").start();
    let from = |address: &str| server.dial().header("X-Forwarded-For", address);
    let _clients = [from("192.0.2.1").connect().await, from("192.0.2.2").connect().await];
    assert_eq!(from("192.0.2.3").handshake().await.status, 429);
}

#[tokio::test]
async fn row_14_there_is_no_limit_by_default() {
    let server = Server::on(Backend::Memory).start();
    let mut clients = Vec::new();
    for _ in 0..100 {
        clients.push(server.connect().await);
    }
}
