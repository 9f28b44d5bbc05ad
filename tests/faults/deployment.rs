//! Deployments of real processes, one per set-up of the table.

use crate::disk::{Disk, Kind};
use crate::harness::carrick::Builder;
use crate::harness::nats;
use crate::harness::proxy::NatsProxy;
use crate::harness::{Backend, Server, free_port};
use crate::jetstream::JetStream;
use crate::nats_cluster::NatsCluster;
use crate::network::Network;
use crate::paths::{self, Paths, WAYS};
use crate::{counters, proc};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// User and password of the embedded servers, so that the tests can ask them.
const USER: &str = "operator";
const PASSWORD: &str = "for-tests-only";

/// More than any client misses.
pub const HISTORY_LIMIT: u64 = 10_000;
/// `dedup_window` by default, in seconds.
const WINDOW: u64 = 30;
/// `history_ttl` by default, in seconds.
pub const LIFE: u64 = 300;

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
    pub const ALL: [Self; 4] = [Self::EmbeddedSingle, Self::ExternalSingle, Self::ExternalR3, Self::EmbeddedR3];

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

/// Fields end in this order: disks before the folders that they are mounted in.
pub struct Deployment {
    /// Of embedded servers, if they can be filled.
    disks: Vec<Disk>,
    nodes: Vec<Server>,
    /// Between the first node and each external nats-server.
    pub proxies: Vec<Arc<NatsProxy>>,
    pub nats: Option<NatsCluster>,
    jetstream: Arc<JetStream>,
    /// Between embedded servers, if it can be cut.
    network: Option<Network>,
    /// Between nodes or members, if packets can vanish on them.
    paths: Option<Paths>,
    times: Times,
    /// The program that nodes run, by a link that an upgrade changes.
    program: PathBuf,
    _folder: TempDir,
}

/// How a deployment differs from an ordinary one.
#[derive(Default)]
pub struct Variant {
    /// What all nodes run, until [`Deployment::upgrade_to`].
    pub program: Option<PathBuf>,
    /// Another program for the first node alone.
    pub binary: Option<PathBuf>,
    /// Options of the first node.
    pub options: Vec<(&'static str, String)>,
    /// Options of all nodes.
    pub settings: Vec<(&'static str, String)>,
    /// The network between the nats-servers can be cut.
    pub split: bool,
    /// The disks of the nats-servers can be filled.
    pub small_disks: bool,
    /// They can be slowed down, too; each message is flushed to them.
    pub slow_disks: bool,
    /// Packets can vanish: between the first node and NATS, or between the members of an embedded cluster.
    pub paths: bool,
}

/// What the deployment's settings say of times.
#[derive(Clone, Copy)]
struct Times {
    /// In which a retry is known.
    window: Duration,
    /// Of messages.
    life: Duration,
}

impl Variant {
    fn disks(&self) -> Option<Kind> {
        match self {
            Self { slow_disks: true, .. } => Some(Kind::File),
            Self { small_disks: true, .. } => Some(Kind::Memory),
            _ => None,
        }
    }

    fn seconds(&self, name: &str, default: u64) -> Duration {
        let set = self.settings.iter().find(|(option, _)| *option == name);
        Duration::from_secs(set.map_or(default, |(_, value)| value.parse().expect("a number of seconds")))
    }

    fn times(&self) -> Times {
        Times { window: self.seconds("dedup_window", WINDOW), life: self.seconds("history_ttl", LIFE) }
    }
}

/// The program under test: the one that `CARRICK_BIN` names, else the one that was built with the tests.
pub fn program() -> PathBuf {
    std::env::var_os("CARRICK_BIN").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_carrick")), PathBuf::from)
}

impl Deployment {
    pub fn start(setup: Setup) -> Self {
        Self::start_variant(setup, &Variant::default())
    }

    /// Starts everything and waits until all nodes are ready and all copies are up to date.
    pub fn start_variant(setup: Setup, variant: &Variant) -> Self {
        let folder = tempfile::Builder::new().prefix("faults-").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
        let folder = folder.expect("a folder can be created");
        let link = folder.path().join("carrick");
        std::os::unix::fs::symlink(variant.program.clone().unwrap_or_else(program), &link).expect("a link can be made");
        let size = if setup.is_cluster() { 3 } else { 1 };
        let deployment = match setup.is_embedded() {
            true => Self::embedded(size, variant, link, folder),
            false => Self::external(size, variant, link, folder),
        };
        deployment.jetstream.wait_whole();
        deployment
    }

    fn embedded(size: usize, variant: &Variant, program: PathBuf, folder: TempDir) -> Self {
        let ports: Vec<(u16, u16)> = (0..size).map(|_| (free_port(), free_port())).collect();
        let apart = variant.paths && size > 1;
        let paths = variant.paths.then(|| match apart {
            true => Paths::between_members(u8::try_from(size).expect("few members")),
            false => Paths::by_address(),
        });
        // Of the nats-servers, and of the Carricks.
        let hosts: Vec<Ipv4Addr> = match (variant.paths, apart) {
            (_, true) => (0..size).map(paths::address_of).collect(),
            (true, false) => vec![WAYS[0]],
            (false, false) => vec![Ipv4Addr::LOCALHOST; size],
        };
        let places = ports.iter().zip(&hosts);
        let listeners: Vec<SocketAddr> = places.clone().map(|((_, port), host)| (*host, *port).into()).collect();
        let network = variant.split.then(|| {
            let servers = listeners.iter().enumerate().map(|(number, address)| (format!("n{number}"), *address));
            Network::between(&servers.collect::<Vec<_>>())
        });
        let mut disks = Vec::new();
        let builders = places.clone().enumerate().map(|(number, ((client, route), host))| {
            let mut builder = Backend::EmbeddedNats
                .builder()
                .replace("enats_addr", format!("nats://{USER}:{PASSWORD}@{host}:{client}"))
                .option("enats_server_name", format!("n{number}"));
            if let Some(kind) = variant.disks() {
                let store = folder.path().join(format!("store-{number}"));
                std::fs::create_dir(&store).expect("a folder can be created");
                disks.push(Disk::mount(&store, kind).unwrap_or_else(|error| panic!("{error}")));
                builder = builder.replace("enats_store_dir", store.display());
            }
            if variant.slow_disks {
                builder = builder.option("enats_sync", "always");
            }
            if let Some(paths) = paths.as_ref().filter(|_| apart) {
                builder = builder.replace("host", host).namespace(paths.namespace(number));
            }
            if let Some(network) = &network {
                let advertised = network.addresses[number];
                builder = builder.option("enats_bin", advertising(folder.path(), number, advertised).display());
            }
            if size > 1 {
                let reachable = network.as_ref().map_or(&listeners, |network| &network.addresses);
                let routes = reachable.iter().enumerate().filter(|(other, _)| network.is_none() || *other != number);
                let routes: Vec<String> = routes.map(|(_, address)| format!("nats://{address}")).collect();
                builder = builder
                    .option("enats_cluster", format!("nats://{host}:{route}"))
                    .option("enats_cluster_name", "c")
                    .option("enats_cluster_routes", routes.join(","));
            }
            builder
        });
        let nodes = start_all(builders.collect(), variant, &program);
        let addresses = places.map(|((client, _), host)| (*host, *client).into()).collect();
        let jetstream = Arc::new(JetStream::new(addresses, Some((USER.to_owned(), PASSWORD.to_owned()))));
        let (proxies, times) = (Vec::new(), variant.times());
        Self { disks, nodes, proxies, nats: None, jetstream, network, paths, times, program, _folder: folder }
    }

    fn external(size: usize, variant: &Variant, program: PathBuf, folder: TempDir) -> Self {
        // What a server does that never gives up a silent client is the kernel's business, and ours.
        let nats = NatsCluster::start(size, variant.split, variant.disks(), !variant.paths);
        let addresses: Vec<SocketAddr> = nats.members.iter().map(|member| member.address).collect();
        let paths = variant.paths.then(Paths::by_address);
        let ways = if variant.paths { &WAYS[..] } else { &[Ipv4Addr::LOCALHOST] };
        let proxies: Vec<Arc<NatsProxy>> = addresses
            .iter()
            .flat_map(|server| ways.iter().map(|way| Arc::new(NatsProxy::start_at(*way, *server))))
            .collect();
        let direct: Vec<String> = addresses.iter().map(|address| format!("nats://{address}")).collect();
        let through: Vec<String> = proxies.iter().map(|proxy| proxy.url()).collect();
        let node = |urls: &[String]| Backend::on_nats(&urls.join(","), "t").option("nats_replicas", size);
        let nodes = start_all(vec![node(&through), node(&direct)], variant, &program);
        let jetstream = Arc::new(JetStream::new(addresses, None));
        let (disks, times) = (Vec::new(), variant.times());
        let (nats, network) = (Some(nats), None);
        Self { disks, nodes, proxies, nats, jetstream, network, paths, times, program, _folder: folder }
    }

    pub fn nodes(&self) -> &[Server] {
        &self.nodes
    }

    pub fn node_mut(&mut self, number: usize) -> &mut Server {
        &mut self.nodes[number]
    }

    pub fn jetstream(&self) -> &Arc<JetStream> {
        &self.jetstream
    }

    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.jetstream.block_on(future)
    }

    /// Several nats-servers.
    pub fn is_cluster(&self) -> bool {
        self.nats.as_ref().map_or(self.nodes.len(), |nats| nats.members.len()) > 1
    }

    /// Between its nats-servers; only in a [`Variant::split`] deployment.
    pub fn network(&self) -> &Network {
        let network = self.nats.as_ref().map_or(&self.network, |nats| &nats.network);
        network.as_ref().expect("the variant has a network that can be cut")
    }

    /// On which packets can vanish; only in a deployment with [`Variant::paths`].
    pub fn paths(&self) -> &Paths {
        self.paths.as_ref().expect("the variant has paths on which packets can vanish")
    }

    /// How long a retry is known for one.
    pub fn window(&self) -> Duration {
        self.times.window
    }

    /// How long messages live.
    pub fn life(&self) -> Duration {
        self.times.life
    }

    /// Where an embedded server keeps its data.
    pub fn embedded_store(&self, number: usize) -> PathBuf {
        let disk = self.disks.get(number).map(|disk| disk.path().to_owned());
        disk.unwrap_or_else(|| self.nodes[number].folder().join("store"))
    }

    /// Of this nats-server; only in a deployment with disks.
    pub fn disk(&self, number: usize) -> &Disk {
        match &self.nats {
            Some(nats) => nats.members[number].disk.as_ref().expect("the variant has disks that can be filled"),
            None => &self.disks[number],
        }
    }

    /// Nodes that start from now on run this program.
    pub fn upgrade_to(&self, program: &Path) {
        std::fs::remove_file(&self.program).expect("the link is there");
        std::os::unix::fs::symlink(program, &self.program).expect("a link can be made");
    }

    /// Logs of all processes, each with a name for its copy.
    pub fn logs(&self) -> Vec<(String, PathBuf)> {
        let nodes = self.nodes.iter().enumerate();
        let mut all: Vec<_> =
            nodes.map(|(number, node)| (format!("carrick-{number}.log"), node.folder().join("carrick.log"))).collect();
        let members = self.nats.iter().flat_map(|nats| &nats.members);
        all.extend(members.map(|member| (format!("nats-{}.log", member.name()), member.log())));
        all
    }

    /// Process id of the nats-server of this name (`n0` …), if it runs.
    pub fn find_nats(&self, name: &str) -> Option<u32> {
        let number = number_of(name);
        let pid = match &self.nats {
            Some(nats) => Some(nats.members[number].pid()),
            None => {
                let children = proc::children(self.nodes[number].pid());
                children.into_iter().find(|pid| proc::command_line(*pid).contains("nats"))
            }
        };
        pid.filter(|pid| proc::is_alive(*pid))
    }

    /// The same; it must run.
    pub fn nats_pid(&self, name: &str) -> u32 {
        self.find_nats(name).unwrap_or_else(|| panic!("no nats-server {name} runs"))
    }

    /// Kills nodes in one moment.
    pub fn kill_nodes(&mut self, numbers: &[usize]) {
        numbers.iter().for_each(|number| self.nodes[*number].kill());
    }

    /// Starts nodes in one moment, and waits until they are ready: members of a cluster may be ready only together.
    pub fn start_nodes(&mut self, numbers: &[usize]) {
        std::thread::scope(|scope| {
            for (number, node) in self.nodes.iter_mut().enumerate() {
                if numbers.contains(&number) {
                    scope.spawn(|| node.start());
                }
            }
        });
    }
}

/// Number in a server's name.
pub fn number_of(name: &str) -> usize {
    let digits: String = name.chars().filter(char::is_ascii_digit).collect();
    digits.parse().expect("servers are named n0, n1, …")
}

/// The pinned nats-server, told to advertise another route listener than its own. Carrick has no option for that: in
/// earnest nobody puts a proxy there.
fn advertising(folder: &Path, number: usize, address: SocketAddr) -> PathBuf {
    let path = folder.join(format!("nats-server-{number}"));
    let script = format!("#!/bin/sh\nexec {:?} \"$@\" --cluster_advertise {address}\n", nats::binary());
    std::fs::write(&path, script).expect("a script can be written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("it can be made executable");
    path
}

/// Starts nodes at the same time: members of a cluster are ready only together.
fn start_all(builders: Vec<Builder>, variant: &Variant, program: &Path) -> Vec<Server> {
    std::thread::scope(|scope| {
        let starting: Vec<_> = builders
            .into_iter()
            .enumerate()
            .map(|(number, builder)| {
                let builder = builder.option("history_limit", HISTORY_LIMIT).option("metrics_http", counters::PATH);
                let mut builder = builder.binary(program);
                for (name, value) in &variant.settings {
                    builder = builder.replace(name, value);
                }
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
