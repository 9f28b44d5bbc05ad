//! `--print-config`: the settings as a file that loads back to the same settings.

use super::options::rows;
use super::{Config, Secret};
use std::fmt::Write;

/// The file. Secrets are left out, each as a comment, unless `secrets`.
pub fn toml(config: &Config, secrets: bool) -> String {
    let mut text = String::from("# Settings in effect.");
    if !secrets {
        text.push_str(" Secrets are left out: --print-secrets prints them.");
    }
    text.push('\n');
    let defaults = Config::default();
    let mut section = "";
    for row in rows() {
        if row.section() != section {
            section = row.section();
            let _ = write!(text, "\n[{section}]\n");
        }
        let key = row.key.strip_prefix(section).unwrap_or(&row.key).trim_start_matches('.');
        let shown = (row.show)(config);
        let commented = shown.off && shown == (row.show)(&defaults);
        let _ = writeln!(text, "\n# {}", row.help);
        let _ = if commented && has_no_secret(&row.key, config) {
            writeln!(text, "{key} = \"none\"")
        } else if shown.secret && !shown.off && !secrets {
            writeln!(text, "# {key} = {}", shown.masked())
        } else {
            writeln!(text, "{}{key} = {}", if commented { "# " } else { "" }, shown.literal)
        };
    }
    text
}

/// Without an application secret, that it and the publishers' key are missing is said aloud.
fn has_no_secret(key: &str, config: &Config) -> bool {
    let missing = config.secret.as_ref().map_or("none", Secret::expose) == "none";
    missing && matches!(key, "secret" | "broadcast_key")
}
