use super::*;
use crate::node::publish::scripted::ScriptedBroker;
use http::header::{HeaderName, HeaderValue};
use proptest::prelude::*;
use serde_json::{Value, json};

struct Publisher {
    endpoint: Arc<HttpBroadcast>,
    broker: Arc<ScriptedBroker>,
}

fn publisher(config: HttpBroadcastConfig) -> Publisher {
    let broker = Arc::new(ScriptedBroker::default());
    Publisher { endpoint: HttpBroadcast::new(config, broker.clone()), broker }
}

fn open() -> Publisher {
    publisher(HttpBroadcastConfig::default())
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    fn error(&self) -> &str {
        self.body["error"].as_str().unwrap_or_default()
    }
}

impl Publisher {
    async fn send(&self, method: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        let mut request = http::Request::builder().method(method).uri("/_broadcast");
        for (name, value) in headers {
            request = request.header(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            );
        }
        let (parts, body) = self.endpoint.handle(request.body(body.into()).unwrap()).await.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    async fn post(&self, body: &str) -> Answer {
        self.send("POST", &[], body.to_owned()).await
    }
}

#[tokio::test]
async fn a_publication_is_answered_with_its_position() {
    let publisher = open();
    let answer = publisher.post(r#"{"stream":"chat/7","data":"1"}"#).await;
    assert_eq!(answer.status, 201);
    assert_eq!(
        answer.body,
        json!({"stream": "chat/7", "epoch": "e1", "offset": 1, "duplicate": false, "durability": "memory"})
    );
    assert_eq!(answer.headers["content-type"], "application/json");
    let transient = publisher.post(r#"{"stream":"chat/7","data":"2","meta":{"transient":true}}"#).await;
    assert_eq!((transient.status, transient.body), (201, json!({"stream": "chat/7", "stored": false})));
}

#[tokio::test]
async fn a_batch_is_answered_item_by_item() {
    let publisher = open();
    let body = r#"[{"stream":"a","data":"1"},{"stream":"b","data":"2","meta":{"transient":true}}]"#;
    let answer = publisher.post(body).await;
    assert_eq!(answer.status, 201);
    let stored = json!({"stream": "a", "epoch": "e1", "offset": 1, "duplicate": false, "durability": "memory"});
    assert_eq!(answer.body, json!([stored, {"stream": "b", "stored": false}]));
}

#[tokio::test]
async fn a_retry_with_the_same_key_is_a_duplicate() {
    let publisher = open();
    let body = r#"{"stream":"a","data":"1"}"#;
    let send = || publisher.send("POST", &[("Idempotency-Key", "order-15")], body);
    assert_eq!(send().await.body["duplicate"], false);
    let again = send().await;
    assert_eq!((again.status, &again.body["duplicate"], &again.body["offset"]), (201, &json!(true), &json!(1)));
    let other_stream = publisher.send("POST", &[("Idempotency-Key", "order-15")], r#"{"stream":"b","data":"1"}"#);
    assert_eq!(other_stream.await.body["duplicate"], false);

    let batch = r#"[{"stream":"c","data":"1"},{"stream":"c","data":"1"}]"#;
    let first = publisher.send("POST", &[("Idempotency-Key", "k")], batch).await;
    let again = publisher.send("POST", &[("Idempotency-Key", "k")], batch).await;
    for place in 0..2 {
        assert_eq!(first.body[place]["duplicate"], false);
        assert_eq!(again.body[place]["duplicate"], true);
        assert_eq!(again.body[place]["offset"], first.body[place]["offset"]);
    }
}

#[tokio::test]
async fn unusable_keys_are_refused() {
    let publisher = open();
    for key in ["", "two words", "ключ", &"k".repeat(256)] {
        let answer = publisher.send("POST", &[("Idempotency-Key", key)], r#"{"stream":"a","data":"1"}"#).await;
        assert_eq!(answer.status, 422, "{key:?}");
        assert!(answer.error().contains("Idempotency-Key"));
    }
    assert!(publisher.broker.appended().is_empty());
}

#[tokio::test]
async fn a_remote_disconnect_is_answered_after_it_is_stored() {
    let publisher = open();
    let answer = publisher.post(r#"{"command":"disconnect","payload":{"identifier":"u1","reconnect":true}}"#).await;
    assert_eq!((answer.status, answer.body), (201, json!({"command": "disconnect"})));
    let commands = publisher.broker.commands();
    assert_eq!((commands[0].identifiers.as_str(), commands[0].reconnect), ("u1", true));

    let failed = publisher.post(r#"{"command":"disconnect","payload":{"identifier":"not stored"}}"#).await;
    assert_eq!((failed.status, &failed.body["stored"]), (503, &json!(false)));

    let unknown = publisher.post(r#"{"command":"refresh"}"#).await;
    assert_eq!((unknown.status, unknown.body), (201, json!({"command": "refresh", "ignored": true})));
}

#[tokio::test]
async fn the_key_is_needed_and_compared_whole() {
    let keys = Some(Secrets::parse("s3cr3t"));
    let publisher = publisher(HttpBroadcastConfig { keys, ..HttpBroadcastConfig::default() });
    let body = r#"{"stream":"a","data":"1"}"#;
    for wrong in ["", "Bearer ", "Bearer s3cr3", "Bearer s3cr3tt", "s3cr3t", "Basic s3cr3t", "bearer s3cr3t"] {
        let answer = publisher.send("POST", &[("Authorization", wrong)], body).await;
        assert_eq!(answer.status, 401, "{wrong:?}");
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
    }
    assert_eq!(publisher.post("not json").await.status, 401, "the key comes before the payload");
    assert_eq!(publisher.send("GET", &[], "").await.status, 422, "the method comes before the key");
    assert!(publisher.broker.appended().is_empty());
    assert_eq!(publisher.send("POST", &[("Authorization", "Bearer s3cr3t")], body).await.status, 201);
}

#[tokio::test]
async fn any_of_several_keys_will_do_and_an_empty_list_lets_nobody_in() {
    let body = r#"{"stream":"a","data":"1"}"#;
    let status = async |keys: &str, given: &str| {
        let keys = Some(Secrets::parse(keys));
        let publisher = publisher(HttpBroadcastConfig { keys, ..HttpBroadcastConfig::default() });
        publisher.send("POST", &[("Authorization", &format!("Bearer {given}"))], body).await.status
    };
    for (keys, given, expected) in [
        ("new,old", "new", 201),
        ("new, old", "old", 201),
        ("new,old", "new,old", 401),
        ("new,old", "", 401),
        ("new", "old", 401),
        ("", "", 401),
        ("none", "none", 401),
    ] {
        assert_eq!(status(keys, given).await, expected, "{keys:?} {given:?}");
    }
}

/// Decision: what 503 means.
#[tokio::test]
async fn failures_say_whether_it_may_be_stored() {
    let publisher = open();
    let cases = [
        ("not stored", json!(false), "not stored"),
        ("unknown", json!("unknown"), "no answer from the store"),
        ("full", json!(false), "storage full"),
    ];
    for (data, stored, error) in cases {
        let answer = publisher.post(&format!(r#"{{"stream":"a","data":"{data}"}}"#)).await;
        assert_eq!((answer.status, &answer.body["stored"]), (503, &stored), "{data}");
        assert_eq!(answer.headers["retry-after"], "1");
        assert!(answer.error().contains(error), "{}", answer.error());
    }
}

/// Decision: an item larger than the store takes is a 413 naming the limit.
#[tokio::test]
async fn items_beyond_the_stores_limit() {
    let publisher = open();
    let answer = publisher.post(r#"{"stream":"a","data":"too large"}"#).await;
    assert_eq!(answer.status, 413);
    assert!(answer.error().contains("limit of 1024 bytes"));
    assert!(!answer.headers.contains_key("retry-after"), "a retry cannot help");

    let batch = r#"[{"stream":"b","data":"unknown"},{"stream":"a","data":"too large"},{"stream":"c","data":"1"}]"#;
    let answer = publisher.post(batch).await;
    assert_eq!((answer.status, answer.body["results"].as_array().unwrap().len()), (413, 3));
}

/// Decision: a batch is validated whole before the first store; a later failure is 503 with a result per item.
#[tokio::test]
async fn batch_answers() {
    let publisher = open();
    let invalid = publisher.post(r#"[{"stream":"a","data":"1"},{"stream":"a","data":2}]"#).await;
    assert_eq!((invalid.status, invalid.error()), (422, "[1].data must be a string, not a number"));
    assert!(publisher.broker.appended().is_empty(), "nothing of it was stored");

    let body = r#"[{"stream":"a","data":"1"},{"stream":"b","data":"not stored"},{"stream":"b","data":"2"}]"#;
    let answer = publisher.post(body).await;
    assert_eq!((answer.status, &answer.body["stored"]), (503, &json!("unknown")));
    assert_eq!(answer.headers["retry-after"], "1");
    let results = &answer.body["results"];
    assert_eq!(
        results[0],
        json!({"stream": "a", "epoch": "e1", "offset": 1, "duplicate": false, "durability": "memory"})
    );
    assert_eq!((&results[1]["stored"], &results[2]["stored"]), (&json!(false), &json!(false)));
    assert!(results[1]["error"].as_str().unwrap().contains("no connection"));

    let nothing = publisher.post(r#"[{"stream":"b","data":"not stored"},{"stream":"b","data":"2"}]"#).await;
    assert_eq!((nothing.status, &nothing.body["stored"]), (503, &json!(false)));
}

#[tokio::test]
async fn bodies_beyond_the_limit_are_refused_announced_or_not() {
    let publisher = publisher(HttpBroadcastConfig { max_body: 40, ..HttpBroadcastConfig::default() });
    let fits = format!(r#"{{"stream":"a","data":"{}"}}"#, "x".repeat(16));
    assert_eq!(fits.len(), 40);
    assert_eq!(publisher.post(&fits).await.status, 201);
    let pieces = |text: String| {
        let pieces: Vec<_> = text.into_bytes().chunks(7).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
        Body::from_stream(futures_util::stream::iter(pieces))
    };
    assert_eq!(publisher.send("POST", &[], pieces(fits.clone())).await.status, 201);
    for body in [Body::from(format!("{fits} ")), pieces(format!("{fits} "))] {
        let answer = publisher.send("POST", &[], body).await;
        assert_eq!(answer.status, 413);
        assert!(answer.error().contains("limit of 40 bytes"));
    }
}

#[tokio::test]
async fn a_broken_body_is_unreadable() {
    let broken = futures_util::stream::iter([Ok(&b"{"[..]), Err(std::io::Error::other("reset"))]);
    let answer = open().send("POST", &[], Body::from_stream(broken)).await;
    assert_eq!(answer.status, 422);
    assert!(answer.error().contains("could not be read"));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_is_given_up() {
    let stalled = Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
    let answer = open().send("POST", &[], stalled).await;
    assert_eq!((answer.status, answer.error()), (422, "the body did not come within 30 s"));
}

#[tokio::test]
async fn cors_headers_where_enabled() {
    let preflight = [("Origin", "https://A.acme.test")];
    assert_eq!(open().send("OPTIONS", &preflight, "").await.status, 422, "not enabled");

    let everybody = publisher(HttpBroadcastConfig { cors: true, ..HttpBroadcastConfig::default() });
    let answer = everybody.send("OPTIONS", &preflight, "").await;
    assert_eq!((answer.status, answer.body), (200, Value::Null));
    assert_eq!(answer.headers["access-control-allow-origin"], "*");
    assert_eq!(answer.headers["access-control-allow-methods"], "POST, OPTIONS");
    assert_eq!(answer.headers["access-control-allow-credentials"], "true");
    assert!(answer.headers["access-control-allow-headers"].to_str().unwrap().contains("Authorization"));

    let allowed_origins = AllowedOrigins::new(["*.acme.test"]);
    let some = publisher(HttpBroadcastConfig { cors: true, allowed_origins, ..HttpBroadcastConfig::default() });
    let answer = some.send("POST", &preflight, r#"{"stream":"a","data":"1"}"#).await;
    assert_eq!((answer.status, &answer.headers["vary"]), (201, &HeaderValue::from_static("Origin")));
    assert_eq!(answer.headers["access-control-allow-origin"], "https://a.acme.test");
    let answer = some.send("POST", &[("Origin", "https://evil.test")], "").await;
    assert!(!answer.headers.contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn payloads_are_counted_once() {
    let (before, malformed_before) = (PUBLICATIONS.get(), MALFORMED_PUBLICATIONS.get());
    let publisher = open();
    publisher.post(r#"[{"stream":"a","data":"1"},{"stream":"a","data":"2"}]"#).await;
    publisher.post("{").await;
    // Other tests of this process count, too.
    assert!(PUBLICATIONS.get() > before);
    assert!(MALFORMED_PUBLICATIONS.get() > malformed_before);
}

#[tokio::test]
async fn the_router_serves_its_path_alone() {
    use tower_service::Service;
    for path in ["/_broadcast", "no-slash", "/with/{braces}"] {
        let publisher = publisher(HttpBroadcastConfig { path: path.to_owned(), ..HttpBroadcastConfig::default() });
        let mut router = publisher.endpoint.clone().router();
        let path = format!("/{}", path.trim_start_matches('/'));
        let mut status = async |method: &str, uri: String| {
            let body = Body::from(r#"{"stream":"a","data":"1"}"#);
            let request = http::Request::builder().method(method).uri(uri).body(body).unwrap();
            router.call(request).await.unwrap().status().as_u16()
        };
        assert_eq!(status("GET", path.clone()).await, 422);
        assert_eq!(status("POST", format!("{path}/")).await, 404);
        assert_eq!(status("POST", format!("{path}x")).await, 404);
        assert_eq!(publisher.broker.appended().len(), 0);
        assert_eq!(status("POST", format!("{path}?x=1")).await, 201);
    }
}

/// Over a real connection: the answer must reach a publisher that is still sending.
#[tokio::test]
async fn a_publisher_that_sends_too_much_gets_to_read_why() {
    use crate::transport::connections::{ConnectionLimits, Connections};
    use crate::transport::listener::{ListenConfig, Listener};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let publisher = publisher(HttpBroadcastConfig { max_body: 1024, ..HttpBroadcastConfig::default() });
    let connections = Connections::new(ConnectionLimits::NONE);
    let listener = Listener::bind(&ListenConfig::local(), connections).await.unwrap();
    let addr = listener.local_addr();
    let (shutdown, tracker) = (tokio_util::sync::CancellationToken::new(), tokio_util::task::TaskTracker::new());
    tracker.spawn(listener.serve(publisher.endpoint.clone().router(), shutdown.clone(), tracker.clone()));

    for size in [1025, 200_000, 8 << 20] {
        let (mut reading, mut writing) = tokio::net::TcpStream::connect(addr).await.unwrap().into_split();
        let sending = tokio::spawn(async move {
            let head = format!("POST /_broadcast HTTP/1.1\r\nhost: a\r\ncontent-length: {size}\r\n\r\n");
            writing.write_all(head.as_bytes()).await.unwrap();
            // The server may close before it has read all of it.
            let _ = writing.write_all(&vec![b'x'; size]).await;
        });
        let mut answer = vec![0; 512];
        let read = reading.read(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..read]);
        assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("limit of 1024 bytes"), "{size}: {answer}");
        sending.abort();
    }
    shutdown.cancel();
    tracker.close();
    tracker.wait().await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_body_is_answered(body in prop::collection::vec(any::<u8>(), 0..200), brace in any::<bool>()) {
        let body = if brace { [b"[{", &body[..]].concat() } else { body };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let answer = runtime.block_on(open().send("POST", &[], body));
        prop_assert_eq!(answer.status, 422);
        prop_assert!(!answer.error().is_empty());
    }
}
