//! One connection to the application's side: TCP, and TLS on top where it is wanted.

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Longest time for TCP and TLS together: a peer whose packets vanish must not hold calls until the kernel gives up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A host and a port, as in `host:port` or `[::1]:port`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// Without brackets.
    pub host: String,
    pub port: u16,
}

impl HostPort {
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = match host.strip_prefix('[') {
            Some(host) => host.strip_suffix(']')?,
            None if host.contains(':') => return None,
            None => host,
        };
        let named =
            !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || matches!(c, '/' | '@' | '[' | ']'));
        let port = port.parse().ok().filter(|port| *port != 0)?;
        named.then(|| Self { host: host.to_owned(), port })
    }

    /// As it stands in a URL.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("cannot connect to {to}: {source}")]
    Tcp { to: String, source: io::Error },
    #[error("no TLS with {to}: {source}")]
    Tls { to: String, source: io::Error },
    #[error("no connection with {to} within {} seconds", CONNECT_TIMEOUT.as_secs())]
    Slow { to: String },
}

/// How to connect.
#[derive(Clone, Debug)]
pub struct Dialer {
    pub tls: Option<Arc<ClientConfig>>,
}

impl Dialer {
    /// Connects to the address, or to the first address of the host that answers.
    pub async fn dial(&self, to: &HostPort, address: Option<SocketAddr>) -> Result<Stream, DialError> {
        let name = || match address {
            Some(address) if address.ip().to_string() != to.host => format!("{} ({})", to.authority(), address.ip()),
            _ => to.authority(),
        };
        let connecting = async {
            let tcp = match address {
                Some(address) => TcpStream::connect(address).await,
                None => TcpStream::connect((to.host.as_str(), to.port)).await,
            }
            .and_then(|tcp| tcp.set_nodelay(true).map(|()| tcp))
            .map_err(|source| DialError::Tcp { to: name(), source })?;
            let Some(tls) = &self.tls else {
                return Ok(Stream::Plain(tcp));
            };
            let tls_error = |source| DialError::Tls { to: name(), source };
            let server = ServerName::try_from(to.host.clone())
                .map_err(|error| tls_error(io::Error::other(error.to_string())))?;
            let stream = TlsConnector::from(tls.clone()).connect(server, tcp).await.map_err(tls_error)?;
            Ok(Stream::Tls(Box::new(stream)))
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(result) => result,
            Err(_) => Err(DialError::Slow { to: name() }),
        }
    }
}

/// Bytes to and from the application.
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// The chain of errors in one line.
pub fn describe(error: &(dyn Error + 'static)) -> String {
    let chain = std::iter::successors(Some(error), |error| (*error).source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for (text, host, authority) in [
            ("localhost:50051", "localhost", "localhost:50051"),
            ("10.0.0.1:1", "10.0.0.1", "10.0.0.1:1"),
            ("[::1]:50051", "::1", "[::1]:50051"),
        ] {
            let parsed = HostPort::parse(text).unwrap();
            assert_eq!((parsed.host.as_str(), parsed.authority()), (host, authority.to_owned()));
        }
        for text in ["", "localhost", ":1", "a:0", "a:65536", "::1:50051", "[::1:1", "a b:1", "u@h:1", "a/b:1"] {
            assert_eq!(HostPort::parse(text), None, "{text}");
        }
    }
}
