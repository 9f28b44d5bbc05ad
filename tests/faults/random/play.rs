//! Makes a plan happen, and judges what came of it.

use super::keep::Shelf;
use super::plan::{Beside, Plan, Step};
use crate::checker::{Checked, Checker};
use crate::deployment::Deployment;
use crate::harness::proxy::NatsProxy;
use crate::jetstream::Elections;
use crate::proc;
use crate::pulse::Pulse;
use crate::strike::{freeze_process, strike};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

/// The checker publishes until it is told to end; this long at most.
const DURATION: Duration = Duration::from_secs(1_200);
/// For the last messages, the longest absence, and the report.
const END_PATIENCE: Duration = Duration::from_secs(120);
/// Publishing before the first step and after the last.
const CALM: Duration = Duration::from_secs(2);
const CUT_AGAIN: Duration = Duration::from_millis(150);

pub struct Played {
    pub row: String,
    pub failures: Vec<String>,
}

/// Plays a plan. If it fails, its logs and verdict are kept.
pub fn play(plan: &Plan, shelf: &Shelf) -> Played {
    let mut said = Vec::new();
    let mut deployment = None;
    let played = catch_unwind(AssertUnwindSafe(|| {
        let deployment = deployment.insert(Deployment::start_variant(plan.setup, &plan.variant()));
        run(plan, deployment, &mut said)
    }));
    let checked = played.ok();
    let failures = match &checked {
        Some(checked) => failures(plan, checked),
        None => vec!["could not be played to its end, see the errors above".to_owned()],
    };
    let report = checked.as_ref().map(|checked| format!("{:#}\n{}", checked.report, checked.errors));
    let mut row = row(plan, checked.as_ref(), &said, &failures);
    if !failures.is_empty() {
        let name = format!("{}-{}", plan.seed, plan.setup.to_string().replace(", ", "-"));
        let texts = [
            ("plan.txt", plan.to_string()),
            ("verdict.txt", format!("{}\n\n{}", failures.join("\n"), said.join("\n"))),
            ("report.txt", report.unwrap_or_default()),
        ];
        let texts: Vec<(&str, &str)> = texts.iter().map(|(name, text)| (*name, text.as_str())).collect();
        if let Some(folder) = shelf.keep(&name, &texts, deployment.as_ref()) {
            row.push_str(&format!(" {}", folder.display()));
        }
    }
    Played { row, failures }
}

fn run(plan: &Plan, deployment: &mut Deployment, said: &mut Vec<String>) -> Checked {
    let mut arguments = vec![format!("--duration={}", DURATION.as_secs())];
    arguments.extend(plan.arguments.iter().cloned());
    let pulse = Pulse::start(deployment);
    let elections = plan.setup.is_cluster().then(|| Elections::watch(deployment.jetstream()));
    let mut checker = Checker::start(deployment, plan.spare_first, &arguments);
    checker.wait_publishing();
    sleep(CALM);
    for (number, step) in plan.steps.iter().enumerate() {
        sleep(step.pause);
        let company = step.beside.clone().map(|beside| accompany(beside, deployment));
        let seed = plan.seed.wrapping_add(number as u64);
        let proof = strike(step.fault, seed, deployment, &pulse, elections.as_ref());
        let beside = company.map(|thread| thread.join().unwrap_or_else(|_| "company failed".to_owned()));
        said.push(tell(step, &proof, beside));
    }
    sleep(CALM);
    checker.end_publishing();
    checker.wait(END_PATIENCE)
}

fn tell(step: &Step, proof: &crate::proof::Proof, beside: Option<String>) -> String {
    let mut all = vec![format!("{}: {proof}", step.fault)];
    // Beside other harm a fault need not show all that it shows alone.
    all.extend(proof.gaps());
    all.extend(beside);
    all.join("; ")
}

/// Does harm on a thread of its own; it tells what it has done.
fn accompany(beside: Beside, deployment: &Deployment) -> std::thread::JoinHandle<String> {
    let proxies: Vec<Arc<NatsProxy>> = deployment.proxies.clone();
    let pids: Vec<u32> = deployment.nodes().iter().map(crate::harness::Server::pid).collect();
    std::thread::spawn(move || match beside {
        Beside::Freeze { node, stops, cut } => {
            let mut stopped = 0;
            for (pause, stop) in stops {
                sleep(pause);
                // The fault may have ended it, or started another in its place.
                if !proc::is_alive(pids[node]) {
                    break;
                }
                let ended = freeze_process(pids[node], stop, || {
                    if cut {
                        for proxy in &proxies {
                            proxy.cut();
                        }
                    }
                });
                stopped += u32::from(ended.is_ok());
            }
            format!("node {node} stopped {stopped} times")
        }
        Beside::Cut { times } => {
            let mut cut = 0;
            for _ in 0..times {
                cut += proxies.iter().map(|proxy| proxy.cut()).sum::<usize>();
                sleep(CUT_AGAIN);
            }
            format!("{cut} connections cut")
        }
        Beside::Lose { messages } => {
            proxies.iter().for_each(|proxy| proxy.lose_live(0, messages));
            format!("{messages} live messages to be lost")
        }
    })
}

/// What no schedule may lead to.
fn failures(plan: &Plan, checked: &Checked) -> Vec<String> {
    let count = |name: &str| checked.count(name);
    let mut failures = Vec::new();
    if checked.status != Some(0) {
        let violations = &checked.report["violations"];
        failures.push(format!("the checker ended with {:?}: {violations} {}", checked.status, checked.errors.trim()));
    }
    let none = ["unsignalled", "false_alarms", "unstored", "late", "duplicated", "reordered", "wrong_positions"];
    let extras = ["misdirected", "not_excluded", "revived", "base_lost", "disconnects", "surprises"];
    for name in none.into_iter().chain(extras).filter(|name| count(name) > 0) {
        failures.push(format!("{name}: {}", count(name)));
    }
    if plan.keeps_what_is_tried() && count("forgotten") > 0 {
        failures.push(format!("forgotten: {}, and nothing was removed", count("forgotten")));
    }
    if count("epochs") > 1 && !plan.ends_an_epoch() {
        failures.push(format!("{} epochs", count("epochs")));
    }
    if count("delivered") == 0 {
        failures.push("nothing was delivered".to_owned());
    }
    failures
}

fn row(plan: &Plan, checked: Option<&Checked>, said: &[String], failures: &[String]) -> String {
    let count = |name: &str| checked.map_or(0, |checked| checked.count(name));
    let live = checked.map_or(&serde_json::Value::Null, |checked| &checked.report["live_ms"]);
    let verdict = if failures.is_empty() { "pass".to_owned() } else { format!("**FAIL**: {}", failures.join("; ")) };
    format!(
        "| {} | {} | {} | {} | {} | {} | {} | {} | {} / {} / {} ms | {verdict} |",
        plan.seed,
        plan.setup,
        said.join(" – "),
        count("acked"),
        count("delivered"),
        count("lost"),
        count("rejects"),
        count("forgotten"),
        live["p50"],
        live["p99"],
        live["max"],
    )
}
