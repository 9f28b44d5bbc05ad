//! What is done to a deployment, and the proof that it acted.

use crate::deployment::{Deployment, Setup, number_of};
use crate::harness::process::signal;
use crate::proc::{self, eventually};
use std::fmt;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Longer than every timeout between Carrick and NATS.
const FREEZE: Duration = Duration::from_secs(6);
const CUT: Duration = Duration::from_secs(5);
/// A cut connection is cut again as soon as it is made.
const CUT_AGAIN: Duration = Duration::from_millis(50);
/// How long a killed process stays away.
const AWAY: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// `kill -9` of a Carrick, with its embedded nats-server if it has one.
    KillNode,
    /// `kill -9` of the nats-server that leads the log.
    KillLeader,
    /// SIGSTOP for longer than all timeouts.
    FreezeLeader,
    FreezeFollower,
    /// No connection between one Carrick and NATS.
    CutNode,
    /// SIGTERM and start of each Carrick, one after the other.
    RollingRestart,
}

impl Fault {
    pub const ALL: [Self; 7] = [
        Self::None,
        Self::KillNode,
        Self::KillLeader,
        Self::FreezeLeader,
        Self::FreezeFollower,
        Self::CutNode,
        Self::RollingRestart,
    ];

    pub fn applies_to(self, setup: Setup) -> bool {
        match self {
            Self::FreezeFollower => setup.is_cluster(),
            Self::CutNode => !setup.is_embedded(),
            _ => true,
        }
    }

    /// How long it takes, roughly: the checker must publish for longer.
    pub fn span(self) -> Duration {
        Duration::from_secs(match self {
            Self::None => 0,
            Self::KillNode | Self::KillLeader => 6,
            Self::FreezeLeader | Self::FreezeFollower | Self::CutNode => 8,
            Self::RollingRestart => 25,
        })
    }

    /// Does the harm, undoes it, and waits until all is whole again; answers with what proves it.
    pub fn strike(self, deployment: &mut Deployment) -> String {
        let proof = match self {
            Self::None => "–".to_owned(),
            Self::KillNode => kill_node(deployment),
            Self::KillLeader => kill_leader(deployment),
            Self::FreezeLeader => {
                let leader = deployment.jetstream().wait_leader(None);
                freeze(deployment, &leader)
            }
            Self::FreezeFollower => {
                let leader = number_of(&deployment.jetstream().wait_leader(None));
                freeze(deployment, &format!("n{}", (leader + 1) % 3))
            }
            Self::CutNode => cut(deployment),
            Self::RollingRestart => restart_all(deployment),
        };
        deployment.jetstream().wait_whole();
        proof
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::KillNode => "kill -9 of a node",
            Self::KillLeader => "kill -9 of the log's leader",
            Self::FreezeLeader => "leader frozen",
            Self::FreezeFollower => "follower frozen",
            Self::CutNode => "node cut off from NATS",
            Self::RollingRestart => "rolling restart",
        })
    }
}

fn kill_node(deployment: &mut Deployment) -> String {
    let last = deployment.nodes().len() - 1;
    let node = deployment.node_mut(last);
    let old = node.pid();
    node.kill();
    sleep(AWAY);
    node.start();
    format!("process {old} ⇒ {}", node.pid())
}

fn kill_leader(deployment: &mut Deployment) -> String {
    let leader = deployment.jetstream().wait_leader(None);
    let number = number_of(&leader);
    let old = deployment.nats_pid(&leader);
    signal(old, "KILL");
    let is_alone = deployment.nats.as_ref().is_some_and(|nats| nats.members.len() == 1)
        || deployment.nats.is_none() && deployment.nodes().len() == 1;
    let next = if is_alone { leader.clone() } else { deployment.jetstream().wait_leader(Some(&leader)) };
    if let Some(nats) = &mut deployment.nats {
        // Reaps it.
        nats.members[number].kill();
        sleep(AWAY);
        nats.members[number].start();
    }
    eventually(Duration::from_secs(20), "a new nats-server", || {
        let children = || proc::children(deployment.nodes()[number].pid());
        let new = match &deployment.nats {
            Some(nats) => Some(nats.members[number].pid()),
            None => children().into_iter().find(|pid| proc::command_line(*pid).contains("nats")),
        };
        new.filter(|pid| *pid != old && proc::is_alive(*pid))
    })
    .unwrap_or_else(|error| panic!("{error} in place of {old}"));
    if is_alone { format!("process {old} replaced") } else { format!("leader {leader} ⇒ {next}") }
}

fn freeze(deployment: &Deployment, name: &str) -> String {
    let pid = deployment.nats_pid(name);
    let before = deployment.jetstream().wait_leader(None);
    signal(pid, "STOP");
    sleep(FREEZE);
    // Its supervisor may have replaced it meanwhile.
    let went_on = proc::is_alive(pid);
    if went_on {
        signal(pid, "CONT");
    }
    let after = deployment.jetstream().wait_leader(None);
    let end = if went_on { "went on" } else { "was replaced" };
    format!("{name} stopped {} s, {end}; leader {before} ⇒ {after}", FREEZE.as_secs())
}

fn cut(deployment: &Deployment) -> String {
    let until = Instant::now() + CUT;
    let mut cuts = 0;
    while Instant::now() < until {
        deployment.proxies.iter().for_each(crate::harness::proxy::NatsProxy::cut);
        cuts += 1;
        sleep(CUT_AGAIN);
    }
    format!("{} s, {cuts} cuts", CUT.as_secs())
}

fn restart_all(deployment: &mut Deployment) -> String {
    let mut steps = Vec::new();
    for number in 0..deployment.nodes().len() {
        let begun = Instant::now();
        let node = deployment.node_mut(number);
        node.stop();
        node.start();
        deployment.jetstream().wait_whole();
        steps.push(format!("{:.1} s", begun.elapsed().as_secs_f64()));
    }
    format!("steps {}", steps.join(", "))
}
