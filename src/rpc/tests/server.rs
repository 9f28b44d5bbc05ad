//! A server on a loopback port whose connections can be counted and cut.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

pub type Answer = Response<UnsyncBoxBody<Bytes, tonic::Status>>;
pub type Handler =
    Arc<dyn Fn(Request<Incoming>) -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync + 'static>;

/// An answer with its whole body at hand.
pub fn answer(status: u16, body: impl Into<Bytes>) -> Answer {
    let body = Full::new(body.into()).map_err(|never| match never {}).boxed_unsync();
    Response::builder().status(status).body(body).unwrap()
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Version {
    Http1,
    Http2,
}

pub struct Server {
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
    retire: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Server {
    pub async fn start(version: Version, handler: Handler) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), version, handler, None).await
    }

    pub async fn start_at(address: SocketAddr, version: Version, handler: Handler, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = connections.clone();
        let retire = Arc::new(Notify::new());
        let retiring = retire.clone();
        let task = tokio::spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                let (handler, tls, retire) = (handler.clone(), tls.clone(), retiring.clone());
                open.spawn(async move {
                    match tls {
                        None => serve(version, tcp, handler, retire).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(tcp).await {
                                serve(version, stream, handler, retire).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, connections, retire, task }
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Says on all connections that they take no more requests (GOAWAY); what runs goes on.
    pub fn retire_connections(&self) {
        self.retire.notify_waiters();
    }

    /// Stops listening and cuts all connections.
    pub async fn stop(mut self) -> SocketAddr {
        self.task.abort();
        let _ = (&mut self.task).await;
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    version: Version,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    handler: Handler,
    retire: Arc<Notify>,
) {
    let service = hyper::service::service_fn(move |request| {
        let answer = handler(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let stream = TokioIo::new(stream);
    // Clients come and go as they like.
    let _ = match version {
        Version::Http1 => hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await,
        Version::Http2 => {
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let mut connection = std::pin::pin!(builder.serve_connection(stream, service));
            tokio::select! {
                result = connection.as_mut() => result,
                () = retire.notified() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
    };
}
