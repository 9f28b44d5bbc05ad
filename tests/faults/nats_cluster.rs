//! Three nats-servers of the tests' own that keep three copies of everything.

use crate::deployment::free_port;
use crate::harness::nats::binary;
use crate::harness::process::Process;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

pub struct NatsCluster {
    pub members: Vec<Member>,
}

pub struct Member {
    folder: TempDir,
    pub address: SocketAddr,
    process: Option<Process>,
}

impl NatsCluster {
    pub fn start(size: usize) -> Self {
        let ports: Vec<(u16, u16)> = (0..size).map(|_| (free_port(), free_port())).collect();
        let routes: Vec<String> = ports.iter().map(|(_, port)| format!("\"nats://127.0.0.1:{port}\"")).collect();
        let members = ports.iter().enumerate().map(|(number, (client, route))| {
            let folder = tempfile::Builder::new().prefix("nats-").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
            let folder = folder.expect("a folder can be created");
            let store = folder.path().join("store");
            // A cluster of one has no routes, and would wait for a majority for ever.
            let cluster = if size == 1 {
                String::new()
            } else {
                format!(
                    "cluster {{ name: c, listen: \"127.0.0.1:{route}\", no_advertise: true, ping_interval: \"1s\", \
                     ping_max: 2, routes: [{}] }}\n",
                    routes.join(", ")
                )
            };
            let config = format!(
                "server_name: n{number}\nlisten: \"127.0.0.1:{client}\"\nping_interval: \"2s\"\n\
                 jetstream {{ store_dir: {store:?} }}\n{cluster}"
            );
            std::fs::write(folder.path().join("server.conf"), config).expect("the configuration can be written");
            let mut member = Member { folder, address: SocketAddr::from(([127, 0, 0, 1], *client)), process: None };
            member.start();
            member
        });
        Self { members: members.collect() }
    }
}

impl Member {
    /// Starts it (again) on the same ports and store.
    pub fn start(&mut self) {
        let mut command = Command::new(binary());
        command.arg("-c").arg(self.folder.path().join("server.conf"));
        self.process = Some(Process::spawn(command, &self.log()));
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("nats.log")
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it has been started").pid()
    }

    pub fn kill(&mut self) {
        self.process.as_mut().expect("it has been started").kill();
    }
}
