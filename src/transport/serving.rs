//! One HTTP connection: its requests one after the other, and what the server waits for meanwhile.

use super::connections::Share;
use super::listener::PeerAddr;
use super::socket::Socket;
use crate::log_limit::limited;
use crate::metrics;
use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::rt::{Sleep, Timer};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use tower_service::Service;

/// Time for a TLS handshake, and for the header of a connection's first request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// The same for a connection that is more than there should be: who was taken in out of the reserve makes room soon.
const RESERVED_HEADER_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a kept-alive connection may stay silent before its next request. Longer than the pools of usual HTTP
/// clients and proxies (60 s) keep a connection, so that they close it and not we under a request on its way.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// What a request may take at most that is running when the shutdown begins.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// Largest request header, and the most that is read at once. Buffers start at 8 KiB and grow only where needed.
const MAX_BUFFER: usize = 64 * 1024;

pub(super) fn header_timeout(share: &Share) -> Duration {
    if share.is_reserved() { RESERVED_HEADER_TIMEOUT } else { HEADER_TIMEOUT }
}

/// Serves a connection until it ends, or is upgraded.
pub(super) async fn serve_connection(
    mut socket: Socket,
    peer: SocketAddr,
    share: Arc<Share>,
    write_timeout: Duration,
    service: Router,
    shutdown: CancellationToken,
) {
    socket.give_up_after(write_timeout, &metrics::HTTP_WRITE_TIMEOUTS);
    let header_timeout = header_timeout(&share);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let share = share.clone();
        let has_place = share.begin(request.headers().contains_key(header::UPGRADE));
        let mut request = request.map(|body| Body::new(Arriving::new(body, &share)));
        request.extensions_mut().insert(PeerAddr(peer));
        request.extensions_mut().insert(share.clone());
        let fault = match has_place {
            true => (!names_host(&request)).then_some(StatusCode::BAD_REQUEST),
            // The connection is about to be closed for another one.
            false => Some(StatusCode::SERVICE_UNAVAILABLE),
        };
        let answering = match fault {
            Some(status) => Err(status),
            None => Ok(service.clone().call(request)),
        };
        async move {
            let mut response = match answering {
                Ok(answering) => answering.await?,
                Err(status) => refuse(status),
            };
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                share.upgrade();
            } else if !share.may_stay() {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response.map(|body| Answer { body, share }))
        }
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

/// RFC 9112 §3.2: a request of HTTP/1.1 has one `Host`, which is a host and a port, without anything before them.
fn names_host(request: &Request<Body>) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (first, more) = (hosts.next(), hosts.next());
    let is_there = first.is_some() || request.version() < Version::HTTP_11;
    is_there && more.is_none() && first.is_none_or(|host| !host.as_bytes().contains(&b'@'))
}

fn refuse(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// The body of a request. The connection waits for its client until all of it has come, or nobody wants the rest.
struct Arriving<B> {
    body: B,
    share: Option<Arc<Share>>,
    /// Its place became another one's before all of it was there.
    is_lost: bool,
}

impl<B: HttpBody> Arriving<B> {
    fn new(body: B, share: &Arc<Share>) -> Self {
        let share = (!body.is_end_stream()).then(|| share.clone());
        if let Some(share) = &share {
            share.wait();
        }
        Self { body, share, is_lost: false }
    }
}

impl<B> Arriving<B> {
    fn end(&mut self) {
        if let Some(share) = self.share.take() {
            self.is_lost = !share.work();
        }
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Arriving<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        if this.is_lost {
            return Poll::Pending;
        }
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        let has_ended = match &polled {
            Poll::Ready(Some(Ok(_))) => this.body.is_end_stream(),
            Poll::Ready(_) => true,
            Poll::Pending => false,
        };
        if has_ended {
            this.end();
        }
        // Nothing is begun with it any more: the connection is about to be closed, and nobody would hear how it went.
        if this.is_lost { Poll::Pending } else { polled }
    }

    fn is_end_stream(&self) -> bool {
        !self.is_lost && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> Drop for Arriving<B> {
    fn drop(&mut self) {
        self.end();
    }
}

/// The body of an answer. When it has been taken the connection waits for its client: for what it reads, and for its next
/// request.
struct Answer {
    body: Body,
    share: Arc<Share>,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.share.wait();
    }
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
mod tests {
    use super::*;
    use crate::transport::connections::{ConnectionLimits, Connections};
    use http_body_util::Full;

    /// The rest of it came at the very moment at which another connection was given the place.
    #[tokio::test]
    async fn row_16_a_request_whose_place_was_lost_before_all_of_it_had_come_is_not_begun() {
        let door = Connections::new(ConnectionLimits { max: 0, reserve: 1, per_address: 0 }).door();
        let frame = |body: &mut Arriving<Full<Bytes>>| {
            let polled = Pin::new(body).poll_frame(&mut Context::from_waker(std::task::Waker::noop()));
            polled.map(|frame| frame.and_then(Result::ok).and_then(|frame| frame.into_data().ok()))
        };
        let first = door.admit(None).unwrap().share;
        assert!(first.begin(false));
        let mut body = Arriving::new(Full::from("in time"), &first);
        assert_eq!(frame(&mut body), Poll::Ready(Some(Bytes::from("in time"))));
        assert!(frame(&mut body) == Poll::Ready(None) && door.admit(None).is_err(), "it is worked on");
        drop(body);
        let mut body = Arriving::new(Full::from("too late"), &first);
        // As long as a request may take to follow its connection.
        tokio::time::sleep(Duration::from_millis(150)).await;
        assert!(door.admit(None).unwrap().displaced);
        for _ in 0..2 {
            assert_eq!(frame(&mut body), Poll::Pending);
        }
    }

    /// A first header must come within 5 s; a kept-alive connection may be silent for 75 s.
    #[test]
    fn header_timeouts() {
        let timer = HeaderTimer::new(HEADER_TIMEOUT);
        assert_eq!(timer.extension(), Duration::ZERO);
        assert_eq!(timer.extension(), IDLE_TIMEOUT - HEADER_TIMEOUT);
        assert_eq!(timer.clone().extension(), IDLE_TIMEOUT - HEADER_TIMEOUT);
    }
}
