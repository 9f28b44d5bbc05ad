//! The HTTP entrance: keys, answers, batches, retries.

use crate::harness::*;
use futures_util::future::join_all;
use serde_json::json;

const PATH: &str = "/_broadcast";

on_every_backend!(
    the_answer_says_where_the_message_stands,
    a_batch_is_answered_item_by_item,
    a_retry_with_the_same_key_is_not_a_second_message,
    the_same_key_on_two_streams_does_not_collide,
    items_of_a_batch_have_ids_of_their_own,
    many_requests_in_flight,
    row_24_long_texts_beside_the_data_are_refused_at_once,
);

with_own_server_on_every_backend!(the_answer_says_what_the_message_survives);

async fn the_answer_says_where_the_message_stands(server: SharedServer) {
    let stream = stream("chat");
    let mut client = server.subscriber(&stream).await;
    let answer = server.accepted(json!({"stream": stream, "data": "1"})).await;
    let live = client.expect_message(&public(&stream), json!(1)).await.at();
    let durability = &answer["durability"];
    let expected = json!({
        "stream": stream, "epoch": live.epoch, "offset": live.offset, "duplicate": false, "durability": durability,
    });
    assert_eq!(answer, expected);
}

async fn the_answer_says_what_the_message_survives(backend: Backend) {
    let server = Server::on(backend).start();
    let expected = if backend == Backend::Memory { "memory" } else { "server" };
    assert_eq!(server.accepted(json!({"stream": "a", "data": "1"})).await["durability"], expected);
    if backend == Backend::EmbeddedNats {
        let synced = Server::on(backend).option("enats_sync", "always").start();
        assert_eq!(synced.accepted(json!({"stream": "a", "data": "1"})).await["durability"], "synced");
    }
}

/// Whatever the store could take: the limits are the same for all, and named.
async fn row_24_long_texts_beside_the_data_are_refused_at_once(server: SharedServer) {
    let stream = stream("chat");
    for field in ["exclude_socket", "broadcast_type"] {
        let publish = async |len: usize, transient: bool| {
            let meta = json!({field: "%".repeat(len), "transient": transient});
            let begin = std::time::Instant::now();
            let answer = server.post(&json!({"stream": stream, "data": "1", "meta": meta}).to_string()).await;
            // The store would have ten seconds.
            assert!(begin.elapsed() < std::time::Duration::from_secs(8), "{field}: {:?}", begin.elapsed());
            answer
        };
        for transient in [false, true] {
            for len in [2_049, 100_000, 1_200_000] {
                let answer = publish(len, transient).await;
                assert_eq!(answer.status, 422, "{field} of {len} bytes: {answer:?}");
                assert!(answer.body.contains(field) && answer.body.contains("2048"), "{answer:?}");
            }
            assert_eq!(publish(2_048, transient).await.status, 201);
        }
    }
    let meta = json!({"exclude_socket": "ä".repeat(1_024), "broadcast_type": "ü".repeat(1_024)});
    let long = json!({"stream": format!("{stream}{}", "x".repeat(32_700)), "data": "1", "meta": meta});
    assert_eq!(server.post(&long.to_string()).await.status, 201, "the longest of all together");
}

async fn a_batch_is_answered_item_by_item(server: SharedServer) {
    let (one, two) = (stream("chat"), stream("chat"));
    let batch = json!([{"stream": one, "data": "1"}, {"stream": two, "data": "2"}, {"stream": one, "data": "3"}]);
    let answer = server.accepted(batch).await;
    let results = answer.as_array().expect("an array");
    let streams: Vec<_> = results.iter().map(|result| result["stream"].clone()).collect();
    assert_eq!(streams, [json!(one), json!(two), json!(one)]);
    assert!(results[2]["offset"].as_u64() > results[0]["offset"].as_u64(), "{answer}");
}

async fn a_retry_with_the_same_key_is_not_a_second_message(server: SharedServer) {
    let stream = stream("chat");
    let mut client = server.subscriber(&stream).await;
    let body = json!({"stream": stream, "data": "1"}).to_string();
    let key = [("Idempotency-Key", stream.as_str())];
    let first = server.post_with(&key, body.as_bytes()).await.json();
    let second = server.post_with(&key, body.as_bytes()).await;
    assert_eq!(second.status, 201);
    let second = second.json();
    assert_eq!((&first["duplicate"], &second["duplicate"]), (&json!(false), &json!(true)));
    assert_eq!(Position::of(&first), Position::of(&second));
    client.expect_message(&public(&stream), json!(1)).await;
    client.expect_silence().await;
}

async fn the_same_key_on_two_streams_does_not_collide(server: SharedServer) {
    let (one, two) = (stream("chat"), stream("chat"));
    for stream in [&one, &two] {
        let body = json!({"stream": stream, "data": "1", "meta": {"id": one}});
        assert_eq!(server.accepted(body).await["duplicate"], false);
    }
}

async fn items_of_a_batch_have_ids_of_their_own(server: SharedServer) {
    let stream = stream("chat");
    let mut client = server.subscriber(&stream).await;
    let item =
        |number: u64| json!({"stream": stream, "data": number.to_string(), "meta": {"id": format!("id-{number}")}});
    server.accepted(json!([item(1), item(2)])).await;
    let answer = server.accepted(json!([item(2), item(3)])).await;
    assert_eq!((&answer[0]["duplicate"], &answer[1]["duplicate"]), (&json!(true), &json!(false)));
    client.expect_numbers(&public(&stream), 1..=3).await;
    client.expect_silence().await;
}

async fn many_requests_in_flight(server: SharedServer) {
    let streams: Vec<_> = (0..10).map(|_| stream("chat")).collect();
    let mut client = server.connect().await;
    for stream in &streams {
        client.subscribe(&public(stream)).await;
    }
    join_all((0..100).map(|number| server.publish(&streams[number % 10], json!(number)))).await;
    let mut numbers = Vec::new();
    for _ in 0..100 {
        numbers.push(client.next().await["message"].as_u64().expect("a number"));
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (0..100).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_key_is_needed() {
    let server = Backend::Memory.shared();
    let body = json!({"stream": "chat", "data": "1"}).to_string();
    for authorization in ["", "Bearer", "Bearer wrong", BROADCAST_KEY, &format!("Basic {BROADCAST_KEY}")] {
        let headers = [("Authorization", authorization)];
        let answer = http::request(server.address(), "POST", PATH, &headers, body.as_bytes()).await;
        assert_eq!(answer.status, 401, "{authorization:?}");
    }
    assert_eq!(http::request(server.address(), "POST", PATH, &[], body.as_bytes()).await.status, 401);
}

#[tokio::test]
async fn other_methods_and_paths_are_refused() {
    let server = Backend::Memory.shared();
    for method in ["GET", "PUT", "DELETE"] {
        assert_eq!(http::request(server.address(), method, PATH, &[], b"").await.status, 422, "{method}");
    }
    assert_eq!(http::request(server.address(), "POST", "/_broadcast/x", &[], b"").await.status, 404);
}

#[tokio::test]
async fn malformed_payloads_are_refused_with_a_reason() {
    let server = Backend::Memory.shared();
    for body in [
        "",
        "nonsense",
        "null",
        "7",
        "{}",
        "[]",
        r#"{"stream":"","data":"1"}"#,
        r#"{"stream":7,"data":"1"}"#,
        r#"{"stream":"chat"}"#,
        r#"{"stream":"chat","data":{"not":"text"}}"#,
        r#"{"stream":"chat","data":"1","meta":7}"#,
        r#"{"command":"disconnect"}"#,
        r#"{"command":"disconnect","payload":{}}"#,
        r#"[{"stream":"chat","data":"1"},{"data":"2"}]"#,
        r#"[{"stream":"chat","data":"1"},{"command":"disconnect","payload":{"identifier":"x"}}]"#,
    ] {
        let answer = server.post(body).await;
        assert_eq!(answer.status, 422, "{body}");
        assert!(!answer.body.is_empty(), "a reason for {body}");
    }
    assert_eq!(server.post_with(&[], b"\xff\xfe").await.status, 422);
}

#[tokio::test]
async fn positions_and_unknown_fields_of_a_publisher_are_ignored() {
    let server = Backend::Memory.shared();
    let stream = stream("chat");
    let body = json!({"stream": stream, "data": "1", "offset": 7_000, "epoch": "mine", "other": [], "meta": {"x": 1}});
    let position = Position::of(&server.accepted(body).await);
    assert_ne!((position.offset, position.epoch.as_str()), (7_000, "mine"));
}

#[tokio::test]
async fn a_body_without_end_is_cut_off() {
    let server = Backend::Memory.shared();
    let body = json!({"stream": "chat", "data": "x".repeat(64 << 20)}).to_string();
    assert_eq!(server.post(&body).await.status, 413);
    server.publish("chat", json!(1)).await;
}

#[tokio::test]
async fn browsers_of_allowed_origins_may_publish_if_enabled() {
    let options = Server::on(Backend::Memory).option("http_broadcast_cors", true);
    let server = options.option("allowed_origins", "app.example").start();
    let origin = [("Origin", "https://app.example")];
    let answer = http::request(server.address(), "OPTIONS", PATH, &origin, b"").await;
    assert_eq!(answer.status, 200);
    assert!(answer.header("Access-Control-Allow-Origin").is_some(), "{answer:?}");
}

#[tokio::test]
async fn without_a_key_publishing_has_a_port_of_its_own_in_public_mode() {
    let options = carrick::Builder::closed().option("public", true).option("broker", "memory");
    let server = options.option("http_broadcast_path", "/publish").option("http_broadcast_port", free_port()).start();
    let answer =
        http::request(server.broadcast_address(), "POST", "/publish", &[], br#"{"stream":"a","data":"1"}"#).await;
    assert_eq!(answer.status, 201);
    assert_ne!(server.broadcast_address(), server.address());
}

#[tokio::test]
async fn row_20_without_an_adapter_there_is_no_endpoint() {
    for key in ["none", "k"] {
        let builder = carrick::Builder::open().replace("secret", "none").option("broadcast_key", key);
        let server = builder.option("broadcast_adapter", "").start();
        let answer = server.post(r#"{"stream":"a","data":"1"}"#).await;
        assert_eq!((answer.status, server.broadcast_address()), (404, server.address()), "{key}: {answer:?}");
    }
}
