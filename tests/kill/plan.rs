//! What happens in a round, decided by a seed.

use carrick::client::check::member::Habits;
use carrick::client::check::{Credentials, Dice, Drops, Extras, Pace, Roster};
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
    /// Sources per stream, each with one message in flight.
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

    pub fn roster(&self) -> Roster {
        Roster {
            prefix: String::new(),
            seed: self.seed,
            streams: self.streams,
            members: self.clients,
            doubles: self.doubles,
            silents: self.silents,
            bases: 0,
            secret: None,
            credentials: Credentials::Common,
        }
    }

    pub fn pace(&self) -> Pace {
        Pace { lanes: self.lanes, rate: self.rate, extras: Extras::default() }
    }

    pub fn habits(&self) -> Habits {
        Habits {
            drops: Drops::Random,
            stay: self.stay.clone(),
            away: self.away.clone(),
            history: true,
            whispers: false,
        }
    }
}
