//! `carrick licenses`: Carrick's licence and those of what is built in.

use crate::nats::embedded;
use clap::{ArgMatches, Command};
use std::io::Write;
use std::process::ExitCode;

pub fn command() -> Command {
    Command::new("licenses").about("Print the licences of Carrick and of the nats-server that is built in")
}

pub async fn run(_: &ArgMatches) -> anyhow::Result<ExitCode> {
    let version = embedded::VERSION.map_or(String::new(), |version| format!(" {version}"));
    let text = format!("{}\n\nnats-server{version}\n\n{}\n", include_str!("../../LICENSE"), embedded::LICENSE);
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
