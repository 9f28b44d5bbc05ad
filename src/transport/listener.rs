//! A TCP listener that serves HTTP/1.1, with or without TLS, and hands upgraded connections over.
//!
//! All listeners of the process are of this kind. A connection that was upgraded is no longer ours: graceful shutdown
//! waits for plain requests alone, whoever took the upgraded socket ends it.

use super::connections::{Connections, Share};
use super::proxies::TrustedProxies;
use super::refusals::Refusals;
use super::socket::Socket;
use super::tls::{self, TlsError};
use crate::log_limit::limited;
use crate::metrics;
use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::rt::{Sleep, Timer};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpSocket};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service;

/// Time for a TLS handshake, and for the header of a connection's first request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a kept-alive connection may stay silent before its next request. Longer than the pools of usual HTTP
/// clients and proxies (60 s) keep a connection, so that they close it and not we under a request on its way.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// What a request may take at most that is running when the shutdown begins.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// Largest request header, and the most that is read at once. Buffers start at 8 KiB and grow only where needed.
const MAX_BUFFER: usize = 64 * 1024;

/// Connections that the kernel keeps for us until they are accepted: a reconnect storm comes in one second.
const BACKLOG: u32 = 4096;

/// The first, for a connection that is more than there should be.
const RESERVED_HEADER_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a write of an answer may make no progress by default.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Questions of the kernel to a silent peer that stay unanswered before the connection ends.
const KEEPALIVE_PROBES: u32 = 4;

/// The longest time that the kernel takes for a silence, and the same for the time between two questions.
const LONGEST_KEEPALIVE: Duration = Duration::from_secs(32_767);

/// Pause after an accept error that does not concern one connection (out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where to listen.
#[derive(Clone, Debug)]
pub struct ListenConfig {
    /// Name or address to bind; empty: all addresses.
    pub host: String,
    /// 0: any free port, see [`Listener::local_addr`].
    pub port: u16,
    pub tls: Option<TlsConfig>,
    /// How long a write of an answer may make no progress.
    pub write_timeout: Duration,
    /// After so long a silence the kernel asks whether the peer is still there. `None`: never.
    pub keepalive: Option<Duration>,
    pub proxies: TrustedProxies,
}

impl ListenConfig {
    /// Any free port of this machine alone, for tests.
    #[cfg(test)]
    pub fn local() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 0,
            tls: None,
            write_timeout: WRITE_TIMEOUT,
            keepalive: None,
            proxies: TrustedProxies::default(),
        }
    }
}

/// Files for TLS, PEM.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    /// The certificate and those that lead to its authority, in this order.
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// Why a listener could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("cannot resolve host {host:?} to listen on port {port}, set the host to an address of this machine")]
    Resolve { host: String, port: u16, source: io::Error },
    #[error("cannot listen on {host}:{port}, {}", advice(.source))]
    Bind { host: String, port: u16, source: io::Error },
    #[error("cannot listen on {host}:{port} with TLS")]
    Tls { host: String, port: u16, source: TlsError },
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another process listens there, stop it or choose another port",
        io::ErrorKind::PermissionDenied => "ports below 1024 need a privilege, choose a higher one",
        io::ErrorKind::AddrNotAvailable => "the host must be an address of this machine",
        _ => "choose another host or port",
    }
}

/// The peer of a connection, in the extensions of each of its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddr(pub SocketAddr);

/// A bound socket: connections already queue in the kernel, [`Listener::serve`] accepts them.
pub struct Listener {
    tcp: TcpListener,
    addr: SocketAddr,
    tls: Option<TlsAcceptor>,
    write_timeout: Duration,
    keepalive: Option<Duration>,
    proxies: TrustedProxies,
    /// What there is of connections, shared with the other listeners.
    connections: Arc<Connections>,
}

impl Listener {
    /// Binds to the first address of the host that can be bound, IPv4 first. TLS files are read here.
    pub async fn bind(config: &ListenConfig, connections: Arc<Connections>) -> Result<Self, BindError> {
        let (host, port) = (config.host.clone(), config.port);
        let tls = match &config.tls {
            None => None,
            Some(files) => match tls::acceptor(&files.cert, &files.key) {
                Ok(acceptor) => Some(acceptor),
                Err(source) => return Err(BindError::Tls { host, port, source }),
            },
        };
        let addresses = match resolve(&config.host, port).await {
            Ok(addresses) => addresses,
            Err(source) => return Err(BindError::Resolve { host, port, source }),
        };
        let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no addresses");
        for address in addresses {
            match listen(address, config.keepalive).and_then(|tcp| Ok((tcp.local_addr()?, tcp))) {
                Ok((addr, tcp)) => {
                    let ListenConfig { write_timeout, keepalive, proxies, .. } = config.clone();
                    return Ok(Self { tcp, addr, tls, write_timeout, keepalive, proxies, connections });
                }
                Err(error) => failure = error,
            }
        }
        Err(BindError::Bind { host, port, source: failure })
    }

    /// The address bound, with the real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Accepts connections until `shutdown`, then closes the listening socket and returns. Each connection is a task of
    /// `tracker`; at `shutdown` it finishes its running request, if any, and ends.
    pub async fn serve(self, service: Router, shutdown: CancellationToken, tracker: TaskTracker) {
        let refusals = Refusals::new(tracker.clone());
        loop {
            let accepted = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                accepted = self.tcp.accept() => accepted,
            };
            let (tcp, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) if is_of_one_connection(&error) => continue,
                Err(error) => {
                    let addr = self.addr;
                    limited!(ERROR, AcceptFailed, %error, %addr, "cannot accept connections, check the open file limit");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // Whom a trusted proxy speaks for is known only when it has spoken.
            let counted = Some(peer.ip()).filter(|ip| !self.proxies.trusts(*ip));
            let share = match self.connections.admit(counted) {
                Ok(share) => share,
                Err(refusal) => {
                    refusals.refuse(tcp, refusal, self.tls.is_some());
                    continue;
                }
            };
            if !INHERITED {
                set_up(SockRef::from(&tcp), self.keepalive);
            }
            let (tls, service, shutdown) = (self.tls.clone(), service.clone(), shutdown.clone());
            let write_timeout = self.write_timeout;
            tracker.spawn(async move {
                let socket = match tls {
                    None => Socket::plain(tcp, share.clone()),
                    Some(tls) => {
                        let handshake = tokio::time::timeout(header_timeout(&share), tls.accept(tcp));
                        match shutdown.run_until_cancelled(handshake).await {
                            Some(Ok(Ok(stream))) => Socket::tls(stream, share.clone()),
                            Some(Ok(Err(error))) => {
                                tracing::debug!(%peer, %error, "TLS handshake failed");
                                return;
                            }
                            Some(Err(_)) => {
                                tracing::debug!(%peer, "TLS handshake timed out");
                                return;
                            }
                            None => return,
                        }
                    }
                };
                serve_connection(socket, peer, share, write_timeout, service, shutdown).await;
            });
        }
    }
}

/// Accepted sockets have the options of the socket that listens. Elsewhere each one is given them.
const INHERITED: bool = cfg!(target_os = "linux");

/// Options of accepted sockets. One that refuses them is closed already, reading will tell.
fn set_up(socket: SockRef<'_>, keepalive: Option<Duration>) {
    // Small frames must not wait for each other.
    let _ = socket.set_tcp_nodelay(true);
    if let Some(silence) = keepalive {
        keep_alive(&socket, silence);
    }
}

/// Finds dead peers: after so long a silence the kernel asks, and gives up when four questions, or data, stay unanswered
/// for as long again.
fn keep_alive(socket: &SockRef<'_>, silence: Duration) {
    // More than the kernel takes.
    let silence = silence.min(LONGEST_KEEPALIVE);
    let between = (silence / KEEPALIVE_PROBES).max(Duration::from_secs(1));
    let keepalive = socket2::TcpKeepalive::new().with_time(silence).with_interval(between);
    #[cfg(target_os = "linux")]
    let keepalive = keepalive.with_retries(KEEPALIVE_PROBES);
    let _ = socket.set_tcp_keepalive(&keepalive);
    #[cfg(target_os = "linux")]
    let _ = socket.set_tcp_user_timeout(Some(2 * silence));
}

/// Who was taken in out of the reserve makes room soon.
fn header_timeout(share: &Share) -> Duration {
    if share.is_reserved() { RESERVED_HEADER_TIMEOUT } else { HEADER_TIMEOUT }
}

async fn serve_connection(
    mut socket: Socket,
    peer: SocketAddr,
    share: Arc<Share>,
    write_timeout: Duration,
    service: Router,
    shutdown: CancellationToken,
) {
    socket.give_up_after(write_timeout, &metrics::HTTP_WRITE_TIMEOUTS);
    let header_timeout = header_timeout(&share);
    let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
        let mut request = request.map(Body::new);
        if !request.headers().contains_key(http::header::UPGRADE) {
            share.release_address();
        }
        request.extensions_mut().insert(PeerAddr(peer));
        request.extensions_mut().insert(share.clone());
        service.clone().call(request)
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(HeaderTimer::new(header_timeout))
        .header_read_timeout(header_timeout)
        .max_buf_size(MAX_BUFFER)
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(DRAIN_LIMIT, connection).await {
                Ok(ended) => ended,
                Err(_) => {
                    limited!(WARN, RequestCutOff, %peer, "cut off a request that did not end after the shutdown began");
                    return;
                }
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "connection ended early");
    }
}

/// Addresses of a host, IPv4 first: where `localhost` has both, clients that know one of them try 127.0.0.1.
async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let host = if bare.is_empty() { "0.0.0.0" } else { bare };
    let mut addresses: Vec<_> = tokio::net::lookup_host((host, port)).await?.collect();
    addresses.sort_by_key(SocketAddr::is_ipv6);
    Ok(addresses)
}

fn listen(address: SocketAddr, keepalive: Option<Duration>) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restart must not wait for connections of the last run to time out.
    socket.set_reuseaddr(true)?;
    if INHERITED {
        set_up(SockRef::from(&socket), keepalive);
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accept errors that say that the peer is gone already.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// hyper has one timeout for a header and for the silence before it. The first request of a connection gets what hyper
/// asks for, later ones [`IDLE_TIMEOUT`].
#[derive(Clone)]
struct HeaderTimer {
    inner: TokioTimer,
    /// What is put on top of later ones.
    rest: Duration,
    /// The first header's timeout was set.
    kept_alive: Arc<AtomicBool>,
}

impl HeaderTimer {
    fn new(first: Duration) -> Self {
        let rest = IDLE_TIMEOUT.saturating_sub(first);
        Self { inner: TokioTimer::new(), rest, kept_alive: Arc::default() }
    }

    fn extension(&self) -> Duration {
        if self.kept_alive.swap(true, Ordering::Relaxed) { self.rest } else { Duration::ZERO }
    }
}

impl Timer for HeaderTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.inner.sleep(duration + self.extension())
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        self.inner.sleep_until(deadline + self.extension())
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn Sleep>>, deadline: Instant) {
        self.inner.reset(sleep, deadline + self.extension());
    }

    fn now(&self) -> Instant {
        self.inner.now()
    }
}

#[cfg(test)]
mod tests;
