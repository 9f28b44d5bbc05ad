//! What an operator does in NATS: delete a bucket, purge the log, delete the log.

use super::{PATIENCE, Scene};
use crate::proc::eventually;
use serde_json::json;
use std::thread::sleep;
use std::time::Duration;

/// Traffic under each policy.
const BETWEEN_POLICIES: Duration = Duration::from_secs(3);

impl Scene<'_> {
    /// Deletes a bucket that is in use; the nodes must make a new one.
    pub(super) fn delete_bucket(&mut self, part: &str) -> Result<(), String> {
        self.delete_and_see_again(part)
    }

    /// Deletes the log itself; the nodes must begin a new one, under a new epoch.
    pub(super) fn delete_log(&mut self) -> Result<(), String> {
        self.delete_and_see_again("_log_")?;
        for node in 0..self.deployment.nodes().len() {
            self.require_rise(node, "epoch_changes_total", &format!("new epoch noticed on node {node}"));
        }
        Ok(())
    }

    /// Streams move to a log of their own, its limits change, and they move back to the settings of the nodes.
    pub(super) fn change_policies(&mut self) -> Result<(), String> {
        let policies = [
            "--history=name=moved,pattern=verify/*,limit=10000,ttl=200s",
            "--history=name=moved,pattern=verify/*,limit=9000,ttl=100s",
            "--history=",
        ];
        for policy in policies {
            let (code, said) = self.deployment.nodes()[0].tool(&["policy", "apply"], &[policy]);
            let first = said.lines().next().unwrap_or_default().to_owned();
            self.proof.require(code == Some(0), format!("{policy}: {first}"));
            sleep(BETWEEN_POLICIES);
        }
        Ok(())
    }

    fn delete_and_see_again(&mut self, part: &str) -> Result<(), String> {
        let (name, created) = self.deployment.jetstream().delete(part)?;
        let again = || self.deployment.jetstream().stream(part).filter(|(_, time)| *time != created);
        let (new, _) = eventually(PATIENCE, &format!("a new stream in place of {name}"), again)?;
        self.proof.require(true, format!("{name} deleted, then {new} created"));
        Ok(())
    }

    /// The log refuses to be purged, and to have a message deleted.
    pub(super) fn purge(&mut self) -> Result<(), String> {
        let jetstream = self.deployment.jetstream().clone();
        let (log, created) = jetstream.stream("_log_").ok_or("the log is not there")?;
        let last = jetstream.ask(&format!("$JS.API.STREAM.INFO.{log}"), &json!({}))?["state"]["last_seq"].clone();
        for (what, body) in [("PURGE", json!({})), ("MSG.DELETE", json!({"seq": last}))] {
            let answer = jetstream.ask(&format!("$JS.API.STREAM.{what}.{log}"), &body)?;
            let why = answer["error"]["description"].as_str().unwrap_or("no refusal");
            self.proof.require(answer["error"].is_object(), format!("{what}: {why}"));
        }
        let still = jetstream.stream("_log_").is_some_and(|(name, time)| (name, time) == (log, created));
        self.proof.require(still, "the same log is there");
        Ok(())
    }
}
