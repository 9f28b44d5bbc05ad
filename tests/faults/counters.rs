//! Carrick's own counters, read from its metrics page before and after a fault.

use crate::deployment::Deployment;
use std::collections::HashMap;

/// Where the page is.
pub const PATH: &str = "/metrics";

/// The counters of every node that answered, with the process that counted.
pub struct Counters(Vec<Option<(u32, HashMap<String, u64>)>>);

impl Counters {
    pub fn read(deployment: &Deployment) -> Self {
        let page = |node: &crate::harness::Server| {
            let answer = deployment.block_on(crate::harness::http::try_request(node.address(), "GET", PATH, &[], b""));
            let page = answer.ok().filter(|answer| answer.status == 200)?.body;
            Some((node.pid(), parse(&page)))
        };
        Self(deployment.nodes().iter().map(page).collect())
    }

    /// How much a counter has risen on one node since `before`; a process that is new since then began at zero.
    pub fn rise(&self, before: &Self, node: usize, name: &str) -> u64 {
        let Some((pid, now)) = &self.0[node] else { return 0 };
        let earlier = before.0[node].as_ref().filter(|(earlier, _)| earlier == pid);
        let count = |counters: &HashMap<String, u64>| counters.get(name).copied().unwrap_or(0);
        count(now).saturating_sub(earlier.map_or(0, |(_, counters)| count(counters)))
    }

    /// The same on each node.
    pub fn rises(&self, before: &Self, name: &str) -> Vec<u64> {
        (0..self.0.len()).map(|node| self.rise(before, node, name)).collect()
    }
}

/// `anycable_go_NAME VALUE` of each line.
fn parse(page: &str) -> HashMap<String, u64> {
    let sample = |line: &str| {
        let (name, value) = line.strip_prefix("anycable_go_")?.split_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    page.lines().filter_map(sample).collect()
}

#[test]
fn samples_are_read_from_the_page() {
    let page = "\n# HELP anycable_go_a b\n# TYPE anycable_go_a counter\nanycable_go_a 7\n";
    assert_eq!(parse(page), HashMap::from([("a".to_owned(), 7)]));
}
