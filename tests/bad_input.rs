//! Whatever comes, the server goes on: the same connection is served, others do not notice.
//!
//! The fuzzed runs are bounded and seeded; `CARRICK_FUZZ_SEED` repeats one.

use crate::harness::client::Event;
use crate::harness::*;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

on_every_backend!(
    faulty_frames_are_ignored_and_the_connection_goes_on,
    lenient_fields_are_understood,
    commands_for_unknown_identifiers_are_ignored,
    fuzzed_frames_never_stall_a_connection,
    fuzzed_publications_never_stall_the_server,
);

async fn faulty_frames_are_ignored_and_the_connection_goes_on(server: SharedServer) {
    let stream = stream("chat");
    let mut client = server.subscriber(&stream).await;
    let identifier = public(&stream);
    let long = "[".repeat(20_000);
    let frames = [
        String::new(),
        "nonsense".into(),
        "null".into(),
        "[]".into(),
        "7".into(),
        "\"text\"".into(),
        "{}".into(),
        "{".into(),
        long,
        json!({"command": 7}).to_string(),
        json!({"command": null}).to_string(),
        json!({"command": "dance", "identifier": identifier}).to_string(),
        json!({"identifier": identifier}).to_string(),
        json!({"command": "subscribe"}).to_string(),
        json!({"command": "subscribe", "identifier": 7}).to_string(),
        json!({"command": "message", "identifier": identifier}).to_string(),
        json!({"command": "message", "identifier": identifier, "data": {"action": "speak"}}).to_string(),
        json!({"command": "message", "identifier": identifier, "data": "{\"action\":\"speak\"}"}).to_string(),
        json!({"command": "whisper", "identifier": identifier}).to_string(),
        json!({"command": "join", "identifier": identifier}).to_string(),
        json!({"command": "join", "identifier": identifier, "presence": 7}).to_string(),
        json!({"command": "leave", "identifier": identifier}).to_string(),
    ];
    for frame in frames {
        client.send_text(&frame).await;
        client.barrier().await;
    }
    client.send_message(Message::binary(vec![0xff, 0x00, 0xfe])).await;
    client.barrier().await;
    server.publish(&stream, json!(1)).await;
    client.expect_message(&identifier, json!(1)).await;
}

/// Each faulty history request is answered once at most, and the connection goes on.
async fn lenient_fields_are_understood(server: SharedServer) {
    let stream = stream("chat");
    let position = server.publish(&stream, json!(1)).await;
    let mut client = server.subscriber(&stream).await;
    let asked = [
        json!({"since": true}),
        json!({"since": 1.5}),
        json!({"since": "yesterday"}),
        json!({"since": 1e300}),
        json!({"since": {}}),
        json!({"streams": []}),
        json!({"streams": 7}),
        json!({"streams": {&stream: 7}}),
        json!({"streams": {&stream: {"offset": "1", "epoch": position.epoch}}}),
        json!({"streams": {&stream: {"offset": -1, "epoch": position.epoch}}}),
        json!({"streams": {&stream: {"offset": 1.5, "epoch": position.epoch}}}),
        json!({"streams": {&stream: {"offset": 1e30, "epoch": position.epoch}}}),
        json!({"streams": {&stream: {"offset": position.offset}}}),
        json!({"streams": {&stream: {"epoch": position.epoch}}}),
        json!({"streams": {&stream: null}}),
        json!([]),
        json!(7),
        json!(null),
    ];
    for history in &asked {
        client.ask_history(&public(&stream), history.clone()).await;
    }
    let mut answers = 0;
    while let Some(event) = client.event_within(patience::SILENCE).await {
        let Event::Frame(text) = event else { panic!("the connection ended: {event:?}") };
        let frame: serde_json::Value = serde_json::from_str(&text).expect("frames are JSON");
        match frame["type"].as_str() {
            Some("confirm_history" | "reject_history") => answers += 1,
            Some("ping") => {}
            Some(_) => panic!("unexpected {frame}"),
            None => assert_eq!(frame["message"], 1, "{frame}"),
        }
    }
    assert!(answers <= asked.len(), "{answers} answers to {} requests", asked.len());
    assert_eq!(client.history(&public(&stream), json!({})).await, []);
    server.publish(&stream, json!(2)).await;
    client.expect_message(&public(&stream), json!(2)).await;
}

async fn commands_for_unknown_identifiers_are_ignored(server: SharedServer) {
    let identifier = public(&stream("chat"));
    let mut client = server.connect().await;
    for command in ["unsubscribe", "message", "join", "leave", "whisper"] {
        client.send(json!({"command": command, "identifier": identifier, "data": "{}", "presence": {"id": "1"}})).await;
        client.barrier().await;
    }
}

// --- fuzzing ---------------------------------------------------------------------------------------------------------

/// A small generator of numbers: the same seed gives the same run on every machine.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let seed = std::env::var("CARRICK_FUZZ_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or(0x00c0_ffee_0042_u64);
        eprintln!("CARRICK_FUZZ_SEED={seed}");
        Self(seed.max(1))
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).expect("pointers have 64 bits") % limit
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// A valid text with some bytes changed, doubled, cut out or replaced by what parsers stumble over.
    fn spoil(&mut self, text: &str) -> Vec<u8> {
        const SPICE: [&str; 14] = [
            "{",
            "}",
            "[",
            "\"",
            "\\",
            "\\u0000",
            "\\ud800",
            "null",
            "-1",
            "1e999",
            "\u{0}",
            "🐨",
            ":",
            "9999999999999999999",
        ];
        let mut bytes = text.as_bytes().to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len() + 1);
            match self.below(5) {
                0 => bytes.truncate(at),
                1 if at < bytes.len() => bytes[at] = u8::try_from(self.below(256)).expect("below 256"),
                2 => drop(bytes.splice(at..at, self.pick(&SPICE).bytes())),
                3 => {
                    let end = (at + self.below(12)).min(bytes.len());
                    bytes.drain(at..end);
                }
                _ => bytes.extend_from_within(at..),
            }
        }
        bytes
    }
}

async fn fuzzed_frames_never_stall_a_connection(server: SharedServer) {
    let stream = stream("fuzz");
    let identifier = public(&stream);
    let position = server.publish(&stream, json!(0)).await;
    let seeds = [
        json!({"command": "subscribe", "identifier": identifier}),
        json!({"command": "subscribe", "identifier": identifier, "history": {"since": 1, "streams": {}}}),
        json!({"command": "unsubscribe", "identifier": identifier}),
        json!({"command": "history", "identifier": identifier, "history": after(&position)}),
        json!({"command": "message", "identifier": identifier, "data": "{\"action\":\"speak\"}"}),
        json!({"command": "whisper", "identifier": identifier, "data": {"a": [1, 2]}}),
        json!({"command": "join", "identifier": identifier, "presence": {"id": "42", "info": {"name": "Ann"}}}),
        json!({"command": "presence", "identifier": identifier, "data": {"return_records": true}}),
        json!({"command": "pong"}),
    ]
    .map(|frame| frame.to_string());
    let mut dice = Dice::new();
    let mut client = server.connect().await;
    for round in 0..60 {
        for _ in 0..20 {
            let seed = dice.pick(&seeds).clone();
            let bytes = dice.spoil(&seed);
            match String::from_utf8(bytes) {
                Ok(text) => client.send_text(&text).await,
                Err(error) => client.send_message(Message::binary(error.into_bytes())).await,
            }
        }
        // Whatever those did, the connection answers; replies to valid ones come first.
        client.send(json!({"command": "ping"})).await;
        while client.next().await != json!({"type": "pong"}) {}
        assert!(round < 60);
    }
    let mut witness = server.subscriber(&stream).await;
    client.send(json!({"command": "unsubscribe", "identifier": identifier})).await;
    client.send(json!({"command": "subscribe", "identifier": identifier})).await;
    while client.next().await != confirm(&identifier) {}
    server.publish(&stream, json!("after all")).await;
    for client in [&mut client, &mut witness] {
        while client.next().await["message"] != "after all" {}
    }
}

async fn fuzzed_publications_never_stall_the_server(server: SharedServer) {
    let stream = stream("fuzz");
    let mut witness = server.subscriber(&stream).await;
    let seeds = [
        json!({"stream": stream, "data": "{\"a\":1}", "meta": {"exclude_socket": "x", "transient": true}}),
        json!({"stream": stream, "data": "text", "meta": {"id": "1", "broadcast_type": "note"}}),
        json!([{"stream": stream, "data": "1"}, {"stream": stream, "data": "2"}]),
        json!({"command": "disconnect", "payload": {"identifier": "nobody", "reconnect": true}}),
    ]
    .map(|body| body.to_string());
    let mut dice = Dice::new();
    for _ in 0..400 {
        let seed = dice.pick(&seeds).clone();
        let body = dice.spoil(&seed);
        let answer = server.post_with(&[], &body).await;
        assert!(matches!(answer.status, 201 | 413 | 422), "{answer:?} to {:?}", String::from_utf8_lossy(&body));
    }
    server.publish(&stream, json!("after all")).await;
    while witness.next().await["message"] != "after all" {}
}

/// Bytes that are no HTTP, requests cut off, handshakes abandoned, frames against the rules of WebSocket.
#[tokio::test]
async fn noise_on_the_port_harms_nobody() {
    let server = Backend::Memory.shared();
    let mut witness = server.subscriber("noise").await;
    let upgrade = "GET /cable HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let mut dice = Dice::new();
    for round in 0..60 {
        let mut noise: Vec<u8> =
            (0..dice.below(600)).map(|_| u8::try_from(dice.below(256)).expect("below 256")).collect();
        if round % 3 == 0 {
            noise.splice(0..0, upgrade.bytes());
        } else if round % 3 == 1 {
            noise = upgrade.as_bytes()[..dice.below(upgrade.len())].to_vec();
        }
        let mut connection = TcpStream::connect(server.address()).await.expect("the server listens");
        // It may hang up in the middle; that is its right.
        let _ = connection.write_all(&noise).await;
    }
    server.publish("noise", json!(1)).await;
    witness.expect_message(&public("noise"), json!(1)).await;
}

#[tokio::test]
async fn text_that_is_not_utf8_ends_only_its_own_connection() {
    use tokio_tungstenite::tungstenite::protocol::frame::Frame;
    use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
    let server = Backend::Memory.shared();
    let (mut bad, mut good) = (server.connect().await, server.connect().await);
    bad.send_message(Message::Frame(Frame::message(vec![0xc3, 0x28], OpCode::Data(Data::Text), true))).await;
    bad.send(json!({"command": "ping"})).await;
    match bad.event().await {
        Event::Closed(code, _) => assert_eq!(code, 1007),
        Event::Lost => {}
        Event::Frame(text) => assert_eq!(text, r#"{"type":"pong"}"#, "or the frame is ignored"),
    }
    good.barrier().await;
}
