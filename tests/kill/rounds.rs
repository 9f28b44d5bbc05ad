//! The long form of the kill tests: many rounds, one line each. Run by `scripts/kill-rounds`.

mod plan;
mod proc;
mod round;
mod server;

use clap::{Arg, ArgAction, Command, value_parser};
use plan::{Fault, Plan};
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let matches = Command::new("kill-rounds")
        .about("Runs rounds of the kill tests, one line each")
        .arg(Arg::new("rounds").value_parser(value_parser!(u64).range(1..)).default_value("4").help("Number of rounds"))
        .arg(Arg::new("fault").long("fault").value_parser(|text: &str| text.parse::<Fault>()).help(
            "Only this fault: none, kill-carrick, kill-nats, freeze-nats, term-carrick [default: all but none in turn]",
        ))
        .arg(
            Arg::new("seed")
                .long("seed")
                .value_parser(value_parser!(u64))
                .default_value("1")
                .help("Seed of the first round"),
        )
        .arg(
            Arg::new("short")
                .long("short")
                .action(ArgAction::SetTrue)
                .help("The sizes of the tests: absences up to 3 s"),
        )
        .arg(Arg::new("server").long("server").value_parser(value_parser!(PathBuf)).help("Another carrick binary"))
        // Cargo passes it to every benchmark.
        .arg(Arg::new("bench").long("bench").action(ArgAction::SetTrue).hide(true))
        .get_matches();
    let rounds = *matches.get_one::<u64>("rounds").expect("has a default");
    let first = *matches.get_one::<u64>("seed").expect("has a default");
    let binary = matches.get_one::<PathBuf>("server").cloned().unwrap_or_else(round::binary);
    let only = matches.get_one::<Fault>("fault").copied();
    let short = matches.get_flag("short");
    let mut failed = 0;
    println!("{}", round::Outcome::HEADER);
    for index in 0..rounds {
        let in_turn = [Fault::KillCarrick, Fault::KillNats, Fault::FreezeNats, Fault::TermCarrick];
        let fault = only.unwrap_or(in_turn[usize::try_from(index % 4).expect("below four")]);
        let plan = if short { Plan::short(fault, first + index) } else { Plan::new(fault, first + index) };
        match round::run(&plan, &binary) {
            Ok(outcome) => {
                println!("{}", outcome.line());
                println!("  {}", outcome.proof());
                for failure in &outcome.failures {
                    println!("  {failure}");
                }
                failed += u64::from(!outcome.failures.is_empty());
            }
            Err(error) => {
                println!("{fault:12} {:>5}  could not be run: {error}", plan.seed);
                failed += 1;
            }
        }
    }
    println!("{} of {rounds} rounds passed", rounds - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
