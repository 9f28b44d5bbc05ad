//! Tokens (JWT) that say who a client is, so that connecting needs no call to the application.
//!
//! A token's claim `ext` is the connection identifiers, a string. [`source`] finds the token in a request, [`keys`] and
//! [`files`] hold what verifies it, [`sign`] makes tokens for development and scripts.

mod files;
mod keys;
mod sign;
mod source;
#[cfg(test)]
mod tests;

pub use files::JwtStartError;
pub use sign::sign;
pub use source::{Token, TokenSource, token_of};

use crate::auth::Secrets;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use keys::{Algorithm, Key};
use serde::Deserialize;
use serde_json::{Map, Number, Value};
use std::path::PathBuf;

/// Longest token, bytes. A token travels in a header or a URL, where other servers stop at 8 to 16 KiB.
pub const MAX_TOKEN: usize = 16 << 10;

/// Tokens, as configured.
#[derive(Clone, Debug)]
pub struct JwtConfig {
    /// Verify HS256, HS384 and HS512; any of them does.
    pub secrets: Secrets,
    /// PEM file with public keys for RS256, ES256 and EdDSA.
    pub key_file: Option<PathBuf>,
    /// JWKS file with the same kinds of keys.
    pub jwks_file: Option<PathBuf>,
    /// Name of the query parameter; with `x-` before it, of the header.
    pub param: String,
    /// A client without a token is refused, whatever other authentication there is.
    pub enforced: bool,
    /// A session is restored although its token has expired.
    pub restore_expired: bool,
}

impl Default for JwtConfig {
    fn default() -> Self {
        Self {
            secrets: Secrets::default(),
            key_file: None,
            jwks_file: None,
            param: "jid".to_owned(),
            enforced: false,
            restore_expired: false,
        }
    }
}

/// What a valid token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// Connection identifiers: opaque text.
    pub ext: String,
    /// When it expires, seconds since 1970: it is valid while now is less. `None`: never.
    pub exp: Option<u64>,
}

/// Why a token is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenFault {
    /// Authentic, but its time is over: `disconnect` with reason `token_expired`, close 1000.
    #[error("the token has expired")]
    Expired,
    /// Not authentic, malformed, or not valid yet: `disconnect` with reason `unauthorized`, close 1000. The text is for
    /// the log.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// Authentic, but without a string `ext`, which is the application's mistake: close 1011, no message.
    #[error("the token has no claim `ext`, which must be a string with the connection identifiers")]
    NoIdentifiers,
}

/// Verifies tokens.
#[derive(Debug)]
pub struct Jwt {
    keys: Vec<Key>,
    param: String,
    enforced: bool,
    restore_expired: bool,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<serde::de::IgnoredAny>,
}

impl Jwt {
    /// Reads the key files.
    ///
    /// # Errors
    /// A file cannot be used, or there is no key at all.
    pub fn new(config: JwtConfig) -> Result<Self, JwtStartError> {
        let mut keys: Vec<_> = config.secrets.iter().cloned().map(Key::hmac).collect();
        if let Some(path) = &config.key_file {
            keys.extend(files::pem(path)?);
        }
        if let Some(path) = &config.jwks_file {
            keys.extend(files::jwks(path)?);
        }
        if keys.is_empty() {
            return Err(JwtStartError::NoKeys);
        }
        let JwtConfig { param, enforced, restore_expired, .. } = config;
        Ok(Self { keys, param, enforced, restore_expired })
    }

    /// Name of the query parameter, for [`token_of`].
    pub fn param(&self) -> &str {
        &self.param
    }

    /// A client without a token is refused.
    pub fn is_enforced(&self) -> bool {
        self.enforced
    }

    /// Whether a session whose token expires at `exp` may be restored at `now` (seconds since 1970).
    pub fn may_restore(&self, exp: Option<u64>, now: u64) -> bool {
        self.restore_expired || exp.is_none_or(|exp| now < exp)
    }

    /// Verifies a token at `now`, seconds since 1970. No leeway is given.
    ///
    /// # Errors
    /// [`TokenFault`] says what the client is to be told.
    pub fn verify(&self, token: &str, now: u64) -> Result<Claims, TokenFault> {
        let payload = self.authentic(token).map_err(TokenFault::Unauthorized)?;
        let mut claims: Map<String, Value> =
            serde_json::from_slice(&payload).map_err(|_| TokenFault::Unauthorized("claims are not a JSON object"))?;
        let exp = time(claims.get("exp")).ok_or(TokenFault::Unauthorized("`exp` is not a time"))?;
        let nbf = time(claims.get("nbf")).ok_or(TokenFault::Unauthorized("`nbf` is not a time"))?;
        if exp.is_some_and(|exp| now >= exp) {
            return Err(TokenFault::Expired);
        }
        if nbf.is_some_and(|nbf| now < nbf) {
            return Err(TokenFault::Unauthorized("not valid yet"));
        }
        match claims.remove("ext") {
            Some(Value::String(ext)) => Ok(Claims { ext, exp }),
            _ => Err(TokenFault::NoIdentifiers),
        }
    }

    /// The payload, once a key has verified it (RFC 7515 §5.2).
    fn authentic(&self, token: &str) -> Result<Vec<u8>, &'static str> {
        if token.len() > MAX_TOKEN {
            return Err("longer than 16 KiB");
        }
        let (signed, signature) = token.rsplit_once('.').ok_or("not of the form header.claims.signature")?;
        let (header, payload) = signed.split_once('.').ok_or("not of the form header.claims.signature")?;
        let header = decode(header).ok_or("the header is not base64url")?;
        let header: Header = serde_json::from_slice(&header).map_err(|_| "the header is not JSON with `alg`")?;
        // Extensions that must be understood: none is.
        if header.crit.is_some() {
            return Err("the header has `crit`");
        }
        let algorithm = Algorithm::named(&header.alg).ok_or("its algorithm is not accepted")?;
        let signature = decode(signature).ok_or("the signature is not base64url")?;
        let mut fitting = self.keys.iter().filter(|key| key.fits(algorithm, header.kid.as_deref())).peekable();
        if fitting.peek().is_none() {
            return Err("no key for its algorithm and `kid`");
        }
        if !fitting.any(|key| key.verifies(algorithm, signed.as_bytes(), &signature)) {
            return Err("wrong signature");
        }
        decode(payload).ok_or("the claims are not base64url")
    }
}

/// Base64url without padding: the only form of RFC 7515.
fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// A `NumericDate` in whole seconds, rounded up: comparisons with whole seconds stay the same. `Some(None)`: not given.
fn time(claim: Option<&Value>) -> Option<Option<u64>> {
    match claim {
        None => Some(None),
        Some(Value::Number(number)) => Some(Some(seconds(number))),
        Some(_) => None,
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates, as it should")]
fn seconds(number: &Number) -> u64 {
    number.as_u64().unwrap_or_else(|| number.as_f64().map_or(0, |seconds| seconds.ceil() as u64))
}
