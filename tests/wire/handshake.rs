//! Upgrade requests: paths, faults, subprotocols, session ids.

use crate::harness::client::{BASE, EXTENDED};
use crate::harness::*;
use ::carrick::auth::jwt;
use ::carrick::secret::Secret;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn the_answer_names_the_version() {
    let server = Backend::Memory.shared();
    let handshake = server.dial().handshake().await;
    assert_eq!(handshake.status, 101);
    assert!(handshake.header("X-AnyCable-Version").is_some_and(|version| !version.is_empty()));
}

#[tokio::test]
async fn other_paths_are_not_found() {
    let server = Backend::Memory.shared();
    for path in ["/cable/", "/", "/Cable", "/cable/x", "/other"] {
        assert_eq!(server.dial().path(path).handshake().await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn further_paths_with_placeholders_and_wildcards() {
    let server = Server::on(Backend::Memory).option("path", "/cable,/accounts/{tenant}/cable,/admin/cable/*").start();
    for path in ["/cable", "/accounts/7/cable", "/admin/cable/x/y"] {
        server.dial().path(path).connect().await;
    }
    for path in ["/accounts/cable", "/accounts/7/8/cable", "/admin"] {
        assert_eq!(server.dial().path(path).handshake().await.status, 404, "{path}");
    }
}

/// Sends a request head as it stands; status and the version header of the answer.
async fn raw(server: &Server, head: &str) -> (u16, Option<String>) {
    let mut connection = TcpStream::connect(server.address()).await.expect("the server listens");
    connection.write_all(head.replace('\n', "\r\n").as_bytes()).await.expect("the server reads");
    let mut answer = Vec::new();
    while !answer.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        assert_ne!(connection.read_buf(&mut answer).await.expect("an answer"), 0, "no complete answer to {head}");
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let version = http::header(&answer, "Sec-WebSocket-Version").map(str::to_owned);
    (http::status(&answer), version)
}

#[tokio::test]
async fn faulty_upgrades_are_answered_with_400() {
    let server = Backend::Memory.shared();
    let complete = "GET /cable HTTP/1.1\nHost: x\nConnection: keep-alive, Upgrade\nUpgrade: WebSocket\n\
                    Sec-WebSocket-Version: 13\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n\n";
    assert_eq!(raw(&server, complete).await.0, 101);
    for (what, faulty) in [
        ("no Connection token", complete.replace("keep-alive, Upgrade", "keep-alive")),
        ("no Upgrade", complete.replace("Upgrade: WebSocket\n", "")),
        ("another Upgrade", complete.replace("WebSocket\n", "h2c\n")),
        ("no key", complete.replace("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n", "")),
        ("short key", complete.replace("dGhlIHNhbXBsZSBub25jZQ==", "dGhl")),
        ("version 8", complete.replace("Version: 13", "Version: 8")),
        ("no version", complete.replace("Sec-WebSocket-Version: 13\n", "")),
    ] {
        assert_eq!(raw(&server, &faulty).await, (400, Some("13".into())), "{what}");
    }
}

#[tokio::test]
async fn other_methods_are_answered_with_405() {
    let server = Backend::Memory.shared();
    for method in ["POST", "PUT", "DELETE"] {
        let head = format!("{method} /cable HTTP/1.1\nHost: x\nContent-Length: 0\n\n");
        assert_eq!(raw(&server, &head).await.0, 405, "{method}");
    }
}

#[tokio::test]
async fn subprotocols_are_negotiated() {
    let server = Backend::Memory.shared();
    for (offer, choice) in [
        (EXTENDED, Some(EXTENDED)),
        (BASE, Some(BASE)),
        ("actioncable-v1-json, actioncable-unsupported", Some(BASE)),
        ("actioncable-unsupported,actioncable-v1-json", Some(BASE)),
        ("actioncable-v1-json, actioncable-v1-ext-json", Some(BASE)),
        ("actioncable-v1-ext-json, actioncable-v1-json", Some(BASE)),
        ("actioncable-unsupported", None),
        ("graphql-ws", None),
    ] {
        let client = server.dial().protocols(offer).connect().await;
        assert_eq!(client.protocol.as_deref(), choice, "{offer}");
    }
    assert_eq!(server.dial().no_protocol().connect().await.protocol, None);
    // The carrier of a token is never chosen.
    let token = jwt::sign(&Secret::new(SECRET), "{}", None);
    for (offer, choice) in [
        (format!("actioncable-v1-ext-json, anycable-token.{token}"), Some(EXTENDED)),
        (format!("anycable-token.{token}"), None),
    ] {
        assert_eq!(server.dial().protocols(&offer).connect().await.protocol.as_deref(), choice, "{offer}");
    }
}

#[tokio::test]
async fn without_a_known_subprotocol_the_base_rules_apply() {
    let server = Backend::Memory.shared();
    let stream = stream("chat");
    for dial in [server.dial().no_protocol(), server.dial().protocols("actioncable-unsupported")] {
        let mut client = dial.connect().await;
        client.subscribe(&public(&stream)).await;
        server.publish(&stream, json!(1)).await;
        assert_eq!(client.next().await["message"], 1);
        let sid = client.drop_hard();
        assert!(!server.resume(&sid).await.is_restored());
    }
}

#[tokio::test]
async fn a_sid_has_21_url_safe_characters() {
    let server = Backend::Memory.shared();
    for client in [server.connect().await, server.connect_base().await] {
        assert_eq!(client.sid.len(), 21);
        assert!(client.sid.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)), "{}", client.sid);
    }
}

#[tokio::test]
async fn a_head_that_never_ends_is_given_up() {
    let server = Backend::Memory.shared();
    let mut connection = TcpStream::connect(server.address()).await.expect("the server listens");
    connection.write_all(b"GET /cable HTTP/1.1\r\nHost: x\r\n").await.expect("the server reads");
    let mut answer = Vec::new();
    let end = tokio::time::timeout(PATIENCE, connection.read_to_end(&mut answer)).await;
    assert!(end.is_ok(), "the connection is still open");
}
