//! Attackers: threads that do, again and again, what no honest client does.

use crate::frames;
use crate::post::{data, message, request};
use crate::socket::{Wish, fulfil, handshake};
use carrick::client::command;
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a connection that is to be in the way stays.
const HELD: Duration = Duration::from_secs(2);
/// A server that does not take bytes any more has had enough of them.
const WRITE_LIMIT: Duration = Duration::from_millis(500);
const BATCH: usize = 200;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tactic {
    Restores,
    Subscriptions,
    UnansweredPings,
    SlowReaders,
    Garbage,
    HalfOpen,
    UnreadAnswers,
    Whispers,
    PingIntervals,
    Connections,
    BigPublications,
    LongQueries,
}

impl Tactic {
    pub const ALL: [Self; 12] = [
        Self::Restores,
        Self::Subscriptions,
        Self::UnansweredPings,
        Self::SlowReaders,
        Self::Garbage,
        Self::HalfOpen,
        Self::UnreadAnswers,
        Self::Whispers,
        Self::PingIntervals,
        Self::Connections,
        Self::BigPublications,
        Self::LongQueries,
    ];

    pub fn key(self) -> &'static str {
        match self {
            Self::Restores => "restores",
            Self::Subscriptions => "subscriptions",
            Self::UnansweredPings => "unanswered_pings",
            Self::SlowReaders => "slow_readers",
            Self::Garbage => "garbage",
            Self::HalfOpen => "half_open",
            Self::UnreadAnswers => "unread_answers",
            Self::Whispers => "whispers",
            Self::PingIntervals => "ping_intervals",
            Self::Connections => "connections",
            Self::BigPublications => "big_publications",
            Self::LongQueries => "long_queries",
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Restores => "restores of one session",
            Self::Subscriptions => "subscriptions made and ended",
            Self::UnansweredPings => "pings sent, answers unread",
            Self::SlowReaders => "connections that follow and never read",
            Self::Garbage => "frames of garbage",
            Self::HalfOpen => "handshakes begun and not ended",
            Self::UnreadAnswers => "requests whose answers are unread",
            Self::Whispers => "whispers",
            Self::PingIntervals => "connections with an extreme ping interval",
            Self::Connections => "connections made and cut",
            Self::BigPublications => "publications of 900 kB",
            Self::LongQueries => "requests with a query of 60 kB",
        }
    }
}

pub struct Attackers {
    stop: Arc<AtomicBool>,
    acts: Arc<[AtomicU64; 12]>,
    threads: Vec<JoinHandle<()>>,
}

impl Attackers {
    /// `tactics`: what they do, in turn.
    pub fn start(address: &str, broadcast: &str, count: usize, tactics: &[Tactic]) -> Self {
        let (stop, acts) = (Arc::<AtomicBool>::default(), Arc::<[AtomicU64; 12]>::default());
        let thread = |number: usize| {
            let attacker = Attacker {
                number,
                address: address.to_owned(),
                broadcast: broadcast.to_owned(),
                stop: Arc::clone(&stop),
                acts: Arc::clone(&acts),
            };
            let tactic = tactics[number % tactics.len()];
            std::thread::spawn(move || attacker.run(tactic))
        };
        let threads = (0..count).map(thread).collect();
        Self { stop, acts, threads }
    }

    /// Ends them; answers with what each tactic has done.
    pub fn stop(self) -> Vec<u64> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            // A panic of one shows as acts that are missing.
            let _ = thread.join();
        }
        self.acts.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }
}

struct Attacker {
    number: usize,
    address: String,
    broadcast: String,
    stop: Arc<AtomicBool>,
    acts: Arc<[AtomicU64; 12]>,
}

/// A server that fights back cuts connections: an error only ends the act.
type Act = std::io::Result<()>;

impl Attacker {
    fn run(&self, tactic: Tactic) {
        while self.goes_on() {
            let _ = self.act(tactic);
            // Not faster than a machine of one's own would be.
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn did(&self, tactic: Tactic, count: u64) {
        self.acts[tactic as usize].fetch_add(count, Ordering::Relaxed);
    }

    fn act(&self, tactic: Tactic) -> Act {
        match tactic {
            Tactic::Restores => self.restore(),
            Tactic::Subscriptions => self.subscribe(),
            Tactic::UnansweredPings => {
                let ping = frames::text(&command::ping());
                self.flood(tactic, self.open("")?, &ping)
            }
            Tactic::SlowReaders => self.follow_and_never_read(),
            Tactic::Garbage => self.garbage(),
            Tactic::HalfOpen => {
                let begun = handshake(&self.address, "");
                self.hold(tactic, 20, |stream| stream.write_all(&begun.as_bytes()[..begun.len() / 2]))
            }
            Tactic::UnreadAnswers => {
                let ask = format!("GET /health HTTP/1.1\r\nHost: {}\r\n\r\n", self.address);
                self.flood(tactic, self.dial(&self.address)?, ask.as_bytes())
            }
            Tactic::Whispers => {
                let identifier = self.identifier("whispers");
                let mut stream = self.open("")?;
                stream.write_all(&frames::text(&command::subscribe(&identifier, None)))?;
                let whisper = frames::text(&command::whisper(&identifier, &json!({"text": "x".repeat(200)})));
                self.flood(tactic, stream, &whisper)
            }
            Tactic::PingIntervals => {
                for interval in ["9223372036854775807", "0", "-1", "1", "18446744073709551616", "1e300"] {
                    self.open(&format!("?pi={interval}"))?;
                    self.did(tactic, 1);
                }
                Ok(())
            }
            Tactic::Connections => {
                let asked = handshake(&self.address, "");
                self.hold(tactic, 50, |stream| stream.write_all(asked.as_bytes()))
            }
            Tactic::BigPublications => {
                let body = message(&format!("attack/big/{}", self.number), &data("", 900_000));
                let mut stream = self.dial(&self.broadcast)?;
                stream.write_all(&request(&self.broadcast, &body))?;
                self.did(tactic, 1);
                stream.set_read_timeout(Some(HELD))?;
                stream.read(&mut [0; 1024]).map(drop)
            }
            Tactic::LongQueries => {
                self.did(tactic, 1);
                self.open(&format!("?{}", "a=%zz&".repeat(10_000))).map(drop)
            }
        }
    }

    fn identifier(&self, stream: &str) -> String {
        json!({"channel": "$pubsub", "stream_name": format!("attack/{stream}")}).to_string()
    }

    fn dial(&self, address: &str) -> std::io::Result<TcpStream> {
        let stream = TcpStream::connect(address)?;
        stream.set_write_timeout(Some(WRITE_LIMIT))?;
        Ok(stream)
    }

    /// A connection that has asked for the upgrade, and read the beginning of the answer.
    fn open(&self, query: &str) -> std::io::Result<TcpStream> {
        let mut stream = self.dial(&self.address)?;
        stream.write_all(handshake(&self.address, query).as_bytes())?;
        stream.set_read_timeout(Some(HELD))?;
        let _ = stream.read(&mut [0; 64])?;
        Ok(stream)
    }

    /// Writes the same again and again, and never reads.
    fn flood(&self, tactic: Tactic, mut stream: TcpStream, bytes: &[u8]) -> Act {
        let many = bytes.repeat(BATCH);
        let until = Instant::now() + HELD * 3;
        while self.goes_on() && Instant::now() < until {
            stream.write_all(&many)?;
            self.did(tactic, BATCH as u64);
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Connections that begin in the same way, and stay for a while.
    fn hold(&self, tactic: Tactic, count: u64, begin: impl Fn(&mut TcpStream) -> Act) -> Act {
        let mut held = Vec::new();
        for _ in 0..count {
            let mut stream = self.dial(&self.address)?;
            begin(&mut stream)?;
            self.did(tactic, 1);
            held.push(stream);
        }
        std::thread::sleep(HELD);
        Ok(())
    }

    fn restore(&self) -> Act {
        let identifiers: Vec<String> = (0..3).map(|n| self.identifier(&format!("restored/{n}"))).collect();
        let wish = Wish { query: String::new(), identifiers };
        let owner = fulfil(&self.address, &[wish]).map_err(std::io::Error::other)?;
        for _ in 0..50 {
            if !self.goes_on() {
                break;
            }
            self.did(Tactic::Restores, 1);
            // The server may let it wait, or send it away.
            let _ = self.open(&format!("?sid={}", owner[0].sid));
        }
        Ok(())
    }

    fn subscribe(&self) -> Act {
        let mut stream = self.open("")?;
        for n in 0..2_000 {
            if !self.goes_on() {
                break;
            }
            let identifier = self.identifier(&format!("{}/{n}", self.number));
            stream.write_all(&frames::text(&command::subscribe(&identifier, None)))?;
            if n % 2 == 0 {
                stream.write_all(&frames::text(&command::unsubscribe(&identifier)))?;
            }
            self.did(Tactic::Subscriptions, 1);
        }
        Ok(())
    }

    fn follow_and_never_read(&self) -> Act {
        let identifiers = (0..2).map(|n| self.identifier(&format!("big/{}", self.number + n * 12))).collect();
        let wishes: Vec<Wish> =
            (0..10).map(|_| Wish { query: String::new(), identifiers: Vec::clone(&identifiers) }).collect();
        let held = fulfil(&self.address, &wishes).map_err(std::io::Error::other)?;
        self.did(Tactic::SlowReaders, held.len() as u64);
        std::thread::sleep(HELD * 3);
        Ok(())
    }

    fn garbage(&self) -> Act {
        let huge = {
            // The length says 2 GiB.
            let mut frame = vec![0x81, 0xff, 0, 0, 0, 0, 0x80, 0, 0, 0, 1, 2, 3, 4];
            frame.extend([0xaa; 4_000]);
            frame
        };
        let binary = [&[0x82, 0x80 | 100, 0, 0, 0, 0][..], &[0xff; 100]].concat();
        let reserved = [&[0xf1, 0x80 | 5, 9, 9, 9, 9][..], &[0x41; 5]].concat();
        for frame in [huge, binary, reserved, frames::text("{\"command\":"), frames::text(&"[".repeat(60_000))] {
            self.open("")?.write_all(&frame)?;
            self.did(Tactic::Garbage, 1);
        }
        Ok(())
    }
}
