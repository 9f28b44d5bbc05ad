//! Cells of the table of faults and set-ups: one run of the checker each, as a row of Markdown.

use crate::checker::{Checked, Checker};
use crate::deployment::{Deployment, Setup};
use crate::fault::Fault;
use std::fmt;
use std::time::Duration;

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
        let number = |name: &str, default: u64| {
            let text = std::env::var(format!("CARRICK_FAULTS_{name}")).ok();
            text.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("CARRICK_FAULTS_{name}: {text}")))
        };
        let small = |name: &str, default: u64| u32::try_from(number(name, default)).expect("a small number");
        Self {
            seconds: number("SECONDS", 20),
            clients: small("CLIENTS", 100),
            rate: small("RATE", 400),
            seed: number("SEED", 1),
        }
    }
}

pub struct Row {
    setup: Setup,
    fault: Fault,
    proof: String,
    checked: Checked,
}

/// Starts the deployment and the checker, strikes a third into the run, and waits for the report.
pub fn cell(setup: Setup, fault: Fault, size: &Size) -> Row {
    let mut deployment = Deployment::start(setup);
    let seconds = size.seconds + fault.span().as_secs();
    let arguments = [
        format!("--duration={seconds}"),
        format!("--clients={}", size.clients),
        format!("--rate={}", size.rate),
        format!("--seed={}", size.seed),
        "--away=0.1-2".to_owned(),
    ];
    let mut checker = Checker::start(&deployment, &arguments);
    checker.wait_publishing();
    std::thread::sleep(Duration::from_secs(size.seconds) / 3);
    let proof = fault.strike(&mut deployment);
    let checked = checker.wait(Duration::from_secs(seconds) + END_PATIENCE);
    let row = Row { setup, fault, proof, checked };
    if !row.passed() {
        deployment.nodes().iter().for_each(crate::harness::Server::report);
    }
    row
}

impl Row {
    pub fn passed(&self) -> bool {
        let zero = |name: &str| self.checked.count(name) == 0;
        let kept = zero("lost") && zero("unacknowledged") && zero("rejects") && zero("disconnects");
        self.checked.status == Some(0) && kept && self.checked.count("epochs") == 1
    }

    pub fn delivered(&self) -> u64 {
        self.checked.count("delivered")
    }

    pub fn details(&self) -> String {
        format!("{:?}\n{}\n{}", self.checked.status, self.checked.report, self.checked.errors)
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
        let verdict = if self.passed() { "pass" } else { "**FAIL**" };
        let (p50, p99, max) = (&resume["p50"], &resume["p99"], &resume["max"]);
        let (gap, anew) = (count("longest_ack_gap_ms"), count("resubscribed"));
        write!(f, "| {gap} ms | {p50} / {p99} / {max} ms | {anew} | {verdict} |")
    }
}
