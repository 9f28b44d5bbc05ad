//! The server's settings for subcommands: from the same flags, environment and file.

use crate::config::{self, Config, Invocation, Surroundings};
use anyhow::Context;
use clap::{ArgMatches, Command};

/// Adds the server's options to a subcommand. Those in `shown` appear in its help text.
pub fn with_options(command: Command, shown: &[&str]) -> Command {
    let server = config::command();
    let options = server.get_arguments().map(|arg| {
        let hidden = !shown.contains(&arg.get_id().as_str());
        arg.clone().hide(hidden).help_heading("Configuration")
    });
    command
        .args_override_self(true)
        .args(options)
        .after_help("Settings are the server's: flags (all of them, see carrick --help), environment, file.")
}

/// The settings for a subcommand made by [`with_options`].
///
/// # Errors
/// Values at fault, or a question (`--print-config`) in place of a command.
pub fn load(matches: &ArgMatches) -> anyhow::Result<Config> {
    let surroundings = Surroundings::of_process().context("cannot tell the working directory")?;
    load_in(matches, &surroundings)
}

/// [`load`] with the surroundings named.
pub fn load_in(matches: &ArgMatches, surroundings: &Surroundings) -> anyhow::Result<Config> {
    match Config::from_matches(matches, surroundings)? {
        Invocation::Serve(config) => Ok(*config),
        Invocation::Help(_) | Invocation::Version | Invocation::PrintConfig(_) => {
            anyhow::bail!("--version and --print-config go without a subcommand")
        }
    }
}

#[cfg(test)]
pub mod test_settings {
    use super::*;
    use std::collections::HashMap;

    /// Arguments and settings of a subcommand whose only file is this one.
    pub fn given(command: Command, args: &[&str], env: &[(&str, &str)], file: &str) -> (ArgMatches, Config) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("anycable.toml"), file).unwrap();
        let env: HashMap<_, _> = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let name = command.get_name().to_owned();
        let matches = command.try_get_matches_from(std::iter::once(name.as_str()).chain(args.iter().copied())).unwrap();
        let config = load_in(&matches, &Surroundings::new(env, directory.path())).unwrap();
        (matches, config)
    }
}
