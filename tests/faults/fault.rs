//! The faults of the table: where they apply, what they need, and what may come of them.

use crate::checker::Checked;
use crate::deployment::{Setup, Variant};
use crate::old_build;
use crate::proof::Proof;
use std::fmt;

/// Clocks of clients go wrong by so many seconds.
const CLOCK_JUMP: u32 = 3 * 3_600;

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
    /// Live messages that never reach one Carrick.
    DropLive,
    /// The leader reaches no other nats-server, and none reaches it.
    IsolateLeader,
    IsolateFollower,
    /// A member's store is deleted; once it is whole again, the leader dies.
    WipeMember,
    /// Two of three nats-servers gone at once.
    LoseQuorum,
    /// The disk of the log's leader is full.
    FillDisk,
    /// Two clients in three have a wrong clock from one moment on.
    JumpClocks,
    /// SIGTERM and start of each Carrick, one after the other.
    RollingRestart,
    /// SIGTERM and start of each external nats-server.
    RollingNats,
    /// A rolling restart with another program.
    RollingUpgrade,
    DeleteSessions,
    DeleteMeta,
    /// An operator wants to purge the log, and to delete a message of it.
    Purge,
    DeleteLog,
}

/// What a row must show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Everything arrives, nobody is told of a loss.
    Whole,
    /// The past is gone, for this reason, and everybody who misses something is told.
    Signalled(&'static str),
}

impl Fault {
    pub const ALL: [Self; 20] = [
        Self::None,
        Self::KillNode,
        Self::KillLeader,
        Self::FreezeLeader,
        Self::FreezeFollower,
        Self::CutNode,
        Self::DropLive,
        Self::IsolateLeader,
        Self::IsolateFollower,
        Self::WipeMember,
        Self::LoseQuorum,
        Self::FillDisk,
        Self::JumpClocks,
        Self::RollingRestart,
        Self::RollingNats,
        Self::RollingUpgrade,
        Self::DeleteSessions,
        Self::DeleteMeta,
        Self::Purge,
        Self::DeleteLog,
    ];

    pub fn applies_to(self, setup: Setup) -> bool {
        match self {
            Self::FreezeFollower | Self::IsolateLeader | Self::IsolateFollower => setup.is_cluster(),
            Self::WipeMember | Self::LoseQuorum => setup.is_cluster(),
            Self::CutNode | Self::DropLive => !setup.is_embedded(),
            Self::RollingNats => setup == Setup::ExternalR3,
            _ => true,
        }
    }

    /// The deployment that it needs.
    pub fn variant(self) -> Variant {
        Variant {
            program: (self == Self::RollingUpgrade).then(old_build::path),
            split: matches!(self, Self::IsolateLeader | Self::IsolateFollower),
            small_disks: self == Self::FillDisk,
            ..Variant::default()
        }
    }

    pub fn expected(self) -> Expected {
        match self {
            Self::DeleteLog => Expected::Signalled("the log is gone"),
            Self::DeleteMeta => Expected::Signalled("which life of the log it is was recorded there"),
            _ => Expected::Whole,
        }
    }

    /// No client may have to subscribe anew: sessions outlive it.
    pub fn keeps_sessions(self) -> bool {
        matches!(self, Self::None | Self::RollingRestart | Self::RollingUpgrade | Self::RollingNats)
    }

    /// Options of the checker.
    pub fn arguments(self) -> Vec<String> {
        let mut all = Vec::new();
        if matches!(self.expected(), Expected::Signalled(_)) {
            all.push("--allow-rejects".to_owned());
        }
        if self == Self::JumpClocks {
            all.push(format!("--clock-jump={CLOCK_JUMP}"));
        }
        all
    }

    /// What the checker's report must show.
    pub fn prove_by_report(self, checked: &Checked, proof: &mut Proof) {
        let count = |name: &str| checked.count(name);
        match self {
            Self::KillNode | Self::RollingRestart | Self::RollingUpgrade => {
                let lost = count("connections_lost");
                proof.require(lost > 0, format!("{lost} connections lost"));
            }
            Self::JumpClocks => {
                let (returns, hours) = (count("skewed_returns"), CLOCK_JUMP / 3_600);
                proof.require(returns > 0, format!("{returns} returns with a clock {hours} hours ahead or behind"));
            }
            Self::DeleteSessions => {
                let anew = count("resubscribed");
                proof.require(anew > 0, format!("{anew} sessions gone, subscribed anew"));
            }
            _ => {}
        }
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
            Self::DropLive => "live messages dropped",
            Self::IsolateLeader => "leader cut off from the other servers",
            Self::IsolateFollower => "follower cut off from the other servers",
            Self::WipeMember => "member wiped, then the leader killed",
            Self::LoseQuorum => "two of three servers down",
            Self::FillDisk => "disk of the log full",
            Self::JumpClocks => "clients' clocks jump",
            Self::RollingRestart => "rolling restart",
            Self::RollingNats => "rolling restart of nats-server",
            Self::RollingUpgrade => "rolling upgrade",
            Self::DeleteSessions => "bucket of sessions deleted",
            Self::DeleteMeta => "bucket of records deleted",
            Self::Purge => "purge by an operator",
            Self::DeleteLog => "log deleted",
        })
    }
}
