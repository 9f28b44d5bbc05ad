//! Keys derived from the application's secret, signed stream names, and the identifiers of `$pubsub` subscriptions.

use crate::auth::{Secrets, keys};
use crate::secret::Secret;

/// Bearer key for publishing over HTTP that follows from the application's secret; of a list, from the first.
pub fn broadcast_key(secret: &str) -> String {
    let first = Secrets::parse(secret).first().cloned().unwrap_or_else(|| Secret::from(secret));
    keys::derive(&first, keys::Purpose::Broadcast).expose().to_owned()
}

/// A stream's name, signed with the application's secret; `None` without one.
pub fn signed_stream_name(secret: &str, stream: &str) -> Option<String> {
    Secrets::parse(secret).sign(stream)
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
            assert_eq!(signed_stream_name(secret, name).as_deref(), Some(signed));
        }
    }

    #[test]
    fn keys_are_derived_as_other_signers_do() {
        assert_eq!(broadcast_key("s3cr3t-alpha"), "a6d8ef59c34e2b4b8650e45d089a9e20269df060267aeba78ebcdf2b0aec0a7d");
    }

    #[test]
    fn the_first_secret_of_a_list_gives_the_key() {
        assert_eq!(broadcast_key("new, old"), broadcast_key("new"));
    }

    #[test]
    fn identifiers_have_sorted_keys_and_no_blanks() {
        assert_eq!(public_identifier("chat/7"), r#"{"channel":"$pubsub","stream_name":"chat/7"}"#);
    }
}
