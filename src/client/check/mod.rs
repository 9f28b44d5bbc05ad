//! A checker of delivery: sources publish with idempotency keys, members drop and come back as the stock client does and
//! write down everything they get, and a judge compares. `carrick verify` and the kill tests are two ways to run it.
//!
//! Reading order: [`roster`] (who follows what, with [`credentials`]), [`source`] (publishing, with [`desk`] for who
//! publishes what), [`member`] and [`base`] (following, with [`record`] as their book and [`progress`] as what others see
//! of them), [`removal`] (throwing out), [`judge`] (comparing, with [`log`] for what publishers know, [`alarms`] for
//! rejections, [`copies`] for what is stored twice, [`live`] for lateness, [`transient`] and [`standing`] for what is not
//! kept, and [`verdict`] as its outcome), [`run`] (all of it in phases and
//! turns, with [`awaited`] for what a turn waits for and [`unsettled`] for what outlives it), [`features`] and [`probe`]
//! (what the server can), [`report`] (figures for people and programs).

pub mod alarms;
mod awaited;
pub mod base;
mod copies;
#[cfg(test)]
mod copies_tests;
pub mod credentials;
mod desk;
#[cfg(test)]
mod extras_tests;
pub mod features;
#[cfg(test)]
mod forged_tests;
pub mod judge;
#[cfg(test)]
mod judge_tests;
pub mod live;
mod log;
pub mod member;
mod numbers;
pub mod probe;
pub mod progress;
pub mod record;
pub mod removal;
pub mod report;
pub mod roster;
pub mod run;
pub mod source;
pub mod standing;
#[cfg(test)]
mod trace;
pub mod transient;
#[cfg(test)]
mod turn_tests;
mod unsettled;
pub mod verdict;

use std::time::Duration;

pub use alarms::Limits;
pub use credentials::Credentials;
pub use desk::Extras;
pub use features::{Exercised, Features};
pub use judge::{Rules, judge};
pub use record::Record;
pub use report::Report;
pub use roster::{Dice, Kind, Roster};
pub use run::{Check, Conductor, Pace};
pub use source::Published;
pub use verdict::{Finding, Verdict};

/// How long one publication is tried where nothing else is said: longer than an election or a restart takes, and so short
/// that a server with default settings still knows the key of what the last attempt brought (`dedup_window`, 30 s, minus
/// `publish_timeout`, 10 s).
pub const RETRY_FOR: Duration = Duration::from_secs(18);

/// Where a run stands; told to every task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Connect, subscribe, stay.
    Setup,
    /// Publish; drop and return.
    Run,
    /// Return and stay.
    Finish,
    Stop,
}

/// When members drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drops {
    /// Each when it likes.
    Random,
    Never,
    /// All in the same moment.
    AllAtOnce,
}
