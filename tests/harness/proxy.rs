//! A proxy between one Carrick and its nats-server that understands NATS' protocol well enough to lose live messages.
//!
//! It runs on threads of its own, so that it works while a test waits for a server to start.
//!
//! What it holds of a connection ends with a reset of the sender's side, as on a path without a middlebox: the receiver gets
//! a reset and nothing more.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

pub struct NatsProxy {
    address: SocketAddr,
    state: Arc<State>,
}

struct State {
    /// The nats-server.
    to: SocketAddr,
    loss: Mutex<Loss>,
    /// No live message passes that comes from a log.
    lose_stored: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
    closed: AtomicBool,
}

/// Which live messages get lost.
#[derive(Default)]
struct Loss {
    /// Let this many pass first.
    pass: u64,
    /// Then lose this many.
    lose: u64,
    lost: u64,
}

impl NatsProxy {
    pub fn start(to: SocketAddr) -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST, to)
    }

    /// Starts one that is called at this address.
    pub fn start_at(address: Ipv4Addr, to: SocketAddr) -> Self {
        let listener = TcpListener::bind((address, 0)).expect("a port can be bound");
        let address = listener.local_addr().expect("a bound port has an address");
        let connections = Mutex::new(Vec::new());
        let (closed, lose_stored) = (AtomicBool::new(false), AtomicBool::new(false));
        let state = Arc::new(State { to, loss: Mutex::default(), lose_stored, connections, closed });
        let accepting = state.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if accepting.closed.load(Ordering::Relaxed) {
                    return;
                }
                // A refused connection closes the client's too, as the server itself would.
                let _ = accepting.join(client);
            }
        });
        Self { address, state }
    }

    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Lets `pass` live messages pass from now on and loses the `lose` that follow.
    pub fn lose_live(&self, pass: u64, lose: u64) {
        *self.state.loss.lock().expect("no thread panics with the lock") = Loss { pass, lose, lost: 0 };
    }

    /// Loses all live messages that come from a log, or none of them.
    #[allow(dead_code, reason = "the suites that share this file do not all need it")]
    pub fn lose_stored(&self, lose: bool) {
        self.state.lose_stored.store(lose, Ordering::Relaxed);
    }

    /// Live messages lost since then: the proof that the fault acted.
    pub fn lost(&self) -> u64 {
        self.state.loss.lock().expect("no thread panics with the lock").lost
    }

    /// Cuts all connections; new ones are taken. Answers with the number that still stood.
    pub fn cut(&self) -> usize {
        let mut connections = self.state.connections.lock().expect("no thread panics with the lock");
        // Both ends of a connection are kept; one that is gone already cannot be shut down.
        connections.drain(..).filter(|end| end.shutdown(Shutdown::Both).is_ok()).count().div_ceil(2)
    }
}

impl Drop for NatsProxy {
    fn drop(&mut self) {
        self.state.closed.store(true, Ordering::Relaxed);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
        self.cut();
    }
}

impl State {
    fn join(self: &Arc<Self>, client: TcpStream) -> std::io::Result<()> {
        let server = TcpStream::connect(self.to)?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (from_client, to_server) = (client.try_clone()?, server.try_clone()?);
        forget_with(&client, &server)?;
        forget_with(&server, &client)?;
        let mut connections = self.connections.lock().expect("no thread panics with the lock");
        connections.extend([client.try_clone()?, server.try_clone()?]);
        thread::spawn(move || {
            // Either side's end ends the other.
            match pass(&from_client, &to_server) {
                Err(error) if error.kind() == ErrorKind::ConnectionReset => abort(&to_server),
                _ => drop(to_server.shutdown(Shutdown::Both)),
            }
        });
        let state = self.clone();
        thread::spawn(move || match state.pass_server_lines(BufReader::new(server), &client) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => abort(&client),
            _ => drop(client.shutdown(Shutdown::Both)),
        });
        Ok(())
    }

    /// Copies the server's side of the protocol, less what is to be lost.
    fn pass_server_lines(&self, mut server: BufReader<TcpStream>, mut client: &TcpStream) -> std::io::Result<()> {
        loop {
            let mut operation = Vec::new();
            if server.read_until(b'\n', &mut operation)? == 0 {
                return Ok(());
            }
            let line = String::from_utf8_lossy(&operation).into_owned();
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let is_message = matches!(words.first(), Some(&("MSG" | "HMSG")));
            if is_message {
                let size = words.last().and_then(|size| size.parse::<usize>().ok()).ok_or(ErrorKind::InvalidData)?;
                let start = operation.len();
                operation.resize(start + size + 2, 0);
                server.read_exact(&mut operation[start..])?;
            }
            refuse_reset(server.get_ref())?;
            if !(is_message && (self.is_lost(words[1]) || self.is_lost_for_good(words[1], &operation))) {
                client.write_all(&operation)?;
            }
        }
    }

    fn is_lost_for_good(&self, subject: &str, message: &[u8]) -> bool {
        let is_stored = || String::from_utf8_lossy(message).contains("Nats-Sequence:");
        self.lose_stored.load(Ordering::Relaxed) && subject.contains(".live.") && is_stored()
    }

    fn is_lost(&self, subject: &str) -> bool {
        // A node's own messages, which test its feed, are not counted.
        if !subject.contains(".live.") || subject.contains(".~feed-") {
            return false;
        }
        let mut loss = self.loss.lock().expect("no thread panics with the lock");
        if loss.pass > 0 {
            loss.pass -= 1;
            return false;
        }
        let is_lost = loss.lost < loss.lose;
        loss.lost += u64::from(is_lost);
        is_lost
    }
}

/// Copies one side to the other until either ends.
fn pass(mut from: &TcpStream, mut to: &TcpStream) -> std::io::Result<()> {
    let mut bytes = [0; 16 * 1024];
    loop {
        let count = from.read(&mut bytes)?;
        if count == 0 {
            return Ok(());
        }
        refuse_reset(from)?;
        to.write_all(&bytes[..count])?;
    }
}

/// Aborts the receiver's side when the sender's was reset, although the receiver may have no room just now.
fn forget_with(sender: &TcpStream, receiver: &TcpStream) -> std::io::Result<()> {
    let (sender, receiver) = (sender.try_clone()?, receiver.try_clone()?);
    thread::spawn(move || {
        // An end in whatever way is waited for; only a reset is an error.
        if events(&sender, None).contains(PollFlags::ERR) {
            abort(&receiver);
        }
    });
    Ok(())
}

/// An error if the sender's side was reset: data that came before it can still be read.
fn refuse_reset(sender: &TcpStream) -> std::io::Result<()> {
    match events(sender, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).contains(PollFlags::ERR) {
        true => Err(ErrorKind::ConnectionReset.into()),
        false => Ok(()),
    }
}

/// Waits for an end of the connection; what has happened by then.
fn events(connection: &TcpStream, timeout: Option<&Timespec>) -> PollFlags {
    let mut ends = [PollFd::new(connection, PollFlags::empty())];
    while poll(&mut ends, timeout).is_err_and(|error| error == rustix::io::Errno::INTR) {}
    ends[0].revents()
}

/// Forgets what was to be sent, and resets the connection.
fn abort(receiver: &TcpStream) {
    // It may have ended already.
    let _ = rustix::net::connect_unspec(receiver);
}

#[cfg(test)]
mod tests {
    use super::super::backend::shared_nats;
    use super::*;
    use futures_util::StreamExt;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn it_loses_what_it_is_told_and_nothing_else() {
        let proxy = NatsProxy::start(shared_nats().address());
        let deaf = async_nats::connect(proxy.url()).await.expect("the proxy passes the handshake");
        let mut heard = deaf.subscribe("proxy.>").await.expect("subscribed");
        deaf.flush().await.expect("flushed");
        proxy.lose_live(1, 2);
        let operator = shared_nats().operator().await;
        for (number, subject) in ["live.a", "live.b", "other", "live.c", "live.d"].into_iter().enumerate() {
            let payload = format!("{number}\r\nMSG is part of it");
            operator.publish(format!("proxy.{subject}.x"), payload.into()).await.expect("published");
        }
        operator.flush().await.expect("flushed");
        for number in ["0", "2", "4"] {
            let message = heard.next().await.expect("a message");
            assert!(message.payload.starts_with(number.as_bytes()), "{message:?} instead of {number}");
        }
        assert_eq!(proxy.lost(), 2);
    }

    /// The server has room for little, and reads only afterwards.
    #[tokio::test]
    async fn row_01_it_forgets_what_it_holds_when_the_sender_is_reset() {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4_096).expect("it may be small");
        socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a port can be bound");
        let server = socket.listen(8).expect("it listens");
        let proxy = NatsProxy::start(server.local_addr().expect("it is bound"));
        let sender = tokio::net::TcpStream::connect(proxy.address).await.expect("it listens");
        let mut receiver = server.accept().await.expect("the proxy connects").0;
        // Until nobody on the way takes more.
        let mut sent = 0;
        while tokio::time::timeout(std::time::Duration::from_millis(300), sender.writable()).await.is_ok() {
            sent += sender.try_write(&[b'x'; 65_536]).unwrap_or(0);
        }
        assert!(sent > 65_536, "{sent} bytes on their way");
        sender.set_zero_linger().expect("a reset instead of an end");
        drop(sender);
        let mut read = Vec::new();
        let outcome = receiver.read_to_end(&mut read).await;
        assert_eq!(outcome.map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
        println!("{} of {sent} bytes came", read.len());
        assert!(read.len() < sent / 2, "{} of {sent} bytes", read.len());
    }
}
