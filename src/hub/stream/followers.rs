//! Who follows a stream: attaching, catching up, and what the replay of each is sent next.

use super::{CursorId, Pump, Stream, Which};
use crate::hub::cursor::{Cursor, Start};
use crate::hub::fanout::insert_tightly;
use crate::hub::members::Had;
use crate::hub::pages::SharedPage;
use crate::hub::receiver::{HistoryJob, Identifier, Receiver};
use crate::hub::sabotage::{Safeguard, off};
use crate::protocol::Position;
use std::sync::Arc;

impl Stream {
    /// Adds an identifier to a connection's cursor (or makes the cursor), beginning after `from`. Held: nothing stored goes
    /// out until [`Self::history`], [`Self::reject`] or [`Self::release`].
    pub fn attach(
        &mut self,
        cursor: Option<CursorId>,
        receiver: &Arc<Receiver>,
        identifier: &Arc<Identifier>,
        from: &Position,
        held: bool,
    ) -> CursorId {
        let held = held && !off(Safeguard::Barrier);
        let group = self.fanout.join(identifier, receiver.encoding());
        let id = cursor.unwrap_or_else(|| insert_tightly(&mut self.cursors, Cursor::new(receiver.clone())));
        let reached = self.reached();
        let cursor = &mut self.cursors[id];
        cursor.pause(reached);
        // The log may have begun a new life since the caller opened the stream: what it has had of that life is nothing.
        let in_time = from.epoch == self.epoch;
        cursor.join(identifier, group, if in_time { reached.of(from.offset) } else { reached }, held);
        if !self.opened {
            cursor.reset();
        } else {
            if !in_time && !held {
                receiver.signal_loss(identifier);
            }
            cursor.resume_if_caught_up(self.complete_to);
        }
        id
    }

    /// Takes an identifier off a cursor. Answers whether the cursor is still there.
    pub fn detach(&mut self, id: CursorId, identifier: &str) -> bool {
        let Some(cursor) = self.cursors.get_mut(id) else { return false };
        for group in cursor.leave(identifier) {
            self.fanout.leave(group);
        }
        let cursor = &mut self.cursors[id];
        if !cursor.is_empty() {
            return true;
        }
        self.cursors.remove(id);
        false
    }

    /// The cursor's connection is gone.
    pub fn remove(&mut self, id: CursorId) {
        if let Some(mut cursor) = self.cursors.try_remove(id) {
            for group in cursor.leave_all() {
                self.fanout.leave(group);
            }
        }
    }

    /// An identifier catches up from a position that is known to be complete. The job is told when it has.
    pub fn history(&mut self, id: CursorId, identifier: &str, start: Start, job: Arc<HistoryJob>) {
        let reached = self.reached();
        let opened = self.opened;
        match self.cursors.get_mut(id) {
            Some(cursor) if opened && start.after.epoch == self.epoch => {
                cursor.pause(reached);
                cursor.begin_history(identifier, start, reached, job);
            }
            // The log began a new life since the position was proved.
            Some(cursor) => {
                job.reject();
                cursor.pause(reached);
                cursor.end_hold(identifier);
                if opened {
                    cursor.resume_if_caught_up(reached.up_to);
                }
            }
            None => job.abandon(),
        }
    }

    /// An identifier's request was refused: what was held follows.
    pub fn reject(&mut self, id: CursorId, identifier: &str) {
        let reached = self.reached();
        if let Some(cursor) = self.cursors.get_mut(id) {
            cursor.pause(reached);
            cursor.end_hold(identifier);
            if self.opened {
                cursor.resume_if_caught_up(self.complete_to);
            }
        }
    }

    /// The hold ended without a command: what was held follows without positions.
    pub fn release(&mut self, id: CursorId) {
        if let Some(cursor) = self.cursors.get_mut(id) {
            cursor.release();
            if self.opened {
                cursor.resume_if_caught_up(self.complete_to);
            }
        }
    }

    pub fn is_live(&self, id: CursorId) -> bool {
        self.cursors.get(id).is_none_or(Cursor::is_live)
    }

    /// Sends a cursor what it has not had, until its outbox holds `budget` bytes or it has caught up. `which`: a cursor that
    /// is not among those stays held.
    pub fn pump(&mut self, id: CursorId, budget: usize, which: Which) -> Pump {
        let Some(cursor) = self.cursors.get_mut(id) else { return Pump::Live };
        if cursor.is_live() {
            return Pump::Live;
        }
        if cursor.is_held() || !self.opened || (which == Which::Paced && !cursor.is_paced()) {
            return Pump::Held;
        }
        self.fanout.begin_replay(id);
        let pumped = self.catch_up(id, budget);
        self.fanout.end_replay();
        pumped
    }

    /// See [`Self::pump`].
    fn catch_up(&mut self, id: CursorId, budget: usize) -> Pump {
        let Some(cursor) = self.cursors.get_mut(id) else { return Pump::Live };
        if !cursor.send_backlog(budget, &mut self.fanout) {
            return Pump::Paced { within_page: true };
        }
        const PACED: Pump = Pump::Paced { within_page: false };
        let Some(after) = cursor.behind(self.complete_to) else {
            cursor.go_live();
            return Pump::Live;
        };
        if after.up_to < self.tail.floor() {
            if cursor.outbox().pending() >= budget {
                return PACED;
            }
            let position = Position { epoch: self.epoch.clone(), offset: after.up_to };
            return Pump::NeedPage { after: position, newest: after.newest };
        }
        let behind = self.tail.after(after.up_to);
        let wanted = behind.len();
        if cursor.replay(behind.map(|message| &**message), budget, &mut self.fanout) < wanted {
            return PACED;
        }
        cursor.advance(self.complete_to);
        cursor.go_live();
        Pump::Live
    }

    /// Hands a cursor what follows `after` from a shared page. `false`: there is none.
    pub fn supply_shared(&mut self, id: CursorId, after: u64) -> bool {
        let Some(page) = self.shared(after).cloned() else { return false };
        if let Some(cursor) = self.asking(id, after) {
            cursor.set_backlog(page, after);
        }
        true
    }

    /// The cursor, if it still needs what follows `after`. While the page was read another command may have begun to replay
    /// from further back, or the place may have gone to another connection.
    fn asking(&mut self, id: CursorId, after: u64) -> Option<&mut Cursor> {
        let complete_to = self.complete_to;
        let cursor = self.cursors.get_mut(id)?;
        let behind = cursor.behind(complete_to).is_some_and(|had| had.up_to == after);
        (behind && !cursor.is_live() && !cursor.is_held()).then_some(cursor)
    }

    /// Hands a cursor a page that follows `after`. `is_complete`: nothing is gone for good between what somebody has had and
    /// the page's first message, where that is further on.
    pub fn supply(&mut self, id: CursorId, after: u64, page: Arc<SharedPage>, is_complete: impl Fn(Had) -> bool) {
        let Some(cursor) = self.asking(id, after) else { return };
        // Of an empty page nothing is kept up to its end, and what was there may be lost.
        let first = page.messages.first().map_or(page.to.saturating_add(1), |first| first.offset);
        cursor.hole_in_replay(first, is_complete);
        cursor.set_backlog(page, after);
    }
}
