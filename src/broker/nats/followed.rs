//! How far this node has followed the log of remote commands, and what a look at that log says about it.

use super::api::{Cluster, StreamInfo, StreamState};
use std::time::Duration;
use tokio::time::Instant;

/// How long a leader may stay behind what was heard: one that was frozen, or has just been elected, takes in what it lacks.
/// Only a log that stays so has gone back.
pub(super) const LAGGING_LEADER: Duration = Duration::from_secs(3);
/// How long a command that the log should have may be unreadable. Who calls itself the leader may have been frozen, and does
/// not say how far it has come.
pub(super) const UNREADABLE: Duration = Duration::from_secs(30);
/// What a leader has said once it goes on to say only while it is asked at least so often: two lags have nothing to do
/// with each other.
const UNBROKEN: Duration = Duration::from_secs(15);

/// How far this node has followed, across connections. Whether something was missed is a question of sequences alone: how
/// long the node was away, by whichever clock, says nothing about it.
#[derive(Clone, Debug)]
pub(super) struct Followed {
    pub log: String,
    /// All commands up to this sequence were passed on.
    pub held: u64,
    /// Message id of the command at that sequence, if it is known: an older copy of the log may have another one there.
    pub id: Option<String>,
    /// A leader of a cluster says that the log does not come so far.
    pub short: Option<Doubt>,
    /// The next command is not there, although the log comes so far.
    pub gone: Option<Doubt>,
}

/// Something that one leader has said again and again.
#[derive(Clone, Debug)]
pub(super) struct Doubt {
    leader: String,
    since: Instant,
    last: Instant,
}

impl Doubt {
    /// The leader says it now. Answers whether it has said so for this long.
    pub fn lasts(doubt: &mut Option<Self>, leader: &Cluster, patience: Duration, now: Instant) -> bool {
        let leader = format!("{} since {}", leader.leader, leader.leader_since);
        let same = |doubt: &Self| doubt.leader == leader && now.duration_since(doubt.last) <= UNBROKEN;
        let since = doubt.take().filter(same).map_or(now, |doubt| doubt.since);
        *doubt = Some(Self { leader, since, last: now });
        now.duration_since(since) >= patience
    }
}

/// What a look at the log says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// All that was not heard yet is in it.
    Whole,
    /// It may lag: it is asked again.
    NotYet,
    /// Why commands may have been missed.
    Missed(&'static str),
}

impl Followed {
    pub fn to(log: &str, held: u64, id: Option<String>) -> Self {
        Self { log: log.into(), held, id, short: None, gone: None }
    }

    /// Takes in what a leader that is in touch with the majority says about the log.
    pub fn hear(&mut self, log: &str, info: &StreamInfo, clustered: bool, now: Instant) -> Word {
        let is_short = clustered && self.log == log && info.state.last_seq < self.held;
        if !is_short {
            self.short = None;
        } else if !Doubt::lasts(&mut self.short, &info.cluster, LAGGING_LEADER, now) {
            return Word::NotYet;
        }
        missed(self, log, &info.state).map_or(Word::Whole, Word::Missed)
    }

    /// The next command was not found. `info`: as a leader says after that, which is in touch with the majority.
    pub fn next_is_gone(&mut self, info: &StreamInfo, clustered: bool, now: Instant) -> bool {
        !clustered
            || info.state.first_seq > self.held + 1
            || Doubt::lasts(&mut self.gone, &info.cluster, UNREADABLE, now)
    }
}

/// Why nothing proves that all commands were heard.
fn missed(followed: &Followed, log: &str, state: &StreamState) -> Option<&'static str> {
    if followed.log != log {
        return Some("the log of remote commands is another one");
    }
    if state.last_seq < followed.held {
        return Some("the log of remote commands went back");
    }
    let cut = state.first_seq > followed.held + 1 && state.last_seq > followed.held;
    cut.then_some("remote commands expired before this node could read them")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn info(leader: &str, first_seq: u64, last_seq: u64) -> StreamInfo {
        let state = json!({"messages": 1, "first_seq": first_seq, "last_seq": last_seq});
        serde_json::from_value(json!({"config": {}, "state": state, "cluster": {"leader": leader}})).unwrap()
    }

    const SECOND: Duration = Duration::from_secs(1);
    const WENT_BACK: Word = Word::Missed("the log of remote commands went back");

    #[test]
    fn row_07_sequences_alone_prove_that_nothing_was_missed() {
        let followed = Followed::to("ctl", 10, None);
        let state = |first_seq, last_seq| info("n0", first_seq, last_seq).state;
        for (first, last) in [(1, 10), (5, 14), (11, 10), (11, 14)] {
            assert_eq!(missed(&followed, "ctl", &state(first, last)), None, "{first} to {last}");
        }
        for (log, first, last) in [("other", 1, 10), ("ctl", 1, 9), ("ctl", 12, 14), ("ctl", 15, 14)] {
            assert!(missed(&followed, log, &state(first, last)).is_some(), "{log} {first} to {last}");
        }
    }

    #[test]
    fn row_02_a_leader_that_lags_for_long_has_gone_back_and_one_that_catches_up_has_not() {
        let (mut followed, begin) = (Followed::to("ctl", 10, None), Instant::now());
        let (behind, level) = (info("n0", 1, 9), info("n0", 1, 10));
        assert_eq!(followed.hear("ctl", &behind, true, begin), Word::NotYet);
        assert_eq!(followed.hear("ctl", &behind, true, begin + 2 * SECOND), Word::NotYet);
        assert_eq!(followed.hear("ctl", &behind, true, begin + 3 * SECOND), WENT_BACK);
        let mut alone = Followed::to("ctl", 10, None);
        assert_eq!(alone.hear("ctl", &behind, false, begin), WENT_BACK, "a single server does not lag");

        let mut followed = Followed::to("ctl", 10, None);
        assert_eq!(followed.hear("ctl", &behind, true, begin), Word::NotYet);
        assert_eq!(followed.hear("ctl", &level, true, begin + SECOND), Word::Whole);
        assert_eq!(followed.hear("ctl", &behind, true, begin + 5 * SECOND), Word::NotYet, "the former lag is over");
    }

    #[test]
    fn row_02_two_leaders_that_lag_or_one_at_two_times_are_no_log_that_went_back() {
        let (mut followed, begin) = (Followed::to("ctl", 10, None), Instant::now());
        assert_eq!(followed.hear("ctl", &info("n0", 1, 9), true, begin), Word::NotYet);
        assert_eq!(followed.hear("ctl", &info("n1", 1, 9), true, begin + 4 * SECOND), Word::NotYet, "another leader");
        let later = begin + 3_600 * SECOND;
        assert_eq!(followed.hear("ctl", &info("n1", 1, 9), true, later), Word::NotYet, "nobody asked in between");
        assert_eq!(followed.hear("ctl", &info("n1", 1, 9), true, later + 5 * SECOND), WENT_BACK);
    }

    #[test]
    fn row_02_a_command_that_one_server_does_not_find_is_gone_only_if_the_log_begins_behind_it() {
        let (mut followed, begin) = (Followed::to("ctl", 10, None), Instant::now());
        assert!(!followed.next_is_gone(&info("n0", 11, 11), true, begin), "it is kept, says the leader");
        assert!(followed.next_is_gone(&info("n0", 12, 12), true, begin), "it has expired");
        assert!(followed.next_is_gone(&info("n0", 11, 11), false, begin), "a single server knows all");
        // A damaged log does not keep the node from what comes behind.
        let asked =
            (0..30).step_by(5).map(|second| followed.next_is_gone(&info("n0", 11, 11), true, begin + second * SECOND));
        assert!(asked.collect::<Vec<_>>().iter().all(|gone| !gone));
        assert!(followed.next_is_gone(&info("n0", 11, 11), true, begin + UNREADABLE));
    }
}
