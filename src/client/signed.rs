//! Keys derived from the application's secret, signed stream names, and the identifiers of `$pubsub` subscriptions.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Phrase of the HTTP broadcast endpoint's key.
pub const BROADCAST_PHRASE: &str = "broadcast-cable";

/// Lower-case hexadecimal HMAC-SHA256 of a phrase: how every key is derived from the application's secret.
pub fn derived_key(secret: &str, phrase: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(phrase.as_bytes());
    mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `base64(JSON text of the name)--hex(HMAC of that base64)`, as Rails' message verifier and Turbo sign it.
pub fn signed_stream_name(secret: &str, stream: &str) -> String {
    let json = serde_json::to_string(stream).expect("a string is always JSON");
    let payload = STANDARD.encode(json);
    let signature = derived_key(secret, &payload);
    format!("{payload}--{signature}")
}

/// Identifier of a `$pubsub` subscription to a public stream.
pub fn public_identifier(stream: &str) -> String {
    serde_json::json!({"channel": "$pubsub", "stream_name": stream}).to_string()
}

/// Identifier of a `$pubsub` subscription to a signed stream.
pub fn signed_identifier(secret: &str, stream: &str) -> String {
    serde_json::json!({"channel": "$pubsub", "signed_stream_name": signed_stream_name(secret, stream)}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_signed_as_other_signers_do() {
        for (secret, name, signed) in [
            (
                "orchid-lantern-42",
                "chat/7",
                "ImNoYXQvNyI=--1b1fe5d8ecef2b2396b3a7a5598e052a510e1d7619cbc1432c37794be2bd2d08",
            ),
            (
                "orchid-lantern-42",
                "naïve \"quotes\"",
                "Im5hw692ZSBcInF1b3Rlc1wiIg==--846bf3ec2e46268f6a95565c49307c39102bcf6220b4afddd0478e6a04668dbb",
            ),
            (
                "ключ-42",
                "a>b?c~~~",
                "ImE+Yj9jfn5+Ig==--df8589710835516b341d4a38ad90a6ec2b6ba609141888baea475c69c0c21550",
            ),
        ] {
            assert_eq!(signed_stream_name(secret, name), signed);
        }
    }

    #[test]
    fn keys_are_derived_as_other_signers_do() {
        assert_eq!(
            derived_key("s3cr3t-alpha", BROADCAST_PHRASE),
            "a6d8ef59c34e2b4b8650e45d089a9e20269df060267aeba78ebcdf2b0aec0a7d"
        );
    }

    #[test]
    fn identifiers_have_sorted_keys_and_no_blanks() {
        assert_eq!(public_identifier("chat/7"), r#"{"channel":"$pubsub","stream_name":"chat/7"}"#);
    }
}
