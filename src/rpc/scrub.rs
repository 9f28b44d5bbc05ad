//! Error texts of the application, without what it was sent: applications like to quote what they refuse.

use super::RpcError;
use super::calls::What;
use super::proto;
use crate::protocol::ShownIdentifier;
use crate::protocol::encoding::json_text;
use crate::secret::Secret;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};

/// Bytes of the shortest value that is hidden. Shorter ones would be found everywhere.
const SHORTEST: usize = 4;

/// From this length on a value is hidden within a word, too.
const WITHIN_WORDS: usize = 8;

/// JSON within a text within JSON: so deep it is looked into.
const DEPTH: u32 = 4;

/// Characters of an error text that are passed on: an application can answer with megabytes.
const LONGEST: usize = 1_000;

/// Bytes that are compared for one error text, some milliseconds. A client chooses what its call carries, and may choose that
/// nearly every place of the text looks like it. What is left of the text then is not passed on.
const COMPARED: usize = 8 << 20;

impl What<'_> {
    /// `text`, cut, with `ours` (what we authenticate by) and all that the call carried replaced: the session's id and
    /// identifiers by what names them in the log, everything else by `***`.
    pub fn scrubbed(&self, text: String, ours: Option<&Secret>) -> String {
        Carried::by(self, ours).hidden_in(&text)
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

/// The values of one call that an error may quote, in every form in which it may.
#[derive(Default)]
struct Carried {
    /// With what stands in its place.
    values: BTreeMap<String, String>,
}

impl Carried {
    fn by(what: &What<'_>, ours: Option<&Secret>) -> Self {
        let mut carried = Self::default();
        let What { sid, env, identifiers, connection, data, .. } = what;
        carried.named(sid.expose(), &sid.to_string());
        for identifier in identifiers.iter() {
            carried.named(identifier, &ShownIdentifier(identifier).to_string());
        }
        for identifier in identifiers.iter() {
            carried.parts(identifier, "channel");
        }
        carried.value(connection);
        match serde_json::from_str(data) {
            // The action is what the line is about.
            Ok(Value::Object(_)) => carried.parts(data, "action"),
            _ => carried.value(data),
        }
        carried.value(ours.map_or("", Secret::expose));
        if let Some(env) = env {
            carried.request(env);
        }
        carried
    }

    /// The client's request, and the state that the application keeps with us.
    fn request(&mut self, env: &proto::Env) {
        for (name, value) in env.headers.iter().filter(|(name, _)| *name != "REMOTE_ADDR") {
            self.value(value);
            if name == "cookie" {
                for (_, value) in value.split(';').filter_map(|pair| pair.split_once('=')) {
                    self.value(value.trim());
                    self.decoded(value.trim());
                }
                continue;
            }
            // `Bearer <token>`, and `Token token="…", …`.
            self.value(value.split_once(' ').map_or("", |(_, rest)| rest.trim()));
            let pieces = value.split(|c: char| c.is_whitespace() || matches!(c, ';' | ',' | '=' | '"'));
            pieces.filter(|piece| piece.len() >= WITHIN_WORDS).for_each(|piece| self.value(piece));
        }
        if let Some((_, query)) = env.url.split_once('?') {
            self.value(query);
            for pair in query.split('&') {
                let value = pair.split_once('=').map_or(pair, |(_, value)| value);
                self.value(value);
                self.decoded(value);
            }
        }
        env.cstate.values().chain(env.istate.values()).for_each(|value| self.value(value));
    }

    /// The value behind `%41` and its like.
    fn decoded(&mut self, value: &str) {
        let pair = format!("={value}");
        url::form_urlencoded::parse(pair.as_bytes()).for_each(|(_, value)| self.value(&value));
    }

    /// What has a name of its own in the log.
    fn named(&mut self, text: &str, name: &str) {
        self.insert(text, name);
    }

    fn value(&mut self, text: &str) {
        self.deep_value(text, DEPTH);
    }

    fn deep_value(&mut self, text: &str, depth: u32) {
        self.insert(text, "***");
        if depth > 0
            && text.starts_with(['{', '[', '"'])
            && let Ok(json) = serde_json::from_str(text)
        {
            self.json(&json, depth - 1);
        }
    }

    /// Every value in JSON text, but for that of `shown`.
    fn parts(&mut self, text: &str, shown: &str) {
        match serde_json::from_str(text) {
            Ok(Value::Object(parts)) => {
                parts.iter().filter(|(name, _)| *name != shown).for_each(|(_, part)| self.json(part, DEPTH));
            }
            Ok(json) => self.json(&json, DEPTH),
            Err(_) => {}
        }
    }

    fn json(&mut self, json: &Value, depth: u32) {
        match json {
            Value::String(text) => self.deep_value(text, depth),
            Value::Number(number) => self.insert(&number.to_string(), "***"),
            Value::Array(parts) => parts.iter().for_each(|part| self.json(part, depth)),
            Value::Object(parts) => parts.values().for_each(|part| self.json(part, depth)),
            Value::Null | Value::Bool(_) => {}
        }
    }

    /// As it is, and as JSON has it within a text. What is there stays.
    fn insert(&mut self, text: &str, shown: &str) {
        if text.len() < SHORTEST {
            return;
        }
        self.values.entry(text.to_owned()).or_insert_with(|| shown.to_owned());
        let escaped = json_text(text);
        let escaped = &escaped[1..escaped.len() - 1];
        if escaped != text {
            self.values.entry(escaped.to_owned()).or_insert_with(|| shown.to_owned());
        }
    }

    fn hidden_in(&self, text: &str) -> String {
        let mut by_start: HashMap<[u8; SHORTEST], Vec<(&str, &str)>> = HashMap::new();
        for (value, shown) in &self.values {
            by_start.entry(start(value.as_bytes()).expect("none is shorter")).or_default().push((value, shown));
        }
        // One may begin like another: the longest counts.
        by_start.values_mut().for_each(|values| values.sort_by_key(|(value, _)| std::cmp::Reverse(value.len())));
        let mut to_compare = COMPARED;
        let found = |at: usize, to_compare: &mut usize| {
            let values = by_start.get(&start(&text.as_bytes()[at..])?)?;
            values.iter().find(|(value, _)| stands_at(text, at, value, to_compare))
        };
        let mut shown = String::new();
        let mut left = LONGEST;
        // One may begin within another: hidden is what belongs to any of them.
        let mut hidden = 0;
        for (at, char) in text.char_indices() {
            if left == 0 || to_compare == 0 {
                return format!("{shown}...({})", text[at..].chars().count());
            }
            let value = found(at, &mut to_compare);
            if at >= hidden {
                let (piece, chars) = match value {
                    Some((_, name)) => (*name, name.chars().count()),
                    None => (&text[at..at + char.len_utf8()], 1),
                };
                shown.push_str(piece);
                left = left.saturating_sub(chars);
            }
            if let Some((value, _)) = value {
                hidden = hidden.max(at + value.len());
            }
        }
        shown
    }
}

/// What values are found by.
fn start(text: &[u8]) -> Option<[u8; SHORTEST]> {
    let start: [u8; SHORTEST] = text.get(..SHORTEST)?.try_into().ok()?;
    Some(start.map(|byte| byte.to_ascii_lowercase()))
}

/// A value, whatever its case; a short one only as a word of its own. Takes what it compares off `to_compare`.
fn stands_at(text: &str, at: usize, value: &str, to_compare: &mut usize) -> bool {
    let end = at + value.len();
    let pairs = text.as_bytes()[at..].iter().zip(value.as_bytes());
    let alike = pairs.take_while(|(there, byte)| there.eq_ignore_ascii_case(byte)).count();
    *to_compare = to_compare.saturating_sub(alike + 1);
    let same = alike == value.len();
    let is_word = |char: char| char.is_alphanumeric() || char == '_';
    let alone = || !text[..at].ends_with(is_word) && !text[end..].starts_with(is_word);
    same && (value.len() >= WITHIN_WORDS || alone())
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
        let identifiers = [identifier.to_owned()];
        let what = What { env: Some(&env), identifiers: &identifiers, ..What::bare("command", &sid) };
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
        let what = What::bare("command", &sid);
        let said = format!("{}{}{}", "x".repeat(LONGEST - 5), "0ur-secret", "y".repeat(4 << 20));
        let text = what.scrubbed(said, Some(&"0ur-secret".into()));
        assert!(!text.contains("0ur-") && text.len() < LONGEST + 20, "{} bytes", text.len());
    }

    /// What one call carried, and errors that quote it.
    #[test]
    fn row_19_short_values_values_in_json_and_identifiers_of_the_connection_are_hidden() {
        let sid = Sid::from("k3Jq_-0123456789abcde");
        let env = proto::Env {
            url: "http://h/cable?tok=QQQQQQQQQQ12&enc=a%2Fb%2Bc%3DSECRET99&code=7777&L0NEVALUE".into(),
            headers: [
                ("cookie", "pin=49217; s7=SEVENAB; enc=a%20c00kie%20value; st=%7B%22k%22%3A%22INC00KIE1%22%7D"),
                ("authorization", r#"Token token="T0KENVALUE", nonce=N0NCEVALUE"#),
                ("x-otp", "731942"),
                ("x-json", r#"{"token":"JSONSECRET555","in":{"n":[46464646,"{\"deep\":\"DEEPSECRET\"}"]}}"#),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
            cstate: [("key".to_owned(), "CSTATEVALUE".to_owned())].into(),
            istate: [("key".to_owned(), r#"{"$w":"ISTATEVALUE"}"#.to_owned())].into(),
        };
        let identifiers = [r#"{"channel":"ChatChannel","room":"ROOMSECRET11","seat":1234}"#.to_owned()];
        let what = What {
            env: Some(&env),
            identifiers: &identifiers,
            connection: r#"{"u":"CONNIDENT1234567","id":98765}"#,
            data: r#"{"action":"speak","password":"pa55word","pin":60606}"#,
            ..What::bare("command", &sid)
        };
        for carried in [
            "QQQQQQQQQQ12",
            "a/b+c=SECRET99",
            "a%2Fb%2Bc%3DSECRET99",
            "7777",
            "L0NEVALUE",
            "49217",
            "SEVENAB",
            "a c00kie value",
            "INC00KIE1",
            "T0KENVALUE",
            "N0NCEVALUE",
            "731942",
            "JSONSECRET555",
            "46464646",
            "DEEPSECRET",
            "CSTATEVALUE",
            "ISTATEVALUE",
            "ROOMSECRET11",
            "1234",
            "CONNIDENT1234567",
            "98765",
            "pa55word",
            "60606",
        ] {
            for form in [carried.to_owned(), carried.to_lowercase(), carried.to_uppercase()] {
                for said in [format!("bad {form}"), format!("{form}: no"), format!("<{form}>"), format!("'{form}'.")] {
                    let text = what.scrubbed(said.clone(), None);
                    assert_eq!(text, said.replace(&form, "***"));
                }
            }
            if carried.len() >= 8 {
                assert_eq!(what.scrubbed(format!("is{carried}not"), None), "is***not");
            }
        }
        // All of the call, as JSON within JSON.
        let whole = serde_json::to_string(&serde_json::json!({
            "headers": env.headers, "url": env.url, "identifier": identifiers[0], "data": what.data,
            "all": serde_json::to_string(&env).unwrap(),
        }));
        let text = what.scrubbed(whole.unwrap(), None);
        for part in ["QQQ", "SECRET", "7777", "49217", "SEVENAB", "c00kie", "KIE1", "VALUE", "731942", "6464", "pa55"] {
            assert!(!text.contains(part), "{part}: {text}");
        }
        // Names, the action, and what only looks alike stay.
        for said in ["no ChatChannel", "cookie pin", "cannot speak", "17777 of 777", "line 123", "x1234y", "SEVENABC"] {
            assert_eq!(what.scrubbed(said.into(), None), said);
        }
    }

    #[test]
    fn row_19_a_value_is_hidden_as_json_has_it_within_a_text() {
        let sid = Sid::from("k3Jq_-0123456789abcde");
        let what = What { data: r#"{"action":"speak","word":"pa55\\w\"ord"}"#, ..What::bare("command", &sid) };
        for (said, shown) in [(r#"no pa55\w"ord"#, "no ***"), (r#"no "pa55\\w\"ord""#, r#"no "***""#)] {
            assert_eq!(what.scrubbed(said.into(), None), shown);
        }
    }

    /// Each of its places looks like what the call carried, almost to its end.
    #[test]
    fn row_19_an_error_that_resembles_a_value_everywhere_is_looked_through_in_bounded_time() {
        let sid = Sid::from("k3Jq_-0123456789abcde");
        let value = "a".repeat(4 << 20);
        let data = format!(r#"{{"action":"speak","text":"{value}"}}"#);
        let what = What { data: &data, ..What::bare("command", &sid) };
        let begun = std::time::Instant::now();
        assert_eq!(what.scrubbed(format!("no {value}"), None), format!("no ***...({})", value.len() - 2));
        let nearly = format!("no {}b {value}, sorry", &value[1..]);
        let text = what.scrubbed(nearly, None);
        assert!(text.starts_with("no a") && text.len() < LONGEST + 20, "{text}");
        assert!(begun.elapsed().as_secs() < 60, "{:?}", begun.elapsed());
    }

    #[test]
    fn row_19_values_that_overlap_are_hidden_whole() {
        let sid = Sid::from("k3Jq_-0123456789abcde");
        let env =
            proto::Env { url: "http://h/cable?a=abcdefghij&b=ghijKLMNOP&c=abcdefgh".into(), ..proto::Env::default() };
        let what = What { env: Some(&env), ..What::bare("connect", &sid) };
        assert_eq!(what.scrubbed("no abcdefghijKLMNOP or abcdefgh, ж".into(), None), "no *** or ***, ж");
    }
}
