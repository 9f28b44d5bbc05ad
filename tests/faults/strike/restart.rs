//! One after the other: restarts and upgrades.

use super::Scene;
use crate::{deployment, old_build};
use std::time::Instant;

impl Scene<'_> {
    /// SIGTERM and start of each Carrick; each waits until all copies are up to date.
    pub(super) fn restart_nodes(&mut self) -> Result<(), String> {
        let mut pauses = Vec::new();
        for number in 0..self.deployment.nodes().len() {
            let begun = Instant::now();
            let node = self.deployment.node_mut(number);
            let old = node.pid();
            node.stop();
            node.start();
            let new = node.pid();
            self.deployment.jetstream().wait_whole();
            self.proof.require(new != old, format!("process {old} ⇒ {new}"));
            pauses.push(format!("{:.2}", self.pulse.longest_pause(begun, Instant::now()).as_secs_f64()));
        }
        self.proof.note(format!("publishing paused per step for {} s", pauses.join(", ")));
        if self.elections.is_some() {
            self.proof.note(format!("elections: {}", self.elections_since()));
        }
        Ok(())
    }

    /// The same with another program.
    pub(super) fn upgrade_nodes(&mut self) -> Result<(), String> {
        let programs = |scene: &Self| -> Vec<(String, u64)> {
            scene.deployment.nodes().iter().map(|node| old_build::identity(node.pid())).collect()
        };
        let old = programs(self);
        self.deployment.upgrade_to(&deployment::program());
        self.restart_nodes()?;
        let new = programs(self);
        let changed = old.iter().zip(&new).all(|(old, new)| old != new);
        let ((old, old_size), (new, new_size)) = (&old[0], &new[0]);
        self.proof.require(changed, format!("{old} ({old_size} bytes) ⇒ {new} ({new_size} bytes)"));
        Ok(())
    }

    /// SIGTERM and start of each external nats-server.
    pub(super) fn restart_nats(&mut self) -> Result<(), String> {
        let mut pauses = Vec::new();
        let members = self.deployment.nats.as_ref().map_or(0, |nats| nats.members.len());
        for number in 0..members {
            let begun = Instant::now();
            let nats = self.deployment.nats.as_mut().ok_or("no nats-server of its own")?;
            let member = &mut nats.members[number];
            let old = member.pid();
            member.stop();
            member.start();
            let new = member.pid();
            self.deployment.jetstream().wait_whole();
            self.proof.require(new != old, format!("process {old} ⇒ {new}"));
            pauses.push(format!("{:.2}", self.pulse.longest_pause(begun, Instant::now()).as_secs_f64()));
        }
        self.require_election();
        self.proof.note(format!("publishing paused per step for {} s", pauses.join(", ")));
        Ok(())
    }
}
