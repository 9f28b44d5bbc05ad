//! gRPC against a server made of the generated server half.

use super::server::{Handler, Server, Version, answer};
use super::*;
use crate::rpc::proto::rpc_server::{Rpc, RpcServer};
use crate::rpc::proto::{
    CommandMessage, CommandResponse, ConnectionRequest, ConnectionResponse, DisconnectRequest, DisconnectResponse,
    EnvResponse, PresenceResponse, Status as Word,
};
use http_body_util::BodyExt;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tonic::{Code, Request, Response, Status};
use tower_service::Service;

/// How one command is answered.
pub enum Step {
    Answer(Box<CommandResponse>),
    Fail(Code),
    Hang,
}

/// An application that answers commands by its script, and with success after its end.
#[derive(Clone, Default)]
pub struct Stub {
    script: Arc<Mutex<VecDeque<Step>>>,
    /// Commands that arrived.
    pub asked: Arc<AtomicUsize>,
    /// Hanging ones that were cancelled.
    cancelled: Arc<AtomicUsize>,
    metadata: Arc<Mutex<Vec<(String, String)>>>,
    without_restore: bool,
}

impl Stub {
    pub fn with(steps: impl IntoIterator<Item = Step>) -> Self {
        Self { script: Arc::new(Mutex::new(steps.into_iter().collect())), ..Self::default() }
    }

    pub fn handler(&self) -> Handler {
        let server = RpcServer::new(self.clone()).max_encoding_message_size(usize::MAX);
        Arc::new(move |request| {
            let mut server = server.clone();
            Box::pin(async move {
                let response = server.call(request).await.unwrap();
                response.map(BodyExt::boxed_unsync)
            })
        })
    }

    pub async fn serve(&self) -> Server {
        Server::start(Version::Http2, self.handler()).await
    }

    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn success() -> CommandResponse {
    CommandResponse { status: Word::Success.into(), ..CommandResponse::default() }
}

#[tonic::async_trait]
impl Rpc for Stub {
    async fn connect(&self, request: Request<ConnectionRequest>) -> Result<Response<ConnectionResponse>, Status> {
        let url = request.into_inner().env.unwrap_or_default().url;
        let status = if url.contains("stranger") { Word::Failure } else { Word::Success };
        Ok(Response::new(ConnectionResponse {
            status: status.into(),
            identifiers: "{\"user\":\"5\"}".to_owned(),
            transmissions: vec!["{\"type\":\"welcome\"}".to_owned()],
            env: Some(EnvResponse { cstate: [("plan".into(), "pro".into())].into(), istate: State::new() }),
            ..ConnectionResponse::default()
        }))
    }

    async fn command(&self, request: Request<CommandMessage>) -> Result<Response<CommandResponse>, Status> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        *self.metadata.lock().unwrap() = ["sid", "protov", "grpc-timeout"]
            .iter()
            .filter_map(|key| Some(((*key).to_owned(), request.metadata().get(*key)?.to_str().unwrap().to_owned())))
            .collect();
        let step = self.script.lock().unwrap().pop_front();
        match step {
            None => Ok(Response::new(success())),
            Some(Step::Answer(answer)) => Ok(Response::new(*answer)),
            Some(Step::Fail(code)) => Err(Status::new(code, "as the script says")),
            Some(Step::Hang) => {
                struct Cancelled(Arc<AtomicUsize>);
                impl Drop for Cancelled {
                    fn drop(&mut self) {
                        self.0.fetch_add(1, Ordering::SeqCst);
                    }
                }
                let _cancelled = Cancelled(self.cancelled.clone());
                std::future::pending().await
            }
        }
    }

    async fn disconnect(&self, _: Request<DisconnectRequest>) -> Result<Response<DisconnectResponse>, Status> {
        Ok(Response::new(DisconnectResponse { status: Word::Failure.into(), ..DisconnectResponse::default() }))
    }

    async fn restore(&self, request: Request<DisconnectRequest>) -> Result<Response<DisconnectResponse>, Status> {
        if self.without_restore {
            return Err(Status::unimplemented("no such method"));
        }
        assert_eq!(request.into_inner().subscriptions, leaving().subscriptions);
        Ok(Response::new(DisconnectResponse { status: Word::Success.into(), ..DisconnectResponse::default() }))
    }
}

fn at(server: &Server) -> Arc<dyn Application> {
    application(&server.address.to_string(), |_| {})
}

#[tokio::test]
async fn connects_and_is_told_who_the_client_is() {
    let server = Stub::default().serve().await;
    let app = at(&server);
    let connected = app.connect(&"s1".into(), message("").env).await.unwrap();
    assert_eq!(connected.outcome, Outcome::Success);
    assert_eq!(connected.identifiers, "{\"user\":\"5\"}");
    assert_eq!(connected.transmissions, ["{\"type\":\"welcome\"}"]);
    assert_eq!(connected.cstate["plan"], "pro");
    let stranger = Env { url: "http://stranger".into(), ..Env::default() };
    assert_eq!(app.connect(&"s2".into(), stranger).await.unwrap().outcome, Outcome::Failure);
    app.disconnect(&"s1".into(), leaving()).await.unwrap();
    app.restore(&"s1".into(), leaving()).await.unwrap();
    assert_eq!(server.connections(), 1, "one connection serves all calls");
}

#[tokio::test]
async fn a_command_brings_all_its_effects() {
    let answer = CommandResponse {
        status: Word::Failure.into(),
        disconnect: true,
        stop_streams: true,
        streams: vec!["a".into()],
        stopped_streams: vec!["b".into()],
        transmissions: vec!["{}".into()],
        env: Some(EnvResponse { cstate: [("c".into(), "1".into())].into(), istate: [("i".into(), "2".into())].into() }),
        presence: Some(PresenceResponse { r#type: "join".into(), id: "5".into(), info: "{}".into(), ttl: 0 }),
        ..CommandResponse::default()
    };
    let stub = Stub::with([Step::Answer(answer.into())]);
    let server = stub.serve().await;
    let effects = at(&server).command(&"s1".into(), message("{}")).await.unwrap();
    let presence = PresenceChange { kind: "join".into(), id: "5".into(), info: "{}".into() };
    let expected = CommandEffects {
        outcome: Outcome::Failure,
        disconnect: true,
        stop_streams: true,
        stopped_streams: vec!["b".into()],
        streams: vec!["a".into()],
        transmissions: vec!["{}".into()],
        istate: [("i".into(), "2".into())].into(),
        cstate: [("c".into(), "1".into())].into(),
        presence: Some(presence),
    };
    assert_eq!(effects, expected);
    let metadata = stub.metadata.lock().unwrap().clone();
    assert_eq!(metadata[..2], [("sid".into(), "s1".into()), ("protov".into(), "v1".into())]);
    assert_eq!(metadata[2].0, "grpc-timeout", "the budget is the deadline");
}

#[tokio::test]
async fn errors_are_not_tried_again() {
    let error = |status: i32, error_msg: &str| {
        Step::Answer(CommandResponse { status, error_msg: error_msg.into(), ..CommandResponse::default() }.into())
    };
    let stub = Stub::with([
        error(0, "boom"),
        error(7, ""),
        Step::Fail(Code::Internal),
        Step::Fail(Code::Unknown),
        Step::Fail(Code::DeadlineExceeded),
        Step::Fail(Code::Unimplemented),
    ]);
    let server = stub.serve().await;
    let app = at(&server);
    let mut seen = Vec::new();
    for _ in 0..6 {
        seen.push(app.command(&"s1".into(), message("")).await.unwrap_err().to_string());
    }
    assert_eq!(
        seen,
        [
            "the application failed: boom",
            "unreadable answer of the application: unknown status 7",
            "the application failed: Internal: as the script says",
            "the application failed: Unknown: as the script says",
            "no answer within the time limit",
            "the application does not implement Command",
        ]
    );
    assert_eq!(stub.asked(), 6);
}

#[tokio::test]
async fn a_busy_or_absent_application_is_asked_again_within_the_budget() {
    use Code::{ResourceExhausted, Unavailable};
    let stub = Stub::with([ResourceExhausted, ResourceExhausted, Unavailable].map(Step::Fail));
    let server = stub.serve().await;
    at(&server).command(&"s1".into(), message("")).await.unwrap();
    assert_eq!(stub.asked(), 4);

    let stub = Stub::with(std::iter::repeat_with(|| Step::Fail(Unavailable)).take(99));
    let server = stub.serve().await;
    let app = application(&server.address.to_string(), |config| config.command_timeout = ms(6_200));
    let began = Instant::now();
    let error = app.command(&"s1".into(), message("")).await.unwrap_err();
    assert!(matches!(error, RpcError::Unreachable(_)), "{error}");
    assert_eq!(stub.asked(), 6, "after 0, 0.1, 0.3, 0.7, 1.5 and 3.1 s; the next would be too late");
    assert!(began.elapsed() >= ms(3_100));
}

#[tokio::test]
async fn a_slow_answer_is_given_up_and_its_slot_is_free() {
    let stub = Stub::with([Step::Hang, Step::Hang]);
    let server = stub.serve().await;
    let app = application(&server.address.to_string(), |config| {
        config.concurrency = 1;
        config.request_timeout = ms(4_000);
    });
    eventually("connected", async || app.connect(&"s1".into(), Env::default()).await.is_ok()).await;
    assert!(matches!(app.command(&"s1".into(), message("")).await, Err(RpcError::Timeout)));
    eventually("the server sees the end of the first", async || stub.cancelled.load(Ordering::SeqCst) == 1).await;

    // The session closes while its call is under way.
    let app = application(&server.address.to_string(), |config| config.concurrency = 1);
    let call = tokio::spawn({
        let app = app.clone();
        async move { app.command(&"s2".into(), message("")).await }
    });
    eventually("the second has arrived", async || stub.asked() == 2).await;
    call.abort();
    app.command(&"s3".into(), message("")).await.unwrap();
    eventually("the server sees the end of the second", async || stub.cancelled.load(Ordering::SeqCst) == 2).await;
}

#[tokio::test]
async fn an_application_that_is_away_fails_fast_and_is_found_when_it_is_back() {
    let stub = Stub::default();
    let address = stub.serve().await.stop().await;
    let app = application(&address.to_string(), |config| config.command_timeout = ms(250));
    let error = app.command(&"s1".into(), message("")).await.unwrap_err();
    assert!(matches!(&error, RpcError::Unreachable(reason) if reason.contains("cannot connect")), "{error}");
    let error = app.command(&"s2".into(), message("")).await.unwrap_err();
    assert!(error.to_string().contains("grpc connection is not ready"), "without an attempt: {error}");

    let _server = Server::start_at(address, Version::Http2, stub.handler(), None).await;
    eventually("it is back", async || app.command(&"s3".into(), message("")).await.is_ok()).await;
}

#[tokio::test]
async fn a_call_whose_connection_breaks_goes_on_with_the_next_one() {
    let stub = Stub::with([Step::Hang]);
    let server = stub.serve().await;
    let app = at(&server);
    let call = tokio::spawn({
        let app = app.clone();
        async move { app.command(&"s1".into(), message("")).await }
    });
    eventually("it has arrived", async || stub.asked() == 1).await;
    let address = server.stop().await;
    let server = Server::start_at(address, Version::Http2, stub.handler(), None).await;
    call.await.unwrap().unwrap();
    assert_eq!((stub.asked(), server.connections()), (2, 1));
}

#[tokio::test]
async fn addresses_are_used_in_turn_and_dead_ones_skipped() {
    let (one, other) = (Stub::default(), Stub::default());
    let (first, second) = (one.serve().await, other.serve().await);
    let app = application(&format!("grpc-list://{},{}", first.address, second.address), |_| {});
    eventually("both are connected", async || {
        app.command(&"s1".into(), message("")).await.unwrap();
        one.asked() > 0 && other.asked() > 0
    })
    .await;
    let before = (one.asked(), other.asked());
    for _ in 0..10 {
        app.command(&"s1".into(), message("")).await.unwrap();
    }
    assert_eq!((one.asked() - before.0, other.asked() - before.1), (5, 5));

    first.stop().await;
    let before = one.asked();
    for _ in 0..10 {
        app.command(&"s1".into(), message("")).await.unwrap();
    }
    assert_eq!(one.asked(), before);
    assert_eq!((second.connections(), other.asked() >= before + 10), (1, true));
}

#[tokio::test]
async fn a_name_stands_for_its_addresses() {
    let server = Stub::default().serve().await;
    for host in ["localhost", "dns:///localhost"] {
        let app = application(&format!("{host}:{}", server.address.port()), |_| {});
        app.command(&"s1".into(), message("")).await.unwrap();
    }
    let app = application("no-such-host.invalid:1", |config| config.command_timeout = ms(500));
    let error = app.command(&"s1".into(), message("")).await.unwrap_err();
    assert!(matches!(error, RpcError::Unreachable(_) | RpcError::Timeout), "{error}");
}

#[tokio::test]
async fn sizes_are_limited_in_both_directions() {
    let large = || Box::new(CommandResponse { transmissions: vec!["x".repeat(5 << 20)], ..success() });
    let stub = Stub::with([large(), large()].map(Step::Answer));
    let server = stub.serve().await;
    let error = at(&server).command(&"s1".into(), message("")).await.unwrap_err();
    assert!(matches!(error, RpcError::Garbage(_)), "{error}");
    let app = application(&server.address.to_string(), |config| {
        config.max_recv_size = 6 << 20;
        config.max_send_size = 10_000;
    });
    assert_eq!(app.command(&"s1".into(), message("")).await.unwrap().transmissions[0].len(), 5 << 20);
    assert!(app.command(&"s1".into(), message(&"y".repeat(20_000))).await.is_err());
    assert_eq!(stub.asked(), 2, "the large request stays here");
}

#[tokio::test]
async fn what_is_no_grpc_is_an_error() {
    let junk: Handler = Arc::new(|_| {
        Box::pin(async {
            let mut answer = answer(200, &b"\0\0\0\0\x03\xff\xff\xff"[..]);
            answer.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
            answer
        })
    });
    let server = Server::start(Version::Http2, junk).await;
    let error = at(&server).command(&"s1".into(), message("")).await.unwrap_err();
    assert!(matches!(error, RpcError::Garbage(_)), "{error}");

    let server = Server::start(Version::Http1, Stub::default().handler()).await;
    let app = application(&server.address.to_string(), |config| config.command_timeout = ms(4_000));
    let error = app.command(&"s1".into(), message("")).await.unwrap_err();
    assert!(matches!(error, RpcError::Unreachable(_)), "{error}");
}

#[tokio::test]
async fn an_application_without_restore_says_so() {
    let stub = Stub { without_restore: true, ..Stub::default() };
    let server = stub.serve().await;
    let error = at(&server).restore(&"s1".into(), leaving()).await.unwrap_err();
    assert!(matches!(error, RpcError::Unimplemented("Restore")), "{error}");
}

#[tokio::test]
async fn a_server_that_finds_pings_too_frequent_is_recognised() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = crate::rpc::dial::HostPort::parse(&listener.local_addr().unwrap().to_string()).unwrap();
    let dialer = crate::rpc::dial::Dialer { tls: None };
    for (reason, expected) in [(h2::Reason::ENHANCE_YOUR_CALM, true), (h2::Reason::NO_ERROR, false)] {
        let opening = crate::rpc::grpc::open_for_tests(&dialer, &to);
        let serving = async {
            let (tcp, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(tcp).await.unwrap();
            connection.abrupt_shutdown(reason);
            while connection.accept().await.is_some() {}
        };
        let (too_many_pings, ()) = tokio::join!(opening, serving);
        assert_eq!(too_many_pings, expected, "{reason:?}");
    }
}

/// 300 calls at once through 4 slots: all are answered, in their turn.
#[tokio::test]
async fn no_caller_starves() {
    let stub = Stub::default();
    let server = stub.serve().await;
    let app = application(&server.address.to_string(), |config| config.concurrency = 4);
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..300 {
        let app = app.clone();
        calls.spawn(async move { app.command(&format!("s{number}").into(), message("")).await });
    }
    while let Some(result) = calls.join_next().await {
        result.unwrap().unwrap();
    }
    assert_eq!((stub.asked(), server.connections()), (300, 1));
}
