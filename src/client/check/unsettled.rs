//! What outlives a turn of the run. Messages that were not acknowledged may be stored at any time, also in a later turn:
//! what each subscription had of them is remembered, so that a second copy is known for one. What a turn has given up as
//! missing may come after it, and is then late and no second copy. What it could not judge yet of a client of the base
//! protocol is judged in the next one.

use super::copies::came_live;
use super::judge::Rules;
use super::log::StreamLog;
use super::numbers::Numbers;
use super::record::{Arrival, Had, Record, Undelivered};
use super::roster::Kind;
use super::source::{Id, Published};
use super::standing::undelivered;
use std::collections::{BTreeMap, HashMap, HashSet};

#[derive(Default)]
pub(super) struct Unsettled(HashMap<usize, OfClient>);

#[derive(Clone, Default)]
struct OfClient {
    /// What it had of messages without an answer.
    had: Vec<Had>,
    missing: BTreeMap<(usize, u16), Numbers>,
    undelivered: Vec<Undelivered>,
}

impl Unsettled {
    /// Tells the records of a turn what their clients had before it, and what not.
    pub fn remind(&self, records: &mut [Record]) {
        for record in records {
            let OfClient { had, missing, undelivered } = self.0.get(&record.follower.id).cloned().unwrap_or_default();
            (record.open, record.missing, record.undelivered) = (had, missing, undelivered);
        }
    }

    /// A turn is over; its records were reminded.
    pub fn note(&mut self, published: &[Published], records: &[Record], rules: &Rules) {
        let logs = StreamLog::of_all(published);
        let none = StreamLog::default();
        for record in records {
            let log = |follow: usize| logs.get(record.follower.follows[follow].stream.as_str()).unwrap_or(&none);
            let may_come = |arrival: &Arrival| {
                let log = log(arrival.follow);
                log.is_open(arrival.id) || log.is_refused(arrival.id)
            };
            let mut of_client = OfClient::default();
            for had in record.open.iter().filter(|had| may_come(&had.arrival)) {
                let after = had.after.saturating_add(log(had.arrival.follow).stored_since(had.arrival.at));
                of_client.had.push(Had { after, ..had.clone() });
            }
            for arrival in record.arrivals.iter().filter(|arrival| arrival.id.is_stored() && may_come(arrival)) {
                let log = log(arrival.follow);
                let (live, after) = (came_live(record, arrival, log), log.stored_since(arrival.at));
                of_client.had.push(Had { arrival: Arrival { connection: 0, ..arrival.clone() }, live, after });
            }
            for follow in 0..record.follower.follows.len() {
                let log = log(follow);
                let missing = match record.follower.kind {
                    Kind::Base => {
                        let open = undelivered(record, follow, log, rules);
                        of_client.undelivered.extend(open.not_due);
                        open.missing
                    }
                    _ => missing(record, follow, log),
                };
                for id in missing {
                    of_client.missing.entry((follow, id.lane)).or_default().insert(id.n);
                }
            }
            self.0.insert(record.follower.id, of_client);
        }
    }
}

/// What was acknowledged and has not arrived at this subscription.
fn missing(record: &Record, follow: usize, log: &StreamLog) -> Vec<Id> {
    let of_follow = record.arrivals.iter().filter(|arrival| arrival.follow == follow);
    let arrived: HashSet<Id> = of_follow.map(|arrival| arrival.id).collect();
    let is_due = |id: &&Id| log.excluded(**id).is_none_or(|excluded| excluded.client != record.follower.id);
    log.acks.keys().filter(|id| !arrived.contains(id)).filter(is_due).copied().collect()
}
