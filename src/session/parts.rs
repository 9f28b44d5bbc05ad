//! Where the subscriptions of a large session are stored, so that what a command costs does not depend on their number: a
//! few changed ones in the head, the others in parts that stay as they were written. The head names its parts, by revision,
//! and what has left them since. When the head has grown, its subscriptions and those of parts that are mostly gone become
//! a new part.

use super::saved::{Look, PartName, record};
use super::{Session, Subscription};
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

    /// More is gone than is left.
    fn is_sparse(&self) -> bool {
        let left: usize = self.list.iter().map(|part| part.left).sum();
        self.size() > 2 * left + PART
    }
}

/// How the present state of a session is to be stored.
pub enum SavePlan {
    /// It takes the head alone.
    Head(Bytes),
    /// New parts come first.
    Split(Split),
}

/// New parts of a session: to be written, then [taken in](Session::adopt), then named by a head.
pub struct Split {
    pub parts: Vec<NewPart>,
    version: u64,
    /// They replace these.
    dissolved: Vec<u64>,
}

impl Split {
    /// Nothing of the session stays as it was written.
    pub fn is_whole(&self, session: &Session) -> bool {
        let mut kept = session.parts.iter().flat_map(|parts| &parts.list);
        kept.all(|part| self.dissolved.contains(&part.number))
    }

    /// Bytes of all parts that the session will have.
    pub fn size(&self, session: &Session) -> usize {
        let kept = session.parts.iter().flat_map(|parts| &parts.list);
        let kept = kept.filter(|part| !self.dissolved.contains(&part.number)).map(|part| part.size);
        kept.chain(self.parts.iter().map(|part| part.body.len())).sum()
    }
}

pub struct NewPart {
    pub number: u64,
    pub body: Bytes,
    members: Vec<(Arc<str>, usize)>,
}

type Record = (Arc<str>, Box<RawValue>);

/// Groups what is stored of subscriptions into parts.
fn pack(records: Vec<Record>, last: &mut u64) -> Vec<NewPart> {
    let mut parts = Vec::new();
    let mut group: Vec<Record> = Vec::new();
    let mut size = 0;
    let mut finish = |group: Vec<Record>| {
        *last += 1;
        let members = group.iter().map(|(text, raw)| (text.clone(), raw.get().len())).collect();
        let body: Vec<&RawValue> = group.iter().map(|(_, raw)| &**raw).collect();
        let body = Bytes::from(serde_json::to_vec(&body).expect("raw JSON is always JSON"));
        parts.push(NewPart { number: *last, body, members });
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
    pub fn plan(&mut self, look: Look<'_>, all: bool, now: u64, open: bool) -> SavePlan {
        if let Some(parts) = &mut self.parts {
            let pending = std::mem::take(&mut parts.pending);
            parts.obsolete.extend(pending);
        }
        let is_sparse = self.parts.as_ref().is_some_and(|parts| parts.is_sparse());
        let mut records: Vec<Record> = match all {
            true => self.subscriptions.keys().filter_map(|text| self.record(text, look)).collect(),
            false => self.loose(look),
        };
        let size = |records: &[Record]| records.iter().map(|(_, raw)| raw.get().len()).sum::<usize>();
        let names = self.parts.as_ref().map(|parts| parts.names()).unwrap_or_default();
        if size(&records) <= IN_HEAD && (names.is_empty() || !all && !is_sparse) {
            return SavePlan::Head(self.head(raw(records), names, now, open));
        }
        let dissolved: Vec<u64> = match &self.parts {
            Some(parts) => parts.list.iter().filter(|part| all || part.left < SPARSE).map(|part| part.number).collect(),
            None => Vec::new(),
        };
        if !all && !dissolved.is_empty() {
            let places = self.parts.iter().flat_map(|parts| &parts.places);
            let held = places.filter(|(_, place)| dissolved.contains(&place.part)).map(|(text, _)| text);
            records.extend(held.filter_map(|text| self.record(text, look)));
        }
        let (version, texts) = (self.version, self.subscriptions.keys().cloned());
        let parts = self.parts.get_or_insert_with(|| Box::new(Parts::of_loose(texts, version)));
        if size(&records) <= IN_HEAD {
            // Little is left of it.
            for (text, _) in &records {
                parts.changed(text, version);
            }
            parts.list.retain(|part| !dissolved.contains(&part.number));
            parts.obsolete.extend(dissolved);
            parts.obsolete.sort_unstable();
            parts.obsolete.dedup();
            let names = parts.names();
            return SavePlan::Head(self.head(raw(records), names, now, open));
        }
        let new = pack(records, &mut parts.last);
        parts.pending.extend(new.iter().map(|part| part.number));
        SavePlan::Split(Split { parts: new, version, dissolved })
    }

    /// Takes in new parts that are written, in their order with these revisions; answers with the head that names them. What
    /// has changed since they were planned stays loose.
    pub fn adopt(&mut self, split: Split, revisions: &[u64], look: Look<'_>, now: u64, open: bool) -> Bytes {
        let Split { parts: new, version, dissolved } = split;
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
            parts.list.retain(|part| !dissolved.contains(&part.number));
            parts.obsolete.extend(dissolved);
            parts.obsolete.sort_unstable();
            parts.obsolete.dedup();
        }
        let names = self.parts.as_ref().map(|parts| parts.names()).unwrap_or_default();
        self.head(raw(self.loose(look)), names, now, open)
    }

    /// Bytes of the parts that the head names.
    pub fn parts_size(&self) -> usize {
        self.parts.as_ref().map_or(0, |parts| parts.size())
    }

    /// Some of it is in parts, which a new head does not renew.
    pub fn has_parts(&self) -> bool {
        self.parts.as_ref().is_some_and(|parts| !parts.list.is_empty())
    }

    /// Numbers of parts that the head which is stored now does not name: they can be deleted.
    pub fn take_obsolete(&mut self) -> Vec<u64> {
        self.parts.as_mut().map(|parts| std::mem::take(&mut parts.obsolete)).unwrap_or_default()
    }

    /// Numbers of all parts that may be stored, because the session is over.
    pub fn take_parts(&mut self) -> Vec<u64> {
        let Some(parts) = self.parts.take() else { return Vec::new() };
        let listed = parts.list.iter().map(|part| part.number);
        listed.chain(parts.pending).chain(parts.obsolete).collect()
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
    pub(super) fn save_whole(&mut self, look: Look<'_>, now: u64) -> Bytes {
        match self.plan(look, true, now, true) {
            SavePlan::Head(body) => body,
            SavePlan::Split(_) => panic!("it is too large"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Followed, SavedSession, State};
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
        PartRefused,
        HeadRefused,
        /// Stored without an answer.
        HeadUnknown,
    }

    impl Store {
        fn commit(&mut self, session: &mut Session, all: bool, end: End, mut meanwhile: impl FnMut(&mut Session)) {
            let body = match session.plan(&no_proof, all, 1, true) {
                SavePlan::Head(body) => body,
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
                        return;
                    }
                    session.adopt(split, &revisions, &no_proof, 1, true)
                }
            };
            if end == End::HeadRefused {
                return;
            }
            self.note(body.len());
            self.head = Some(body);
            if end == End::Stored {
                for number in session.take_obsolete() {
                    assert!(self.parts.remove(&number).is_some(), "part {number} was deleted twice");
                }
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

    #[derive(Clone, Debug)]
    enum Op {
        Subscribe(u16),
        Unsubscribe(u16),
        Change(u16),
        Many(u16),
        Commit { all: bool, end: End, meanwhile: Vec<(bool, u16)> },
    }

    fn op() -> impl Strategy<Value = Op> {
        let end = prop_oneof![
            4 => Just(End::Stored), 1 => Just(End::PartRefused), 1 => Just(End::HeadRefused), 1 => Just(End::HeadUnknown)
        ];
        let meanwhile = prop::collection::vec((any::<bool>(), 0u16..300), 0..4);
        prop_oneof![
            3 => (0u16..300).prop_map(Op::Subscribe),
            3 => (0u16..300).prop_map(Op::Unsubscribe),
            2 => (0u16..300).prop_map(Op::Change),
            1 => (0u16..250).prop_map(Op::Many),
            4 => (prop::bool::weighted(0.2), end, meanwhile)
                .prop_map(|(all, end, meanwhile)| Op::Commit { all, end, meanwhile }),
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
