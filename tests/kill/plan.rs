//! What happens in a round, decided by a seed: who follows what, when the fault strikes.

use carrick::client::signed::public_identifier;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::time::Duration;

/// What is done to the server in the middle of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: shows what the clients' own drops do.
    None,
    KillCarrick,
    KillNats,
    /// SIGSTOP for five seconds.
    FreezeNats,
    TermCarrick,
}

impl Fault {
    pub const ALL: [Self; 5] = [Self::None, Self::KillCarrick, Self::KillNats, Self::FreezeNats, Self::TermCarrick];

    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::KillCarrick => "kill-carrick",
            Self::KillNats => "kill-nats",
            Self::FreezeNats => "freeze-nats",
            Self::TermCarrick => "term-carrick",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|fault| fault.name() == text)
            .ok_or_else(|| format!("{text}: not one of {}", known()))
    }
}

/// Sizes and times of a round.
#[derive(Clone, Debug)]
pub struct Plan {
    pub fault: Fault,
    pub seed: u64,
    pub streams: usize,
    /// Publishers per stream, each with one message in flight.
    pub lanes: u16,
    /// Messages per second over all streams.
    pub rate: u32,
    pub clients: usize,
    /// Clients with two identifiers on one stream.
    pub doubles: usize,
    /// Clients that have received nothing when they drop for the first time.
    pub silents: usize,
    /// How long a client stays, and how long it is away.
    pub stay: Range<Duration>,
    pub away: Range<Duration>,
    /// Traffic before the fault and after the recovery.
    pub before: Duration,
    pub after: Duration,
}

impl Plan {
    pub fn new(fault: Fault, seed: u64) -> Self {
        let ms = Duration::from_millis;
        Self {
            fault,
            seed,
            streams: 20,
            lanes: 3,
            rate: 1_200,
            clients: 200,
            doubles: 30,
            silents: 24,
            stay: ms(300)..ms(3_000),
            away: ms(100)..ms(10_000),
            before: ms(5_000) + ms(1) * u32::try_from(Dice::new(seed).below(3_000)).unwrap_or(0),
            after: ms(14_000),
        }
    }

    /// The same with short absences and phases, for every day's tests.
    pub fn short(fault: Fault, seed: u64) -> Self {
        let ms = Duration::from_millis;
        Self { away: ms(100)..ms(3_000), before: ms(2_500), after: ms(4_500), ..Self::new(fault, seed) }
    }

    /// What each client follows.
    pub fn followers(&self) -> Vec<Follower> {
        let mut dice = Dice::new(self.seed ^ 0xf011_0e55);
        (0..self.clients)
            .map(|id| {
                let first = dice.below(self.streams as u64) as usize;
                let kind = match id {
                    id if id < self.doubles => Kind::Double,
                    id if id < self.doubles + self.silents => Kind::Silent,
                    _ => Kind::Plain,
                };
                let mut follows = match kind {
                    Kind::Silent => vec![Follow::new(silent_name(id % SILENT_STREAMS), "")],
                    Kind::Double => {
                        vec![Follow::new(stream_name(first), ""), Follow::new(stream_name(first), "component")]
                    }
                    Kind::Plain => vec![Follow::new(stream_name(first), "")],
                };
                // Every second one follows another stream too; silent ones must not hear of anything.
                if kind != Kind::Silent && dice.below(2) == 0 {
                    let second = (first + 1 + dice.below(self.streams as u64 - 1) as usize) % self.streams;
                    follows.push(Follow::new(stream_name(second), ""));
                }
                Follower { id, kind, follows, seed: dice.next() }
            })
            .collect()
    }
}

/// Streams that get their first message while all their followers are away.
pub const SILENT_STREAMS: usize = 4;

pub fn stream_name(index: usize) -> String {
    format!("busy/{index}")
}

pub fn silent_name(index: usize) -> String {
    format!("silent/{index}")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Plain,
    Double,
    Silent,
}

#[derive(Clone, Debug)]
pub struct Follower {
    pub id: usize,
    pub kind: Kind,
    pub follows: Vec<Follow>,
    pub seed: u64,
}

/// One subscription.
#[derive(Clone, Debug)]
pub struct Follow {
    pub identifier: String,
    pub stream: String,
}

impl Follow {
    /// `part` makes a second identifier on the same stream.
    fn new(stream: String, part: &str) -> Self {
        let mut identifier = public_identifier(&stream);
        if !part.is_empty() {
            // Unknown keys make another identifier of the same channel.
            identifier.insert_str(1, &format!(r#""part":"{part}","#));
        }
        Self { identifier, stream }
    }
}

/// Repeatable chance (splitmix64).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 up to but not including `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn within(&mut self, range: &Range<Duration>) -> Duration {
        let width = u64::try_from((range.end - range.start).as_micros()).unwrap_or(u64::MAX).max(1);
        range.start + Duration::from_micros(self.below(width))
    }
}
