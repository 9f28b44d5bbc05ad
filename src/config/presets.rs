//! Sets of defaults for a purpose or a platform. They touch only what nobody has set.

use super::load::Given;
use super::{BroadcastAdapter, BrokerKind, Preset, PubsubKind};
use std::collections::HashMap;

/// Applies the presets that were asked for, else those that the environment shows.
pub fn apply(given: &mut Given, env: &HashMap<String, String>) {
    let mut presets = given.config.presets.clone();
    if presets.is_empty() && is_heroku(env) {
        presets.push(Preset::Heroku);
    }
    if presets.contains(&Preset::None) {
        presets.clear();
    }
    for preset in &presets {
        match preset {
            Preset::None => {}
            Preset::Broker => broker(given),
            Preset::Heroku => heroku(given),
        }
    }
    given.config.loaded.presets = presets;
}

fn is_heroku(env: &HashMap<String, String>) -> bool {
    ["HEROKU_APP_ID", "HEROKU_DYNO_ID"].iter().all(|name| env.contains_key(*name))
}

fn broker(given: &mut Given) {
    let embedded = given.config.embedded_nats.enabled;
    if given.is_default("broker.adapter") {
        given.config.broker.adapter = if embedded { BrokerKind::Nats } else { BrokerKind::Memory };
    }
    if given.is_default("broadcast_adapters") {
        given.config.broadcast_adapters = vec![BroadcastAdapter::Http];
    }
    if embedded && given.is_default("pubsub_adapter") {
        given.config.pubsub_adapter = PubsubKind::Nats;
    }
}

/// The router reaches one port on any address; publishing has to share it.
fn heroku(given: &mut Given) {
    if given.is_default("server.host") {
        given.config.server.host = "0.0.0.0".to_owned();
    }
    if given.is_default("http_broadcast.port") {
        given.config.http_broadcast.port = given.config.server.port;
    }
}
