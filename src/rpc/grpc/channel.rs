//! One HTTP/2 connection to one address, as the service that the generated client speaks to.

use crate::metrics;
use crate::rpc::dial::{Dialer, HostPort, describe};
use http_body_util::BodyExt;
use http_body_util::combinators::MapErr;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::error::Error;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tonic::Status;
use tower_service::Service;

/// How long a keepalive may stay unanswered before the connection counts as dead.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// How often an idle connection is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Handle of an open connection; cheap to clone. The connection ends when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Channel {
    sender: http2::SendRequest<tonic::body::Body>,
}

/// The request did not leave this process: its connection had just ended.
#[derive(Debug, thiserror::Error)]
#[error("the connection has just ended")]
pub struct Unsent;

/// The server says that it did nothing with the request (RFC 9113 §8.7).
#[derive(Debug, thiserror::Error)]
#[error("the server has not processed the request")]
pub struct Unprocessed;

/// Why a connection ended.
#[derive(Debug)]
pub struct Ended {
    pub reason: String,
    /// The server found our keepalives too frequent.
    pub too_many_pings: bool,
}

/// Connects. The future in the answer drives the connection until its end.
pub async fn open(
    dialer: &Dialer,
    to: &HostPort,
    address: Option<SocketAddr>,
    keepalive: Duration,
) -> Result<(Channel, impl Future<Output = Ended> + Send + 'static), String> {
    let stream = dialer.dial(to, address).await.map_err(|error| error.to_string())?;
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(keepalive)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| describe(&error))?;
    let open = Open::new();
    let driven = async move {
        let result = driven(connection).await;
        drop(open);
        match result {
            Ok(()) => Ended { reason: "the connection was closed".to_owned(), too_many_pings: false },
            Err(error) => Ended { reason: describe(&error), too_many_pings: is_too_many_pings(&error) },
        }
    };
    Ok((Channel { sender }, driven))
}

/// Drives the connection until it takes no more requests. That the server wants no more (GOAWAY) is noticed only when the
/// connection is looked at, and as long as the question for its health stands it would not end by itself; a server that
/// stops gracefully waits for that.
async fn driven<F: Future<Output = T>, T>(connection: F) -> T {
    let mut connection = std::pin::pin!(connection);
    loop {
        if let Ok(result) = tokio::time::timeout(LOOK, connection.as_mut()).await {
            return result;
        }
    }
}

impl Channel {
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

impl Service<http::Request<tonic::body::Body>> for Channel {
    type Response = http::Response<MapErr<Incoming, fn(hyper::Error) -> Status>>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        // A connection that is over says so when it is used.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let mut sender = self.sender.clone();
        Box::pin(async move {
            match sender.try_send_request(request).await {
                Ok(response) => Ok(response.map(|body| body.map_err(status as fn(_) -> _))),
                Err(mut error) => match error.take_message() {
                    Some(_) => Err(Unsent.into()),
                    None => Err(status(error.into_error()).into()),
                },
            }
        })
    }
}

/// A call's failure below gRPC, in gRPC's terms: connections break, and servers reset single calls.
fn status(error: hyper::Error) -> Status {
    let text = describe(&error);
    let http2 = cause::<h2::Error>(&error);
    // On a call, the other side's GOAWAY is about those that came after the last one it cares for.
    let refused = http2.is_some_and(|error| error.is_go_away() && error.is_remote());
    let reset = http2.filter(|error| error.is_reset()).and_then(h2::Error::reason);
    match reset {
        Some(h2::Reason::ENHANCE_YOUR_CALM) => Status::resource_exhausted(text),
        Some(h2::Reason::CANCEL) => Status::cancelled(text),
        Some(h2::Reason::REFUSED_STREAM) => unprocessed(text),
        None if refused => unprocessed(text),
        None => Status::unavailable(text),
        Some(_) => Status::internal(text),
    }
}

fn unprocessed(text: String) -> Status {
    let mut status = Status::unavailable(text);
    status.set_source(Arc::new(Unprocessed));
    status
}

fn is_too_many_pings(error: &hyper::Error) -> bool {
    let reason = cause::<h2::Error>(error).filter(|error| error.is_go_away()).and_then(h2::Error::reason);
    reason == Some(h2::Reason::ENHANCE_YOUR_CALM)
}

/// The first error of type `E` in the chain.
fn cause<'e, E: Error + 'static>(error: &'e (dyn Error + 'static)) -> Option<&'e E> {
    std::iter::successors(Some(error), |error| (*error).source()).find_map(|error| error.downcast_ref())
}

/// Counts a connection as long as it lives.
struct Open;

impl Open {
    fn new() -> Self {
        metrics::GRPC_CONNECTIONS.add(1);
        Self
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        metrics::GRPC_CONNECTIONS.add(-1);
    }
}
