//! Calls over HTTP: the same messages as JSON, one POST per attempt.

mod breaker;
mod pool;

pub use breaker::Breaker;
pub use pool::Pool;

use super::RpcError;
use super::calls::{Attempt, Failed};
use super::dial::DialError;
use super::proto::{
    CommandMessage, CommandResponse, ConnectionRequest, ConnectionResponse, DisconnectRequest, DisconnectResponse,
};
use super::remote::Wire;
use super::wire::PROTOCOL_VERSION;
use crate::protocol::Sid;
use crate::secret::json_fault;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use http::{Request, StatusCode};
use http_body_util::Full;
use pool::PoolError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;

/// The application over HTTP.
pub struct Http {
    pub pool: Pool,
    pub breaker: Breaker,
    /// Path before `/connect` and the others, without a slash at its end.
    pub base: String,
    /// Value of the `Host` header.
    pub host: HeaderValue,
    /// Value of the `Authorization` header.
    pub authorization: Option<HeaderValue>,
    /// Largest body of a request. `None`: no limit.
    pub max_send: Option<usize>,
}

impl Http {
    async fn attempt<Q: Serialize, A: DeserializeOwned>(
        &self,
        method: &'static str,
        sid: &Sid,
        message: &Q,
        attempt: Attempt,
    ) -> Result<A, Failed> {
        let request = self.request(method, sid, message)?;
        let Some(admitted) = self.breaker.admit(attempt.limit) else {
            let reason = "http rpc is temporarily unavailable".to_owned();
            return Err(Failed::Final(RpcError::Unreachable(reason)));
        };
        let answer = self.pool.send(request).await;
        // Any answer is a sign of life, however wrong it is.
        admitted.report(matches!(answer, Ok(_) | Err(PoolError::TooLarge(_))));
        let answer = answer.map_err(unanswered)?;
        match answer.status() {
            StatusCode::OK => read(answer.body()).map_err(|unreadable| Failed::Final(RpcError::Garbage(unreadable))),
            status => Err(Failed::Final(refused(method, status, answer.body()))),
        }
    }

    fn request<Q: Serialize>(&self, method: &str, sid: &Sid, message: &Q) -> Result<Request<Full<Bytes>>, Failed> {
        let body = serde_json::to_vec(message).expect("the messages have no keys but text");
        if let Some(limit) = self.max_send.filter(|limit| body.len() > *limit) {
            let reason = format!("the request has {} bytes, rpc_max_call_send_size allows {limit}", body.len());
            return Err(Failed::Final(RpcError::Application(reason)));
        }
        let mut request = Request::post(format!("{}/{method}", self.base))
            .header(HOST, self.host.clone())
            .header(CONTENT_TYPE, "application/json")
            .header("x-anycable-meta-sid", sid.expose())
            .header("x-anycable-meta-protov", PROTOCOL_VERSION);
        if let Some(token) = &self.authorization {
            request = request.header(AUTHORIZATION, token.clone());
        }
        request
            .body(Full::from(body))
            .map_err(|error| Failed::Final(RpcError::Application(format!("the request cannot be made: {error}"))))
    }
}

/// Reads an answer. The error names the field and what it is to be, and quotes nothing.
fn read<A: DeserializeOwned>(body: &[u8]) -> Result<A, String> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let answer = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let fault = error.inner();
        let field = error.path().iter().next().and_then(|first| match first {
            Segment::Map { key } => expected(key).map(|kind| (key, kind)),
            _ => None,
        });
        match field {
            Some((field, kind)) if fault.is_data() => {
                format!("`{field}` must be {kind} (line {} column {})", fault.line(), fault.column())
            }
            _ => json_fault(fault),
        }
    })?;
    json.end().map_err(|fault| json_fault(&fault))?;
    Ok(answer)
}

/// What a field of an answer is to be.
fn expected(field: &str) -> Option<&'static str> {
    Some(match field {
        "status" => "a number: 0 (ERROR), 1 (SUCCESS) or 2 (FAILURE)",
        "identifiers" | "error_msg" => "a text",
        "transmissions" | "streams" | "stopped_streams" => "an array of texts",
        "disconnect" | "stop_streams" => "true or false",
        "env" => "an object with `cstate` and `istate`, two objects whose values are texts",
        "presence" => "an object with `type`, `id` and `info`, three texts",
        _ => return None,
    })
}

fn unanswered(error: PoolError) -> Failed {
    let reason = error.to_string();
    match error {
        PoolError::Dial(DialError::Tls { .. }) => Failed::Final(RpcError::Unreachable(reason)),
        PoolError::Dial(_) | PoolError::Unsent(_) => Failed::Unreached(reason),
        PoolError::Broken(_) => Failed::Uncertain(reason),
        PoolError::TooLarge(_) => Failed::Final(RpcError::Garbage(reason)),
    }
}

fn refused(method: &'static str, status: StatusCode, body: &[u8]) -> RpcError {
    match status {
        StatusCode::UNAUTHORIZED => {
            RpcError::Application("401, it does not accept our token: check http_rpc_secret".to_owned())
        }
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => {
            // It is cut where what the call carried is out of it: half a secret would not be found.
            RpcError::Application(format!("{}: {}", status.as_u16(), String::from_utf8_lossy(body)))
        }
        // An unknown command, as the reference endpoint says it. Only of the one that not every application has it is
        // believed: for the others it means a wrong path.
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED if method == "restore" => {
            RpcError::Unimplemented(method)
        }
        status => RpcError::Application(format!("HTTP status {status}")),
    }
}

#[async_trait]
impl Wire for Http {
    async fn connect(
        &self,
        sid: &Sid,
        request: &ConnectionRequest,
        attempt: Attempt,
    ) -> Result<ConnectionResponse, Failed> {
        self.attempt("connect", sid, request, attempt).await
    }

    async fn command(&self, sid: &Sid, request: &CommandMessage, attempt: Attempt) -> Result<CommandResponse, Failed> {
        self.attempt("command", sid, request, attempt).await
    }

    async fn disconnect(
        &self,
        sid: &Sid,
        request: &DisconnectRequest,
        attempt: Attempt,
    ) -> Result<DisconnectResponse, Failed> {
        self.attempt("disconnect", sid, request, attempt).await
    }

    async fn restore(
        &self,
        sid: &Sid,
        request: &DisconnectRequest,
        attempt: Attempt,
    ) -> Result<DisconnectResponse, Failed> {
        self.attempt("restore", sid, request, attempt).await
    }
}
