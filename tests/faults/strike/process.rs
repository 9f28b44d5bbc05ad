//! Processes killed and frozen.

use super::{AWAY, FREEZE, PATIENCE, Scene};
use crate::deployment::number_of;
use crate::harness::process::signal;
use crate::proc::{self, eventually};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Not longer than publishers try again.
const LONGEST_FREEZE: Duration = Duration::from_secs(15);

/// Longer than sessions live and retries are known, where they are made short.
const OUTAGE: Duration = Duration::from_secs(14);

impl Scene<'_> {
    pub(super) fn kill_node(&mut self) -> Result<(), String> {
        let last = self.deployment.nodes().len() - 1;
        let old = self.deployment.nodes()[last].pid();
        self.deployment.kill_nodes(&[last]);
        sleep(AWAY);
        self.deployment.start_nodes(&[last]);
        let new = self.deployment.nodes()[last].pid();
        self.proof.require(new != old && !proc::is_alive(old), format!("process {old} ⇒ {new}"));
        Ok(())
    }

    pub(super) fn kill_leader(&mut self) -> Result<(), String> {
        let leadership = eventually(PATIENCE, "a leader of the log", || self.deployment.jetstream().leadership())?;
        let leader = leadership.0.clone();
        let number = number_of(&leader);
        let old = self.deployment.nats_pid(&leader);
        match &mut self.deployment.nats {
            Some(nats) => nats.members[number].kill(),
            None => signal(old, "KILL"),
        }
        if self.deployment.is_cluster() {
            // An embedded one is back at once, and may be elected again.
            let next = self.deployment.jetstream().wait_leadership(&leadership);
            self.proof.note(format!("leader {leader} ⇒ {next}"));
        }
        if let Some(nats) = &mut self.deployment.nats {
            sleep(AWAY);
            nats.members[number].start();
        }
        let again = || self.deployment.find_nats(&leader).filter(|pid| *pid != old);
        let new = eventually(PATIENCE, "another nats-server in its place", again)?;
        self.proof.require(!proc::is_alive(old), format!("process {old} ⇒ {new}"));
        if self.deployment.nats.is_none() {
            self.require_rise(number, "embedded_nats_restarts_total", "restarts by its Carrick");
        }
        if self.deployment.is_cluster() {
            self.require_election()
        } else {
            self.require_reconnects()
        }
        Ok(())
    }

    /// `kill -9` of the Carrick whose nats-server leads the log; another one must take over meanwhile.
    pub(super) fn kill_leading_node(&mut self) -> Result<(), String> {
        let leader = self.deployment.jetstream().wait_leader(None);
        let number = number_of(&leader);
        let old = self.deployment.nodes()[number].pid();
        self.deployment.kill_nodes(&[number]);
        let next = self.deployment.jetstream().wait_leader(Some(&leader));
        self.deployment.start_nodes(&[number]);
        let new = self.deployment.nodes()[number].pid();
        self.proof.require(!proc::is_alive(old), format!("leader {leader} ⇒ {next}; process {old} ⇒ {new}"));
        self.require_election();
        Ok(())
    }

    pub(super) fn freeze_leader(&mut self) -> Result<(), String> {
        let leader = self.deployment.jetstream().wait_leader(None);
        self.freeze(&leader)?;
        if self.deployment.is_cluster() {
            self.require_election();
            return Ok(());
        }
        self.pulse.wait(PATIENCE)?;
        let pause = self.pause();
        self.proof.require(pause > FREEZE.mul_f64(0.8), format!("publishing paused for {:.1} s", pause.as_secs_f64()));
        Ok(())
    }

    pub(super) fn freeze_follower(&mut self) -> Result<(), String> {
        let follower = self.follower();
        self.freeze(&follower)?;
        Ok(())
    }

    /// Name of a server that does not lead the log.
    pub(super) fn follower(&self) -> String {
        let leader = number_of(&self.deployment.jetstream().wait_leader(None));
        let number = (leader + 1) % 3;
        let external = self.deployment.nats.as_ref().map(|nats| nats.members[number].name().to_owned());
        external.unwrap_or_else(|| format!("n{number}"))
    }

    /// All nats-servers die at once and stay away.
    pub(super) fn long_outage(&mut self) -> Result<(), String> {
        let nats = self.deployment.nats.as_mut().ok_or("no nats-server of its own")?;
        let begun = Instant::now();
        nats.members.iter_mut().for_each(|member| member.kill());
        sleep(OUTAGE);
        nats.members.iter_mut().for_each(|member| member.start());
        let (count, seconds) = (nats.members.len(), begun.elapsed().as_secs_f64());
        self.deployment.jetstream().wait_whole();
        self.pulse.wait(PATIENCE)?;
        let pause = self.pause();
        self.proof.note(format!("{count} nats-servers away for {seconds:.1} s"));
        self.proof.require(pause > OUTAGE, format!("publishing paused for {:.1} s", pause.as_secs_f64()));
        self.require_reconnects();
        Ok(())
    }

    /// Stops it for longer than all timeouts.
    fn freeze(&mut self, name: &str) -> Result<(), String> {
        let pid = self.deployment.nats_pid(name);
        let begun = Instant::now();
        let thaw_at = begun + FREEZE;
        signal(pid, "STOP");
        let stopped = || proc::stat(pid).is_some_and(|(state, _)| state == 'T').then_some(());
        let frozen = eventually(Duration::from_secs(1), "a stopped nats-server", stopped);
        if self.deployment.is_cluster() {
            let missed = || self.deployment.jetstream().misses(name).then_some(());
            // Whoever leads all streams may be the frozen one: nobody can be asked before another one is elected.
            let missed = eventually(LONGEST_FREEZE, "the leader misses it", missed);
            self.proof.require(missed.is_ok(), format!("the others miss {name}"));
        }
        sleep(thaw_at.saturating_duration_since(Instant::now()));
        // Its supervisor may have replaced it meanwhile.
        let went_on = proc::is_alive(pid);
        if went_on {
            signal(pid, "CONT");
        }
        frozen?;
        let end = if went_on { "went on" } else { "was replaced" };
        let seconds = begun.elapsed().as_secs();
        self.proof.require(true, format!("{name} (process {pid}) stopped {seconds} s, {end}"));
        Ok(())
    }
}
