//! Where the subscriptions of a large session are stored, so that what a command costs does not depend on their number: a
//! few changed ones in the head, the others in parts that stay as they were written. The head names its parts, by revision,
//! and what has left them since. When the head has grown, its subscriptions and those of parts that are mostly gone become
//! a new part: see [`super::plan`].

use super::plan::NewPart;
use super::saved::PartName;
use std::collections::HashMap;
use std::sync::Arc;

/// Bytes of one part; a subscription that has more alone is a part of its own.
pub(super) const PART: usize = 32 * 1024;

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
    /// No head will name them again, with the session's version when they became it: one of an older version that is being
    /// written does. 0: none ever has.
    obsolete: Vec<(u64, u64)>,
}

#[derive(Debug)]
pub(super) struct Part {
    pub number: u64,
    revision: u64,
    /// Bytes that are stored.
    pub size: usize,
    /// Bytes of the subscriptions that are still there.
    left: usize,
    gone: Vec<bool>,
    /// A head that names it may be stored.
    named: bool,
    /// A head that names it was handed over to the store.
    offered: bool,
    /// It was written before the session began to be written anew part by part.
    stale: bool,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    part: u64,
    slot: usize,
    size: usize,
}

impl Part {
    /// Little is left of it.
    pub fn is_sparse(&self) -> bool {
        self.left < SPARSE
    }

    /// A head that names it may be stored, or may come to be.
    fn was_offered(&self) -> bool {
        self.named || self.offered
    }

    pub fn name(&self) -> PartName {
        let nibble = |bits: &[bool]| {
            let value = bits.iter().enumerate().fold(0, |value, (at, gone)| value | u32::from(*gone) << at);
            char::from_digit(value, 16).unwrap_or('0')
        };
        let digits: String = self.gone.chunks(4).map(nibble).collect();
        PartName { number: self.number, revision: self.revision, gone: digits.trim_end_matches('0').to_owned() }
    }
}

impl Parts {
    pub(super) fn of_loose(texts: impl Iterator<Item = Arc<str>>, version: u64) -> Self {
        Self { loose: texts.map(|text| (text, version)).collect(), ..Self::default() }
    }

    /// What a part holds of this subscription is not true any more.
    fn leave(&mut self, text: &str, version: u64) {
        let Some(place) = self.places.remove(text) else { return };
        let Some(at) = self.list.iter().position(|part| part.number == place.part) else { return };
        let part = &mut self.list[at];
        part.left -= place.size;
        part.gone[place.slot] = true;
        if part.left == 0 {
            let since = if part.was_offered() { version } else { 0 };
            self.obsolete.push((place.part, since));
            self.list.remove(at);
        }
    }

    pub(super) fn changed(&mut self, text: &Arc<str>, version: u64) {
        self.leave(text, version);
        self.loose.insert(text.clone(), version);
    }

    pub(super) fn removed(&mut self, text: &str, version: u64) {
        self.leave(text, version);
        self.loose.remove(text);
    }

    /// Those that are stored.
    pub(super) fn list(&self) -> &[Part] {
        &self.list
    }

    /// Subscriptions that are in no part.
    pub(super) fn loose(&self) -> impl Iterator<Item = &Arc<str>> {
        self.loose.keys()
    }

    /// Subscriptions that are in one of these.
    pub(super) fn held_by(&self, numbers: &[u64]) -> impl Iterator<Item = &Arc<str>> {
        self.places.iter().filter(|(_, place)| numbers.contains(&place.part)).map(|(text, _)| text)
    }

    /// The number that was given last.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    pub(super) fn names(&self) -> Vec<PartName> {
        self.list.iter().map(Part::name).collect()
    }

    /// Bytes that are stored.
    pub(super) fn size(&self) -> usize {
        self.list.iter().map(|part| part.size).sum()
    }

    /// New ones are being written.
    pub(super) fn begin(&mut self, new: &[NewPart]) {
        self.pending = new.iter().map(|part| part.number).collect();
        self.last = self.pending.last().copied().unwrap_or(self.last);
    }

    /// Numbers of those that were being written, and are not any more.
    pub(super) fn take_pending(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.pending)
    }

    /// Numbers of those that a head of this version, which is stored now, does not name.
    pub(super) fn take_obsolete(&mut self, version: u64) -> Vec<u64> {
        self.obsolete.extract_if(.., |(_, since)| *since <= version).map(|(number, _)| number).collect()
    }

    /// From now on they are written anew one by one.
    pub(super) fn note_stale(&mut self) {
        self.list.iter_mut().for_each(|part| part.stale = true);
    }

    /// The next one that is to be written anew.
    pub(super) fn stale(&self) -> Option<&Part> {
        self.list.iter().find(|part| part.stale)
    }

    /// A head that names all of them is handed over.
    pub(super) fn note_offered(&mut self) {
        self.list.iter_mut().for_each(|part| part.offered = true);
    }

    /// A head that names all of them may be stored.
    pub(super) fn note_named(&mut self) {
        self.list.iter_mut().for_each(|part| part.named = true);
    }

    /// The head that was to name them was refused: numbers of those that no other one names. What they hold is loose.
    pub(super) fn take_unnamed(&mut self, version: u64) -> Vec<u64> {
        self.take(|part| !part.named, version)
    }

    /// The same of those that no head has named that the store has seen.
    pub(super) fn take_unoffered(&mut self, version: u64) -> Vec<u64> {
        let unoffered = self.take(|part| !part.was_offered(), version);
        unoffered.into_iter().chain(self.take_obsolete(0)).chain(self.take_pending()).collect()
    }

    fn take(&mut self, which: impl Fn(&Part) -> bool, version: u64) -> Vec<u64> {
        let taken: Vec<u64> = self.list.iter().filter(|part| which(part)).map(|part| part.number).collect();
        self.loosen(&taken, version);
        taken
    }

    /// A new one is written. What has changed since `version`, when it was planned, stays loose, and what `is_there` does
    /// not know is gone.
    pub(super) fn take_in(&mut self, new: NewPart, revision: u64, version: u64, is_there: impl Fn(&str) -> bool) {
        let NewPart { number, body, members } = new;
        let gone = vec![true; members.len()];
        let size = body.len();
        let mut part = Part { number, revision, size, left: 0, gone, named: false, offered: false, stale: false };
        for (slot, (text, size)) in members.into_iter().enumerate() {
            let is_newer = self.loose.get(&text).is_some_and(|changed| *changed > version);
            if is_newer || !is_there(&text) {
                continue;
            }
            self.loose.remove(&text);
            self.places.insert(text, Place { part: number, slot, size });
            part.gone[slot] = false;
            part.left += size;
        }
        self.pending.retain(|pending| *pending != number);
        match part.left {
            // No head has ever named it.
            0 => self.obsolete.push((number, 0)),
            _ => self.list.push(part),
        }
    }

    /// None is named any more. Numbers of all that may be there.
    pub(super) fn scatter(&mut self, version: u64) -> Vec<u64> {
        let listed: Vec<u64> = self.list.iter().map(|part| part.number).collect();
        self.dissolve(&listed, version);
        let obsolete = std::mem::take(&mut self.obsolete).into_iter().map(|(number, _)| number);
        obsolete.chain(std::mem::take(&mut self.pending)).collect()
    }

    /// They are named no more: what is left of them is loose.
    pub(super) fn dissolve(&mut self, numbers: &[u64], version: u64) {
        let unoffered: Vec<u64> = self.list.iter().filter(|part| !part.was_offered()).map(|part| part.number).collect();
        let since = |number| if unoffered.contains(number) { 0 } else { version };
        self.loosen(numbers, version);
        self.obsolete.extend(numbers.iter().map(|number| (*number, since(number))));
        // It may have become obsolete since, because nothing was left of it.
        self.obsolete.sort_unstable();
        self.obsolete.dedup_by_key(|(number, _)| *number);
    }

    fn loosen(&mut self, numbers: &[u64], version: u64) {
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
    }

    /// More is gone than is left.
    pub(super) fn is_sparse(&self) -> bool {
        let left: usize = self.list.iter().map(|part| part.left).sum();
        self.size() > 2 * left + PART
    }
}

#[cfg(test)]
mod tests;
