//! WebSocket connections: frames in through tungstenite, finished frames out of the outbox by vectored writes.

use super::asked::AskedConfig;
use super::connections::{Refusal, Share};
use super::listener::PeerAddr;
use super::origin::AllowedOrigins;
use super::proxies::TrustedProxies;
use super::socket::Socket;
use super::unsent;
use super::upgrade::handshake;
use crate::hub::{FRAMES_PER_WRITE, Frame, Outbox, OutboxLimits};
use crate::log_limit::limited;
use crate::metrics;
use crate::node::{Hello, Incoming, Node, drive};
use crate::protocol::Close;
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{FutureExt, Sink, Stream, StreamExt};
use http::{HeaderValue, StatusCode, header};
use hyper_util::rt::TokioIo;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf};
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::task::TaskTracker;

#[derive(Clone, Debug)]
pub struct WsConfig {
    /// Where clients connect to. A path may end in `/*` and have `{name}` segments.
    pub paths: Vec<String>,
    pub allowed_origins: AllowedOrigins,
    pub proxies: TrustedProxies,
    /// What is kept of requests.
    pub asked: AskedConfig,
    /// Bytes of a client message; a larger one ends the connection with 1009.
    pub max_message_size: usize,
    /// Bytes read at a time. Small, because every connection holds such a buffer.
    pub read_buffer_size: usize,
    /// Having more queued than the limit for so long ends the connection, and so does taking nothing for [`STUCK_TIMEOUTS`]
    /// times as long.
    pub write_timeout: Duration,
}

/// A client within its limit may pause for so many write timeouts: it holds little, and a page may be frozen for a while.
const STUCK_TIMEOUTS: u32 = 10;

/// First byte of a pong frame.
const PONG: u8 = 0x8a;

/// How long the client may take to answer a close frame, and its system to take the end of a TLS session.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// The WebSocket side of the server.
pub struct WebSockets {
    config: WsConfig,
    node: Arc<Node>,
    /// Connections, so that shutdown can wait for them.
    tracker: TaskTracker,
}

impl WebSockets {
    pub fn new(config: WsConfig, node: Arc<Node>, tracker: TaskTracker) -> Arc<Self> {
        Arc::new(Self { config, node, tracker })
    }

    pub fn router(self: &Arc<Self>) -> Router {
        let mut router = Router::new();
        for path in &self.config.paths {
            let this = self.clone();
            let path = path.strip_suffix("/*").map_or(path.clone(), |base| format!("{base}/{{*rest}}"));
            router = router.route(
                &path,
                axum::routing::any(move |request: Request| {
                    let this = this.clone();
                    async move { this.upgrade(request) }
                }),
            );
        }
        router
    }

    fn upgrade(self: &Arc<Self>, mut request: Request) -> Response {
        let query = request.uri().query().unwrap_or_default();
        let accepted = match handshake(request.method(), request.headers(), query) {
            Ok(accepted) => accepted,
            Err(status) => return refuse(status),
        };
        let origin = request.headers().get(header::ORIGIN).and_then(|origin| origin.to_str().ok());
        if !self.config.allowed_origins.allows(origin) {
            return refuse(StatusCode::FORBIDDEN);
        }
        let Some(upgrade) = request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>() else {
            return refuse(StatusCode::BAD_REQUEST);
        };
        let (this, mut hello) = (self.clone(), Box::new(accepted.hello));
        let peer = request.extensions().get::<PeerAddr>().map(|peer| peer.0.ip());
        let peer = peer.map(|peer| self.config.proxies.client(peer, request.headers()));
        if let (Some(share), Some(address)) = (request.extensions().get::<Arc<Share>>(), peer)
            && let Err(refusal) = share.become_client(address)
        {
            return too_many(refusal);
        }
        if self.config.asked.keeps_something() {
            let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
            hello.asked = Some(Arc::new(self.config.asked.asked(request.headers(), target, peer)));
        }
        self.tracker.spawn(async move {
            let upgraded = match upgrade.await {
                Ok(upgraded) => upgraded,
                Err(error) => {
                    tracing::debug!(context = "ws", %error, "upgrade failed");
                    return;
                }
            };
            match upgraded.downcast::<TokioIo<Socket>>() {
                // Another task, because a task's memory is what its largest step needs, from its beginning on.
                Ok(parts) => drop(this.tracker.spawn(this.clone().serve(parts.io.into_inner(), parts.read_buf, hello))),
                Err(_) => {
                    limited!(ERROR, UnknownConnection, "a WebSocket came over an unknown kind of connection")
                }
            }
        });
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        let key = HeaderValue::try_from(accepted.accept_key).expect("base64 is a valid header value");
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, key);
        headers.insert("x-anycable-version", HeaderValue::from_static(env!("CARGO_PKG_VERSION")));
        if let Some(subprotocol) = accepted.subprotocol {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(subprotocol));
        }
        response
    }

    /// Serves a client to its end. What it needs is made before the future is, and futures are not wrapped in others:
    /// whatever an asynchronous function is given, or makes, it has room for as long as it runs.
    fn serve(
        self: Arc<Self>,
        mut socket: Socket,
        early: Bytes,
        hello: Box<Hello>,
    ) -> impl Future<Output = ()> + Send + 'static {
        // From here on the outbox judges who is slow, and the socket who takes nothing at all.
        socket.give_up_after(self.config.write_timeout * STUCK_TIMEOUTS, &metrics::WRITE_TIMEOUTS);
        unsent::bound(socket.tcp().as_fd());
        let node = &self.node.config;
        let limits = OutboxLimits { pending: node.max_pending, total: node.max_pending_total };
        let outbox = Arc::new(Outbox::within(hello.subprotocol.encoding(), limits));
        let (read, mut write) = tokio::io::split(socket);
        let io = Inbound { read, outbox: outbox.clone() };
        // A copy: hyper's whole read buffer of 8 KiB hangs on it.
        let first = early.to_vec();
        async move {
            let frames = WebSocketStream::from_partially_read(io, first, Role::Server, Some(self.protocol())).await;
            let mut source = Frames { frames, over: false };
            let driving = drive(self.node.clone(), *hello, &mut source, outbox.clone()).map(|()| outbox.finish());
            let writing = write_out(&mut write, &outbox, self.config.write_timeout).map(|end| settle(end, &outbox));
            let ((), in_order) = futures_util::future::join(driving, writing).await;
            hang_up(&mut write, in_order).await;
            let _ = tokio::time::timeout(CLOSE_WAIT, async { while source.next().await.is_some() {} }).await;
        }
    }

    fn protocol(&self) -> WebSocketConfig {
        WebSocketConfig::default()
            .read_buffer_size(self.config.read_buffer_size)
            .write_buffer_size(0)
            .max_message_size(Some(self.config.max_message_size))
            .max_frame_size(Some(self.config.max_message_size))
    }
}

fn refuse(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    if status == StatusCode::BAD_REQUEST {
        response.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    }
    response
}

/// The answer to a client more than there may be; its connection ends with it.
fn too_many(refusal: Refusal) -> Response {
    let mut response = refuse(match refusal {
        Refusal::Full => StatusCode::SERVICE_UNAVAILABLE,
        Refusal::Address => StatusCode::TOO_MANY_REQUESTS,
    });
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// How the writing has ended. False: a write has failed, and nothing more can be sent.
fn settle(end: io::Result<()>, outbox: &Outbox) -> bool {
    let Err(error) = end else { return true };
    if error.kind() == io::ErrorKind::TimedOut {
        limited!(INFO, ClientNotReading, "closed the connection of a client that does not read what it is sent");
    }
    outbox.kill();
    false
}

/// Says the end, where all has been written. It is no more than a farewell, so a client that makes no room for it is not
/// waited for. It is not said after a write that failed: a TLS session would go on to write what it has kept back, for as long
/// as the client takes a little of it now and then.
async fn hang_up(write: &mut WriteHalf<Socket>, in_order: bool) {
    if in_order {
        let _ = tokio::time::timeout(CLOSE_WAIT, write.shutdown()).await;
    }
}

/// Frames that were taken out of the outbox and are not written yet.
#[derive(Default)]
struct Taken {
    frames: VecDeque<Frame>,
    /// Bytes of the first one that are on their way: it must be ended before anything else can be said.
    begun: usize,
}

/// Writes the outbox to the socket until its end, many frames per system call.
async fn write_out(socket: &mut WriteHalf<Socket>, outbox: &Outbox, timeout: Duration) -> io::Result<()> {
    let mut taken = Taken::default();
    loop {
        let more = poll_fn(|cx| {
            let more = outbox.poll_take(cx, &mut taken.frames, FRAMES_PER_WRITE);
            if more.is_pending() {
                // An idle connection holds no buffers.
                taken.frames = VecDeque::new();
            }
            more
        })
        .await;
        if !more {
            return Ok(());
        }
        metrics::SERVER_MSG.add(taken.frames.len() as u64);
        loop {
            let tried = poll_fn(|cx| Poll::Ready(taken.poll_out(socket, cx))).await;
            let written = match tried {
                Poll::Ready(written) => written?,
                // Boxed: few connections wait at a time, and the others need not have room for it.
                Poll::Pending => match Box::pin(write_when_possible(socket, &mut taken, outbox, timeout)).await? {
                    Some(written) => written,
                    // Told that it is too slow.
                    None => continue,
                },
            };
            if taken.frames.is_empty() {
                break;
            }
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            metrics::DATA_SENT.add(written as u64);
            taken.consume(written);
        }
    }
}

impl Taken {
    /// Writes some of it. When nothing is left, what a TLS session has kept back goes out, too.
    fn poll_out(&self, socket: &mut WriteHalf<Socket>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.frames.is_empty() {
            return Pin::new(socket).poll_flush(cx).map_ok(|()| 0);
        }
        let mut slices = [IoSlice::new(&[]); FRAMES_PER_WRITE];
        for (slice, frame) in slices.iter_mut().zip(&self.frames) {
            *slice = IoSlice::new(frame);
        }
        let used = self.frames.len().min(FRAMES_PER_WRITE);
        if let Some(first) = self.frames.front() {
            slices[0] = IoSlice::new(&first[self.begun..]);
        }
        Pin::new(socket).poll_write_vectored(cx, &slices[..used])
    }

    /// Takes off what was written.
    fn consume(&mut self, written: usize) {
        let mut left = self.begun + written;
        while let Some(first) = self.frames.front()
            && first.len() <= left
        {
            left -= first.len();
            self.frames.pop_front();
        }
        self.begun = left;
    }

    /// Leaves nothing but the frame that is on its way.
    fn truncate(&mut self) {
        self.frames.truncate(usize::from(self.begun > 0));
    }
}

/// Writes once the socket takes something, and judges the client that it belongs to meanwhile. `None`: the client was found
/// too slow; nothing is left but a frame that was begun, what the client is told follows.
async fn write_when_possible(
    socket: &mut WriteHalf<Socket>,
    taken: &mut Taken,
    outbox: &Outbox,
    timeout: Duration,
) -> io::Result<Option<usize>> {
    loop {
        // It may come over its limit while it is waited for.
        let look = Instant::now() + timeout;
        let due = outbox.deadline(timeout).map_or(look, |due| due.min(look));
        let writing = poll_fn(|cx| taken.poll_out(socket, cx));
        if let Ok(written) = tokio::time::timeout_at(due, writing).await {
            return written.map(Some);
        }
        // It may have been this process that had no time: the socket is asked once more.
        tokio::task::yield_now().await;
        if let Poll::Ready(written) = poll_fn(|cx| Poll::Ready(taken.poll_out(socket, cx))).await {
            return written.map(Some);
        }
        let now = Instant::now();
        if outbox.judge(now, timeout) {
            taken.truncate();
            return Ok(None);
        }
        if outbox.is_over() {
            match outbox.deadline(timeout) {
                // Dead: nothing of it is to be sent.
                None => return Err(io::ErrorKind::BrokenPipe.into()),
                Some(due) if due <= now => {
                    metrics::WRITE_TIMEOUTS.inc();
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Some(_) => {}
            }
        }
    }
}

/// A whole pong and nothing else (RFC 6455 §5.5: control frames are short and not fragmented).
fn is_one_pong(bytes: &[u8]) -> bool {
    bytes.len() >= 2 && bytes[0] == PONG && usize::from(bytes[1]) == bytes.len() - 2
}

/// The reading side of a socket. What the WebSocket layer wants to write (pongs, answers to close frames) goes into the
/// outbox, behind what is queued there.
struct Inbound {
    read: ReadHalf<Socket>,
    outbox: Arc<Outbox>,
}

impl AsyncRead for Inbound {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.read).poll_read(cx, buf)
    }
}

impl AsyncWrite for Inbound {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let frame = Bytes::copy_from_slice(buf);
        if is_one_pong(buf) {
            self.outbox.pong(frame)
        } else {
            self.outbox.push(frame)
        }
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Client frames as the node wants them.
struct Frames {
    frames: WebSocketStream<Inbound>,
    over: bool,
}

impl Stream for Frames {
    type Item = Incoming;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Incoming>> {
        loop {
            if self.over {
                return Poll::Ready(None);
            }
            let frame = match Pin::new(&mut self.frames).poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(frame) => frame,
            };
            let incoming = match frame {
                Some(Ok(Message::Text(text))) => Incoming::Text(text.as_str().to_owned()),
                // Either opcode is accepted; what is not text is no command.
                Some(Ok(Message::Binary(bytes))) => Incoming::Text(String::from_utf8_lossy(&bytes).into_owned()),
                Some(Ok(Message::Pong(_))) => Incoming::NativePong,
                Some(Ok(Message::Ping(_) | Message::Frame(_))) => continue,
                Some(Ok(Message::Close(_))) => {
                    // The answer to the client's close frame goes into the outbox.
                    let _ = Pin::new(&mut self.frames).poll_flush(cx);
                    self.over = true;
                    Incoming::Closed
                }
                Some(Err(Error::Capacity(CapacityError::MessageTooLong { .. }))) => {
                    self.over = true;
                    Incoming::TooBig
                }
                Some(Err(Error::Utf8(_))) => {
                    self.over = true;
                    Incoming::Faulty(Close::InvalidText)
                }
                Some(Err(Error::Protocol(fault))) if fault != ProtocolError::ResetWithoutClosingHandshake => {
                    self.over = true;
                    Incoming::Faulty(Close::ProtocolError)
                }
                Some(Err(_)) | None => {
                    self.over = true;
                    Incoming::Closed
                }
            };
            if let Incoming::Text(text) = &incoming {
                metrics::DATA_RCVD.add(text.len() as u64);
            }
            return Poll::Ready(Some(incoming));
        }
    }
}

#[cfg(test)]
mod tests;
