//! Between the contract's types and the messages of the wire, the same for both forms.

use super::proto::{self, Status};
use super::{
    CommandCall, CommandEffects, CommandKind, Connected, DisconnectCall, Env, Outcome, PresenceChange, RpcError,
};

/// The version of the calls that we speak, as metadata `protov` of each; applications refuse others.
pub const PROTOCOL_VERSION: &str = "v1";

fn env(env: Env) -> Option<proto::Env> {
    let Env { url, headers, cstate, istate } = env;
    Some(proto::Env { url, headers, cstate, istate })
}

pub fn connection_request(of: Env) -> proto::ConnectionRequest {
    proto::ConnectionRequest { env: env(of) }
}

pub fn command_message(call: CommandCall) -> proto::CommandMessage {
    let command = match call.kind {
        CommandKind::Subscribe => "subscribe",
        CommandKind::Unsubscribe => "unsubscribe",
        CommandKind::Message => "message",
    };
    proto::CommandMessage {
        command: command.to_owned(),
        identifier: call.identifier,
        connection_identifiers: call.connection_identifiers,
        data: call.data,
        env: env(call.env),
    }
}

pub fn disconnect_request(call: DisconnectCall) -> proto::DisconnectRequest {
    proto::DisconnectRequest { identifiers: call.identifiers, subscriptions: call.subscriptions, env: env(call.env) }
}

pub fn connected(answer: proto::ConnectionResponse) -> Result<Connected, RpcError> {
    Ok(Connected {
        outcome: outcome(answer.status, answer.error_msg)?,
        identifiers: answer.identifiers,
        transmissions: answer.transmissions,
        cstate: answer.env.unwrap_or_default().cstate,
    })
}

pub fn effects(answer: proto::CommandResponse) -> Result<CommandEffects, RpcError> {
    let proto::EnvResponse { cstate, istate } = answer.env.unwrap_or_default();
    let presence = answer.presence.filter(|presence| *presence != proto::PresenceResponse::default());
    Ok(CommandEffects {
        outcome: outcome(answer.status, answer.error_msg)?,
        disconnect: answer.disconnect,
        stop_streams: answer.stop_streams,
        stopped_streams: answer.stopped_streams,
        streams: answer.streams,
        transmissions: answer.transmissions,
        istate,
        cstate,
        presence: presence.map(|p| PresenceChange { kind: p.r#type, id: p.id, info: p.info }),
    })
}

/// Any status but `ERROR` will do.
pub fn acknowledged(answer: proto::DisconnectResponse) -> Result<(), RpcError> {
    outcome(answer.status, answer.error_msg).map(|_| ())
}

fn outcome(status: i32, message: String) -> Result<Outcome, RpcError> {
    match Status::try_from(status) {
        Ok(Status::Success) => Ok(Outcome::Success),
        Ok(Status::Failure) => Ok(Outcome::Failure),
        Ok(Status::Error) if message.is_empty() => Err(RpcError::Application("status ERROR without a message".into())),
        Ok(Status::Error) => Err(RpcError::Application(message)),
        Err(_) => Err(RpcError::Garbage(format!("unknown status {status}"))),
    }
}
