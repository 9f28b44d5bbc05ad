use super::*;
use axum::extract::Request;
use axum::response::Response;
use http::StatusCode;
use std::net::Ipv4Addr;
use std::path::Path;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
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

fn local(max_conn: usize) -> ListenConfig {
    ListenConfig { host: "127.0.0.1".to_owned(), port: 0, tls: None, max_conn }
}

async fn start(config: ListenConfig, service: Router) -> Server {
    let listener = Listener::bind(&config).await.unwrap();
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
    let server = start(local(0), service).await;
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
    let listener = Listener::bind(&ListenConfig { host: "localhost".to_owned(), ..local(0) }).await.unwrap();
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
    let first = Listener::bind(&local(0)).await.unwrap();
    let port = first.local_addr().port();
    let text = |result: Result<Listener, BindError>| in_full(&result.err().expect("must fail"));

    let in_use = text(Listener::bind(&ListenConfig { port, ..local(0) }).await);
    assert!(in_use.contains(&format!("127.0.0.1:{port}")) && in_use.contains("choose another port"), "{in_use}");
    let foreign = text(Listener::bind(&ListenConfig { host: "192.0.2.1".to_owned(), ..local(0) }).await);
    assert!(foreign.contains("192.0.2.1:0") && foreign.contains("address of this machine"), "{foreign}");
    let unknown = text(Listener::bind(&ListenConfig { host: "no host".to_owned(), port: 81, ..local(0) }).await);
    assert!(unknown.contains("\"no host\"") && unknown.contains("port 81"), "{unknown}");
    let tls = Some(TlsConfig { cert: "no-cert.pem".into(), key: "no-key.pem".into() });
    let no_files = text(Listener::bind(&ListenConfig { tls, ..local(0) }).await);
    assert!(no_files.contains("no-cert.pem"), "{no_files}");
}

#[tokio::test]
async fn connections_beyond_the_limit_wait() {
    let server = start(local(1), hello()).await;
    let mut first = server.connect().await;
    get(&mut first, "/").await;
    let mut second = server.connect().await;
    second.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert!(tokio::time::timeout(MEANWHILE, second.readable()).await.is_err(), "the second must wait");
    drop(first);
    assert!(soon(read_answer(&mut second)).await.ends_with("hello"));
    server.stop().await;
}

#[tokio::test]
async fn a_running_request_is_finished_on_shutdown() {
    let (started, mut starts) = mpsc::channel::<oneshot::Sender<()>>(1);
    let service = Router::new().fallback(move || async move {
        let (go_on, gone_on) = oneshot::channel();
        started.send(go_on).await.unwrap();
        gone_on.await.unwrap();
        "done"
    });
    let server = start(local(0), service).await;
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
    let server = start(local(1), upgrading(sockets)).await;
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

    let mut second = server.connect().await;
    second.write_all(UPGRADE).await.unwrap();
    let waits = tokio::time::timeout(MEANWHILE, upgraded.recv()).await.is_err();
    assert!(waits, "an upgraded connection counts as open");
    drop(socket);
    let (second, _) = soon(upgraded.recv()).await.unwrap();
    server.stop().await;
    drop(second);
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
    let server = start(ListenConfig { tls: Some(files), ..local(0) }, upgrading(sockets)).await;
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
    let error = in_full(&Listener::bind(&ListenConfig { tls: Some(files), ..local(0) }).await.err().unwrap());
    assert!(error.contains("private key"), "{error}");
}

#[tokio::test]
async fn garbage_is_answered_with_400() {
    let server = start(local(0), hello()).await;
    let mut stream = server.connect().await;
    stream.write_all(b"\x16\x03\x01 nonsense\r\n\r\n").await.unwrap();
    assert!(soon(read_answer(&mut stream)).await.starts_with("HTTP/1.1 400"));
    server.stop().await;
}

/// A first header must come within 5 s; a kept-alive connection may be silent for 75 s.
#[test]
fn header_timeouts() {
    let timer = HeaderTimer::default();
    assert_eq!(timer.extension(), Duration::ZERO);
    assert_eq!(timer.extension(), IDLE_TIMEOUT - HEADER_TIMEOUT);
    assert_eq!(timer.clone().extension(), IDLE_TIMEOUT - HEADER_TIMEOUT);
}

#[tokio::test]
async fn a_header_that_does_not_come_closes_the_connection() {
    let server = start(local(0), hello()).await;
    let mut silent = server.connect().await;
    let mut slow = server.connect().await;
    slow.write_all(b"GET / HT").await.unwrap();
    let mut kept_alive = server.connect().await;
    get(&mut kept_alive, "/").await;
    let start = Instant::now();
    assert!(is_closed(&mut silent).await);
    let mut rest = Vec::new();
    // hyper may say 408 before it closes.
    soon(slow.read_to_end(&mut rest)).await.unwrap();
    let took = start.elapsed();
    assert!(took > HEADER_TIMEOUT / 2, "{took:?}");
    assert!(get(&mut kept_alive, "/").await.ends_with("hello"), "an idle connection stays");
    server.stop().await;
}
