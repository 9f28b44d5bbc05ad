//! Web pages and an open publishing port.

use crate::harness::*;
use serde_json::json;

async fn status(server: &Server, headers: &[(&str, &str)]) -> u16 {
    let body = json!({"stream": "chat", "data": "1"}).to_string();
    let answer = http::request(server.broadcast_address(), "POST", "/_broadcast", headers, body.as_bytes()).await;
    assert!(answer.status != 403 || answer.body.contains("error"), "it says why: {answer:?}");
    answer.status
}

/// Without a key, on a port of its own.
fn open() -> carrick::Builder {
    Server::on(Backend::Memory).without("secret").option("broadcast_key", "none").option("port", "0")
}

#[tokio::test]
async fn row_21_no_page_publishes_to_an_open_port() {
    let server = open().option("metrics_http", "/metrics").start();
    assert_eq!(status(&server, &[]).await, 201);
    assert_eq!(status(&server, &[("Content-Type", "text/plain")]).await, 201);
    for page in [
        &[("Origin", "http://evil.test"), ("Content-Type", "text/plain")][..],
        &[("Origin", "null")],
        &[("Origin", "http://localhost:3000")],
        &[("Sec-Fetch-Site", "cross-site")],
        &[("Host", "evil.test")],
        &[("Host", "localhost.evil.test")],
    ] {
        assert_eq!(status(&server, page).await, 403, "{page:?}");
    }
    assert_eq!(server.metric("http_broadcast_pages_refused_total").await, 6);
    // A user before the host is no host.
    for host in ["evil.test@localhost", "localhost@evil.test"] {
        assert_eq!(status(&server, &[("Host", host)]).await, 400, "{host}");
    }
}

#[tokio::test]
async fn row_21_pages_that_are_meant_to_publish_may() {
    let server = open().option("http_broadcast_cors", "true").option("allowed_origins", "acme.test").start();
    assert_eq!(status(&server, &[("Origin", "https://acme.test"), ("Sec-Fetch-Site", "cross-site")]).await, 201);
    assert_eq!(status(&server, &[("Origin", "https://evil.test")]).await, 403);
}

#[tokio::test]
async fn row_21_with_a_key_nothing_else_is_asked() {
    let server = Backend::Memory.shared();
    let key = format!("Bearer {BROADCAST_KEY}");
    let headers = [("Authorization", key.as_str()), ("Origin", "http://evil.test"), ("Host", "evil.test")];
    assert_eq!(status(&server, &headers).await, 201);
}
