//! Where the subscriptions of a large session are stored, so that what a command costs does not depend on their number: a
//! few changed ones in the head, the others in parts that stay as they were written. The head names its parts, by revision,
//! and what has left them since. When the head has grown, its subscriptions and those of parts that are mostly gone become
//! a new part.

use super::saved::{Look, PartName, record};
use super::{Session, State, Subscription};
use bytes::Bytes;
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::sync::Arc;

/// Bytes of subscriptions that the head holds itself.
const IN_HEAD: usize = 4 * 1024;

/// Bytes of one part; a subscription that has more alone is a part of its own.
const PART: usize = 32 * 1024;

/// A part of which less is left is written anew with the next one.
const SPARSE: usize = PART / 4;

/// The parts of one session. Every subscription is either in a part as it is, or loose: the head holds it.
#[derive(Debug, Default)]
pub(super) struct Parts {
    list: Vec<Part>,
    places: HashMap<Arc<str>, Place>,
    /// With the session's version when they became it, or changed last.
    loose: HashMap<Arc<str>, u64>,
    /// The number that was given last.
    last: u64,
    /// Being written: no head names them yet.
    pending: Vec<u64>,
    /// No head will name them again.
    obsolete: Vec<u64>,
}

#[derive(Debug)]
struct Part {
    number: u64,
    revision: u64,
    /// Bytes that are stored.
    size: usize,
    /// Bytes of the subscriptions that are still there.
    left: usize,
    gone: Vec<bool>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    part: u64,
    slot: usize,
    size: usize,
}

impl Part {
    fn name(&self) -> PartName {
        let nibble = |bits: &[bool]| {
            let value = bits.iter().enumerate().fold(0, |value, (at, gone)| value | u32::from(*gone) << at);
            char::from_digit(value, 16).unwrap_or('0')
        };
        let digits: String = self.gone.chunks(4).map(nibble).collect();
        PartName { number: self.number, revision: self.revision, gone: digits.trim_end_matches('0').to_owned() }
    }
}

impl Parts {
    fn of_loose(texts: impl Iterator<Item = Arc<str>>, version: u64) -> Self {
        Self { loose: texts.map(|text| (text, version)).collect(), ..Self::default() }
    }

    /// What a part holds of this subscription is not true any more.
    fn leave(&mut self, text: &str) {
        let Some(place) = self.places.remove(text) else { return };
        let Some(at) = self.list.iter().position(|part| part.number == place.part) else { return };
        let part = &mut self.list[at];
        part.left -= place.size;
        part.gone[place.slot] = true;
        if part.left == 0 {
            self.obsolete.push(place.part);
            self.list.remove(at);
        }
    }

    pub(super) fn changed(&mut self, text: &Arc<str>, version: u64) {
        self.leave(text);
        self.loose.insert(text.clone(), version);
    }

    pub(super) fn removed(&mut self, text: &str) {
        self.leave(text);
        self.loose.remove(text);
    }

    fn names(&self) -> Vec<PartName> {
        self.list.iter().map(Part::name).collect()
    }

    fn size(&self) -> usize {
        self.list.iter().map(|part| part.size).sum()
    }

    /// They are named no more: what is left of them is loose.
    fn dissolve(&mut self, numbers: &[u64], version: u64) {
        if numbers.is_empty() {
            return;
        }
        let loose = &mut self.loose;
        self.places.retain(|text, place| {
            let stays = !numbers.contains(&place.part);
            if !stays {
                loose.insert(text.clone(), version);
            }
            stays
        });
        self.list.retain(|part| !numbers.contains(&part.number));
        self.obsolete.extend(numbers);
        // It may have become obsolete since, because nothing was left of it.
        self.obsolete.sort_unstable();
        self.obsolete.dedup();
    }

    /// More is gone than is left.
    fn is_sparse(&self) -> bool {
        let left: usize = self.list.iter().map(|part| part.left).sum();
        self.size() > 2 * left + PART
    }
}

/// How the present state of a session is to be stored. Nothing is noted of it until it is [begun](Session::begin): a plan may
/// be too large.
pub enum SavePlan {
    /// It takes the head alone.
    Head(NewHead),
    /// New parts come first.
    Split(Split),
}

impl SavePlan {
    /// Bytes of all that the session will have.
    pub fn size(&self) -> usize {
        match self {
            Self::Head(head) => head.size(),
            Self::Split(split) => split.kept + split.parts.iter().map(|part| part.body.len()).sum::<usize>(),
        }
    }
}

/// A head, and what it names.
pub struct NewHead {
    pub body: Bytes,
    /// The session's version in it.
    pub version: u64,
    /// Bytes of the parts that it names.
    named: usize,
    /// Parts of which it takes in what is left.
    dissolved: Vec<u64>,
}

impl NewHead {
    /// Bytes of it and of the parts that it names.
    pub fn size(&self) -> usize {
        self.body.len() + self.named
    }
}

/// New parts of a session: to be written, then [taken in](Session::adopt), then named by a head.
pub struct Split {
    pub parts: Vec<NewPart>,
    version: u64,
    /// They replace these.
    dissolved: Vec<u64>,
    /// Bytes of the parts that stay as they were written.
    kept: usize,
}

impl Split {
    /// Nothing of the session stays as it was written.
    pub fn is_whole(&self) -> bool {
        self.kept == 0
    }
}

pub struct NewPart {
    pub number: u64,
    pub body: Bytes,
    members: Vec<(Arc<str>, usize)>,
}

type Record = (Arc<str>, Box<RawValue>);

/// Groups what is stored of subscriptions into parts with the numbers after `last`.
fn pack(records: Vec<Record>, mut last: u64) -> Vec<NewPart> {
    let mut parts = Vec::new();
    let mut group: Vec<Record> = Vec::new();
    let mut size = 0;
    let mut finish = |group: Vec<Record>| {
        last += 1;
        let members = group.iter().map(|(text, raw)| (text.clone(), raw.get().len())).collect();
        let body: Vec<&RawValue> = group.iter().map(|(_, raw)| &**raw).collect();
        let body = Bytes::from(serde_json::to_vec(&body).expect("raw JSON is always JSON"));
        parts.push(NewPart { number: last, body, members });
    };
    for record in records {
        let more = record.1.get().len();
        if size + more > PART && !group.is_empty() {
            finish(std::mem::take(&mut group));
            size = 0;
        }
        size += more;
        group.push(record);
    }
    if !group.is_empty() {
        finish(group);
    }
    parts
}

fn raw(records: Vec<Record>) -> Vec<Box<RawValue>> {
    records.into_iter().map(|(_, raw)| raw).collect()
}

impl Session {
    fn record(&self, text: &Arc<str>, look: Look<'_>) -> Option<Record> {
        let subscription: &Subscription = self.subscriptions.get(text)?;
        Some((text.clone(), record(subscription, look)))
    }

    /// Subscriptions that the head holds.
    fn loose(&self, look: Look<'_>) -> Vec<Record> {
        let record = |text| self.record(text, look);
        match &self.parts {
            Some(parts) => parts.loose.keys().filter_map(record).collect(),
            None => self.subscriptions.keys().filter_map(record).collect(),
        }
    }

    /// Plans how to store what has changed; `all`: everything anew, with fresh proofs. `now`: Unix milliseconds. `open`: its
    /// connection goes on.
    pub fn plan(&self, look: Look<'_>, all: bool, now: u64, open: bool) -> SavePlan {
        let listed = || self.parts.iter().flat_map(|parts| &parts.list);
        let is_sparse = self.parts.as_ref().is_some_and(|parts| parts.is_sparse());
        let mut records: Vec<Record> = match all {
            true => self.subscriptions.keys().filter_map(|text| self.record(text, look)).collect(),
            false => self.loose(look),
        };
        let fits = |records: &[Record]| records.iter().map(|(_, raw)| raw.get().len()).sum::<usize>() <= IN_HEAD;
        let head = |records, dissolved: Vec<u64>| {
            let named = || listed().filter(|part| !dissolved.contains(&part.number));
            let body = self.head(raw(records), named().map(Part::name).collect(), now, open);
            let named = named().map(|part| part.size).sum();
            SavePlan::Head(NewHead { body, version: self.version, named, dissolved })
        };
        if fits(&records) && (!self.has_parts() || !all && !is_sparse) {
            return head(records, Vec::new());
        }
        let dissolved: Vec<u64> = listed().filter(|part| all || part.left < SPARSE).map(|part| part.number).collect();
        if !all && !dissolved.is_empty() {
            let places = self.parts.iter().flat_map(|parts| &parts.places);
            let held = places.filter(|(_, place)| dissolved.contains(&place.part)).map(|(text, _)| text);
            records.extend(held.filter_map(|text| self.record(text, look)));
        }
        if fits(&records) {
            // Little is left of it.
            return head(records, dissolved);
        }
        let kept = listed().filter(|part| !dissolved.contains(&part.number)).map(|part| part.size).sum();
        let parts = pack(records, self.parts.as_ref().map_or(0, |parts| parts.last));
        SavePlan::Split(Split { parts, version: self.version, dissolved, kept })
    }

    /// The plan is carried out from now on; no other one until it has ended.
    pub fn begin(&mut self, plan: &SavePlan) {
        match plan {
            SavePlan::Head(head) => {
                if let Some(parts) = &mut self.parts {
                    parts.dissolve(&head.dissolved, head.version);
                }
            }
            SavePlan::Split(split) => {
                let texts = self.subscriptions.keys().cloned();
                let parts = self.parts.get_or_insert_with(|| Box::new(Parts::of_loose(texts, split.version)));
                parts.pending = split.parts.iter().map(|part| part.number).collect();
                parts.last = parts.pending.last().copied().unwrap_or(parts.last);
            }
        }
    }

    /// New parts could not be written. Numbers of those that may be there all the same: no head will ever name them.
    pub fn abandon(&mut self) -> Vec<u64> {
        self.parts.as_mut().map(|parts| std::mem::take(&mut parts.pending)).unwrap_or_default()
    }

    /// What was stored of the session is gone, or is to go: all of it is written anew. Numbers of the parts that may be
    /// there; none of them is given again.
    pub fn scatter(&mut self) -> Vec<u64> {
        let version = self.version;
        let Some(parts) = &mut self.parts else { return Vec::new() };
        let listed: Vec<u64> = parts.list.iter().map(|part| part.number).collect();
        parts.dissolve(&listed, version);
        let pending = std::mem::take(&mut parts.pending);
        parts.obsolete.extend(pending);
        std::mem::take(&mut parts.obsolete)
    }

    /// Bytes that storing all of it takes at least, found without writing it out.
    pub fn least_size(&self) -> usize {
        let state = |state: &State| state.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
        let one = |one: &Subscription| {
            let streams: usize = one.streams.iter().map(|followed| followed.stream.as_str().len()).sum();
            one.identifier.text.len() + streams + state(&one.istate)
        };
        state(&self.cstate) + self.subscriptions.values().map(one).sum::<usize>()
    }

    /// Takes in new parts that are written, in their order with these revisions; answers with the head that names them. What
    /// has changed since they were planned stays loose.
    pub fn adopt(&mut self, split: Split, revisions: &[u64], look: Look<'_>, now: u64, open: bool) -> NewHead {
        let Split { parts: new, version, dissolved, .. } = split;
        if let Some(parts) = &mut self.parts {
            for (NewPart { number, body, members }, revision) in new.into_iter().zip(revisions) {
                let mut part =
                    Part { number, revision: *revision, size: body.len(), left: 0, gone: vec![true; members.len()] };
                for (slot, (text, size)) in members.into_iter().enumerate() {
                    let is_newer = parts.loose.get(&text).is_some_and(|changed| *changed > version);
                    if is_newer || !self.subscriptions.contains_key(&text) {
                        continue;
                    }
                    parts.loose.remove(&text);
                    parts.places.insert(text, Place { part: number, slot, size });
                    part.gone[slot] = false;
                    part.left += size;
                }
                parts.pending.retain(|pending| *pending != number);
                match part.left {
                    0 => parts.obsolete.push(number),
                    _ => parts.list.push(part),
                }
            }
            parts.dissolve(&dissolved, self.version);
        }
        let (names, named) = self.parts.as_ref().map(|parts| (parts.names(), parts.size())).unwrap_or_default();
        let body = self.head(raw(self.loose(look)), names, now, open);
        NewHead { body, version: self.version, named, dissolved: Vec::new() }
    }

    /// Some of it is in parts, which a new head does not renew.
    pub fn has_parts(&self) -> bool {
        self.parts.as_ref().is_some_and(|parts| !parts.list.is_empty())
    }

    /// Numbers of parts that the head which is stored now does not name: they can be deleted.
    pub fn take_obsolete(&mut self) -> Vec<u64> {
        self.parts.as_mut().map(|parts| std::mem::take(&mut parts.obsolete)).unwrap_or_default()
    }

    /// A subscription has come, or what is stored of it has changed.
    pub(super) fn note_changed(&mut self, text: &Arc<str>) {
        self.version += 1;
        if let Some(parts) = &mut self.parts {
            parts.changed(text, self.version);
        }
    }

    /// A subscription has left.
    pub(super) fn note_removed(&mut self, text: &str) {
        self.version += 1;
        if let Some(parts) = &mut self.parts {
            parts.removed(text);
        }
    }

    /// What is stored of a session that needs no parts.
    #[cfg(test)]
    pub(super) fn save_whole(&self, look: Look<'_>, now: u64) -> Bytes {
        match self.plan(look, true, now, true) {
            SavePlan::Head(head) => head.body,
            SavePlan::Split(_) => panic!("it is too large"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Followed, SavedSession};
    use super::*;
    use crate::hub::{Identifier, SavedProof};
    use crate::protocol::{Epoch, Position, StreamName, Subprotocol};
    use proptest::prelude::*;

    fn no_proof(_: &StreamName, _: &Identifier) -> Option<SavedProof> {
        None
    }

    /// A store of heads and parts that can refuse.
    #[derive(Default)]
    struct Store {
        head: Option<Bytes>,
        parts: HashMap<u64, (u64, Bytes)>,
        revision: u64,
        written: usize,
        writes: usize,
    }

    /// How a commit ends.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum End {
        Stored,
        /// Larger than it may be: nothing is written.
        TooLarge,
        PartRefused,
        HeadRefused,
        /// Stored without an answer.
        HeadUnknown,
    }

    impl Store {
        fn commit(&mut self, session: &mut Session, all: bool, end: End, mut meanwhile: impl FnMut(&mut Session)) {
            let plan = session.plan(&no_proof, all, 1, true);
            if end == End::TooLarge {
                return;
            }
            session.begin(&plan);
            let body = match plan {
                SavePlan::Head(head) => head.body,
                SavePlan::Split(split) => {
                    let mut revisions = Vec::new();
                    for part in &split.parts {
                        self.revision += 1;
                        self.note(part.body.len());
                        assert!(self.parts.insert(part.number, (self.revision, part.body.clone())).is_none());
                        revisions.push(self.revision);
                    }
                    meanwhile(session);
                    if end == End::PartRefused {
                        let abandoned = session.abandon();
                        return self.delete(abandoned);
                    }
                    session.adopt(split, &revisions, &no_proof, 1, true).body
                }
            };
            if end == End::HeadRefused {
                return;
            }
            self.note(body.len());
            self.head = Some(body);
            if end == End::Stored {
                let obsolete = session.take_obsolete();
                self.delete(obsolete);
            }
        }

        fn delete(&mut self, numbers: Vec<u64>) {
            for number in numbers {
                assert!(self.parts.remove(&number).is_some(), "part {number} was deleted twice, or was never there");
            }
        }

        fn note(&mut self, bytes: usize) {
            self.written += bytes;
            self.writes += 1;
        }

        /// Every part that the head names must be there, with that revision.
        fn read(&self) -> Session {
            let mut saved = SavedSession::decode(self.head.as_ref().unwrap()).unwrap();
            for name in saved.parts().to_vec() {
                let (revision, body) = &self.parts[&name.number];
                assert_eq!(*revision, name.revision);
                saved.join(&name, body).unwrap();
            }
            saved.restore("new".into(), Subprotocol::ExtJson, 0)
        }
    }

    fn text(n: u16) -> String {
        // As long as the signed name of a stream.
        format!("{{\"channel\":\"Turbo::StreamsChannel\",\"signed_stream_name\":\"{n:0>100}\"}}")
    }

    fn subscribe(session: &mut Session, n: u16, offset: u64) {
        let began = Position { epoch: Epoch::from("epoch"), offset };
        let streams = vec![Followed { stream: StreamName::from(format!("s/{n}")), began }];
        session.subscribed(&Identifier::new(text(n).into()), streams, State::new());
    }

    fn session() -> Session {
        Session::new("s".into(), "i".into(), Subprotocol::ExtJson, 0)
    }

    fn content(session: &Session) -> Vec<(String, u64, State)> {
        let one = |one: &Subscription| {
            let offset = one.streams.first().map_or(0, |followed| followed.began.offset);
            (one.identifier.text.to_string(), offset, one.istate.clone())
        };
        let mut all: Vec<_> = session.subscriptions().map(one).collect();
        all.sort();
        all
    }

    #[test]
    fn row_13_a_command_costs_the_same_in_a_session_of_any_size() {
        let mut costs = Vec::new();
        for size in [100, 1_000, 4_000] {
            let (mut session, mut store) = (session(), Store::default());
            for n in 0..size {
                subscribe(&mut session, n, 1);
                store.commit(&mut session, false, End::Stored, |_| {});
            }
            store.written = 0;
            for round in 0..500 {
                subscribe(&mut session, 10_000, round);
                store.commit(&mut session, false, End::Stored, |_| {});
                session.unsubscribe(&text(10_000));
                store.commit(&mut session, false, End::Stored, |_| {});
            }
            costs.push(store.written / 1_000);
            assert_eq!(content(&store.read()), content(&session));
        }
        assert!(costs.iter().all(|cost| *cost < 2 * 4_096 + 1_024), "{costs:?}");
        assert!(costs[2] < 3 * costs[0].max(2_048), "{costs:?}");
    }

    #[test]
    fn row_13_subscribing_one_by_one_writes_a_small_multiple_of_what_is_kept() {
        let (mut session, mut store) = (session(), Store::default());
        for n in 0..2_000 {
            subscribe(&mut session, n, 1);
            store.commit(&mut session, false, End::Stored, |_| {});
        }
        let kept: usize = store.parts.values().map(|(_, body)| body.len()).sum();
        // Each command writes the head once: what it holds itself, 4 KiB at most, and the names of the parts.
        assert!(store.written < 2_000 * (4_096 + 1_536), "{} for {kept}", store.written);
        assert_eq!(content(&store.read()).len(), 2_000);
    }

    #[test]
    fn what_was_left_by_most_of_its_subscriptions_shrinks() {
        let (mut session, mut store) = (session(), Store::default());
        (0..2_000).for_each(|n| subscribe(&mut session, n, 1));
        store.commit(&mut session, false, End::Stored, |_| {});
        for n in 0..1_990 {
            session.unsubscribe(&text(n));
            store.commit(&mut session, false, End::Stored, |_| {});
        }
        let kept: usize = store.parts.values().map(|(_, body)| body.len()).sum();
        assert!(kept <= 3 * PART, "{kept}");
        assert_eq!(content(&store.read()), content(&session));
        store.commit(&mut session, true, End::Stored, |_| {});
        assert!(store.parts.is_empty() && !session.has_parts());
        assert_eq!(content(&store.read()), content(&session));
    }

    #[test]
    fn a_session_that_is_too_large_leaves_no_trace_however_often_it_is_looked_at() {
        let (mut session, mut store) = (session(), Store::default());
        (0..1_000).for_each(|n| subscribe(&mut session, n, 1));
        assert!(session.least_size() > 100_000);
        for n in 0..50 {
            session.unsubscribe(&text(0));
            subscribe(&mut session, 0, n);
            let all = n % 2 == 0;
            assert!(session.plan(&no_proof, all, 1, true).size() > session.least_size());
            store.commit(&mut session, all, End::TooLarge, |_| {});
        }
        assert!(session.scatter().is_empty(), "nothing was ever written");
        store.commit(&mut session, false, End::Stored, |_| {});
        assert!(store.parts.len() < 20 && store.parts.keys().max() < Some(&20), "{:?}", store.parts.keys());
        assert_eq!(content(&store.read()), content(&session));
    }

    #[derive(Clone, Debug)]
    enum Op {
        Subscribe(u16),
        Unsubscribe(u16),
        Change(u16),
        Many(u16),
        Commit { all: bool, end: End, meanwhile: Vec<(bool, u16)> },
        Delete,
    }

    fn op() -> impl Strategy<Value = Op> {
        let end = prop_oneof![
            4 => Just(End::Stored), 1 => Just(End::TooLarge), 1 => Just(End::PartRefused), 1 => Just(End::HeadRefused),
            1 => Just(End::HeadUnknown)
        ];
        let meanwhile = prop::collection::vec((any::<bool>(), 0u16..300), 0..4);
        prop_oneof![
            3 => (0u16..300).prop_map(Op::Subscribe),
            3 => (0u16..300).prop_map(Op::Unsubscribe),
            2 => (0u16..300).prop_map(Op::Change),
            1 => (0u16..250).prop_map(Op::Many),
            4 => (prop::bool::weighted(0.2), end, meanwhile)
                .prop_map(|(all, end, meanwhile)| Op::Commit { all, end, meanwhile }),
            1 => Just(Op::Delete),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever was refused before: what a head names is there, and it is the session as of the last commit.
        #[test]
        fn a_head_and_its_parts_are_the_session(ops in prop::collection::vec(op(), 1..80)) {
            let (mut session, mut store) = (session(), Store::default());
            let mut offset = 0;
            for op in ops {
                offset += 1;
                match op {
                    Op::Subscribe(n) => subscribe(&mut session, n, offset),
                    Op::Unsubscribe(n) => drop(session.unsubscribe(&text(n))),
                    Op::Change(n) => {
                        session.merge_istate(&text(n), State::from([("k".into(), offset.to_string())]));
                    }
                    Op::Many(n) => (n..n + 50).for_each(|n| subscribe(&mut session, n, offset)),
                    Op::Delete => {
                        let parts = session.scatter();
                        store.head = None;
                        store.delete(parts);
                        prop_assert!(store.parts.is_empty(), "all that was there was named");
                    }
                    Op::Commit { all, end, meanwhile } => {
                        store.commit(&mut session, all, end, |session| for (add, n) in &meanwhile {
                            match add {
                                true => subscribe(session, *n, offset),
                                false => drop(session.unsubscribe(&text(*n))),
                            }
                        });
                        if matches!(end, End::Stored | End::HeadUnknown) {
                            prop_assert_eq!(content(&store.read()), content(&session));
                        } else if store.head.is_some() {
                            store.read();
                        }
                    }
                }
            }
            store.commit(&mut session, true, End::Stored, |_| {});
            prop_assert_eq!(content(&store.read()), content(&session));
            let named = SavedSession::decode(store.head.as_ref().unwrap()).unwrap().parts().len();
            prop_assert_eq!(store.parts.len(), named, "nothing is left behind");
        }
    }
}
