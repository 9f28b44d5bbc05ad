//! Clients of the base protocol: each connection by itself must bring everything that was published while it stood. It has
//! no more time for that than until something later comes: on a connection nothing is overtaken.

use super::copies::is_forgotten_between;
use super::judge::Rules;
use super::log::StreamLog;
use super::record::{Arrival, Record, Stay, Undelivered};
use super::source::{Ack, Id};
use super::verdict::Verdict;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::time::Instant;

/// What one connection has brought to one subscription.
#[derive(Default)]
struct Brought {
    /// When the last copy came.
    had: HashMap<Id, Instant>,
    /// Lane ⇒ the highest number.
    last: HashMap<u16, u64>,
    /// Epoch ⇒ the highest offset, as publishers know it.
    highest: HashMap<Arc<str>, u64>,
}

impl Brought {
    /// Answers with the highest number of its lane that came before.
    fn note(&mut self, id: Id, log: &StreamLog) -> u64 {
        if let Some((epoch, offset)) = log.acks.get(&id).and_then(|ack| ack.position.as_ref()) {
            let before = self.highest.entry(Arc::clone(epoch)).or_default();
            *before = (*offset).max(*before);
        }
        let last = self.last.entry(id.lane).or_default();
        std::mem::replace(last, id.n.max(*last))
    }

    /// It had time enough, or something later has come.
    fn is_due(&self, ack: &Ack, stay: &Stay, rules: &Rules) -> bool {
        let by_lane = self.last.get(&ack.id.lane).is_some_and(|last| ack.id.n < *last);
        let by_position = ack
            .position
            .as_ref()
            .is_some_and(|(epoch, offset)| self.highest.get(epoch).is_some_and(|highest| offset < highest));
        ack.at + rules.live_within < stay.ended || by_lane || by_position
    }
}

fn is_for(ack: &Ack, client: usize, stood: Instant) -> bool {
    stood < ack.begun && ack.excluded.is_none_or(|excluded| excluded.client != client)
}

pub(super) fn judge_base(record: &Record, follow: usize, log: &StreamLog, rules: &Rules, verdict: &mut Verdict) {
    let client = record.follower.id;
    let identifier = &record.follower.follows[follow].identifier;
    let mut connections: HashMap<u32, Brought> = HashMap::new();
    for arrival in of_follow(record, follow) {
        let (id, connection) = (arrival.id, arrival.connection);
        let describe = || format!("base client {client} {identifier} {id:?} on connection {connection}");
        verdict.base_arrived += 1;
        let brought = connections.entry(connection).or_default();
        let may_come = log.is_open(id) || log.is_refused(id);
        if log.is_refused(id) {
            verdict.unstored.add(describe);
        } else if log.is_of_an_earlier_turn(id) && !may_come {
            // Nobody waited for these clients: on its way may be what the connection has not passed yet.
            let had = connection == 1
                && !record.was_missing(follow, id)
                && record.brought.get(&(follow, id.lane)).is_some_and(|highest| id.n <= *highest);
            let overdue = log.judged_at(id.lane).is_some_and(|at| arrival.at > at + rules.live_within);
            if had || overdue && brought.had.contains_key(&id) {
                verdict.doubled.add(|| format!("{}, long after it was due", describe()));
                continue;
            }
            if overdue {
                brought.had.insert(id, arrival.at);
                verdict.late.add(|| format!("{}, in a later turn than it was due in", describe()));
                continue;
            }
        }
        if let Some(before) = brought.had.insert(id, arrival.at) {
            if rules.limits.is_some_and(|limits| is_forgotten_between(log, id, before, arrival.at, limits)) {
                verdict.forgotten += 1;
            } else {
                verdict.doubled.add(describe);
            }
            continue;
        }
        let before = brought.note(id, log);
        // What was given up may be stored at any time.
        if id.n < before && !may_come {
            verdict.disordered.add(|| format!("{} after {before}", describe()));
        }
    }
    // What the limits remove before a failing feed is repaired cannot be had, and this protocol cannot tell.
    let mut charge = |ack: &Ack, after: u64, connection: u32| {
        if log.may_be_removed(ack, after, rules) {
            verdict.base_removed += 1;
        } else {
            let id = ack.id;
            verdict.base_missing.add(|| format!("base client {client} {identifier} {id:?} on connection {connection}"));
        }
    };
    let none = Brought::default();
    for (connection, stay) in (1_u32..).zip(&record.stays) {
        let brought = connections.get(&connection).unwrap_or(&none);
        let is_lost = |ack: &Ack| !brought.had.contains_key(&ack.id) && brought.is_due(ack, stay, rules);
        // It goes on from an earlier turn.
        let earlier = record.undelivered.iter().filter(|one| connection == 1 && one.follow == follow);
        earlier.filter(|one| is_lost(&one.ack)).for_each(|one| charge(&one.ack, one.after, connection));
        let Some(stood) = stay.stood else { continue };
        let due = log.acks.values().filter(|ack| is_for(ack, client, stood));
        due.filter(|ack| is_lost(ack)).for_each(|ack| charge(ack, 0, connection));
    }
}

fn of_follow(record: &Record, follow: usize) -> impl Iterator<Item = &Arrival> {
    record.arrivals.iter().filter(move |arrival| arrival.follow == follow && arrival.id.is_stored())
}

/// What a connection that goes on into the next turn has not brought.
#[derive(Default)]
pub(super) struct Open {
    /// All of it.
    pub missing: Vec<Id>,
    /// That of it which may be on its way.
    pub not_due: Vec<Undelivered>,
}

/// What the last connection of this turn has not brought, if the turn ended it and not the client or the server.
pub(super) fn undelivered(record: &Record, follow: usize, log: &StreamLog, rules: &Rules) -> Open {
    let mut open = Open::default();
    let Some(stay) = record.stays.last().filter(|stay| stay.by_client.is_none()) else { return open };
    let Some(stood) = stay.stood else { return open };
    let connection = u32::try_from(record.stays.len()).unwrap_or(u32::MAX);
    let mut brought = Brought::default();
    for arrival in of_follow(record, follow).filter(|arrival| arrival.connection == connection) {
        brought.note(arrival.id, log);
        brought.had.insert(arrival.id, arrival.at);
    }
    let earlier = record.undelivered.iter().filter(|one| connection == 1 && one.follow == follow);
    let earlier = earlier.map(|one| (&one.ack, one.after));
    let now = log.acks.values().filter(|ack| is_for(ack, record.follower.id, stood)).map(|ack| (ack, 0));
    for (ack, after) in earlier.chain(now).filter(|(ack, _)| !brought.had.contains_key(&ack.id)) {
        open.missing.push(ack.id);
        if !brought.is_due(ack, stay, rules) {
            let after = after.saturating_add(log.stored_since(ack.begun));
            open.not_due.push(Undelivered { follow, ack: ack.clone(), after });
        }
    }
    open
}
