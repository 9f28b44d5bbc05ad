//! What is refused, and what the operator is told.

use super::*;

#[test]
fn each_kind_of_fault_names_option_origin_value_and_what_is_allowed() {
    for (args, parts) in [
        ("--port http", ["port (flag --port)", "\"http\"", "a whole number from 0 to 65535"]),
        ("--port=65536", ["port", "\"65536\"", "65535"]),
        ("--port -1", ["port", "\"-1\"", "0 to 65535"]),
        ("--host=", ["host", "\"\"", "a host name"]),
        ("--noauth=maybe", ["noauth", "\"maybe\"", "true or false"]),
        ("--print-config=maybe", ["print-config", "\"maybe\"", "true or false"]),
        ("--ping_interval 1.5", ["ping_interval", "\"1.5\"", "250ms"]),
        ("--broker_timeout 0", ["broker_timeout", "\"0\"", "at least 100ms"]),
        ("--max_message_size 0", ["max_message_size", "\"0\"", "from 1"]),
        ("--http_broadcast_max_body 8MiB", ["http_broadcast_max_body", "\"8MiB\"", "whole number"]),
        ("--path cable", ["path", "\"cable\"", "start with `/`"]),
        ("--path ,", ["path", "\",\"", "one or more"]),
        ("--health-path health", ["health-path", "\"health\"", "starts with `/`"]),
        ("--allowed_origins https://a.test", ["allowed_origins", "https://a.test", "without a scheme"]),
        ("--broker etcd", ["broker", "\"etcd\"", "none, memory, nats"]),
        ("--broker redis", ["broker", "\"redis\"", "redis is not available yet"]),
        ("--pubsub kafka", ["pubsub", "\"kafka\"", "none, nats"]),
        ("--broadcast_adapter http,pigeon", ["broadcast_adapter", "pigeon", "http, nats"]),
        ("--broadcast_adapter nats", ["broadcast_adapter", "nats", "not available yet"]),
        ("--presets fly", ["presets", "fly", "fly is not available yet"]),
        ("--log_level loud", ["log_level", "\"loud\"", "debug, info, warn, error"]),
        ("--log_format xml", ["log_format", "\"xml\"", "text, json"]),
        ("--ping_timestamp_precision us", ["ping_timestamp_precision", "\"us\"", "s, ms, ns"]),
        ("--shutdown_mode fast", ["shutdown_mode", "\"fast\"", "auto, resume, disconnect"]),
        ("--nats_servers http://a:1", ["nats_servers", "\"http://a:1\"", "nats://host:port"]),
        ("--nats_prefix a.b", ["nats_prefix", "\"a.b\"", "A-Z"]),
        ("--nats_replicas 2", ["nats_replicas", "\"2\"", "1, 3 or 5"]),
        ("--nats_channel a.*", ["nats_channel", "\"a.*\"", "subject"]),
        ("--enats_addr nats://127.0.0.1", ["enats_addr", "\"nats://127.0.0.1\"", "with a port"]),
        ("--enats_cluster_routes nats://b", ["enats_cluster_routes", "\"nats://b\"", "with a port"]),
        ("--enats_gateway_advertise here", ["enats_gateway_advertise", "\"here\"", "host:port"]),
        ("--enats_sync 10", ["enats_sync", "\"10\"", "always"]),
        ("--ssl_cert gone.pem --ssl_key gone.key", ["ssl_cert", "gone.pem", "a file that exists"]),
        ("--nats_creds gone", ["nats_creds", "gone", "a file that exists"]),
        ("--nats_nkey gone", ["nats_nkey", "gone", "a file that exists"]),
        ("--nats_tls_ca gone", ["nats_tls_ca", "gone", "a file that exists"]),
        ("--enats_bin gone", ["enats_bin", "gone", "a file that exists"]),
        ("--nats_user ann", ["nats_user", "ann", "nats.password together"]),
        ("--nats_user a --nats_password b --nats_token c", ["nats_token", "***", "only one of"]),
        ("--jwt_key_file gone", ["jwt_key_file", "gone", "a file that exists"]),
        ("--jwt_jwks_file gone", ["jwt_jwks_file", "gone", "a file that exists"]),
        ("--jwt_param a.b", ["jwt_param", "\"a.b\"", "A-Z"]),
        ("--enforce_jwt", ["enforce_jwt", "true", "jwt_secret, jwt_key_file"]),
        ("--enforce_jwt --secret a --jwt_secret none", ["enforce_jwt", "true", "only with"]),
        ("--secret=,", ["secret", "***", "or `none` alone"]),
        ("--secret a --broadcast_key ,,", ["broadcast_key", "***", "or `none` alone"]),
        ("--sessions_ttl=999999999999", ["sessions_ttl", "\"999999999999\"", "at most 315360000s"]),
        ("--rpc_host http://ann:pa55@app/_anycable", ["rpc_host", "***", "without user and password"]),
        ("--rpc_host ann:pa55@app:50051", ["rpc_host", "***", "without user and password"]),
        (
            "--rpc_concurrency 0 --rpc_concurrency_initial 3",
            ["rpc_concurrency_initial", "3", "rpc_concurrency_min (5)"],
        ),
        (
            "--broker memory --disconnect_grace 5m",
            ["disconnect_grace", "300", "at most 270s, or a longer sessions_ttl"],
        ),
        (
            "--broker memory --sessions_ttl 20 --disconnect_grace 5",
            ["disconnect_grace", "0, or a sessions_ttl above 30s", "sessions_ttl is 20s"],
        ),
        ("--jwt_secret none,a", ["jwt_secret", "***", "or `none` alone"]),
        ("--ready_path /health", ["ready_path", "/health", "taken"]),
        ("--path /health", ["path", "/health", "taken"]),
    ] {
        let error = with(args).error();
        for part in parts {
            assert!(error.contains(part), "{args}: {part:?} is missing in: {error}");
        }
    }
}

#[test]
fn half_a_certificate_is_refused() {
    let error = with("--ssl_key key.pem").file("key.pem", "").error();
    assert!(error.contains("ssl_key (flag --ssl_key)") && error.contains("server.ssl.cert_path"), "{error}");
    let config = with("--ssl_key key.pem --ssl_cert cert.pem").file("key.pem", "").file("cert.pem", "").config();
    assert_eq!(config.server.ssl(), Some((Path::new("cert.pem"), Path::new("key.pem"))));
}

#[test]
fn faults_name_where_the_value_came_from_and_all_are_shown() {
    let place = with("--broker etcd").env("PORT", "x").toml("[app]\nping_interval = -1\n[streams]\npublic = \"yes\"");
    let error = place.error();
    assert_eq!(error.lines().count(), 4, "{error}");
    let file = place.dir.path().join("anycable.toml");
    assert!(error.contains("port (environment variable PORT): \"x\""), "{error}");
    assert!(error.contains(&format!("ping_interval (key app.ping_interval of {}): -1", file.display())), "{error}");
    assert!(error.contains("public_streams (key streams.public of"), "{error}");
}

/// Between blanks, a list is empty: it guards nothing.
#[test]
fn a_blank_secret_is_refused() {
    for flag in ["secret", "broadcast_key", "jwt_secret", "http_rpc_secret", "streams_secret", "turbo_streams_secret"] {
        let mut place = with("");
        place.args = vec![format!("--{flag}= \t")];
        let error = place.error();
        assert!(error.contains(flag) && error.contains("or `none` alone"), "{flag}: {error}");
    }
}

#[test]
fn faults_do_not_show_secrets() {
    let error = with("--nats_servers http://ann:pa55@h:1").toml("secret = 12345").error();
    assert!(error.contains("***") && !error.contains("pa55") && !error.contains("12345"), "{error}");
    for host in ["http://ann:pa55@app/_anycable", "ann:pa55@app:50051"] {
        let error = with(&format!("--rpc_host {host}")).error();
        assert!(error.contains("***") && !error.contains("pa55"), "{error}");
        with(&format!("--norpc --rpc_host {host}")).config();
    }
}

#[test]
fn nothing_typed_makes_loading_panic() {
    for text in [
        "",
        " ",
        "=",
        "-",
        "--",
        "\0",
        "🙂",
        "'",
        "{",
        "nats://",
        "nats://@",
        "://",
        ",,,",
        "0x",
        "99999999999999999999",
    ] {
        for row in options::rows() {
            let Some(flag) = row.flag else { continue };
            let mut place = with("");
            place.args = vec![format!("--{flag}={text}")];
            let _ = place.load();
            let place = with("").env(&row.env_names()[0], text);
            let _ = place.load();
        }
    }
}
