//! The receiving side: one thread, thousands of sockets, big reads, and a look at each message's offset.

use crate::frames;
use crate::socket::Subscribed;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use std::io::{ErrorKind, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// What precedes a message's offset.
const MARK: &[u8] = b"\"offset\":";

const READ_BUFFER: usize = 256 * 1024;

/// What all receiving threads share.
#[derive(Debug, Default)]
pub struct Counters {
    /// Messages with an offset that arrived.
    pub delivered: AtomicU64,
    pub bytes: AtomicU64,
    pub stop: AtomicBool,
}

/// What a receiving thread found.
#[derive(Debug, Default)]
pub struct Findings {
    /// Messages whose offset was not above the one before.
    pub disordered: u64,
    /// Sockets that the server closed.
    pub closed: u64,
    /// Text frames without an offset: pings.
    pub others: u64,
    /// Messages per socket: the least and the most. With rising offsets, the number that was published means that
    /// each one came once.
    pub per_socket: Option<(u64, u64)>,
}

struct Conn {
    stream: TcpStream,
    /// The beginning of a frame whose end has not come yet.
    rest: Vec<u8>,
    /// Offset of the last message, and how many there were.
    last: u64,
    messages: u64,
    open: bool,
}

pub struct Swarm {
    poll: Poll,
    conns: Vec<Conn>,
    buffer: Vec<u8>,
    /// Where in the payload the last message had its offset.
    hint: usize,
    findings: Findings,
}

/// Spreads the sockets over this many threads.
pub fn start(
    sockets: Vec<Subscribed>,
    threads: usize,
    counters: &Arc<Counters>,
) -> std::io::Result<Vec<JoinHandle<Findings>>> {
    let mut parts: Vec<Vec<Subscribed>> = (0..threads.max(1)).map(|_| Vec::new()).collect();
    let count = parts.len();
    for (index, socket) in sockets.into_iter().enumerate() {
        parts[index % count].push(socket);
    }
    let mut handles = Vec::new();
    for part in parts {
        let swarm = Swarm::new(part)?;
        let counters = Arc::clone(counters);
        handles.push(std::thread::spawn(move || swarm.run(&counters)));
    }
    Ok(handles)
}

impl Swarm {
    fn new(sockets: Vec<Subscribed>) -> std::io::Result<Self> {
        let poll = Poll::new()?;
        let mut conns = Vec::with_capacity(sockets.len());
        for (index, socket) in sockets.into_iter().enumerate() {
            socket.stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(socket.stream);
            poll.registry().register(&mut stream, Token(index), Interest::READABLE)?;
            conns.push(Conn { stream, rest: socket.rest, last: 0, messages: 0, open: true });
        }
        Ok(Self { poll, conns, buffer: vec![0; READ_BUFFER], hint: 0, findings: Findings::default() })
    }

    fn run(mut self, counters: &Counters) -> Findings {
        let mut events = Events::with_capacity(1024);
        while !counters.stop.load(Ordering::Relaxed) {
            match self.poll.poll(&mut events, Some(Duration::from_millis(50))) {
                Err(error) if error.kind() != ErrorKind::Interrupted => break,
                _ => {}
            }
            let (mut delivered, mut bytes) = (0, 0);
            for event in &events {
                self.read(event.token().0, &mut delivered, &mut bytes);
            }
            counters.delivered.fetch_add(delivered, Ordering::Release);
            counters.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        let messages = self.conns.iter().map(|conn| conn.messages);
        self.findings.per_socket = messages.clone().min().zip(messages.max());
        self.findings
    }

    /// Reads a socket until it is empty. A short read means that it is: readiness is reported anew for what follows.
    fn read(&mut self, index: usize, delivered: &mut u64, bytes: &mut u64) {
        let Self { conns, buffer, hint, findings, .. } = self;
        let conn = &mut conns[index];
        while conn.open {
            let kept = conn.rest.len();
            if buffer.len() < kept + READ_BUFFER / 2 {
                buffer.resize(kept + READ_BUFFER, 0);
            }
            buffer[..kept].copy_from_slice(&conn.rest);
            let room = buffer.len() - kept;
            let n = match conn.stream.read(&mut buffer[kept..]) {
                Ok(0) => {
                    conn.open = false;
                    findings.closed += 1;
                    return;
                }
                Ok(n) => n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => {
                    conn.open = false;
                    findings.closed += 1;
                    return;
                }
            };
            *bytes += n as u64;
            let filled = &buffer[..kept + n];
            let mut at = 0;
            while let Some(frame) = frames::first(&filled[at..]) {
                match offset(&filled[at + frame.start..at + frame.end], hint) {
                    Some(offset) => {
                        *delivered += 1;
                        conn.messages += 1;
                        findings.disordered += u64::from(offset <= conn.last);
                        conn.last = offset;
                    }
                    // A close frame counts when the end of the stream follows.
                    None => findings.others += u64::from(frame.opcode == 1),
                }
                at += frame.end;
            }
            conn.rest.clear();
            conn.rest.extend_from_slice(&filled[at..]);
            if n < room {
                return;
            }
        }
    }
}

/// The number behind the mark. Messages of one run look alike, so it is looked for where it was last.
fn offset(payload: &[u8], hint: &mut usize) -> Option<u64> {
    if payload.get(*hint..*hint + MARK.len()) != Some(MARK) {
        *hint = payload.windows(MARK.len()).rposition(|part| part == MARK)?;
    }
    let digits = payload[*hint + MARK.len()..].iter().take_while(|byte| byte.is_ascii_digit());
    Some(digits.fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}
