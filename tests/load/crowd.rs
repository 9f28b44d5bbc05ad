//! Many raw client sockets driven by one thread: frames are handed on as they come, answers written at once.

use crate::frames;
use crate::socket::{Subscribed, handshake_as};
use carrick::client::EXT_JSON;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::time::Duration;

const READ_BUFFER: usize = 64 * 1024;

/// What a socket brought.
pub enum Brought<'a> {
    /// The payload of a text frame.
    Text(&'a [u8]),
    /// The server closed it, or refused the upgrade.
    End,
}

pub struct Crowd {
    address: String,
    poll: Poll,
    members: Vec<Member>,
    buffer: Vec<u8>,
}

struct Member {
    /// `None`: closed by either side.
    stream: Option<TcpStream>,
    upgraded: bool,
    /// The beginning of a frame, or of the upgrade's answer, whose end has not come yet.
    rest: Vec<u8>,
}

impl Crowd {
    /// Connects so many sockets; nothing is sent yet.
    pub fn connect(address: &str, count: usize) -> Result<Self> {
        let mut crowd = Self::empty(address)?;
        for _ in 0..count {
            crowd.join()?;
        }
        Ok(crowd)
    }

    /// Connects another socket.
    pub fn join(&mut self) -> Result<()> {
        self.add(std::net::TcpStream::connect(&self.address)?, false, Vec::new())
    }

    /// Goes on with subscribed sockets.
    pub fn of(address: &str, sockets: Vec<Subscribed>) -> Result<Self> {
        let mut crowd = Self::empty(address)?;
        for socket in sockets {
            crowd.add(socket.stream, true, socket.rest)?;
        }
        Ok(crowd)
    }

    fn empty(address: &str) -> Result<Self> {
        Ok(Self { address: address.to_owned(), poll: Poll::new()?, members: Vec::new(), buffer: vec![0; READ_BUFFER] })
    }

    fn add(&mut self, stream: std::net::TcpStream, upgraded: bool, rest: Vec<u8>) -> Result<()> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        self.poll.registry().register(&mut stream, Token(self.members.len()), Interest::READABLE)?;
        self.members.push(Member { stream: Some(stream), upgraded, rest });
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Asks for the upgrade, with a query such as `?sid=…`.
    pub fn knock(&mut self, index: usize, query: &str) -> Result<()> {
        self.knock_as(index, query, EXT_JSON)
    }

    /// The same for another protocol.
    pub fn knock_as(&mut self, index: usize, query: &str, protocol: &str) -> Result<()> {
        let request = handshake_as(&self.address, query, protocol);
        self.write(index, request.as_bytes())
    }

    /// Sends a command.
    pub fn say(&mut self, index: usize, command: &str) -> Result<()> {
        self.write(index, &frames::text(command))
    }

    fn write(&mut self, index: usize, bytes: &[u8]) -> Result<()> {
        let Some(stream) = &mut self.members[index].stream else { return Ok(()) };
        // What clients send is far smaller than the socket's buffer, which is empty.
        match stream.write(bytes)? {
            n if n == bytes.len() => Ok(()),
            n => Err(Error::other(format!("only {n} bytes of a command were taken"))),
        }
    }

    /// Closes a socket without a word.
    pub fn leave(&mut self, index: usize) {
        self.members[index].stream = None;
    }

    /// Waits for bytes at most this long and hands on all frames that have come.
    pub fn turn(
        &mut self,
        wait: Duration,
        mut on: impl FnMut(&mut Self, usize, Brought<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut events = Events::with_capacity(1024);
        match self.poll.poll(&mut events, Some(wait)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        for event in &events {
            self.read(event.token().0, &mut on)?;
        }
        Ok(())
    }

    /// Reads a socket until it is empty.
    fn read(&mut self, index: usize, on: &mut impl FnMut(&mut Self, usize, Brought<'_>) -> Result<()>) -> Result<()> {
        loop {
            let Self { members, buffer, .. } = self;
            let member = &mut members[index];
            let Some(stream) = &mut member.stream else { return Ok(()) };
            let n = match stream.read(buffer) {
                Ok(0) => 0,
                Ok(n) => n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                // A reset ends it, too.
                Err(_) => 0,
            };
            member.rest.extend_from_slice(&buffer[..n]);
            let mut bytes = std::mem::take(&mut member.rest);
            let refused = !member.upgraded && member.upgrade(&mut bytes);
            if n == 0 || refused {
                member.stream = None;
                return on(self, index, Brought::End);
            }
            if !member.upgraded {
                member.rest = bytes;
                continue;
            }
            let mut at = 0;
            while let Some(frame) = frames::first(&bytes[at..]) {
                if frame.opcode == 1 {
                    on(self, index, Brought::Text(&bytes[at + frame.start..at + frame.end]))?;
                }
                at += frame.end;
            }
            bytes.drain(..at);
            self.members[index].rest = bytes;
        }
    }
}

impl Member {
    /// Takes the upgrade's answer off the bytes, if it is all there; `true` if it is a refusal.
    fn upgrade(&mut self, bytes: &mut Vec<u8>) -> bool {
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return false };
        self.upgraded = bytes.starts_with(b"HTTP/1.1 101");
        bytes.drain(..end + 4);
        !self.upgraded
    }
}

/// The digits that a message's data starts with.
pub fn stamp(frame: &[u8]) -> Option<u64> {
    const MARK: &[u8] = b"\"message\":\"";
    let at = frame.windows(MARK.len()).position(|part| part == MARK)? + MARK.len();
    let digits = frame[at..].iter().take_while(|byte| byte.is_ascii_digit());
    Some(digits.fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}
