//! `carrick cluster …`: members of a cluster of embedded nats-servers, asked through a running one with the same settings.

use super::settings;
use crate::app::cluster_secret;
use crate::config::{self, Config, EndpointPort};
use crate::nats::embedded::members::{Member, Members};
use crate::nats::embedded::{Credentials, ListenAddr, cluster_system_credentials, reachable};
use anyhow::Context;
use clap::{Arg, ArgMatches, Command, value_parser};
use std::process::ExitCode;
use std::time::Duration;

pub fn command() -> Command {
    let shown = ["enats_addr", "secret", "config-path"];
    let members = Command::new("members").about("List members, and whether their copies are up to date");
    let remove = Command::new("remove")
        .about("Remove a member that will not come back under its name; its copies move to another one")
        .arg(Arg::new("name").value_name("NAME").required(true).help("Its --enats_server_name"))
        .arg(
            Arg::new("wait")
                .long("wait")
                .value_name("SECONDS")
                .default_value("60")
                .value_parser(value_parser!(u64))
                .help("How long all copies may take to be up to date"),
        );
    Command::new("cluster")
        .about("Members of a cluster of embedded nats-servers")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(settings::with_options(members, &shown))
        .subcommand(settings::with_options(remove, &shown))
}

/// Status 0: done; with `members`, also that every member is up and up to date. Status 1 otherwise.
///
/// # Errors
/// The settings are at fault, the cluster does not answer, or refuses.
pub async fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let (name, matches) = matches.subcommand().context("a command is missing, see carrick cluster --help")?;
    let members = connect(&settings::load(matches)?).await?;
    if name == "remove" {
        let name: &String = matches.get_one("name").context("NAME is missing")?;
        let wait = Duration::from_secs(matches.get_one("wait").copied().unwrap_or(60));
        members.remove(name, wait).await?;
        println!("{name} is removed, all copies are up to date");
        return Ok(ExitCode::SUCCESS);
    }
    let list = members.list().await?;
    list.iter().for_each(|member| println!("{}", line(member)));
    let incomplete = members.incomplete().await?;
    match &incomplete {
        None => println!("all copies are up to date"),
        Some(what) => println!("incomplete: {what}"),
    }
    let good = incomplete.is_none() && list.iter().all(|member| member.online);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn line(member: &Member) -> String {
    let state = match (&member.trouble, member.online) {
        (_, false) => "away".to_owned(),
        (None, true) => "up to date".to_owned(),
        (Some(trouble), true) => format!("not up to date: {trouble}"),
    };
    format!("{}\t{state}{}", member.name, if member.leader { ", leader" } else { "" })
}

async fn connect(config: &Config) -> anyhow::Result<Members> {
    let enats = &config.embedded_nats;
    let EndpointPort::Fixed(port) = enats.service_addr.port else {
        anyhow::bail!("give --enats_addr with the port of a member that is running");
    };
    let url = reachable(&ListenAddr { host: enats.service_addr.host.clone(), port: Some(port) });
    let secret = cluster_secret(config)?;
    let client = match &enats.service_addr.credentials {
        Some(config::Credentials { user, password: Some(password) }) => {
            Credentials { user: user.clone(), password: password.clone() }
        }
        _ => Credentials::of_cluster(&secret),
    };
    Ok(Members::connect(&url, &client, &cluster_system_credentials(&secret)).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent() {
        command().debug_assert();
        assert!(command().try_get_matches_from(["cluster", "remove"]).is_err());
    }

    #[test]
    fn states_are_words() {
        let member = Member { name: "n1".into(), online: true, leader: true, trouble: None };
        assert_eq!(line(&member), "n1\tup to date, leader");
        assert_eq!(line(&Member { online: false, leader: false, ..member.clone() }), "n1\taway");
        let behind = Member { trouble: Some("catching up".into()), ..member };
        assert_eq!(line(&behind), "n1\tnot up to date: catching up, leader");
    }
}
