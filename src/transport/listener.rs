//! A TCP listener that serves HTTP/1.1, with or without TLS, and hands upgraded connections over.
//!
//! All listeners of the process are of this kind. A connection that was upgraded is no longer ours: graceful shutdown
//! waits for plain requests alone, whoever took the upgraded socket ends it.

use super::socket::Socket;
use super::tls::{self, TlsError};
use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::rt::{Sleep, Timer};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
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
    /// Connections open at the same time; further ones wait unaccepted. 0: no limit.
    pub max_conn: usize,
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
    /// One permit per open connection; none without a limit.
    permits: Option<Arc<Semaphore>>,
}

impl Listener {
    /// Binds to the first address of the host that can be bound, IPv4 first. TLS files are read here.
    pub async fn bind(config: &ListenConfig) -> Result<Self, BindError> {
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
            match listen(address).and_then(|tcp| Ok((tcp.local_addr()?, tcp))) {
                Ok((addr, tcp)) => {
                    let permits = (config.max_conn > 0).then(|| Arc::new(Semaphore::new(config.max_conn)));
                    return Ok(Self { tcp, addr, tls, permits });
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
        loop {
            let accepted = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                accepted = self.accept() => accepted,
            };
            let (tcp, peer, permit) = match accepted {
                Ok(accepted) => accepted,
                Err(error) if is_of_one_connection(&error) => continue,
                Err(error) => {
                    tracing::error!(%error, addr = %self.addr, "cannot accept connections, check the open file limit");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // Small frames must not wait for each other. A socket that refuses is closed already, reading will tell.
            let _ = tcp.set_nodelay(true);
            let (tls, service, shutdown) = (self.tls.clone(), service.clone(), shutdown.clone());
            tracker.spawn(async move {
                let socket = match tls {
                    None => Socket::plain(tcp, permit),
                    Some(tls) => {
                        let handshake = tokio::time::timeout(HEADER_TIMEOUT, tls.accept(tcp));
                        match shutdown.run_until_cancelled(handshake).await {
                            Some(Ok(Ok(stream))) => Socket::tls(stream, permit),
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
                serve_connection(socket, peer, service, shutdown).await;
            });
        }
    }

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr, Option<OwnedSemaphorePermit>)> {
        let permit = match &self.permits {
            None => None,
            Some(permits) => Some(permits.clone().acquire_owned().await.expect("the semaphore is never closed")),
        };
        let (tcp, peer) = self.tcp.accept().await?;
        Ok((tcp, peer, permit))
    }
}

async fn serve_connection(socket: Socket, peer: SocketAddr, service: Router, shutdown: CancellationToken) {
    let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(PeerAddr(peer));
        service.clone().call(request)
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(HeaderTimer::default())
        .header_read_timeout(HEADER_TIMEOUT)
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
                    tracing::warn!(%peer, "cut off a request that did not end after the shutdown began");
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

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restart must not wait for connections of the last run to time out.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accept errors that say that the peer is gone already.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// hyper has one timeout for a header and for the silence before it. The first request of a connection gets
/// [`HEADER_TIMEOUT`], later ones [`IDLE_TIMEOUT`].
#[derive(Clone, Default)]
struct HeaderTimer {
    inner: TokioTimer,
    /// The first header's timeout was set.
    kept_alive: Arc<AtomicBool>,
}

impl HeaderTimer {
    /// hyper asks for `HEADER_TIMEOUT`; the rest of the idle time is put on top.
    fn extension(&self) -> Duration {
        if self.kept_alive.swap(true, Ordering::Relaxed) { IDLE_TIMEOUT - HEADER_TIMEOUT } else { Duration::ZERO }
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
