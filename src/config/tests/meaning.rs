//! What follows from several settings together; old names; warnings.

use super::*;

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
