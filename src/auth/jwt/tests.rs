//! Vectors, rejections, families, rotation, files.

use super::*;
use crate::secret::Secret;
use proptest::prelude::*;
use ring::rand::SystemRandom;
use ring::{hmac, signature};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use std::path::Path;
use std::sync::LazyLock;

const ORCHID: &str = "orchid-lantern-42";
const NOW: u64 = 1_700_000_000;

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/jwt").join(name)
}

fn hmac_only(secrets: &str) -> Jwt {
    Jwt::new(JwtConfig { secrets: Secrets::parse(secrets), ..JwtConfig::default() }).unwrap()
}

fn pem(name: &str) -> Jwt {
    Jwt::new(JwtConfig { key_file: Some(testdata(name)), ..JwtConfig::default() }).unwrap()
}

fn jwks() -> Jwt {
    Jwt::new(JwtConfig { jwks_file: Some(testdata("jwks.json")), ..JwtConfig::default() }).unwrap()
}

/// A file with this text, as key file or as JWKS file.
fn from_text(text: &str, jwks: bool) -> Result<Jwt, JwtStartError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let path = Some(file.path().to_owned());
    let (key_file, jwks_file) = if jwks { (None, path) } else { (path, None) };
    Jwt::new(JwtConfig { key_file, jwks_file, ..JwtConfig::default() })
}

fn text(name: &str) -> String {
    std::fs::read_to_string(testdata(name)).unwrap()
}

enum Signer {
    Hmac(hmac::Key),
    Rsa(signature::RsaKeyPair),
    Ec(signature::EcdsaKeyPair),
    Ed(signature::Ed25519KeyPair),
}

impl Signer {
    fn hmac(algorithm: hmac::Algorithm, secret: &str) -> Self {
        Self::Hmac(hmac::Key::new(algorithm, secret.as_bytes()))
    }

    fn file(name: &str) -> Self {
        let PrivateKeyDer::Pkcs8(der) = PrivateKeyDer::from_pem_file(testdata(name)).unwrap() else {
            panic!("{name} is not PKCS #8")
        };
        let der = der.secret_pkcs8_der();
        match name.split(['.', '-']).next().unwrap() {
            "rsa" => Self::Rsa(signature::RsaKeyPair::from_pkcs8(der).unwrap()),
            "ec" => {
                let algorithm = &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
                Self::Ec(signature::EcdsaKeyPair::from_pkcs8(algorithm, der, &SystemRandom::new()).unwrap())
            }
            _ => Self::Ed(signature::Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).unwrap()),
        }
    }

    /// A token of exactly this header and these claims.
    fn token(&self, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = match self {
            Self::Hmac(key) => hmac::sign(key, signed.as_bytes()).as_ref().to_vec(),
            Self::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                let random = SystemRandom::new();
                pair.sign(&signature::RSA_PKCS1_SHA256, &random, signed.as_bytes(), &mut signature).unwrap();
                signature
            }
            Self::Ec(pair) => pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap().as_ref().to_vec(),
            Self::Ed(pair) => pair.sign(signed.as_bytes()).as_ref().to_vec(),
        };
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

const EXT: &str = r#"{"ext":"{\"user_id\":42}"}"#;

fn claims(exp: Option<u64>) -> Claims {
    Claims { ext: r#"{"user_id":42}"#.to_owned(), exp }
}

/// HS256 with the usual secret.
fn verify(claims: &str) -> Result<Claims, TokenFault> {
    let token = Signer::hmac(hmac::HMAC_SHA256, ORCHID).token(r#"{"alg":"HS256"}"#, claims);
    hmac_only(ORCHID).verify(&token, NOW)
}

fn is_unauthorized<T>(outcome: &Result<T, TokenFault>) -> bool {
    matches!(outcome, Err(TokenFault::Unauthorized(_)))
}

const VALID: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6NDJ9IiwiZXhwIjo0MTAyNDQ0ODAwfQ.vkjG3v4fpEgrIqIyh6Zvc0a4tC8M3NGfJ2i5yJ9CSew";

// Vectors

#[test]
fn tokens_of_the_sdks_verify() {
    let expired = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6NDJ9IiwiZXhwIjoxNTAwMDAwMDAwfQ.AqRo3S7MdXae_A3rfzToPG0lbRg2w9K-HrP1pMYAMcc";
    let alpha = "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6XCIxNVwifSIsImV4cCI6NDEwMjQ0NDgwMH0.HLh_5UNtY2s8A-ijCe_jW89lxBPXhMOV7WcHjyMOQq0";
    let jwt = hmac_only(ORCHID);
    assert_eq!(jwt.verify(VALID, NOW), Ok(claims(Some(4_102_444_800))));
    assert_eq!(jwt.verify(expired, NOW), Err(TokenFault::Expired));
    assert_eq!(jwt.verify(expired, 1_499_999_999), Ok(claims(Some(1_500_000_000))));
    let identity = Claims { ext: r#"{"user_id":"15"}"#.to_owned(), exp: Some(4_102_444_800) };
    assert_eq!(hmac_only("s3cr3t-alpha").verify(alpha, NOW), Ok(identity));
}

#[test]
fn tokens_made_here_are_those_of_the_sdks() {
    let secret = Secret::from(ORCHID);
    assert_eq!(sign(&secret, r#"{"user_id":42}"#, Some(4_102_444_800)), VALID);
    assert_eq!(hmac_only(ORCHID).verify(&sign(&secret, r#"{"user_id":42}"#, None), u64::MAX), Ok(claims(None)));
}

/// RFC 7515 appendix A.3 and RFC 8037 appendix A.4; their payloads are no identifiers.
#[test]
fn tokens_of_the_rfcs_are_authentic() {
    let es256 = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    let key = r#"{"keys":[{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;
    let jwt = from_text(key, true).unwrap();
    assert_eq!(jwt.verify(es256, 1_300_819_379), Err(TokenFault::NoIdentifiers));
    assert_eq!(jwt.verify(es256, 1_300_819_380), Err(TokenFault::Expired));

    let eddsa = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    let key = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    let jwt = from_text(key, true).unwrap();
    assert_eq!(jwt.verify(eddsa, NOW), Err(TokenFault::Unauthorized("claims are not a JSON object")));
}

#[test]
fn a_token_signed_by_openssl_verifies() {
    assert_eq!(pem("rsa.pem").verify(text("rs256.txt").trim(), NOW), Ok(claims(None)));
}

// Times and claims

#[test]
fn expiry_has_no_leeway() {
    let exp = |exp: &str| verify(&format!(r#"{{"ext":"a","exp":{exp}}}"#)).map(|claims| claims.exp);
    assert_eq!(exp("1700000001"), Ok(Some(NOW + 1)));
    for over in ["1700000000", "1699999999", "0", "-5", "-0.5", "1.6e9"] {
        assert_eq!(exp(over), Err(TokenFault::Expired), "{over}");
    }
    assert_eq!(exp("1700000000.5"), Ok(Some(NOW + 1)), "now is less");
    assert_eq!(exp("1e300"), Ok(Some(u64::MAX)));
    for no_time in ["null", "\"4102444800\"", "true", "[]"] {
        assert!(is_unauthorized(&exp(no_time)), "{no_time}");
    }
    assert_eq!(verify(r#"{"ext":"a"}"#).unwrap().exp, None);
}

#[test]
fn not_before_has_no_leeway_and_expiry_comes_first() {
    let nbf = |nbf: &str| verify(&format!(r#"{{"ext":"a","nbf":{nbf}}}"#));
    assert!(nbf("1700000000").is_ok() && nbf("0").is_ok());
    for later in ["1700000001", "1700000000.5", "null", "\"0\""] {
        assert!(is_unauthorized(&nbf(later)), "{later}");
    }
    assert_eq!(verify(r#"{"ext":"a","nbf":1700000001,"exp":1}"#), Err(TokenFault::Expired));
}

#[test]
fn identifiers_are_a_string() {
    for claims in ["{}", r#"{"ext":null}"#, r#"{"ext":{"user_id":42}}"#, r#"{"ext":42}"#, r#"{"Ext":"a"}"#] {
        assert_eq!(verify(claims), Err(TokenFault::NoIdentifiers), "{claims}");
    }
    for claims in ["", "[]", "\"a\"", "null", "{", "{}}"] {
        assert!(is_unauthorized(&verify(claims)), "{claims}");
    }
    let others = r#"{"ext":"é\u0000","iat":"x","iss":1,"aud":[],"sub":{}}"#;
    assert_eq!(verify(others).unwrap().ext, "é\0");
}

/// RFC 7519 §4 lets a reader choose between refusing and the last one; the SDKs' readers take the last one. In the header,
/// which says how to verify, nothing is ambiguous.
#[test]
fn of_a_repeated_claim_the_last_counts_and_a_repeated_header_field_is_refused() {
    assert_eq!(verify(r#"{"ext":"a","ext":"b"}"#).unwrap().ext, "b");
    assert_eq!(verify(r#"{"ext":"a","exp":1800000000,"exp":1}"#), Err(TokenFault::Expired));
    assert_eq!(verify(r#"{"ext":"a","ext":null}"#), Err(TokenFault::NoIdentifiers));
    let signer = Signer::hmac(hmac::HMAC_SHA256, ORCHID);
    for header in [r#"{"alg":"HS256","alg":"HS256"}"#, r#"{"alg":"HS256","kid":"a","kid":"b"}"#] {
        assert!(is_unauthorized(&hmac_only(ORCHID).verify(&signer.token(header, EXT), NOW)), "{header}");
    }
}

#[test]
fn ruling_24_an_expired_session_is_restored_only_if_asked_for() {
    let config = JwtConfig { secrets: Secrets::parse("a"), ..JwtConfig::default() };
    let strict = Jwt::new(config.clone()).unwrap();
    assert!(strict.may_restore(None, NOW) && strict.may_restore(Some(NOW + 1), NOW));
    assert!(!strict.may_restore(Some(NOW), NOW));
    let lenient = Jwt::new(JwtConfig { restore_expired: true, ..config }).unwrap();
    assert!(lenient.may_restore(Some(NOW), NOW));
}

// Rejections

#[test]
fn changed_tokens_are_refused() {
    let jwt = hmac_only(ORCHID);
    let parts: Vec<_> = VALID.split('.').collect();
    let forged = [
        String::new(),
        ".".to_owned(),
        "..".to_owned(),
        VALID[..VALID.len() - 1].to_owned(),
        VALID[..VALID.len() - 4].to_owned(),
        format!("{}.{}", parts[0], parts[1]),
        format!("{}.{}.", parts[0], parts[1]),
        format!("{VALID}."),
        format!("{VALID}.{}", parts[2]),
        format!("{VALID}="),
        format!(" {VALID}"),
        format!("{VALID}\n"),
        format!("Bearer {VALID}"),
        VALID.to_uppercase(),
        format!("{}.{}.{}", parts[0], parts[2], parts[1]),
    ];
    for token in forged {
        assert!(is_unauthorized(&jwt.verify(&token, NOW)), "{token:?}");
    }
}

#[test]
fn only_base64url_without_padding_is_read() {
    let signer = Signer::hmac(hmac::HMAC_SHA256, ORCHID);
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#);
    let with_payload = |payload: String| {
        let signed = format!("{header}.{payload}");
        let Signer::Hmac(key) = &signer else { unreachable!() };
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(hmac::sign(key, signed.as_bytes())))
    };
    let claims = r#"{"ext":"ÿ>>>???"}"#;
    let url_safe = URL_SAFE_NO_PAD.encode(claims);
    let standard = base64::engine::general_purpose::STANDARD_NO_PAD.encode(claims);
    assert_ne!(url_safe, standard);
    let jwt = hmac_only(ORCHID);
    assert_eq!(jwt.verify(&with_payload(url_safe.clone()), NOW).unwrap().ext, "ÿ>>>???");
    assert!(is_unauthorized(&jwt.verify(&with_payload(standard), NOW)));
    assert!(is_unauthorized(&jwt.verify(&with_payload(format!("{url_safe}=")), NOW)));
    // A signature in the other alphabet, too.
    let token = (0..).map(|n| signer.token(r#"{"alg":"HS256"}"#, &format!(r#"{{"ext":"{n}"}}"#)));
    let token = token.into_iter().find(|token| token.rsplit('.').next().unwrap().contains(['-', '_'])).unwrap();
    assert!(jwt.verify(&token, NOW).is_ok());
    assert!(is_unauthorized(&jwt.verify(&token.replace('-', "+").replace('_', "/"), NOW)));
}

#[test]
fn other_algorithms_are_refused() {
    let signer = Signer::hmac(hmac::HMAC_SHA256, ORCHID);
    let all = Jwt::new(JwtConfig {
        secrets: Secrets::parse(ORCHID),
        key_file: Some(testdata("rsa.pem")),
        jwks_file: Some(testdata("jwks.json")),
        ..JwtConfig::default()
    })
    .unwrap();
    for algorithm in ["none", "None", "NONE", "", "hs256", "HS1", "RS512", "PS256", "ES384", "ES256K", "HS384"] {
        let signed = signer.token(&format!(r#"{{"alg":"{algorithm}"}}"#), EXT);
        assert!(is_unauthorized(&all.verify(&signed, NOW)), "{algorithm}");
        let (unsigned, _) = signed.rsplit_once('.').unwrap();
        assert!(is_unauthorized(&all.verify(&format!("{unsigned}."), NOW)), "{algorithm}");
    }
    let doubled = r#"{"alg":"none","alg":"HS256"}"#;
    for header in [doubled, "{}", "[]", r#"{"alg":null}"#, r#"{"alg":["HS256"]}"#, r#"{"alg":"HS256","kid":7}"#] {
        assert!(is_unauthorized(&all.verify(&signer.token(header, EXT), NOW)), "{header}");
    }
    for crit in [r#"["b64"]"#, "[]", "1"] {
        let header = format!(r#"{{"alg":"HS256","b64":false,"crit":{crit}}}"#);
        assert!(is_unauthorized(&all.verify(&signer.token(&header, EXT), NOW)), "{header}");
    }
    assert!(all.verify(&signer.token(r#"{"typ":"at+jwt","alg":"HS256","x":[1]}"#, EXT), NOW).is_ok());
}

#[test]
fn without_a_key_nothing_starts() {
    for secrets in ["", " , ", "none"] {
        let config = JwtConfig { secrets: Secrets::parse(secrets), ..JwtConfig::default() };
        assert!(matches!(Jwt::new(config), Err(JwtStartError::NoKeys)), "{secrets:?}");
    }
    let empty = Signer::hmac(hmac::HMAC_SHA256, "").token(r#"{"alg":"HS256"}"#, EXT);
    for secrets in [ORCHID, ",a,", "none,a"] {
        assert!(is_unauthorized(&hmac_only(secrets).verify(&empty, NOW)), "{secrets}");
    }
}

#[test]
fn oversized_tokens_are_refused_and_the_largest_is_not() {
    let token = |length: usize| {
        let claims = format!(r#"{{"ext":"{}"}}"#, "x".repeat(length));
        Signer::hmac(hmac::HMAC_SHA256, ORCHID).token(r#"{"alg":"HS256"}"#, &claims)
    };
    let jwt = hmac_only(ORCHID);
    let largest = (12_000..13_000).map(token).take_while(|token| token.len() <= MAX_TOKEN).last().unwrap();
    assert!(largest.len() > MAX_TOKEN - 3);
    assert!(jwt.verify(&largest, NOW).is_ok());
    assert!(is_unauthorized(&jwt.verify(&token(12_300), NOW)));
}

// Families and rotation

#[test]
fn each_hmac_length_verifies_with_the_secret() {
    for (name, algorithm) in [("HS256", hmac::HMAC_SHA256), ("HS384", hmac::HMAC_SHA384), ("HS512", hmac::HMAC_SHA512)]
    {
        let token = Signer::hmac(algorithm, "ключ-42").token(&format!(r#"{{"alg":"{name}"}}"#), EXT);
        assert_eq!(hmac_only("ключ-42").verify(&token, NOW), Ok(claims(None)), "{name}");
        assert!(is_unauthorized(&hmac_only("ключ-43").verify(&token, NOW)), "{name}");
    }
}

/// Signers, their algorithm and the name of their key.
static SIGNERS: LazyLock<Vec<(Signer, &str, &str)>> = LazyLock::new(|| {
    vec![
        (Signer::file("rsa.key.pem"), "RS256", "rsa-1"),
        (Signer::file("rsa-next.key.pem"), "RS256", "rsa-2"),
        (Signer::file("ec.key.pem"), "ES256", "ec-1"),
        (Signer::file("ed25519.key.pem"), "EdDSA", "ed-1"),
    ]
});

#[test]
fn each_public_key_verifies_its_own_signer_alone() {
    let files = ["rsa.pem", "rsa-next.pem", "ec.pem", "ed25519.pem"];
    for (place, (signer, algorithm, _)) in SIGNERS.iter().enumerate() {
        let token = signer.token(&format!(r#"{{"alg":"{algorithm}"}}"#), EXT);
        for (other, file) in files.iter().enumerate() {
            assert_eq!(pem(file).verify(&token, NOW).is_ok(), place == other, "{algorithm} by {file}");
        }
        assert_eq!(jwks().verify(&token, NOW), Ok(claims(None)), "without kid each key is tried");
    }
}

/// The classic forgery: a public key, which everybody has, used as an HMAC secret.
#[test]
fn a_public_key_is_no_hmac_secret() {
    let pem_text = text("rsa.pem");
    let jwt = pem("rsa.pem");
    for secret in [pem_text.as_str(), pem_text.trim_end()] {
        for (name, algorithm) in
            [("HS256", hmac::HMAC_SHA256), ("HS512", hmac::HMAC_SHA512), ("RS256", hmac::HMAC_SHA256)]
        {
            let token = Signer::hmac(algorithm, secret).token(&format!(r#"{{"alg":"{name}"}}"#), EXT);
            assert!(is_unauthorized(&jwt.verify(&token, NOW)), "{name}");
        }
    }
    // And a real signature under the name of another family.
    let (signer, ..) = &SIGNERS[0];
    for name in ["HS256", "ES256", "EdDSA"] {
        assert!(is_unauthorized(&jwks().verify(&signer.token(&format!(r#"{{"alg":"{name}"}}"#), EXT), NOW)), "{name}");
    }
}

#[test]
fn a_token_of_another_family_than_the_keys_is_refused() {
    let (rsa, ..) = &SIGNERS[0];
    let rs256 = rsa.token(r#"{"alg":"RS256"}"#, EXT);
    assert!(is_unauthorized(&hmac_only(ORCHID).verify(&rs256, NOW)), "no public key");
    assert_eq!(pem("rsa.pem").verify(&rs256, NOW), Ok(claims(None)));
    for file in ["rsa.pem", "ec.pem", "ed25519.pem"] {
        assert!(is_unauthorized(&pem(file).verify(VALID, NOW)), "{file} is no secret");
    }
}

#[test]
fn the_name_of_a_key_chooses_it() {
    let with_kid = |place: usize, kid: &str| {
        let (signer, algorithm, _) = &SIGNERS[place];
        signer.token(&format!(r#"{{"alg":"{algorithm}","kid":"{kid}"}}"#), EXT)
    };
    for (place, (_, _, kid)) in SIGNERS.iter().enumerate() {
        assert_eq!(jwks().verify(&with_kid(place, kid), NOW), Ok(claims(None)), "{kid}");
        assert!(is_unauthorized(&jwks().verify(&with_kid(place, "other"), NOW)), "{kid}");
    }
    assert!(is_unauthorized(&jwks().verify(&with_kid(0, "rsa-2"), NOW)));
    assert!(is_unauthorized(&jwks().verify(&with_kid(0, "ec-1"), NOW)));
    assert!(pem("rsa.pem").verify(&with_kid(0, "anything"), NOW).is_ok(), "keys of a PEM file have no name");
    let token = Signer::hmac(hmac::HMAC_SHA256, ORCHID).token(r#"{"alg":"HS256","kid":"k"}"#, EXT);
    assert!(hmac_only(ORCHID).verify(&token, NOW).is_ok(), "nor have secrets");
}

#[test]
fn any_of_several_secrets_or_keys_verifies() {
    let old = sign(&Secret::from("old"), "a", None);
    let new = sign(&Secret::from("new"), "a", None);
    let rotating = hmac_only("new, old");
    assert!(rotating.verify(&old, NOW).is_ok() && rotating.verify(&new, NOW).is_ok());
    assert!(is_unauthorized(&hmac_only("new").verify(&old, NOW)));

    let both = from_text(&(text("rsa-next.pem") + "\n" + &text("rsa.pem") + &text("ec.pem")), false).unwrap();
    for (signer, algorithm, _) in &SIGNERS[..3] {
        let token = signer.token(&format!(r#"{{"alg":"{algorithm}"}}"#), EXT);
        assert_eq!(both.verify(&token, NOW), Ok(claims(None)), "{algorithm}");
    }
}

// Files

#[test]
fn files_that_cannot_be_used_say_why() {
    let of = |text: &str, jwks: bool| match from_text(text, jwks) {
        Ok(_) => panic!("accepted: {text}"),
        Err(error) => error.to_string(),
    };
    for (file, part) in [
        ("rsa.key.pem", "private key"),
        ("ec.key.pem", "private key"),
        ("rsa-weak.pem", "2048 to 8192 bits"),
        ("ec-384.pem", "P-256"),
        ("../tls/cert.pem", "PUBLIC KEY"),
        ("jwks.json", "no section `PUBLIC KEY`"),
    ] {
        let error = of(&text(file), false);
        assert!(error.contains(part) && error.contains("jwt_key_file"), "{file}: {error}");
    }
    let broken = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n";
    assert!(of(broken, false).contains("public key 1: malformed"));
    assert!(of("-----BEGIN PUBLIC KEY-----\nAAAA\n", false).contains("no PEM file"));

    let rsa = r#"{"keys":[{"kty":"RSA","e":"AQAB","#;
    for (jwks, part) in [
        ("", "not JSON of the form"),
        ("{}", "not JSON of the form"),
        (r#"{"keys":[]}"#, "no key for"),
        (r#"{"keys":[7]}"#, "key 1 is no JSON web key"),
        (r#"{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}"#, "no key for"),
        (&format!(r#"{rsa}"n":"AQAB"}}]}}"#), "key 1: an RSA key must have"),
        (&format!(r#"{rsa}"n":"+/+/"}}]}}"#), "key 1: a number is missing"),
        (&format!(r#"{rsa}"d":"AQAB"}}]}}"#), "key 1 is a private key"),
        (r#"{"keys":[{"kty":"EC","crv":"P-256","x":"AQAB","y":"AQAB"}]}"#, "65 bytes"),
        (r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AQAB"}]}"#, "32 bytes"),
    ] {
        let error = of(jwks, true);
        assert!(error.contains(part) && error.contains("jwt_jwks_file"), "{jwks}: {error}");
    }
    let missing = Jwt::new(JwtConfig { key_file: Some("gone.pem".into()), ..JwtConfig::default() }).unwrap_err();
    assert_eq!(missing.to_string(), "cannot read jwt_key_file gone.pem");
}

#[test]
fn keys_for_something_else_are_left_out() {
    let edited = |change: &[(&str, &str)]| {
        let text = change.iter().fold(text("jwks.json"), |text, (from, to)| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        });
        from_text(&text, true).unwrap()
    };
    let token = |place: usize| {
        let (signer, algorithm, _) = &SIGNERS[place];
        signer.token(&format!(r#"{{"alg":"{algorithm}"}}"#), EXT)
    };
    let encryption = edited(&[(r#""use": "sig", "alg""#, r#""use": "enc", "alg""#)]);
    assert!(is_unauthorized(&encryption.verify(&token(0), NOW)) && encryption.verify(&token(1), NOW).is_ok());
    let other = edited(&[(r#""alg": "RS256""#, r#""alg": "PS256""#)]);
    assert!(is_unauthorized(&other.verify(&token(0), NOW)) && other.verify(&token(1), NOW).is_ok());
    let signs = edited(&[(r#""crv": "Ed25519""#, r#""crv": "Ed25519", "key_ops": ["sign"]"#)]);
    assert!(is_unauthorized(&signs.verify(&token(3), NOW)));
    let verifies = edited(&[(r#""crv": "Ed25519""#, r#""crv": "Ed25519", "key_ops": ["verify"]"#)]);
    assert!(verifies.verify(&token(3), NOW).is_ok());
}

#[test]
fn debug_output_has_no_secrets() {
    let shown = format!("{:?}", hmac_only(ORCHID));
    assert!(!shown.contains("orchid") && shown.contains("HMAC"), "{shown}");
}

// Garbage

/// All families, made once.
static ALL: LazyLock<Jwt> = LazyLock::new(|| {
    let secrets = Secrets::parse(ORCHID);
    let config = JwtConfig { secrets, jwks_file: Some(testdata("jwks.json")), ..JwtConfig::default() };
    Jwt::new(config).unwrap()
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn garbage_is_refused(token in "\\PC{0,80}|[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,90}") {
        prop_assert!(is_unauthorized(&ALL.verify(&token, NOW)));
    }

    #[test]
    fn garbage_behind_a_good_header_is_refused(
        algorithm in prop::sample::select(vec!["HS256", "HS512", "RS256", "ES256", "EdDSA"]),
        claims in "\\PC{0,60}",
        signature in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let header = format!(r#"{{"alg":"{algorithm}"}}"#);
        let token = format!("{}.{}.{}", encode(header.as_bytes()), encode(claims.as_bytes()), encode(&signature));
        prop_assert!(is_unauthorized(&ALL.verify(&token, NOW)));
    }

    #[test]
    fn signed_garbage_never_panics(claims in "\\PC{0,60}|[{}\\[\\]\":,a-z0-9.+-]{0,60}") {
        let _ = verify(&claims);
        let _ = verify(&format!(r#"{{"ext":"a","exp":{claims}}}"#));
    }

    #[test]
    fn one_changed_character_breaks_it(at in 0usize..VALID.len(), with in "[A-Za-z0-9_.=-]") {
        prop_assume!(VALID[at..=at] != with);
        let mut changed = VALID.to_owned();
        changed.replace_range(at..=at, &with);
        prop_assert!(is_unauthorized(&ALL.verify(&changed, NOW)));
    }

    #[test]
    fn what_is_signed_verifies(ext in "\\PC{0,60}", exp in prop::option::of(NOW + 1..)) {
        let token = sign(&Secret::from(ORCHID), &ext, exp);
        prop_assert_eq!(ALL.verify(&token, NOW), Ok(Claims { ext, exp }));
    }

    #[test]
    fn key_files_of_garbage_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let body = base64::engine::general_purpose::STANDARD.encode(&bytes);
        let text = format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n");
        prop_assert!(from_text(&text, false).is_err());
        prop_assert!(from_text(&String::from_utf8_lossy(&bytes), true).is_err());
    }
}
