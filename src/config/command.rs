//! The command line, from the rows.

use super::deprecated::DEPRECATED;
use super::kinds::{Kind, Raw, Switch};
use super::options::rows;
use super::row::{Category, Row};
use clap::{Arg, ArgAction, ArgMatches, Command};

/// What a run is about, besides the options: these have no environment variable and no key.
const CONFIG_PATH: &str = "config-path";
const IGNORE_CONFIG_PATH: &str = "ignore-config-path";
const PRINT_CONFIG: &str = "print-config";
const PRINT_SECRETS: &str = "print-secrets";
const VERSION: &str = "version";

const ABOUT: &str =
    "Real-time server for Action Cable and AnyCable clients, with reliable streams and resumable sessions";

const AFTER_HELP: &str = "\
Each option can be set in the environment, as ANYCABLE_ and its name in upper case (ANYCABLE_MAX_CONN), and in a file \
(./anycable.toml, else /etc/anycable/anycable.toml). The command line wins over the environment, the environment over \
the file. --print-config shows the settings in effect as such a file.
Times are seconds, or name their unit: 250ms, 10s, 5m, 2h. A single dash is accepted, too (-port 8080).";

/// The server's command line. Subcommands may be added to it. Takes arguments without the program's name.
pub fn command() -> Command {
    let by_category = Category::ALL
        .into_iter()
        .flat_map(|category| rows().iter().filter(move |row| row.category == category && row.flag.is_some()));
    Command::new("carrick")
        .bin_name("carrick")
        .about(ABOUT)
        .after_help(AFTER_HELP)
        .no_binary_name(true)
        .disable_version_flag(true)
        .disable_help_subcommand(true)
        .args_override_self(true)
        .args_conflicts_with_subcommands(true)
        .args(by_category.map(option))
        .args(DEPRECATED.iter().map(|old| argument(old.flag, old.switch, "VALUE").hide(true)))
        .next_help_heading("Configuration")
        .arg(argument(CONFIG_PATH, false, "PATH").help("Read this file in place of the usual ones"))
        .arg(argument(IGNORE_CONFIG_PATH, true, "BOOL").help("Read no file"))
        .arg(argument(PRINT_CONFIG, true, "BOOL").help("Print the settings in effect as a file, without secrets"))
        .arg(argument(PRINT_SECRETS, true, "BOOL").help("With --print-config: print secrets, too"))
        .arg(Arg::new(VERSION).short('v').long(VERSION).action(ArgAction::SetTrue).help("Print the version"))
}

fn option(row: &Row) -> Arg {
    let flag = row.flag.expect("only rows with a flag become arguments");
    let mut help = row.help.to_owned();
    if !row.values.is_empty() {
        help += &format!(" [values: {}]", row.values.join(", "));
    }
    if !row.default.is_empty() && !row.switch {
        help += &format!(" [default: {}]", row.default);
    } else if row.default == "true" {
        help += " [default: true]";
    }
    let argument = argument(flag, row.switch, row.value_name);
    let argument = if row.repeated { argument.action(ArgAction::Append) } else { argument };
    argument.help(help).help_heading(row.category.title()).hide(row.hidden)
}

/// `--flag` and `--flag=BOOL` for a switch, else `--flag VALUE` and `--flag=VALUE`.
fn argument(flag: &'static str, switch: bool, value_name: &'static str) -> Arg {
    let arg = Arg::new(flag).long(flag).action(ArgAction::Set).value_name(value_name);
    if switch {
        arg.num_args(0..=1).require_equals(true).default_missing_value("true").hide_possible_values(true)
    } else {
        // Whatever follows is the value, also a port of -1.
        arg.num_args(1).allow_hyphen_values(true)
    }
}

/// Turns `-name` into `--name`, up to the first argument that belongs to a subcommand.
pub fn double_dashes(command: &Command, args: impl IntoIterator<Item = String>) -> Vec<String> {
    let takes_value = |name: &str| {
        command.get_arguments().any(|arg| arg.get_long() == Some(name) && !arg.is_require_equals_set())
            && name != VERSION
    };
    let mut done = Vec::new();
    let mut args = args.into_iter();
    while let Some(mut arg) = args.next() {
        let is_option = arg.starts_with('-') && arg != "--";
        if !is_option {
            done.push(arg);
            break;
        }
        if !arg.starts_with("--") && arg.chars().count() > 2 {
            arg.insert(0, '-');
        }
        let value_follows = arg.strip_prefix("--").is_some_and(takes_value);
        done.push(arg);
        if value_follows {
            done.extend(args.next());
        }
    }
    done.extend(args);
    done
}

/// The special arguments of a run.
pub struct Special {
    pub version: bool,
    pub print_config: bool,
    pub print_secrets: bool,
    pub config_path: Option<String>,
    pub ignore_config_path: bool,
}

impl Special {
    /// `Err`: name and value of a switch that is neither true nor false.
    pub fn of(matches: &ArgMatches) -> Result<Self, (&'static str, String)> {
        let switch = |name| match value(matches, name) {
            None => Ok(false),
            Some(text) => Switch.read(Raw::Text(text)).map_err(|_| (name, text.to_owned())),
        };
        Ok(Self {
            version: matches.get_flag(VERSION),
            print_config: switch(PRINT_CONFIG)?,
            print_secrets: switch(PRINT_SECRETS)?,
            config_path: value(matches, CONFIG_PATH).map(str::to_owned),
            ignore_config_path: switch(IGNORE_CONFIG_PATH)?,
        })
    }
}

/// All values given for a flag that may be repeated.
pub fn values<'m>(matches: &'m ArgMatches, flag: &str) -> Option<Vec<&'m String>> {
    matches.get_many::<String>(flag).map(Iterator::collect)
}

/// The value given for a flag.
pub fn value<'m>(matches: &'m ArgMatches, flag: &str) -> Option<&'m str> {
    matches.get_one::<String>(flag).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dashes(args: &[&str]) -> Vec<String> {
        double_dashes(&command(), args.iter().map(|arg| (*arg).to_owned()))
    }

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn a_single_dash_is_accepted_for_names_and_left_alone_in_values() {
        assert_eq!(
            dashes(&["-port", "80", "-noauth=false", "-h", "-v"]),
            ["--port", "80", "--noauth=false", "-h", "-v"]
        );
        assert_eq!(dashes(&["--secret", "-host", "-host", "x"]), ["--secret", "-host", "--host", "x"]);
        assert_eq!(dashes(&["-public", "tail", "-url", "x"]), ["--public", "tail", "-url", "x"]);
        assert_eq!(dashes(&["--", "-port"]), ["--", "-port"]);
    }

    #[test]
    fn help_shows_each_visible_option_under_its_heading_and_no_hidden_one() {
        let help = command().render_long_help().to_string();
        for row in rows() {
            let Some(flag) = row.flag else { continue };
            let shown = help.lines().any(|line| {
                let words = line.trim_start().strip_prefix(&format!("--{flag}"));
                words.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '[', '=']))
            });
            assert_eq!(shown, !row.hidden, "--{flag}");
        }
        let mut rest = help.as_str();
        for category in Category::ALL {
            let heading = format!("\n{}:\n", category.title());
            rest = &rest[rest.find(&heading).unwrap_or_else(|| panic!("no heading {heading}")) + heading.len()..];
        }
        assert!(!help.contains("turbo_rails_key"));
    }
}
