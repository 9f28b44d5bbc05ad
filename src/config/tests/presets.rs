//! What presets choose, and leave alone.

use super::*;

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
