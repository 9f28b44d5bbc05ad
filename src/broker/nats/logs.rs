//! The log of one policy as a verified connection sees it.

use super::Core;
use super::heads::Asks;
use super::witness::Witness;
use crate::broker::Durability;
use crate::broker::policy::{LogState, Logs, Table};
use crate::protocol::{Epoch, StreamName};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

/// One policy's log, found and compared with what this node remembers.
pub(super) struct Log {
    /// Place of its policy in the table.
    pub place: usize,
    pub policy: Arc<str>,
    /// The JetStream stream.
    pub name: String,
    /// As the log itself says.
    pub limit: u64,
    pub ttl: Duration,
    pub durability: Durability,
    pub asks: Asks,
    pub witness: Arc<Witness>,
    epoch: RwLock<Epoch>,
}

impl Log {
    pub fn new(place: usize, policy: Arc<str>, found: Found, asks: Asks, witness: Arc<Witness>, epoch: Epoch) -> Self {
        let Found { name, limit, ttl, durability } = found;
        Self { place, policy, name, limit, ttl, durability, asks, witness, epoch: RwLock::new(epoch) }
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A log that is set up, before it is compared with anything.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub name: String,
    pub limit: u64,
    pub ttl: Duration,
    pub durability: Durability,
}

/// The policies that publications follow. Each attempt to publish holds them until it is answered, so that a node can tell
/// when nothing is under way any more that followed former ones.
pub(super) struct Rules {
    pub table: Arc<Table>,
    /// Agreed on, but not in effect yet.
    pub next: Option<Next>,
}

#[derive(Clone)]
pub(super) struct Next {
    pub table: Arc<Table>,
    /// Policies whose log gets a new epoch even if the table stays.
    pub renew: Vec<String>,
    /// Sequence of the proposal in the meta bucket.
    pub proposal: u64,
}

impl Rules {
    /// Nothing is published to this stream until the change is over: it will move to another log, or its log gets a new
    /// epoch. An answer with the former epoch would name a position that is over.
    pub fn holds_back(&self, stream: &StreamName) -> bool {
        self.next.as_ref().is_some_and(|next| {
            let policy = &self.table.policy(stream).name;
            let renewed = next.renew.iter().any(|renewed| **renewed == **policy);
            renewed || next.table.may_gain(&self.table, policy) || self.table.moves(&next.table, stream)
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Core {
    pub(super) fn rules(&self) -> Arc<Rules> {
        lock(&self.rules).clone()
    }

    /// Answers with the former ones.
    pub(super) fn set_rules(&self, rules: Rules) -> Arc<Rules> {
        std::mem::replace(&mut *lock(&self.rules), Arc::new(rules))
    }

    /// What this node remembers of a log; it begins to if it does not.
    pub(super) fn witness(&self, log: &str) -> Arc<Witness> {
        let mut witnesses = lock(&self.witnesses);
        if let Some((_, known)) = witnesses.iter().find(|(name, _)| name == log) {
            return known.clone();
        }
        let fresh = Arc::<Witness>::default();
        witnesses.push((log.to_owned(), fresh.clone()));
        fresh
    }

    pub(super) fn witnesses(&self) -> Vec<Arc<Witness>> {
        lock(&self.witnesses).iter().map(|(_, witness)| witness.clone()).collect()
    }

    /// Forgets logs that are not used any more.
    pub(super) fn keep_witnesses_of(&self, logs: &[Option<Found>]) {
        lock(&self.witnesses).retain(|(name, _)| logs.iter().flatten().any(|found| found.name == *name));
    }

    /// Makes `epoch` the one that positions of this log are stamped with.
    pub(super) fn adopt_epoch(&self, log: &Log, epoch: &Epoch) {
        let former = {
            let mut held = log.epoch.write().unwrap_or_else(PoisonError::into_inner);
            if *held == *epoch {
                return;
            }
            std::mem::replace(&mut *held, epoch.clone())
        };
        tracing::warn!(policy = &*log.policy, ?former, ?epoch, "the log has a new epoch");
        self.status.send_if_modified(|status| {
            let mut states = status.logs.states().to_vec();
            // Another table means that another connection has taken over.
            let ours = status.logs.table().policies().get(log.place).is_some_and(|policy| policy.name == log.policy);
            let changed = ours && states[log.place].epoch == former;
            if changed {
                states[log.place].epoch = epoch.clone();
                status.logs = Logs::new(status.logs.table().clone(), states);
            }
            changed
        });
    }

    /// Shows the logs of a new connection.
    pub(super) fn adopt_logs(&self, table: &Arc<Table>, logs: &[Option<Arc<Log>>]) {
        let state = |(place, log): (usize, &Option<Arc<Log>>)| match log {
            Some(log) => LogState { epoch: log.epoch(), limit: log.limit, ttl: log.ttl },
            None => {
                let policy = &table.policies()[place];
                LogState { epoch: Epoch::none(), limit: policy.limit, ttl: policy.ttl }
            }
        };
        let fresh = Logs::new(table.clone(), logs.iter().enumerate().map(state).collect());
        self.status.send_if_modified(|status| {
            let changed = status.logs != fresh;
            if changed {
                status.logs = fresh;
            }
            changed
        });
    }

    /// From now on a stored message counts as gone as soon as it is under either of the two tables.
    pub(super) fn shorten_lives(&self, next: &Table) {
        self.status.send_if_modified(|status| {
            let table = status.logs.table().clone();
            let mut states = status.logs.states().to_vec();
            for (policy, state) in table.policies().iter().zip(&mut states) {
                let coming = next.by_name(&policy.name).filter(|coming| coming.keeps());
                state.ttl = coming.map_or(state.ttl, |coming| coming.ttl.min(state.ttl));
            }
            let changed = states != status.logs.states();
            if changed {
                status.logs = Logs::new(table, states);
            }
            changed
        });
    }
}
