//! The one I/O type of all client connections, so that an upgraded connection can be taken back from hyper as what it is
//! (`Upgraded::downcast::<TokioIo<Socket>>()`) instead of through two layers of boxes.

use super::connections::Share;
use super::unacknowledged::unacknowledged;
use crate::metrics::Counter;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;

/// An accepted connection, plain or TLS. It counts as open until it is dropped, upgraded or not.
pub struct Socket {
    io: Io,
    /// What the connection takes of the limits.
    _share: Arc<Share>,
    /// How long the peer may take nothing while something is to be written, and where it counts when it does.
    patience: Option<(Duration, &'static Counter)>,
    /// There while it is not known to take something.
    stuck: Option<Box<Stuck>>,
}

/// So many looks at a stuck connection make up its patience. Looks are counted and not time, so that a process that was
/// suspended looks again before it judges.
const LOOKS: u32 = 20;

/// A write that the kernel takes nothing of. The peer may take something all the same, see [`unacknowledged`].
struct Stuck {
    next: Pin<Box<Sleep>>,
    /// Bytes that the peer had not acknowledged when the system last told it. `None`: it has not told it yet.
    left: Option<u32>,
    /// Looks since the peer was last seen to take something.
    in_vain: u32,
}

impl Stuck {
    fn new(patience: Duration) -> Self {
        Self { next: Box::pin(tokio::time::sleep(patience / LOOKS)), left: None, in_vain: 0 }
    }

    fn is_over(&self) -> bool {
        self.in_vain >= LOOKS
    }

    /// Ready when the peer has taken nothing for so long.
    fn poll_over(&mut self, cx: &mut Context<'_>, patience: Duration, tcp: &TcpStream) -> Poll<()> {
        while !self.is_over() {
            ready!(self.next.as_mut().poll(cx));
            self.next.as_mut().reset(Instant::now() + patience / LOOKS);
            self.note(unacknowledged(tcp));
        }
        Poll::Ready(())
    }

    /// What a look has found. One without an answer (there may be no descriptor to spare) shows nothing that was taken; the
    /// next number is compared with the last one that is known.
    fn note(&mut self, left: Option<u32>) {
        match (self.left, left) {
            // The first number is only there to be compared with.
            (None, Some(_)) => {}
            // Less: the peer has acknowledged something. More: it had, and the kernel took more of a TLS session for it.
            (Some(before), Some(now)) if before != now => self.in_vain = 0,
            _ => self.in_vain += 1,
        }
        self.left = left.or(self.left);
    }
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

    /// Lets writes fail when the peer takes nothing for so long: who does not read holds no connection for ever. Where the
    /// system does not tell what the peer takes, it is the kernel on this side that must take nothing for so long.
    pub(super) fn give_up_after(&mut self, patience: Duration, counter: &'static Counter) {
        self.patience = Some((patience, counter));
        self.stuck = None;
    }

    /// A write's outcome, or an error when none comes.
    fn watched<T>(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let Some((patience, counter)) = self.patience else { return outcome };
        if outcome.is_ready() {
            self.stuck = None;
            return outcome;
        }
        let mut stuck = self.stuck.take().unwrap_or_else(|| Box::new(Stuck::new(patience)));
        let was_over = stuck.is_over();
        let over = stuck.poll_over(cx, patience, self.tcp());
        if over.is_ready() && !was_over {
            counter.inc();
            let peer = self.tcp().peer_addr().ok();
            tracing::debug!(?peer, ?patience, "a peer has taken nothing for too long");
        }
        // It stays over: nothing else is waited for, such as the end of a TLS session.
        self.stuck = Some(stuck);
        over.map(|()| Err(io::ErrorKind::TimedOut.into()))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of these looks it takes until the peer has taken nothing for too long.
    fn over_after(looks: impl IntoIterator<Item = Option<u32>>) -> Option<usize> {
        let mut stuck = Stuck::new(Duration::from_secs(20));
        let over = |left| {
            stuck.note(left);
            stuck.is_over()
        };
        looks.into_iter().map(over).position(|over| over).map(|before| before + 1)
    }

    #[tokio::test]
    async fn a_look_without_an_answer_is_no_sign_that_the_peer_takes_something() {
        let silent = || std::iter::repeat_n(Some(500), 100);
        assert_eq!(over_after(silent()), Some(21), "the first one is compared with");
        // The system tells it now and then, and it is the same each time.
        let now_and_then = (0..100).map(|look| (look % 3 == 0).then_some(500));
        assert_eq!(over_after(now_and_then), Some(21));
        assert_eq!(over_after([None; 100]), Some(20), "it never tells: the kernel takes nothing");
        let late = std::iter::repeat_n(None, 10).chain(silent());
        assert_eq!(over_after(late), Some(21), "nor does the first number take anything back");
        // It has taken something between two answers.
        let slow = (0..100).map(|look| (look % 3 == 0).then_some(500 - look));
        assert_eq!(over_after(slow), None);
        let growing = (0..100).map(|look| (look % 15 == 0).then_some(500 + look));
        assert_eq!(over_after(growing), None, "the kernel took more of the session");
    }
}
