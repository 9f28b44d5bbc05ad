//! The application over HTTP: an axum router at `/_anycable`.

use super::record::Record;
use super::{Call, Fault, Method};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Request, Response, StatusCode, Uri};
use axum::response::IntoResponse;
use axum::routing::post;
use hyper::body::Incoming;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

/// Path before the methods'.
pub const BASE: &str = "/_anycable";

pub async fn answer(
    record: Arc<Record>,
    cut: CancellationToken,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let mut router = Router::new().route("/_anycable/{method}", post(called)).with_state((record, cut));
    router.call(request.map(Body::new)).await
}

async fn called(
    State((record, cut)): State<(Arc<Record>, CancellationToken)>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let Some(method) = Method::of(uri.path()) else { return StatusCode::NOT_FOUND.into_response() };
    let Ok(body) = serde_json::from_slice(&body) else { return StatusCode::UNPROCESSABLE_ENTITY.into_response() };
    let headers = headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    let reply = record.answer(Call { method, headers, body, at: Instant::now() }, cut).await;
    match reply.fault {
        Some(Fault::Garbage) => "{\"status\":1,".into_response(),
        Some(Fault::Unimplemented) => StatusCode::NOT_FOUND.into_response(),
        Some(Fault::Busy) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Some(Fault::Broken) => (StatusCode::INTERNAL_SERVER_ERROR, "it broke").into_response(),
        None | Some(Fault::Hang | Fault::Cut) => reply.body.to_string().into_response(),
    }
}
