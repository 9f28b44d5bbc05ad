//! nats-servers of the tests' own: one, or three that keep three copies of everything.

use crate::disk::{Disk, Kind};
use crate::harness::free_port;
use crate::harness::nats::binary;
use crate::harness::process::Process;
use crate::network::Network;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

/// User and password of the system account, which removes members from a cluster.
pub const SYSTEM: (&str, &str) = ("system", "for-tests-only");

pub struct NatsCluster {
    pub members: Vec<Member>,
    /// Between the members, if it can be cut.
    pub network: Option<Network>,
}

pub struct Member {
    /// Of its own, if it can be filled. Unmounted before its folder is removed.
    pub disk: Option<Disk>,
    folder: TempDir,
    name: String,
    pub address: SocketAddr,
    /// Each message is flushed to the disk.
    syncs: bool,
    /// It asks soon whether a client is there, and else ends the connection.
    pings: bool,
    /// Its cluster block; empty for a server that is alone, which would wait for a majority for ever.
    cluster: String,
    process: Option<Process>,
}

impl NatsCluster {
    /// `split`: the network between them can be cut; `disks`: they have disks of their own; `pings`: they soon give up
    /// clients that are silent.
    pub fn start(size: usize, split: bool, disks: Option<Kind>, pings: bool) -> Self {
        let ports: Vec<(u16, u16)> = (0..size).map(|_| (free_port(), free_port())).collect();
        let listeners: Vec<SocketAddr> =
            ports.iter().map(|(_, port)| SocketAddr::from(([127, 0, 0, 1], *port))).collect();
        let network = split.then(|| {
            let servers = listeners.iter().enumerate().map(|(number, address)| (format!("n{number}"), *address));
            Network::between(&servers.collect::<Vec<_>>())
        });
        let reachable = network.as_ref().map_or(&listeners, |network| &network.addresses);
        let members = ports.iter().enumerate().map(|(number, (client, _))| {
            let folder = tempfile::Builder::new().prefix("nats-").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
            let folder = folder.expect("a folder can be created");
            let store = folder.path().join("store");
            std::fs::create_dir(&store).expect("a folder can be created");
            let disk = disks.map(|kind| Disk::mount(&store, kind).unwrap_or_else(|error| panic!("{error}")));
            let routes = reachable.iter().enumerate().filter(|(other, _)| *other != number);
            let routes: Vec<String> = routes.map(|(_, address)| format!("\"nats://{address}\"")).collect();
            let cluster = if size == 1 {
                String::new()
            } else {
                format!(
                    "cluster {{ name: c, listen: \"{}\", advertise: \"{}\", no_advertise: true, ping_interval: \"1s\", \
                     ping_max: 2, routes: [{}] }}\n",
                    listeners[number],
                    reachable[number],
                    routes.join(", ")
                )
            };
            let address = SocketAddr::from(([127, 0, 0, 1], *client));
            let syncs = disks == Some(Kind::File);
            let name = format!("n{number}");
            let mut member = Member { disk, folder, name, address, syncs, pings, cluster, process: None };
            member.start();
            member
        });
        Self { members: members.collect(), network }
    }
}

impl Member {
    /// Starts it (again) on the same ports and store.
    pub fn start(&mut self) {
        let Self { name, address, cluster, .. } = &*self;
        let (user, password) = SYSTEM;
        let pings = if self.pings { "ping_interval: \"2s\"\n" } else { "" };
        let sync = if self.syncs { ", sync_interval: always" } else { "" };
        let config = format!(
            "server_name: {name}\nlisten: \"{address}\"\n{pings}\
             jetstream {{ store_dir: {:?}{sync} }}\n\
             accounts {{ APP {{ jetstream: enabled, users: [{{user: app, password: app}}] }}, \
             $SYS {{ users: [{{user: {user}, password: {password:?}}}] }} }}\nno_auth_user: app\n{cluster}",
            self.store()
        );
        std::fs::write(self.folder.path().join("server.conf"), config).expect("the configuration can be written");
        let mut command = Command::new(binary());
        command.arg("-c").arg(self.folder.path().join("server.conf"));
        self.process = Some(Process::spawn(command, &self.log()));
    }

    fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    pub fn log(&self) -> PathBuf {
        self.folder.path().join("nats.log")
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn pid(&self) -> u32 {
        self.process().pid()
    }

    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("it has been started")
    }

    pub fn kill(&mut self) {
        self.process.as_mut().expect("it has been started").kill();
    }

    /// Stops it gracefully.
    pub fn stop(&mut self) {
        let process = self.process.as_mut().expect("it has been started");
        process.signal("TERM");
        process.wait(crate::harness::PATIENCE);
    }

    /// Deletes its store and gives it a name that the cluster does not know, which a removed member needs. Answers with
    /// the number of files deleted.
    pub fn wipe(&mut self) -> usize {
        self.name.push('w');
        crate::disk::empty(&self.store()).expect("the store can be deleted")
    }

    /// What it has written.
    pub fn said(&self, text: &str) -> bool {
        self.process().log().contains(text)
    }
}
