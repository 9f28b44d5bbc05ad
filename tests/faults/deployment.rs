//! Deployments of real processes, one per set-up of the table.

use crate::harness::carrick::Builder;
use crate::harness::proxy::NatsProxy;
use crate::harness::{Backend, Server};
use crate::jetstream::JetStream;
use crate::nats_cluster::NatsCluster;
use crate::proc;
use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

/// User and password of the embedded servers, so that the tests can ask them.
const USER: &str = "operator";
const PASSWORD: &str = "for-tests-only";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setup {
    /// One Carrick with its own nats-server.
    EmbeddedSingle,
    /// Two Carricks on one nats-server.
    ExternalSingle,
    /// Three Carricks whose nats-servers form a cluster.
    EmbeddedR3,
    /// Two Carricks on a cluster of three nats-servers.
    ExternalR3,
}

impl Setup {
    pub const ALL: [Self; 4] = [Self::EmbeddedSingle, Self::ExternalSingle, Self::EmbeddedR3, Self::ExternalR3];

    pub fn is_embedded(self) -> bool {
        matches!(self, Self::EmbeddedSingle | Self::EmbeddedR3)
    }

    pub fn is_cluster(self) -> bool {
        matches!(self, Self::EmbeddedR3 | Self::ExternalR3)
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::EmbeddedSingle => "embedded, single",
            Self::ExternalSingle => "external, single",
            Self::EmbeddedR3 => "embedded, R3",
            Self::ExternalR3 => "external, R3",
        })
    }
}

pub struct Deployment {
    nodes: Vec<Server>,
    /// Between the first node and each external nats-server.
    pub proxies: Vec<NatsProxy>,
    pub nats: Option<NatsCluster>,
    jetstream: JetStream,
}

/// How a deployment's first node differs; the others always run the binary under test.
#[derive(Default)]
pub struct Variant {
    pub binary: Option<PathBuf>,
    pub options: Vec<(&'static str, String)>,
}

impl Deployment {
    pub fn start(setup: Setup) -> Self {
        Self::start_variant(setup, &Variant::default())
    }

    /// Starts everything and waits until all nodes are ready and all copies are up to date.
    pub fn start_variant(setup: Setup, variant: &Variant) -> Self {
        let deployment = match setup {
            Setup::EmbeddedSingle => Self::embedded(1, variant),
            Setup::EmbeddedR3 => Self::embedded(3, variant),
            Setup::ExternalSingle => Self::external(1, variant),
            Setup::ExternalR3 => Self::external(3, variant),
        };
        deployment.jetstream.wait_whole();
        deployment
    }

    fn embedded(size: usize, variant: &Variant) -> Self {
        let ports: Vec<(u16, u16)> = (0..size).map(|_| (free_port(), free_port())).collect();
        let routes: Vec<String> = ports.iter().map(|(_, port)| format!("nats://127.0.0.1:{port}")).collect();
        let builders = ports.iter().enumerate().map(|(number, (client, route))| {
            let mut builder = Backend::EmbeddedNats
                .builder()
                .replace("enats_addr", format!("nats://{USER}:{PASSWORD}@127.0.0.1:{client}"))
                .option("enats_server_name", format!("n{number}"));
            if size > 1 {
                builder = builder
                    .option("enats_cluster", format!("nats://127.0.0.1:{route}"))
                    .option("enats_cluster_name", "c")
                    .option("enats_cluster_routes", routes.join(","));
            }
            builder
        });
        let nodes = start_all(builders.collect(), variant);
        let addresses = ports.iter().map(|(client, _)| SocketAddr::from(([127, 0, 0, 1], *client)));
        let jetstream = JetStream::new(addresses.collect(), Some((USER.to_owned(), PASSWORD.to_owned())));
        Self { nodes, proxies: Vec::new(), nats: None, jetstream }
    }

    fn external(size: usize, variant: &Variant) -> Self {
        let nats = NatsCluster::start(size);
        let addresses: Vec<SocketAddr> = nats.members.iter().map(|member| member.address).collect();
        let proxies: Vec<NatsProxy> = addresses.iter().map(|address| NatsProxy::start(*address)).collect();
        let direct: Vec<String> = addresses.iter().map(|address| format!("nats://{address}")).collect();
        let through: Vec<String> = proxies.iter().map(NatsProxy::url).collect();
        let node = |urls: &[String]| Backend::on_nats(&urls.join(","), "t").option("nats_replicas", size);
        let nodes = start_all(vec![node(&through), node(&direct)], variant);
        Self { nodes, proxies, nats: Some(nats), jetstream: JetStream::new(addresses, None) }
    }

    pub fn nodes(&self) -> &[Server] {
        &self.nodes
    }

    pub fn node_mut(&mut self, number: usize) -> &mut Server {
        &mut self.nodes[number]
    }

    pub fn jetstream(&self) -> &JetStream {
        &self.jetstream
    }

    /// Process id of the nats-server of this name (`n0` …).
    pub fn nats_pid(&self, name: &str) -> u32 {
        let number = number_of(name);
        match &self.nats {
            Some(nats) => nats.members[number].pid(),
            None => {
                let children = proc::children(self.nodes[number].pid());
                let found = children.into_iter().find(|pid| proc::command_line(*pid).contains("nats"));
                found.expect("an embedded nats-server is a child of its Carrick")
            }
        }
    }
}

/// Number in a server's name.
pub fn number_of(name: &str) -> usize {
    name.trim_start_matches('n').parse().expect("servers are named n0, n1, …")
}

/// Starts nodes at the same time: members of a cluster are ready only together.
fn start_all(builders: Vec<Builder>, variant: &Variant) -> Vec<Server> {
    std::thread::scope(|scope| {
        let starting: Vec<_> = builders
            .into_iter()
            .enumerate()
            .map(|(number, builder)| {
                let mut builder = builder.option("history_limit", 10_000);
                if number == 0 {
                    for (name, value) in &variant.options {
                        builder = builder.replace(name, value);
                    }
                    if let Some(binary) = &variant.binary {
                        builder = builder.binary(binary);
                    }
                }
                scope.spawn(|| builder.start())
            })
            .collect();
        starting.into_iter().map(|node| node.join().expect("a node starts")).collect()
    })
}

pub fn free_port() -> u16 {
    let probe = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    probe.expect("a port can be bound").port()
}
