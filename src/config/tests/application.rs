//! How the application is called.

use super::*;

#[test]
fn the_application_is_called_over_grpc_unless_something_else_is_said() {
    use RpcKind::{Grpc, Http, None};
    for (args, kind) in [
        ("", Grpc),
        ("--rpc_host dns:///app:50051", Grpc),
        ("--rpc_host https://app/_anycable", Http),
        ("--rpc_host http://app --rpc_impl grpc", Grpc),
        ("--rpc_impl none", None),
        ("--rpc_host http://app --norpc", None),
    ] {
        assert_eq!(with(args).config().rpc.implementation, kind, "{args}");
    }
    let rpc = with("--headers Cookie,X-Tenant --rpc_request_timeout 250 --rpc_command_timeout 5s").config().rpc;
    assert_eq!(rpc.proxy_headers, ["cookie", "x-tenant"]);
    assert_eq!((rpc.request_timeout, rpc.command_timeout), (Duration::from_millis(250), secs(5)));
    assert_eq!(with("").toml("rpc.proxy_headers = [\"Origin\"]").config().rpc.proxy_headers, ["origin"]);
}

#[test]
fn the_token_for_the_application_follows_from_the_secret() {
    let secret = |args: &str| with(args).config().rpc.secret.map(|secret| secret.expose().to_owned());
    let derived = "47d53b98cbb587fc2349a084bfa47af114bb08b9334651b01ce830eb4b967c88";
    assert_eq!(secret("--secret s3cr3t-alpha").as_deref(), Some(derived));
    assert_eq!(secret("--secret s3cr3t-alpha --http_rpc_secret other").as_deref(), Some("other"));
    assert_eq!(secret("--secret s3cr3t-alpha,old").as_deref(), Some(derived), "the first of a list");
    assert_eq!(secret("--secret s3cr3t-alpha --http_rpc_secret none"), None);
    assert_eq!(secret(""), None);
}

#[test]
fn old_names_of_the_calls_to_the_application_are_understood() {
    let config = with("--rpc_host http://app --rpc_request_timeout 1 --http_rpc_timeout 200").config();
    assert_eq!(config.rpc.request_timeout, Duration::from_millis(200));
    let grpc = with("--rpc_request_timeout 1 --http_rpc_timeout 200").config();
    assert_eq!(grpc.rpc.request_timeout, Duration::from_millis(1));
    let config = with("--disable_disconnect --disconnect_timeout 5").config();
    assert_eq!(config.app.disconnect_mode, DisconnectMode::Never);
    assert_eq!(config.loaded.warnings.len(), 2, "{:?}", config.loaded.warnings);
}

#[test]
fn files_for_tls_with_the_application_must_exist() {
    assert!(with("--rpc_tls_root_ca no.pem").error().contains("rpc_tls_root_ca"));
    assert!(with("--rpc_tls_client_cert a.pem").file("a.pem", "").error().contains("rpc.tls_client_key together"));
    let inline = with("--rpc_tls_root_ca -----BEGIN").config().rpc.tls_root_ca;
    assert_eq!(inline.as_deref(), Some("-----BEGIN"));
}

#[test]
fn settings_of_the_application_without_effect_or_safety_leave_warnings() {
    let warnings = |args: &str| with(args).file("c.pem", "").config().loaded.warnings;
    for (args, part) in [
        ("--norpc --noauth --rpc_restore", "rpc_restore has no effect without an application"),
        ("--norpc --noauth --disconnect_mode always", "disconnect_mode=always has no effect"),
        ("--norpc --noauth --disconnect_grace 5", "disconnect_grace has no effect without an application"),
        ("--broker memory --disconnect_mode never --disconnect_grace 5", "with disconnect_mode=never"),
        ("--disconnect_grace 5", "sessions are not saved"),
        ("--broker memory --sessions_ttl 0 --disconnect_grace 5", "sessions are not saved"),
        ("--rpc_restore", "none is restored"),
        ("--rpc_enable_tls --rpc_tls_verify=false", "can pose as the application"),
        ("--rpc_host https://app --secret a --rpc_tls_verify=false", "can pose as the application"),
        ("--rpc_host http://app --secret a --rpc_enable_tls", "not encrypted"),
        ("--rpc_tls_client_cert c.pem --rpc_tls_client_key c.pem", "rpc_tls_client_cert has no effect"),
        ("--rpc_host http://app", "carry no token"),
    ] {
        let warnings = warnings(args);
        assert_eq!(warnings.len(), 1, "{args}: {warnings:?}");
        assert!(warnings[0].contains(part), "{args}: {warnings:?}");
    }
    for args in [
        "",
        "--rpc_tls_verify=false",
        "--rpc_host http://app --secret a",
        "--rpc_host http://app --http_rpc_secret none",
        "--rpc_enable_tls --rpc_tls_client_cert c.pem --rpc_tls_client_key c.pem",
        "--broker memory --disconnect_grace 270 --rpc_restore",
        "--broker memory --sessions_ttl 10m --disconnect_grace 5m --disconnect_mode always",
        "--rpc_concurrency 0 --rpc_concurrency_max 25",
    ] {
        assert_eq!(warnings(args), [""; 0], "{args}");
    }
}
