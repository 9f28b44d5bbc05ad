//! The network between the nats-servers of a cluster: a proxy in front of each server's route listener, which knows who
//! calls, so that one server can be cut off from all others in both directions.
//!
//! Every server is told to advertise its proxy's address, so that routes which servers learn of from each other take the
//! same way.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

/// A caller names itself in its first lines; longer ones are nobody's.
const GREETING: usize = 64 << 10;

pub struct Network {
    /// Addresses to call the servers at.
    pub addresses: Vec<SocketAddr>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    closed: AtomicBool,
    wires: Mutex<Wires>,
    cut: AtomicU64,
    refused: AtomicU64,
}

#[derive(Default)]
struct Wires {
    /// Servers that reach nobody.
    isolated: BTreeSet<String>,
    open: Vec<Wire>,
}

struct Wire {
    /// Names of the servers at its ends; the caller's once it has said it.
    from: Option<String>,
    to: String,
    sockets: [TcpStream; 2],
}

impl Network {
    /// Proxies for servers of these names and route listeners.
    pub fn between(servers: &[(String, SocketAddr)]) -> Self {
        let state = Arc::new(State::default());
        let addresses = servers.iter().map(|(name, to)| State::listen(&state, name, *to));
        Self { addresses: addresses.collect(), state }
    }

    /// Cuts all routes of this server and lets none come up until [`Network::heal`]. Answers with the number cut.
    pub fn isolate(&self, name: &str) -> u64 {
        let before = self.state.cut.load(Ordering::Relaxed);
        let mut wires = self.state.wires();
        wires.isolated.insert(name.to_owned());
        // Who has not said its name yet may be the one.
        let hit = |wire: &Wire| wire.to == name || wire.from.as_deref().is_none_or(|from| from == name);
        for wire in wires.open.extract_if(.., |wire| hit(wire)) {
            self.state.cut.fetch_add(1, Ordering::Relaxed);
            wire.close();
        }
        self.state.cut.load(Ordering::Relaxed) - before
    }

    pub fn heal(&self) {
        self.state.wires().isolated.clear();
    }

    /// Routes refused because one of their ends was isolated.
    pub fn refused(&self) -> u64 {
        self.state.refused.load(Ordering::Relaxed)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.state.closed.store(true, Ordering::Relaxed);
        for address in &self.addresses {
            // Wakes the accepting thread.
            let _ = TcpStream::connect(address);
        }
        self.state.wires().open.drain(..).for_each(|wire| wire.close());
    }
}

impl Wire {
    fn close(self) {
        for socket in &self.sockets {
            // It may be gone already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl State {
    fn wires(&self) -> MutexGuard<'_, Wires> {
        self.wires.lock().expect("no thread panics with the lock")
    }

    fn listen(self: &Arc<Self>, name: &str, to: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port can be bound");
        let address = listener.local_addr().expect("a bound port has an address");
        let (state, name) = (self.clone(), name.to_owned());
        thread::spawn(move || {
            for caller in listener.incoming().map_while(Result::ok) {
                if state.closed.load(Ordering::Relaxed) {
                    return;
                }
                if state.wires().isolated.contains(&name) {
                    state.refused.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                // A server that is down refuses; so does dropping the caller.
                let _ = state.join(caller, &name, to);
            }
        });
        address
    }

    fn join(self: &Arc<Self>, caller: TcpStream, name: &str, to: SocketAddr) -> std::io::Result<()> {
        let server = TcpStream::connect(to)?;
        caller.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let sockets = [caller.try_clone()?, server.try_clone()?];
        let id = caller.peer_addr()?;
        self.wires().open.push(Wire { from: None, to: name.to_owned(), sockets });
        let (mut from_server, mut to_caller) = (server.try_clone()?, caller.try_clone()?);
        thread::spawn(move || {
            // Either side's end ends the other.
            let _ = std::io::copy(&mut from_server, &mut to_caller);
            let _ = to_caller.shutdown(Shutdown::Both);
        });
        let state = self.clone();
        thread::spawn(move || {
            let (mut caller, mut server) = (caller, server);
            if state.greet(&mut caller, &mut server, id).is_ok() {
                let _ = std::io::copy(&mut caller, &mut server);
            }
            let _ = server.shutdown(Shutdown::Both);
            let _ = caller.shutdown(Shutdown::Both);
            state.wires().open.retain(|wire| wire.sockets[0].peer_addr().is_ok_and(|peer| peer != id));
        });
        Ok(())
    }

    /// Passes on the caller's first lines up to its name. An error: it may not call now.
    fn greet(&self, caller: &mut TcpStream, server: &mut TcpStream, id: SocketAddr) -> std::io::Result<()> {
        let mut said = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let length = caller.read(&mut buffer)?;
            said.extend_from_slice(&buffer[..length]);
            if length == 0 || said.len() > GREETING {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let Some(name) = name_in(&said) else {
                server.write_all(&buffer[..length])?;
                continue;
            };
            let mut wires = self.wires();
            if wires.isolated.contains(&name) {
                self.refused.fetch_add(1, Ordering::Relaxed);
                return Err(std::io::ErrorKind::ConnectionRefused.into());
            }
            let wire = wires.open.iter_mut().find(|wire| wire.sockets[0].peer_addr().is_ok_and(|peer| peer == id));
            wire.ok_or(std::io::ErrorKind::ConnectionAborted)?.from = Some(name);
            drop(wires);
            return server.write_all(&buffer[..length]);
        }
    }
}

/// `"server_name":"n1"` in a server's INFO line.
fn name_in(said: &[u8]) -> Option<String> {
    let said = String::from_utf8_lossy(said);
    let (_, rest) = said.split_once(r#""server_name":""#)?;
    Some(rest.split_once('"')?.0.to_owned())
}
