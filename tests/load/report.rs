//! Figures as a table for people and a line of JSON for programs.

use serde_json::{Map, Value};
use std::time::Duration;

#[derive(Debug, Default)]
pub struct Report {
    title: String,
    rows: Vec<(String, String)>,
    json: Map<String, Value>,
    broken: Vec<String>,
}

impl Report {
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), ..Self::default() }
    }

    pub fn row(&mut self, key: &str, label: &str, text: impl Into<String>, value: impl Into<Value>) {
        self.rows.push((label.to_owned(), text.into()));
        self.json.insert(key.to_owned(), value.into());
    }

    pub fn count(&mut self, key: &str, label: &str, value: u64) {
        self.row(key, label, grouped(value), value);
    }

    /// For programs alone.
    pub fn number(&mut self, key: &str, value: u64) {
        self.json.insert(key.to_owned(), value.into());
    }

    pub fn rate(&mut self, key: &str, label: &str, per_second: f64) {
        self.row(key, label, format!("{}/s", grouped(per_second.round() as u64)), per_second.round());
    }

    /// In microseconds for programs.
    pub fn time(&mut self, key: &str, label: &str, time: Duration) {
        let millis = time.as_secs_f64() * 1000.0;
        let text = if millis < 10_000.0 { format!("{millis:.1} ms") } else { format!("{:.2} s", millis / 1000.0) };
        self.row(key, label, text, u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// Memory in bytes; absent where there is no process to look at.
    pub fn bytes(&mut self, key: &str, label: &str, value: Option<u64>) {
        match value {
            Some(value) => self.row(key, label, mebibytes(value), value),
            None => self.row(key, label, "unknown", Value::Null),
        }
    }

    /// A promise that the run saw broken: the program fails.
    pub fn broken(&mut self, what: impl Into<String>) {
        self.broken.push(what.into());
    }

    /// Several of them; a few are enough to know.
    pub fn broken_all(&mut self, what: &[String]) {
        self.broken.extend(what.iter().take(5).cloned());
    }

    pub fn passed(&self) -> bool {
        self.broken.is_empty()
    }

    pub fn print(&self) {
        println!("{}", self.title);
        let width = self.rows.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
        for (label, text) in &self.rows {
            println!("  {label:width$}  {text:>16}");
        }
        for what in &self.broken {
            println!("  BROKEN: {what}");
        }
        let mut json = self.json.clone();
        json.insert("title".into(), self.title.clone().into());
        json.insert("broken".into(), self.broken.clone().into());
        println!("{}", Value::Object(json));
    }
}

fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn mebibytes(bytes: u64) -> String {
    if bytes < 1 << 20 {
        format!("{:.1} KiB", bytes as f64 / 1024.0)
    } else {
        format!("{:.1} MiB", bytes as f64 / 1_048_576.0)
    }
}
