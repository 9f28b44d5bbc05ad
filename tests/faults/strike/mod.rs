//! Doing harm, undoing it, and gathering what proves that it was done.

mod cuts;
mod frozen;
mod operator;
mod process;
mod restart;
mod silent;
mod slow;
mod store;

pub(crate) use frozen::freeze_process;

use crate::counters::Counters;
use crate::deployment::Deployment;
use crate::fault::Fault;
use crate::jetstream::Elections;
use crate::proc::eventually;
use crate::proof::Proof;
use crate::pulse::Pulse;
use carrick::client::check::Dice;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// For anything that must follow from a fault.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longer than every timeout between Carrick and NATS.
const FREEZE: Duration = Duration::from_secs(6);
/// How long a killed process stays away.
const AWAY: Duration = Duration::from_secs(2);

/// Where a fault strikes, and what it has shown so far.
pub struct Scene<'a> {
    deployment: &'a mut Deployment,
    pulse: &'a Pulse,
    /// Watched in clusters.
    elections: Option<&'a Elections>,
    /// As they were before.
    counters: Counters,
    elected: usize,
    began: Instant,
    /// Of whatever is left to chance.
    dice: Dice,
    proof: Proof,
}

/// Does the harm, undoes it, and waits until all is whole again.
pub fn strike(
    fault: Fault,
    seed: u64,
    deployment: &mut Deployment,
    pulse: &Pulse,
    elections: Option<&Elections>,
) -> Proof {
    let counters = Counters::read(deployment);
    let elected = elections.map_or(0, Elections::count);
    let began = Instant::now();
    let (dice, proof) = (Dice::new(seed), Proof::default());
    let mut scene = Scene { deployment, pulse, elections, counters, elected, began, dice, proof };
    if let Err(error) = scene.run(fault) {
        scene.proof.require(false, error);
    }
    let undone = Instant::now();
    scene.deployment.jetstream().wait_whole();
    if scene.deployment.is_cluster() && fault != Fault::None {
        let seconds = undone.elapsed().as_secs_f64();
        scene.proof.note(format!("all copies up to date {seconds:.1} s later"));
    }
    if let Err(error) = pulse.wait(PATIENCE) {
        scene.proof.require(false, format!("publishing goes on: {error}"));
    }
    scene.proof
}

impl Scene<'_> {
    fn run(&mut self, fault: Fault) -> Result<(), String> {
        match fault {
            Fault::None => self.nothing(),
            Fault::KillNode => self.kill_node(),
            Fault::KillLeader => self.kill_leader(),
            Fault::FreezeLeader => self.freeze_leader(),
            Fault::FreezeFollower => self.freeze_follower(),
            Fault::FreezeNode => self.freeze_node(),
            Fault::FreezeNodeExpiry => self.freeze_node_again_and_again(),
            Fault::CutNode => self.cut_node(),
            Fault::SilentPath => self.silence_within(),
            Fault::SilentPathBeyond => self.silence_beyond(),
            Fault::DropLive => self.drop_live(),
            Fault::IsolateLeader => self.isolate_leader(),
            Fault::IsolateFollower => self.isolate_follower(),
            Fault::WipeMember => self.wipe_member(),
            Fault::LoseQuorum => self.lose_quorum(),
            Fault::LongOutage => self.long_outage(),
            Fault::FillDisk => self.fill_disk(),
            Fault::SlowDisk => self.slow_disk(),
            // The checker's own clients jump; some returns must follow.
            Fault::JumpClocks => {
                sleep(FREEZE);
                Ok(())
            }
            Fault::RollingRestart => self.restart_nodes(),
            Fault::RollingNats => self.restart_nats(),
            Fault::RollingUpgrade => self.upgrade_nodes(),
            Fault::DeleteSessions => self.delete_bucket("_sessions"),
            Fault::DeleteMeta => self.delete_bucket("_meta"),
            Fault::Purge => self.purge(),
            Fault::DeleteLog => self.delete_log(),
            Fault::ChangePolicies => self.change_policies(),
        }
    }

    /// Nothing is done, and nothing happens by itself.
    fn nothing(&mut self) -> Result<(), String> {
        let pids: Vec<u32> = self.deployment.nodes().iter().map(crate::harness::Server::pid).collect();
        sleep(AWAY);
        let alive = pids.iter().all(|pid| crate::proc::is_alive(*pid));
        self.proof.require(alive, "all processes went on");
        let connects: u64 = self.rises("store_connects_total").iter().sum();
        self.proof.require(connects == 0, format!("{connects} new connections to NATS"));
        let elected = self.elections_since();
        self.proof.require(elected == 0, format!("{elected} elections"));
        Ok(())
    }

    /// Elections of a leader of the log since the fault began.
    fn elections_since(&self) -> usize {
        self.elections.map_or(0, |elections| elections.count() - self.elected)
    }

    fn rises(&self, name: &str) -> Vec<u64> {
        Counters::read(self.deployment).rises(&self.counters, name)
    }

    /// An election must have taken place, or take place now.
    fn require_election(&mut self) {
        // It may take a moment to be seen.
        let seen = eventually(PATIENCE, "an election", || (self.elections_since() > 0).then(|| self.elections_since()));
        self.proof.require(seen.is_ok(), format!("elections: {}", seen.unwrap_or(0)));
    }

    /// A counter must have risen on this node, or rise now.
    fn require_rise(&mut self, node: usize, name: &str, what: &str) {
        let rise = || Some(self.rises(name)[node]).filter(|rise| *rise > 0);
        let seen = eventually(PATIENCE, name, rise);
        self.proof.require(seen.is_ok(), format!("{what}: {}", seen.unwrap_or(0)));
    }

    /// Every node has connected to NATS anew.
    fn require_reconnects(&mut self) {
        for node in 0..self.deployment.nodes().len() {
            self.require_rise(node, "store_connects_total", &format!("node {node} connected to NATS again"));
        }
    }

    /// The longest pause of publishing since the fault began.
    fn pause(&self) -> Duration {
        self.pulse.longest_pause(self.began, Instant::now())
    }
}
