//! Which subscriptions are streams of our own, and whether a client may have them: `$pubsub`, Turbo and CableReady.

use super::Secrets;
use super::streams::InvalidName;
use crate::protocol::StreamName;
use serde_json::value::RawValue;
use std::collections::HashMap;

const TURBO_CHANNEL: &str = "Turbo::StreamsChannel";
const CABLE_READY_CHANNEL: &str = "CableReady::Stream";

/// Access to streams, as configured.
#[derive(Clone, Debug)]
pub struct StreamsConfig {
    /// Verify signed names. Empty: every signed name is rejected.
    pub secrets: Secrets,
    /// Plain `stream_name`s are allowed.
    pub public: bool,
    /// Clients may whisper on signed streams; on public ones they always may.
    pub whisper: bool,
    /// Presence works on signed streams; on public ones it always does.
    pub presence: bool,
    /// Channel name of plain streams; empty: there is no such channel.
    pub pubsub_channel: String,
    /// Serve Turbo's channel here, if there is a secret for it.
    pub turbo: bool,
    /// Unset: `secrets`.
    pub turbo_secrets: Option<Secrets>,
    /// Serve CableReady's channel here, if there is a secret for it.
    pub cable_ready: bool,
    /// Unset: `secrets`.
    pub cable_ready_secrets: Option<Secrets>,
}

impl Default for StreamsConfig {
    fn default() -> Self {
        Self {
            secrets: Secrets::default(),
            public: false,
            whisper: false,
            presence: true,
            pubsub_channel: "$pubsub".to_owned(),
            turbo: false,
            turbo_secrets: None,
            cable_ready: false,
            cable_ready_secrets: None,
        }
    }
}

/// What an identifier in a `subscribe` command stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// A subscription to exactly this stream.
    Stream { name: StreamName, whisper: bool, presence: bool },
    /// Ours, and not allowed: `reject_subscription`. The reason is for the log.
    Rejected(&'static str),
    /// A channel of the application; rejected where there is none.
    NotOurs,
}

/// Answers what an identifier stands for.
#[derive(Clone, Debug)]
pub struct Access {
    config: StreamsConfig,
}

impl Access {
    pub fn new(config: StreamsConfig) -> Self {
        Self { config }
    }

    /// Resolves an identifier. If it has both a signed and a public name the signed one counts, even if it is invalid.
    pub fn resolve(&self, identifier: &str) -> Resolution {
        // A repeated key counts with its last value; further keys make it another subscription to the same stream.
        let Ok(fields) = serde_json::from_str::<HashMap<String, &RawValue>>(identifier) else {
            return Resolution::Rejected("identifier is not a JSON object");
        };
        let config = &self.config;
        let Some(channel) = text(&fields, "channel") else { return Resolution::NotOurs };
        // Empty: there is no such channel, and an empty name is not its.
        if !channel.is_empty() && channel == config.pubsub_channel {
            return self.pubsub(&fields);
        }
        let (secrets, field) = match channel.as_str() {
            TURBO_CHANNEL if config.turbo => (&config.turbo_secrets, "signed_stream_name"),
            CABLE_READY_CHANNEL if config.cable_ready => (&config.cable_ready_secrets, "identifier"),
            _ => return Resolution::NotOurs,
        };
        let secrets = secrets.as_ref().unwrap_or(&config.secrets);
        if secrets.is_empty() {
            return Resolution::NotOurs;
        }
        match text(&fields, field) {
            Some(signed) => signed_stream(secrets, &signed, false, false),
            None => Resolution::Rejected("no signed stream name"),
        }
    }

    fn pubsub(&self, fields: &HashMap<String, &RawValue>) -> Resolution {
        let config = &self.config;
        if given(fields, "signed_stream_name") {
            return match text(fields, "signed_stream_name") {
                Some(signed) => signed_stream(&config.secrets, &signed, config.whisper, config.presence),
                None => Resolution::Rejected("the signed stream name is not a string"),
            };
        }
        match text(fields, "stream_name") {
            Some(_) if !config.public => Resolution::Rejected("public streams are not enabled"),
            Some(name) if !name.is_empty() => {
                Resolution::Stream { name: StreamName::from(name), whisper: true, presence: true }
            }
            _ => Resolution::Rejected("no stream name"),
        }
    }
}

fn signed_stream(secrets: &Secrets, signed: &str, whisper: bool, presence: bool) -> Resolution {
    match secrets.verify(signed) {
        Ok(name) => Resolution::Stream { name, whisper, presence },
        Err(InvalidName::NoSecret) => Resolution::Rejected("no streams secret is configured"),
        Err(InvalidName::Malformed) => Resolution::Rejected("malformed signed stream name"),
        Err(InvalidName::Signature) => Resolution::Rejected("wrong signature of the stream name"),
        Err(InvalidName::NotText) => Resolution::Rejected("the signed payload is not a JSON string"),
        Err(InvalidName::Empty) => Resolution::Rejected("the signed stream name is empty"),
    }
}

/// A field that says something: `null` and the empty string, which clients send for "none", do not.
fn given(fields: &HashMap<String, &RawValue>, name: &str) -> bool {
    fields.get(name).is_some_and(|raw| !matches!(raw.get(), "null" | "\"\""))
}

fn text(fields: &HashMap<String, &RawValue>, name: &str) -> Option<String> {
    serde_json::from_str(fields.get(name)?.get()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECRET: &str = "orchid-lantern-42";
    const SIGNED: &str = "ImNoYXQvNyI=--1b1fe5d8ecef2b2396b3a7a5598e052a510e1d7619cbc1432c37794be2bd2d08";

    fn config() -> StreamsConfig {
        StreamsConfig { secrets: Secrets::parse(SECRET), ..StreamsConfig::default() }
    }

    fn resolve(config: StreamsConfig, identifier: &str) -> Resolution {
        Access::new(config).resolve(identifier)
    }

    fn chat7(whisper: bool, presence: bool) -> Resolution {
        Resolution::Stream { name: StreamName::from("chat/7"), whisper, presence }
    }

    fn is_rejected(resolution: &Resolution) -> bool {
        matches!(resolution, Resolution::Rejected(_))
    }

    #[test]
    fn signed_pubsub() {
        let identifier = format!(r#"{{"channel":"$pubsub","signed_stream_name":"{SIGNED}","extra":[1]}}"#);
        assert_eq!(resolve(config(), &identifier), chat7(false, true));
        assert_eq!(
            resolve(StreamsConfig { whisper: true, presence: false, ..config() }, &identifier),
            chat7(true, false)
        );
        assert!(is_rejected(&resolve(StreamsConfig::default(), &identifier)), "no secret");
    }

    #[test]
    fn public_pubsub() {
        let public = StreamsConfig { public: true, presence: false, ..config() };
        let identifier = r#"{"channel":"$pubsub","stream_name":"chat/7"}"#;
        assert_eq!(resolve(public.clone(), identifier), chat7(true, true));
        assert!(is_rejected(&resolve(config(), identifier)), "public streams are off");
        for none in ["\"\"", "null", "7", "[]"] {
            let identifier = format!(r#"{{"channel":"$pubsub","stream_name":{none}}}"#);
            assert!(is_rejected(&resolve(public.clone(), &identifier)), "{none}");
        }
    }

    #[test]
    fn the_signed_name_counts_even_if_it_is_invalid() {
        let public = StreamsConfig { public: true, ..config() };
        let both = |signed: &str| format!(r#"{{"channel":"$pubsub","stream_name":"b","signed_stream_name":{signed}}}"#);
        assert_eq!(resolve(public.clone(), &both(&format!("\"{SIGNED}\""))), chat7(false, true));
        assert!(is_rejected(&resolve(public.clone(), &both("\"bad\""))));
        assert!(is_rejected(&resolve(public.clone(), &both("7"))));
        let name = StreamName::from("b");
        assert_eq!(resolve(public, &both("null")), Resolution::Stream { name, whisper: true, presence: true });
    }

    #[test]
    fn turbo_and_cable_ready() {
        let turbo = format!(r#"{{"channel":"Turbo::StreamsChannel","signed_stream_name":"{SIGNED}"}}"#);
        let cable_ready = format!(r#"{{"channel":"CableReady::Stream","identifier":"{SIGNED}"}}"#);
        let on = StreamsConfig { turbo: true, cable_ready: true, whisper: true, ..config() };
        for identifier in [&turbo, &cable_ready] {
            assert_eq!(resolve(on.clone(), identifier), chat7(false, false));
            assert_eq!(resolve(config(), identifier), Resolution::NotOurs, "not enabled");
            let no_secret = StreamsConfig { secrets: Secrets::default(), ..on.clone() };
            assert_eq!(resolve(no_secret, identifier), Resolution::NotOurs, "enabled without a secret");
            let other = Some(Secrets::parse("other"));
            let own = StreamsConfig { turbo_secrets: other.clone(), cable_ready_secrets: other, ..on.clone() };
            assert!(is_rejected(&resolve(own, identifier)), "its own secret counts");
        }
        assert!(is_rejected(&resolve(on.clone(), r#"{"channel":"Turbo::StreamsChannel","stream_name":"a"}"#)));
        assert!(is_rejected(&resolve(on, r#"{"channel":"CableReady::Stream"}"#)));
    }

    #[test]
    fn other_channels_are_the_applications() {
        for identifier in [r#"{"channel":"ChatChannel","id":7}"#, "{}", r#"{"channel":7}"#, r#"{"channel":null}"#] {
            assert_eq!(resolve(config(), identifier), Resolution::NotOurs, "{identifier}");
        }
    }

    #[test]
    fn no_json_object_is_rejected() {
        for identifier in ["", "chat", "[]", "\"$pubsub\"", "null", "{", r#"{"channel":"$pubsub""#] {
            assert!(is_rejected(&resolve(config(), identifier)), "{identifier}");
        }
    }

    #[test]
    fn of_a_repeated_key_the_last_counts() {
        let public = StreamsConfig { public: true, ..config() };
        let twice = r#"{"channel":"Chat","channel":"$pubsub","stream_name":"a","stream_name":"chat/7"}"#;
        assert_eq!(resolve(public, twice), chat7(true, true));
        let signed = format!(r#"{{"channel":"$pubsub","signed_stream_name":"{SIGNED}","signed_stream_name":"bad"}}"#);
        assert!(is_rejected(&resolve(config(), &signed)));
    }

    #[test]
    fn renamed_channel() {
        let config = StreamsConfig { pubsub_channel: "Streams".to_owned(), public: true, ..config() };
        assert_eq!(resolve(config.clone(), r#"{"channel":"Streams","stream_name":"chat/7"}"#), chat7(true, true));
        assert_eq!(resolve(config, r#"{"channel":"$pubsub","stream_name":"chat/7"}"#), Resolution::NotOurs);
    }

    #[test]
    fn row_20_an_empty_name_switches_the_channel_off() {
        let off = StreamsConfig { pubsub_channel: String::new(), public: true, ..config() };
        for identifier in [
            r#"{"channel":"","stream_name":"chat/7"}"#.to_owned(),
            r#"{"channel":"$pubsub","stream_name":"chat/7"}"#.to_owned(),
            format!(r#"{{"channel":"","signed_stream_name":"{SIGNED}"}}"#),
        ] {
            assert_eq!(resolve(off.clone(), &identifier), Resolution::NotOurs, "{identifier}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn garbage_never_gets_a_stream(text in "\\PC{0,60}|[{}\\[\\]\":,a-z$]{0,60}") {
            let on = StreamsConfig { turbo: true, cable_ready: true, ..config() };
            let identifier = format!(r#"{{"channel":"$pubsub","signed_stream_name":{text}}}"#);
            for identifier in [text, identifier] {
                let resolution = resolve(on.clone(), &identifier);
                let granted = matches!(resolution, Resolution::Stream { .. });
                prop_assert!(!granted);
            }
        }
    }
}
