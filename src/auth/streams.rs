//! Signed stream names: `<base64 of the name's JSON text>--<hex HMAC-SHA256 of that base64>`, as Rails'
//! `MessageVerifier` and the AnyCable SDKs make them.

use crate::protocol::StreamName;
use crate::secret::Secret;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use subtle::ConstantTimeEq;

/// Secrets for signed names. The first one signs, any of them verifies, so that a secret can be rotated.
#[derive(Clone, Debug, Default)]
pub struct Secrets(Vec<Secret>);

impl Secrets {
    /// From a comma list. Blanks around entries and empty entries are dropped, and so is the literal `none`, which means
    /// no secret: everybody knows it.
    pub fn parse(list: &str) -> Self {
        let entries = list.split(',').map(str::trim).filter(|entry| !entry.is_empty() && *entry != "none");
        Self(entries.map(Secret::from).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The one that signs and from which keys are derived.
    pub fn first(&self) -> Option<&Secret> {
        self.0.first()
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Secret> {
        self.0.iter()
    }

    /// Whether `candidate` is one of them, in a time that depends on the lengths alone.
    pub fn any_matches(&self, candidate: &[u8]) -> bool {
        self.0.iter().fold(false, |found, secret| secret.matches(candidate) | found)
    }

    /// The signed form of a stream name; nothing without a secret.
    pub fn sign(&self, name: &str) -> Option<String> {
        let json = serde_json::to_string(name).expect("a string is always JSON");
        let payload = STANDARD.encode(json);
        let signature = self.0.first()?.sign(payload.as_bytes());
        Some(format!("{payload}--{signature}"))
    }

    /// The stream name behind a signed one. The signature covers the payload's text as received, so any alphabet,
    /// padding and JSON escaping that the signer chose is fine. Without a secret every name is rejected.
    pub fn verify(&self, signed: &str) -> Result<StreamName, InvalidName> {
        if self.0.is_empty() {
            return Err(InvalidName::NoSecret);
        }
        // The last one: the URL-safe alphabet may put `--` into the payload, hexadecimal never has it.
        let (payload, signature) = signed.rsplit_once("--").ok_or(InvalidName::Malformed)?;
        let authentic = self.0.iter().any(|secret| {
            let expected = secret.sign(payload.as_bytes());
            bool::from(expected.as_bytes().ct_eq(signature.as_bytes()))
        });
        if !authentic {
            return Err(InvalidName::Signature);
        }
        let json = decode(payload).ok_or(InvalidName::Malformed)?;
        let name: String = serde_json::from_slice(&json).map_err(|_| InvalidName::NotText)?;
        if name.is_empty() { Err(InvalidName::Empty) } else { Ok(StreamName::from(name)) }
    }
}

/// Why a signed name is not accepted; for logs, clients only see the rejection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    #[error("no streams secret is configured, so no signed name can be verified")]
    NoSecret,
    #[error("the signed stream name is not of the form <base64>--<signature>")]
    Malformed,
    #[error("the signature of the stream name is wrong")]
    Signature,
    #[error("the signed payload is not a JSON string")]
    NotText,
    #[error("the signed stream name is empty")]
    Empty,
}

/// Base64 in the standard or the URL-safe alphabet, padded or not.
fn decode(payload: &str) -> Option<Vec<u8>> {
    let standard: String = payload
        .trim_end_matches('=')
        .chars()
        .map(|c| match c {
            '-' => '+',
            '_' => '/',
            other => other,
        })
        .collect();
    STANDARD_NO_PAD.decode(standard).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ORCHID: &str = "orchid-lantern-42";

    fn verify(secrets: &str, signed: &str) -> Result<String, InvalidName> {
        Secrets::parse(secrets).verify(signed).map(|name| name.as_str().to_owned())
    }

    /// Signs any text as a signer of another language would.
    fn sign_raw(secret: &str, payload: &str) -> String {
        format!("{payload}--{}", Secret::from(secret).sign(payload.as_bytes()))
    }

    #[test]
    fn vectors_sign_and_verify() {
        #[rustfmt::skip]
        let vectors = [
            ("s3cr3t-alpha", "chat/7", "ImNoYXQvNyI=--36738c9aa01397fd97c3529aeba46bc81dc5cd74a8a7e1a465addb42f6281039"),
            ("correct horse battery staple", "room:Москва", "InJvb2060JzQvtGB0LrQstCwIg==--34f9d9d8b3d67427a8f4d449a6e15a4e255d5428a58d0089f2908ae267c4be22"),
            ("ключ-42", "a>b?c~~~", "ImE+Yj9jfn5+Ig==--df8589710835516b341d4a38ad90a6ec2b6ba609141888baea475c69c0c21550"),
            (ORCHID, "chat/7", "ImNoYXQvNyI=--1b1fe5d8ecef2b2396b3a7a5598e052a510e1d7619cbc1432c37794be2bd2d08"),
            (ORCHID, "room:lobby", "InJvb206bG9iYnki--03602ea3e37fe06a5cc29c7e7ade0250a46d8f6202180f95cf06f7a8e7c2afc9"),
            (ORCHID, "naïve \"quotes\"", "Im5hw692ZSBcInF1b3Rlc1wiIg==--846bf3ec2e46268f6a95565c49307c39102bcf6220b4afddd0478e6a04668dbb"),
        ];
        for (secret, name, signed) in vectors {
            assert_eq!(Secrets::parse(secret).sign(name).as_deref(), Some(signed));
            assert_eq!(verify(secret, signed).as_deref(), Ok(name));
        }
    }

    #[test]
    fn url_safe_alphabet_with_or_without_padding() {
        let vector = "ImE-Yj9jfn5-Ig==--7cdd40d87fb704b1071317ab2bf78e0090905b4e595e6b3e72de5ba708e5565e";
        assert_eq!(verify("ключ-42", vector).as_deref(), Ok("a>b?c~~~"));
        let unpadded = sign_raw("ключ-42", "ImE-Yj9jfn5-Ig");
        assert_eq!(verify("ключ-42", &unpadded).as_deref(), Ok("a>b?c~~~"));
    }

    #[test]
    fn a_url_safe_payload_may_contain_the_separator() {
        let payload = base64::engine::general_purpose::URL_SAFE.encode("\"\u{ffbe}\"");
        assert_eq!(payload, "Iu--viI=");
        assert_eq!(verify(ORCHID, &sign_raw(ORCHID, &payload)).as_deref(), Ok("\u{ffbe}"));
    }

    #[test]
    fn escapes_of_other_signers() {
        let payload = STANDARD.encode(r#""na\u00efve\/x""#);
        assert_eq!(verify(ORCHID, &sign_raw(ORCHID, &payload)).as_deref(), Ok("naïve/x"));
    }

    #[test]
    fn rejections() {
        use InvalidName::*;
        let good = Secrets::parse(ORCHID).sign("chat/7").unwrap();
        let forged = "ImNoYXQvNyI=--f45becce1f167f61e86c87fe6377e1f365628e4e40e847a768771c8a2103281f";
        let array = "WyJjaGF0LzciLDdd--bb860c65045cf66826d3ad49eabb43d5ec27263984f88ab2f3f4c1ba4d321405";
        assert_eq!(verify(ORCHID, forged), Err(Signature));
        assert_eq!(verify(ORCHID, array), Err(NotText));
        assert_eq!(verify(ORCHID, "ImNoYXQvNyI="), Err(Malformed));
        assert_eq!(verify(ORCHID, ""), Err(Malformed));
        assert_eq!(verify(ORCHID, "ImNoYXQvNyI=--"), Err(Signature));
        assert_eq!(verify(ORCHID, &good[..good.len() - 1]), Err(Signature));
        assert_eq!(verify(ORCHID, &good.to_uppercase()), Err(Signature));
        assert_eq!(verify(ORCHID, &format!("x{good}")), Err(Signature));
        assert_eq!(verify(ORCHID, &sign_raw(ORCHID, "%%%")), Err(Malformed));
        assert_eq!(verify(ORCHID, &sign_raw(ORCHID, &STANDARD.encode("\"\""))), Err(Empty));
        assert_eq!(verify(ORCHID, &sign_raw(ORCHID, &STANDARD.encode("not json"))), Err(NotText));
    }

    #[test]
    fn without_a_secret_every_name_is_rejected() {
        let signed_with_nothing = sign_raw("", "ImNoYXQvNyI=");
        for unset in ["", " ", ",", "none", " none "] {
            assert_eq!(verify(unset, &signed_with_nothing), Err(InvalidName::NoSecret), "{unset:?}");
            assert_eq!(Secrets::parse(unset).sign("chat/7"), None);
        }
    }

    #[test]
    fn none_is_no_secret_among_others_either() {
        let signed_with_none = sign_raw("none", "ImNoYXQvNyI=");
        for list in ["none,a", "a, none", "none,none"] {
            assert!(verify(list, &signed_with_none).is_err(), "{list}");
        }
        assert_eq!(Secrets::parse("none,a").sign("chat/7"), Secrets::parse("a").sign("chat/7"));
    }

    #[test]
    fn first_secret_signs_and_any_verifies() {
        let rotated = Secrets::parse("new-secret, old-secret");
        assert_eq!(rotated.sign("a"), Secrets::parse("new-secret").sign("a"));
        let old = Secrets::parse("old-secret").sign("a").unwrap();
        assert_eq!(rotated.verify(&old), Ok(StreamName::from("a")));
        let foreign = Secrets::parse("another").sign("a").unwrap();
        assert_eq!(rotated.verify(&foreign), Err(InvalidName::Signature));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn what_is_signed_verifies(name in "\\PC{1,40}", secret in "[a-z0-9]{1,80}") {
            let secrets = Secrets(vec![Secret::from(secret)]);
            let signed = secrets.sign(&name).unwrap();
            prop_assert_eq!(secrets.verify(&signed), Ok(StreamName::from(name)));
        }

        #[test]
        fn garbage_is_rejected(signed in "\\PC{0,80}|[A-Za-z0-9_=+/-]{0,40}--[0-9a-f]{0,64}") {
            prop_assert!(Secrets::parse(ORCHID).verify(&signed).is_err());
        }

        #[test]
        fn signed_garbage_never_panics(payload in "\\PC{0,60}|[A-Za-z0-9_=+/-]{0,60}") {
            let signed = sign_raw(ORCHID, &payload);
            let name = Secrets::parse(ORCHID).verify(&signed);
            prop_assert!(name != Err(InvalidName::Signature));
        }

        #[test]
        fn one_changed_character_breaks_it(at in 0usize..78, with in "[A-Za-z0-9+/=-]") {
            let signed = Secrets::parse(ORCHID).sign("chat/7").unwrap();
            prop_assume!(signed[at..=at] != with);
            let mut changed = signed;
            changed.replace_range(at..=at, &with);
            prop_assert!(Secrets::parse(ORCHID).verify(&changed).is_err());
        }
    }
}
