//! HTTP against a server that is a closure.

use super::server::{Handler, Server, Version, answer};
use super::*;
use bytes::Bytes;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What arrived: path, headers that matter, body.
type Arrived = Arc<Mutex<Vec<(String, Vec<Option<String>>, Value)>>>;

const HEADERS: [&str; 5] = ["host", "content-type", "authorization", "x-anycable-meta-sid", "x-anycable-meta-protov"];

/// Answers each request with the same, and notes it down.
fn always(status: u16, body: &str) -> (Handler, Arrived) {
    let arrived = Arrived::default();
    let (notes, body) = (arrived.clone(), Bytes::copy_from_slice(body.as_bytes()));
    let handler: Handler = Arc::new(move |request| {
        let (notes, body) = (notes.clone(), body.clone());
        Box::pin(async move {
            let (head, sent) = request.into_parts();
            let sent = sent.collect().await.unwrap().to_bytes();
            let header = |name: &&str| head.headers.get(*name).map(|value| value.to_str().unwrap().to_owned());
            let headers = HEADERS.iter().map(header).collect();
            let json = serde_json::from_slice(&sent).unwrap();
            notes.lock().unwrap().push((format!("{} {}", head.method, head.uri), headers, json));
            answer(status, body)
        })
    });
    (handler, arrived)
}

async fn serve(status: u16, body: &str) -> (Server, Arrived) {
    let (handler, arrived) = always(status, body);
    (Server::start(Version::Http1, handler).await, arrived)
}

fn at(server: &Server, change: impl FnOnce(&mut RpcConfig)) -> Arc<dyn Application> {
    application(&format!("http://{}/_anycable/", server.address), change)
}

#[tokio::test]
async fn requests_look_as_documented_and_share_a_connection() {
    let (server, arrived) = serve(200, r#"{"status":1,"identifiers":"me","env":{"cstate":{"plan":"pro"}}}"#).await;
    let app = at(&server, |config| config.http_secret = Some(crate::secret::Secret::from("t0ken")));
    let connected = app.connect(&"s1".into(), message("").env).await.unwrap();
    assert_eq!((connected.identifiers.as_str(), connected.cstate["plan"].as_str()), ("me", "pro"));
    app.command(&"s1".into(), message("{\"action\":\"speak\"}")).await.unwrap();
    app.disconnect(&"s1".into(), leaving()).await.unwrap();
    app.restore(&"s1".into(), leaving()).await.unwrap();

    let arrived = arrived.lock().unwrap().clone();
    let paths: Vec<_> = arrived.iter().map(|(path, ..)| path.as_str()).collect();
    let expected = ["connect", "command", "disconnect", "restore"].map(|name| format!("POST /_anycable/{name}"));
    assert_eq!(paths, expected);
    let host = server.address.to_string();
    let headers = [host.as_str(), "application/json", "Bearer t0ken", "s1", "v1"].map(|text| Some(text.to_owned()));
    assert!(arrived.iter().all(|(_, seen, _)| seen[..] == headers));
    let env = json!({"url": "http://ws.acme.test/cable", "headers": {"cookie": "a=1"}, "cstate": {"plan": "pro"},
        "istate": {"room": "7"}});
    assert_eq!(
        arrived[1].2,
        json!({"command": "message", "identifier": "{\"channel\":\"Chat\"}", "connection_identifiers": "{\"user\":\"5\"}",
            "data": "{\"action\":\"speak\"}", "env": env})
    );
    assert_eq!(
        arrived[2].2,
        json!({"identifiers": "{\"user\":\"5\"}", "subscriptions": ["{\"channel\":\"Chat\"}"], "env": {}})
    );
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn without_a_secret_there_is_no_token() {
    let (server, arrived) = serve(200, r#"{"status":2,"transmissions":["{}"]}"#).await;
    let connected = at(&server, |_| {}).connect(&"s1".into(), Env::default()).await.unwrap();
    assert_eq!((connected.outcome, connected.transmissions.len()), (Outcome::Failure, 1));
    assert_eq!(arrived.lock().unwrap()[0].1[2], None);
}

#[tokio::test]
async fn answers_other_than_success_are_final() {
    let long = "x".repeat(2_000);
    for (status, body, expected) in [
        (200, "no json", "unreadable answer of the application: expected"),
        (200, r#"{"status":0,"error_msg":"boom"}"#, "the application failed: boom"),
        (200, "{}", "the application failed: status ERROR without a message"),
        (401, "", "the application failed: 401"),
        (422, long.as_str(), &format!("the application failed: 422: {}...(", "x".repeat(995))),
        (404, "", "the application failed: HTTP status 404 Not Found"),
        (503, "", "the application failed: HTTP status 503 Service Unavailable"),
    ] {
        let (server, arrived) = serve(status, body).await;
        let error = at(&server, |_| {}).command(&"s1".into(), message("")).await.unwrap_err().to_string();
        assert!(error.starts_with(expected) && error.len() < 1_100, "{error}");
        assert_eq!(arrived.lock().unwrap().len(), 1, "{error}");
    }
    let (server, _) = serve(404, "").await;
    let error = at(&server, |_| {}).restore(&"s1".into(), leaving()).await.unwrap_err();
    assert!(matches!(error, RpcError::Unimplemented(_)), "{error}");
}

#[tokio::test]
async fn an_unreadable_answer_is_told_by_its_field_and_what_that_must_be() {
    for (body, expected) in [
        (
            r#"{"status":"SUCCESS"}"#,
            "`status` must be a number: 0 (ERROR), 1 (SUCCESS) or 2 (FAILURE) (line 1 column 19)",
        ),
        (r#"{"status":1,"streams":"chat"}"#, "`streams` must be an array of texts (line 1 column 28)"),
        (r#"{"status":1,"streams":["a",5]}"#, "`streams` must be an array of texts (line 1 column 28)"),
        (r#"{"status":1,"disconnect":"no"}"#, "`disconnect` must be true or false (line 1 column 29)"),
        (
            r#"{"status":1,"env":{"istate":{"s3cret":5}}}"#,
            "`env` must be an object with `cstate` and `istate`, two objects whose values are texts (line 1 column 39)",
        ),
        ("\"SUCCESS\"", "a value is missing or of the wrong kind at line 1 column"),
        (r#"{"status":1} x"#, "trailing characters at line 1 column 14"),
    ] {
        let (server, _) = serve(200, body).await;
        let error = at(&server, |_| {}).command(&"s1".into(), message("")).await.unwrap_err().to_string();
        let expected = format!("unreadable answer of the application: {expected}");
        assert!(error.starts_with(&expected) && !error.contains("s3cret"), "{error}, not {expected}");
    }
}

#[tokio::test]
async fn row_19_a_refusal_is_cut_when_what_the_call_carried_is_out_of_it() {
    let body = format!("{}{}", "x".repeat(90), "half-of-this-would-be-shown");
    let (server, _) = serve(422, &body).await;
    let env = Env { headers: [("x-token".into(), "half-of-this-would-be-shown".into())].into(), ..Env::default() };
    let call = CommandCall { env, ..message("") };
    let error = at(&server, |_| {}).command(&"s1".into(), call).await.unwrap_err().to_string();
    assert!(error.ends_with("x***"), "{error}");
}

#[tokio::test]
async fn sizes_are_limited_in_both_directions() {
    let (server, arrived) = serve(200, &format!(r#"{{"status":1,"identifiers":"{}"}}"#, "x".repeat(5000))).await;
    let app = at(&server, |config| (config.max_recv_size, config.max_send_size) = (1000, 1000));
    let error = app.command(&"s1".into(), message("")).await.unwrap_err();
    assert!(matches!(error, RpcError::Garbage(_)), "{error}");
    assert!(app.command(&"s1".into(), message(&"y".repeat(2000))).await.is_err());
    assert_eq!(arrived.lock().unwrap().len(), 1, "the large request stays here");
}

/// Reads one request of each connection, then does as told: `None` closes without an answer.
pub async fn blunt(answers: Vec<Option<&'static str>>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for answer in answers {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut seen = Vec::new();
            while !seen.ends_with(b"}") {
                assert_ne!(socket.read_buf(&mut seen).await.unwrap(), 0);
            }
            if let Some(answer) = answer {
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    });
    format!("http://{address}")
}

#[tokio::test]
async fn a_connection_that_breaks_is_tried_again() {
    const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{\"status\":1}";
    const CUT: &str = "HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{\"stat";
    let host = blunt(vec![None, Some(CUT), Some(ANSWER), Some(ANSWER)]).await;
    let app = application(&host, |_| {});
    let began = Instant::now();
    app.command(&"s1".into(), message("")).await.unwrap();
    assert!(began.elapsed() >= ms(300), "after 100 and 200 ms");
    // The server has closed the connection that was kept: the next call is none the worse.
    app.command(&"s2".into(), message("")).await.unwrap();
}

#[tokio::test]
async fn a_slow_answer_is_given_up() {
    let handler: Handler = Arc::new(|_| Box::pin(std::future::pending()));
    let server = Server::start(Version::Http1, handler).await;
    let app = at(&server, |config| config.request_timeout = ms(100));
    let error = app.command(&"s1".into(), message("")).await.unwrap_err();
    assert!(matches!(error, RpcError::Timeout), "{error}");
}

#[tokio::test]
async fn the_circuit_opens_when_nothing_answers() {
    let (server, arrived) = serve(200, r#"{"status":1}"#).await;
    let (address, _) = (server.stop().await, arrived);
    let app = application(&format!("http://{address}"), |config| config.command_timeout = ms(90));
    for _ in 0..10 {
        let error = app.command(&"s1".into(), message("")).await.unwrap_err();
        // On a busy machine even a refusal may take too long.
        let refused = matches!(&error, RpcError::Unreachable(reason) if reason.contains("cannot connect"));
        assert!(refused || matches!(error, RpcError::Timeout), "{error}");
    }
    let error = app.command(&"s1".into(), message("")).await.unwrap_err().to_string();
    assert!(error.contains("http rpc is temporarily unavailable"), "{error}");
}

#[tokio::test]
async fn errors_of_the_application_do_not_open_the_circuit() {
    let (server, arrived) = serve(500, "").await;
    let app = at(&server, |_| {});
    for _ in 0..20 {
        app.command(&"s1".into(), message("")).await.unwrap_err();
    }
    assert_eq!(arrived.lock().unwrap().len(), 20);
}
