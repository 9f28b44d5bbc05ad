//! What happens under a seed: settings, load, and a sequence of faults with what goes on beside them.

use crate::deployment::{HISTORY_LIMIT, Setup, Variant};
use crate::fault::Fault;
use crate::old_build;
use carrick::client::check::Dice;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

/// The longest stop of a Carrick.
pub const LONGEST_STOP: Duration = Duration::from_secs(8);
/// A nats-server or a path that stands still for seconds and then delivers what it held: only a window that is longer
/// than that knows it for a retry.
const WINDOW_FOR_FROZEN_NATS: u64 = 20;
/// Within a shorter one no connection is given up; beyond a longer one a path would be silent for most of a run.
const WINDOWS_FOR_SILENCE: RangeInclusive<u64> = 10..=20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// One fault that takes few seconds: part of `cargo test`.
    Short,
    Long,
}

/// Everything about one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub seed: u64,
    pub setup: Setup,
    /// Options of all nodes.
    pub settings: Vec<(&'static str, String)>,
    /// Options of the checker.
    pub arguments: Vec<String>,
    /// Nobody publishes through the first node, where there is another.
    pub spare_first: bool,
    pub steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// After the step before.
    pub pause: Duration,
    pub fault: Fault,
    pub beside: Option<Beside>,
}

/// What goes on while a fault strikes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beside {
    /// A Carrick is stopped, for these times with these pauses before them; its connections to NATS may end meanwhile.
    Freeze { node: usize, stops: Vec<(Duration, Duration)>, cut: bool },
    /// The first node's connections to NATS are cut so many times.
    Cut { times: u32 },
    /// So many live messages do not reach the first node.
    Lose { messages: u64 },
}

fn choose<T: Clone>(dice: &mut Dice, among: &[T]) -> T {
    among[usize::try_from(dice.below(among.len() as u64)).expect("an index")].clone()
}

impl Plan {
    /// The same for the same arguments, always.
    pub fn of(setup: Setup, seed: u64, length: Length) -> Self {
        // Set-ups of one seed differ.
        let mut dice = Dice::new(seed.wrapping_mul(4).wrapping_add(setup as u64) ^ 0x5eed_0f7a_b1e5);
        let dice = &mut dice;
        let ttl = choose(dice, &[300_u64, 300, 300, 60, 20, 5, 2]);
        let window = choose(dice, &[30_u64, 30, 20, 10]).min(ttl);
        let limit = choose(dice, &[HISTORY_LIMIT, HISTORY_LIMIT, 500, 100, 20]);
        let steps = steps(dice, setup, length, window);
        let stops = |step: &Step| {
            matches!(step.fault, Fault::FreezeNode | Fault::FreezeNodeExpiry)
                || matches!(step.beside, Some(Beside::Freeze { .. }))
        };
        let node_stops = steps.iter().any(stops);
        // Attempts go on for so long that the last one ends within the window.
        let publish = (window / 2).min(10);
        let slack = if node_stops { LONGEST_STOP.as_secs() } else { 0 };
        let retry_for = window.saturating_sub(publish + slack + 1);
        let mut settings = vec![
            ("history_limit", limit.to_string()),
            ("history_ttl", ttl.to_string()),
            ("dedup_window", window.to_string()),
            ("sessions_ttl", choose(dice, &[300, 300, 30, 8]).to_string()),
        ];
        for (name, values) in [
            ("history_hold", ["2", "0.5"].as_slice()),
            ("head_check_interval", &["5", "1"]),
            ("stream_linger", &["5", "5", "0"]),
            ("snapshot_budget", &["268435456", "100000"]),
            ("broker_timeout", &["8", "4"]),
        ] {
            let value = choose(dice, values);
            let value = if value == "0.5" { "500ms" } else { value };
            settings.push((name, value.to_owned()));
        }
        let mut arguments = vec![
            format!("--history-limit={limit}"),
            format!("--history-ttl={ttl}"),
            format!("--retry-for={retry_for}"),
            format!("--seed={}", dice.below(1 << 32)),
            format!("--clients={}", choose(dice, &[20, 40, 60])),
            format!("--streams={}", choose(dice, &[3, 10, 25])),
            format!("--stay={}", choose(dice, &["0.3-3", "0.1-0.6", "2-10"])),
            format!("--away={}", choose(dice, &["0.1-1", "0.1-4", "1-8"])),
            format!("--drop={}", choose(dice, &["random", "random", "random", "all-at-once", "none"])),
        ];
        // Large messages reach the limits of tails, pages and outboxes; few of them are enough.
        let loads = [(400, "100"), (150, "100-2000"), (50, "100-2000"), (50, "100-60000")];
        let (rate, payload) = choose(dice, &loads);
        let rate = steps.iter().map(|step| step.fault.bearable()).fold(rate, u32::min);
        arguments.push(format!("--rate={rate}"));
        arguments.push(format!("--payload={payload}"));
        if dice.below(4) == 0 {
            arguments.push(format!("--clock-jump={}", choose(dice, &[90, 10_800])));
        }
        Self { seed, setup, settings, arguments, spare_first: node_stops && window < 30, steps }
    }

    /// The deployment that it needs.
    pub fn variant(&self) -> Variant {
        let has = |wanted: fn(Fault) -> bool| self.steps.iter().any(|step| wanted(step.fault));
        Variant {
            program: has(|fault| fault == Fault::RollingUpgrade).then(old_build::path),
            split: has(|fault| fault.variant_is_split()),
            small_disks: has(|fault| fault == Fault::FillDisk),
            slow_disks: has(|fault| fault == Fault::SlowDisk),
            paths: has(Fault::is_silence),
            settings: self.settings.clone(),
            ..Variant::default()
        }
    }

    /// Why it cannot be played here.
    pub fn impossible(&self) -> Option<String> {
        self.steps.iter().find_map(|step| step.fault.impossible())
    }

    /// Nothing is removed while anybody may still try to publish it: nothing is stored twice for that reason.
    pub fn keeps_what_is_tried(&self) -> bool {
        let setting = |wanted: &str| self.settings.iter().find(|(name, _)| *name == wanted)?.1.parse().ok();
        setting("history_ttl").is_some_and(|ttl: u64| ttl >= 60)
            && setting("history_limit").is_some_and(|limit: u64| limit >= HISTORY_LIMIT)
    }

    /// The log's life may end.
    pub fn ends_an_epoch(&self) -> bool {
        self.steps.iter().any(|step| step.fault.ends_an_epoch())
    }
}

fn steps(dice: &mut Dice, setup: Setup, length: Length, window: u64) -> Vec<Step> {
    let (count, faults) = match length {
        Length::Short => (1, Fault::QUICK.as_slice()),
        Length::Long => (2 + dice.below(4), Fault::ALL.as_slice()),
    };
    let fits = |fault: &Fault| {
        // Clocks are the clients', and jump in any plan.
        fault.applies_to(setup)
            && *fault != Fault::JumpClocks
            && (window >= WINDOW_FOR_FROZEN_NATS || !fault.holds_publications_back())
            && (window >= *WINDOWS_FOR_SILENCE.start() || *fault != Fault::SilentPath)
            && (window <= *WINDOWS_FOR_SILENCE.end() || *fault != Fault::SilentPathBeyond)
    };
    let faults: Vec<Fault> = faults.iter().copied().filter(fits).collect();
    let mut steps: Vec<Step> = Vec::new();
    for _ in 0..count {
        let goes = |fault: &Fault| steps.iter().all(|step| step.fault.goes_with(*fault, setup));
        let faults: Vec<Fault> = faults.iter().copied().filter(goes).collect();
        let fault = choose(dice, &faults);
        steps.push(Step {
            pause: dice.within(&(Duration::ZERO..Duration::from_secs(3))),
            fault,
            beside: beside(dice, setup, fault),
        });
    }
    steps
}

fn beside(dice: &mut Dice, setup: Setup, fault: Fault) -> Option<Beside> {
    // Two hands on one process, or on what a fault counts, prove nothing.
    if !fault.bears_company() || dice.below(2) == 0 {
        return None;
    }
    match dice.below(if setup.is_embedded() { 1 } else { 3 }) {
        0 => {
            let stops = (0..=dice.below(3)).map(|_| {
                let pause = dice.within(&(Duration::ZERO..Duration::from_secs(2)));
                (pause, dice.within(&(Duration::from_millis(300)..LONGEST_STOP)))
            });
            let stops = stops.collect();
            Some(Beside::Freeze { node: 0, stops, cut: dice.below(2) == 0 })
        }
        1 => Some(Beside::Cut { times: 1 + dice.below(20) as u32 }),
        _ => Some(Beside::Lose { messages: 1 + dice.below(60) }),
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {} on «{}»", self.seed, self.setup)?;
        let settings: Vec<String> = self.settings.iter().map(|(name, value)| format!("--{name}={value}")).collect();
        writeln!(f, "  nodes: {}", settings.join(" "))?;
        writeln!(f, "  checker: {}", self.arguments.join(" "))?;
        if self.spare_first {
            writeln!(f, "  nobody publishes through node 0, if there is another")?;
        }
        for step in &self.steps {
            write!(f, "  after {:.1} s: {}", step.pause.as_secs_f64(), step.fault)?;
            match &step.beside {
                None => writeln!(f)?,
                Some(beside) => writeln!(f, "; meanwhile {beside}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Freeze { node, stops, cut } => {
                let stops: Vec<String> = stops
                    .iter()
                    .map(|(pause, stop)| format!("{:.1} s after {:.1} s", stop.as_secs_f64(), pause.as_secs_f64()))
                    .collect();
                let cut = if *cut { ", its connections to NATS cut" } else { "" };
                write!(f, "node {node} stopped for {}{cut}", stops.join(", for "))
            }
            Self::Cut { times } => write!(f, "the first node's connections to NATS cut {times} times"),
            Self::Lose { messages } => write!(f, "{messages} live messages lost on their way to the first node"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_plan_is_a_function_of_its_seed() {
        for setup in Setup::ALL {
            let texts: HashSet<String> = (0..200).map(|seed| Plan::of(setup, seed, Length::Long).to_string()).collect();
            assert_eq!(texts.len(), 200, "{setup}: seeds differ");
            for seed in 0..200 {
                assert_eq!(Plan::of(setup, seed, Length::Long), Plan::of(setup, seed, Length::Long));
            }
        }
    }

    #[test]
    fn every_fault_and_every_company_comes_up_on_every_set_up() {
        for setup in Setup::ALL {
            let plans: Vec<Plan> = (0..400).map(|seed| Plan::of(setup, seed, Length::Long)).collect();
            let steps = || plans.iter().flat_map(|plan| &plan.steps);
            for fault in Fault::ALL.into_iter().filter(|fault| fault.applies_to(setup) && *fault != Fault::JumpClocks) {
                assert!(steps().any(|step| step.fault == fault), "{fault} on {setup}");
            }
            let frozen = |step: &Step| matches!(step.beside, Some(Beside::Freeze { .. }));
            assert!(steps().any(frozen), "{setup}");
            let cut = |step: &Step| matches!(step.beside, Some(Beside::Cut { .. } | Beside::Lose { .. }));
            assert_eq!(steps().any(cut), !setup.is_embedded(), "{setup}");
        }
    }

    #[test]
    fn no_retry_goes_on_beyond_the_window() {
        for (seed, setup) in (0..400).zip(Setup::ALL.into_iter().cycle()) {
            let plan = Plan::of(setup, seed, Length::Long);
            let number = |name: &str| -> u64 {
                let text = plan.settings.iter().find(|(option, _)| *option == name).map(|(_, value)| value.clone());
                text.and_then(|text| text.parse().ok()).expect("a number")
            };
            let retry: u64 = plan
                .arguments
                .iter()
                .find_map(|argument| argument.strip_prefix("--retry-for=")?.parse().ok())
                .expect("a number");
            let window = number("dedup_window");
            assert!(retry == 0 || retry + (window / 2).min(10) < window, "{plan}");
            assert!(window <= number("history_ttl"), "{plan}");
        }
    }
}
