//! Files with public keys: PEM (`PUBLIC KEY`, RFC 7468 §13) and JWKS (RFC 7517). Each may hold several keys, so that
//! one can be replaced by another without a moment at which tokens are refused.

use super::decode;
use super::keys::Key;
use rustls::pki_types::pem::{PemObject, SectionKind};
use serde::Deserialize;
use serde_json::Value;
use spki::der::asn1::UintRef;
use spki::der::{Decode, Reader, SliceReader};
use spki::{ObjectIdentifier, SubjectPublicKeyInfoRef};
use std::path::{Path, PathBuf};

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// Tokens cannot be verified with what is configured. Shown to the operator; the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum JwtStartError {
    #[error("there is no key to verify tokens with: set jwt_secret, jwt_key_file or jwt_jwks_file")]
    NoKeys,
    #[error("cannot read {option} {path}", path = path.display())]
    Read {
        option: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{option} {path} cannot be used: {reason}", path = path.display())]
    Content { option: &'static str, path: PathBuf, reason: String },
}

const PEM_OPTION: &str = "jwt_key_file";
const JWKS_OPTION: &str = "jwt_jwks_file";

/// The keys of a PEM file.
pub(super) fn pem(path: &Path) -> Result<Vec<Key>, JwtStartError> {
    let text = read(PEM_OPTION, path)?;
    pem_keys(&text).map_err(|reason| JwtStartError::Content { option: PEM_OPTION, path: path.to_owned(), reason })
}

/// The keys of a JWKS file. Those for other algorithms or uses are left out with a warning, as RFC 7517 §5 has it.
pub(super) fn jwks(path: &Path) -> Result<Vec<Key>, JwtStartError> {
    let text = read(JWKS_OPTION, path)?;
    jwks_keys(&text).map_err(|reason| JwtStartError::Content { option: JWKS_OPTION, path: path.to_owned(), reason })
}

fn read(option: &'static str, path: &Path) -> Result<Vec<u8>, JwtStartError> {
    std::fs::read(path).map_err(|source| JwtStartError::Read { option, path: path.to_owned(), source })
}

fn pem_keys(text: &[u8]) -> Result<Vec<Key>, String> {
    let mut keys = Vec::new();
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(text) {
        let (kind, der) = section.map_err(|error| format!("it is no PEM file: {error:?}"))?;
        match kind {
            SectionKind::PublicKey => {
                let place = keys.len() + 1;
                keys.push(public_key(&der).map_err(|reason| format!("public key {place}: {reason}"))?);
            }
            SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey => {
                return Err(
                    "it holds a private key, which only the signer may have: make the public one by `openssl pkey -pubout`"
                        .to_owned(),
                );
            }
            _ => return Err("it holds something else than sections `PUBLIC KEY`".to_owned()),
        }
    }
    if keys.is_empty() { Err("it holds no section `PUBLIC KEY`".to_owned()) } else { Ok(keys) }
}

/// From a `SubjectPublicKeyInfo` (RFC 5280 §4.1.2.7).
fn public_key(der: &[u8]) -> Result<Key, String> {
    let faulty = |error: spki::der::Error| format!("malformed: {error}");
    let info = SubjectPublicKeyInfoRef::from_der(der).map_err(faulty)?;
    let key = info.subject_public_key.as_bytes().ok_or("malformed: a fraction of a byte")?;
    let key = match info.algorithm.oid {
        RSA => {
            let mut reader = SliceReader::new(key).map_err(faulty)?;
            let (n, e) = reader
                .sequence(|reader| Ok((UintRef::decode(reader)?, UintRef::decode(reader)?)))
                .and_then(|numbers| reader.finish(numbers))
                .map_err(faulty)?;
            Key::rsa(n.as_bytes(), e.as_bytes())
        }
        EC if info.algorithm.parameters_oid() == Ok(P256) => Key::p256(key),
        EC => Err("only the curve P-256 (ES256) is supported"),
        ED25519 => Key::ed25519(key),
        _ => Err("only RSA, P-256 and Ed25519 keys are supported"),
    };
    Ok(key?)
}

#[derive(Deserialize)]
struct Jwks {
    keys: Vec<Value>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    d: Option<serde::de::IgnoredAny>,
}

fn jwks_keys(text: &[u8]) -> Result<Vec<Key>, String> {
    // The error's own text may quote the file.
    let set: Jwks = serde_json::from_slice(text).map_err(|error| {
        format!("it is not JSON of the form {{\"keys\": [...]}} (line {}, column {})", error.line(), error.column())
    })?;
    let mut keys = Vec::new();
    for (place, value) in set.keys.into_iter().enumerate() {
        let place = place + 1;
        let jwk = Jwk::deserialize(value).map_err(|_| format!("key {place} is no JSON web key"))?;
        if jwk.d.is_some() {
            return Err(format!("key {place} is a private key, which only the signer may have: leave out `d`"));
        }
        let kid = jwk.kid.clone();
        match jwk_material(&jwk) {
            Ok(material) => keys.push(material.map_err(|reason| format!("key {place}: {reason}"))?.named(kid)),
            Err(Foreign) => tracing::warn!(
                context = "jwt",
                place,
                kid,
                "left out a key of jwt_jwks_file that is not for signatures by RS256, ES256 or EdDSA"
            ),
        }
    }
    if keys.is_empty() { Err("it holds no key for RS256, ES256 or EdDSA".to_owned()) } else { Ok(keys) }
}

/// A key for something else.
struct Foreign;

fn jwk_material(jwk: &Jwk) -> Result<Result<Key, &'static str>, Foreign> {
    let for_signatures = jwk.usage.as_deref().is_none_or(|usage| usage == "sig")
        && jwk.key_ops.as_ref().is_none_or(|operations| operations.iter().any(|name| name == "verify"));
    if !for_signatures {
        return Err(Foreign);
    }
    let number = |text: &Option<String>| text.as_deref().and_then(decode).ok_or("a number is missing or no base64url");
    let alg = jwk.alg.as_deref();
    match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("RSA", _) if matches!(alg, None | Some("RS256")) => {
            Ok(number(&jwk.n).and_then(|n| Key::rsa(&n, &number(&jwk.e)?)))
        }
        ("EC", Some("P-256")) if matches!(alg, None | Some("ES256")) => {
            Ok(number(&jwk.x).and_then(|x| Key::p256(&[&[4][..], &x, &number(&jwk.y)?].concat())))
        }
        ("OKP", Some("Ed25519")) if matches!(alg, None | Some("EdDSA" | "Ed25519")) => {
            Ok(number(&jwk.x).and_then(|x| Key::ed25519(&x)))
        }
        _ => Err(Foreign),
    }
}
