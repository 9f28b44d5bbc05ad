//! Clients of the base protocol: each connection by itself must bring everything that was published while it stood.

use super::alarms::StreamLog;
use super::judge::Rules;
use super::member::Record;
use super::source::{Ack, Id};
use super::verdict::Verdict;
use std::collections::{HashMap, HashSet};

pub(super) fn judge_base(record: &Record, follow: usize, log: &StreamLog, rules: &Rules, verdict: &mut Verdict) {
    let client = record.follower.id;
    let identifier = &record.follower.follows[follow].identifier;
    // Connection ⇒ what it brought.
    let mut brought: HashMap<u32, HashSet<Id>> = HashMap::new();
    let mut last: HashMap<(u32, u16), u64> = HashMap::new();
    for arrival in record.arrivals.iter().filter(|arrival| arrival.follow == follow && arrival.id.is_stored()) {
        let (id, connection) = (arrival.id, arrival.connection);
        let describe = || format!("base client {client} {identifier} {id:?} on connection {connection}");
        verdict.base_arrived += 1;
        if log.refused.contains(&id) {
            verdict.unstored.add(describe);
        }
        if !brought.entry(connection).or_default().insert(id) {
            verdict.doubled.add(describe);
            continue;
        }
        let before = last.entry((connection, id.lane)).or_default();
        if id.n < *before {
            verdict.disordered.add(|| format!("{} after {before}", describe()));
        }
        *before = id.n.max(*before);
    }
    let none = HashSet::new();
    for (connection, stay) in (1_u32..).zip(&record.stays) {
        let Some(stood) = stay.stood else { continue };
        let had = brought.get(&connection).unwrap_or(&none);
        let due = |ack: &&Ack| {
            let during = stood < ack.begun && ack.at + rules.live_within < stay.ended;
            during && ack.excluded.is_none_or(|(excluded, _)| excluded != client)
        };
        for ack in log.acks.values().filter(due).filter(|ack| !had.contains(&ack.id)) {
            // What the limits remove before a failing feed is repaired cannot be had, and this protocol cannot tell.
            if log.may_be_removed(ack, rules) {
                verdict.base_removed += 1;
            } else {
                let id = ack.id;
                verdict
                    .base_missing
                    .add(|| format!("base client {client} {identifier} {id:?} on connection {connection}"));
            }
        }
    }
}
