use super::*;
use proptest::prelude::*;

fn one(body: &str) -> Publication {
    match parse(body.as_bytes(), None) {
        Ok(Payload::One(publication)) => publication,
        other => panic!("{body}: {other:?}"),
    }
}

fn items(body: &str, key: Option<&str>) -> Vec<Publication> {
    match parse(body.as_bytes(), key) {
        Ok(Payload::Batch(items)) => items,
        other => panic!("{body}: {other:?}"),
    }
}

fn reason(body: &str) -> String {
    match parse(body.as_bytes(), None) {
        Err(Malformed(reason)) => reason,
        Ok(payload) => panic!("{body}: {payload:?}"),
    }
}

#[test]
fn single_publication() {
    let body = r#" {"stream":"orders/9","data":"{\"state\":\"paid\"}","meta":{"exclude_socket":"k3Jq"}} "#;
    let publication = one(body);
    assert_eq!(publication.stream.as_str(), "orders/9");
    assert_eq!(publication.data, r#"{"state":"paid"}"#);
    assert_eq!(publication.meta.exclude_socket, Some("k3Jq".into()));
    assert_eq!(publication.meta.broadcast_type, None);
    assert!(!publication.transient);
}

#[test]
fn all_of_meta() {
    let publication = one(r#"{"stream":"a","data":"1","meta":{"transient":true,"broadcast_type":"news","x":[]}}"#);
    assert!(publication.transient);
    assert_eq!(publication.meta.broadcast_type.as_deref(), Some("news"));
    let nothing =
        one(r#"{"stream":"a","data":"","meta":{"transient":null,"broadcast_type":"","exclude_socket":"","id":null}}"#);
    assert_eq!((nothing.meta, nothing.transient), (Meta::default(), false));
    assert_eq!(one(r#"{"stream":"a","data":"1","meta":null}"#).meta, Meta::default());
}

#[test]
fn names_and_data_are_any_text() {
    let publication =
        one("{\"stream\":\"a b.*>/\\u0041\\n😀\",\"data\":\"\\\"x\\\" 😀\",\"offset\":7,\"epoch\":\"e\"}");
    assert_eq!(publication.stream.as_str(), "a b.*>/A\n😀");
    assert_eq!(publication.data, "\"x\" 😀".as_bytes());
}

#[test]
fn unknown_and_repeated_fields_are_tolerated() {
    let publication = one(r#"{"stream":7,"x":{"y":[1e999]},"stream":"b","data":"1","\u0064ata":"2"}"#);
    assert_eq!((publication.stream.as_str(), &publication.data[..]), ("b", &b"2"[..]));
}

#[test]
fn batch_keeps_its_order() {
    let items = items(r#"[{"stream":"a","data":"1"},{"stream":"b","data":"\"x\""},{"stream":"a","data":"2"}]"#, None);
    let seen: Vec<_> = items.iter().map(|item| (item.stream.as_str(), &item.data[..])).collect();
    assert_eq!(seen, [("a", &b"1"[..]), ("b", b"\"x\""), ("a", b"2")]);
}

#[test]
fn remote_commands() {
    let body = r#"{"command":"disconnect","payload":{"identifier":"{\"user_id\":\"42\"}","reconnect":true}}"#;
    let Ok(Payload::Disconnect(command)) = parse(body.as_bytes(), None) else { panic!() };
    assert_eq!(command, RemoteDisconnect { identifiers: r#"{"user_id":"42"}"#.to_owned(), reconnect: true });
    let body = r#"{"command":"disconnect","stream":"","payload":{"identifier":"x"}}"#;
    let Ok(Payload::Disconnect(command)) = parse(body.as_bytes(), None) else { panic!() };
    assert!(!command.reconnect);
    let Ok(Payload::OtherCommand(name)) = parse(br#"{"command":"refresh"}"#, None) else { panic!() };
    assert_eq!(name, "refresh");
}

#[test]
fn malformed_payloads_say_why() {
    let cases = [
        ("", "the body is empty"),
        ("  ", "the body is empty"),
        ("7", "must be a JSON object"),
        ("\"a\"", "must be a JSON object"),
        ("{}", "neither a \"stream\" nor a \"command\""),
        ("{\"stream\":\"a\"", "not JSON: EOF"),
        ("{\"stream\":\"a\",\"data\":\"1\"} x", "not JSON: trailing characters"),
        (r#"{"stream":"","data":"1"}"#, "stream must not be empty"),
        (r#"{"stream":7,"data":"1"}"#, "stream must be a string, not a number"),
        (r#"{"stream":null,"data":"1","command":""}"#, "stream must be a string, not null"),
        (r#"{"stream":"a"}"#, "data is missing"),
        (r#"{"stream":"a","data":{"b":1}}"#, "data must be a string, not an object"),
        (r#"{"stream":"a","data":null}"#, "data must be a string, not null"),
        (r#"{"stream":"a","data":"\ud800"}"#, "data is a string with an invalid escape"),
        (r#"{"stream":"a","data":"1","meta":[]}"#, "meta must be an object, not an array"),
        (r#"{"stream":"a","data":"1","meta":{"transient":1}}"#, "meta.transient must be true or false"),
        (r#"{"stream":"a","data":"1","meta":{"id":""}}"#, "meta.id must not be empty"),
        (r#"{"stream":"a","data":"1","meta":{"id":5}}"#, "meta.id must be a string, not a number"),
        ("[]", "the batch is empty"),
        (r#"[7]"#, "[0] must be an object with a \"stream\", not a number"),
        (r#"[{"stream":"a","data":"1"},{"stream":"b","data":true}]"#, "[1].data must be a string, not a boolean"),
        (r#"[{"stream":"a","data":"1"},{"command":"disconnect"}]"#, "[1].stream is missing"),
        (r#"{"command":"disconnect"}"#, "payload must be an object"),
        (r#"{"command":"disconnect","payload":{}}"#, "payload.identifier must be a non-empty string"),
        (r#"{"command":"disconnect","payload":{"identifier":"a","reconnect":1}}"#, "payload.reconnect must be true"),
    ];
    for (body, expected) in cases {
        let reason = reason(body);
        assert!(reason.contains(expected), "{body}\n  says {reason:?}\n  not  {expected:?}");
    }
    assert_eq!(parse(b"{\"stream\":\"\xff\"}", None).unwrap_err().0, "the body is not UTF-8 text");
}

#[test]
fn a_name_beyond_the_limit_is_refused() {
    let body = |len: usize| format!(r#"{{"stream":"{}","data":"1"}}"#, "n".repeat(len));
    assert_eq!(one(&body(MAX_STREAM_NAME)).stream.as_str().len(), MAX_STREAM_NAME);
    assert_eq!(reason(&body(MAX_STREAM_NAME + 1)), "stream of 32769 bytes exceeds the limit of 32768 bytes");
}

/// Decision: types of the protocol itself are refused.
#[test]
fn protocol_types_are_refused() {
    for name in ["welcome", "disconnect", "ping", "pong", "presence", "confirm_subscription", "reject_history"] {
        let reason = reason(&format!(r#"{{"stream":"a","data":"1","meta":{{"broadcast_type":"{name}"}}}}"#));
        assert!(reason.starts_with("meta.broadcast_type"), "{name}: {reason}");
    }
}

#[test]
fn keys_make_ids() {
    let id = |stream: &str, key: &str, place| MessageId::from_key(&StreamName::from(stream), key, place);
    let body = r#"[{"stream":"a","data":"1"},{"stream":"a","data":"1"},{"stream":"a","data":"1","meta":{"id":"own"}}]"#;
    let ids: Vec<_> = items(body, Some("k")).iter().map(|item| item.id).collect();
    assert_eq!(ids, [id("a", "k", 0), id("a", "k", 1), id("a", "own", 0)]);
    let Ok(Payload::One(single)) = parse(br#"{"stream":"a","data":"1"}"#, Some("k")) else { panic!() };
    assert_eq!(single.id, id("a", "k", 0));
    assert_ne!(one(r#"{"stream":"a","data":"1"}"#).id, one(r#"{"stream":"a","data":"1"}"#).id);
}

#[test]
fn deep_nesting_does_not_exhaust_the_stack() {
    let deep = "[".repeat(500_000);
    assert!(parse(deep.as_bytes(), None).is_err());
    assert!(parse(format!(r#"{{"stream":"a","data":"1","x":{deep}}}"#).as_bytes(), None).is_err());
    let closed = format!("{}{}", "[".repeat(5_000), "]".repeat(5_000));
    assert_eq!(one(&format!(r#"{{"stream":"a","data":"1","x":{closed}}}"#)).data, "1");
}

/// Text near the grammar: pieces of valid payloads in any order.
fn fragments() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "\"stream\"",
        "\"data\"",
        "\"meta\"",
        "\"command\"",
        "\"disconnect\"",
        "\"payload\"",
        "\"identifier\"",
        "\"id\"",
        "\"a\"",
        "\"\"",
        "\"\\u00",
        "\\",
        "\"",
        "null",
        "true",
        "1e9",
        " ",
        "{\"stream\":\"a\",\"data\":\"1\"}",
        "\u{0}",
        "é",
    ]);
    prop::collection::vec(pieces, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn any_bytes_are_answered(body in prop::collection::vec(any::<u8>(), 0..120)) {
        if let Err(Malformed(reason)) = parse(&body, Some("key")) {
            prop_assert!(!reason.is_empty());
        }
    }

    #[test]
    fn near_json_is_answered(body in fragments()) {
        match parse(body.as_bytes(), None) {
            Err(Malformed(reason)) => prop_assert!(!reason.is_empty()),
            Ok(Payload::One(item)) => prop_assert!(!item.stream.as_str().is_empty()),
            Ok(Payload::Batch(items)) => prop_assert!(!items.is_empty()),
            Ok(Payload::Disconnect(command)) => prop_assert!(!command.identifiers.is_empty()),
            Ok(Payload::OtherCommand(name)) => prop_assert!(!name.is_empty()),
        }
    }

    #[test]
    fn any_text_survives(stream in "\\PC{1,20}|[\\x00-\\x7f]{1,20}", data in any::<String>()) {
        let body = serde_json::json!({"stream": stream, "data": data}).to_string();
        let publication = one(&body);
        prop_assert_eq!(publication.stream.as_str(), stream);
        prop_assert_eq!(&publication.data[..], data.as_bytes());
    }

    #[test]
    fn data_other_than_text_is_refused(value in "[1-9][0-9]{0,8}|true|false|null|\\[\\]|\\{\\}", at in 0usize..3) {
        let item = |index| if index == at { format!(r#"{{"stream":"a","data":{value}}}"#) } else {
            r#"{"stream":"a","data":"1"}"#.to_owned()
        };
        let body = format!("[{},{},{}]", item(0), item(1), item(2));
        let start = format!("[{at}].data must be a string");
        prop_assert!(reason(&body).starts_with(&start));
    }
}
