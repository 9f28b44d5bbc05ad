//! History policies: which streams keep how much, and for how long. Each policy is a log of its own.

use crate::protocol::{Epoch, Pattern, StreamName};
use std::sync::Arc;
use std::time::Duration;

/// Name of the policy of all streams that no other one takes.
pub const DEFAULT: &str = "default";

/// Where a log is kept. The memory broker keeps everything in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    #[default]
    File,
    Memory,
}

impl Storage {
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Memory => "memory",
        }
    }
}

/// One log's rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Part of the log's name: `A-Za-z0-9_-`, unique.
    pub name: Arc<str>,
    /// The streams it takes, unless an earlier policy does.
    pub pattern: Pattern,
    /// Messages kept per stream. 0: nothing is stored.
    pub limit: u64,
    /// Age at which a message is dropped. Zero: nothing is stored.
    pub ttl: Duration,
    pub storage: Storage,
    /// Copies of the log; 0: as many as everything else has.
    pub replicas: usize,
}

impl Policy {
    /// The policy of everything else.
    pub fn default_with(limit: u64, ttl: Duration) -> Self {
        Self { name: DEFAULT.into(), pattern: Pattern::everything(), limit, ttl, storage: Storage::File, replicas: 0 }
    }

    /// Its messages are stored at all. (Limits of 0 mean *unlimited* to NATS: they are never passed on.)
    pub fn keeps(&self) -> bool {
        self.limit > 0 && !self.ttl.is_zero()
    }
}

/// All policies: the first that matches a stream's name holds, the last one matches everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    policies: Vec<Policy>,
}

impl Table {
    /// `limit` and `ttl` are the default policy's.
    pub fn new(mut policies: Vec<Policy>, limit: u64, ttl: Duration) -> Arc<Self> {
        policies.push(Policy::default_with(limit, ttl));
        Arc::new(Self { policies })
    }

    /// In the order in which they are tried; the default policy last.
    pub fn policies(&self) -> &[Policy] {
        &self.policies
    }

    /// Place of a stream's policy in [`Table::policies`].
    pub fn place(&self, stream: &StreamName) -> usize {
        let default = self.policies.len() - 1;
        let explicit = &self.policies[..default];
        explicit.iter().position(|policy| policy.pattern.matches(stream.as_str())).unwrap_or(default)
    }

    pub fn policy(&self, stream: &StreamName) -> &Policy {
        &self.policies[self.place(stream)]
    }

    pub fn by_name(&self, name: &str) -> Option<&Policy> {
        self.policies.iter().find(|policy| &*policy.name == name)
    }

    pub fn default_policy(&self) -> &Policy {
        &self.policies[self.policies.len() - 1]
    }

    /// Nothing but the default policy.
    pub fn is_plain(&self) -> bool {
        self.policies.len() == 1
    }

    /// Some policy stores its messages.
    pub fn keeps_any(&self) -> bool {
        self.policies.iter().any(Policy::keeps)
    }

    /// The shortest life of a stored message; `None` if nothing is stored.
    pub fn shortest_ttl(&self) -> Option<Duration> {
        self.policies.iter().filter(|policy| policy.keeps()).map(|policy| policy.ttl).min()
    }

    /// The longest life of a stored message, zero if nothing is stored.
    pub fn longest_ttl(&self) -> Duration {
        self.policies.iter().filter(|policy| policy.keeps()).map(|policy| policy.ttl).max().unwrap_or_default()
    }

    /// The stream's messages go elsewhere under the other table: to another log, to none, or to one from none.
    pub fn moves(&self, other: &Self, stream: &StreamName) -> bool {
        let home = |table: &Self| {
            let policy = table.policy(stream);
            policy.keeps().then(|| policy.name.clone())
        };
        home(self) != home(other)
    }

    /// Some stream may come to this policy by the change from `former`, though its log exists already: what happened
    /// to the stream elsewhere is not in that log, so that positions in it prove nothing.
    pub fn may_gain(&self, former: &Self, name: &str) -> bool {
        let place = |table: &Self| table.policies.iter().position(|policy| &*policy.name == name);
        let Some(now) = place(self) else { return false };
        if !self.policies[now].keeps() {
            return false;
        }
        let Some(before) = place(former) else { return true };
        let policy = &self.policies[now];
        let other_rule = former.policies[before].pattern != policy.pattern || !former.policies[before].keeps();
        // Whoever came first took streams from it; is there one that does not any more?
        let gave_way = former.policies[..before].iter().any(|earlier| {
            let still = self.policies[..now].iter().any(|p| p.name == earlier.name && p.pattern == earlier.pattern);
            !still && earlier.pattern.may_overlap(&policy.pattern)
        });
        other_rule || gave_way
    }
}

/// One log as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogState {
    /// Names the log's present life; positions of another epoch are worth nothing. [`Epoch::none`] if nothing is stored.
    pub epoch: Epoch,
    /// What the log itself says, which may differ from its policy while that is being changed.
    pub limit: u64,
    pub ttl: Duration,
}

/// All logs, one for each policy. Cheap to clone, and to compare with [`Logs::is`].
#[derive(Clone, Debug)]
pub struct Logs(Arc<(Arc<Table>, Vec<LogState>)>);

impl Logs {
    /// `states` in the order of the table's policies.
    pub fn new(table: Arc<Table>, states: Vec<LogState>) -> Self {
        assert_eq!(table.policies.len(), states.len(), "one log for each policy");
        Self(Arc::new((table, states)))
    }

    /// Before anything is known of the logs.
    pub fn unknown(table: Arc<Table>) -> Self {
        let states =
            table.policies.iter().map(|policy| LogState { epoch: Epoch::none(), limit: policy.limit, ttl: policy.ttl });
        let states = states.collect();
        Self::new(table, states)
    }

    pub fn table(&self) -> &Arc<Table> {
        &self.0.0
    }

    pub fn states(&self) -> &[LogState] {
        &self.0.1
    }

    pub fn of(&self, stream: &StreamName) -> &LogState {
        &self.0.1[self.table().place(stream)]
    }

    /// Messages of this stream are stored.
    pub fn keeps(&self, stream: &StreamName) -> bool {
        self.table().policy(stream).keeps()
    }

    /// The very same, unchanged.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl PartialEq for Logs {
    fn eq(&self, other: &Self) -> bool {
        self.is(other) || (*self.table() == *other.table() && self.states() == other.states())
    }
}

impl Eq for Logs {}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str, pattern: &str, limit: u64) -> Policy {
        let ttl = Duration::from_secs(60);
        Policy { name: name.into(), pattern: pattern.parse().unwrap(), limit, ..Policy::default_with(limit, ttl) }
    }

    fn table(policies: &[(&str, &str, u64)]) -> Arc<Table> {
        let policies = policies.iter().map(|(name, pattern, limit)| policy(name, pattern, *limit)).collect();
        Table::new(policies, 100, Duration::from_secs(300))
    }

    #[test]
    fn the_first_match_wins_and_the_rest_is_the_defaults() {
        let table = table(&[("typing", "*/typing", 0), ("chat", "chat/*", 5)]);
        for (stream, name) in [("chat/1", "chat"), ("chat/1/typing", "typing"), ("news", "default")] {
            assert_eq!(&*table.policy(&stream.into()).name, name);
        }
        assert!(!table.policy(&"x/typing".into()).keeps());
    }

    #[test]
    fn a_stream_moves_when_another_log_or_none_takes_it() {
        let (plain, chat) = (table(&[]), table(&[("chat", "chat/*", 5)]));
        assert!(plain.moves(&chat, &"chat/1".into()) && chat.moves(&plain, &"chat/1".into()));
        assert!(!plain.moves(&chat, &"news".into()));
        assert!(!chat.moves(&table(&[("chat", "chat/*", 9)]), &"chat/1".into()), "another limit is no other log");
        assert!(chat.moves(&table(&[("chat", "chat/*", 0)]), &"chat/1".into()));
    }

    #[test]
    fn what_a_log_may_gain() {
        let (plain, chat) = (table(&[]), table(&[("chat", "chat/*", 5)]));
        assert!(!chat.may_gain(&plain, DEFAULT), "it only loses streams");
        assert!(chat.may_gain(&plain, "chat"));
        assert!(plain.may_gain(&chat, DEFAULT), "they come back");
        assert!(chat.may_gain(&table(&[("chat", "chat/1*", 5)]), "chat"), "another pattern");
        assert!(chat.may_gain(&table(&[("chat", "chat/*", 0)]), "chat"), "it stored nothing before");
        assert!(!chat.may_gain(&chat, "chat") && !chat.may_gain(&chat, DEFAULT));
        let both = table(&[("chat", "chat/*", 5), ("news", "news/*", 5)]);
        let turned = table(&[("news", "news/*", 5), ("chat", "chat/*", 5)]);
        assert!(!turned.may_gain(&both, "news"), "they share no stream");
        assert!(!turned.may_gain(&both, DEFAULT));
        let first = table(&[("all", "*", 5), ("chat", "chat/*", 5)]);
        let second = table(&[("chat", "chat/*", 5), ("all", "*", 5)]);
        assert!(second.may_gain(&first, "chat") && first.may_gain(&second, "all"));
    }
}
