//! History policies of some streams: `[[history]]` tables in the file, `--history` on the command line.

use super::kinds::{ANY_TIME, EmptyEnv, Int, Kind, Raw, Shown, show_time};
use super::values::{REPLICAS, is_word};
use crate::protocol::Pattern;
use std::fmt::Write;
use std::time::Duration;

/// Where messages of a policy are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HistoryStorage {
    #[default]
    File,
    Memory,
}

/// What streams that match a pattern keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryPolicy {
    pub name: String,
    pub pattern: Pattern,
    /// `None`: as the default policy, `history_limit`.
    pub limit: Option<u64>,
    /// `None`: as the default policy, `history_ttl`.
    pub ttl: Option<Duration>,
    pub storage: HistoryStorage,
    /// 0: as `nats_replicas`.
    pub replicas: u16,
}

/// All policies, in the order in which they are tried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistoryPolicies(pub Vec<HistoryPolicy>);

/// Each policy is a log that every node looks after.
const MOST: usize = 32;
const LONGEST_NAME: usize = 32;
const LIMIT: Int = Int { min: 0, max: 1_000_000_000, name: "N" };
const KEYS: &str = "pattern, limit, ttl, storage (file, memory), replicas, name";

/// Reads and shows [`HistoryPolicies`].
pub struct HistoryTables;

impl Kind<HistoryPolicies> for HistoryTables {
    fn read(&self, raw: Raw<'_>) -> Result<HistoryPolicies, String> {
        let policies: Vec<HistoryPolicy> = match raw {
            Raw::Text(text) => {
                let policies = text.split(';').map(str::trim).filter(|policy| !policy.is_empty());
                policies.map(from_text).collect::<Result<_, _>>()?
            }
            Raw::Toml(toml::Value::Array(tables)) => tables.iter().map(from_toml).collect::<Result<_, _>>()?,
            Raw::Toml(toml::Value::String(text)) if text.is_empty() => Vec::new(),
            Raw::Toml(_) => return Err(format!("one or more tables [[history]] with the keys {KEYS}")),
        };
        if policies.len() > MOST {
            return Err(format!("{MOST} history policies at most"));
        }
        for (at, policy) in policies.iter().enumerate() {
            if policies[..at].iter().any(|other| other.name == policy.name) {
                return Err(format!("a different name for each history policy ({:?} is there twice)", policy.name));
            }
        }
        Ok(HistoryPolicies(policies))
    }

    fn show(&self, value: &HistoryPolicies) -> Shown {
        let tables: Vec<toml::Value> = value.0.iter().map(to_toml).collect();
        Shown { literal: toml::Value::Array(tables).to_string(), off: value.0.is_empty(), secret: false }
    }

    fn value_name(&self) -> &'static str {
        "POLICY"
    }

    fn empty_env(&self) -> EmptyEnv {
        EmptyEnv::Means("")
    }
}

/// `pattern=chat/*,limit=50,ttl=1h`.
fn from_text(text: &str) -> Result<HistoryPolicy, String> {
    let mut draft = Draft::default();
    for entry in text.split(',').map(str::trim) {
        let (key, value) = entry.split_once('=').ok_or_else(|| {
            format!("pairs such as limit=50 separated by commas, of {KEYS} (a pattern with a comma goes in the file)")
        })?;
        draft.set(key.trim(), Raw::Text(value.trim()))?;
    }
    draft.finish()
}

fn from_toml(value: &toml::Value) -> Result<HistoryPolicy, String> {
    let table = value.as_table().ok_or_else(|| format!("tables [[history]] with the keys {KEYS}"))?;
    let mut draft = Draft::default();
    for (key, value) in table {
        draft.set(&key.to_ascii_lowercase(), Raw::Toml(value))?;
    }
    draft.finish()
}

#[derive(Default)]
struct Draft {
    name: Option<String>,
    pattern: Option<Pattern>,
    limit: Option<u64>,
    ttl: Option<Duration>,
    storage: Option<HistoryStorage>,
    replicas: Option<u16>,
}

impl Draft {
    fn set(&mut self, key: &str, value: Raw<'_>) -> Result<(), String> {
        let wrong = |allowed: String| format!("for {key} {allowed}");
        let text = || value.text().ok_or_else(|| wrong("text".into()));
        let again = match key {
            "name" => {
                let fits = |name: &&str| is_word(name) && name.len() <= LONGEST_NAME && *name != "default";
                let allowed = || wrong(format!("1 to {LONGEST_NAME} of A-Z a-z 0-9 _ -, and not `default`"));
                let name = Some(text()?).filter(fits).ok_or_else(allowed)?;
                self.name.replace(name.to_owned()).is_some()
            }
            "pattern" => {
                let pattern = text()?.parse().map_err(|error| wrong(format!("{error}")))?;
                self.pattern.replace(pattern).is_some()
            }
            "limit" => self.limit.replace(Kind::<u64>::read(&LIMIT, value).map_err(wrong)?).is_some(),
            "ttl" => self.ttl.replace(ANY_TIME.read(value).map_err(wrong)?).is_some(),
            "storage" => {
                let storage = match text()? {
                    "file" => HistoryStorage::File,
                    "memory" => HistoryStorage::Memory,
                    _ => return Err(wrong("file or memory".into())),
                };
                self.storage.replace(storage).is_some()
            }
            "replicas" => self.replicas.replace(REPLICAS.read(value).map_err(wrong)?).is_some(),
            unknown => return Err(format!("the keys {KEYS} ({unknown:?} is none of them)")),
        };
        if again { Err(format!("each key once ({key} is there twice)")) } else { Ok(()) }
    }

    fn finish(self) -> Result<HistoryPolicy, String> {
        let pattern = self.pattern.ok_or("a pattern for each history policy, such as pattern=chat/*")?;
        let name = match self.name {
            Some(name) => name,
            None => name_of(&pattern).ok_or_else(|| format!("a name for the history policy of pattern {pattern}"))?,
        };
        Ok(HistoryPolicy {
            name,
            pattern,
            limit: self.limit,
            ttl: self.ttl,
            storage: self.storage.unwrap_or_default(),
            replicas: self.replicas.unwrap_or(0),
        })
    }
}

/// The pattern's letters and digits, with one `-` for whatever lies between them.
fn name_of(pattern: &Pattern) -> Option<String> {
    let words: Vec<&str> =
        pattern.as_str().split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let name = words.join("-");
    (!name.is_empty() && name.len() <= LONGEST_NAME && name != "default").then_some(name)
}

fn to_toml(policy: &HistoryPolicy) -> toml::Value {
    let HistoryPolicy { name, pattern, limit, ttl, storage, replicas } = policy;
    let mut table = toml::Table::new();
    table.insert("name".into(), name.as_str().into());
    table.insert("pattern".into(), pattern.as_str().into());
    if let Some(limit) = limit {
        table.insert("limit".into(), i64::try_from(*limit).unwrap_or(i64::MAX).into());
    }
    if let Some(ttl) = ttl {
        table.insert("ttl".into(), show_time(*ttl).into());
    }
    if *storage == HistoryStorage::Memory {
        table.insert("storage".into(), "memory".into());
    }
    if *replicas > 0 {
        table.insert("replicas".into(), i64::from(*replicas).into());
    }
    toml::Value::Table(table)
}

/// Policies given one by one on the command line, as one text.
pub fn joined<'a>(values: impl Iterator<Item = &'a String>) -> String {
    values.fold(String::new(), |mut text, value| {
        let _ = write!(text, "{}{value}", if text.is_empty() { "" } else { ";" });
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<HistoryPolicy>, String> {
        HistoryTables.read(Raw::Text(text)).map(|policies| policies.0)
    }

    fn read_toml(text: &str) -> Result<Vec<HistoryPolicy>, String> {
        let table: toml::Table = text.parse().unwrap();
        HistoryTables.read(Raw::Toml(&table["history"])).map(|policies| policies.0)
    }

    #[test]
    fn all_forms_say_the_same() {
        let text = "pattern=chat/*,limit=50,ttl=1h,storage=memory,replicas=1,name=chat; pattern = */typing , limit = 0";
        let tables = r#"
            [[history]]
            pattern = "chat/*"
            limit = 50
            ttl = 3600
            Storage = "memory"
            replicas = 1
            name = "chat"
            [[history]]
            pattern = "*/typing"
            limit = 0
        "#;
        let policies = read(text).unwrap();
        assert_eq!(policies, read_toml(tables).unwrap());
        assert_eq!((policies[0].limit, policies[0].ttl), (Some(50), Some(Duration::from_secs(3600))));
        assert_eq!((policies[1].name.as_str(), policies[1].ttl, policies[1].replicas), ("typing", None, 0));
        let shown = HistoryTables.show(&HistoryPolicies(policies.clone())).literal;
        assert_eq!(read_toml(&format!("history = {shown}")).unwrap(), policies);
        assert_eq!(read("").unwrap(), []);
    }

    #[test]
    fn faults_say_what_is_allowed() {
        for (text, says) in [
            ("limit=5", "a pattern"),
            ("pattern=", "a pattern of 1 to 200 bytes"),
            (r"pattern=a\b", "stands before"),
            ("pattern=a,limit=-1", "for limit a whole number"),
            ("pattern=a,ttl=soon", "for ttl seconds"),
            ("pattern=a,storage=disk", "for storage file or memory"),
            ("pattern=a,replicas=2", "for replicas 0 (automatic), 1, 3 or 5"),
            ("pattern=a,size=5", "\"size\" is none of them"),
            ("pattern=a,limit=1,limit=2", "limit is there twice"),
            ("pattern=a,50", "pairs such as limit=50"),
            ("pattern=a,name=default", "not `default`"),
            ("pattern=a,name=a b", "for name 1 to 32"),
            ("pattern=*", "a name for the history policy"),
            ("pattern=a;pattern=*a", "\"a\" is there twice"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
        assert!(read_toml("history = 5").unwrap_err().contains("[[history]]"));
        assert!(read_toml("[[history]]\npattern = 5").unwrap_err().contains("for pattern text"));
        let many: Vec<_> = (0..33).map(|n| format!("pattern=p{n}")).collect();
        assert!(read(&many.join(";")).unwrap_err().contains("32 history policies"));
    }
}
