//! Calls over gRPC.

mod balancer;
mod channel;
mod health;
mod owner;
mod target;

pub use balancer::Balancer;
pub use target::Target;

use super::RpcError;
use super::calls::{Attempt, Failed};
use super::proto::rpc_client::RpcClient;
use super::proto::{
    CommandMessage, CommandResponse, ConnectionRequest, ConnectionResponse, DisconnectRequest, DisconnectResponse,
};
use super::remote::Wire;
use super::wire::PROTOCOL_VERSION;
use crate::protocol::Sid;
use async_trait::async_trait;
use channel::{Channel, Unprocessed, Unsent};
use std::error::Error;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Request, Response, Status};

/// What gRPC servers take for granted as the largest answer.
pub const DEFAULT_MAX_RECV: usize = 4 * 1024 * 1024;

/// The application over gRPC.
pub struct Grpc {
    pub balancer: Balancer,
    /// Scheme and authority of the calls.
    pub origin: http::Uri,
    pub max_recv: usize,
    /// `None`: no limit.
    pub max_send: Option<usize>,
}

impl Grpc {
    /// One attempt on some connection. Where the request did not leave because its connection had just ended, another
    /// connection gets it.
    async fn attempt<Q: Clone, A, F: Future<Output = Result<Response<A>, Status>>>(
        &self,
        method: &'static str,
        sid: &Sid,
        message: &Q,
        attempt: Attempt,
        send: impl Fn(RpcClient<Channel>, Request<Q>) -> F,
    ) -> Result<A, Failed> {
        loop {
            let channel = self.balancer.pick(attempt.number == 0).await?;
            let mut client =
                RpcClient::with_origin(channel, self.origin.clone()).max_decoding_message_size(self.max_recv);
            if let Some(limit) = self.max_send {
                client = client.max_encoding_message_size(limit);
            }
            match send(client, request(sid, message.clone(), attempt)).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) if is_unsent(&status) => {}
                Err(status) => return Err(failed(method, &status)),
            }
        }
    }
}

fn request<Q>(sid: &Sid, message: Q, attempt: Attempt) -> Request<Q> {
    let mut metadata = MetadataMap::new();
    metadata.insert("protov", MetadataValue::from_static(PROTOCOL_VERSION));
    // Session ids are ours and always fit.
    if let Ok(mut sid) = MetadataValue::try_from(sid.expose()) {
        sid.set_sensitive(true);
        metadata.insert("sid", sid);
    }
    let mut request = Request::from_parts(metadata, tonic::Extensions::default(), message);
    if let Some(limit) = attempt.limit {
        request.set_timeout(limit);
    }
    request
}

fn is_unsent(status: &Status) -> bool {
    status.source().is_some_and(|source| source.is::<Unsent>())
}

fn is_unprocessed(status: &Status) -> bool {
    status.source().is_some_and(|source| source.is::<Unprocessed>())
}

fn failed(method: &'static str, status: &Status) -> Failed {
    let message = status.message();
    Failed::Final(match status.code() {
        Code::Unavailable if is_unprocessed(status) => return Failed::Unreached(message.to_owned()),
        // Also where the application says so itself: what stands between may say it of a connection that it lost.
        Code::Unavailable => return Failed::Uncertain(message.to_owned()),
        Code::ResourceExhausted => return Failed::Busy(message.to_owned()),
        Code::DeadlineExceeded => RpcError::Timeout,
        Code::Unimplemented => RpcError::Unimplemented(method),
        // What the library says of messages over a limit, and of those it cannot decode.
        Code::OutOfRange => RpcError::Garbage(message.to_owned()),
        Code::Internal if message.starts_with("failed to decode") => RpcError::Garbage(message.to_owned()),
        code => RpcError::Application(format!("{code:?}: {message}")),
    })
}

#[async_trait]
impl Wire for Grpc {
    async fn connect(
        &self,
        sid: &Sid,
        request: &ConnectionRequest,
        attempt: Attempt,
    ) -> Result<ConnectionResponse, Failed> {
        let send = |mut client: RpcClient<_>, request| async move { client.connect(request).await };
        self.attempt("Connect", sid, request, attempt, send).await
    }

    async fn command(&self, sid: &Sid, request: &CommandMessage, attempt: Attempt) -> Result<CommandResponse, Failed> {
        let send = |mut client: RpcClient<_>, request| async move { client.command(request).await };
        self.attempt("Command", sid, request, attempt, send).await
    }

    async fn disconnect(
        &self,
        sid: &Sid,
        request: &DisconnectRequest,
        attempt: Attempt,
    ) -> Result<DisconnectResponse, Failed> {
        let send = |mut client: RpcClient<_>, request| async move { client.disconnect(request).await };
        self.attempt("Disconnect", sid, request, attempt, send).await
    }

    async fn restore(
        &self,
        sid: &Sid,
        request: &DisconnectRequest,
        attempt: Attempt,
    ) -> Result<DisconnectResponse, Failed> {
        let send = |mut client: RpcClient<_>, request| async move { client.restore(request).await };
        self.attempt("Restore", sid, request, attempt, send).await
    }
}

/// Connects, and says at the end of the connection whether it ended because of too many pings.
#[cfg(test)]
pub async fn open_for_tests(dialer: &super::dial::Dialer, to: &super::dial::HostPort) -> bool {
    let (channel, driven) = channel::open(dialer, to, None, std::time::Duration::from_secs(15)).await.unwrap();
    let ended = driven.await;
    drop(channel);
    ended.too_many_pings
}
