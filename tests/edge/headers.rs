//! What the application gets to see of a client's request.

use crate::harness::*;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

over_every_wire!(row_23_the_application_sees_all_lines_of_a_header_and_the_clients_address);

async fn row_23_the_application_sees_all_lines_of_a_header_and_the_clients_address(wire: Wire) {
    let app = Application::start(wire, Reply::usual);
    let server = app.server().option("headers", "cookie,x-tags").option("trusted_proxies", "127.0.0.1").start();
    let dial = server.dial().query("test=headers").header("X-Tags", "a").header("Cookie", "a=1");
    let dial = dial.header("X-Tags", "b, c").header("Cookie", "b=2");
    let dial = dial.header("X-Forwarded-For", "203.0.113.9").header("X-Forwarded-For", "192.0.2.1, 127.0.0.1");
    dial.connect().await;
    let seen = &app.calls()[0].body["env"]["headers"];
    assert_eq!(*seen, json!({"REMOTE_ADDR": "192.0.2.1", "cookie": "a=1; b=2", "x-tags": "a, b, c"}));
}

/// Sends bytes as they stand on a fresh WebSocket, and returns the code of the server's close frame.
async fn close_code(server: &Server, frame: &[u8]) -> u16 {
    let mut connection = TcpStream::connect(server.address()).await.expect("the server listens");
    let upgrade = "GET /cable HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    connection.write_all(upgrade.as_bytes()).await.expect("the server reads");
    connection.write_all(frame).await.expect("the server reads");
    let mut answer = Vec::new();
    let reading = connection.read_to_end(&mut answer);
    tokio::time::timeout(PATIENCE, reading).await.expect("it closes").expect("in order");
    // Server frames are text, and of text no byte is 0x88 after its first.
    let start = answer.iter().rposition(|byte| *byte == 0x88).expect("a close frame");
    u16::from_be_bytes([answer[start + 2], answer[start + 3]])
}

/// A client's frame, masked with zeros.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("short");
    let header = if length < 126 { vec![first, 0x80 | length] } else { vec![first, 0x80 | 126, 0, length] };
    [&header, &[0; 4][..], payload].concat()
}

#[tokio::test]
async fn row_25_breaches_of_the_protocol_have_their_close_codes() {
    let server = Backend::Memory.shared();
    let cases = [
        (1007, frame(0x81, &[0xc3, 0x28])),
        // A continuation of nothing, a reserved opcode, a reserved bit, a ping too long, a ping in fragments, no mask.
        (1002, frame(0x80, b"x")),
        (1002, frame(0x83, b"x")),
        (1002, frame(0xc1, b"x")),
        (1002, frame(0x89, &[b'x'; 126])),
        (1002, frame(0x09, b"x")),
        (1002, vec![0x81, 0x01, b'x']),
    ];
    for (expected, faulty) in cases {
        assert_eq!(close_code(&server, &faulty).await, expected, "{faulty:02x?}");
    }
}

/// It is not the session's fault.
#[tokio::test]
async fn row_25_a_session_survives_a_faulty_frame() {
    let server = Backend::Memory.shared();
    let mut client = server.connect().await;
    client.send_message(Message::Frame(Frame::message(vec![0xc3, 0x28], OpCode::Data(Data::Text), true))).await;
    client.expect_close(1007, "Invalid text").await;
    assert!(server.resume(&client.sid).await.is_restored());
}
