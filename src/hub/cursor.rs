//! What one connection has had of one stream. All its subscriptions on the stream share the cursor, because the stock
//! client keeps one position per stream: copies of a message leave back to back, and while one subscription catches
//! up the others wait.
//!
//! A live cursor whose outbox has no room stops being live, between two copies too: it is *paced*. What it has not had stays
//! in the stream's tail and in the log, and the connection fetches it when the client has read. No other stored message of
//! the stream comes between the copies.

use super::backlog::Backlog;
use super::fanout::{Fanout, GroupId};
use super::members::{Had, Member, Members};
use super::outbox::Outbox;
use super::pages::SharedPage;
use super::receiver::{HistoryJob, Identifier, Receiver};
use crate::broker::Overflow;
use crate::metrics;
use crate::protocol::{Message, Position};
use std::sync::Arc;

/// Where a replay starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// The last position that the subscription has had. It starts nothing in another life of the log.
    pub after: Position,
    /// The position that the client itself named for this stream.
    pub claimed: Option<u64>,
}

pub struct Cursor {
    receiver: Arc<Receiver>,
    /// The receiver's.
    outbox: Arc<Outbox>,
    members: Members,
    /// Gets messages as they come.
    live: bool,
    /// It was live and waits for nothing but room in the outbox.
    paced: bool,
    /// Some copies of the message at `sent` still wait for room: they carry its position like the first ones.
    copying: bool,
    /// The highest offset that this connection was sent with a position. What is replayed at or below it carries none, so
    /// that the client's position never moves back.
    sent: u64,
    /// The highest position that the client named itself: below it nothing carries a position either.
    named: u64,
    /// The first position that the client named on this connection.
    claimed: Option<u64>,
    /// The log began a new life and the client has not been told yet.
    lost_past: bool,
    /// What the log keeps between here and the tail, on its way to a client that is far behind.
    backlog: Option<Box<Backlog>>,
}

impl Cursor {
    pub fn new(receiver: Arc<Receiver>) -> Self {
        Self {
            outbox: receiver.outbox.clone(),
            receiver,
            members: Members::none(),
            live: true,
            paced: false,
            copying: false,
            sent: 0,
            named: 0,
            claimed: None,
            lost_past: false,
            backlog: None,
        }
    }

    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    pub fn is_live(&self) -> bool {
        self.live
    }

    /// Waits for nothing but room in the outbox.
    pub fn is_paced(&self) -> bool {
        self.paced
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub fn is_held(&self) -> bool {
        self.members.iter().any(|member| member.held)
    }

    /// Stops live delivery; every member has had as much as the stream.
    pub fn pause(&mut self, reached: Had) {
        if self.live {
            self.live = false;
            for member in &mut *self.members {
                member.had = reached;
            }
        }
    }

    pub fn resume_if_caught_up(&mut self, complete_to: u64) {
        if !self.is_held() && self.behind(complete_to).is_none() {
            self.go_live();
        }
    }

    pub fn join(&mut self, identifier: &Arc<Identifier>, group: GroupId, from: Had, held: bool) {
        self.paced = false;
        self.members.push(Member {
            identifier: identifier.clone(),
            group,
            had: from,
            held,
            positioned: true,
            released: None,
            job: None,
        });
    }

    /// Removes an identifier; answers with the groups it leaves.
    pub fn leave(&mut self, identifier: &str) -> Vec<GroupId> {
        let mut left = Vec::new();
        self.members.retain_mut(|member| {
            let stays = &*member.identifier.text != identifier;
            if !stays {
                left.push(member.group);
                if let Some(job) = member.job.take() {
                    job.abandon();
                }
            }
            stays
        });
        left
    }

    pub fn leave_all(&mut self) -> Vec<GroupId> {
        let members = std::mem::replace(&mut self.members, Members::none());
        let leave = |member: &Member| {
            if let Some(job) = &member.job {
                job.abandon();
            }
            member.group
        };
        members.iter().map(leave).collect()
    }

    fn member(&mut self, identifier: &str) -> Option<&mut Member> {
        self.members.iter_mut().find(|member| &*member.identifier.text == identifier)
    }

    /// The member replays from `start`, a position of the stream, which has come as far as `reached`; the cursor must be
    /// paused.
    pub fn begin_history(&mut self, identifier: &str, start: Start, reached: Had, job: Arc<HistoryJob>) {
        let first_claim = self.claimed;
        self.paced = false;
        self.copying = false;
        if let Some(claimed) = start.claimed {
            self.named = self.named.max(claimed);
            self.claimed.get_or_insert(claimed);
        }
        let Some(member) = self.member(identifier) else {
            job.abandon();
            return;
        };
        member.held = false;
        let released = member.released.as_mut().and_then(|released| Some((released.at.take()?, released)));
        let from = match released {
            // A late command: what went out without positions is skipped, what lies before it is replayed. A sibling
            // may have moved the client's position meanwhile; the first one it named tells what this member has had.
            Some((at, released)) => {
                released.skip = (at, member.had.up_to);
                first_claim.map_or(start.after.offset, |claim| claim.min(start.after.offset))
            }
            None => start.after.offset,
        };
        member.had = reached.of(from);
        member.positioned = true;
        if let Some(earlier) = member.job.replace(job.clone()) {
            job.overtake(earlier);
        }
    }

    /// The member's request was refused: it goes on from where it was held.
    pub fn end_hold(&mut self, identifier: &str) {
        self.paced = false;
        if let Some(member) = self.member(identifier) {
            member.held = false;
            member.positioned = true;
            if let Some(released) = &mut member.released {
                released.at = None;
            }
        }
    }

    /// The hold ended: members without a command go on without positions.
    pub fn release(&mut self) {
        self.paced = false;
        for member in self.members.iter_mut().filter(|member| member.held) {
            member.held = false;
            member.positioned = false;
            member.released.get_or_insert_default().at = Some(member.had.up_to);
        }
    }

    /// What the member that is furthest behind has had, if that is less than `complete_to`.
    pub fn behind(&self, complete_to: u64) -> Option<Had> {
        self.members.iter().map(|member| member.had).min().filter(|had| had.up_to < complete_to)
    }

    /// The log began a new life: what was known is void. The loss is signalled when the stream is open again, so that the
    /// signal covers everything stored until then.
    pub fn reset(&mut self) {
        self.sent = 0;
        self.named = 0;
        self.claimed = None;
        self.backlog = None;
        self.live = false;
        self.paced = false;
        self.copying = false;
        self.lost_past = true;
        for member in &mut *self.members {
            member.released = None;
            member.positioned = true;
        }
    }

    /// The stream is open: everybody goes on from where it stands now. Held members are still to be asked what they have.
    pub fn opened(&mut self, reached: Had) {
        if std::mem::take(&mut self.lost_past) {
            self.signal_loss();
        }
        for member in &mut *self.members {
            member.had = reached;
            // Its hold ended while the stream was not open: what it was noted at is an offset of the log's former life.
            if let Some(at) = member.released.as_mut().and_then(|released| released.at.as_mut()) {
                *at = reached.up_to;
            }
        }
        self.live = !self.is_held();
    }

    /// Every member has had everything up to `offset`: there is no message that it has not been sent.
    pub fn advance(&mut self, offset: u64) {
        for member in &mut *self.members {
            member.had.advance(offset);
        }
    }

    /// Caught up: answers the requests and lets live messages through.
    pub fn go_live(&mut self) {
        self.live = true;
        self.paced = false;
        self.backlog = None;
        for member in &mut *self.members {
            if let Some(job) = member.job.take() {
                job.caught_up();
            }
        }
    }

    /// Takes what a page has behind `after`; [`Self::send_backlog`] sends it.
    pub fn set_backlog(&mut self, page: Arc<SharedPage>, after: u64) {
        self.backlog = Some(Box::new(Backlog::new(page, after)));
    }

    /// Sends what was read from the log until the outbox holds `budget` bytes. `false`: there is more.
    ///
    /// Members come, and begin again, while a page is under way. It is dropped where it does not follow what one of them has
    /// had: what that one lacks is read first.
    pub fn send_backlog(&mut self, budget: usize, fanout: &mut Fanout) -> bool {
        let Some(backlog) = self.backlog.take() else { return true };
        if !self.members.iter().all(|member| backlog.follows(member.had.up_to)) {
            return true;
        }
        let sent = self.replay(backlog.messages().iter().map(|message| &**message), budget, fanout);
        let to = backlog.to();
        self.backlog = backlog.after(sent);
        if self.backlog.is_none() {
            self.advance(to);
        }
        self.backlog.is_none()
    }

    /// Sends messages to the members that have not had them, until the outbox holds `budget` bytes or has no room. Returns
    /// how many were sent to all of them.
    pub fn replay<'a>(
        &mut self,
        messages: impl Iterator<Item = &'a Message>,
        budget: usize,
        fanout: &mut Fanout,
    ) -> usize {
        let mut sent = 0;
        let mut waiting = self.outbox.pending();
        for message in messages {
            if waiting >= budget {
                // What the client has read meanwhile does not count.
                waiting = self.outbox.pending();
            }
            if waiting >= budget {
                break;
            }
            let queued = self.deliver_replay(message, fanout);
            fanout.end();
            let Some(bytes) = queued else { break };
            waiting += bytes;
            sent += 1;
        }
        sent
    }

    /// The next message of the stream, which had come as far as `before`, as every member has.
    pub fn deliver_live(&mut self, message: &Message, before: Had, fanout: &mut Fanout) {
        if self.receiver.is_excluded(message.meta.exclude_socket.as_ref()) {
            return;
        }
        let moves_on = self.moves_on(message);
        for at in 0..self.members.len() {
            if self.send(at, message, moves_on, fanout).is_none() {
                self.pace(at, message.offset, before);
                return;
            }
        }
    }

    /// The outbox has no room for the copy of member `at`: it and the following ones get the message later.
    #[cold]
    fn pace(&mut self, at: usize, offset: u64, before: Had) {
        if !self.live {
            return;
        }
        metrics::PACED.inc();
        self.live = false;
        self.paced = true;
        self.copying = self.sent == offset;
        for (place, member) in self.members.iter_mut().enumerate() {
            member.had = if place < at { Had::at(offset) } else { before };
        }
    }

    /// To the members that have not had it. Returns the bytes that were queued; `None`: the outbox has no room for all of
    /// their copies.
    fn deliver_replay(&mut self, message: &Message, fanout: &mut Fanout) -> Option<usize> {
        let excluded = self.receiver.is_excluded(message.meta.exclude_socket.as_ref());
        let moves_on = self.moves_on(message);
        let mut queued = 0;
        for at in 0..self.members.len() {
            let member = &self.members[at];
            let skip = member.released.as_ref().map_or((0, 0), |released| released.skip);
            let skipped = message.offset > skip.0 && message.offset <= skip.1;
            if member.had.up_to < message.offset && !skipped && !excluded {
                let Some(bytes) = self.send(at, message, moves_on, fanout) else {
                    self.copying = self.sent == message.offset;
                    return None;
                };
                queued += bytes;
            }
            self.members[at].had.take(message.offset);
        }
        self.copying = false;
        Some(queued)
    }

    /// The message's position lies behind all that the client was sent, or is that of the copies sent last.
    fn moves_on(&self, message: &Message) -> bool {
        let is_next = message.offset > self.sent || (self.copying && message.offset == self.sent);
        is_next && message.offset >= self.named
    }

    /// Queues the copy of one member and returns what it takes of the client's account. `None`: there is no room.
    fn send(&mut self, at: usize, message: &Message, moves_on: bool, fanout: &mut Fanout) -> Option<usize> {
        let member = &self.members[at];
        let positioned = moves_on && member.positioned;
        let frame = fanout.frame(member.group, message, positioned);
        let bytes = frame.cost();
        if !self.outbox.push_stored(frame) {
            return None;
        }
        if positioned {
            self.sent = message.offset;
        }
        Some(bytes)
    }

    pub fn deliver_transient(&mut self, message: &Message, overflow: Overflow, fanout: &mut Fanout) {
        if self.receiver.is_welcomed() && !self.receiver.is_excluded(message.meta.exclude_socket.as_ref()) {
            for member in &*self.members {
                self.outbox.push_unstored(fanout.frame(member.group, message, false), overflow);
            }
        }
    }

    /// Messages that the live members had been promised are gone. Held and replaying members find the hole when they get
    /// there.
    pub fn lose(&mut self) {
        if self.live {
            self.signal_loss();
        }
    }

    /// What follows begins with an offset: tells the members that have not come so far, unless nothing is missing between
    /// what they have had and it. Who was told stands right before it: what was lost is not told again.
    pub fn hole_in_replay(&mut self, first: u64, is_complete: impl Fn(Had) -> bool) {
        let missing = |member: &&mut Member| member.had.up_to < first.saturating_sub(1) && !is_complete(member.had);
        for member in self.members.iter_mut().filter(missing) {
            member.had.take(first.saturating_sub(1));
            match member.job.take() {
                Some(job) => job.reject(),
                None => self.receiver.signal_loss(&member.identifier),
            }
        }
    }

    fn signal_loss(&mut self) {
        for member in self.members.iter_mut().filter(|member| !member.held) {
            match member.job.take() {
                Some(job) => job.reject(),
                None => self.receiver.signal_loss(&member.identifier),
            }
        }
    }
}
