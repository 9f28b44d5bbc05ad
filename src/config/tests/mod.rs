//! Loading as a whole: sources, precedence, faults, meaning, printing.

mod application;
mod empty;
mod faults;
mod meaning;
mod presets;
mod printing;
mod secrets;
mod sources;

use super::*;
use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// A place to load from: arguments, environment and a directory with files.
struct Place {
    dir: TempDir,
    args: Vec<String>,
    env: HashMap<String, String>,
}

/// Options, split at blanks.
fn with(args: &str) -> Place {
    Place {
        dir: tempfile::tempdir().unwrap(),
        args: args.split_whitespace().map(str::to_owned).collect(),
        env: HashMap::new(),
    }
}

impl Place {
    fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    fn file(self, name: &str, text: &str) -> Self {
        std::fs::write(self.dir.path().join(name), text).unwrap();
        self
    }

    fn toml(self, text: &str) -> Self {
        self.file("anycable.toml", text)
    }

    fn load(&self) -> Result<Invocation, ConfigError> {
        let mut surroundings = Surroundings::new(self.env.clone(), self.dir.path());
        surroundings.system_file = self.dir.path().join("system.toml");
        Config::load_in(self.args.clone(), &surroundings)
    }

    fn config(&self) -> Config {
        match self.load() {
            Ok(Invocation::Serve(config)) => *config,
            other => panic!("{other:?}"),
        }
    }

    fn printed(&self) -> String {
        match self.load() {
            Ok(Invocation::PrintConfig(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    fn error(&self) -> String {
        self.load().expect_err("settings at fault").to_string()
    }
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
