//! The TOML file: where it is and what it says.

use super::load::ConfigError;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A file's values by dotted key in lower case: names match whatever their case.
#[derive(Default)]
pub struct File {
    pub path: PathBuf,
    values: HashMap<String, toml::Value>,
}

impl File {
    pub fn value(&self, key: &str) -> Option<&toml::Value> {
        self.values.get(key)
    }

    /// The file has a table of this name, where only something else is meant.
    pub fn has_table(&self, key: &str) -> bool {
        self.values.keys().any(|known| known.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
    }

    /// Reads the explicit file, else `anycable.toml` of the working directory, else the system's one.
    ///
    /// # Errors
    /// The explicit file is missing, or the file cannot be read or is not TOML.
    pub fn find(cwd: &Path, system: &Path, explicit: Option<&str>) -> Result<Option<Self>, ConfigError> {
        if let Some(path) = explicit {
            return Self::read(cwd.join(path)).map(Some);
        }
        let usual = [cwd.join("anycable.toml"), system.to_owned()];
        usual.into_iter().find(|path| path.exists()).map(Self::read).transpose()
    }

    fn read(path: PathBuf) -> Result<Self, ConfigError> {
        let fault = |reason: String| ConfigError::File { path: path.clone(), reason };
        let text = std::fs::read_to_string(&path).map_err(|error| fault(error.to_string()))?;
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| fault(describe(&error, &text)))?;
        let mut values = HashMap::new();
        flatten("", &table, &mut values);
        Ok(Self { path, values })
    }
}

/// Line and reason, without the line's text: it may hold a secret.
fn describe(error: &toml::de::Error, text: &str) -> String {
    match error.span().and_then(|span| text.get(..span.start)) {
        Some(before) => format!("line {}: {}", before.matches('\n').count() + 1, error.message()),
        None => error.message().to_owned(),
    }
}

fn flatten(prefix: &str, table: &toml::Table, values: &mut HashMap<String, toml::Value>) {
    for (name, value) in table {
        let key = format!("{prefix}{}", name.to_ascii_lowercase());
        match value {
            toml::Value::Table(inner) => flatten(&format!("{key}."), inner, values),
            _ => {
                values.insert(key, value.clone());
            }
        }
    }
}
