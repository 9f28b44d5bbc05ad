//! Error texts of the application, without what it was sent: applications like to quote what they refuse.

use super::RpcError;
use super::calls::What;
use super::proto;
use crate::log_limit::shorten_to;
use crate::protocol::ShownIdentifier;
use crate::secret::Secret;

/// Shorter values are no credentials, and would tear words apart.
const SHORTEST: usize = 8;

/// Characters of an error text that are passed on: an application can answer with megabytes.
const LONGEST: usize = 1_000;

impl What<'_> {
    /// `text`, cut, with `ours` (what we authenticate by), the session's id, the identifier's credentials, and the values of the
    /// request's headers, cookies and query replaced.
    pub fn scrubbed(&self, text: String, ours: Option<&Secret>) -> String {
        let mut secrets = Vec::from_iter(ours.map(|secret| secret.expose().to_owned()));
        if let Some(env) = self.env {
            secrets.extend(carried(env));
        }
        let mut text = text.replace(self.sid.expose(), &self.sid.to_string());
        for identifier in self.identifiers.iter().filter(|identifier| !identifier.is_empty()) {
            let shown = ShownIdentifier(identifier).to_string();
            // As it is, and as JSON text has it within a string.
            let escaped = serde_json::Value::from(identifier.as_str()).to_string();
            text = text.replace(identifier.as_str(), &shown).replace(escaped.trim_matches('"'), &shown);
            secrets.extend(texts(identifier));
        }
        // The longest first: one may be part of another.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        for secret in secrets {
            text = text.replace(&secret, "***");
        }
        // Last: half a secret would not be found.
        shorten_to(&text, LONGEST).into_owned()
    }

    /// The error with every text of it [scrubbed](Self::scrubbed).
    pub fn scrub(&self, error: RpcError, ours: Option<&Secret>) -> RpcError {
        match error {
            RpcError::Application(text) => RpcError::Application(self.scrubbed(text, ours)),
            RpcError::Unreachable(text) => RpcError::Unreachable(self.scrubbed(text, ours)),
            RpcError::Broken(text) => RpcError::Broken(self.scrubbed(text, ours)),
            RpcError::Garbage(text) => RpcError::Garbage(self.scrubbed(text, ours)),
            error @ (RpcError::Timeout | RpcError::Unimplemented(_)) => error,
        }
    }
}

/// What the client's request carried, in every form that an error may quote.
fn carried(env: &proto::Env) -> Vec<String> {
    let mut values: Vec<String> = Vec::new();
    for (name, value) in env.headers.iter().filter(|(name, _)| *name != "REMOTE_ADDR") {
        values.push(value.clone());
        if name == "cookie" {
            let pairs = value.split(';').filter_map(|pair| pair.split_once('='));
            values.extend(pairs.map(|(_, value)| value.trim().to_owned()));
        }
        // `Bearer <token>` and its like.
        values.extend(value.split_once(' ').map(|(_, rest)| rest.trim().to_owned()));
    }
    if let Some((_, query)) = env.url.split_once('?') {
        values.push(query.to_owned());
        values.extend(query.split('&').filter_map(|pair| pair.split_once('=')).map(|(_, value)| value.to_owned()));
        values.extend(url::form_urlencoded::parse(query.as_bytes()).map(|(_, value)| value.into_owned()));
    }
    values.retain(|value| value.len() >= SHORTEST);
    values
}

/// The texts in an identifier that may be signatures or tokens: long ones.
fn texts(identifier: &str) -> Vec<String> {
    let Ok(serde_json::Value::Object(parts)) = serde_json::from_str(identifier) else { return Vec::new() };
    let text = |(name, value): (String, serde_json::Value)| match value {
        serde_json::Value::String(text) if name != "channel" && text.len() >= 2 * SHORTEST => Some(text),
        _ => None,
    };
    parts.into_iter().filter_map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Sid;

    #[test]
    fn row_19_an_error_of_the_application_loses_what_the_request_carried() {
        let sid = Sid::from("k3Jq_-0123456789abcde");
        let env = proto::Env {
            url: "http://h/cable?jid=eyJh.eyJl.c2ln&x=1&n=a%20long%20one".into(),
            headers: [
                ("cookie", "_session=c00kie-value; a=1"),
                ("authorization", "Bearer t0ken-value"),
                ("REMOTE_ADDR", "10.0.0.99"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
            ..proto::Env::default()
        };
        let identifier = r#"{"channel":"ChatChannel","signed":"InNpZ25lZCI=--0123456789"}"#;
        let what = What { method: "command", sid: &sid, env: Some(&env), identifiers: &[identifier.to_owned()] };
        let said = format!(
            "no {identifier} for {} at /cable?jid=eyJh.eyJl.c2ln&x=1 with c00kie-value, t0ken-value, 'a long one', \
             InNpZ25lZCI=--0123456789 from 10.0.0.99 by 0ur-secret: {:?}",
            sid.expose(),
            identifier,
        );
        let RpcError::Application(text) = what.scrub(RpcError::Application(said), Some(&"0ur-secret".into())) else {
            panic!()
        };
        for secret in ["0ur-", "k3Jq_", "eyJh", "c00kie", "t0ken", "long one", "InNpZ25"] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
        let channel = ShownIdentifier(identifier).to_string();
        assert!(text.starts_with(&format!("no {channel} for {sid} at /cable?jid=***&x=1 with ***, ***")), "{text}");
        assert!(text.contains("from 10.0.0.99"), "{text}");
    }

    #[test]
    fn row_17_an_error_of_the_application_is_cut_once_its_secrets_are_out() {
        let sid = Sid::from("k3Jq_-0123456789abcde");
        let what = What { method: "command", sid: &sid, env: None, identifiers: &[] };
        let said = format!("{}{}{}", "x".repeat(LONGEST - 5), "0ur-secret", "y".repeat(4 << 20));
        let text = what.scrubbed(said, Some(&"0ur-secret".into()));
        assert!(!text.contains("0ur-") && text.len() < LONGEST + 20, "{} bytes", text.len());
    }
}
