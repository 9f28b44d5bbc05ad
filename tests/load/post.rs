//! Publishing over raw HTTP/1.1: requests are rendered before, answers are only measured.

use mio::net::TcpStream as Polled;
use mio::{Events, Interest, Poll, Token};
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// A request with this body.
pub fn request(address: &str, body: &str) -> Vec<u8> {
    let head = format!(
        "POST /_broadcast HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body.as_bytes()].concat()
}

/// `data` of this many bytes: a JSON string that starts with this text.
pub fn data(start: &str, bytes: usize) -> String {
    let pad = bytes.saturating_sub(start.len() + 2);
    format!("\"{start}{}\"", "x".repeat(pad))
}

/// The JSON of one message.
pub fn message(stream: &str, data: &str) -> String {
    serde_json::json!({"stream": stream, "data": data}).to_string()
}

/// Status and length of the answer at the start of `buffer`, if it is all there.
fn answer(buffer: &[u8]) -> Result<Option<(u16, usize)>> {
    let Some(head) = buffer.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&buffer[..head]).map_err(Error::other)?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let status = status.ok_or_else(|| Error::other(format!("no HTTP answer: {text}")))?;
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    // Answers of this server always say how long they are; none at all means an empty one.
    let end = head + 4 + length.unwrap_or(0);
    Ok((buffer.len() >= end).then_some((status, end)))
}

/// One kept-alive connection, one request at a time.
pub struct Line {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Line {
    pub fn connect(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(15)))?;
        Ok(Self { stream, buffer: Vec::new() })
    }

    /// Sends a request and waits for its status.
    pub fn send(&mut self, request: &[u8]) -> Result<u16> {
        self.stream.write_all(request)?;
        let mut chunk = [0; 16 * 1024];
        loop {
            if let Some((status, end)) = answer(&self.buffer)? {
                self.buffer.drain(..end);
                return Ok(status);
            }
            match self.stream.read(&mut chunk)? {
                0 => return Err(Error::from(ErrorKind::UnexpectedEof)),
                n => self.buffer.extend(&chunk[..n]),
            }
        }
    }
}

/// What many connections achieved.
#[derive(Debug, Default)]
pub struct Driven {
    pub acknowledged: u64,
    /// Answers other than 201, with an example.
    pub refused: u64,
    pub example: String,
    pub elapsed: Duration,
    /// Microseconds per request, sorted.
    pub latencies: Vec<u32>,
}

impl Driven {
    /// Microseconds that this share of the requests stayed below.
    pub fn percentile(&self, share: f64) -> u64 {
        let index = ((self.latencies.len() as f64 - 1.0) * share).max(0.0) as usize;
        self.latencies.get(index).copied().map_or(0, u64::from)
    }
}

struct Busy {
    stream: Polled,
    buffer: Vec<u8>,
    sent: Instant,
    waiting: bool,
}

/// Keeps one request in flight on each connection, from a single thread, until `next` has no more.
pub fn drive(address: &str, connections: usize, mut next: impl FnMut() -> Option<Vec<u8>>) -> Result<Driven> {
    let mut poll = Poll::new()?;
    let mut lines = Vec::new();
    let mut driven = Driven::default();
    for index in 0..connections {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut stream = Polled::from_std(stream);
        poll.registry().register(&mut stream, Token(index), Interest::READABLE)?;
        lines.push(Busy { stream, buffer: Vec::new(), sent: Instant::now(), waiting: false });
    }
    let started = Instant::now();
    let mut busy = 0;
    for line in &mut lines {
        busy += usize::from(line.send_next(&mut next)?);
    }
    let mut events = Events::with_capacity(connections.max(1));
    let mut chunk = [0; 16 * 1024];
    while busy > 0 {
        poll.poll(&mut events, Some(Duration::from_secs(15)))?;
        if events.is_empty() {
            return Err(Error::new(ErrorKind::TimedOut, "no answer within 15 s"));
        }
        for event in &events {
            let line = &mut lines[event.token().0];
            if let Some(status) = line.receive(&mut chunk)? {
                driven.latencies.push(u32::try_from(line.sent.elapsed().as_micros()).unwrap_or(u32::MAX));
                if status == 201 {
                    driven.acknowledged += 1;
                } else {
                    driven.refused += 1;
                    driven.example = format!("status {status}");
                }
                line.waiting = false;
                busy -= usize::from(!line.send_next(&mut next)?);
            }
        }
    }
    driven.elapsed = started.elapsed();
    driven.latencies.sort_unstable();
    Ok(driven)
}

impl Busy {
    fn send_next(&mut self, next: &mut impl FnMut() -> Option<Vec<u8>>) -> Result<bool> {
        let Some(request) = next() else { return Ok(false) };
        self.sent = Instant::now();
        // A request is far smaller than the socket's buffer, which is empty.
        match self.stream.write(&request)? {
            n if n == request.len() => {
                self.waiting = true;
                Ok(true)
            }
            n => Err(Error::other(format!("only {n} bytes of a request were taken"))),
        }
    }

    fn receive(&mut self, chunk: &mut [u8]) -> Result<Option<u16>> {
        loop {
            let n = match self.stream.read(chunk) {
                Ok(0) => return Err(Error::from(ErrorKind::UnexpectedEof)),
                Ok(n) => n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.buffer.extend(&chunk[..n]);
            if let Some((status, end)) = answer(&self.buffer)?
                && self.waiting
            {
                self.buffer.drain(..end);
                return Ok(Some(status));
            }
        }
    }
}
