//! `carrick epoch reset`: for an operator who has put an old backup of the store back.

use super::policy::with_store;
use super::settings;
use crate::broker::policy::DEFAULT;
use clap::{Arg, ArgMatches, Command};
use std::process::ExitCode;

const SHOWN: [&str; 3] = ["nats_servers", "nats_prefix", "config-path"];

pub fn command() -> Command {
    let reset = Command::new("reset")
        .about("Make all positions in a log void: clients are told that history is lost and read anew")
        .long_about(
            "Gives a log a new epoch, so that no client takes its position for one in the log as it was before an old \
             backup was put back. Running nodes adopt it at once. Messages stay.",
        )
        .arg(
            Arg::new("policy")
                .long("policy")
                .value_name("NAME")
                .default_value(DEFAULT)
                .help("The history policy whose log is meant"),
        );
    let reset = settings::with_options(reset, &SHOWN).after_help(
        "Settings are the server's: flags (all of them, see carrick --help), environment, file. \
         Exit status: 0 done, 1 refused or failed, 2 wrong arguments or settings.",
    );
    Command::new("epoch")
        .about("Manage the epochs of a store on NATS")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(reset)
}

/// # Errors
/// The store cannot be reached, or has no such policy.
pub async fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let Some((_, matches)) = matches.subcommand() else { return Ok(ExitCode::from(2)) };
    let policy = matches.get_one::<String>("policy").map_or(DEFAULT, String::as_str).to_owned();
    with_store(matches, async |admin| {
        let (former, fresh) = admin.reset_epoch(&policy).await?;
        let (former, fresh) = (former.as_str(), fresh.as_str());
        Ok(format!("policy {policy}: epoch {former} is void, {fresh} holds from now on\n"))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent() {
        command().debug_assert();
        let matches = command().try_get_matches_from(["epoch", "reset", "--policy", "chat"]).unwrap();
        let (_, matches) = matches.subcommand().unwrap();
        assert_eq!(matches.get_one::<String>("policy").map(String::as_str), Some("chat"));
    }
}
