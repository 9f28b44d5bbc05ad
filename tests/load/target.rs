//! The server under load: one that runs already, or one that we start and stop.

use crate::proc;
use crate::server::Server;
use clap::ArgMatches;
use std::path::PathBuf;

pub struct Target {
    http: String,
    broadcast: String,
    nats: Option<String>,
    pid: Option<u32>,
    started: Option<(Server, tempfile::TempDir)>,
}

impl Target {
    pub fn from_options(options: &ArgMatches) -> Result<Self, String> {
        let text = |name| options.get_one::<String>(name).cloned();
        if let Some(http) = text("http") {
            let broadcast = text("broadcast").unwrap_or_else(|| http.clone());
            return Ok(Self {
                http,
                broadcast,
                nats: text("nats"),
                pid: options.get_one("pid").copied(),
                started: None,
            });
        }
        Self::start(options, &[])
    }

    /// A server that we start ourselves, because it needs these arguments.
    pub fn own(options: &ArgMatches, needed: &[String]) -> Result<Self, String> {
        if options.contains_id("http") {
            return Err("this needs a server of its own: leave --http away".to_owned());
        }
        Self::start(options, needed)
    }

    fn start(options: &ArgMatches, needed: &[String]) -> Result<Self, String> {
        let binary = options.get_one::<PathBuf>("server").cloned();
        let binary = binary.unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_carrick")));
        let given = options.get_many("server-arg").into_iter().flatten();
        let extra: Vec<String> = needed.iter().chain(given).cloned().collect();
        let dir = tempfile::Builder::new().prefix("carrick-load-").tempdir().map_err(|error| error.to_string())?;
        let server = Server::start(&binary, dir.path(), &extra)
            .map_err(|error| format!("{error}\n{}", Server::log_tail(dir.path(), 20)))?;
        Ok(Self {
            http: server.http(),
            broadcast: server.broadcast().to_owned(),
            nats: Some(server.nats_url.clone()),
            pid: Some(server.pid()),
            started: Some((server, dir)),
        })
    }

    pub fn http(&self) -> &str {
        &self.http
    }

    pub fn broadcast(&self) -> &str {
        &self.broadcast
    }

    pub fn nats_url(&self) -> Option<&str> {
        self.nats.as_deref()
    }

    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    pub fn nats_pid(&self) -> Option<u32> {
        proc::children(self.pid?).into_iter().find(|pid| proc::command_line(*pid).contains("nats"))
    }

    /// Stops what we started.
    pub fn stop(self) -> Result<(), String> {
        match self.started {
            Some((mut server, _dir)) => match server.stop()? {
                status if status.success() => Ok(()),
                status => Err(format!("carrick did not stop cleanly: {status}")),
            },
            None => Ok(()),
        }
    }
}
