//! The program's entry: arguments → server or subcommand → exit status.
//!
//! A subcommand is a file here with `command()` and `run(&ArgMatches)`, and one line in [`subcommands!`].

mod cluster;
mod epoch;
mod licenses;
mod policy;
mod publish;
mod settings;
mod sign;
mod tail;
mod token;
mod verify;

use crate::config::{self, Config, ConfigError, Invocation, Surroundings};
use crate::{app, ops};
use clap::ArgMatches;
use std::io::Write;
use std::process::ExitCode;

/// One definition per subcommand: its name is its module's.
macro_rules! subcommands {
    ($($name:ident),* $(,)?) => {
        /// The server's command line and the subcommands.
        fn command() -> clap::Command {
            config::command()$(.subcommand($name::command()))*
        }

        /// The exit status of the subcommand asked for; `None`: the server is meant.
        async fn run_subcommand(matches: &ArgMatches) -> Option<anyhow::Result<ExitCode>> {
            match matches.subcommand()? {
                $((stringify!($name), matches) => Some($name::run(matches).await),)*
                (name, _) => Some(Err(anyhow::anyhow!("subcommand {name} has no entry"))),
            }
        }
    };
}

subcommands! { publish, tail, verify, token, sign, policy, epoch, cluster, licenses }

/// Runs the program. `args` leaves its name out.
///
/// Status 0: done, stopped gracefully, or stopped by a second signal. Status 1: arguments or settings cannot be used,
/// the server could not start, or it failed. Status 70: a part of the server panicked ([`crate::critical`]).
pub fn main(args: impl IntoIterator<Item = String>) -> ExitCode {
    let command = command();
    let args = config::double_dashes(&command, args);
    let verifies = args.iter().any(|arg| matches!(arg.as_str(), "verify" | "policy" | "epoch"));
    let matches = match command.try_get_matches_from(args) {
        Ok(matches) => matches,
        // Usage errors end with 1 like all faulty settings, not with clap's 2; but some subcommands have a word of their
        // own to say with 1.
        Err(error) => {
            let status = match error.use_stderr() {
                true if verifies => ExitCode::from(verify::EXIT_UNABLE),
                true => ExitCode::FAILURE,
                false => ExitCode::SUCCESS,
            };
            // Nobody is left to tell if the output is closed.
            let _ = error.print();
            return status;
        }
    };
    if matches.subcommand_name().is_some() {
        return subcommand(&matches);
    }
    let surroundings = match Surroundings::of_process() {
        Ok(surroundings) => surroundings,
        Err(error) => return refuse(&format!("cannot tell the working directory: {error}")),
    };
    match Config::from_matches(&matches, &surroundings) {
        Ok(Invocation::Help(text) | Invocation::PrintConfig(text)) => print(&text),
        Ok(Invocation::Version) => print(&format!("{}\n", config::VERSION)),
        Ok(Invocation::Serve(config)) => serve(*config, &surroundings),
        Err(error @ ConfigError::Usage(_)) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
        Err(error) => refuse(&error.to_string()),
    }
}

fn serve(config: Config, surroundings: &Surroundings) -> ExitCode {
    ops::logging::init(&config.logging, &config.node_id);
    ops::panics::log_them();
    let presets: Vec<_> = config.loaded.presets.iter().map(|preset| preset.name()).collect();
    if !presets.is_empty() {
        tracing::info!(presets = presets.join(","), "load presets");
    }
    for warning in &config.loaded.warnings {
        tracing::warn!(context = "config", "{warning}");
    }
    if config.logging.debug {
        tracing::debug!(context = "config", "debug mode is on");
    }
    let threads = surroundings.env.get("GOMAXPROCS").and_then(|text| text.parse().ok()).filter(|threads| *threads > 0);
    match runtime(threads).map(|runtime| runtime.block_on(app::run(config))) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            tracing::error!(context = "node", "{error:#}");
            ExitCode::FAILURE
        }
        Err(error) => refuse(&format!("cannot start threads: {error}")),
    }
}

fn subcommand(matches: &ArgMatches) -> ExitCode {
    match runtime(None).map(|runtime| runtime.block_on(run_subcommand(matches))) {
        Ok(Some(Ok(status))) => status,
        Ok(Some(Err(error))) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
        Ok(None) => ExitCode::FAILURE,
        Err(error) => refuse(&format!("cannot start threads: {error}")),
    }
}

/// As many workers as processors (a container's share of them), or as many as asked for.
fn runtime(threads: Option<usize>) -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = threads {
        builder.worker_threads(threads);
    }
    builder.enable_all().build()
}

/// A start that fails says so where the logs would be.
fn refuse(reason: &str) -> ExitCode {
    for line in reason.lines() {
        print(&format!("error: {line}\n"));
    }
    ExitCode::FAILURE
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(args: &[&str]) -> String {
        let ignored_file = ["--ignore-config-path"].into_iter().chain(args.iter().copied());
        format!("{:?}", main(ignored_file.map(str::to_owned)))
    }

    #[test]
    fn faulty_arguments_and_settings_end_with_1_and_questions_with_0() {
        let (done, failed) = (format!("{:?}", ExitCode::SUCCESS), format!("{:?}", ExitCode::FAILURE));
        assert_ne!(done, failed);
        for args in [&["--version"][..], &["-v"], &["--print-config"]] {
            assert_eq!(status(args), done, "{args:?}");
        }
        for args in [&["--no_such_option"][..], &["no_such_command"], &["--port", "x"], &["--broker", "etcd"]] {
            assert_eq!(status(args), failed, "{args:?}");
        }
    }
}
