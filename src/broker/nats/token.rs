//! A stream's name as one subject token.
//!
//! Names are any UTF-8 text of any length; a token may hold neither dots, wildcards nor blanks, and a whole protocol
//! line of NATS no more than 4,096 bytes.

use crate::protocol::StreamName;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

/// Names up to this many bytes are encoded; longer ones are hashed, and the message carries the full name.
const LONGEST_ENCODED: usize = 200;

/// A subject-safe token, different for different names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Token {
    pub text: String,
    /// The token does not contain the name: the name travels in a header and is compared on reading.
    pub hashed: bool,
}

impl Token {
    pub fn of(stream: &StreamName) -> Self {
        let name = stream.as_str();
        if (1..=LONGEST_ENCODED).contains(&name.len()) {
            return Self { text: URL_SAFE_NO_PAD.encode(name), hashed: false };
        }
        // `~` is outside the base64url alphabet, so that no encoded name equals a hash.
        Self { text: format!("~{}", hash_hex(name)), hashed: true }
    }
}

/// Lower-case hexadecimal SHA-256.
pub(super) fn hash_hex(text: &str) -> String {
    Sha256::digest(text).iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn safe(token: &str) -> bool {
        !token.is_empty()
            && token.len() <= 300
            && token.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'~'))
    }

    proptest! {
        #[test]
        fn tokens_are_injective_and_subject_safe(a in ".{0,260}", b in ".{0,260}") {
            let (x, y) = (StreamName::from(a.as_str()), StreamName::from(b.as_str()));
            prop_assert!(safe(&Token::of(&x).text));
            prop_assert_eq!(a == b, Token::of(&x) == Token::of(&y));
        }

        #[test]
        fn a_name_that_looks_like_a_token_is_another_name(a in ".{0,260}") {
            let token = Token::of(&StreamName::from(a.as_str()));
            prop_assert_ne!(Token::of(&StreamName::from(token.text.as_str())).text, token.text);
        }
    }

    #[test]
    fn the_limit_between_encoding_and_hash() {
        let encoded = Token::of(&StreamName::from("x".repeat(200)));
        let hashed = Token::of(&StreamName::from("x".repeat(201)));
        assert_eq!((encoded.hashed, encoded.text.len()), (false, 267));
        assert_eq!((hashed.hashed, hashed.text.len()), (true, 65));
        assert!(Token::of(&StreamName::from("")).hashed);
    }
}
