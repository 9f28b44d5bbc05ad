//! Bearer keys derived from the application's secret, so that one secret configures both sides.

use super::Secrets;
use crate::secret::Secret;

/// What a derived key is for. The phrases are those of the AnyCable SDKs: both sides must use the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// HTTP publishing.
    Broadcast,
    /// Calls to the application over HTTP.
    Rpc,
    /// The REST API.
    Api,
}

impl Purpose {
    fn phrase(self) -> &'static str {
        match self {
            Self::Broadcast => "broadcast-cable",
            Self::Rpc => "rpc-cable",
            Self::Api => "api-cable",
        }
    }
}

/// The bearer key for `purpose`: lower-case hexadecimal HMAC-SHA256 of its phrase.
pub fn derive(secret: &Secret, purpose: Purpose) -> Secret {
    secret.derive(purpose.phrase())
}

/// The bearer keys for `purpose` from a comma list of secrets, as a comma list in the same order: the first is the one
/// to send, any of them is accepted. `None`: the list is empty or `none`.
pub fn derive_list(secrets: &Secret, purpose: Purpose) -> Option<Secret> {
    let keys: Vec<_> = Secrets::parse(secrets.expose()).iter().map(|secret| derive(secret, purpose)).collect();
    let keys: Vec<_> = keys.iter().map(Secret::expose).collect();
    (!keys.is_empty()).then(|| Secret::new(keys.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_secrets_gives_a_list_of_keys() {
        let key = |secret: &str| derive(&Secret::from(secret), Purpose::Rpc).expose().to_owned();
        let list =
            |secrets: &str| derive_list(&Secret::from(secrets), Purpose::Rpc).map(|keys| keys.expose().to_owned());
        assert_eq!(list("new, old"), Some(format!("{},{}", key("new"), key("old"))));
        assert_eq!(list("one"), Some(key("one")));
        assert_eq!((list("none"), list(" , ")), (None, None));
    }

    #[test]
    fn keys_are_those_of_the_sdks() {
        #[rustfmt::skip]
        let vectors = [
            ("s3cr3t-alpha", [
                "a6d8ef59c34e2b4b8650e45d089a9e20269df060267aeba78ebcdf2b0aec0a7d",
                "47d53b98cbb587fc2349a084bfa47af114bb08b9334651b01ce830eb4b967c88",
                "7d90e77c9e845e181a3752092e85e9f327f7e7a9d438a34771a12b2ffc811402",
            ]),
            ("correct horse battery staple", [
                "69029b1dda5a2343751b08782b2a725297638a5c23f1a7d2f7a7a61be88f2623",
                "a94c9d65e20fd683d99146642f633d6a69bc489cf2c7d4ac78b02738bd8d7474",
                "db6914efa58d0d0de6f920ca07e339cdb3ce1eee4956abb4929fee51685d9550",
            ]),
            ("ключ-42", [
                "dc096ea653e9f3c55c61b17a162fa9858490ffbe2b251a90b883b5370c1ad403",
                "8a5e5bc54ae018292dc3f385ef68405bbec891cb2862b349d888896c58566fff",
                "8fa9ece1284ffdbd28ba6d3e18b3bc2a04dc28da049415ad68b5a62247fab576",
            ]),
            ("orchid-lantern-42", [
                "9d2bd900d6bec22a23602fff027a727ea2877fed2704cf954a9dd2d60f9ba5f9",
                "f98c26e1ae285d3a9d668e5eb26c6fef187c8a97620e012e196115dabbe8b897",
                "bd9cb5042c0aea28dfcac56efed8ba84bf8a76770f9db5a7e56863fc513b45b9",
            ]),
        ];
        for (secret, keys) in vectors {
            for (purpose, key) in [Purpose::Broadcast, Purpose::Rpc, Purpose::Api].into_iter().zip(keys) {
                assert_eq!(derive(&Secret::from(secret), purpose).expose(), key, "{secret} {purpose:?}");
            }
        }
    }
}
