//! Who a client of a run is, to the server.

use crate::auth::jwt;
use crate::secret::Secret;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use url::Url;

/// What stands for the number of a client in addresses and identifiers.
const CLIENT: &str = "{client}";

/// How clients prove who they are, and by which identifiers the server knows them.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// Not at all, or all by what is in the address. A server that asks for nothing knows a client by the first id of its
    /// session.
    Common,
    /// By tokens that we sign, each with identifiers of its own.
    Tokens { secret: Secret, param: String, run: String, valid: Duration },
    /// By `{client}` in the address, of which the server makes these identifiers, with `{client}` in them.
    Named { identifiers: String },
}

impl Credentials {
    /// The address for this client.
    pub fn url(&self, url: &Url, client: usize) -> Url {
        match self {
            Self::Common => url.clone(),
            Self::Tokens { secret, param, valid, .. } => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let token = jwt::sign(secret, &self.identifiers(client, ""), Some((now + *valid).as_secs()));
                let mut url = url.clone();
                url.query_pairs_mut().append_pair(param, &token);
                url
            }
            // Braces of a path are escaped in a URL.
            Self::Named { .. } => {
                let number = client.to_string();
                let text = url.as_str().replace(CLIENT, &number).replace("%7Bclient%7D", &number);
                text.parse().unwrap_or_else(|_| url.clone())
            }
        }
    }

    /// The identifiers of a client whose session began with this id.
    pub fn identifiers(&self, client: usize, first_sid: &str) -> String {
        match self {
            Self::Common => serde_json::json!({"sid": first_sid}).to_string(),
            Self::Tokens { run, .. } => serde_json::json!({"verify": run, "client": client}).to_string(),
            Self::Named { identifiers } => identifiers.replace(CLIENT, &client.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Secrets;
    use crate::auth::jwt::{Jwt, JwtConfig};

    #[test]
    fn each_client_has_a_token_for_identifiers_of_its_own() {
        let credentials = Credentials::Tokens {
            secret: "s3cr3t".into(),
            param: "jid".into(),
            run: "r".into(),
            valid: Duration::from_secs(60),
        };
        let jwt = Jwt::new(JwtConfig { secrets: Secrets::parse("s3cr3t"), ..JwtConfig::default() }).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        for client in [0, 7] {
            let url = credentials.url(&"ws://h/cable?a=1".parse().unwrap(), client);
            let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
            assert_eq!(pairs[0], ("a".into(), "1".into()));
            assert_eq!(pairs[1].0, "jid");
            assert_eq!(jwt.verify(&pairs[1].1, now).unwrap().ext, credentials.identifiers(client, "sid"));
        }
        assert_ne!(credentials.identifiers(0, ""), credentials.identifiers(7, ""));
    }

    #[test]
    fn an_application_tells_clients_apart_by_the_address() {
        let credentials = Credentials::Named { identifiers: r#"{"user":"{client}"}"#.into() };
        for (address, expected) in [
            ("ws://h/cable?user={client}", "ws://h/cable?user=7"),
            ("ws://h/{client}/cable", "ws://h/7/cable"),
            ("ws://h/cable", "ws://h/cable"),
        ] {
            assert_eq!(credentials.url(&address.parse().unwrap(), 7).as_str(), expected);
        }
        assert_eq!(credentials.identifiers(7, "sid"), r#"{"user":"7"}"#);
        assert_eq!(Credentials::Common.identifiers(7, "sid"), r#"{"sid":"sid"}"#);
    }
}
