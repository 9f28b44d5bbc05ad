//! The one I/O type of all client connections, so that an upgraded connection can be taken back from hyper as what it is
//! (`Upgraded::downcast::<TokioIo<Socket>>()`) instead of through two layers of boxes.

use super::connections::Share;
use crate::metrics;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;

/// An accepted connection, plain or TLS. It counts as open until it is dropped, upgraded or not.
pub struct Socket {
    io: Io,
    /// What the connection takes of the limits.
    _share: Arc<Share>,
    /// How long a write may make no progress.
    patience: Option<Duration>,
    /// There while one makes none.
    stuck: Option<Pin<Box<Sleep>>>,
}

enum Io {
    Plain(TcpStream),
    /// Boxed: a TLS session is 1 KB and more, which plain connections must not pay for.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    pub(super) fn plain(tcp: TcpStream, share: Arc<Share>) -> Self {
        Self { io: Io::Plain(tcp), _share: share, patience: None, stuck: None }
    }

    pub(super) fn tls(stream: TlsStream<TcpStream>, share: Arc<Share>) -> Self {
        Self { io: Io::Tls(Box::new(stream)), _share: share, patience: None, stuck: None }
    }

    /// Lets a write that makes no progress for so long fail: answers that nobody reads hold no connection for ever.
    pub(super) fn give_up_after(&mut self, patience: Option<Duration>) {
        self.patience = patience;
        self.stuck = None;
    }

    /// A write's outcome, or an error when none comes.
    fn watched<T>(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let Some(patience) = self.patience else { return outcome };
        if outcome.is_ready() {
            self.stuck = None;
            return outcome;
        }
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        if stuck.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        metrics::HTTP_WRITE_TIMEOUTS.inc();
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    pub fn is_tls(&self) -> bool {
        matches!(self.io, Io::Tls(_))
    }

    /// The TCP connection below, for its options and addresses.
    pub fn tcp(&self) -> &TcpStream {
        match &self.io {
            Io::Plain(tcp) => tcp,
            Io::Tls(stream) => stream.get_ref().0,
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Io::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = match &mut this.io {
            Io::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Io::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        };
        this.watched(cx, outcome)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = match &mut this.io {
            Io::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Io::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        };
        this.watched(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(tcp) => tcp.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = match &mut this.io {
            Io::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Io::Tls(stream) => Pin::new(stream).poll_flush(cx),
        };
        this.watched(cx, outcome)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = match &mut this.io {
            Io::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        };
        this.watched(cx, outcome)
    }
}
