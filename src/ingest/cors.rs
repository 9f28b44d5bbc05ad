//! Headers that let web pages publish, where that is enabled.

use crate::transport::origin::AllowedOrigins;
use http::header::{self, HeaderMap, HeaderValue};

const METHODS: HeaderValue = HeaderValue::from_static("POST, OPTIONS");
const HEADERS: HeaderValue = HeaderValue::from_static(
    "Origin, X-Requested-With, X-Request-ID, Content-Type, Accept, X-CSRF-Token, Authorization, Idempotency-Key",
);

/// Adds the headers to a response. Without a list of origins everybody is allowed; with one, a request's own origin if
/// it is on it.
pub(super) fn allow(origins: &AllowedOrigins, origin: Option<&HeaderValue>, response: &mut HeaderMap) {
    let text = origin.and_then(|value| value.to_str().ok());
    if origins.is_unchecked() {
        response.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    } else {
        response.insert(header::VARY, HeaderValue::from_static("Origin"));
        if let Some(text) = text.filter(|text| origins.allows(Some(text))) {
            let lower = HeaderValue::try_from(text.to_ascii_lowercase()).expect("lower case keeps a header valid");
            response.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, lower);
        }
    }
    response.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    response.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    response.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HEADERS);
}
