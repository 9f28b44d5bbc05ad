//! The tables of options in `docs/configuration.md`.

use super::deprecated::DEPRECATED;
use super::options::rows;
use super::row::{Category, Row, env_name};
use std::fmt::Write;

/// One table per category, and the deprecated names.
pub fn tables() -> String {
    let mut text = String::new();
    for category in Category::ALL {
        let _ = write!(text, "### {}\n\n", category.title());
        text.push_str("| Option | Environment | Key in the file | Default | Meaning |\n|---|---|---|---|---|\n");
        for row in rows().iter().filter(|row| row.category == category) {
            text.push_str(&line(row));
        }
        text.push('\n');
    }
    text.push_str("### Deprecated names\n\n| Option | Environment | Key in the file | Instead |\n|---|---|---|---|\n");
    for old in DEPRECATED {
        let key = old.key.map(|key| format!("`{key}`")).unwrap_or_default();
        let _ = writeln!(text, "| `{}` | `{}` | {key} | {} |", old.flag, env_name(old.flag), old.instead);
    }
    text
}

fn line(row: &Row) -> String {
    let flag = row.flag.map(|flag| format!("`{flag}`")).unwrap_or_default();
    let env: Vec<_> = row.env_names().iter().map(|name| format!("`{name}`")).collect();
    let default = if row.default.is_empty() { String::new() } else { format!("`{}`", row.default) };
    let mut meaning = row.help.to_owned();
    if !row.values.is_empty() {
        let values: Vec<_> = row.values.iter().map(|value| format!("`{value}`")).collect();
        let _ = write!(meaning, ": {}", values.join(", "));
    }
    let meaning = meaning.replace('|', "\\|");
    format!("| {flag} | {} | `{}` | {default} | {meaning} |\n", env.join(", "), row.key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: &str = "<!-- options: made from the definition, see the end of this page -->\n";
    const END: &str = "<!-- end of options -->\n";

    /// With `UPDATE_DOCS=1` it writes the page instead.
    #[test]
    fn the_documentation_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
        let page = std::fs::read_to_string(path).unwrap();
        let (before, rest) = page.split_once(START).expect("the page has the start mark");
        let (_, after) = rest.split_once(END).expect("the page has the end mark");
        let current = format!("{before}{START}\n{}\n{END}{after}", tables());
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, current).unwrap();
        } else {
            assert!(page == current, "docs/configuration.md is out of date: UPDATE_DOCS=1 cargo test docs");
        }
    }
}
