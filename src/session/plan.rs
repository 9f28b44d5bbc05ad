//! How what has changed of a session comes to be stored: planned, begun, written, taken in.

use super::parts::{PART, Part, Parts};
use super::saved::{Look, PartName, record};
use super::{Session, State, Subscription};
use bytes::Bytes;
use serde_json::value::RawValue;
use std::sync::Arc;

/// Bytes of subscriptions that the head holds itself.
const IN_HEAD: usize = 4 * 1024;

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
            Self::Split(split) => {
                split.kept + split.head + split.parts.iter().map(|part| part.body.len()).sum::<usize>()
            }
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
    /// Bytes of the head that names all of them, at most.
    head: usize,
}

impl Split {
    /// The session's version in it.
    pub fn version(&self) -> u64 {
        self.version
    }
}

pub struct NewPart {
    pub number: u64,
    pub body: Bytes,
    /// Its subscriptions, with the bytes of each.
    pub(super) members: Vec<(Arc<str>, usize)>,
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

fn size(records: &[Record]) -> usize {
    records.iter().map(|(_, raw)| raw.get().len()).sum()
}

/// The head can hold them itself.
fn fits(records: &[Record]) -> bool {
    size(records) <= IN_HEAD
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
            Some(parts) => parts.loose().filter_map(record).collect(),
            None => self.subscriptions.keys().filter_map(record).collect(),
        }
    }

    /// Plans how to store what has changed; `all`: everything anew, with fresh proofs. `now`: Unix milliseconds. `open`: its
    /// connection goes on.
    pub fn plan(&self, look: Look<'_>, all: bool, now: u64, open: bool) -> SavePlan {
        let is_sparse = self.parts.as_ref().is_some_and(|parts| parts.is_sparse());
        let mut records: Vec<Record> = match all {
            true => self.subscriptions.keys().filter_map(|text| self.record(text, look)).collect(),
            false => self.loose(look),
        };
        if fits(&records) && (!self.has_parts() || !all && !is_sparse) {
            return self.in_head(records, Vec::new(), now, open);
        }
        let goes = |part: &&Part| all || part.is_sparse();
        let dissolved: Vec<u64> = self.listed().filter(goes).map(|part| part.number).collect();
        if !all {
            records.extend(self.held_by(&dissolved, look));
        }
        if fits(&records) {
            // Little is left of it.
            return self.in_head(records, dissolved, now, open);
        }
        self.split(records, Vec::new(), dissolved, now, open)
    }

    /// The same for the next part that is [to be written anew](Self::note_stale), beside what has changed. That comes first
    /// where it needs a part itself.
    pub fn plan_piece(&self, look: Look<'_>, now: u64, open: bool) -> SavePlan {
        let mut loose = self.loose(look);
        let stale = self.parts.as_ref().and_then(|parts| parts.stale()).filter(|_| fits(&loose));
        let Some(stale) = stale else { return self.plan(look, false, now, open) };
        let dissolved = vec![stale.number];
        let mut held: Vec<Record> = self.held_by(&dissolved, look).collect();
        if size(&loose) + size(&held) <= IN_HEAD {
            loose.append(&mut held);
            return self.in_head(loose, dissolved, now, open);
        }
        // What the head holds stays there, so that the new part needs no more room than the one that it replaces.
        self.split(held, loose, dissolved, now, open)
    }

    fn listed(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter().flat_map(|parts| parts.list())
    }

    /// Subscriptions that are in one of these parts.
    fn held_by(&self, numbers: &[u64], look: Look<'_>) -> impl Iterator<Item = Record> {
        self.parts.iter().flat_map(|parts| parts.held_by(numbers)).filter_map(move |text| self.record(text, look))
    }

    /// The head takes in these, and what is left of parts is among them.
    fn in_head(&self, records: Vec<Record>, dissolved: Vec<u64>, now: u64, open: bool) -> SavePlan {
        let named = || self.listed().filter(|part| !dissolved.contains(&part.number));
        let body = self.head(raw(records), named().map(Part::name).collect(), now, open);
        let named = named().map(|part| part.size).sum();
        SavePlan::Head(NewHead { body, version: self.version, named, dissolved })
    }

    /// New parts take in `records`, and what is left of parts is among them.
    fn split(&self, records: Vec<Record>, in_head: Vec<Record>, dissolved: Vec<u64>, now: u64, open: bool) -> SavePlan {
        let stays = || self.listed().filter(|part| !dissolved.contains(&part.number));
        let kept = stays().map(|part| part.size).sum();
        let parts = pack(records, self.parts.as_ref().map_or(0, |parts| parts.last()));
        // Their revisions are not known yet.
        let new = |part: &NewPart| PartName { number: part.number, revision: u64::MAX, gone: String::new() };
        let names = stays().map(Part::name).chain(parts.iter().map(new)).collect();
        let head = self.head(raw(in_head), names, now, open).len();
        SavePlan::Split(Split { parts, version: self.version, dissolved, kept, head })
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
                parts.begin(&split.parts);
            }
        }
    }

    /// New parts could not be written. Numbers of those that may be there all the same: no head will ever name them.
    pub fn abandon(&mut self) -> Vec<u64> {
        self.parts.as_mut().map(|parts| parts.take_pending()).unwrap_or_default()
    }

    /// What was stored of the session is gone, or is to go: all of it is written anew. Numbers of the parts that may be
    /// there; none of them is given again.
    pub fn scatter(&mut self) -> Vec<u64> {
        self.parts.as_mut().map(|parts| parts.scatter(self.version)).unwrap_or_default()
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
            for (part, revision) in new.into_iter().zip(revisions) {
                parts.take_in(part, *revision, version, |text| self.subscriptions.contains_key(text));
            }
            parts.dissolve(&dissolved, self.version);
        }
        let (names, named) = self.parts.as_ref().map(|parts| (parts.names(), parts.size())).unwrap_or_default();
        let body = self.head(raw(self.loose(look)), names, now, open);
        NewHead { body, version: self.version, named, dissolved: Vec::new() }
    }

    /// Some of it is in parts, which a new head does not renew.
    pub fn has_parts(&self) -> bool {
        self.parts.as_ref().is_some_and(|parts| !parts.list().is_empty())
    }

    /// Numbers of parts that a head of this version, which is stored now, does not name: they can be deleted.
    pub fn take_obsolete(&mut self, version: u64) -> Vec<u64> {
        self.parts.as_mut().map(|parts| parts.take_obsolete(version)).unwrap_or_default()
    }

    /// Everything that is in parts now is to be written anew, one [piece](Self::plan_piece) after the other.
    pub fn note_stale(&mut self) {
        if let Some(parts) = &mut self.parts {
            parts.note_stale();
        }
    }

    /// Some of it is to be written anew yet.
    pub fn has_stale(&self) -> bool {
        self.parts.as_ref().is_some_and(|parts| parts.stale().is_some())
    }

    /// The head that was composed last is handed over to the store.
    pub fn note_offered(&mut self) {
        if let Some(parts) = &mut self.parts {
            parts.note_offered();
        }
    }

    /// The head that was composed last is stored, or may be.
    pub fn note_named(&mut self) {
        if let Some(parts) = &mut self.parts {
            parts.note_named();
        }
    }

    /// It was refused. Numbers of parts that no other head names: they can be deleted.
    pub fn take_unnamed(&mut self) -> Vec<u64> {
        self.parts.as_mut().map(|parts| parts.take_unnamed(self.version)).unwrap_or_default()
    }

    /// Nothing of it is written any more. Numbers of parts that no head can name, whatever became of the last one: they can
    /// be deleted.
    pub fn take_unoffered(&mut self) -> Vec<u64> {
        self.parts.as_mut().map(|parts| parts.take_unoffered(self.version)).unwrap_or_default()
    }

    /// A subscription has come, or what is stored of it has changed.
    pub(super) fn note_changed(&mut self, text: &Arc<str>) {
        self.version += 1;
        if let Some(subscription) = self.subscriptions.get_mut(text) {
            subscription.recount();
        }
        if let Some(parts) = &mut self.parts {
            parts.changed(text, self.version);
        }
    }

    /// A subscription has left.
    pub(super) fn note_removed(&mut self, text: &str) {
        self.version += 1;
        if let Some(parts) = &mut self.parts {
            parts.removed(text, self.version);
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
