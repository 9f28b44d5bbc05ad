//! Who may connect: origins, and servers that let nobody in.

use crate::harness::carrick::Builder;
use crate::harness::*;
use serde_json::json;

#[tokio::test]
async fn without_allowed_origins_every_origin_may_connect() {
    Backend::Memory.shared().dial().header("Origin", "https://anywhere.example").connect().await;
}

#[tokio::test]
async fn only_allowed_origins_may_connect() {
    let origins = "app.example,Local.example:3000,*.wild.example";
    let server = Server::on(Backend::Memory).option("allowed_origins", origins).start();
    for origin in ["https://app.example", "HTTP://APP.example", "http://local.example:3000", "https://a.b.wild.example"]
    {
        server.dial().header("Origin", origin).connect().await;
    }
    for origin in
        ["https://evil.example", "https://app.example:8443", "http://local.example", "null", "app.example.evil"]
    {
        assert_eq!(server.dial().header("Origin", origin).handshake().await.status, 403, "{origin}");
    }
    assert_eq!(server.dial().handshake().await.status, 403, "no origin");
}

/// No application, no `noauth`: the upgrade succeeds, then the client is told.
#[tokio::test]
async fn without_any_authenticator_everybody_is_unauthorized() {
    let server = Builder::closed().option("secret", SECRET).option("broker", "memory").start();
    for dial in [server.dial(), server.dial().base(), server.dial().sid("Zt0gq8m1J7bVnX4_kLr2P")] {
        let mut client = dial.open().await;
        client.expect(disconnect("unauthorized", false)).await;
        client.expect_close(1000, "Auth Failed").await;
    }
}

#[tokio::test]
async fn public_streams_need_the_option() {
    let options = Builder::closed().option("noauth", true).option("secret", SECRET);
    let server = options.option("broker", "memory").start();
    let mut client = server.connect().await;
    client.send(json!({"command": "subscribe", "identifier": public("chat")})).await;
    client.expect(reject(&public("chat"))).await;
    client.subscribe(&signed("chat")).await;
}

/// Never verify with an empty key.
#[tokio::test]
async fn without_a_secret_every_signed_name_is_rejected() {
    let options = Builder::closed().option("noauth", true).option("public_streams", true).option("broker", "memory");
    let server = options.option("broadcast_key", "k").start();
    let mut client = server.connect().await;
    for secret in ["", SECRET, "none"] {
        let identifier = json!({"channel": "$pubsub", "signed_stream_name": sign("chat", secret)}).to_string();
        client.send(json!({"command": "subscribe", "identifier": identifier})).await;
        client.expect(reject(&identifier)).await;
    }
}

#[tokio::test]
async fn channels_of_an_application_are_rejected_without_one() {
    let server = Server::on(Backend::Memory).start();
    let mut client = server.connect().await;
    for identifier in [
        json!({"channel": "ChatChannel", "id": 7}).to_string(),
        json!({"channel": "Turbo::StreamsChannel", "signed_stream_name": sign("chat", SECRET)}).to_string(),
        json!({"channel": "CableReady::Stream", "identifier": sign("chat", SECRET)}).to_string(),
        json!({"stream_name": "chat"}).to_string(),
        "not json".to_owned(),
        "[]".to_owned(),
    ] {
        client.send(json!({"command": "subscribe", "identifier": identifier})).await;
        client.expect(reject(&identifier)).await;
    }
}

#[tokio::test]
async fn turbo_and_cable_ready_streams_if_enabled() {
    let server = Server::on(Backend::Memory).option("turbo_streams", true).option("cable_ready", true).start();
    let turbo = json!({"channel": "Turbo::StreamsChannel", "signed_stream_name": sign("chat", SECRET)}).to_string();
    let cable_ready = json!({"channel": "CableReady::Stream", "identifier": sign("chat", SECRET)}).to_string();
    let forged = json!({"channel": "Turbo::StreamsChannel", "signed_stream_name": sign("chat", "other")}).to_string();
    let (mut client, mut other) = (server.connect().await, server.subscriber("chat").await);
    client.subscribe(&turbo).await;
    client.subscribe(&cable_ready).await;
    client.send(json!({"command": "subscribe", "identifier": forged})).await;
    client.expect(reject(&forged)).await;
    client.whisper(&turbo, json!("no whispers here")).await;
    client.barrier().await;
    other.expect_silence().await;
    server.publish("chat", json!("<turbo-stream>")).await;
    assert_eq!(client.next().await["message"], "<turbo-stream>");
    assert_eq!(client.next().await["message"], "<turbo-stream>");
}

#[tokio::test]
async fn signed_streams_whisper_if_enabled() {
    let server = Server::on(Backend::Memory).option("streams_whisper", true).start();
    let (mut sender, mut other) = (server.connect().await, server.subscriber("chat").await);
    sender.subscribe(&signed("chat")).await;
    sender.whisper(&signed("chat"), json!("psst")).await;
    other.expect_message(&public("chat"), json!("psst")).await;
}
