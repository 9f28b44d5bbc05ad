//! A Carrick process with its embedded nats-server, on loopback, in a directory of its own.

#[path = "../harness/ports.rs"]
mod ports;

use crate::proc::{self, eventually};
use ports::free_port;
use rustix::process::Signal;
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// From start to the first stored message. Generous: tests share their machine.
const READY_PATIENCE: Duration = Duration::from_secs(30);
/// A graceful stop may take as long as the server's own shutdown timeout.
const STOP_PATIENCE: Duration = Duration::from_secs(35);

pub struct Server {
    binary: PathBuf,
    dir: PathBuf,
    extra: Vec<String>,
    /// Where its nats-server listens, with the user that we gave it.
    pub nats_url: String,
    /// 0 until the first start has told which one it got.
    port: u16,
    broadcast: String,
    child: Child,
}

impl Server {
    /// Starts with `--embed_nats --broker=nats --public` and waits until it stores messages.
    pub fn start(binary: &Path, dir: &Path, extra: &[String]) -> Result<Self, String> {
        let nats_url = format!("nats://tests:tests@127.0.0.1:{}", free_port());
        let child = spawn(binary, dir, extra, &nats_url, 0)?;
        let mut server = Self {
            binary: binary.to_owned(),
            dir: dir.to_owned(),
            extra: extra.to_vec(),
            nats_url,
            port: 0,
            broadcast: String::new(),
            child,
        };
        server.find_addresses()?;
        server.wait_ready()?;
        Ok(server)
    }

    /// `127.0.0.1:PORT` of the client side.
    pub fn http(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `127.0.0.1:PORT` of the publishers' side.
    pub fn broadcast(&self) -> &str {
        &self.broadcast
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The nats-server that Carrick started.
    pub fn nats_pid(&self) -> Option<u32> {
        proc::children(self.pid()).into_iter().find(|pid| proc::command_line(*pid).contains("nats"))
    }

    /// Waits until the process has ended, by itself or by a signal that was sent.
    pub fn wait_exit(&mut self) -> Result<ExitStatus, String> {
        let child = &mut self.child;
        eventually(STOP_PATIENCE, "end of the carrick process", || child.try_wait().ok().flatten())
    }

    /// Starts the process again, on the same ports and the same store.
    pub fn start_again(&mut self) -> Result<(), String> {
        self.child = spawn(&self.binary, &self.dir, &self.extra, &self.nats_url, self.port)?;
        self.find_addresses()?;
        self.wait_ready()
    }

    /// Waits until a message is stored.
    pub fn wait_ready(&mut self) -> Result<(), String> {
        let (broadcast, child) = (&self.broadcast, &mut self.child);
        let mut ended = None;
        let mut last = String::new();
        let ready = eventually(READY_PATIENCE, "a stored message", || {
            ended = child.try_wait().ok().flatten();
            if ended.is_some() {
                return Some(());
            }
            match post(broadcast, r#"{"stream":"readiness","data":"1"}"#) {
                Ok(201) => return Some(()),
                Ok(status) => last = format!("status {status}"),
                Err(error) => last = error.to_string(),
            }
            None
        });
        match ended {
            Some(status) => Err(format!("carrick ended while it was awaited: {status}")),
            None => ready.map_err(|error| format!("{error} (last: {last})")),
        }
    }

    /// Stops it gracefully; its nats-server must be gone afterwards.
    pub fn stop(&mut self) -> Result<ExitStatus, String> {
        let nats = self.nats_pid();
        proc::signal(self.pid(), Signal::TERM)?;
        let status = self.wait_exit()?;
        if let Some(nats) = nats {
            eventually(Duration::from_secs(5), "end of the orphaned nats-server", || {
                (!proc::is_alive(nats)).then_some(())
            })?;
        }
        Ok(status)
    }

    /// The last lines of its log.
    pub fn log_tail(dir: &Path, lines: usize) -> String {
        let log = std::fs::read(dir.join("carrick.log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    fn find_addresses(&mut self) -> Result<(), String> {
        let path = self.dir.join("ports.json");
        let child = &mut self.child;
        let found = eventually(READY_PATIENCE, "the file with the bound addresses", || {
            if let Ok(Some(status)) = child.try_wait() {
                return Some(Err(format!("carrick ended at its start: {status}")));
            }
            let text = std::fs::read(&path).ok()?;
            let ports: serde_json::Value = serde_json::from_slice(&text).ok()?;
            let of = |key: &str| ports[key].as_str().map(str::to_owned);
            let http = of("http")?;
            Some(Ok((http.clone(), of("broadcast").unwrap_or(http))))
        })?;
        let (http, broadcast) = found?;
        self.port = http
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok())
            .ok_or_else(|| format!("no port in {http}"))?;
        self.broadcast = broadcast;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // After a failed round; its nats-server goes with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(binary: &Path, dir: &Path, extra: &[String], nats_url: &str, port: u16) -> Result<Child, String> {
    let log = File::options().create(true).append(true).open(dir.join("carrick.log")).map_err(|e| e.to_string())?;
    let errors = log.try_clone().map_err(|e| e.to_string())?;
    let ports = dir.join("ports.json");
    // A stale file would name the ports of the previous process.
    match std::fs::remove_file(&ports) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.to_string()),
        _ => {}
    }
    Command::new(binary)
        .args(["--embed_nats", "--broker=nats", "--public"])
        // With a secret the broadcast endpoint is on the main port; public mode leaves it open.
        .arg("--secret=load-and-kill-tests")
        .arg(format!("--port={port}"))
        .arg(format!("--port_file={}", ports.display()))
        .arg(format!("--enats_addr={nats_url}"))
        .arg(format!("--enats_store_dir={}", dir.join("store").display()))
        .args(extra)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .map_err(|error| format!("cannot start {}: {error}", binary.display()))
}

/// Publishes a body over a connection of its own; answers with the status.
fn post(address: &str, body: &str) -> std::io::Result<u16> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(12)))?;
    write!(
        stream,
        "POST /_broadcast HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.ok_or_else(|| std::io::Error::other(format!("no HTTP answer: {answer:?}")))
}
