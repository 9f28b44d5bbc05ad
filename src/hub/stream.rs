//! One open stream on this node: an in-memory tail of the log and everybody who follows it. Pure: no I/O, no clock.
//!
//! Its tail (snapshot) holds *every* message ever stored in `(floor, complete_to]`. Live messages enter it in order,
//! through the gap check; followers are served from it, so that replay and live meet without gap or overlap.

mod followers;
#[cfg(test)]
mod tests;

use super::cursor::Cursor;
use super::fanout::Fanout;
use super::held_back::HeldBack;
use super::members::Had;
use super::pages::{Pages, SharedPage};
use super::proof::{Proof, is_complete_after, is_younger};
use super::sabotage::{Safeguard, off};
use super::tail::{Tail, TailLimits};
use crate::broker::{Behind, Head, Logs, Looked, Overflow, StoreTime};
use crate::log_limit::{limited, shorten};
use crate::metrics;
use crate::protocol::{Epoch, Message, Position, StreamName};
use slab::Slab;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A hole in the live feed that must be fetched from the log before anything behind it is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Everything up to here is held.
    pub after: u64,
    /// The hole ends here (inclusive).
    pub up_to: u64,
}

/// Where a position stands against the tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cover {
    /// Everything after it is in the tail.
    Held,
    /// It lies before the tail: the log must be asked for what is between.
    Before,
    /// It lies beyond what this node knows of the log.
    Beyond,
}

/// What became of a pump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pump {
    /// The cursor has caught up and gets live messages from now on.
    Live,
    /// Waits for history commands or for the end of the hold.
    Held,
    /// The outbox is full enough for now. `within_page`: the cursor holds a page that was read for it.
    Paced { within_page: bool },
    /// What follows `after` must come from the log. The stream has no message in `(newest, after]`.
    NeedPage { after: Position, newest: u64 },
}

/// Which cursors are sent what they have not had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those that were live and wait for room only.
    Paced,
    /// Those that catch up, too.
    All,
}

pub type CursorId = usize;

/// A hole that is being read. What the stream holds ends before it until it is closed.
struct Repair {
    /// Its end.
    up_to: u64,
    /// Nothing that was stored before then lies behind that.
    checked: StoreTime,
}

pub struct Stream {
    name: StreamName,
    fanout: Fanout,
    /// The logs as they were when this stream last looked, and whether its own keeps anything.
    logs: Logs,
    keeps: bool,
    epoch: Epoch,
    opened: bool,
    tail: Tail,
    complete_to: u64,
    /// No message behind it and up to `complete_to`: the newest one known, or where the stream was opened.
    newest: u64,
    /// By the store's clock: nothing that was stored before then lies behind `complete_to`.
    checked: StoreTime,
    /// How far the clocks of the log's servers may differ.
    skew: Duration,
    proof: Proof,
    /// Live messages that arrived behind a hole (or before the stream was opened), ascending.
    held_back: HeldBack,
    /// Some found no place there: the log must be asked once more whether it has come further.
    left_out: bool,
    repair: Option<Repair>,
    cursors: Slab<Cursor>,
    /// What was read from the log a moment ago and did not join the tail.
    pages: Option<Box<Pages>>,
}

impl Stream {
    /// `tail_bytes`: bound of its tail; the rest of its limits are its log's.
    pub fn new(name: StreamName, logs: Logs, tail_bytes: usize) -> Self {
        let place = logs.table().place(&name);
        let epoch = logs.states()[place].epoch.clone();
        Self {
            fanout: Fanout::new(&name, &epoch),
            tail: Tail::new(tail_limits(&logs, place, tail_bytes)),
            keeps: logs.table().policies()[place].keeps(),
            name,
            logs,
            epoch,
            opened: false,
            complete_to: 0,
            newest: 0,
            checked: StoreTime::default(),
            skew: Duration::ZERO,
            proof: Proof::default(),
            held_back: HeldBack::default(),
            left_out: false,
            repair: None,
            cursors: Slab::new(),
            pages: None,
        }
    }

    pub fn name(&self) -> &StreamName {
        &self.name
    }

    /// The life of its log.
    pub fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// Its messages are stored.
    pub fn keeps(&self) -> bool {
        self.keeps
    }

    /// It has settled to these very logs.
    pub fn has_seen(&self, logs: &Logs) -> bool {
        self.logs.is(logs)
    }

    /// Takes note of the logs as they are now, before anything of it is used. Answers whether its log began a new life, or
    /// is another one: what was known of its past is void then.
    pub fn settle(&mut self, logs: &Logs) -> bool {
        if self.logs.is(logs) {
            return false;
        }
        let place = logs.table().place(&self.name);
        let epoch = &logs.states()[place].epoch;
        let changed = *epoch != self.epoch;
        self.keeps = logs.table().policies()[place].keeps();
        self.tail.set_limits(tail_limits(logs, place, self.tail.limits().bytes));
        self.logs = logs.clone();
        if changed {
            self.reset(epoch.clone());
        }
        changed
    }

    pub fn is_open(&self) -> bool {
        self.opened
    }

    pub fn has_cursors(&self) -> bool {
        !self.cursors.is_empty()
    }

    /// The newest offset that a subscription can begin from.
    pub fn complete_to(&self) -> u64 {
        self.complete_to
    }

    /// An offset of the log's present life.
    pub fn position(&self, offset: u64) -> Position {
        Position { epoch: self.epoch.clone(), offset }
    }

    /// Offset of the newest message; where none was kept at opening, what the log had reached then.
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// How far somebody has come who has had everything.
    fn reached(&self) -> Had {
        Had { up_to: self.complete_to, newest: self.newest }
    }

    pub fn proof(&self) -> Proof {
        self.proof
    }

    pub fn tail(&self) -> &Tail {
        &self.tail
    }

    pub fn tail_mut(&mut self) -> &mut Tail {
        &mut self.tail
    }

    /// The stream's head is known: at the first opening, after a reconnect, at a head check. Returns a hole that must be
    /// repaired.
    pub fn compare(&mut self, looked: &Looked, now: Instant) -> Option<Gap> {
        let Head { newest: head, up_to } = looked.head;
        let (before, after) = (&looked.look.before, &looked.look.after);
        self.skew = after.skew;
        if !self.opened {
            self.opened = true;
            self.tail.restart(if head > 0 { head } else { up_to });
            self.complete_to = up_to.max(head);
            self.checked = StoreTime::default();
            // Where nothing is kept the last message may have been any.
            self.newest = self.tail.floor();
            let reached = self.reached();
            for (_, cursor) in &mut self.cursors {
                cursor.opened(reached);
            }
        } else if let Some(repair) = &self.repair {
            // Whether it is whole behind the beginning of the hole is not known before that is closed. If the log had come
            // further than what will be known then, it is asked again.
            self.left_out |= head > repair.up_to.max(self.held_back.newest());
            return None;
        } else if head > self.complete_to {
            if off(Safeguard::GapCheck) {
                return None;
            }
            return self.hole(head, before.stored);
        } else if head == 0 && up_to > self.complete_to && !is_younger(self.checked, after.now, after.ttl, after.skew) {
            // Nothing is kept, but the last look is so old that messages may have come and gone meanwhile.
            if after.first_seq <= self.complete_to.saturating_add(1) {
                return self.hole(up_to, before.stored);
            }
            self.lose(up_to);
        }
        self.complete_to = self.complete_to.max(up_to);
        // Not the time of the look: see [`Facts::now`].
        self.note_checked(before.stored);
        self.newest = self.newest.max(head);
        let head = if self.newest <= up_to { self.newest } else { head.max(self.proof.head) };
        self.proof = Proof { head, last: up_to, revision: before.revision, time: before.stored };
        self.tail.expire(now);
        self.release_pending(now)
    }

    /// A stored message from the live feed and the offset that preceded it in the stream.
    pub fn live(&mut self, previous: u64, message: Arc<Message>, now: Instant) -> Option<Gap> {
        if !self.opened || self.repair.is_some() {
            self.hold_back(previous, message);
            return None;
        }
        if message.offset <= self.complete_to && !off(Safeguard::Dedup) {
            return None;
        }
        if self.continues(previous, &message) || off(Safeguard::GapCheck) {
            self.append(message, now);
            return None;
        }
        let up_to = message.offset - 1;
        self.hold_back(previous, message);
        self.hole(up_to, StoreTime::default())
    }

    /// What the log keeps in a hole: everything kept in `(gap.after, gap.up_to]`, and then what is behind it.
    pub fn repaired(&mut self, gap: Gap, messages: &[Arc<Message>], behind: &Behind, now: Instant) -> Option<Gap> {
        let repair = self.repair.take()?;
        self.skew = behind.facts.skew;
        if self.lacks_nothing(gap.after, behind) {
            metrics::GAPS_REPAIRED.inc();
        } else {
            let resume = messages.first().map_or(gap.up_to, |first| first.offset - 1);
            self.lose(resume);
        }
        for message in messages {
            if message.offset > self.complete_to {
                self.append(message.clone(), now);
            }
        }
        self.complete_to = self.complete_to.max(gap.up_to);
        // Of a hole in the live feed nothing is known of when its end was the end of the stream.
        self.note_checked(repair.checked);
        self.release_pending(now)
    }

    /// Nothing was removed behind `after`, where what is held ends, before `behind` was answered.
    fn lacks_nothing(&self, after: u64, behind: &Behind) -> bool {
        [self.end_proof(), self.proof].iter().any(|proof| is_complete_after(after, behind, Some(proof)))
    }

    /// A hole is being read: what the stream holds ends before it.
    pub fn has_hole(&self) -> bool {
        self.repair.is_some()
    }

    /// What is kept at and behind [`Self::newest`] tells whether everything behind what is held is still in the log. `None`:
    /// whoever answered has not come as far as the stream's hole.
    pub fn is_followed_by_all(&self, behind: &Behind) -> Option<bool> {
        let end = self.repair.as_ref().map_or(self.complete_to, |repair| repair.up_to);
        (behind.facts.last_seq >= end).then(|| self.lacks_nothing(self.complete_to, behind))
    }

    /// A message that was not stored: to everybody, at once, without a position.
    pub fn transient(&mut self, message: &Message, overflow: Overflow) {
        for (_, cursor) in &mut self.cursors {
            cursor.deliver_transient(message, overflow, &mut self.fanout);
        }
        self.fanout.end();
    }

    /// The log began a new life: what was known of its past is void.
    fn reset(&mut self, epoch: Epoch) {
        self.epoch = epoch;
        self.fanout.set_epoch(&self.epoch);
        self.tail.restart(0);
        self.opened = false;
        self.repair = None;
        self.held_back.clear();
        self.left_out = false;
        self.pages = None;
        self.complete_to = 0;
        self.newest = 0;
        self.checked = StoreTime::default();
        self.proof = Proof::default();
        for (_, cursor) in &mut self.cursors {
            cursor.reset();
        }
    }

    /// Nothing was missed between what is held and a message that follows `previous`.
    fn continues(&self, previous: u64, message: &Message) -> bool {
        // There is no offset between: so it is behind every hole that was filled, which is therefore not filled again.
        if message.offset == self.complete_to.saturating_add(1) {
            return true;
        }
        if previous > 0 {
            return previous <= self.complete_to;
        }
        // Nothing else was kept when it was stored: whatever had been stored since the last check, and before it, is too
        // young to have aged out by then.
        is_younger(self.checked, StoreTime::of_message(message.time), self.tail.ttl(), self.skew)
    }

    /// What is held is the whole stream as of the last check.
    fn end_proof(&self) -> Proof {
        Proof { head: self.complete_to, last: self.complete_to, revision: self.proof.revision, time: self.checked }
    }

    fn note_checked(&mut self, time: StoreTime) {
        if time.millis > self.checked.millis {
            self.checked = time;
        }
    }

    /// `checked`: nothing that was stored before then lies behind it.
    fn hole(&mut self, up_to: u64, checked: StoreTime) -> Option<Gap> {
        metrics::GAPS.inc();
        self.repair = Some(Repair { up_to, checked });
        Some(Gap { after: self.complete_to, up_to })
    }

    fn hold_back(&mut self, previous: u64, message: Arc<Message>) {
        if !self.held_back.push(previous, message) {
            metrics::HELD_BACK_DROPPED.inc();
            self.left_out = true;
        }
    }

    /// Messages that came live may be missing although no hole is known: some were not held back. Answers once; whoever
    /// asks compares the stream with the log.
    pub fn take_left_out(&mut self) -> bool {
        self.repair.is_none() && std::mem::take(&mut self.left_out)
    }

    /// Releases what arrived behind a hole, up to the next hole.
    fn release_pending(&mut self, now: Instant) -> Option<Gap> {
        while let Some((previous, message)) = self.held_back.front() {
            let is_new = message.offset > self.complete_to;
            if is_new && !self.continues(*previous, message) {
                let up_to = message.offset - 1;
                return self.hole(up_to, StoreTime::default());
            }
            let Some(message) = self.held_back.pop() else { break };
            if is_new {
                self.append(message, now);
            }
        }
        self.held_back.clear();
        None
    }

    /// The next message of the stream: into the tail, and out to everybody who has caught up.
    fn append(&mut self, message: Arc<Message>, now: Instant) {
        let before = self.reached();
        self.complete_to = message.offset;
        self.newest = message.offset;
        self.note_checked(StoreTime::of_message(message.time));
        let barrier_off = off(Safeguard::Barrier);
        for (_, cursor) in &mut self.cursors {
            if cursor.is_live() || barrier_off {
                cursor.deliver_live(&message, before, &mut self.fanout);
            }
        }
        self.fanout.end();
        metrics::BROADCASTS.inc();
        self.tail.append(message, now);
    }

    /// Messages up to `resume` were lost for good: tell everybody who had been promised them.
    fn lose(&mut self, resume: u64) {
        metrics::GAPS_LOST.inc();
        let stream = self.name.as_str();
        limited!(
            WARN,
            MessagesLost,
            stream = ?shorten(stream),
            after = self.complete_to,
            "messages were lost before this node could read them; clients are told"
        );
        self.tail.restart(resume);
        self.complete_to = resume;
        // Any of the lost ones may have been the newest: nothing before `resume` is known to be followed by nothing.
        self.newest = resume;
        for (_, cursor) in &mut self.cursors {
            cursor.lose();
        }
    }

    /// Where position `x` of the present epoch stands.
    pub fn cover(&self, x: u64) -> Cover {
        if x > self.complete_to {
            Cover::Beyond
        } else if x >= self.tail.floor() {
            Cover::Held
        } else {
            Cover::Before
        }
    }

    /// A page with what follows `x`, read a moment ago.
    fn shared(&self, x: u64) -> Option<&Arc<SharedPage>> {
        self.pages.as_ref()?.after(x)
    }

    /// Nothing after `x` is missing in what the tail and the shared pages hold next.
    pub fn is_served_from(&self, x: u64) -> bool {
        self.cover(x) == Cover::Held || self.shared(x).is_some()
    }

    /// The position after which everything stored at `since` (Unix seconds) or later follows. `Err`: the log must be
    /// asked for what is below this floor.
    pub fn position_at(&self, since: u64) -> Result<u64, u64> {
        let shared = |floor| self.pages.as_ref().and_then(|pages| pages.position_at(since)).ok_or(floor);
        self.tail.position_at(since).or_else(shared)
    }

    /// Keeps what was read for those who need it next: in the tail if it joins it, else for a moment.
    pub fn keep(&mut self, page: Arc<SharedPage>, now: Instant) {
        if !self.tail.prepend(page.from, page.to, &page.messages, page.since, now) {
            self.pages.get_or_insert_default().share(page, now);
        }
    }

    /// Lets go of what was read, and made, for those who caught up a while ago.
    pub fn expire_pages(&mut self, now: Instant) {
        self.fanout.forget_herd();
        if self.pages.as_mut().is_some_and(|pages| pages.expire(now)) {
            self.pages = None;
        }
    }
}

fn tail_limits(logs: &Logs, place: usize, bytes: usize) -> TailLimits {
    let state = &logs.states()[place];
    TailLimits { messages: usize::try_from(state.limit).unwrap_or(usize::MAX), bytes, ttl: state.ttl }
}
