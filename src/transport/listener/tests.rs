use super::*;
use crate::transport::connections::ConnectionLimits;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::StatusCode;
use hyper_util::rt::TokioIo;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

/// Patience with things that must happen.
const SOON: Duration = Duration::from_secs(20);
/// Time in which something that must not happen would have happened.
const MEANWHILE: Duration = Duration::from_millis(150);

struct Server {
    addr: SocketAddr,
    shutdown: CancellationToken,
    tracker: TaskTracker,
    serving: tokio::task::JoinHandle<()>,
}

async fn bind(config: &ListenConfig) -> Result<Listener, BindError> {
    Listener::bind(config, Connections::new(ConnectionLimits::NONE)).await
}

async fn start(config: ListenConfig, service: Router) -> Server {
    start_with(config, ConnectionLimits::NONE, service).await
}

async fn start_with(config: ListenConfig, limits: ConnectionLimits, service: Router) -> Server {
    let listener = Listener::bind(&config, Connections::new(limits)).await.unwrap();
    let (addr, shutdown, tracker) = (listener.local_addr(), CancellationToken::new(), TaskTracker::new());
    let serving = tokio::spawn(listener.serve(service, shutdown.clone(), tracker.clone()));
    Server { addr, shutdown, tracker, serving }
}

impl Server {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.unwrap()
    }

    /// Shuts down and waits until every connection has ended.
    async fn stop(self) {
        self.shutdown.cancel();
        soon(self.serving).await.unwrap();
        self.tracker.close();
        soon(self.tracker.wait()).await;
    }
}

async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(SOON, future).await.expect("it should have happened by now")
}

fn hello() -> Router {
    Router::new().fallback(|| async { "hello" })
}

/// Sends a request on a kept-alive connection and reads the answer's header and body.
async fn get<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, path: &str) -> String {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.unwrap();
    soon(read_answer(stream)).await
}

async fn read_answer<S: AsyncRead + Unpin>(stream: &mut S) -> String {
    let mut answer = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&answer).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                return text;
            }
        }
        let read = stream.read_buf(&mut answer).await.unwrap();
        assert!(read > 0, "connection closed after {text:?}");
    }
}

async fn is_closed<S: AsyncRead + Unpin>(stream: &mut S) -> bool {
    let mut rest = Vec::new();
    soon(stream.read_to_end(&mut rest)).await.is_ok_and(|read| read == 0)
}

#[tokio::test]
async fn serves_kept_alive_connections_and_tells_the_peer() {
    let service = Router::new()
        .fallback(|request: Request| async move { request.extensions().get::<PeerAddr>().unwrap().0.to_string() });
    let server = start(ListenConfig::local(), service).await;
    let mut stream = server.connect().await;
    let own = stream.local_addr().unwrap().to_string();
    for _ in 0..2 {
        let answer = get(&mut stream, "/").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(&own), "{answer}");
    }
    server.stop().await;
    assert!(is_closed(&mut stream).await);
}

#[tokio::test]
async fn names_are_resolved_ipv4_first() {
    let listener = bind(&ListenConfig { host: "localhost".to_owned(), ..ListenConfig::local() }).await.unwrap();
    assert_eq!(listener.local_addr().ip(), Ipv4Addr::LOCALHOST);
    assert_ne!(listener.local_addr().port(), 0);
}

/// An error and its causes, as the start of the server reports them.
fn in_full(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[tokio::test]
async fn bind_errors_say_what_to_do() {
    let first = bind(&ListenConfig::local()).await.unwrap();
    let port = first.local_addr().port();
    let text = |result: Result<Listener, BindError>| in_full(&result.err().expect("must fail"));

    let in_use = text(bind(&ListenConfig { port, ..ListenConfig::local() }).await);
    assert!(in_use.contains(&format!("127.0.0.1:{port}")) && in_use.contains("choose another port"), "{in_use}");
    let foreign = text(bind(&ListenConfig { host: "192.0.2.1".to_owned(), ..ListenConfig::local() }).await);
    assert!(foreign.contains("192.0.2.1:0") && foreign.contains("address of this machine"), "{foreign}");
    let unknown = text(bind(&ListenConfig { host: "no host".to_owned(), port: 81, ..ListenConfig::local() }).await);
    assert!(unknown.contains("\"no host\"") && unknown.contains("port 81"), "{unknown}");
    let tls = Some(TlsConfig { cert: "no-cert.pem".into(), key: "no-key.pem".into() });
    let no_files = text(bind(&ListenConfig { tls, ..ListenConfig::local() }).await);
    assert!(no_files.contains("no-cert.pem"), "{no_files}");
}

#[tokio::test]
async fn connections_beyond_the_limit_and_its_reserve_are_told_so() {
    let limits = ConnectionLimits { max: 1, reserve: 1, per_address: 0 };
    let (started, mut starts) = mpsc::channel::<oneshot::Sender<()>>(1);
    let service = hello().route("/wait", axum::routing::get(move || wait(started)));
    let server = start_with(ListenConfig::local(), limits, service).await;
    let mut first = server.connect().await;
    get(&mut first, "/").await;
    // Nobody is disturbed while an answer is made.
    let mut second = server.connect().await;
    second.write_all(b"GET /wait HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let go_on = soon(starts.recv()).await.unwrap();
    let mut third = server.connect().await;
    let answer = soon(read_answer(&mut third)).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: "), "{answer}");
    assert!(is_closed(&mut third).await);
    go_on.send(()).unwrap();
    let answer = soon(read_answer(&mut second)).await;
    assert!(answer.ends_with("done") && answer.contains("connection: close"), "the reserve answers: {answer}");
    assert!(is_closed(&mut second).await, "once");
    drop(first);
    server.stop().await;
}

/// Whoever holds a place while the server waits for it, whatever for.
#[tokio::test]
async fn row_16_whoever_is_waited_for_does_not_keep_others_out_of_the_reserve() {
    let limits = ConnectionLimits { max: 1, reserve: 2, per_address: 0 };
    let read_all = Router::new().fallback(|body: bytes::Bytes| async move { format!("{} bytes", body.len()) });
    let server = start_with(ListenConfig::local(), limits, read_all).await;
    let mut first = server.connect().await;
    get(&mut first, "/").await;
    for said in ["", "GET / HT", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nabc"] {
        let mut held = Vec::new();
        for _ in 0..2 {
            let mut one = server.connect().await;
            one.write_all(said.as_bytes()).await.unwrap();
            held.push(one);
        }
        let mut tried = Vec::new();
        let answer = loop {
            let mut other = server.connect().await;
            other.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            let answer = soon(read_answer(&mut other)).await;
            if answer.starts_with("HTTP/1.1 200") {
                break answer;
            }
            tried.push(answer);
            assert!(tried.len() < 50, "{said:?}: {tried:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert!(answer.contains("connection: close"), "{answer}");
        // The one that had waited longest was closed.
        let mut rest = Vec::new();
        let _ = soon(held[0].read_to_end(&mut rest)).await;
        assert!(!rest.starts_with(b"HTTP/1.1 200"), "{said:?}");
    }
    drop(first);
    server.stop().await;
}

#[tokio::test]
async fn row_14_silent_connections_of_one_address_are_limited_and_requests_do_not_count() {
    let limits = ConnectionLimits { per_address: 2, ..ConnectionLimits::NONE };
    let server = start_with(ListenConfig::local(), limits, hello()).await;
    let mut publishers = Vec::new();
    for _ in 0..5 {
        let mut publisher = server.connect().await;
        assert!(get(&mut publisher, "/").await.ends_with("hello"));
        publishers.push(publisher);
    }
    let silent = [server.connect().await, server.connect().await];
    let mut more = server.connect().await;
    let answer = soon(read_answer(&mut more)).await;
    assert!(answer.starts_with("HTTP/1.1 429") && answer.contains("retry-after: "), "{answer}");
    drop((silent, publishers));
    server.stop().await;
}

/// Pipelined requests whose answers nobody reads.
#[tokio::test]
async fn row_14_answers_that_nobody_reads_hold_no_connection() {
    let config = ListenConfig { write_timeout: Duration::from_secs(4), ..ListenConfig::local() };
    let large = "x".repeat(1 << 20);
    let server = start(config, Router::new().fallback(move || async move { large.clone() })).await;
    let mut rude = server.connect().await;
    for _ in 0..16 {
        rude.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    }
    // Patient but slow: each read is progress.
    let mut slow = server.connect().await;
    slow.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    server.tracker.close();
    let mut answer = Vec::new();
    while answer.len() < 1 << 20 {
        let mut some = [0; 64 * 1024];
        let read = slow.read(&mut some).await.unwrap();
        assert!(read > 0, "cut off after {} bytes", answer.len());
        answer.extend_from_slice(&some[..read]);
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    drop(slow);
    soon(server.tracker.wait()).await;
    drop(rude);
    server.shutdown.cancel();
}

#[tokio::test]
async fn row_14_accepted_sockets_are_kept_alive() {
    let (sockets, mut upgraded) = mpsc::channel(1);
    let config = ListenConfig { keepalive: Some(Duration::from_secs(60)), ..ListenConfig::local() };
    let server = start(config, upgrading(sockets)).await;
    let mut stream = server.connect().await;
    stream.write_all(UPGRADE).await.unwrap();
    let (socket, _) = soon(upgraded.recv()).await.unwrap();
    let accepted = socket2::SockRef::from(socket.tcp());
    assert!(accepted.keepalive().unwrap() && accepted.tcp_nodelay().unwrap());
    assert_eq!(accepted.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
    #[cfg(target_os = "linux")]
    {
        assert_eq!(accepted.tcp_keepalive_interval().unwrap(), Duration::from_secs(15));
        assert_eq!(accepted.tcp_user_timeout().unwrap(), Some(Duration::from_secs(120)));
    }
    drop(socket);
    server.stop().await;
}

/// A handler that says that it has started, and answers when it is told to.
async fn wait(started: mpsc::Sender<oneshot::Sender<()>>) -> &'static str {
    let (go_on, gone_on) = oneshot::channel();
    started.send(go_on).await.unwrap();
    gone_on.await.unwrap();
    "done"
}

#[tokio::test]
async fn a_running_request_is_finished_on_shutdown() {
    let (started, mut starts) = mpsc::channel::<oneshot::Sender<()>>(1);
    let service = Router::new().fallback(move || wait(started));
    let server = start(ListenConfig::local(), service).await;
    let mut stream = server.connect().await;
    let silent = server.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let go_on = soon(starts.recv()).await.unwrap();
    server.shutdown.cancel();
    soon(server.serving).await.unwrap();
    assert!(TcpStream::connect(server.addr).await.is_err(), "the listening socket is closed");
    server.tracker.close();
    assert!(tokio::time::timeout(MEANWHILE, server.tracker.wait()).await.is_err(), "the request is running");
    go_on.send(()).unwrap();
    let answer = soon(read_answer(&mut stream)).await;
    assert!(answer.ends_with("done") && answer.contains("connection: close"), "{answer}");
    soon(server.tracker.wait()).await;
    drop(silent);
}

/// Answers an upgrade request and sends the socket that hyper gives back.
fn upgrading(sockets: mpsc::Sender<(Socket, bytes::Bytes)>) -> Router {
    Router::new().fallback(move |mut request: Request| async move {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let parts = upgrade.await.unwrap().downcast::<TokioIo<Socket>>().expect("the listener's own socket type");
            sockets.send((parts.io.into_inner(), parts.read_buf)).await.unwrap();
        });
        let switching = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
        switching.header("connection", "upgrade").header("upgrade", "echo").body(Body::empty()).unwrap()
    })
}

const UPGRADE: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nearly";

#[tokio::test]
async fn an_upgraded_connection_is_handed_over_and_not_waited_for() {
    let (sockets, mut upgraded) = mpsc::channel(2);
    let server = start(ListenConfig::local(), upgrading(sockets)).await;
    let mut stream = server.connect().await;
    stream.write_all(UPGRADE).await.unwrap();
    assert!(soon(read_answer(&mut stream)).await.starts_with("HTTP/1.1 101"));
    let (mut socket, early) = soon(upgraded.recv()).await.unwrap();
    assert_eq!(early, "early");
    assert!(socket.is_write_vectored() && !socket.is_tls());
    assert!(socket.tcp().nodelay().unwrap());
    let frames = [io::IoSlice::new(b"ab"), io::IoSlice::new(b"cd")];
    assert_eq!(socket.write_vectored(&frames).await.unwrap(), 4);
    let mut received = [0; 4];
    soon(stream.read_exact(&mut received)).await.unwrap();
    assert_eq!(&received, b"abcd");

    server.stop().await;
    drop(socket);
}

#[tokio::test]
async fn tls_connections() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tls");
    let files = TlsConfig { cert: directory.join("cert.pem"), key: directory.join("key.pem") };
    let mut roots = rustls::RootCertStore::empty();
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    roots.add(CertificateDer::from_pem_file(&files.cert).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let client = Arc::new(client.with_root_certificates(roots).with_no_client_auth());

    let (sockets, mut upgraded) = mpsc::channel(1);
    let server = start(ListenConfig { tls: Some(files), ..ListenConfig::local() }, upgrading(sockets)).await;
    let name = "localhost".try_into().unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(client).connect(name, server.connect().await).await.unwrap();
    stream.write_all(UPGRADE).await.unwrap();
    assert!(soon(read_answer(&mut stream)).await.starts_with("HTTP/1.1 101"));
    let (mut socket, _) = soon(upgraded.recv()).await.unwrap();
    assert!(socket.is_tls() && socket.is_write_vectored());
    socket.write_all(b"abcd").await.unwrap();
    socket.flush().await.unwrap();
    let mut received = [0; 4];
    soon(stream.read_exact(&mut received)).await.unwrap();
    assert_eq!(&received, b"abcd");

    let mut plain = server.connect().await;
    plain.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // An alert or a reset, no HTTP.
    let _ = soon(plain.read_to_end(&mut answer)).await;
    assert!(!answer.starts_with(b"HTTP"), "no plain HTTP on a TLS port");
    server.stop().await;
}

#[tokio::test]
async fn a_certificate_without_its_key_is_a_start_error() {
    let cert = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tls/cert.pem");
    let files = TlsConfig { cert: cert.clone(), key: cert };
    let error = in_full(&bind(&ListenConfig { tls: Some(files), ..ListenConfig::local() }).await.err().unwrap());
    assert!(error.contains("private key"), "{error}");
}

#[tokio::test]
async fn garbage_is_answered_with_400() {
    let server = start(ListenConfig::local(), hello()).await;
    let mut stream = server.connect().await;
    stream.write_all(b"\x16\x03\x01 nonsense\r\n\r\n").await.unwrap();
    assert!(soon(read_answer(&mut stream)).await.starts_with("HTTP/1.1 400"));
    server.stop().await;
}

#[tokio::test]
async fn requests_name_their_host_as_the_rfc_wants() {
    let server = start(ListenConfig::local(), hello()).await;
    let status = async |request: &str| {
        let mut stream = server.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        soon(read_answer(&mut stream)).await["HTTP/1.x ".len()..][..3].to_owned()
    };
    for good in ["GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.1\r\nhost: a:1\r\n\r\n", "GET / HTTP/1.1\r\nhost:\r\n\r\n"] {
        assert_eq!(status(good).await, "200", "{good:?}");
    }
    for bad in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a@b\r\n\r\n",
        "GET / HTTP/1.0\r\nhost: a@b\r\n\r\n",
    ] {
        assert_eq!(status(bad).await, "400", "{bad:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_header_that_does_not_come_closes_the_connection() {
    let server = start(ListenConfig::local(), hello()).await;
    let start = Instant::now();
    let mut silent = server.connect().await;
    let mut slow = server.connect().await;
    slow.write_all(b"GET / HT").await.unwrap();
    let mut kept_alive = server.connect().await;
    get(&mut kept_alive, "/").await;
    assert!(is_closed(&mut silent).await);
    let mut rest = Vec::new();
    // hyper may say 408 before it closes.
    soon(slow.read_to_end(&mut rest)).await.unwrap();
    let took = start.elapsed();
    assert!(took > Duration::from_millis(2_500), "{took:?}");
    assert!(get(&mut kept_alive, "/").await.ends_with("hello"), "an idle connection stays");
    server.stop().await;
}
