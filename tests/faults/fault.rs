//! The faults of the table: where they apply, what they need, and what may come of them.

use crate::checker::Checked;
use crate::deployment::{LIFE, Setup, Variant};
use crate::old_build;
use crate::proof::Proof;
use crate::{apart, slow};
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
    /// SIGSTOP of one Carrick, for longer than all timeouts.
    FreezeNode,
    /// The same again and again, while messages live shorter than some of the stops.
    FreezeNodeExpiry,
    /// No connection between one Carrick and NATS.
    CutNode,
    /// Packets between one Carrick and NATS vanish for a while, or those between a member of an embedded cluster and the
    /// others; within the window in which retries are known.
    SilentPath,
    /// For longer than that.
    SilentPathBeyond,
    /// Live messages that never reach one Carrick.
    DropLive,
    /// The leader reaches no other nats-server, and none reaches it.
    IsolateLeader,
    IsolateFollower,
    /// A member's store is deleted; once it is whole again, the leader dies.
    WipeMember,
    /// Two of three nats-servers gone at once.
    LoseQuorum,
    /// All external nats-servers are away for longer than sessions live and retries are known.
    LongOutage,
    /// The disk of the log's leader is full.
    FillDisk,
    /// It takes few writes in a second, and then none for a while, again and again.
    SlowDisk,
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
    /// History policies change while clients come and go: streams move to another log, its limits change, they move back.
    ChangePolicies,
}

/// What a row must show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Everything arrives, nobody is told of a loss.
    Whole,
    /// The past is gone, for this reason, and everybody who misses something is told.
    Signalled(&'static str),
    /// Messages expire meanwhile: everybody who misses something is told, and nobody who cannot have missed anything.
    Expired,
}

/// How long sessions live and retries are known under [`Fault::LongOutage`], in seconds.
const SHORT_SESSIONS: u64 = 5;
const SHORT_WINDOW: u64 = 8;
/// How long retries are known and tried under [`Fault::SilentPathBeyond`], in seconds.
const SILENT_WINDOW: u64 = 8;
const SILENT_PUBLISH: u64 = 2;
/// How long messages live under [`Fault::FreezeNodeExpiry`], in seconds.
const SHORT_LIFE: u64 = 2;
/// Where nothing is wrong, a message is not on its way for longer, in seconds.
const LIVE: u64 = 2;

impl Fault {
    pub const ALL: [Self; 27] = [
        Self::None,
        Self::KillNode,
        Self::KillLeader,
        Self::FreezeLeader,
        Self::FreezeFollower,
        Self::FreezeNode,
        Self::FreezeNodeExpiry,
        Self::CutNode,
        Self::SilentPath,
        Self::SilentPathBeyond,
        Self::DropLive,
        Self::IsolateLeader,
        Self::IsolateFollower,
        Self::WipeMember,
        Self::LoseQuorum,
        Self::LongOutage,
        Self::FillDisk,
        Self::SlowDisk,
        Self::JumpClocks,
        Self::RollingRestart,
        Self::RollingNats,
        Self::RollingUpgrade,
        Self::DeleteSessions,
        Self::DeleteMeta,
        Self::Purge,
        Self::DeleteLog,
        Self::ChangePolicies,
    ];

    /// Those that take few seconds.
    pub const QUICK: [Self; 8] = [
        Self::KillNode,
        Self::KillLeader,
        Self::FreezeNode,
        Self::CutNode,
        Self::DropLive,
        Self::RollingRestart,
        Self::DeleteSessions,
        Self::DeleteMeta,
    ];

    /// Needs a network between nats-servers that can be cut.
    pub fn variant_is_split(self) -> bool {
        matches!(self, Self::IsolateLeader | Self::IsolateFollower)
    }

    /// Needs paths on which packets can vanish.
    pub fn is_silence(self) -> bool {
        matches!(self, Self::SilentPath | Self::SilentPathBeyond)
    }

    /// Why it cannot be done here.
    pub fn impossible(self) -> Option<String> {
        match self {
            Self::SilentPath | Self::SilentPathBeyond if !apart::is_apart() => apart::impossible(),
            Self::SlowDisk => slow::impossible(),
            _ => None,
        }
    }

    /// Both can be done to one deployment. What stands between the members of an embedded cluster either cuts routes or
    /// passes packets on.
    pub fn goes_with(self, other: Self, setup: Setup) -> bool {
        let differ = |one: Self, two: Self| one.is_silence() && two.variant_is_split();
        setup != Setup::EmbeddedR3 || !(differ(self, other) || differ(other, self))
    }

    /// The log begins anew.
    pub fn ends_an_epoch(self) -> bool {
        matches!(self, Self::DeleteLog | Self::ChangePolicies)
    }

    /// What was handed over may be stored seconds later, when its publisher has long tried again.
    pub fn holds_publications_back(self) -> bool {
        matches!(self, Self::FreezeLeader | Self::FreezeFollower | Self::IsolateLeader | Self::IsolateFollower)
    }

    /// Other harm may be done at the same time.
    pub fn bears_company(self) -> bool {
        let alone = [Self::FreezeNode, Self::FreezeNodeExpiry, Self::CutNode, Self::DropLive, Self::LoseQuorum];
        !alone.contains(&self)
    }

    pub fn applies_to(self, setup: Setup) -> bool {
        match self {
            Self::FreezeFollower | Self::IsolateLeader | Self::IsolateFollower => setup.is_cluster(),
            Self::WipeMember | Self::LoseQuorum => setup.is_cluster(),
            Self::CutNode | Self::DropLive | Self::LongOutage | Self::ChangePolicies => !setup.is_embedded(),
            Self::RollingNats => setup == Setup::ExternalR3,
            _ => true,
        }
    }

    /// The deployment that it needs.
    pub fn variant(self) -> Variant {
        Variant {
            program: (self == Self::RollingUpgrade).then(old_build::path),
            split: self.variant_is_split(),
            small_disks: self == Self::FillDisk,
            slow_disks: self == Self::SlowDisk,
            paths: self.is_silence(),
            settings: match self {
                Self::FreezeNodeExpiry => vec![("history_ttl", SHORT_LIFE.to_string())],
                Self::LongOutage => {
                    vec![("sessions_ttl", SHORT_SESSIONS.to_string()), ("dedup_window", SHORT_WINDOW.to_string())]
                }
                Self::SilentPathBeyond => {
                    vec![("dedup_window", SILENT_WINDOW.to_string()), ("publish_timeout", SILENT_PUBLISH.to_string())]
                }
                _ => Vec::new(),
            },
            ..Variant::default()
        }
    }

    pub fn expected(self) -> Expected {
        match self {
            Self::DeleteLog => Expected::Signalled("the log is gone"),
            Self::ChangePolicies => Expected::Signalled("streams moved to another log"),
            Self::FreezeNodeExpiry => Expected::Expired,
            _ => Expected::Whole,
        }
    }

    /// It lasts longer than publications may be retried: some are not accepted.
    pub fn refuses_publications(self) -> bool {
        matches!(self, Self::FreezeNodeExpiry | Self::LongOutage | Self::SilentPathBeyond)
    }

    /// Nobody publishes through the node that it harms, where there is another: what waits in a stopped process is
    /// published when it goes on, and its retry through another node would long be forgotten.
    pub fn spares_publishers(self) -> bool {
        self == Self::FreezeNodeExpiry
    }

    /// No client may have to subscribe anew: sessions outlive it.
    pub fn keeps_sessions(self) -> bool {
        matches!(self, Self::None | Self::RollingRestart | Self::RollingUpgrade | Self::RollingNats)
    }

    /// Messages per second that the deployment can bear beside it: stores that flush each message are slow by themselves,
    /// three on one disk all the more.
    pub fn bearable(self) -> u32 {
        if self == Self::SlowDisk { 100 } else { u32::MAX }
    }

    /// Options of the checker.
    pub fn arguments(self, setup: Setup) -> Vec<String> {
        let mut all = Vec::new();
        if self == Self::FreezeNodeExpiry {
            all.push(format!("--history-ttl={SHORT_LIFE}"));
            all.push(format!("--history-limit={}", crate::deployment::HISTORY_LIMIT));
            // Within the window for duplicates, which is as short as the messages' life.
            let retry_for = if setup == Setup::EmbeddedSingle { "0" } else { "0.9" };
            all.push(format!("--retry-for={retry_for}"));
        }
        if self == Self::LongOutage {
            // `publish_timeout` is half the window.
            all.push(format!("--retry-for={}", SHORT_WINDOW / 2 - 1));
        }
        if self == Self::SilentPathBeyond {
            // A last attempt ends within the window.
            all.push(format!("--retry-for={}", SILENT_WINDOW - SILENT_PUBLISH - 1));
        }
        if matches!(self.expected(), Expected::Signalled(_)) {
            // With the limits known, who is told without having lost anything is found.
            all.push("--allow-rejects".to_owned());
            all.push(format!("--history-limit={}", crate::deployment::HISTORY_LIMIT));
            all.push(format!("--history-ttl={LIFE}"));
        }
        if self == Self::None {
            all.push(format!("--live-within={LIVE}"));
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
            Self::None => {
                for (name, what) in [("transient", "transient messages"), ("whispers", "whispers")] {
                    let passing = &checked.report[name];
                    let (expected, lost) = (&passing["expected"], &passing["lost"]);
                    let all = expected.as_u64() > Some(0) && lost.as_u64() == Some(0);
                    proof.require(all, format!("{lost} of {expected} {what} lost"));
                }
            }
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
            Self::FreezeNode => "node frozen",
            Self::FreezeNodeExpiry => "node frozen longer than messages live",
            Self::CutNode => "node cut off from NATS",
            Self::SilentPath => "path silent within the window",
            Self::SilentPathBeyond => "path silent beyond the window",
            Self::DropLive => "live messages dropped",
            Self::IsolateLeader => "leader cut off from the other servers",
            Self::IsolateFollower => "follower cut off from the other servers",
            Self::WipeMember => "member wiped, then the leader killed",
            Self::LoseQuorum => "two of three servers down",
            Self::LongOutage => "NATS away longer than sessions live",
            Self::FillDisk => "disk of the log full",
            Self::SlowDisk => "disk of the log slow",
            Self::JumpClocks => "clients' clocks jump",
            Self::RollingRestart => "rolling restart",
            Self::RollingNats => "rolling restart of nats-server",
            Self::RollingUpgrade => "rolling upgrade",
            Self::DeleteSessions => "bucket of sessions deleted",
            Self::DeleteMeta => "bucket of records deleted",
            Self::Purge => "purge by an operator",
            Self::DeleteLog => "log deleted",
            Self::ChangePolicies => "policies changed",
        })
    }
}
