//! Keys that verify tokens. A key verifies only the algorithms of its own family, whatever the token claims: a public
//! key is never taken for an HMAC secret.

use crate::secret::Secret;
use ring::{hmac, signature};
use std::fmt;

/// Signature algorithms (RFC 7518 §3.1, RFC 8037 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Hs256,
    Hs384,
    Hs512,
    Rs256,
    Es256,
    EdDsa,
}

impl Algorithm {
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "HS256" => Self::Hs256,
            "HS384" => Self::Hs384,
            "HS512" => Self::Hs512,
            "RS256" => Self::Rs256,
            "ES256" => Self::Es256,
            "EdDSA" => Self::EdDsa,
            _ => return None,
        })
    }
}

/// One key.
pub(super) struct Key {
    /// Its name in a JWKS file. A key without one is tried for every token.
    kid: Option<String>,
    material: Material,
}

enum Material {
    /// The secret's bytes as they are.
    Hmac(Secret),
    /// Modulus and exponent, big-endian without leading zeros.
    Rsa { n: Vec<u8>, e: Vec<u8> },
    /// Uncompressed point, 65 bytes.
    P256(Vec<u8>),
    /// 32 bytes.
    Ed25519(Vec<u8>),
}

impl Key {
    pub(super) fn hmac(secret: Secret) -> Self {
        Self { kid: None, material: Material::Hmac(secret) }
    }

    /// From big-endian numbers.
    pub(super) fn rsa(n: &[u8], e: &[u8]) -> Result<Self, &'static str> {
        let strip = |number: &[u8]| number.iter().copied().skip_while(|byte| *byte == 0).collect::<Vec<_>>();
        let (n, e) = (strip(n), strip(e));
        let bits = n.len() * 8 - n.first().map_or(0, |byte| byte.leading_zeros() as usize);
        if !(2048..=8192).contains(&bits) {
            return Err("an RSA key must have 2048 to 8192 bits");
        }
        // ring's own limits: odd, 3 or more, at most 33 bits.
        if !(1..=5).contains(&e.len()) || e.last().is_none_or(|byte| byte % 2 == 0) || e == [1] {
            return Err("the RSA exponent must be an odd number from 3 to 2^33 - 1");
        }
        Ok(Self { kid: None, material: Material::Rsa { n, e } })
    }

    /// From an uncompressed point of the curve P-256.
    pub(super) fn p256(point: &[u8]) -> Result<Self, &'static str> {
        match point {
            [4, coordinates @ ..] if coordinates.len() == 64 => {
                Ok(Self { kid: None, material: Material::P256(point.to_vec()) })
            }
            _ => Err("a P-256 key must be an uncompressed point of 65 bytes"),
        }
    }

    pub(super) fn ed25519(key: &[u8]) -> Result<Self, &'static str> {
        match key.len() {
            32 => Ok(Self { kid: None, material: Material::Ed25519(key.to_vec()) }),
            _ => Err("an Ed25519 key must have 32 bytes"),
        }
    }

    pub(super) fn named(mut self, kid: Option<String>) -> Self {
        self.kid = kid;
        self
    }

    /// Whether it is to be tried for a token: the algorithm is of its family, and no other key is asked for by name.
    pub(super) fn fits(&self, algorithm: Algorithm, kid: Option<&str>) -> bool {
        use Algorithm::{EdDsa, Es256, Hs256, Hs384, Hs512, Rs256};
        let family = matches!(
            (&self.material, algorithm),
            (Material::Hmac(_), Hs256 | Hs384 | Hs512)
                | (Material::Rsa { .. }, Rs256)
                | (Material::P256(_), Es256)
                | (Material::Ed25519(_), EdDsa)
        );
        let asked_for = match (&self.kid, kid) {
            (Some(own), Some(kid)) => own == kid,
            _ => true,
        };
        family && asked_for
    }

    /// Whether it verifies the signature; never for an algorithm of another family.
    pub(super) fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        let public = |algorithm: &'static dyn signature::VerificationAlgorithm, key: &[u8]| {
            signature::UnparsedPublicKey::new(algorithm, key).verify(message, signature).is_ok()
        };
        let hmac = |algorithm, secret: &Secret| {
            hmac::verify(&hmac::Key::new(algorithm, secret.expose().as_bytes()), message, signature).is_ok()
        };
        match (&self.material, algorithm) {
            (Material::Hmac(secret), Algorithm::Hs256) => hmac(hmac::HMAC_SHA256, secret),
            (Material::Hmac(secret), Algorithm::Hs384) => hmac(hmac::HMAC_SHA384, secret),
            (Material::Hmac(secret), Algorithm::Hs512) => hmac(hmac::HMAC_SHA512, secret),
            (Material::Rsa { n, e }, Algorithm::Rs256) => signature::RsaPublicKeyComponents { n, e }
                .verify(&signature::RSA_PKCS1_2048_8192_SHA256, message, signature)
                .is_ok(),
            // The fixed form: JWS has the two numbers side by side (RFC 7518 §3.4), not ASN.1.
            (Material::P256(point), Algorithm::Es256) => public(&signature::ECDSA_P256_SHA256_FIXED, point),
            (Material::Ed25519(key), Algorithm::EdDsa) => public(&signature::ED25519, key),
            _ => false,
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.material {
            Material::Hmac(_) => "HMAC",
            Material::Rsa { .. } => "RSA",
            Material::P256(_) => "P-256",
            Material::Ed25519(_) => "Ed25519",
        };
        f.debug_struct("Key").field("family", &family).field("kid", &self.kid).finish()
    }
}
