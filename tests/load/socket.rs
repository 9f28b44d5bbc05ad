//! Raw client sockets: handshake, `welcome`, one confirmed subscription, and then nothing but bytes.

use crate::frames;
use carrick::client::{EXT_JSON, Frame, command};
use std::io::{Error, Read, Result, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A server that prepares thousands of sessions may take its time.
const PATIENCE: Duration = Duration::from_secs(30);
/// Handshakes at once: enough to keep the server busy.
const CONNECTORS: usize = 8;

/// A subscribed socket and what was read of it beyond the confirmation.
pub struct Subscribed {
    pub stream: TcpStream,
    pub rest: Vec<u8>,
    /// Id of its session.
    pub sid: String,
}

/// A client as it is to be.
pub struct Wish {
    /// Query of its URL, such as `?client=7`.
    pub query: String,
    /// What it subscribes to, in this order.
    pub identifiers: Vec<String>,
}

/// The request for an upgrade.
pub fn handshake(address: &str, query: &str) -> String {
    handshake_as(address, query, EXT_JSON)
}

/// The same for another protocol.
pub fn handshake_as(address: &str, query: &str, protocol: &str) -> String {
    format!(
        "GET /cable{query} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
    )
}

/// Opens one socket per identifier; in the order given.
pub fn subscribe_all(address: &str, identifiers: &[String]) -> std::result::Result<Vec<Subscribed>, String> {
    let wish = |identifier: &String| Wish { query: String::new(), identifiers: vec![identifier.clone()] };
    fulfil(address, &identifiers.iter().map(wish).collect::<Vec<_>>())
}

/// Opens one socket per wish; in the order given.
pub fn fulfil(address: &str, wishes: &[Wish]) -> std::result::Result<Vec<Subscribed>, String> {
    let next = AtomicUsize::new(0);
    let connect = || {
        let mut mine = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(wish) = wishes.get(index) else { return Ok(mine) };
            match subscribe(address, wish) {
                Ok(socket) => mine.push((index, socket)),
                Err(error) => return Err(format!("connection {index}: {error}")),
            }
        }
    };
    let mut all = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTORS).map(|_| scope.spawn(connect)).collect();
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().map_err(|_| "a connecting thread panicked".to_owned())??);
        }
        Ok::<_, String>(all)
    })?;
    all.sort_by_key(|(index, _)| *index);
    Ok(all.into_iter().map(|(_, socket)| socket).collect())
}

fn subscribe(address: &str, wish: &Wish) -> Result<Subscribed> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(handshake(address, &wish.query).as_bytes())?;
    let mut reader = Reader { stream, buffer: Vec::new() };
    reader.handshake()?;
    let Frame::Welcome { sid: Some(sid), .. } = reader.until(|frame| matches!(frame, Frame::Welcome { .. }))? else {
        return Err(Error::other("a welcome without a session id"));
    };
    for identifier in &wish.identifiers {
        reader.stream.write_all(&frames::text(&command::subscribe(identifier, None)))?;
        reader.until(|frame| matches!(frame, Frame::ConfirmSubscription(_)))?;
    }
    reader.stream.set_read_timeout(None)?;
    Ok(Subscribed { stream: reader.stream, rest: reader.buffer, sid: sid.expose().to_owned() })
}

struct Reader {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Reader {
    fn more(&mut self) -> Result<()> {
        let mut chunk = [0; 2048];
        match self.stream.read(&mut chunk)? {
            0 => Err(Error::other(format!("closed after {:?}", String::from_utf8_lossy(&self.buffer)))),
            n => {
                self.buffer.extend(&chunk[..n]);
                Ok(())
            }
        }
    }

    fn handshake(&mut self) -> Result<()> {
        let end = loop {
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            self.more()?;
        };
        if !self.buffer.starts_with(b"HTTP/1.1 101") {
            return Err(Error::other(format!("refused: {}", String::from_utf8_lossy(&self.buffer[..end]))));
        }
        self.buffer.drain(..end);
        Ok(())
    }

    /// Reads frames until this one; pings may come between.
    fn until(&mut self, wanted: impl Fn(&Frame) -> bool) -> Result<Frame> {
        loop {
            let Some(frame) = frames::first(&self.buffer) else {
                self.more()?;
                continue;
            };
            let text = String::from_utf8_lossy(&self.buffer[frame.start..frame.end]).into_owned();
            self.buffer.drain(..frame.end);
            match Frame::parse(&text) {
                Ok(frame) if wanted(&frame) => return Ok(frame),
                Ok(Frame::Ping(_)) => {}
                other => return Err(Error::other(format!("unexpected frame {text}: {other:?}"))),
            }
        }
    }
}
