//! What follows from secrets, from none, and from public mode.

use super::*;

#[test]
fn secrets_follow_from_the_application_secret() {
    let config = with("--secret s3cr3t-alpha").config();
    assert_eq!(
        config.broadcast_key.as_ref().unwrap().expose(),
        "a6d8ef59c34e2b4b8650e45d089a9e20269df060267aeba78ebcdf2b0aec0a7d"
    );
    assert!(config.http_broadcast.key_derived);
    let streams = &config.streams;
    for secret in [&streams.secret, &streams.turbo_secret, &streams.cable_ready_secret] {
        assert_eq!(secret.as_ref().unwrap().expose(), "s3cr3t-alpha");
    }
    let config = with("--secret a --streams_secret b --cable_ready_secret c --broadcast_key d").config();
    assert_eq!(config.streams.turbo_secret.unwrap().expose(), "b");
    assert_eq!(config.streams.cable_ready_secret.unwrap().expose(), "c");
    assert_eq!(config.broadcast_key.unwrap().expose(), "d");
    assert!(!config.http_broadcast.key_derived);
}

#[test]
fn derived_keys_match_for_other_secrets() {
    for (secret, key) in [
        ("correct horse battery staple", "69029b1dda5a2343751b08782b2a725297638a5c23f1a7d2f7a7a61be88f2623"),
        ("ключ-42", "dc096ea653e9f3c55c61b17a162fa9858490ffbe2b251a90b883b5370c1ad403"),
    ] {
        let config = with("").env("ANYCABLE_SECRET", secret).config();
        assert_eq!(config.broadcast_key.unwrap().expose(), key);
    }
}

#[test]
fn none_means_no_secret_everywhere() {
    let config = with("--secret none").config();
    assert_eq!((config.secret, config.broadcast_key, config.streams.secret), (None, None, None));
    let config = with("--secret a --streams_secret none --broadcast_key none").config();
    assert_eq!((config.broadcast_key, config.streams.secret, config.streams.turbo_secret), (None, None, None));
    assert_eq!(config.http_broadcast.listener, BroadcastListener::Own(8090));
}

#[test]
fn a_list_of_secrets_gives_a_list_of_keys_in_the_same_order() {
    let key = |secret: &str| with(&format!("--secret {secret}")).config().broadcast_key.unwrap().expose().to_owned();
    let config = with("--secret new,old").config();
    assert_eq!(config.broadcast_key.unwrap().expose(), format!("{},{}", key("new"), key("old")));
    assert_eq!(config.jwt.secret.unwrap().expose(), "new,old");
    assert_eq!(config.streams.secret.unwrap().expose(), "new,old");
}

#[test]
fn tokens_are_on_with_a_secret_or_a_key_file() {
    let config = with("").config();
    assert!(!config.jwt.is_on() && !config.jwt.force && !config.jwt.restore_expired);
    assert_eq!(config.jwt.param, "jid");
    assert_eq!(with("--secret a").config().jwt.secret.unwrap().expose(), "a");
    assert_eq!(with("--secret a --jwt_secret b").config().jwt.secret.unwrap().expose(), "b");
    for off in ["--secret a --jwt_secret none", "--secret none"] {
        assert!(!with(off).config().jwt.is_on(), "{off}");
    }
    let place = with("--jwt_key_file k.pem --jwt_jwks_file k.json --enforce_jwt");
    let jwt = place.file("k.pem", "").file("k.json", "").config().jwt;
    assert!(jwt.is_on() && jwt.force);
    assert_eq!((jwt.key_file.as_deref(), jwt.jwks_file.as_deref()), (Some("k.pem".as_ref()), Some("k.json".as_ref())));
    let file = "[jwt]\nsecret = \"a,b\"\nparam = \"t\"\nforce = true\nrestore_expired = true";
    let jwt = with("").toml(file).config().jwt;
    assert!(jwt.force && jwt.restore_expired);
    assert_eq!((jwt.param.as_str(), jwt.secret.unwrap().expose()), ("t", "a,b"));
}

#[test]
fn old_names_of_the_token_options_count() {
    let config = with("--jwt_id_key k --jwt_id_param p --jwt_id_enforce --jwt_param other").config();
    assert_eq!((config.jwt.secret.unwrap().expose(), config.jwt.param.as_str()), ("k", "p"));
    assert!(config.jwt.force);
    assert_eq!(config.loaded.warnings.iter().filter(|w| w.contains("deprecated")).count(), 3);
}

#[test]
fn publishing_gets_the_main_port_only_behind_a_key() {
    use BroadcastListener::{Main, Own};
    for (args, listener) in [
        ("", Own(8090)),
        ("--secret a", Main),
        ("--broadcast_key a", Main),
        ("--public", Own(8090)),
        ("--public --secret a", Main),
        ("--http_broadcast_port 9000 --secret a", Own(9000)),
        ("--http_broadcast_port 8080", Main),
        ("--port 8090", Main),
        ("--port 0", Own(0)),
        ("--port 0 --secret a", Main),
    ] {
        assert_eq!(with(args).config().http_broadcast.listener, listener, "{args}");
    }
}

#[test]
fn public_mode_opens_connections_streams_and_publishing() {
    let config = with("--public --secret a").config();
    assert!(config.noauth && config.streams.public && config.broadcast_key.is_none());
    assert!(!config.http_broadcast.key_derived);
    assert_eq!(config.streams.secret.unwrap().expose(), "a", "signed names go on to work");
}
