//! Messages that were not acknowledged may be stored at any time, also in a later turn of the run. What each subscription
//! had of them is remembered, so that a second copy is known for one.

use super::record::{Arrival, Record};
use super::source::{Id, Published};
use std::collections::{HashMap, HashSet};

#[derive(Default)]
pub(super) struct Unsettled {
    /// Client ⇒ what it had of them.
    had: HashMap<usize, Vec<Arrival>>,
}

impl Unsettled {
    /// Tells the records of a turn what their clients had before it.
    pub fn remind(&self, records: &mut [Record]) {
        for record in records {
            record.open = self.had.get(&record.follower.id).cloned().unwrap_or_default();
        }
    }

    /// A turn is over; its records were reminded.
    pub fn note(&mut self, published: &[Published], records: &[Record]) {
        let mut open: HashMap<&str, HashSet<Id>> = HashMap::new();
        for source in published.iter().filter(|source| source.is_stored()) {
            let (before, now) = (&source.past.open, &source.unacknowledged);
            let ids = before.iter().chain(now).map(|unacked| unacked.id).chain(source.past.refused.iter().copied());
            open.entry(&source.stream).or_default().extend(ids);
        }
        for record in records {
            let is_open = |arrival: &&Arrival| {
                let stream = record.follower.follows[arrival.follow].stream.as_str();
                open.get(stream).is_some_and(|open| open.contains(&arrival.id))
            };
            let now = record.arrivals.iter().filter(is_open);
            let all: Vec<Arrival> =
                record.open.iter().chain(now).map(|arrival| Arrival { connection: 0, ..arrival.clone() }).collect();
            if !all.is_empty() {
                self.had.insert(record.follower.id, all);
            }
        }
    }
}
