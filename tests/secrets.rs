//! What must not stand in a log: everything that lets somebody in, in a run that meets every fault which is logged.

use crate::harness::carrick::Builder;
use crate::harness::*;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const APPLICATION_SECRET: &str = "application-s3cr3t-Kf93hzLq";
const JWT_SECRET: &str = "token-s3cr3t-8sHdYb2m";
const STREAMS_SECRET: &str = "streams-s3cr3t-Zp4vTr7w";
const PUBLISHERS_KEY: &str = "publishers-k3y-Qm5nXc1d";
const WRONG_KEY: &str = "wrong-k3y-Bv6gLs0e";
const RPC_SECRET: &str = "rpc-s3cr3t-Wn2kJf8y";
const NATS_PASSWORD: &str = "nats-pa55word-Gh7rUo3a";
const COOKIE: &str = "c00kie-Dx9qMi5t";
const HEADER: &str = "h3ader-t0ken-Vc4bPz6s";
const PARAMETER: &str = "par4meter-Ek1wSn8u";

#[tokio::test]
async fn row_19_no_secret_in_a_log_at_debug_as_text() {
    run(Wire::Grpc, "debug", "text").await;
}

#[tokio::test]
async fn row_19_no_secret_in_a_log_at_debug_as_json() {
    run(Wire::Http, "debug", "json").await;
}

#[tokio::test]
async fn row_19_no_secret_in_a_log_at_info() {
    run(Wire::Http, "info", "text").await;
}

#[tokio::test]
async fn row_19_no_secret_in_a_log_at_warn() {
    run(Wire::Grpc, "warn", "json").await;
}

#[tokio::test]
async fn row_19_no_secret_in_a_log_at_error() {
    run(Wire::Grpc, "error", "text").await;
}

/// The protocol of the embedded nats-server: saved sessions and messages pass through it.
#[tokio::test]
async fn row_19_no_secret_in_the_trace_of_the_store() {
    let server = Server::on(Backend::EmbeddedNats).option("enats_trace", "true").option("log_level", "debug").start();
    let client = server.subscriber("chat").await;
    server.publish("chat", json!(PARAMETER)).await;
    let sid = client.drop_hard();
    let restored = server.resume(&sid).await;
    assert!(restored.is_restored());
    let secrets = [sid, restored.drop_hard(), PARAMETER.to_owned()];
    let log = server.log();
    for traced in ["[CONNECT ", "[HPUB $KV.carrick_sessions.", "[HPUB carrick.log."] {
        assert!(log.contains(traced), "{traced} is missing: {log}");
    }
    holds_none_of(&log, &secrets);
}

/// The configuration, printed, and refused with a mistake in it.
#[tokio::test]
async fn row_19_no_secret_in_what_the_configuration_says() {
    let url = format!("nats://carrick:{NATS_PASSWORD}@127.0.0.1:4222");
    let with_secrets = || {
        let builder = Builder::closed().option("secret", APPLICATION_SECRET).option("jwt_secret", JWT_SECRET);
        let builder = builder.option("streams_secret", STREAMS_SECRET).option("broadcast_key", PUBLISHERS_KEY);
        builder.option("http_rpc_secret", RPC_SECRET).option("nats_servers", &url)
    };
    let rpc = format!("http://user:{RPC_SECRET}@localhost:3000/?t={PARAMETER}");
    let server = with_secrets().without("norpc").option("rpc_host", &rpc);
    let (code, printed) = server.clone().option("print-config", true).refused();
    assert_eq!(code, Some(0), "{printed}");
    let mut said = printed;
    for (option, value) in [
        ("rpc_host", rpc.clone()),
        ("rpc_host", format!("user:{RPC_SECRET}@localhost:3000:1")),
        ("nats_servers", format!("nats://carrick:{NATS_PASSWORD}@h:port")),
        ("enats_addr", format!("nats://carrick:{NATS_PASSWORD}@h")),
        ("enats_cluster_routes", format!("nats://carrick:{NATS_PASSWORD}@h")),
        ("enats_gateways", format!("east:carrick:{NATS_PASSWORD}@h:1")),
        ("port", format!("carrick:{NATS_PASSWORD}@h:1")),
    ] {
        let server = with_secrets().without("norpc").without(option).option(option, value).option("port_file", "p");
        let (code, refusal) = server.refused();
        assert_eq!(code, Some(1), "{option}: {refusal}");
        said += &refusal;
    }
    holds_none_of(&said, &fixed());
}

/// Secrets that are the same in every run.
fn fixed() -> Vec<String> {
    [
        APPLICATION_SECRET,
        JWT_SECRET,
        STREAMS_SECRET,
        PUBLISHERS_KEY,
        WRONG_KEY,
        RPC_SECRET,
        NATS_PASSWORD,
        COOKIE,
        HEADER,
        PARAMETER,
    ]
    .map(str::to_owned)
    .into()
}

#[track_caller]
fn holds_none_of(text: &str, secrets: &[String]) {
    for secret in secrets {
        assert!(secret.len() >= 15, "{secret} may stand anywhere by chance");
        let line = text.lines().find(|line| line.contains(secret.as_str()));
        assert!(line.is_none(), "{secret} in: {}", line.unwrap_or_default());
    }
}

fn hmac_of(key: &str, text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("a key may have any length");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn token(key: &str, user: &str, seconds: i64) -> String {
    let expires = i64::try_from(unix_now()).expect("a date of this century") + seconds;
    let parts =
        [json!({"alg": "HS256", "typ": "JWT"}), json!({"ext": format!("{{\"user\":\"{user}\"}}"), "exp": expires})];
    let [head, claims] = parts.map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
    let signed = format!("{head}.{claims}");
    let signature = URL_SAFE_NO_PAD.encode(hmac_of(key, &signed));
    format!("{signed}.{signature}")
}

/// A signed stream name, as the application makes it.
fn signed_name(stream: &str) -> String {
    let name = STANDARD.encode(json!(stream).to_string());
    let signature = hmac_of(STREAMS_SECRET, &name).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("{name}--{signature}")
}

/// An application that quotes everything it was sent when it fails.
fn quoting(call: &Call) -> Reply {
    let all = format!("cannot: {} {:?}", call.body, call.headers);
    match call.method {
        Method::Connect if call.url().contains("fail") => Reply::error(&all),
        Method::Disconnect => Reply::error(&all),
        Method::Command if call.command() == "message" => Reply::error(&all),
        _ => Reply::usual(call),
    }
}

async fn until_end(mut client: Client) {
    while matches!(client.event().await, client::Event::Frame(_)) {}
}

/// Until every earlier command is done.
async fn until_pong(client: &mut Client) {
    client.send(json!({"command": "ping"})).await;
    while client.next().await["type"] != "pong" {}
}

async fn run(wire: Wire, level: &str, format: &str) {
    let mut secrets = fixed();
    let mut nats = NatsServer::start();
    let mut app = Application::start(wire, quoting);
    let servers = format!("nats://carrick:{NATS_PASSWORD}@{}", nats.address());
    let options = app.behind(Builder::closed()).option("broker", "nats").option("nats_servers", servers);
    let options = options.option("secret", APPLICATION_SECRET).option("jwt_secret", JWT_SECRET);
    let options = options.option("streams_secret", STREAMS_SECRET).option("streams_whisper", true);
    let options = options.option("broadcast_key", PUBLISHERS_KEY).option("http_rpc_secret", RPC_SECRET);
    let options = options.option("headers", "cookie,x-api-token").option("rpc_command_timeout", 5_000);
    let options = options
        .option("broker_timeout", 5)
        .option("publish_timeout", 5)
        .option("log_level", level)
        .option("log_format", format);
    let mut server = options.start();

    // Tokens by every way, right and wrong.
    let right = token(JWT_SECRET, "ann", 60);
    let wrong =
        [token(WRONG_KEY, "eve", 60), token(JWT_SECRET, "old", -5), format!("{}x", token(JWT_SECRET, "bob", 9))];
    for token in wrong.iter().chain([&right]) {
        server.dial().query(&format!("jid={token}")).open().await;
        server.dial().header("x-jid", token).open().await;
        server.dial().protocols(&format!("actioncable-v1-ext-json, anycable-token.{token}")).open().await;
        secrets.push(token.clone());
        secrets.push(token.rsplit('.').next().expect("a signature").to_owned());
    }

    // Clients of the application, who carry cookies and headers, and one that it fails for.
    let dial = |query: &str| {
        let dial = server.dial().query(&format!("p={PARAMETER}")).query(query);
        dial.header("cookie", &format!("_session={COOKIE}")).header("x-api-token", HEADER)
    };
    until_end(dial("fail=1").open().await).await;
    let mut client = dial("user=1").connect().await;
    secrets.push(client.sid.clone());
    let name = signed_name("chat/1");
    secrets.push(name.clone());
    let stream = json!({"channel": "$pubsub", "signed_stream_name": name}).to_string();
    client.subscribe(&stream).await;
    let forged = format!("{}--{}", STANDARD.encode("\"chat/2\""), "0123456789abcdef".repeat(4));
    secrets.push(forged.clone());
    client.send(json!({"command": "subscribe", "identifier": json!({"channel": "$pubsub", "signed_stream_name": forged}).to_string()})).await;
    assert_eq!(client.next().await["type"], "reject_subscription");
    let channel = json!({"channel": "ChatChannel", "key": PARAMETER}).to_string();
    client.subscribe(&channel).await;
    client.send(json!({"command": "message", "identifier": channel, "data": json!({"say": HEADER}).to_string()})).await;
    client.send(json!({"command": "whisper", "identifier": stream, "data": {"secret": HEADER}})).await;

    // Frames that make no sense and hold secrets in every place.
    let sid = client.sid.clone();
    for secret in [sid.as_str(), right.as_str(), name.as_str(), HEADER] {
        for frame in [
            json!({"command": secret, "identifier": secret}),
            json!({"command": "subscribe", "identifier": json!({"channel": secret}).to_string()}),
            json!({"command": "message", "identifier": secret, "data": secret}),
            json!({"command": "history", "identifier": secret, "history": {"streams": {secret: secret}}}),
            json!({"command": "whisper", "identifier": secret}),
            json!({ secret: secret }),
            json!(secret),
        ] {
            client.send_text(&frame.to_string()).await;
        }
        client.send_text(secret).await;
        client.send_text(&format!("{{\"command\":\"{secret}")).await;
        server.dial().query(&format!("pi={secret}")).query(&format!("ptp={secret}")).open().await;
        server.dial().path(&format!("/{}", secret.replace('/', "_"))).handshake().await;
    }

    until_pong(&mut client).await;

    // Publishers with the right key and with wrong ones; publications that are none.
    let address = server.broadcast_address();
    let publish = async |key: &str, body: Value| {
        let headers = [("Authorization", format!("Bearer {key}"))];
        let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
        http::request(address, "POST", "/_broadcast", &headers, body.to_string().as_bytes()).await.status
    };
    assert_eq!(
        publish(PUBLISHERS_KEY, json!({"stream": "chat/1", "data": "1", "meta": {"exclude_socket": sid}})).await,
        201
    );
    assert_eq!(publish(WRONG_KEY, json!({"stream": "chat/1", "data": "2"})).await, 401);
    assert_eq!(publish(PUBLISHERS_KEY, json!({"command": PUBLISHERS_KEY, "payload": right})).await, 201);
    for odd in
        [json!({"stream": [sid]}), json!({"stream": "a", "data": {right.as_str(): 1}}), json!(name), json!([sid])]
    {
        assert_eq!(publish(PUBLISHERS_KEY, odd).await, 422);
    }

    // The application away, and the store.
    app.kill();
    client.send(json!({"command": "message", "identifier": channel, "data": "{}"})).await;
    until_pong(&mut client).await;
    until_end(dial("user=2").open().await).await;
    nats.kill();
    eventually("not ready", async || (!server.is_ready().await).then_some(())).await;
    assert_eq!(publish(PUBLISHERS_KEY, json!({"stream": "chat/1", "data": "3"})).await, 503);
    until_end(server.dial().sid(&sid).open().await).await;
    nats.restart();
    app.restart();
    eventually("ready", async || server.is_ready().await.then_some(())).await;

    // Sessions that go on, and end from outside.
    drop(client);
    let back = server.dial().sid(&sid).open().await;
    drop(back);
    let disconnect =
        json!({"command": "disconnect", "payload": {"identifier": "{\"user\":\"1\"}", "reconnect": false}});
    assert_eq!(publish(PUBLISHERS_KEY, disconnect).await, 201);
    server.dial().sid(&sid).open().await;
    app.called(Method::Disconnect, 1).await;

    // The run met what it was made to meet: the lines are there, and those about one session can be found.
    let fingerprint = format!("sid#{}", &hex(&Sha256::digest(&sid))[..6]);
    let of_everyone = ["a command failed", "could not be authenticated", "NATS is not available", "could not be told"];
    let of_debug = ["token refused", "token#", "client frame skipped", "ChatChannel#", "$pubsub#", &fingerprint];
    let expected = match level {
        "debug" => [&of_everyone[..], &of_debug[..]].concat(),
        "info" | "warn" => of_everyone.to_vec(),
        _ => Vec::new(),
    };
    for part in expected {
        eventually(&format!("{part} is in the log"), async || server.log().contains(part).then_some(())).await;
    }
    holds_none_of(&server.get("/metrics").await.body, &secrets);
    server.stop();
    let log = server.log();
    assert_eq!(log.is_empty(), level == "error", "{log}");
    holds_none_of(&log, &secrets);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
