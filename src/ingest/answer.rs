//! What a publisher hears: status and JSON body of each outcome.
//!
//! A stored message is `{"stream","epoch","offset","duplicate","durability"}`, one that was fanned out only `{"stream","stored":false}`,
//! a failed one `{"error","stored"}` with `false` (surely not) or `"unknown"` (handed over, no answer: retry with a key).

use crate::broker::{AppendError, Appended, Durability};
use crate::protocol::StreamName;
use axum::body::Body;
use axum::response::Response;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, StatusCode};
use serde::Serialize;

/// One message of a publisher, as stored or not.
#[derive(Serialize)]
struct Outcome<'a> {
    stream: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duplicate: Option<bool>,
    /// Which faults it survives.
    #[serde(skip_serializing_if = "Option::is_none")]
    durability: Option<Durability>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stored: Option<Stored>,
}

/// `false` or `"unknown"`.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
enum Stored {
    No(bool),
    Unknown(&'static str),
}

impl Stored {
    const NO: Self = Self::No(false);
    const UNKNOWN: Self = Self::Unknown("unknown");

    fn after(error: &AppendError) -> Self {
        match error {
            AppendError::Unknown(_) => Self::UNKNOWN,
            AppendError::NotStored(_)
            | AppendError::TooLarge { .. }
            | AppendError::HeadersTooLarge { .. }
            | AppendError::StorageFull(_) => Self::NO,
        }
    }
}

impl<'a> Outcome<'a> {
    fn new(stream: &'a StreamName, result: &'a Result<Appended, AppendError>) -> Self {
        let nothing = Self {
            stream: stream.as_str(),
            epoch: None,
            offset: None,
            duplicate: None,
            durability: None,
            error: None,
            stored: None,
        };
        match result {
            Ok(Appended { offset: 0, .. }) => Self { stored: Some(Stored::NO), ..nothing },
            Ok(Appended { epoch, offset, duplicate, durability }) => Self {
                epoch: Some(epoch.as_str()),
                offset: Some(*offset),
                duplicate: Some(*duplicate),
                durability: Some(*durability),
                ..nothing
            },
            Err(error) => Self { error: Some(error.to_string()), stored: Some(Stored::after(error)), ..nothing },
        }
    }
}

/// Answer to a single publication.
pub(super) fn single(stream: &StreamName, result: Result<Appended, AppendError>) -> Response {
    match &result {
        Ok(_) => json(StatusCode::CREATED, &Outcome::new(stream, &result)),
        Err(error) => failed(error),
    }
}

/// Answer to a batch: an array if all went well, else the first error, whether anything may have been stored, and one
/// result per item. An item that is too large makes it a 413: such a batch cannot succeed by a retry.
pub(super) fn batch(streams: &[StreamName], results: &[Result<Appended, AppendError>]) -> Response {
    #[derive(Serialize)]
    struct Failed<'a> {
        error: String,
        stored: Stored,
        results: &'a [Outcome<'a>],
    }
    let outcomes: Vec<_> = streams.iter().zip(results).map(|(stream, result)| Outcome::new(stream, result)).collect();
    let mut errors = results.iter().filter_map(|result| result.as_ref().err());
    let Some(first) = errors.next() else { return json(StatusCode::CREATED, &outcomes) };
    let worst = errors.find(|error| status(error) == StatusCode::PAYLOAD_TOO_LARGE).unwrap_or(first);
    let nothing_stored =
        results.iter().all(|result| result.as_ref().is_err_and(|error| Stored::after(error) == Stored::NO));
    let stored = if nothing_stored { Stored::NO } else { Stored::UNKNOWN };
    let body = Failed { error: worst.to_string(), stored, results: &outcomes };
    with_retry(json(status(worst), &body))
}

/// Answer to a remote command that is stored, or ignored because nobody here knows it.
pub(super) fn command(name: &str, ignored: bool) -> Response {
    #[derive(Serialize)]
    struct Accepted<'a> {
        command: &'a str,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        ignored: bool,
    }
    json(StatusCode::CREATED, &Accepted { command: name, ignored })
}

/// Answer to something the store did not take.
pub(super) fn failed(error: &AppendError) -> Response {
    #[derive(Serialize)]
    struct Failed {
        error: String,
        stored: Stored,
    }
    with_retry(json(status(error), &Failed { error: error.to_string(), stored: Stored::after(error) }))
}

/// Answer to a request that never got to the store.
pub(super) fn refused(status: StatusCode, reason: &str) -> Response {
    #[derive(Serialize)]
    struct Refused<'a> {
        error: &'a str,
    }
    let mut response = json(status, &Refused { error: reason });
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

fn status(error: &AppendError) -> StatusCode {
    match error {
        AppendError::TooLarge { .. } | AppendError::HeadersTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        AppendError::NotStored(_) | AppendError::Unknown(_) | AppendError::StorageFull(_) => {
            StatusCode::SERVICE_UNAVAILABLE
        }
    }
}

fn with_retry(mut response: Response) -> Response {
    if response.status() == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

fn json(status: StatusCode, body: &impl Serialize) -> Response {
    const JSON: (HeaderName, HeaderValue) = (CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let text = serde_json::to_vec(body).expect("texts, numbers and booleans are always JSON");
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(JSON.0, JSON.1);
    response
}
