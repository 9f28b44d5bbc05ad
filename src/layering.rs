//! A test that the tree keeps its direction: every part uses only parts further right in the order of `lib.rs`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Groups of parts, left to right. A part may use its own group and everything right of it.
const ORDER: &[&[&str]] = &[
    &["main", "cli"],
    &["app"],
    &["transport", "ingest", "ops"],
    &["node"],
    &["session"],
    &["hub"],
    &["broker", "rpc"],
    &["client", "config"],
    &["auth"],
    &["nats"],
    &["protocol"],
    &["boottime", "critical", "log_limit", "metrics", "secret"],
];

fn rank(part: &str) -> Option<usize> {
    ORDER.iter().position(|group| group.contains(&part))
}

fn sources(directory: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

#[test]
fn parts_use_only_what_is_right_of_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut faults = BTreeSet::new();
    for file in files {
        let inside = file.strip_prefix(&root).unwrap();
        let first = inside.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
        let part = first.trim_end_matches(".rs").to_owned();
        let is_test =
            inside.components().any(|c| matches!(c.as_os_str().to_str(), Some("tests" | "model" | "tests.rs")));
        if matches!(part.as_str(), "lib" | "layering") || is_test {
            continue;
        }
        let from = rank(&part).unwrap_or_else(|| panic!("{part} has no place in the order"));
        let text = std::fs::read_to_string(&file).unwrap();
        // Unit tests at the end of a file may reach anywhere.
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        for used in code.split("crate::").skip(1) {
            let name: String = used.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            let Some(to) = rank(&name) else { continue };
            if to < from {
                faults.insert(format!("{} uses {name}", inside.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}
