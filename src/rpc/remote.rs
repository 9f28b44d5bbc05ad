//! The application behind a wire: shared rules around what differs between gRPC and HTTP.

use super::calls::{Attempt, Calls, Failed, What};
use super::proto::{
    CommandMessage, CommandResponse, ConnectionRequest, ConnectionResponse, DisconnectRequest, DisconnectResponse,
};
use super::{Application, CommandCall, CommandEffects, Connected, DisconnectCall, Env, RpcError, wire};
use async_trait::async_trait;

/// One way to send the messages: one attempt each, without retries.
#[async_trait]
pub trait Wire: Send + Sync + 'static {
    async fn connect(
        &self,
        sid: &str,
        request: &ConnectionRequest,
        attempt: Attempt,
    ) -> Result<ConnectionResponse, Failed>;
    async fn command(&self, sid: &str, request: &CommandMessage, attempt: Attempt) -> Result<CommandResponse, Failed>;
    async fn disconnect(
        &self,
        sid: &str,
        request: &DisconnectRequest,
        attempt: Attempt,
    ) -> Result<DisconnectResponse, Failed>;
    async fn restore(
        &self,
        sid: &str,
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

#[async_trait]
impl<W: Wire> Application for Remote<W> {
    async fn connect(&self, sid: &str, env: Env) -> Result<Connected, RpcError> {
        let request = wire::connection_request(env);
        self.calls
            .call(What { method: "connect", sid }, |attempt| self.wire.connect(sid, &request, attempt), wire::connected)
            .await
    }

    async fn command(&self, sid: &str, call: CommandCall) -> Result<CommandEffects, RpcError> {
        let request = wire::command_message(call);
        self.calls
            .call(What { method: "command", sid }, |attempt| self.wire.command(sid, &request, attempt), wire::effects)
            .await
    }

    async fn disconnect(&self, sid: &str, call: DisconnectCall) -> Result<(), RpcError> {
        let request = wire::disconnect_request(call);
        self.calls
            .call(
                What { method: "disconnect", sid },
                |attempt| self.wire.disconnect(sid, &request, attempt),
                wire::acknowledged,
            )
            .await
    }

    async fn restore(&self, sid: &str, call: DisconnectCall) -> Result<(), RpcError> {
        let request = wire::disconnect_request(call);
        self.calls
            .call(
                What { method: "restore", sid },
                |attempt| self.wire.restore(sid, &request, attempt),
                wire::acknowledged,
            )
            .await
    }
}
