//! Random schedules: seeded sequences of all faults over all set-ups, with random settings, loads, pauses and overlaps.
//! `scripts/faults --random HOURS` runs them; a seed that failed is replayed by its number.
//!
//! Reading order: [`plan`] (what happens, a pure function of the seed), [`play`] (making it happen), [`keep`] (what is
//! left of a seed that failed).

mod keep;
mod plan;
mod play;

pub use keep::Shelf;
pub use plan::{Length, Plan};
pub use play::play;

use crate::deployment::Setup;
use std::time::{Duration, Instant};

pub const HEADER: &str = "\
| Seed | Set-up | What happened | Acked | Deliveries checked | Lost | Rejects | Forgotten | Live p50 / p99 / max | Verdict |\n\
|---|---|---|---|---|---|---|---|---|---|";

/// Runs seed after seed for that long, and at least one for each of these set-ups; every line is handed on as it comes.
/// A seed that fails does not end the run. Answers with those that failed.
pub fn rounds(first: u64, setups: &[Setup], time: Duration, mut line: impl FnMut(&str)) -> Vec<String> {
    let until = Instant::now() + time;
    let shelf = Shelf::open();
    let mut failed = Vec::new();
    for (seed, setup) in (first..).zip(setups.iter().cycle()) {
        if Instant::now() > until && seed - first >= setups.len() as u64 {
            break;
        }
        let plan = Plan::of(*setup, seed, Length::Long);
        if let Some(why) = plan.impossible() {
            line(&format!("| {seed} | {setup} | **not run**: {} |", why.replace('\n', " ")));
            if std::env::var_os("CI").is_some() {
                failed.push(format!("{plan}\n  CI must be able to run this: {why}"));
            }
            continue;
        }
        let played = play(&plan, &shelf);
        line(&played.row);
        if !played.failures.is_empty() {
            let replay = format!("scripts/faults --random --seed {seed} --setup \"{setup}\"");
            let text = format!("{plan}\n  {}\nreplay: {replay}", played.failures.join("\n  "));
            eprintln!("{text}");
            failed.push(text);
        }
    }
    failed
}
