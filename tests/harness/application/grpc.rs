//! The application over gRPC: the generated server half of the service.

use super::record::Record;
use super::{Call, Fault, Method};
use axum::body::Body;
use axum::http::{Request, Response};
use carrick::rpc::proto::rpc_server::{Rpc, RpcServer};
use carrick::rpc::proto::{
    CommandMessage, CommandResponse, ConnectionRequest, ConnectionResponse, DisconnectRequest, DisconnectResponse,
};
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::metadata::KeyAndValueRef;
use tonic::{Code, Status};
use tower_service::Service;

/// Marks an answer that is to be replaced by bytes that are none.
const GARBAGE: &str = "x-garbage";

/// A whole message, compressed by nothing, of six bytes that are no protocol buffer.
const NO_MESSAGE: &[u8] = b"\0\0\0\0\x06\xff\xff\xff\xff\xff\xff";

struct Stub {
    record: Arc<Record>,
    cut: CancellationToken,
}

pub async fn answer(
    record: Arc<Record>,
    cut: CancellationToken,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let service = RpcServer::new(Stub { record, cut });
    let mut service = service.max_encoding_message_size(usize::MAX).max_decoding_message_size(usize::MAX);
    let response = service.call(request).await?;
    if response.headers().contains_key(GARBAGE) {
        let head = Response::builder().header("content-type", "application/grpc");
        return Ok(head.body(Body::from(NO_MESSAGE)).expect("it is a valid answer"));
    }
    Ok(response.map(Body::new))
}

impl Stub {
    async fn called<Q: Serialize, A: DeserializeOwned>(
        &self,
        method: Method,
        request: tonic::Request<Q>,
    ) -> Result<tonic::Response<A>, Status> {
        let headers = request.metadata().iter().filter_map(|pair| match pair {
            KeyAndValueRef::Ascii(name, value) => Some((name.to_string(), value.to_str().ok()?.to_owned())),
            KeyAndValueRef::Binary(..) => None,
        });
        let headers = headers.collect();
        let body = serde_json::to_value(request.into_inner()).expect("messages have a JSON form");
        let reply = self.record.answer(Call { method, headers, body, at: Instant::now() }, self.cut.clone()).await;
        match reply.fault {
            Some(Fault::Garbage) => {
                let mut status = Status::internal("replaced");
                status.metadata_mut().insert(GARBAGE, "1".parse().expect("a header's value"));
                Err(status)
            }
            Some(Fault::Unimplemented) => Err(Status::new(Code::Unimplemented, "no such method")),
            Some(Fault::Busy) => Err(Status::new(Code::ResourceExhausted, "at its limit")),
            Some(Fault::Broken) => Err(Status::new(Code::Internal, "it broke")),
            None | Some(Fault::Hang | Fault::Cut) => {
                let message = serde_json::from_value(reply.body.clone());
                Ok(tonic::Response::new(message.unwrap_or_else(|error| panic!("{error}: {}", reply.body))))
            }
        }
    }
}

#[tonic::async_trait]
impl Rpc for Stub {
    async fn connect(
        &self,
        request: tonic::Request<ConnectionRequest>,
    ) -> Result<tonic::Response<ConnectionResponse>, Status> {
        self.called(Method::Connect, request).await
    }

    async fn command(
        &self,
        request: tonic::Request<CommandMessage>,
    ) -> Result<tonic::Response<CommandResponse>, Status> {
        self.called(Method::Command, request).await
    }

    async fn disconnect(
        &self,
        request: tonic::Request<DisconnectRequest>,
    ) -> Result<tonic::Response<DisconnectResponse>, Status> {
        self.called(Method::Disconnect, request).await
    }

    async fn restore(
        &self,
        request: tonic::Request<DisconnectRequest>,
    ) -> Result<tonic::Response<DisconnectResponse>, Status> {
        self.called(Method::Restore, request).await
    }
}
