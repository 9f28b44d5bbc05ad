//! A client that asks for much and reads its answers slowly. The socket is a bare one: what is read is read by the test.

use crate::harness::*;
use serde_json::json;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};

const COMMANDS: usize = 300;

/// A client whose system keeps little for it.
async fn client(server: &Server) -> (OwnedReadHalf, OwnedWriteHalf) {
    let socket = TcpSocket::new_v4().expect("a socket can be made");
    socket.set_recv_buffer_size(32 << 10).expect("the size can be set");
    let mut socket: TcpStream = socket.connect(server.address()).await.expect("the server listens");
    let upgrade = "GET /cable HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                   Sec-WebSocket-Protocol: actioncable-v1-ext-json\r\n\r\n";
    socket.write_all(upgrade.as_bytes()).await.expect("the server reads");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.expect("an answer"));
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    socket.into_split()
}

/// Subscribes under long identifiers, as fast as the server takes it.
async fn subscribe_to_much(mut write: OwnedWriteHalf) -> OwnedWriteHalf {
    for n in 0..COMMANDS {
        let identifier = json!({"channel": "$pubsub", "stream_name": "chat", "n": n, "text": "x".repeat(4_000)});
        let command = json!({"command": "subscribe", "identifier": identifier.to_string()}).to_string();
        let mut frame = vec![0x81, 0xfe];
        frame.extend_from_slice(&u16::try_from(command.len()).expect("short enough").to_be_bytes());
        // Masked with zeros.
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(command.as_bytes());
        if write.write_all(&frame).await.is_err() {
            break;
        }
    }
    write
}

/// The text of the next frame; `None`: the connection is over.
async fn frame(read: &mut OwnedReadHalf) -> Option<String> {
    let [first, length] = [read.read_u8().await.ok()?, read.read_u8().await.ok()?];
    let length = match length {
        126 => usize::from(read.read_u16().await.ok()?),
        short => usize::from(short),
    };
    let mut payload = vec![0; length];
    read.read_exact(&mut payload).await.ok()?;
    (first == 0x81).then(|| String::from_utf8_lossy(&payload).into_owned())
}

#[tokio::test]
async fn row_04_the_answers_to_what_a_slow_reader_asks_for_do_not_make_it_slow() {
    let server = Server::on(Backend::Memory)
        .option("metrics_http", "/metrics")
        .option("ws_max_pending_size", 256 << 10)
        .option("ws_write_timeout", "500ms")
        .start();
    let (mut read, write) = client(&server).await;
    let sending = tokio::spawn(subscribe_to_much(write));
    let mut confirmed = 0;
    while confirmed < COMMANDS {
        let text = frame(&mut read).await.unwrap_or_else(|| panic!("closed after {confirmed}\n{}", server.log()));
        confirmed += usize::from(text.contains("confirm_subscription"));
        // It reads 200 KB in a second, always.
        let_pass(Duration::from_millis(20)).await;
    }
    sending.await.expect("everything is sent");
    assert_eq!(server.metric("disconnected_slow_clients_total").await, 0);
}

#[tokio::test]
async fn row_04_who_reads_none_of_its_answers_is_closed() {
    let server =
        Server::on(Backend::Memory).option("metrics_http", "/metrics").option("ws_write_timeout", "200ms").start();
    let (read, write) = client(&server).await;
    let sending = tokio::spawn(subscribe_to_much(write));
    let closed = async || {
        let judged = ["timeout_server_msg_total", "disconnected_slow_clients_total"];
        let counts = [server.metric(judged[0]).await, server.metric(judged[1]).await];
        (counts.iter().sum::<i64>() > 0).then_some(())
    };
    eventually("it is closed", closed).await;
    drop((read, sending));
}
