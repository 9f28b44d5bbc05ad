//! Honest clients beside attackers that do everything at once: what the honest ones notice, and what is left of it in
//! memory.

use crate::attack::{Attackers, Tactic};
use crate::memory::{Memory, Peak};
use crate::report::Report;
use crate::target::Target;
use crate::{count, of};
use carrick::client::check::member::Habits;
use carrick::client::check::run::Outcome;
use carrick::client::check::source::Outlet;
use carrick::client::check::{Check, Credentials, Drops, Extras, Pace, Roster};
use clap::ArgMatches;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use url::Url;

const STREAMS: usize = 10;
/// For all honest clients to subscribe, and for the last messages.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often nats-server's memory is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// Memory afterwards, as a multiple of memory before.
const GROWTH: f64 = 1.3;

/// The honest clients of one phase.
struct Honest<'a> {
    runtime: &'a Runtime,
    check: Check,
}

impl<'a> Honest<'a> {
    fn start(runtime: &'a Runtime, target: &Target, name: &str, clients: usize, rate: u32) -> Result<Self, String> {
        let url = Url::parse(&format!("ws://{}/cable", target.http())).map_err(|error| error.to_string())?;
        let outlet = Outlet {
            urls: vec![format!("http://{}/_broadcast", target.broadcast())],
            key: None,
            trust: None,
            run: name.to_owned(),
            retry_for: Duration::from_secs(15),
        };
        let roster = Roster {
            prefix: format!("honest/{name}/"),
            seed: 1,
            streams: STREAMS,
            members: clients,
            doubles: clients / 8,
            silents: 0,
            bases: clients / 10,
            secret: None,
            credentials: Credentials::Common,
        };
        let extras = Extras { batch: 5, exclusion: true, ..Extras::default() };
        let pace = Pace { lanes: 2, rate, extras };
        let second = Duration::from_secs(1);
        let (stay, away) = (second..second * 10, second / 10..second);
        let habits = Habits { drops: Drops::Random, stay, away, history: true, whispers: false };
        let entered = runtime.enter();
        let check = Check::start(&roster, &pace, &habits, &[url], &outlet);
        drop(entered);
        runtime.block_on(check.settle(PATIENCE))?;
        check.begin();
        Ok(Self { runtime, check })
    }

    fn finish(self) -> Result<Outcome, String> {
        let (outcome, _) = self.runtime.block_on(self.check.finish(PATIENCE))?;
        Ok(outcome)
    }
}

pub fn run(options: &ArgMatches) -> Result<Report, String> {
    let (clients, attackers) = (count(options, "clients"), count(options, "attackers"));
    let (seconds, rest) = (of(options, "seconds"), Duration::from_secs(of(options, "rest")));
    let rate = u32::try_from(of(options, "rate")).unwrap_or(u32::MAX);
    let calm = Duration::from_secs(seconds.clamp(4, 20));
    let target = Target::own(options, &["--history_limit=10000".to_owned()])?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(1).build();
    let runtime = runtime.map_err(|error| error.to_string())?;

    let honest = Honest::start(&runtime, &target, "before", clients, rate)?;
    std::thread::sleep(calm);
    let before = Memory::of(&target);
    let quiet = honest.finish()?;

    let peak = Peak::watch(&target);
    let honest = Honest::start(&runtime, &target, "during", clients, rate)?;
    let only = options.get_one::<String>("only");
    let tactics: Vec<Tactic> =
        Tactic::ALL.into_iter().filter(|tactic| only.is_none_or(|only| only == tactic.key())).collect();
    // A tactic without an attacker would show nothing.
    let attackers = attackers.max(tactics.len());
    let attack = Attackers::start(target.http(), target.broadcast(), attackers, &tactics);
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut highest = before.nats;
    while Instant::now() < until {
        highest = highest.max(Memory::of(&target).nats);
        std::thread::sleep(LOOK);
    }
    let acts = attack.stop();
    let ended = Instant::now();
    let loud = honest.finish()?;

    // Memory is compared under the same conditions: so many clients, for so long, with so much history.
    std::thread::sleep((ended + rest.saturating_sub(calm)).saturating_duration_since(Instant::now()));
    let honest = Honest::start(&runtime, &target, "after", clients, rate)?;
    std::thread::sleep(calm);
    let after = Memory::of(&target);
    let last = honest.finish()?;
    let reached = peak.reached();

    let mut report = Report::new(format!("{attackers} attackers for {seconds} s beside {clients} honest clients"));
    for (key, name, outcome) in [("before", "before", &quiet), ("during", "during", &loud), ("after", "after", &last)] {
        let verdict = &outcome.verdict;
        report.count(&format!("delivered_{key}"), &format!("deliveries to honest clients, {name}"), verdict.arrived);
        let (p99, most) = (verdict.live.percentile(0.99), verdict.live.longest());
        report.time(&format!("live_p99_{key}"), &format!("99 % of their live deliveries within, {name}"), p99);
        report.time(&format!("live_max_{key}"), &format!("all of them within, {name}"), most);
        for failure in verdict.failures() {
            report.broken(format!("{name}: {failure}"));
        }
    }
    for (tactic, count) in Tactic::ALL.iter().zip(acts).filter(|(tactic, _)| tactics.contains(tactic)) {
        report.count(tactic.key(), &format!("attackers: {}", tactic.name()), count);
        if count == 0 {
            report.broken(format!("the attackers did not act: {}", tactic.name()));
        }
    }
    report.bytes("carrick_before", "Carrick's memory before", before.carrick);
    report.bytes("carrick_peak", "at its peak", reached);
    report.bytes("carrick_after", &format!("{} s after", rest.as_secs()), after.carrick);
    report.bytes("nats_before", "nats-server's memory before", before.nats);
    report.bytes("nats_peak", "at its peak", highest);
    report.bytes("nats_after", &format!("{} s after", rest.as_secs()), after.nats);
    if let (Some(before), Some(after)) = (before.carrick, after.carrick)
        && after as f64 > before as f64 * GROWTH
    {
        report.broken(format!("Carrick keeps {:.2} times the memory that it had before", after as f64 / before as f64));
    }
    target.stop()?;
    Ok(report)
}
