//! A TCP listener that serves HTTP/1.1, with or without TLS, and hands upgraded connections over.
//!
//! All listeners of the process are of this kind. A connection that was upgraded is no longer ours: graceful shutdown
//! waits for plain requests alone, whoever took the upgraded socket ends it.

use super::connections::{Admitted, Connections, Door, Share};
use super::proxies::TrustedProxies;
use super::refusals::Refusals;
use super::serving::{header_timeout, serve_connection};
use super::socket::Socket;
use super::tls::{self, TlsError};
use crate::log_limit::limited;
use axum::Router;
use socket2::SockRef;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections that the kernel keeps for us until they are accepted: a reconnect storm comes in one second.
const BACKLOG: u32 = 4096;

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
    /// How many connections there may be, with the other listeners and in a reserve of its own.
    door: Door,
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
                    return Ok(Self { tcp, addr, tls, write_timeout, keepalive, proxies, door: connections.door() });
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
            let Admitted { share, displaced } = match self.door.admit(counted) {
                Ok(admitted) => admitted,
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
                let serving = async {
                    if let Some(socket) = secure(tls, tcp, peer, &share, &shutdown).await {
                        serve_connection(socket, peer, share.clone(), write_timeout, service, shutdown).await;
                    }
                };
                tokio::select! {
                    biased;
                    () = share.displaced() => tracing::debug!(%peer, "closed a connection that waited, to make room"),
                    () = serving => {}
                }
            });
            if displaced {
                // The other one closes its descriptor before the next one is opened.
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Shakes hands where the listener has TLS. `None`: that failed.
async fn secure(
    tls: Option<TlsAcceptor>,
    tcp: TcpStream,
    peer: SocketAddr,
    share: &Arc<Share>,
    shutdown: &CancellationToken,
) -> Option<Socket> {
    let Some(tls) = tls else { return Some(Socket::plain(tcp, share.clone())) };
    let handshake = tokio::time::timeout(header_timeout(share), tls.accept(tcp));
    match shutdown.run_until_cancelled(handshake).await? {
        Ok(Ok(stream)) => return Some(Socket::tls(stream, share.clone())),
        Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
        Err(_) => tracing::debug!(%peer, "TLS handshake timed out"),
    }
    None
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

#[cfg(test)]
mod tests;
