//! Publishing by HTTP: `POST /_broadcast`.
//!
//! Beyond what AnyCable's publishers expect (201 or not): malformed payloads get 422 with a reason, the 201 carries the
//! position of each message, and an `Idempotency-Key` makes a retry the same message.

use super::budget::{Lease, PublishBudget};
use super::pages::PagePolicy;
use super::payload::{self, Payload};
use super::{answer, cors};
use crate::auth::Secrets;
use crate::broker::{AppendError, Broker};
use crate::log_limit::limited;
use crate::metrics::{MALFORMED_PUBLICATIONS, PAGES_REFUSED, PUBLICATIONS};
use crate::node::publish::publish_all;
use crate::protocol::ShownWord;
use crate::transport::origin::AllowedOrigins;
use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::response::Response;
use axum::routing;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode, header};
use hyper::body::{Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// How long a publisher may take to send a body; a connection must not be held for ever by one that stalls.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// What a publication takes besides its text: headers, tasks, its answer.
const PER_REQUEST: usize = 4 * 1024;

/// Longest `Idempotency-Key`.
const MAX_KEY: usize = 255;

/// HTTP publishing, as configured.
#[derive(Clone, Debug)]
pub struct HttpBroadcastConfig {
    /// Where to publish to, such as `/_broadcast`.
    pub path: String,
    /// Bearer keys, any of which will do, so that they can be rotated. None: everybody may publish; without an entry:
    /// nobody.
    pub keys: Option<Secrets>,
    /// Let web pages publish.
    pub cors: bool,
    /// Origins of those pages. Empty: all.
    pub allowed_origins: AllowedOrigins,
    /// The name that the listener has on loopback, if it is bound to that: without a key no other one is answered.
    pub loopback: Option<String>,
    /// Largest body, bytes.
    pub max_body: usize,
    /// Bytes of publications that are being read or published at a time.
    pub max_pending: usize,
}

impl Default for HttpBroadcastConfig {
    fn default() -> Self {
        Self {
            path: "/_broadcast".to_owned(),
            keys: None,
            cors: false,
            allowed_origins: AllowedOrigins::default(),
            loopback: None,
            max_body: 4 << 20,
            max_pending: 128 << 20,
        }
    }
}

/// The endpoint.
pub struct HttpBroadcast {
    config: HttpBroadcastConfig,
    broker: Arc<dyn Broker>,
    budget: PublishBudget,
    /// There where no key keeps others out.
    pages: Option<PagePolicy>,
}

impl HttpBroadcast {
    pub fn new(config: HttpBroadcastConfig, broker: Arc<dyn Broker>) -> Arc<Self> {
        let pages = config.keys.is_none().then(|| PagePolicy {
            origins: config.cors.then(|| config.allowed_origins.clone()),
            loopback: config.loopback.clone(),
        });
        Arc::new(Self { pages, budget: PublishBudget::new(config.max_pending), config, broker })
    }

    /// A router with this endpoint alone, to be merged with others of the same listener.
    pub fn router(self: Arc<Self>) -> Router {
        // Braces are placeholders to the router and plain text to us.
        let path = format!("/{}", self.config.path.trim_start_matches('/')).replace('{', "{{").replace('}', "}}");
        Router::new().route(
            &path,
            routing::any(move |request: Request| {
                let endpoint = self.clone();
                async move { endpoint.handle(request).await }
            }),
        )
    }

    /// Answers one request, whatever its path.
    pub async fn handle(&self, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let mut lease = self.budget.lease();
        let mut response = self.answer(&parts, body, &mut lease).await;
        if self.config.cors {
            cors::allow(&self.config.allowed_origins, parts.headers.get(header::ORIGIN), response.headers_mut());
        }
        response.map(|body| Body::new(Held { body, _lease: lease }))
    }

    async fn answer(&self, parts: &Parts, body: Body, lease: &mut Lease) -> Response {
        let Parts { method, headers, uri, .. } = parts;
        if self.config.cors && *method == Method::OPTIONS {
            return Response::new(Body::empty());
        }
        // 422 and before the key, as AnyCable has it.
        if *method != Method::POST {
            return answer::refused(StatusCode::UNPROCESSABLE_ENTITY, "publishing takes the method POST");
        }
        if !self.is_authorized(headers) {
            return answer::refused(StatusCode::UNAUTHORIZED, "the Authorization header must be \"Bearer <key>\"");
        }
        if let Some(reason) = self.pages.as_ref().and_then(|pages| pages.refusal(uri, headers)) {
            PAGES_REFUSED.inc();
            return answer::refused(StatusCode::FORBIDDEN, reason);
        }
        let key = match idempotency_key(headers) {
            Ok(key) => key,
            Err(reason) => return malformed(&reason),
        };
        let reading = tokio::time::timeout(BODY_TIMEOUT, read(body, self.config.max_body, lease));
        let body = match reading.await.unwrap_or(Err(BodyError::Timeout)) {
            Ok(body) => body,
            Err(BodyError::Exhausted) => return exhausted(),
            Err(error) => return answer::refused(error.status(), &error.to_string()),
        };
        let parsed = payload::parse(&body, key);
        // What was parsed stands for itself.
        drop(body);
        match parsed {
            Ok(payload) => {
                PUBLICATIONS.inc();
                if lease.resize(PER_REQUEST + payload.memory()).await.is_err() {
                    return exhausted();
                }
                self.publish(payload).await
            }
            Err(reason) => malformed(&reason.0),
        }
    }

    async fn publish(&self, payload: Payload) -> Response {
        match payload {
            Payload::One(publication) => {
                let stream = publication.stream.clone();
                answer::single(&stream, self.broker.append(publication).await)
            }
            Payload::Batch(items) => {
                let streams: Vec<_> = items.iter().map(|item| item.stream.clone()).collect();
                answer::batch(&streams, &publish_all(&*self.broker, items).await)
            }
            Payload::Disconnect(command) => match self.broker.disconnect(&command).await {
                Ok(_mark) => answer::command("disconnect", false),
                Err(error) => answer::failed(&error),
            },
            Payload::OtherCommand(name) => {
                limited!(WARN, UnknownRemoteCommand, command = %ShownWord(&name), "ignored an unknown remote command");
                answer::command(&name, true)
            }
        }
    }

    fn is_authorized(&self, headers: &HeaderMap) -> bool {
        let Some(keys) = &self.config.keys else { return true };
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        given.is_some_and(|given| keys.any_matches(given))
    }
}

/// Too much is under way: nothing of this publication is stored, and in a moment there is room again.
fn exhausted() -> Response {
    let reason = "publications that are under way take all of http_broadcast_max_pending";
    answer::failed(&AppendError::NotStored(reason.to_owned()))
}

/// An answer that holds what its publication took until it is on its way.
struct Held {
    body: Body,
    _lease: Lease,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn malformed(reason: &str) -> Response {
    MALFORMED_PUBLICATIONS.inc();
    limited!(WARN, MalformedPublication, reason, "refused a malformed publication");
    answer::refused(StatusCode::UNPROCESSABLE_ENTITY, reason)
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, String> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let valid = (1..=MAX_KEY).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic);
    match value.to_str() {
        Ok(key) if valid => Ok(Some(key)),
        _ => Err(format!("the Idempotency-Key header must be 1 to {MAX_KEY} visible ASCII characters without blanks")),
    }
}

/// Why a body was not read.
#[derive(Debug, thiserror::Error)]
enum BodyError {
    #[error("the body exceeds the limit of {limit} bytes")]
    TooLarge { limit: usize },
    #[error("the body did not come within {} s", BODY_TIMEOUT.as_secs())]
    Timeout,
    #[error("the body could not be read: {0}")]
    Broken(#[source] axum::Error),
    #[error("too many bytes are being published")]
    Exhausted,
}

impl BodyError {
    fn status(&self) -> StatusCode {
        match self {
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Timeout | Self::Broken(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Exhausted => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// The whole body, without a copy if it came in one piece (small ones do). What has come of it is counted, not what is
/// announced: announcing takes no memory.
async fn read(body: Body, limit: usize, lease: &mut Lease) -> Result<Bytes, BodyError> {
    let too_large = || BodyError::TooLarge { limit };
    // What is announced as too large is not read at all.
    let announced = body.size_hint().lower();
    if announced > limit as u64 {
        return Err(too_large());
    }
    lease.resize(PER_REQUEST).await.map_err(|_| BodyError::Exhausted)?;
    let mut chunks = body.into_data_stream();
    let Some(first) = chunks.next().await else { return Ok(Bytes::new()) };
    let first = first.map_err(BodyError::Broken)?;
    if first.len() > limit {
        return Err(too_large());
    }
    lease.resize(PER_REQUEST + first.len()).await.map_err(|_| BodyError::Exhausted)?;
    if chunks.is_end_stream() {
        return Ok(first);
    }
    let mut whole = BytesMut::from(first);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(BodyError::Broken)?;
        if whole.len() + chunk.len() > limit {
            return Err(too_large());
        }
        lease.resize(PER_REQUEST + whole.len() + chunk.len()).await.map_err(|_| BodyError::Exhausted)?;
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.freeze())
}

#[cfg(test)]
mod tests;
