//! What a run waits for once publishing has ended: every acknowledged message, by its name. Counts would not do: a second
//! copy, or a message that was stored without an acknowledgement, would stand for one that is still missing.

use super::desk::Person;
use super::roster::Kind;
use super::source::{Id, Published};
use std::collections::HashMap;

/// How second copies count where two identifiers of one client share a stream.
#[derive(Clone, Copy)]
pub(super) enum Copies {
    Wanted,
    /// One per drop may be missing.
    MayBeCut,
}

/// What subscriptions miss.
pub(super) struct Awaited<'a>(Vec<Subscription<'a>>);

struct Subscription<'a> {
    person: &'a Person,
    /// Index in [`super::roster::Follower::follows`].
    follow: usize,
    missing: Vec<Id>,
    /// How much had arrived at the last look.
    arrived: u64,
}

impl<'a> Awaited<'a> {
    /// Of everything that was acknowledged. Clients of the base protocol are not waited for.
    pub fn of(published: &[Published], people: &'a [Person]) -> Self {
        // Stream ⇒ messages and who is excluded from them.
        let mut due: HashMap<&str, Vec<(Id, Option<usize>)>> = HashMap::new();
        for source in published.iter().filter(|source| source.is_stored()) {
            let ids = source.acks.iter().map(|ack| (ack.id, ack.excluded.map(|excluded| excluded.client)));
            due.entry(&source.stream).or_default().extend(ids);
        }
        let mut all = Vec::new();
        for person in people.iter().filter(|person| person.follower.kind != Kind::Base) {
            for (index, follow) in person.follower.follows.iter().enumerate() {
                let due = due.get(follow.stream.as_str()).into_iter().flatten();
                let missing = due.filter(|(_, excluded)| *excluded != Some(person.follower.id)).map(|(id, _)| *id);
                let mut one = Subscription { person, follow: index, missing: missing.collect(), arrived: 0 };
                one.person.progress.arrived[index].strike_out(&mut one.missing);
                all.push(one);
            }
        }
        Self(all)
    }

    /// Strikes out what has come since the last look.
    fn look(&mut self) {
        for one in &mut self.0 {
            let has = &one.person.progress.arrived[one.follow];
            let arrived = has.count();
            if arrived != one.arrived && !one.missing.is_empty() {
                has.strike_out(&mut one.missing);
            }
            one.arrived = arrived;
        }
    }

    /// Who still misses something.
    pub fn behind(&mut self, copies: Copies) -> Vec<String> {
        self.look();
        let is_behind = |one: &&Subscription<'_>| {
            let Person { follower, progress } = one.person;
            let excusable = match copies {
                Copies::MayBeCut => progress.excusable(follower, &follower.follows[one.follow].stream),
                Copies::Wanted => 0,
            };
            one.missing.len() as u64 > excusable
        };
        let name = |one: &Subscription<'_>| {
            let follower = &one.person.follower;
            format!("client {} on {}", follower.id, follower.follows[one.follow].stream)
        };
        self.0.iter().filter(is_behind).map(name).collect()
    }
}
