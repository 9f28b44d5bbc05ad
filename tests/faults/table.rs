//! Cells of the table of faults and set-ups: one run of the checker each, as a row of Markdown.

use crate::checker::{Checked, Checker};
use crate::deployment::{Deployment, Setup};
use crate::fault::{Expected, Fault};
use crate::jetstream::Elections;
use crate::proof::Proof;
use crate::pulse::Pulse;
use crate::strike::strike;
use std::fmt;
use std::time::Duration;

/// The checker publishes until it is told to end; this long at most.
const DURATION: Duration = Duration::from_secs(300);
/// For the last messages, the longest absence, and the report.
const END_PATIENCE: Duration = Duration::from_secs(90);

pub const HEADER: &str = "\
| Set-up | Fault | Proof that it acted | Acked | Deliveries checked | Lost | Unsignalled | Duplicated | Reordered | Rejects | Excused | Longest pause of publishing | Back p50 / p99 / max | Subscribed anew | Verdict |\n\
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|";

/// How much a cell checks.
#[derive(Clone, Debug)]
pub struct Size {
    /// Seconds of publishing beside the fault's own time.
    pub seconds: u64,
    pub clients: u32,
    pub rate: u32,
    pub seed: u64,
}

impl Size {
    pub fn short() -> Self {
        Self { seconds: 6, clients: 30, rate: 100, seed: 7 }
    }

    /// `CARRICK_FAULTS_SECONDS`, `_CLIENTS`, `_RATE`, `_SEED`.
    pub fn from_environment() -> Self {
        Self {
            seconds: number("SECONDS", 4),
            clients: number("CLIENTS", 80),
            rate: number("RATE", 400),
            seed: number("SEED", 1),
        }
    }
}

/// A number of the long form, or its default.
pub fn number<T: std::str::FromStr>(name: &str, default: T) -> T {
    match std::env::var(format!("CARRICK_FAULTS_{name}")) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("CARRICK_FAULTS_{name}: {text} is no number")),
        Err(_) => default,
    }
}

pub struct Row {
    setup: Setup,
    fault: Fault,
    proof: Proof,
    checked: Checked,
}

/// Starts the deployment and the checker, strikes a third into the run, and waits for the report.
pub fn cell(setup: Setup, fault: Fault, size: &Size) -> Row {
    let mut deployment = Deployment::start_variant(setup, &fault.variant());
    let mut arguments = vec![
        format!("--duration={}", DURATION.as_secs()),
        format!("--clients={}", size.clients),
        format!("--rate={}", size.rate.min(fault.bearable())),
        format!("--seed={}", size.seed),
        "--away=0.1-2".to_owned(),
    ];
    arguments.extend(fault.arguments(setup));
    let pulse = Pulse::start(&deployment);
    let elections = setup.is_cluster().then(|| Elections::watch(deployment.jetstream()));
    let mut checker = Checker::start(&deployment, fault.spares_publishers(), &arguments);
    checker.wait_publishing();
    let third = Duration::from_secs(size.seconds) / 3;
    std::thread::sleep(third);
    let mut proof = strike(fault, size.seed, &mut deployment, &pulse, elections.as_ref());
    std::thread::sleep(third * 2);
    checker.end_publishing();
    let checked = checker.wait(END_PATIENCE);
    fault.prove_by_report(&checked, &mut proof);
    let row = Row { setup, fault, proof, checked };
    if !row.passed() {
        deployment.nodes().iter().for_each(crate::harness::Server::report);
    }
    row
}

impl Row {
    pub fn passed(&self) -> bool {
        self.failures().is_empty()
    }

    /// Why the row fails, in words.
    pub fn failures(&self) -> Vec<String> {
        let count = |name: &str| self.checked.count(name);
        let mut failures = self.proof.gaps();
        if self.checked.status != Some(0) {
            failures.push(format!(
                "the checker ended with {:?}: {}",
                self.checked.status, self.checked.report["violations"]
            ));
        }
        let (must_be_none, epochs): (&[&str], u64) = match self.fault.expected() {
            Expected::Whole => (&["lost", "rejects"], 1),
            Expected::Signalled(_) => {
                if count("rejects") == 0 {
                    failures.push("nobody was told of a loss".to_owned());
                }
                (&["unsignalled"], 2)
            }
            Expected::Expired => (&["unsignalled", "false_alarms"], 1),
        };
        let always = ["duplicated", "reordered", "wrong_positions", "disconnects", "surprises"];
        // A single node that stands still longer than publications may be retried accepts fewer of them.
        let acked: &[&str] = if self.fault.refuses_publications() { &[] } else { &["unacknowledged"] };
        for name in must_be_none.iter().chain(&always).chain(acked).filter(|name| count(name) > 0) {
            failures.push(format!("{name}: {}", count(name)));
        }
        // Policies move streams more than once.
        if count("epochs") < epochs || epochs == 1 && count("epochs") > 1 {
            failures.push(format!("{} epochs, expected {epochs}", count("epochs")));
        }
        if count("delivered") == 0 {
            failures.push("nothing was delivered".to_owned());
        }
        if self.fault.keeps_sessions() && count("resubscribed") > 0 {
            failures.push(format!("{} clients had to subscribe anew", count("resubscribed")));
        }
        failures
    }

    pub fn delivered(&self) -> u64 {
        self.checked.count("delivered")
    }

    pub fn details(&self) -> String {
        let failures = self.failures().join("\n  ");
        format!("  {failures}\n{:?}\n{}\n{}", self.checked.status, self.checked.report, self.checked.errors)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |name: &str| self.checked.count(name);
        let resume = &self.checked.report["resume_ms"];
        write!(f, "| {} | {} | {} ", self.setup, self.fault, self.proof)?;
        for name in ["acked", "delivered", "lost", "unsignalled", "duplicated", "reordered", "rejects", "excused"] {
            write!(f, "| {} ", count(name))?;
        }
        let failures = self.failures();
        let verdict = match (failures.is_empty(), self.fault.expected()) {
            (true, Expected::Whole) => "pass".to_owned(),
            (true, Expected::Expired) => "pass: losses are told, messages expired".to_owned(),
            (true, Expected::Signalled(why)) => format!("pass: losses are told, {why}"),
            (false, _) => format!("**FAIL**: {}", failures.join("; ")),
        };
        let (p50, p99, max) = (&resume["p50"], &resume["p99"], &resume["max"]);
        let (gap, anew) = (count("longest_ack_gap_ms"), count("resubscribed"));
        write!(f, "| {gap} ms | {p50} / {p99} / {max} ms | {anew} | {verdict} |")
    }
}
