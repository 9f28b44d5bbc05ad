//! Connections to one HTTP server, kept open and used again.

use crate::rpc::dial::{DialError, Dialer, HostPort};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::error::Error;
use std::sync::Mutex;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Servers close idle connections, some after a few seconds; older ones than this are not worth a try.
const IDLE: Duration = Duration::from_secs(60);

/// Requests of the pool have their whole body at hand.
pub type Body = Full<Bytes>;

/// Why a request brought no whole answer.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    #[error(transparent)]
    Dial(#[from] DialError),
    /// Before any of the request had left.
    #[error("{}", crate::rpc::dial::describe(.0))]
    Unsent(hyper::Error),
    /// After some or all of the request had left.
    #[error("{}", crate::rpc::dial::describe(.0))]
    Broken(hyper::Error),
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
}

pub struct Pool {
    dialer: Dialer,
    to: HostPort,
    /// Largest body of an answer.
    max_recv: usize,
    /// Last used, first taken. As many as there were requests at the same time, which the caller limits.
    idle: Mutex<Vec<(http1::SendRequest<Body>, Instant)>>,
    /// One per open connection; ended with the pool.
    connections: Mutex<JoinSet<()>>,
}

impl Pool {
    pub fn new(dialer: Dialer, to: HostPort, max_recv: usize) -> Self {
        Self { dialer, to, max_recv, idle: Mutex::default(), connections: Mutex::default() }
    }

    /// Sends the request once. One that a kept connection did not take any more goes out on another.
    pub async fn send(&self, mut request: Request<Body>) -> Result<Response<Bytes>, PoolError> {
        loop {
            let mut sender = match self.kept() {
                Some(sender) => sender,
                None => self.open().await?,
            };
            match sender.try_send_request(request).await {
                Ok(response) => return self.whole(response, sender).await,
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(PoolError::Broken(error.into_error())),
                },
            }
        }
    }

    fn kept(&self) -> Option<http1::SendRequest<Body>> {
        let mut idle = self.idle.lock().expect("no panic while it is held");
        while let Some((sender, since)) = idle.pop() {
            if sender.is_ready() && since.elapsed() < IDLE {
                return Some(sender);
            }
        }
        None
    }

    async fn open(&self) -> Result<http1::SendRequest<Body>, PoolError> {
        let stream = self.dialer.dial(&self.to, None).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(PoolError::Unsent)?;
        {
            let mut connections = self.connections.lock().expect("no panic while it is held");
            while connections.try_join_next().is_some() {}
            connections.spawn(async move {
                // Whoever uses the connection sees the error, too.
                let _ = connection.await;
            });
        }
        sender.ready().await.map_err(PoolError::Unsent)?;
        Ok(sender)
    }

    async fn whole(
        &self,
        response: Response<hyper::body::Incoming>,
        mut sender: http1::SendRequest<Body>,
    ) -> Result<Response<Bytes>, PoolError> {
        let (head, body) = response.into_parts();
        let body = Limited::new(body, self.max_recv).collect().await.map_err(|error| self.unread(error))?.to_bytes();
        // Says at once whether the connection stays open: its last byte has been read.
        if sender.ready().await.is_ok() {
            self.idle.lock().expect("no panic while it is held").push((sender, Instant::now()));
        }
        Ok(Response::from_parts(head, body))
    }

    fn unread(&self, error: Box<dyn Error + Send + Sync>) -> PoolError {
        match error.downcast::<hyper::Error>() {
            Ok(error) => PoolError::Broken(*error),
            Err(other) => {
                debug_assert!(other.is::<LengthLimitError>());
                PoolError::TooLarge(self.max_recv)
            }
        }
    }
}
