//! The application behind a wire: shared rules around what differs between gRPC and HTTP.

use super::calls::{Attempt, Calls, Failed, What};
use super::proto::{
    CommandMessage, CommandResponse, ConnectionRequest, ConnectionResponse, DisconnectRequest, DisconnectResponse,
};
use super::{Application, CommandCall, CommandEffects, Connected, DisconnectCall, Env, RpcError, wire};
use crate::protocol::Sid;
use async_trait::async_trait;

/// One way to send the messages: one attempt each, without retries.
#[async_trait]
pub trait Wire: Send + Sync + 'static {
    async fn connect(
        &self,
        sid: &Sid,
        request: &ConnectionRequest,
        attempt: Attempt,
    ) -> Result<ConnectionResponse, Failed>;
    async fn command(&self, sid: &Sid, request: &CommandMessage, attempt: Attempt) -> Result<CommandResponse, Failed>;
    async fn disconnect(
        &self,
        sid: &Sid,
        request: &DisconnectRequest,
        attempt: Attempt,
    ) -> Result<DisconnectResponse, Failed>;
    async fn restore(
        &self,
        sid: &Sid,
        request: &DisconnectRequest,
        attempt: Attempt,
    ) -> Result<DisconnectResponse, Failed>;
}

/// An application that is spoken to over `W`.
pub struct Remote<W> {
    calls: Calls,
    wire: W,
}

impl<W: Wire> Remote<W> {
    pub fn new(calls: Calls, wire: W) -> Self {
        Self { calls, wire }
    }
}

fn leaving<'a>(method: &'static str, sid: &'a Sid, request: &'a DisconnectRequest) -> What<'a> {
    What {
        env: request.env.as_ref(),
        identifiers: &request.subscriptions,
        connection: &request.identifiers,
        ..What::bare(method, sid)
    }
}

#[async_trait]
impl<W: Wire> Application for Remote<W> {
    async fn connect(&self, sid: &Sid, env: Env) -> Result<Connected, RpcError> {
        let request = wire::connection_request(env);
        let what = What { env: request.env.as_ref(), ..What::bare("connect", sid) };
        self.calls.call(what, |attempt| self.wire.connect(sid, &request, attempt), wire::connected).await
    }

    async fn command(&self, sid: &Sid, call: CommandCall) -> Result<CommandEffects, RpcError> {
        let request = wire::command_message(call);
        let what = What {
            env: request.env.as_ref(),
            identifiers: std::slice::from_ref(&request.identifier),
            connection: &request.connection_identifiers,
            data: &request.data,
            ..What::bare("command", sid)
        };
        self.calls.call(what, |attempt| self.wire.command(sid, &request, attempt), wire::effects).await
    }

    async fn disconnect(&self, sid: &Sid, call: DisconnectCall) -> Result<(), RpcError> {
        let request = wire::disconnect_request(call);
        let what = leaving("disconnect", sid, &request);
        self.calls.call(what, |attempt| self.wire.disconnect(sid, &request, attempt), wire::acknowledged).await
    }

    async fn restore(&self, sid: &Sid, call: DisconnectCall) -> Result<(), RpcError> {
        let request = wire::disconnect_request(call);
        let what = leaving("restore", sid, &request);
        self.calls.call(what, |attempt| self.wire.restore(sid, &request, attempt), wire::acknowledged).await
    }
}
