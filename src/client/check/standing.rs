//! Clients of the base protocol: each connection by itself must bring everything that was published while it stood. It has
//! no more time for that than until something later comes: on a connection nothing is overtaken.

use super::alarms::StreamLog;
use super::judge::Rules;
use super::record::Record;
use super::source::{Ack, Id};
use super::verdict::Verdict;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

pub(super) fn judge_base(record: &Record, follow: usize, log: &StreamLog, rules: &Rules, verdict: &mut Verdict) {
    let client = record.follower.id;
    let identifier = &record.follower.follows[follow].identifier;
    // Connection ⇒ what it brought.
    let mut brought: HashMap<u32, HashSet<Id>> = HashMap::new();
    let mut last: HashMap<(u32, u16), u64> = HashMap::new();
    // Connection and epoch ⇒ the highest offset, as publishers know it.
    let mut highest: HashMap<(u32, Arc<str>), u64> = HashMap::new();
    for arrival in record.arrivals.iter().filter(|arrival| arrival.follow == follow && arrival.id.is_stored()) {
        let (id, connection) = (arrival.id, arrival.connection);
        let describe = || format!("base client {client} {identifier} {id:?} on connection {connection}");
        verdict.base_arrived += 1;
        let may_come = log.is_open(id) || log.refused.contains(&id);
        if log.refused.contains(&id) {
            verdict.unstored.add(describe);
        } else if log.is_of_an_earlier_turn(id) && !may_come {
            // Nobody waited for these clients: on its way may be what the connection has not passed yet.
            let had = connection == 1 && record.brought.get(&(follow, id.lane)).is_some_and(|highest| id.n <= *highest);
            let overdue = log.judged_at(id.lane).is_some_and(|at| arrival.at > at + rules.live_within);
            if had || overdue {
                verdict.doubled.add(|| format!("{}, long after it was due", describe()));
                continue;
            }
        }
        if !brought.entry(connection).or_default().insert(id) {
            verdict.doubled.add(describe);
            continue;
        }
        let before = last.entry((connection, id.lane)).or_default();
        // What was given up may be stored at any time.
        if id.n < *before && !may_come {
            verdict.disordered.add(|| format!("{} after {before}", describe()));
        }
        *before = id.n.max(*before);
        if let Some((epoch, offset)) = log.acks.get(&id).and_then(|ack| ack.position.as_ref()) {
            let before = highest.entry((connection, Arc::clone(epoch))).or_default();
            *before = (*offset).max(*before);
        }
    }
    let none = HashSet::new();
    for (connection, stay) in (1_u32..).zip(&record.stays) {
        let Some(stood) = stay.stood else { continue };
        let had = brought.get(&connection).unwrap_or(&none);
        let is_overtaken = |ack: &Ack| {
            let by_lane = last.get(&(connection, ack.id.lane)).is_some_and(|last| ack.id.n < *last);
            by_lane
                || ack.position.as_ref().is_some_and(|(epoch, offset)| {
                    highest.get(&(connection, Arc::clone(epoch))).is_some_and(|highest| offset < highest)
                })
        };
        let due = |ack: &&Ack| {
            let in_time = ack.at + rules.live_within < stay.ended || is_overtaken(ack);
            stood < ack.begun && in_time && ack.excluded.is_none_or(|(excluded, _)| excluded != client)
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
