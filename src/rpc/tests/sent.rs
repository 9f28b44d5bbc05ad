//! Calls whose connection breaks: what has provably not been executed is made again whatever is configured, what may have
//! been executed only where the operator lets us (`rpc_retry_sent`).

use super::grpc::{Step, Stub};
use super::http::blunt;
use super::server::{Server, Version};
use super::*;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tonic::Code;

/// An application that never calls twice what may have been executed.
fn careful(host: &str) -> Arc<dyn Application> {
    application(host, |config| {
        config.retry_sent = false;
        config.health_watch = false;
    })
}

fn is_broken(result: &Result<CommandEffects, RpcError>) -> bool {
    matches!(result, Err(RpcError::Broken(_)))
}

/// A listener that holds its port until a real server takes it over.
async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// An HTTP/2 frame (RFC 9113 §4.1) of the connection or of a stream.
fn frame(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, 0], &stream.to_be_bytes(), payload].concat()
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

/// Speaks enough HTTP/2 to see a request arrive on stream 1.
async fn first_request(listener: &TcpListener) -> TcpStream {
    const PREFACE: usize = 24;
    let (mut tcp, _) = listener.accept().await.unwrap();
    tcp.write_all(&frame(SETTINGS, 0, &[])).await.unwrap();
    let mut preface = [0; PREFACE];
    tcp.read_exact(&mut preface).await.unwrap();
    loop {
        let mut head = [0; 9];
        tcp.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        tcp.read_exact(&mut payload).await.unwrap();
        if head[3] == HEADERS {
            return tcp;
        }
    }
}

/// The first connection's request is answered with this frame; then a real application takes the port over.
async fn after(answer: Vec<u8>) -> (Result<CommandEffects, RpcError>, usize) {
    let (listener, address) = listener().await;
    let app = careful(&address.to_string());
    let call = tokio::spawn(async move { app.command(&"s1".into(), message("")).await });
    let mut tcp = first_request(&listener).await;
    drop(listener);
    let stub = Stub::default();
    let _server = Server::start_at(address, Version::Http2, stub.handler(), None).await;
    tcp.write_all(&answer).await.unwrap();
    drop(tcp);
    (call.await.unwrap(), stub.asked())
}

#[tokio::test]
async fn what_the_server_has_refused_unprocessed_is_made_again() {
    const REFUSED: [u8; 4] = 7_u32.to_be_bytes();
    let (result, asked) = after(frame(RST_STREAM, 1, &REFUSED)).await;
    result.unwrap();
    assert_eq!(asked, 1);
    // The last stream it cares for is 0, ours is 1.
    let (result, asked) = after(frame(GOAWAY, 0, &[0; 8])).await;
    result.unwrap();
    assert_eq!(asked, 1);
}

#[tokio::test]
async fn what_may_have_been_executed_is_not_made_again_where_that_is_switched_off() {
    let (result, asked) = after(Vec::new()).await;
    assert!(is_broken(&result), "{result:?}");
    assert_eq!(asked, 0);
    // One that it does care for.
    let (result, asked) = after(frame(GOAWAY, 0, &[0, 0, 0, 1, 0, 0, 0, 0])).await;
    assert!(is_broken(&result), "{result:?}");
    assert_eq!(asked, 0);

    let stub = Stub::with([Step::Fail(Code::Unavailable)]);
    let server = stub.serve().await;
    let result = careful(&server.address.to_string()).command(&"s1".into(), message("")).await;
    assert!(is_broken(&result), "what stands between may say so of a call that it has passed on: {result:?}");
    assert_eq!(stub.asked(), 1);
}

#[tokio::test]
async fn an_application_at_its_limit_is_asked_again_whatever_is_configured() {
    let stub = Stub::with([Step::Fail(Code::ResourceExhausted)]);
    let server = stub.serve().await;
    careful(&server.address.to_string()).command(&"s1".into(), message("")).await.unwrap();
    assert_eq!(stub.asked(), 2);
}

#[tokio::test]
async fn over_http_the_same_holds() {
    const CUT: &str = "HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{\"stat";
    const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{\"status\":1}";
    for answer in [None, Some(CUT)] {
        let app = careful(&blunt(vec![answer, Some(ANSWER)]).await);
        let result = app.command(&"s1".into(), message("")).await;
        assert!(is_broken(&result), "{result:?}");
        app.command(&"s2".into(), message("")).await.unwrap();
    }
    // Nobody listens: nothing has left.
    let (listener, address) = listener().await;
    drop(listener);
    let result = careful(&format!("http://{address}")).command(&"s1".into(), message("")).await;
    assert!(matches!(result, Err(RpcError::Unreachable(_))), "tried until the budget was over: {result:?}");
}
