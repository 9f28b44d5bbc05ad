//! Loading as a whole: sources, precedence, faults, meaning, printing.

mod empty;

use super::*;
use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// A place to load from: arguments, environment and a directory with files.
struct Place {
    dir: TempDir,
    args: Vec<String>,
    env: HashMap<String, String>,
}

/// Options, split at blanks.
fn with(args: &str) -> Place {
    Place {
        dir: tempfile::tempdir().unwrap(),
        args: args.split_whitespace().map(str::to_owned).collect(),
        env: HashMap::new(),
    }
}

impl Place {
    fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    fn file(self, name: &str, text: &str) -> Self {
        std::fs::write(self.dir.path().join(name), text).unwrap();
        self
    }

    fn toml(self, text: &str) -> Self {
        self.file("anycable.toml", text)
    }

    fn load(&self) -> Result<Invocation, ConfigError> {
        let mut surroundings = Surroundings::new(self.env.clone(), self.dir.path());
        surroundings.system_file = self.dir.path().join("system.toml");
        Config::load_in(self.args.clone(), &surroundings)
    }

    fn config(&self) -> Config {
        match self.load() {
            Ok(Invocation::Serve(config)) => *config,
            other => panic!("{other:?}"),
        }
    }

    fn printed(&self) -> String {
        match self.load() {
            Ok(Invocation::PrintConfig(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    fn error(&self) -> String {
        self.load().expect_err("settings at fault").to_string()
    }
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

// Sources

#[test]
fn defaults_are_the_documented_ones() {
    let config = with("").config();
    assert_eq!((config.server.host.as_str(), config.server.port), ("localhost", 8080));
    assert_eq!(config.ws.paths, ["/cable"]);
    assert_eq!((config.broker.adapter, config.broker.history_limit), (BrokerKind::None, 100));
    assert_eq!((config.broker.history_ttl, config.broker.timeout), (secs(300), secs(8)));
    assert_eq!((config.broker.dedup_window, config.broker.publish_timeout), (secs(30), secs(10)));
    assert_eq!((config.broker.history_hold, config.broker.snapshot_budget), (secs(2), 256 << 20));
    assert_eq!((config.app.ping_interval, config.app.shutdown_timeout), (secs(3), secs(30)));
    assert_eq!(config.nats.servers, ["nats://127.0.0.1:4222"]);
    assert_eq!((config.nats.prefix.as_str(), config.nats.replicas), ("carrick", 0));
    assert_eq!(config.http_broadcast.max_body, 8 << 20);
    assert_eq!(config.broadcast_adapters, [BroadcastAdapter::Http]);
    assert_eq!(config.embedded_nats.jetstream_store_dir, Path::new("./carrick-data"));
    assert!(config.streams.presence && !config.streams.public && !config.noauth);
}

#[test]
fn the_command_line_wins_over_the_environment_and_that_over_the_file() {
    let file = "[server]\nport = 1\n[broker]\nhistory_limit = 1\nhistory_ttl = 1\n[ws]\nmax_pending_size = 1";
    let place = with("--port 3 --ws_max_pending_size=3")
        .env("ANYCABLE_PORT", "2")
        .env("ANYCABLE_HISTORY_LIMIT", "2")
        .env("ANYCABLE_WS_MAX_PENDING_SIZE", "2")
        .toml(file);
    let config = place.config();
    assert_eq!((config.server.port, config.ws.max_pending_size), (3, 3));
    assert_eq!((config.broker.history_limit, config.broker.history_ttl), (2, secs(1)));
}

#[test]
fn the_file_wins_over_defaults_also_for_paths() {
    assert_eq!(with("").toml("ws.paths = [\"/a\", \"/b\"]").config().ws.paths, ["/a", "/b"]);
}

#[test]
fn a_file_as_operators_have_it_is_understood() {
    let sample = include_str!("../../testdata/config/sample.toml");
    let config = with("").toml(sample).config();
    assert_eq!((config.server.host.as_str(), config.server.port), ("0.0.0.0", 9090));
    assert_eq!(config.server.allowed_origins, ["*.acme.test", "localhost:3000"]);
    assert_eq!(config.ws.paths, ["/cable", "/t/{tenant}/cable"]);
    assert_eq!(config.nats.servers, ["nats://10.0.0.1:4222", "nats://10.0.0.2:4222"]);
    assert_eq!((config.app.ping_interval, config.app.shutdown_timeout), (secs(5), secs(45)));
    assert_eq!(config.secret.unwrap().expose(), "s3cr3t-alpha");
    assert_eq!(config.loaded.presets, [Preset::Broker]);
}

#[test]
fn the_file_is_found_in_order_and_can_be_named_or_ignored() {
    let port = |args: &str| {
        let place = with(args)
            .toml("server.port = 1")
            .file("system.toml", "server.port = 2")
            .file("own.toml", "server.port = 3");
        place.config().server.port
    };
    assert_eq!(port(""), 1);
    assert_eq!(port("--config-path own.toml"), 3);
    assert_eq!(port("--config-path=own.toml --ignore-config-path"), 8080);
    assert_eq!(port("--ignore-config-path=false"), 1);
    let only_system = with("").file("system.toml", "server.port = 2");
    assert_eq!(only_system.config().server.port, 2);
    assert_eq!(only_system.config().loaded.file, Some(only_system.dir.path().join("system.toml")));
}

#[test]
fn unreadable_files_are_refused_without_showing_their_text() {
    let error = with("--config-path gone.toml").error();
    assert!(error.contains("gone.toml") && error.contains("cannot read"), "{error}");
    let error = with("").toml("port = 1\nsecret = s3cr3t").error();
    assert!(error.contains("anycable.toml: line 2:") && !error.contains("s3cr3t"), "{error}");
}

#[test]
fn unknown_flags_are_usage_errors_and_unknown_names_elsewhere_are_ignored() {
    let error = with("--no_such_option 1").load().unwrap_err();
    assert!(matches!(&error, ConfigError::Usage(text) if text.contains("Usage:")), "{error}");
    assert!(matches!(with("--port").load(), Err(ConfigError::Usage(_))));
    with("").env("ANYCABLE_NO_SUCH_OPTION", "1").toml("no_such = 1\n[nor]\nthis = [{}]").config();
}

#[test]
fn single_dashes_switches_and_repeated_flags_work() {
    let config = with("-port 1 -port=2 -public_streams -streams_presence=false --noauth=true").config();
    assert_eq!(config.server.port, 2);
    assert!(config.streams.public && !config.streams.presence && config.noauth);
}

#[test]
fn empty_variables_are_unset_false_or_empty_text() {
    let place =
        with("").env("ANYCABLE_PORT", "").env("PORT", "77").env("ANYCABLE_PUBLIC", "").env("ANYCABLE_LOG_LEVEL", "");
    let config =
        place.env("ANYCABLE_ALLOWED_ORIGINS", "").toml("public = true\nserver.allowed_origins = \"a\"").config();
    assert_eq!(config.server.port, 77, "the next alias counts");
    assert!(!config.public && config.server.allowed_origins.is_empty());
    assert_eq!(config.logging.level, LogLevel::Info);
    assert_eq!(with("").env("ANYCABLE_PORT", "1").env("PORT", "2").config().server.port, 1);
}

#[test]
fn help_and_version_are_no_errors() {
    assert!(matches!(with("-h").load(), Ok(Invocation::Help(text)) if text.contains("--history_limit")));
    assert!(matches!(with("-v").load(), Ok(Invocation::Version)));
    assert!(matches!(with("--port 1 -version").load(), Ok(Invocation::Version)));
}

#[test]
fn debug_forces_the_level() {
    assert_eq!(with("--debug --log_level error").config().logging.level, LogLevel::Debug);
}

// Faults

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

#[test]
fn faults_do_not_show_secrets() {
    let error = with("--nats_servers http://ann:pa55@h:1").toml("secret = 12345").error();
    assert!(error.contains("***") && !error.contains("pa55") && !error.contains("12345"), "{error}");
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
        for row in super::options::rows() {
            let Some(flag) = row.flag else { continue };
            let mut place = with("");
            place.args = vec![format!("--{flag}={text}")];
            let _ = place.load();
            let place = with("").env(&row.env_names()[0], text);
            let _ = place.load();
        }
    }
}

// Meaning

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

#[test]
fn deprecated_names_work_with_a_warning() {
    let config = with("--http_broadcast_secret old --broadcast_key new").config();
    assert_eq!(config.broadcast_key.unwrap().expose(), "old");
    assert!(config.loaded.warnings[0].contains("http_broadcast_secret (flag"), "{:?}", config.loaded.warnings);
    let place = with("").env("ANYCABLE_TURBO_RAILS_KEY", "t").toml("http_broadcast.secret = \"filed\"");
    let config = place.config();
    assert!(config.streams.turbo);
    assert_eq!(config.streams.turbo_secret.unwrap().expose(), "t");
    assert_eq!(config.broadcast_key.unwrap().expose(), "filed");
    assert_eq!(config.loaded.warnings.iter().filter(|w| w.contains("deprecated")).count(), 2);
    with("--turbo_rails_cleartext --cable_ready_cleartext=true --cable_ready_key k --netpoll_enabled").config();
}

#[test]
fn ruling_31_the_usual_list_of_adapters_means_http() {
    let config = with("--broadcast_adapter http,redis").config();
    assert_eq!(config.broadcast_adapters, [BroadcastAdapter::Http]);
    assert!(config.loaded.warnings.iter().any(|warning| warning.contains("redis")));
}

#[test]
fn the_embedded_server_is_named_by_its_address_and_connected_to() {
    let config = with("--embed_nats --broker nats --enats_addr nats://127.0.0.1:5222").config();
    assert_eq!(config.embedded_nats.name, "nats-127.0.0.1-5222");
    assert_eq!(config.nats.servers, ["nats://127.0.0.1:5222"]);
    assert!(config.embedded_nats.jetstream);
    let config = with("--embed_nats --enats_addr nats://127.0.0.1:-1 --nats_servers nats://h:1").config();
    assert_eq!(config.embedded_nats.service_addr.port, EndpointPort::Any);
    assert_eq!(config.nats.servers, ["nats://h:1"], "what is given stays");
    assert!(!config.embedded_nats.jetstream);
}

#[test]
fn a_node_has_a_random_name_unless_given_one() {
    let one = with("").config().node_id;
    assert_eq!(one.len(), 6);
    assert_ne!(one, with("").config().node_id);
    assert_eq!(with("--node_id one").config().node_id, "one");
}

#[test]
fn settings_that_cannot_work_leave_warnings() {
    for (args, part) in [
        ("--norpc", "no way to authenticate"),
        ("--turbo_streams", "turbo_streams"),
        ("--shutdown_delay 30", "shutdown_delay"),
        ("--broker_timeout 10", "broker_timeout"),
        ("--enats_cluster nats://0.0.0.0:5222 --embed_nats", "enats_server_name"),
        ("--enable_ws_compression", "compressed"),
    ] {
        let warnings = with(args).config().loaded.warnings;
        assert!(warnings.iter().any(|warning| warning.contains(part)), "{args}: {warnings:?}");
    }
    let warnings = with("--jwt_secret a").config().loaded.warnings;
    assert!(!warnings.iter().any(|warning| warning.contains("no way to authenticate")), "{warnings:?}");
    assert_eq!(with("--public").config().loaded.warnings, [""; 0]);
}

// The application

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

// Presets

#[test]
fn the_broker_preset_chooses_the_broker() {
    let config = with("--presets broker").config();
    assert_eq!((config.broker.adapter, config.pubsub_adapter), (BrokerKind::Memory, PubsubKind::Auto));
    let config = with("--presets broker --embed_nats").config();
    assert_eq!((config.broker.adapter, config.pubsub_adapter), (BrokerKind::Nats, PubsubKind::Nats));
    assert!(config.embedded_nats.jetstream);
    assert_eq!(config.loaded.presets, [Preset::Broker]);
}

#[test]
fn presets_leave_alone_what_somebody_set() {
    assert_eq!(with("--presets broker --broker none").config().broker.adapter, BrokerKind::None);
    assert_eq!(with("--presets broker --broker memory --embed_nats").config().broker.adapter, BrokerKind::Memory);
    let config = with("--presets broker").toml("broker.adapter = \"nats\"").config();
    assert_eq!(config.broker.adapter, BrokerKind::Nats);
}

#[test]
fn heroku_is_detected_unless_presets_are_given() {
    let heroku = |args| with(args).env("HEROKU_APP_ID", "a").env("HEROKU_DYNO_ID", "d").env("PORT", "5000").config();
    let config = heroku("");
    assert_eq!((config.server.host.as_str(), config.server.port), ("0.0.0.0", 5000));
    assert_eq!(config.http_broadcast.listener, BroadcastListener::Main);
    assert_eq!(heroku("--host 10.0.0.1").server.host, "10.0.0.1");
    assert_eq!(heroku("--presets none").server.host, "localhost");
    assert_eq!(heroku("--presets broker").server.host, "localhost");
}

// Printing

/// What is left to compare when the file's own traces are gone.
fn settings(mut config: Config) -> Config {
    config.loaded.file = None;
    config.node_id.clear();
    config
}

fn reloads(args: &str) {
    let printed = with(&format!("{args} --print-config --print-secrets")).printed();
    let original = with(args).config();
    let reloaded = with("").toml(&printed).config();
    assert_eq!(settings(reloaded), settings(original), "{args}\n{printed}");
}

#[test]
fn printed_defaults_load_back() {
    reloads("");
    reloads("--presets broker");
    reloads("--public");
}

#[test]
fn printed_settings_load_back() {
    reloads(
        "--host 0.0.0.0 --port 0x1F90 --path /cable,/t/{tenant}/cable/* --health-path /h --ready_path /r --max-conn 7 \
         --allowed_origins *.acme.test,localhost:3000 --secret s3\"c'r\\3t --streams_secret none --public_streams \
         --streams_presence=false --streams_whisper",
    );
    reloads(
        "--broker nats --history_limit 5 --history_ttl 0 --sessions_ttl 250ms --dedup_window 2m --history_hold 0 \
         --snapshot_budget 1 --embed_nats --enats_addr nats://127.0.0.1:-1 --enats_cluster nats://u:p@0.0.0.0:5222 \
         --enats_cluster_routes nats://u:p@a:5222,nats://b:5222 --enats_gateway nats://0.0.0.0:7222 \
         --enats_gateways east:nats://a:7222,nats://b:7222;west:nats://c:7222 --enats_gateway_advertise h:7222 \
         --enats_server_name one --nats_placement_tags eu,ssd --enats_sync always --enats_store_dir /tmp/x --enats_max_payload 2097152",
    );
    reloads(
        "--nats_servers nats://u:p@h:4222,tls://i:4222 --nats_token t --nats_prefix p --nats_replicas 3 \
         --broadcast_key k --http_broadcast_port 9 --broadcast_adapter= --pubsub none --presets none --log_level warn \
         --log_format json --debug --enable_native_pings --ping_timestamp_precision ns --shutdown_delay 1 \
         --shutdown_mode resume --shutdown_slowdrain --pong_timeout 1500ms --http_broadcast_cors --turbo_streams",
    );
}

#[test]
fn every_option_is_printed_so_that_it_loads_back() {
    // One option at a time, each with a value that is not its default.
    for row in super::options::rows() {
        let Some(flag) = row.flag else { continue };
        let value = match (row.value_name, row.default) {
            ("PATH", "") => continue, // must exist: tested above
            ("BOOL", default) => (default != "true").to_string(),
            ("PATH" | "PATHS", _) => "/other".to_owned(),
            ("PORT" | "BYTES", _) => "4097".to_owned(),
            ("N", _) => "3".to_owned(),
            ("SECONDS", _) => "1234ms".to_owned(),
            ("MILLISECONDS", _) => "1234".to_owned(),
            ("PEM", _) => "-----BEGIN".to_owned(), // a path must exist
            ("URL", _) => "nats://u:p@h:1".to_owned(),
            ("URLS", _) => "nats://u:p@h:1,nats://i:2".to_owned(),
            ("GATEWAYS", _) => "a:nats://h:1,nats://i:2;b:nats://j:3".to_owned(),
            ("POLICY", _) => "pattern=chat/*,limit=5,ttl=1234ms;pattern=b,storage=memory,replicas=1".to_owned(),
            ("SYNC", _) => "250ms".to_owned(),
            ("HOST:PORT", _) => "h:1".to_owned(),
            ("NAME", default) if !row.values.is_empty() => {
                (*row.values.iter().find(|value| **value != default).unwrap()).to_owned()
            }
            ("NETWORKS", _) => "10.0.0.0/8,::1".to_owned(),
            ("NAMES", _) => row.values.first().unwrap_or(&"other").to_string(),
            _ => "other".to_owned(),
        };
        let extra = match flag {
            "nats_user" => "--nats_password p",
            "nats_password" => "--nats_user u",
            "enforce_jwt" => "--jwt_secret s",
            "http_broadcast_max_pending" => "--http_broadcast_max_body 4096",
            _ => "",
        };
        reloads(&format!("--{flag}={value} {extra}"));
    }
}

#[test]
fn history_policies_come_from_file_environment_or_repeated_flags() {
    let names = |place: Place| {
        let config = place.config();
        config.history.0.iter().map(|policy| policy.name.clone()).collect::<Vec<_>>()
    };
    let file =
        "[[history]]\npattern = \"chat/*\"\n[[history]]\npattern = \"news\"\nlimit = 0\n[broker]\nhistory_limit = 5";
    assert_eq!(names(with("").toml(file)), ["chat", "news"]);
    assert_eq!(names(with("").toml(file).env("ANYCABLE_HISTORY", "pattern=a;pattern=b")), ["a", "b"]);
    let flags = "--history pattern=x --history=pattern=y;pattern=z";
    assert_eq!(names(with(flags).toml(file).env("ANYCABLE_HISTORY", "pattern=a")), ["x", "y", "z"]);
    assert_eq!(names(with("--history=").toml(file)), Vec::<String>::new());
    let error = with("").toml("[history]\npattern = \"chat/*\"").error();
    assert!(error.contains("[history] is not allowed; allowed: tables [[history]]"), "{error}");
}

#[test]
fn printed_settings_hide_secrets_unless_asked() {
    let args = "--secret aaaa --broadcast_key bbbb --streams_secret cccc --turbo_streams_secret dddd \
                --cable_ready_secret eeee --nats_user u --nats_password ffff --nats_servers nats://u:gggg@h:1 \
                --enats_cluster_routes nats://u:hhhh@h:1 --enats_gateways x:nats://u:iiii@h:1 --print-config";
    let hidden = with(args).printed();
    let shown = with(&format!("{args} --print-secrets")).printed();
    for secret in ["aaaa", "bbbb", "cccc", "dddd", "eeee", "ffff", "gggg", "hhhh", "iiii"] {
        assert!(!hidden.contains(secret), "{secret}: {hidden}");
        assert!(shown.contains(secret), "{secret}: {shown}");
    }
    assert!(hidden.contains("\n# secret = \"***\"\n"), "{hidden}");
    hidden.parse::<toml::Table>().expect("still a file");
}

#[test]
fn missing_secrets_are_printed_as_none() {
    let printed = with("--print-config").printed();
    assert!(printed.contains("\nsecret = \"none\"\n") && printed.contains("\nbroadcast_key = \"none\"\n"), "{printed}");
    let printed = with("--secret a --print-config --print-secrets").printed();
    assert!(printed.contains("\nsecret = \"a\"\n") && printed.contains("\n# broadcast_key = \"\"\n"), "{printed}");
}

#[test]
fn a_configuration_hides_its_secrets_from_debug_output() {
    let args = "--secret aaaa --nats_servers nats://u:gggg@h:1 --enats_gateways x:nats://u:iiii@h:1 --nats_token ffff";
    let text = format!("{:?}", with(args).config());
    assert!(!["aaaa", "gggg", "iiii", "ffff"].iter().any(|secret| text.contains(secret)), "{text}");
    assert!(text.contains("history_limit: 100"), "{text}");
}
