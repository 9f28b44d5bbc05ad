//! Who is let in.

use super::*;
use crate::auth::Secrets;
use crate::auth::jwt::JwtConfig;

const CHAT: &str = r#"{"channel":"Chat"}"#;
const UNAUTHORIZED: &str = r#"{"type":"disconnect","reason":"unauthorized","reconnect":false}"#;

fn closed(code: u16, reason: &str) -> serde_json::Value {
    serde_json::json!({ "close": code, "reason": reason })
}

#[tokio::test(start_paused = true)]
async fn the_application_lets_in_by_what_the_request_says_and_its_welcome_goes_out_verbatim() {
    let app = Script::on_connect(|sid, _| {
        let mut connected = welcome(sid, "u");
        connected.transmissions.push(r#"{"type":"extra",  "n":1.10}"#.into());
        Ok(connected)
    });
    let cluster = Cluster::new(app);
    let headers = state(&[("cookie", "a=1"), ("REMOTE_ADDR", "10.0.0.9")]);
    let asked = Asked { url: "http://ws.acme.test/cable?x=1".into(), headers: headers.clone(), token: None };
    let (mut browser, sid) = cluster.welcomed_with(0, Hello { asked: Some(Arc::new(asked)), ..hello(None) }).await;
    assert_eq!(browser.next().await, json(r#"{"type":"extra","n":1.10}"#));
    let env = Env { url: "http://ws.acme.test/cable?x=1".into(), headers, ..Env::default() };
    assert_eq!(cluster.app.calls(), [Call::Connect(sid, env)]);
}

#[tokio::test(start_paused = true)]
async fn refused_by_the_application_with_or_without_a_word() {
    for transmissions in [vec![UNAUTHORIZED.to_owned()], vec![]] {
        let said = transmissions.clone();
        let app = Script::on_connect(move |sid, _| {
            Ok(Connected { outcome: Outcome::Failure, transmissions: said.clone(), ..welcome(sid, "u") })
        });
        let cluster = Cluster::new(app);
        let mut browser = cluster.connect();
        for transmission in &transmissions {
            assert_eq!(browser.next().await, json(transmission));
        }
        assert_eq!(browser.next().await, closed(1000, "Auth Failed"));
        assert!(cluster.nodes[0].registry.is_empty());
        tokio::time::sleep(SECOND).await;
        assert_eq!(cluster.app.calls().len(), 1, "who was never in does not leave");
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_application_closes_without_a_message() {
    for error in [RpcError::Application("boom".into()), RpcError::Timeout, RpcError::Unreachable("down".into())] {
        let cluster = Cluster::new(Script::on_connect(move |_, _| Err(error.clone())));
        assert_eq!(cluster.connect().next().await, closed(1011, "Auth Error"));
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_is_let_in_without_anybody_to_ask() {
    let cluster = Cluster::with(Script::default(), Setup { no_application: true, ..Setup::default() });
    let mut browser = cluster.connect();
    assert_eq!(browser.next().await, json(UNAUTHORIZED));
    assert_eq!(browser.next().await, closed(1000, "Auth Failed"));
}

#[tokio::test(start_paused = true)]
async fn without_authentication_the_application_only_serves_channels() {
    let cluster = Cluster::with(Script::default(), Setup { noauth: true, ..Setup::default() });
    let (mut browser, sid) = cluster.welcomed().await;
    browser.subscribed(CHAT).await;
    let commands = cluster.app.commands();
    assert_eq!(cluster.app.calls().len(), 1);
    assert_eq!(commands[0].connection_identifiers, format!(r#"{{"sid":"{sid}"}}"#));
}

#[tokio::test(start_paused = true)]
async fn a_remote_disconnect_while_the_application_thinks_is_not_missed() {
    let cluster = Cluster::new(Script::default());
    cluster.app.slow(SECOND);
    let mut browser = cluster.connect();
    eventually("the application is asked", || !cluster.app.calls().is_empty()).await;
    cluster.disconnect("{\"user\":\"5\"}").await;
    assert_eq!(browser.next().await, json(r#"{"type":"disconnect","reason":"remote","reconnect":true}"#));
    assert!(cluster.nodes[0].registry.is_empty());
    eventually("the application hears of it", || cluster.app.disconnects().len() == 1).await;
    cluster.app.slow(Duration::ZERO);
    cluster.welcomed().await;
}

const SECRET: &str = "orchid-lantern-42";
const VALID: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6NDJ9IiwiZXhwIjo0MTAyNDQ0ODAwfQ.vkjG3v4fpEgrIqIyh6Zvc0a4tC8M3NGfJ2i5yJ9CSew";
const EXPIRED: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6NDJ9IiwiZXhwIjoxNTAwMDAwMDAwfQ.AqRo3S7MdXae_A3rfzToPG0lbRg2w9K-HrP1pMYAMcc";

pub fn tokens() -> JwtConfig {
    JwtConfig { secrets: Secrets::parse(SECRET), ..JwtConfig::default() }
}

pub fn with_token(restore: Option<&str>, token: Option<&str>) -> Hello {
    let asked = Asked { token: token.map(Into::into), ..Asked::default() };
    Hello { asked: Some(Arc::new(asked)), ..hello(restore) }
}

/// A token of the test's secret.
pub fn token(claims: serde_json::Value) -> String {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use hmac::Mac;
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let signed = format!("{}.{}", encode(r#"{"alg":"HS256"}"#), encode(&claims.to_string()));
    let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}

#[tokio::test(start_paused = true)]
async fn a_valid_token_needs_no_application_but_its_channels_do() {
    let cluster = Cluster::with(Script::default(), Setup { jwt: Some(tokens()), ..Setup::default() });
    let (mut browser, _) = cluster.welcomed_with(0, with_token(None, Some(VALID))).await;
    assert!(cluster.app.calls().is_empty());
    browser.subscribed(CHAT).await;
    assert_eq!(cluster.app.commands()[0].connection_identifiers, r#"{"user_id":42}"#);
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_with_a_token_is_said() {
    let expired = r#"{"type":"disconnect","reason":"token_expired","reconnect":false}"#;
    let nobody = token(serde_json::json!({ "exp": 4_102_444_800u64 }));
    let cases: [(&str, Option<&str>, u16, &str); 4] = [
        (EXPIRED, Some(expired), 1000, "Auth Failed"),
        (&VALID[..VALID.len() - 2], Some(UNAUTHORIZED), 1000, "Auth Failed"),
        ("nonsense", Some(UNAUTHORIZED), 1000, "Auth Failed"),
        (&nobody, None, 1011, "Auth Error"),
    ];
    let cluster = Cluster::with(Script::default(), Setup { jwt: Some(tokens()), ..Setup::default() });
    for (token, message, code, reason) in cases {
        let mut browser = cluster.connect_with(0, with_token(None, Some(token)));
        if let Some(message) = message {
            assert_eq!(browser.next().await, json(message), "{token}");
        }
        assert_eq!(browser.next().await, closed(code, reason), "{token}");
    }
    assert!(cluster.app.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn without_a_token_the_application_is_asked_unless_tokens_are_enforced() {
    let cluster = Cluster::with(Script::default(), Setup { jwt: Some(tokens()), ..Setup::default() });
    cluster.welcomed_with(0, with_token(None, None)).await;
    assert_eq!(cluster.app.calls().len(), 1);
    let enforced = JwtConfig { enforced: true, ..tokens() };
    let cluster = Cluster::with(Script::default(), Setup { jwt: Some(enforced), ..Setup::default() });
    let mut browser = cluster.connect_with(0, with_token(None, None));
    assert_eq!(browser.next().await, json(UNAUTHORIZED));
    assert!(cluster.app.calls().is_empty());
}
