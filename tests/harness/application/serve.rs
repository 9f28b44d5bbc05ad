//! A listener whose connections can be frozen and cut.

use super::{Wire, grpc, http, record::Record};
use crate::harness::PATIENCE;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What one run of the application listens to.
#[derive(Clone)]
pub struct Controls {
    /// Connections stand, but nothing is read or written.
    pub frozen: watch::Receiver<bool>,
    /// No new connections; running calls are answered, then the connections end.
    pub stopping: CancellationToken,
    /// The end, at once.
    pub killed: CancellationToken,
}

/// Binds the port, an ephemeral one if it is 0. A child that another test starts has copies of this process's sockets until
/// it becomes another program, also of those that held the port before.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            bound => return bound,
        }
    }
}

pub async fn serve(listener: TcpListener, wire: Wire, record: Arc<Record>, controls: Controls) {
    let mut connections = JoinSet::new();
    loop {
        let mut frozen = controls.frozen.clone();
        let accepting = async {
            // Its sender lives as long as the application.
            let _ = frozen.wait_for(|frozen| !frozen).await;
            listener.accept().await
        };
        tokio::select! {
            () = controls.killed.cancelled() => break,
            () = controls.stopping.cancelled() => break,
            accepted = accepting => if let Ok((tcp, _)) = accepted {
                record.connected();
                connections.spawn(connection(tcp, wire, record.clone(), controls.clone()));
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(tcp: TcpStream, wire: Wire, record: Arc<Record>, controls: Controls) {
    // Answers to calls may cut it.
    let cut = controls.killed.child_token();
    // A reset, so that the port is free at once and the other side has no doubt.
    let _ = tcp.set_zero_linger();
    let _ = tcp.set_nodelay(true);
    let service = {
        let cut = cut.clone();
        service_fn(move |request: hyper::Request<Incoming>| {
            let (record, cut) = (record.clone(), cut.clone());
            async move {
                let answering = async {
                    let Ok(answer) = match wire {
                        Wire::Grpc => grpc::answer(record, cut.clone(), request).await,
                        Wire::Http => http::answer(record, cut.clone(), request).await,
                    };
                    answer
                };
                // What runs ends with the connection, also where it runs on a task of its own.
                cut.run_until_cancelled(answering)
                    .await
                    .ok_or(std::io::Error::from(std::io::ErrorKind::ConnectionAborted))
            }
        })
    };
    let io = TokioIo::new(tcp);
    macro_rules! drive {
        ($connection:expr) => {{
            let mut connection = pin!($connection);
            let mut frozen = controls.frozen.clone();
            let mut stopping = false;
            loop {
                // Frozen is what is not polled.
                let thawed = async {
                    let _ = frozen.wait_for(|frozen| !frozen).await;
                };
                tokio::select! {
                    biased;
                    () = cut.cancelled() => return,
                    () = thawed => {}
                }
                tokio::select! {
                    biased;
                    () = cut.cancelled() => return,
                    () = controls.stopping.cancelled(), if !stopping => {
                        stopping = true;
                        connection.as_mut().graceful_shutdown();
                    }
                    _ = frozen.changed() => {}
                    // Clients come and go as they like.
                    _ = connection.as_mut() => return,
                }
            }
        }};
    }
    match wire {
        Wire::Http => drive!(hyper::server::conn::http1::Builder::new().serve_connection(io, service)),
        Wire::Grpc => {
            drive!(hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service))
        }
    }
}
