//! Where settings come from, and which of them wins.

use super::*;

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
    let sample = include_str!("../../../testdata/config/sample.toml");
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
