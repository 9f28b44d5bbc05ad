//! The memory that history may take, shared by all logs.

use crate::metrics;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

pub(super) struct Room {
    /// Bytes.
    limit: usize,
    used: AtomicUsize,
    /// It was found full and the log says so.
    told: AtomicBool,
}

impl Room {
    /// 0: no limit.
    pub fn new(limit: usize) -> Self {
        let limit = if limit == 0 { usize::MAX } else { limit };
        Self { limit, used: AtomicUsize::new(0), told: AtomicBool::new(false) }
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes `needed` bytes for `freed` ones. `false`: there is no room for what that is more.
    pub fn exchange(&self, needed: usize, freed: usize) -> bool {
        let fits = |used: usize| {
            let then = used.saturating_sub(freed).saturating_add(needed);
            (then <= self.limit || then <= used).then_some(then)
        };
        let took = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok();
        if took {
            metrics::MEMORY_HISTORY.add(needed as i64 - freed as i64);
        }
        took
    }

    pub fn give(&self, freed: usize) {
        self.used.fetch_sub(freed, Ordering::Relaxed);
        metrics::MEMORY_HISTORY.add(-(freed as i64));
    }

    /// Whether this is the first time that it is full since there was room last.
    pub fn is_newly_full(&self) -> bool {
        !self.told.swap(true, Ordering::Relaxed)
    }

    /// There is room again, once some of it is free.
    pub fn note_room(&self) {
        if self.used() < self.limit - self.limit / 16 {
            self.told.store(false, Ordering::Relaxed);
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        metrics::MEMORY_HISTORY.add(-(self.used() as i64));
    }
}
