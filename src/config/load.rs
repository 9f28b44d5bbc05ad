//! What was given, from all sources by precedence: command line, environment, file, default.

use super::command::{Special, command, double_dashes, value, values};
use super::deprecated::DEPRECATED;
use super::file::File;
use super::kinds::{EmptyEnv, Raw, may_be_shown};
use super::options::rows;
use super::row::{Row, env_name};
use super::{Config, presets, print, resolve};
use clap::ArgMatches;
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// What the arguments ask for.
#[derive(Debug)]
pub enum Invocation {
    /// Print this help text and end.
    Help(String),
    /// Print the version and end.
    Version,
    /// Print these settings and end.
    PrintConfig(String),
    /// Run the server.
    Serve(Box<Config>),
}

/// The settings cannot be used. Shown to the operator; the process ends with status 1.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Arguments that do not exist or lack a value, with the usage text.
    #[error("{0}")]
    Usage(String),
    #[error("cannot read configuration file {path}: {reason}", path = path.display())]
    File { path: PathBuf, reason: String },
    /// All values at fault.
    #[error("{}", .0.iter().map(Fault::to_string).collect::<Vec<_>>().join("\n"))]
    Faults(Vec<Fault>),
}

/// One value that is not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub option: String,
    pub origin: Origin,
    /// As given; stars in place of a secret.
    pub value: String,
    /// What is allowed.
    pub allowed: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { option, origin, value, allowed } = self;
        write!(f, "{option} ({origin}): {value} is not allowed; allowed: {allowed}")
    }
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Default,
    File { path: PathBuf, key: String },
    Env(String),
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, key } => write!(f, "key {key} of {}", path.display()),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "flag --{name}"),
        }
    }
}

/// What surrounds the process: read once, passed in, so that loading is a pure function of it and the files.
#[derive(Clone, Debug)]
pub struct Surroundings {
    pub env: HashMap<String, String>,
    /// Relative paths start here.
    pub cwd: PathBuf,
    /// The file that is read if the working directory has none.
    pub system_file: PathBuf,
}

impl Surroundings {
    pub fn new(env: HashMap<String, String>, cwd: impl Into<PathBuf>) -> Self {
        Self { env, cwd: cwd.into(), system_file: PathBuf::from("/etc/anycable/anycable.toml") }
    }

    /// Of this process. Variables that are not UTF-8 keep what can be read of them.
    pub fn of_process() -> std::io::Result<Self> {
        let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        let env = std::env::vars_os().map(|(name, value)| (lossy(name), lossy(value))).collect();
        Ok(Self::new(env, std::env::current_dir()?))
    }
}

/// Settings as given, with the origin of each row's value.
pub struct Given {
    pub config: Config,
    origins: Vec<Origin>,
}

impl Given {
    /// Where the value of a key came from.
    pub fn origin(&self, key: &str) -> &Origin {
        &self.origins[index(key)]
    }

    /// Nobody said otherwise: the value is the default, and neither flag nor variable insists on it. (A file may be a
    /// printed configuration, which names everything.)
    pub fn is_default(&self, key: &str) -> bool {
        let row = &rows()[index(key)];
        let insisted = matches!(self.origin(key), Origin::Flag(_) | Origin::Env(_));
        !insisted && (row.show)(&self.config) == (row.show)(&Config::default())
    }

    /// A fault of the value of `key`.
    pub fn fault(&self, key: &str, allowed: impl Into<String>) -> Fault {
        let row = &rows()[index(key)];
        Fault {
            option: row.name().to_owned(),
            origin: self.origin(key).clone(),
            value: (row.show)(&self.config).masked().to_owned(),
            allowed: allowed.into(),
        }
    }
}

fn index(key: &str) -> usize {
    rows().iter().position(|row| row.key == key).unwrap_or_else(|| panic!("{key} is no option"))
}

impl Config {
    /// Reads all sources. `args` leaves the program's name out.
    ///
    /// # Errors
    /// [`ConfigError`], which tells the operator what to change.
    pub fn load(
        args: impl IntoIterator<Item = String>,
        env: HashMap<String, String>,
        cwd: &Path,
    ) -> Result<Invocation, ConfigError> {
        Self::load_in(args, &Surroundings::new(env, cwd))
    }

    /// [`Config::load`] with all surroundings named.
    pub fn load_in(
        args: impl IntoIterator<Item = String>,
        surroundings: &Surroundings,
    ) -> Result<Invocation, ConfigError> {
        let command = command();
        let args = double_dashes(&command, args);
        match command.try_get_matches_from(args) {
            Ok(matches) => Self::from_matches(&matches, surroundings),
            Err(error) if error.use_stderr() => Err(ConfigError::Usage(error.to_string().trim_end().to_owned())),
            Err(help) => Ok(Invocation::Help(help.to_string())),
        }
    }

    /// For arguments that were matched already, by [`command`] or one that extends it.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn from_matches(matches: &ArgMatches, surroundings: &Surroundings) -> Result<Invocation, ConfigError> {
        let special = Special::of(matches).map_err(|(name, text)| {
            ConfigError::Faults(vec![Fault {
                option: name.to_owned(),
                origin: Origin::Flag(name.to_owned()),
                value: format!("{text:?}"),
                allowed: "true or false".to_owned(),
            }])
        })?;
        if special.version {
            return Ok(Invocation::Version);
        }
        let file = match special.ignore_config_path {
            true => None,
            false => File::find(&surroundings.cwd, &surroundings.system_file, special.config_path.as_deref())?,
        };
        let mut given = gather(matches, &surroundings.env, file)?;
        if special.print_config {
            return Ok(Invocation::PrintConfig(print::toml(&given.config, special.print_secrets)));
        }
        presets::apply(&mut given, &surroundings.env);
        resolve::resolve(given, &surroundings.cwd).map(|config| Invocation::Serve(Box::new(config)))
    }
}

/// The value that wins for one name, and its origin.
fn find<'a>(
    matches: &'a ArgMatches,
    repeated: &'a HashMap<&'static str, String>,
    env: &'a HashMap<String, String>,
    file: Option<&'a File>,
    row: &Row,
) -> Option<(Origin, Raw<'a>)> {
    if let Some(flag) = row.flag
        && let Some(text) = repeated.get(flag).map(String::as_str).or_else(|| value(matches, flag))
    {
        return Some((Origin::Flag(flag.to_owned()), Raw::Text(text)));
    }
    for name in row.env_names() {
        match (env.get(&name).map(String::as_str), row.empty_env) {
            (None, _) | (Some(""), EmptyEnv::Unset) => {}
            (Some(""), EmptyEnv::Means(text)) => return Some((Origin::Env(name), Raw::Text(text))),
            (Some(text), _) => return Some((Origin::Env(name), Raw::Text(text))),
        }
    }
    let file = file?;
    let value = file.value(&row.key)?;
    Some((Origin::File { path: file.path.clone(), key: row.key.clone() }, Raw::Toml(value)))
}

/// The values of flags that were given several times, as the environment would have them.
fn repeated(matches: &ArgMatches) -> HashMap<&'static str, String> {
    let flags = rows().iter().filter(|row| row.repeated).filter_map(|row| row.flag);
    flags.filter_map(|flag| Some((flag, super::history::joined(values(matches, flag)?.into_iter())))).collect()
}

fn gather(matches: &ArgMatches, env: &HashMap<String, String>, file: Option<File>) -> Result<Given, ConfigError> {
    let mut config = Config::default();
    let mut origins = Vec::with_capacity(rows().len());
    let mut faults = Vec::new();
    let repeated = repeated(matches);
    for row in rows() {
        let Some((origin, raw)) = find(matches, &repeated, env, file.as_ref(), row) else {
            origins.push(Origin::Default);
            continue;
        };
        if let Err(allowed) = (row.read)(&mut config, raw) {
            let value = describe(raw, row.secret, row.holds_urls());
            faults.push(Fault { option: row.name().to_owned(), origin: origin.clone(), value, allowed });
        }
        origins.push(origin);
    }
    for row in rows().iter().filter(|row| row.repeated) {
        // `[history]` for `[[history]]`: unknown keys are ignored, but this one was meant.
        if let Some(file) = file.as_ref().filter(|file| file.has_table(&row.key)) {
            let origin = Origin::File { path: file.path.clone(), key: row.key.clone() };
            let (value, allowed) = (format!("[{}]", row.key), format!("tables [[{}]], with two brackets", row.key));
            faults.push(Fault { option: row.name().to_owned(), origin, value, allowed });
        }
    }
    for old in DEPRECATED {
        let name = env_name(old.flag);
        let from_env = || env.get(&name).filter(|text| !text.is_empty());
        let from_file = || {
            let (file, key) = (file.as_ref()?, old.key?);
            file.value(key).map(|value| (file.path.clone(), key, value))
        };
        let (origin, raw) = if let Some(text) = value(matches, old.flag) {
            (Origin::Flag(old.flag.to_owned()), Raw::Text(text))
        } else if let Some(text) = from_env() {
            (Origin::Env(name), Raw::Text(text))
        } else if let Some((path, key, value)) = from_file() {
            (Origin::File { path, key: key.to_owned() }, Raw::Toml(value))
        } else {
            continue;
        };
        match (old.apply)(&mut config, raw) {
            Ok(()) => config.loaded.warnings.push(format!("{} ({origin}) is deprecated: {}", old.flag, old.instead)),
            Err(allowed) => {
                let value = describe(raw, !old.switch, false);
                faults.push(Fault { option: old.flag.to_owned(), origin, value, allowed });
            }
        }
    }
    config.loaded.file = file.map(|file| file.path);
    if faults.is_empty() { Ok(Given { config, origins }) } else { Err(ConfigError::Faults(faults)) }
}

/// A value for a message: in quotes if it is text, stars if it is secret or may hold credentials. Of a faulty URL nobody
/// can tell what is the password.
fn describe(raw: Raw<'_>, secret: bool, is_url: bool) -> String {
    let text = match raw {
        Raw::Text(text) => format!("{text:?}"),
        Raw::Toml(value) => value.to_string(),
    };
    let hidden = secret || !may_be_shown(&text) || (is_url && !is_plain(&text));
    if hidden { "***".to_owned() } else { text }
}

/// Only hosts and ports, however they are put together.
fn is_plain(text: &str) -> bool {
    let is_known = |c: char| c.is_ascii_alphanumeric() || " \".-_:/,;[]".contains(c);
    let mut after_colons = text.split(':').skip(1);
    text.chars().all(is_known) && after_colons.all(|rest| rest.starts_with("//") || begins_with_port(rest))
}

/// A number (-1: any port), and then nothing of which it might be the beginning.
fn begins_with_port(text: &str) -> bool {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let rest = unsigned.trim_start_matches(|c: char| c.is_ascii_digit());
    // A server's URL has no path, so what follows a slash may be the end of a password.
    let ends = |rest: &str| rest.is_empty() || rest.starts_with([',', ';', ']', '"', ' ']);
    rest.len() < unsigned.len() && (ends(rest) || rest.strip_prefix('/').is_some_and(ends))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_25_of_a_faulty_url_no_password_is_shown() {
        for text in [
            "east:user:hunter2@h:7222",
            "nats:/u:hunter2@h",
            "nats://u:hunter2#h:4222",
            "nats://u:hunter2/h",
            "u:hunter2",
            "nats://u:7hunter2/h",
            "nats://u:7-hunter2/h",
            "nats://u:-hunter2/h",
            "nats://u:7/hunter2",
            "h:4222,nats://u:7.hunter2/h",
        ] {
            assert_eq!(describe(Raw::Text(text), false, true), "***", "{text}");
        }
        for text in ["nats://h:99999", "nats://h:99999/", "h:0,nats://i", "h:-2;nats://i:0, j:1", "nats://h"] {
            assert_eq!(describe(Raw::Text(text), false, true), format!("{text:?}"));
        }
        assert_eq!(describe(Raw::Text("x"), true, false), "***");
    }
}
