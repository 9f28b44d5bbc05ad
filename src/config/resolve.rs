//! From what was given to what it means: secrets and their fallbacks, public mode, ports, and rules that join options.

use super::load::{ConfigError, Fault, Given};
use super::{
    BroadcastAdapter, BroadcastListener, BrokerKind, Config, Endpoint, HttpBroadcast, LogLevel, Nats, RpcKind, Secret,
    Streams, application,
};
use crate::auth::Secrets;
use crate::auth::keys::{Purpose, derive_list};
use crate::protocol::names::random_text;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Port of publishing that nothing guards: kept apart from the public one.
const UNGUARDED_PORT: u16 = 8090;
/// The stock JavaScript client gives up waiting for `welcome` after this long.
const CLIENT_PATIENCE: Duration = Duration::from_secs(10);

/// Checks what one option alone cannot show, then resolves. Relative paths start at `cwd`.
pub fn resolve(mut given: Given, cwd: &Path) -> Result<Config, ConfigError> {
    let mut faults = missing_files(&given, cwd);
    faults.extend(pairs(&given));
    faults.extend(empty_secrets(&given));
    faults.extend(nats_methods(&given));
    faults.extend(adapters(&given));
    faults.extend(application::faults(&given));
    let http = &given.config.http_broadcast;
    if http.max_pending < http.max_body {
        faults.push(given.fault("http_broadcast.max_pending", "at least http_broadcast_max_body"));
    }
    let servers_are_default = given.is_default("nats.servers");

    let embedded_name_given = !given.config.embedded_nats.name.is_empty();
    let config = &mut given.config;
    if config.node_id.is_empty() {
        config.node_id = random_text(6);
    }
    if config.logging.debug {
        config.logging.level = LogLevel::Debug;
    }
    secrets(config);
    application::resolve(config);
    embedded(config, servers_are_default);
    if config.broadcast_adapters.contains(&BroadcastAdapter::Redis) {
        // `http,redis` is the usual list of the field; without a Redis it means `http`.
        config.broadcast_adapters.retain(|adapter| *adapter != BroadcastAdapter::Redis);
        config.loaded.warnings.push("broadcast adapter redis is not available yet and left out".to_owned());
    }
    warn(config, embedded_name_given);

    faults.extend(clashing_paths(&given));
    // Enforced and without a key: whoever wanted to keep clients out would let them in, or keep everybody out.
    if given.config.jwt.force && !given.config.jwt.is_on() {
        faults.push(given.fault("jwt.force", "true only with secret, jwt_secret, jwt_key_file or jwt_jwks_file"));
    }
    if faults.is_empty() { Ok(given.config) } else { Err(ConfigError::Faults(faults)) }
}

/// Options that name a file to be read.
fn missing_files<'g>(given: &'g Given, cwd: &'g Path) -> Vec<Fault> {
    let config = &given.config;
    let rpc_root_ca = config.rpc.tls_root_ca.as_ref().filter(|text| !text.trim_start().starts_with("-----BEGIN"));
    let rpc_root_ca = rpc_root_ca.map(PathBuf::from);
    let files: [(&str, &Option<PathBuf>); 13] = [
        ("server.ssl.cert_path", &config.server.ssl_cert_path),
        ("server.ssl.key_path", &config.server.ssl_key_path),
        ("jwt.key_file", &config.jwt.key_file),
        ("jwt.jwks_file", &config.jwt.jwks_file),
        ("nats.creds", &config.nats.creds),
        ("nats.nkey", &config.nats.nkey),
        ("nats.tls_ca", &config.nats.tls_ca),
        ("nats.tls_cert", &config.nats.tls_cert),
        ("nats.tls_key", &config.nats.tls_key),
        ("embedded_nats.bin", &config.embedded_nats.bin),
        ("rpc.tls_root_ca_path", &rpc_root_ca),
        ("rpc.tls_client_cert", &config.rpc.tls_client_cert),
        ("rpc.tls_client_key", &config.rpc.tls_client_key),
    ];
    let missing = files.iter().filter(|(_, path)| path.as_ref().is_some_and(|path| !cwd.join(path).is_file()));
    missing.map(|(key, _)| given.fault(key, "a file that exists")).collect()
}

/// Lists of secrets without a secret, such as `,`, or with `none` among secrets: what they should guard must not be open.
fn empty_secrets(given: &Given) -> Vec<Fault> {
    let Config { secret, broadcast_key, jwt, rpc, streams, .. } = &given.config;
    let lists = [
        ("secret", secret),
        ("broadcast_key", broadcast_key),
        ("jwt.secret", &jwt.secret),
        ("rpc.secret", &rpc.secret),
        ("streams.secret", &streams.secret),
        ("streams.turbo_secret", &streams.turbo_secret),
        ("streams.cable_ready_secret", &streams.cable_ready_secret),
    ];
    let is_unclear = |text: &str| {
        let entries: Vec<_> = text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).collect();
        entries.is_empty() || (entries.len() > 1 && entries.contains(&"none"))
    };
    let unclear = lists.iter().filter(|(_, list)| list.as_ref().is_some_and(|list| is_unclear(list.expose())));
    unclear.map(|(key, _)| given.fault(key, "one or more secrets separated by commas, or `none` alone")).collect()
}

/// Options that need each other.
fn pairs(given: &Given) -> Vec<Fault> {
    let Config { server, nats, rpc, .. } = &given.config;
    let together = [
        ("rpc.tls_client_cert", rpc.tls_client_cert.is_some(), "rpc.tls_client_key", rpc.tls_client_key.is_some()),
        ("server.ssl.cert_path", server.ssl_cert_path.is_some(), "server.ssl.key_path", server.ssl_key_path.is_some()),
        ("nats.tls_cert", nats.tls_cert.is_some(), "nats.tls_key", nats.tls_key.is_some()),
        ("nats.user", nats.user.is_some(), "nats.password", nats.password.is_some()),
    ];
    let half = together.into_iter().filter(|(_, one, _, other)| one != other);
    half.map(|(one, one_given, other, _)| {
        let (alone, missing) = if one_given { (one, other) } else { (other, one) };
        given.fault(alone, format!("{alone} and {missing} together, or neither"))
    })
    .collect()
}

/// One way to authenticate to NATS.
fn nats_methods(given: &Given) -> Option<Fault> {
    let Nats { user, token, creds, nkey, .. } = &given.config.nats;
    let ways = [
        ("nats.user", user.is_some()),
        ("nats.token", token.is_some()),
        ("nats.creds", creds.is_some()),
        ("nats.nkey", nkey.is_some()),
    ];
    let second = ways.iter().filter(|(_, used)| *used).nth(1)?;
    Some(given.fault(second.0, "only one of nats_user, nats_token, nats_creds and nats_nkey"))
}

/// Adapters that are named but cannot be used yet.
fn adapters(given: &Given) -> Option<Fault> {
    use BroadcastAdapter::{Http, Redis};
    let wanted = &given.config.broadcast_adapters;
    let usable = wanted.iter().all(|adapter| *adapter == Http) || *wanted == [Http, Redis];
    (!usable).then(|| given.fault("broadcast_adapters", "http (nats, redis and redisx are not available yet)"))
}

/// Paths that one listener cannot tell apart.
fn clashing_paths(given: &Given) -> Vec<Fault> {
    let Config { server, ws, http_broadcast, .. } = &given.config;
    let mut paths = vec![("server.health_path", &server.health_path), ("server.ready_path", &server.ready_path)];
    if http_broadcast.listener == BroadcastListener::Main {
        paths.push(("http_broadcast.path", &http_broadcast.path));
    }
    paths.extend(ws.paths.iter().map(|path| ("ws.paths", path)));
    let again = paths.iter().enumerate().filter(|(at, (_, path))| paths[..*at].iter().any(|(_, other)| other == path));
    again.map(|(_, (key, path))| given.fault(key, format!("another path than {path}, which is taken"))).collect()
}

/// `none` means explicitly no secret, everywhere.
fn some_secret(secret: &Option<Secret>) -> Option<Secret> {
    secret.clone().filter(|secret| !Secrets::parse(secret.expose()).is_empty())
}

/// What is given, `none` included, else the fallback.
fn secret_or(given: &Option<Secret>, fallback: &Option<Secret>) -> Option<Secret> {
    if given.is_some() { some_secret(given) } else { fallback.clone() }
}

fn secrets(config: &mut Config) {
    let secret = some_secret(&config.secret);
    if config.public {
        config.noauth = true;
        config.streams.public = true;
    }
    let Streams { secret: streams, turbo_secret, cable_ready_secret, .. } = &mut config.streams;
    *streams = secret_or(streams, &secret);
    *turbo_secret = secret_or(turbo_secret, streams);
    *cable_ready_secret = secret_or(cable_ready_secret, streams);

    config.jwt.secret = secret_or(&config.jwt.secret, &secret);

    let derived = secret.as_ref().and_then(|secret| derive_list(secret, Purpose::Broadcast));
    let key = secret_or(&config.broadcast_key, &derived);
    config.http_broadcast.key_derived = config.broadcast_key.is_none() && key.is_some();
    config.http_broadcast.listener = listener(&config.http_broadcast, config.server.port, key.is_some());
    // The listener is chosen first: public mode opens the port that the key would have guarded.
    config.broadcast_key = key.filter(|_| !config.public);
    config.http_broadcast.key_derived &= !config.public;
    config.secret = secret;
}

fn listener(http: &HttpBroadcast, main: u16, guarded: bool) -> BroadcastListener {
    let port = match http.port {
        0 if guarded => return BroadcastListener::Main,
        0 if main == 0 => return BroadcastListener::Own(0),
        0 => UNGUARDED_PORT,
        port => port,
    };
    if port == main { BroadcastListener::Main } else { BroadcastListener::Own(port) }
}

fn embedded(config: &mut Config, servers_are_default: bool) {
    let embedded = &mut config.embedded_nats;
    if embedded.name.is_empty() {
        embedded.name = server_name(&embedded.service_addr);
    }
    if !embedded.enabled {
        return;
    }
    embedded.jetstream |= config.broker.adapter == BrokerKind::Nats;
    if servers_are_default {
        config.nats.servers = vec![embedded.service_addr.url()];
    }
}

/// The same at each start, so that the store keeps its owner's name.
fn server_name(addr: &Endpoint) -> String {
    addr.to_string().replace(':', "-").replace('/', "")
}

fn warn(config: &mut Config, embedded_name_given: bool) {
    let embedded = &config.embedded_nats;
    let lacks_key = |on: bool, key: &Option<Secret>| on && key.is_none();
    let checks = [
        (config.broadcast_adapters.is_empty(), "no broadcast adapter: applications have no way to publish"),
        (
            !config.noauth && !config.jwt.is_on() && config.rpc.implementation == RpcKind::None,
            "no way to authenticate clients is configured, connections are refused: use jwt_secret, noauth or public",
        ),
        (
            lacks_key(config.streams.turbo, &config.streams.turbo_secret),
            "turbo_streams is on without a secret: its stream names cannot be verified, set secret",
        ),
        (
            lacks_key(config.streams.cable_ready, &config.streams.cable_ready_secret),
            "cable_ready is on without a secret: its stream names cannot be verified, set secret",
        ),
        (config.ws.enable_compression, "enable_ws_compression has no effect: messages are not compressed"),
        (
            config.app.shutdown_delay >= config.app.shutdown_timeout && !config.app.shutdown_delay.is_zero(),
            "shutdown_delay takes all of shutdown_timeout: clients will not be closed gracefully",
        ),
        (
            config.broker.timeout >= CLIENT_PATIENCE,
            "broker_timeout should be below 10 seconds: clients give up before it ends",
        ),
        (
            embedded.enabled && embedded.cluster_addr.is_some() && !embedded_name_given,
            "enats_cluster is on without enats_server_name: each server of a cluster needs a name of its own",
        ),
        (
            embedded.cluster_addr.is_none() && !embedded.routes.is_empty(),
            "enats_cluster_routes has no effect without enats_cluster",
        ),
        (
            embedded.gateway_addr.is_some() && embedded.cluster_name == super::EmbeddedNats::default().cluster_name,
            "enats_gateway is on without enats_cluster_name: each cluster needs a name of its own",
        ),
        (
            embedded.gateway_addr.is_none() && !embedded.gateways.is_empty(),
            "enats_gateways has no effect without enats_gateway",
        ),
    ];
    let raised = checks.into_iter().filter(|(applies, _)| *applies).map(|(_, text)| text.to_owned());
    config.loaded.warnings.extend(raised);
}
