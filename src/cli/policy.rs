//! `carrick policy show`, `carrick policy apply`: the history policies of a store on NATS.

use super::settings;
use crate::app::operator::Operator;
use crate::broker::Policy;
use crate::broker::nats::{Admin, AdminError, Change, Overview};
use crate::config::Config;
use clap::{ArgMatches, Command};
use std::fmt::Write;
use std::process::ExitCode;

/// Wrong arguments or settings.
const EXIT_USAGE: u8 = 2;
pub(super) const SHOWN: [&str; 6] =
    ["history", "history_limit", "history_ttl", "nats_servers", "nats_prefix", "config-path"];

const EXIT_HELP: &str = "\
Settings are the server's: flags (all of them, see carrick --help), environment, file. \
Exit status: 0 done or nothing to do, 1 refused or failed, 2 wrong arguments or settings.";

pub fn command() -> Command {
    let show =
        Command::new("show").about("Show the history policies in effect, their logs, and how the settings differ");
    let apply = Command::new("apply").about("Put the configured history policies into effect on all running nodes").long_about(
        "Puts the configured history policies into effect on all running nodes. Limits, lives and copies change in place \
         and lose nothing but what is too much; streams that move to another log start anew there, and their clients are \
         told that history is lost. Nodes should be restarted with the same settings afterwards.",
    );
    Command::new("policy")
        .about("Show or change the history policies of a store on NATS")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(settings::with_options(show, &SHOWN).after_help(EXIT_HELP))
        .subcommand(settings::with_options(apply, &SHOWN).after_help(EXIT_HELP))
}

/// # Errors
/// The store cannot be reached, or refuses.
pub async fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let Some((action, matches)) = matches.subcommand() else { return Ok(ExitCode::from(EXIT_USAGE)) };
    with_store(matches, async |admin| {
        Ok(match action {
            "apply" => applied(admin.apply().await?.as_ref(), &admin.overview().await?),
            _ => shown(&admin.overview().await?),
        })
    })
    .await
}

/// Reaches the store that the settings name, prints what is answered, and leaves.
pub(super) async fn with_store(
    matches: &ArgMatches,
    work: impl AsyncFnOnce(&Admin) -> Result<String, AdminError>,
) -> anyhow::Result<ExitCode> {
    let config: Config = match settings::load(matches) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("error: {error:#}");
            return Ok(ExitCode::from(EXIT_USAGE));
        }
    };
    let operator = Operator::new(&config).await?;
    let outcome = work(&operator.admin).await;
    operator.close().await;
    print!("{}", outcome?);
    Ok(ExitCode::SUCCESS)
}

fn keeps(policy: &Policy) -> String {
    if !policy.keeps() {
        return "keeps nothing".into();
    }
    let copies = if policy.replicas == 0 { String::new() } else { format!(", replicas {}", policy.replicas) };
    format!("limit {}, ttl {}s, {}{copies}", policy.limit, policy.ttl.as_secs_f64(), policy.storage.name())
}

fn shown(overview: &Overview) -> String {
    let mut text = format!("revision {}; the first policy whose pattern matches holds\n", overview.revision);
    for shown in &overview.policies {
        let policy = &shown.policy;
        let _ = write!(text, "{:<12} {:<20} {}", policy.name, policy.pattern, keeps(policy));
        if let Some((log, epoch)) = &shown.log {
            let (messages, streams, epoch) = (shown.messages, shown.streams, epoch.as_str());
            let _ = write!(text, "; {messages} messages in {streams} streams, epoch {epoch}, log {log}");
        }
        text.push('\n');
    }
    text.push_str(&unused(overview));
    if !overview.nodes.is_empty() {
        let _ = writeln!(text, "running: {}", overview.nodes.join(", "));
    }
    if !overview.differences.is_empty() {
        text.push_str("the settings here differ (carrick policy apply puts them into effect):\n");
        for difference in &overview.differences {
            let _ = writeln!(text, "  {difference}");
        }
    }
    text
}

/// Logs stay when their policy goes: only an operator can say that nobody wants them back.
fn unused(overview: &Overview) -> String {
    overview.unused.iter().fold(String::new(), |mut text, (policy, log, messages)| {
        let _ = writeln!(
            text,
            "not in use: log {log} of policy {policy} keeps {messages} messages until they expire; remove it with \
             `nats stream rm {log}`"
        );
        text
    })
}

fn applied(change: Option<&Change>, overview: &Overview) -> String {
    let Some(change) = change else {
        return format!("nothing to change: revision {} is in effect\n{}", overview.revision, unused(overview));
    };
    let mut text = format!("revision {} is in effect\n", change.revision);
    for difference in &change.differences {
        let _ = writeln!(text, "changed: {difference}");
    }
    for policy in &change.new_epochs {
        let _ = writeln!(text, "new epoch: {policy} (streams come to its log; clients of all its streams read anew)");
    }
    text.push_str(&unused(overview));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent() {
        command().debug_assert();
        for action in ["show", "apply"] {
            let mut command = command();
            let help = command.find_subcommand_mut(action).unwrap().render_long_help().to_string();
            assert!(help.contains("--history <POLICY>") && help.contains("Exit status: 0"), "{help}");
        }
    }
}
