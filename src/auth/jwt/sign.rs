//! Making tokens, for development and scripts; in production the application does.

use crate::secret::Secret;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde::Serialize;

/// {"alg":"HS256","typ":"JWT"}
const HEADER: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9";

#[derive(Serialize)]
struct Payload<'a> {
    ext: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<u64>,
}

/// A token (HS256) for a client with these connection identifiers, valid before `exp` (seconds since 1970; `None`: for
/// ever).
pub fn sign(secret: &Secret, identifiers: &str, exp: Option<u64>) -> String {
    let payload = serde_json::to_vec(&Payload { ext: identifiers, exp }).expect("text and a number are always JSON");
    let signed = format!("{HEADER}.{}", URL_SAFE_NO_PAD.encode(payload));
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(hmac::sign(&key, signed.as_bytes())))
}
