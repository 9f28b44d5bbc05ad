//! The store behind the server: the embedded nats-server and the broker, from the configuration.

use super::limits;
use crate::auth::Secrets;
use crate::broker::memory::MemoryBroker;
use crate::broker::nats::{NatsBroker, NatsBrokerConfig};
use crate::broker::{Broker, Feed, Status, none};
use crate::config::{self, BrokerKind, Config, Endpoint, EndpointPort, SyncPolicy};
use crate::critical::critical;
use crate::nats::connect::ClientConfig;
use crate::nats::embedded::{
    ClusterConfig, Credentials, EmbeddedConfig, EmbeddedServer, GatewayConfig, ListenAddr, RemoteGateway, State,
    SyncMode,
};
use crate::ops::shutdown::Phases;
use crate::secret::{Secret, bare_url};
use anyhow::Context;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How often a cluster's leaders are looked at. A handover is made after two looks that show the same.
const GATHER_PERIOD: Duration = Duration::from_secs(15);

/// What stands behind the broker and must be stopped after it.
pub struct Store {
    embedded: Option<EmbeddedServer>,
    pub nats: Option<Arc<NatsBroker>>,
    /// What runs beside the broker and ends with it.
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Store {
    /// Readiness for traffic: the broker's, and in an embedded cluster also that the copies on this member are up to date.
    /// Whoever restarts members one after the other and waits for it never takes the second copy away while the first is
    /// incomplete.
    pub fn readiness(&mut self, broker: &dyn Broker) -> watch::Receiver<Status> {
        let mut broker = broker.status();
        let Some(embedded) = &self.embedded else { return broker };
        let mut member = embedded.status();
        let joined = move |broker: &Status, member: State| match member {
            State::Starting | State::CatchingUp | State::Restarting if broker.ready => Status {
                ready: false,
                reason: Arc::from("the copies on this member of the cluster are not up to date yet"),
                ..broker.clone()
            },
            _ => broker.clone(),
        };
        let status = watch::Sender::new(joined(&broker.borrow(), member.borrow().state));
        let watched = status.subscribe();
        self.tasks.push(tokio::spawn(critical("app.readiness", async move {
            loop {
                let now = joined(&broker.borrow_and_update(), member.borrow_and_update().state);
                status.send_replace(now);
                let changed = tokio::select! {
                    changed = broker.changed() => changed,
                    changed = member.changed() => changed,
                };
                if changed.is_err() {
                    return;
                }
            }
        })));
        watched
    }

    /// Leaves the store in order; the embedded server last, cleanly, so that the next start is quick.
    pub async fn stop(self, phases: &mut Phases) {
        if let Some(nats) = &self.nats {
            phases.run("leaving the store", nats.shutdown()).await;
        }
        for task in &self.tasks {
            task.abort();
        }
        if let Some(embedded) = &self.embedded {
            let left = phases.remaining();
            phases.run("stopping the embedded nats-server", embedded.stop(left)).await;
        }
    }
}

/// Starts the embedded nats-server, if there is one, and the broker.
/// `addr`: where the main listener is.
pub async fn start_broker(
    config: &Config,
    feed: Arc<dyn Feed>,
    addr: SocketAddr,
) -> anyhow::Result<(Arc<dyn Broker>, Store)> {
    let limits = limits(config);
    let embedded = if config.embedded_nats.enabled { Some(start_embedded(config).await?) } else { None };
    let mut store = Store { embedded, nats: None, tasks: Vec::new() };
    let settings = format!(
        "history limit: {}, history ttl: {}s, sessions ttl: {}s, presence ttl: {}s{}",
        config.broker.history_limit,
        config.broker.history_ttl.as_secs(),
        limits.sessions_ttl.as_secs(),
        config.broker.presence_ttl.as_secs(),
        match config.history.0.len() {
            0 => String::new(),
            more => format!(", {more} further history policies"),
        }
    );
    let broker: Arc<dyn Broker> = match config.broker.adapter {
        BrokerKind::None => {
            tracing::info!(context = "broker", "Using no-op (legacy) broker");
            none::new(feed)
        }
        BrokerKind::Memory => {
            let broker = &config.broker;
            let broker = MemoryBroker::within(broker.memory_history_size, limits, broker.dedup_window, feed);
            tracing::info!(
                context = "broker",
                "Using in-memory broker (epoch: {}, {settings})",
                broker.epoch().as_str()
            );
            store.tasks.push(tokio::spawn(critical("memory.sweep", MemoryBroker::sweep(Arc::downgrade(&broker)))));
            broker
        }
        BrokerKind::Nats => start_nats(config, feed, &mut store, &settings, addr).await?,
    };
    Ok((broker, store))
}

/// Names this node among its peers, the same after a restart: what it said of itself before then does not stand in its
/// way.
fn node_name(config: &Config, embedded: Option<&EmbeddedServer>, addr: SocketAddr) -> String {
    if let Some(embedded) = embedded {
        return embedded.server_name().to_owned();
    }
    let machine = rustix::system::uname();
    format!("{}:{}:{}", machine.nodename().to_string_lossy(), config.server.host, addr.port())
}

/// Copies of everything. Members of an embedded cluster cannot wait to see who is there: the first one would create all
/// with a single copy, and on loopback they do not advertise each other at all. Routes to two or more say what is meant.
fn replicas(config: &Config) -> usize {
    let enats = &config.embedded_nats;
    match config.nats.replicas {
        0 if enats.enabled && enats.cluster_addr.is_some() && enats.routes.len() >= 2 => 3,
        wanted => usize::from(wanted),
    }
}

/// Connects to NATS, the embedded server first if there is one.
async fn start_nats(
    config: &Config,
    feed: Arc<dyn Feed>,
    store: &mut Store,
    settings: &str,
    addr: SocketAddr,
) -> anyhow::Result<Arc<dyn Broker>> {
    let mut client = nats_client(config)?;
    let (mut witness_file, mut store_mark, mut store_size) = (None, None, None);
    if let Some(embedded) = &store.embedded {
        let credentials = embedded.credentials();
        client.servers = vec![Secret::from(format!("nats://{}", embedded.addr()))];
        client.user = Some(credentials.user.clone());
        client.password = Some(credentials.password.clone());
        witness_file = Some(config.embedded_nats.jetstream_store_dir.join("witness"));
        store_mark = Some(embedded.mark().clone());
        store_size = Some(embedded.store_limit());
    }
    let servers: Vec<_> = config.nats.servers.iter().map(|server| bare_url(server)).collect();
    let servers = match &store.embedded {
        Some(embedded) => format!("nats://{}", embedded.addr()),
        None => servers.join(","),
    };
    let node = node_name(config, store.embedded.as_ref(), addr);
    let broker = NatsBrokerConfig { witness_file, store_mark, store_size, ..broker_config(config, client, node) };
    if store.embedded.is_none() {
        let window = broker.shortest_window();
        tracing::info!(
            context = "broker",
            "nats-server must close silent connections before retries are forgotten: set its ping_interval below {:.1}s \
             with ping_max 2 (three pings within {:.1}s, see nats/STREAMS.md)",
            window.as_secs_f64() / 3.0,
            window.as_secs_f64(),
        );
    }
    let broker = NatsBroker::start(broker, feed).await?;
    tracing::info!(context = "broker", "Using NATS broker: {servers} ({settings})");
    if let Some(embedded) = &store.embedded {
        let (broker, mut status) = (broker.clone(), embedded.status());
        store.tasks.push(tokio::spawn(critical("app.disk", async move {
            while status.changed().await.is_ok() {
                let full = status.borrow_and_update().disk_full;
                broker.set_disk_full(full);
            }
        })));
    }
    store.nats = Some(broker.clone());
    Ok(broker)
}

pub(super) fn broker_config(config: &Config, client: ClientConfig, node: String) -> NatsBrokerConfig {
    let enats = &config.embedded_nats;
    let named = enats.cluster_addr.is_some() || enats.gateway_addr.is_some();
    let peers = match &enats.gateway_addr {
        Some(_) => enats.gateways.iter().map(|gateway| gateway.name.clone()).collect(),
        None => Vec::new(),
    };
    NatsBrokerConfig {
        client,
        prefix: config.nats.prefix.clone(),
        cluster: named.then(|| enats.cluster_name.clone()),
        peers,
        limits: limits(config),
        replicas: replicas(config),
        placement_tags: config.nats.placement_tags.clone(),
        gather_leaders: config.nats.gather_leaders.then_some(GATHER_PERIOD),
        synced: enats.enabled && matches!(enats.sync, SyncPolicy::Always),
        publish_timeout: config.broker.publish_timeout,
        broker_timeout: config.broker.timeout,
        dedup_window: config.broker.dedup_window,
        node,
        witness_file: None,
        store_size: None,
        store_mark: None,
    }
}

pub(super) fn nats_client(config: &Config) -> anyhow::Result<ClientConfig> {
    let nats = &config.nats;
    let seed = |path: &std::path::PathBuf| {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read nats_nkey {}", path.display()));
        text.map(|seed| Secret::from(seed.trim()))
    };
    Ok(ClientConfig {
        servers: nats.servers.iter().map(|server| Secret::from(server.as_str())).collect(),
        name: format!("carrick {}", config.node_id),
        user: nats.user.clone(),
        password: nats.password.clone(),
        token: nats.token.clone(),
        creds_file: nats.creds.clone(),
        nkey_seed: nats.nkey.as_ref().map(seed).transpose()?,
        ca_file: nats.tls_ca.clone(),
        client_cert: nats.tls_cert.clone(),
        client_key: nats.tls_key.clone(),
        ..ClientConfig::default()
    })
}

/// What all members of a cluster of embedded servers derive their passwords from.
///
/// # Errors
/// There is no secret.
pub fn cluster_secret(config: &Config) -> anyhow::Result<Secret> {
    // Of a list of secrets the first counts: the servers know one password only.
    let secrets = config.secret.as_ref().map(|secret| Secrets::parse(secret.expose()));
    let first = secrets.as_ref().and_then(Secrets::first).map(|secret| secret.derive("nats-cluster"));
    first.context("a cluster of embedded nats-servers authenticates its members: give all of them the same --secret")
}

pub(super) async fn start_embedded(config: &Config) -> anyhow::Result<EmbeddedServer> {
    let enats = &config.embedded_nats;
    let listen = |endpoint: &Endpoint| ListenAddr {
        host: endpoint.host.clone(),
        port: match endpoint.port {
            EndpointPort::Any => None,
            EndpointPort::Fixed(port) => Some(port),
        },
    };
    let shared = || cluster_secret(config);
    let cluster = match &enats.cluster_addr {
        Some(addr) => Some(ClusterConfig {
            addr: listen(addr),
            name: enats.cluster_name.clone(),
            routes: enats.routes.iter().map(|route| route.url().into()).collect(),
            secret: shared()?,
        }),
        None => None,
    };
    let gateway = match &enats.gateway_addr {
        Some(addr) => Some(GatewayConfig {
            addr: listen(addr),
            name: enats.cluster_name.clone(),
            advertise: enats.gateway_advertise.clone(),
            remotes: enats
                .gateways
                .iter()
                .map(|gateway| RemoteGateway {
                    name: gateway.name.clone(),
                    urls: gateway.urls.iter().map(|url| url.url().into()).collect(),
                })
                .collect(),
            secret: shared()?,
        }),
        None => None,
    };
    let credentials = match &enats.service_addr.credentials {
        Some(config::Credentials { user, password: Some(password) }) => {
            Some(Credentials { user: user.clone(), password: password.clone() })
        }
        _ => None,
    };
    let embedded = EmbeddedConfig {
        addr: listen(&enats.service_addr),
        server_name: (!enats.name.is_empty()).then(|| enats.name.clone()),
        store_dir: enats.jetstream_store_dir.clone(),
        bin: enats.bin.clone(),
        max_payload: u32::try_from(enats.max_payload).unwrap_or(u32::MAX),
        debug: enats.debug,
        trace: enats.trace,
        sync: match enats.sync {
            SyncPolicy::ServerDefault => None,
            SyncPolicy::Always => Some(SyncMode::Always),
            SyncPolicy::Every(period) => Some(SyncMode::Every(period)),
        },
        jetstream: true,
        credentials,
        cluster,
        gateway,
        ready_timeout: enats.jetstream_ready_timeout,
        ..EmbeddedConfig::default()
    };
    Ok(EmbeddedServer::start(embedded).await?)
}
