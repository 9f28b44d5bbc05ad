//! What one connection has had of one stream. All its subscriptions on the stream share the cursor, because the stock
//! client keeps one position per stream: copies of a message leave back to back, and while one subscription catches
//! up the others wait.

use super::outbox::Outbox;
use super::receiver::{HistoryJob, Identifier, Receiver};
use crate::protocol::encoding::{EncodedPosition, json_text};
use crate::protocol::{Encoding, Epoch, Message, Position, StreamName};
use bytes::Bytes;
use slab::Slab;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Where a replay starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// The last position that the subscription has had. It starts nothing in another life of the log.
    pub after: Position,
    /// The position that the client itself named for this stream.
    pub claimed: Option<u64>,
}

/// One subscription of the connection on the stream.
struct Member {
    identifier: Arc<Identifier>,
    group: GroupId,
    /// Everything up to here was sent or is not wanted. Not kept up to date while the cursor is live.
    had: u64,
    /// Waits for its history command.
    held: bool,
    /// Its copies carry positions.
    positioned: bool,
    /// Released without a command: from here on its messages went out without positions.
    released_at: Option<u64>,
    /// Offsets in `(.0, .1]` went out already, without positions.
    skip: (u64, u64),
    job: Option<Arc<HistoryJob>>,
}

pub struct Cursor {
    receiver: Arc<Receiver>,
    members: Vec<Member>,
    /// Gets messages as they come.
    live: bool,
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
    page: Option<Box<Backlog>>,
}

/// Messages read for one cursor; after the last of them it has had everything up to `up_to`.
struct Backlog {
    messages: VecDeque<Arc<Message>>,
    up_to: u64,
}

impl Cursor {
    pub fn new(receiver: Arc<Receiver>) -> Self {
        Self {
            receiver,
            members: Vec::with_capacity(1),
            live: true,
            sent: 0,
            named: 0,
            claimed: None,
            lost_past: false,
            page: None,
        }
    }

    pub fn outbox(&self) -> &Outbox {
        &self.receiver.outbox
    }

    pub fn is_live(&self) -> bool {
        self.live
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub fn is_held(&self) -> bool {
        self.members.iter().any(|member| member.held)
    }

    /// Stops live delivery; every member has had everything up to `complete_to`.
    pub fn pause(&mut self, complete_to: u64) {
        if self.live {
            self.live = false;
            for member in &mut self.members {
                member.had = complete_to;
            }
        }
    }

    pub fn resume_if_caught_up(&mut self, complete_to: u64) {
        if !self.is_held() && self.behind(complete_to).is_none() {
            self.go_live();
        }
    }

    pub fn join(&mut self, identifier: &Arc<Identifier>, group: GroupId, from: u64, held: bool) {
        self.members.push(Member {
            identifier: identifier.clone(),
            group,
            had: from,
            held,
            positioned: true,
            released_at: None,
            skip: (0, 0),
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
        let members = std::mem::take(&mut self.members);
        members
            .into_iter()
            .map(|member| {
                if let Some(job) = member.job {
                    job.abandon();
                }
                member.group
            })
            .collect()
    }

    fn member(&mut self, identifier: &str) -> Option<&mut Member> {
        self.members.iter_mut().find(|member| &*member.identifier.text == identifier)
    }

    /// The member replays from `start`; the cursor must be paused.
    pub fn begin_history(&mut self, identifier: &str, start: Start, job: Arc<HistoryJob>) {
        let first_claim = self.claimed;
        self.page = None;
        if let Some(claimed) = start.claimed {
            self.named = self.named.max(claimed);
            self.claimed.get_or_insert(claimed);
        }
        let Some(member) = self.member(identifier) else {
            job.abandon();
            return;
        };
        member.held = false;
        member.had = match member.released_at.take() {
            // A late command: what went out without positions is skipped, what lies before it is replayed. A sibling
            // may have moved the client's position meanwhile; the first one it named tells what this member has had.
            Some(released_at) => {
                member.skip = (released_at, member.had);
                first_claim.map_or(start.after.offset, |claim| claim.min(start.after.offset))
            }
            None => start.after.offset,
        };
        member.positioned = true;
        if let Some(earlier) = member.job.replace(job.clone()) {
            job.overtake(earlier);
        }
    }

    /// The member's request was refused: it goes on from where it was held.
    pub fn end_hold(&mut self, identifier: &str) {
        if let Some(member) = self.member(identifier) {
            member.held = false;
            member.positioned = true;
            member.released_at = None;
        }
    }

    /// The hold ended: members without a command go on without positions.
    pub fn release(&mut self) {
        for member in self.members.iter_mut().filter(|member| member.held) {
            member.held = false;
            member.positioned = false;
            member.released_at = Some(member.had);
        }
    }

    /// The lowest offset that some member has had, if that is less than `complete_to`.
    pub fn behind(&self, complete_to: u64) -> Option<u64> {
        self.members.iter().map(|member| member.had).min().filter(|had| *had < complete_to)
    }

    /// The log began a new life: what was known is void. The loss is signalled when the stream is open again, so that the
    /// signal covers everything stored until then.
    pub fn reset(&mut self) {
        self.sent = 0;
        self.named = 0;
        self.claimed = None;
        self.page = None;
        self.live = false;
        self.lost_past = true;
        for member in &mut self.members {
            member.skip = (0, 0);
            member.released_at = None;
            member.positioned = true;
        }
    }

    /// The stream is open: everybody goes on from where it stands now. Held members are still to be asked what they have.
    pub fn opened(&mut self, complete_to: u64) {
        if std::mem::take(&mut self.lost_past) {
            self.signal_loss();
        }
        for member in &mut self.members {
            member.had = complete_to;
        }
        self.live = !self.is_held();
    }

    /// Every member has had everything up to `offset`.
    pub fn advance(&mut self, offset: u64) {
        for member in &mut self.members {
            member.had = member.had.max(offset);
        }
    }

    /// Caught up: answers the requests and lets live messages through.
    pub fn go_live(&mut self) {
        self.live = true;
        for member in &mut self.members {
            if let Some(job) = member.job.take() {
                job.caught_up();
            }
        }
    }

    /// Takes messages read from the log; [`Self::send_backlog`] sends them.
    pub fn set_backlog(&mut self, messages: VecDeque<Arc<Message>>, up_to: u64) {
        self.page = Some(Box::new(Backlog { messages, up_to }));
    }

    /// Sends what was read from the log until the outbox holds `budget` bytes. `false`: there is more.
    pub fn send_backlog(&mut self, budget: usize, fanout: &mut Fanout) -> bool {
        let Some(mut page) = self.page.take() else { return true };
        while self.outbox().pending() < budget {
            let Some(message) = page.messages.pop_front() else {
                self.advance(page.up_to);
                return true;
            };
            fanout.begin();
            self.deliver_replay(&message, fanout);
        }
        self.page = Some(page);
        false
    }

    pub fn deliver_live(&mut self, message: &Message, fanout: &mut Fanout) {
        self.deliver(message, fanout, |_| true);
    }

    /// To the members that have not had it.
    pub fn deliver_replay(&mut self, message: &Message, fanout: &mut Fanout) {
        self.deliver(message, fanout, |member| {
            let wanted = member.had < message.offset;
            member.had = member.had.max(message.offset);
            wanted && !(message.offset > member.skip.0 && message.offset <= member.skip.1)
        });
    }

    fn deliver(&mut self, message: &Message, fanout: &mut Fanout, wanted: impl Fn(&mut Member) -> bool) {
        let excluded = self.receiver.is_excluded(message.meta.exclude_socket.as_ref());
        let moves_on = message.offset > self.sent && message.offset >= self.named;
        for member in &mut self.members {
            if wanted(member) && !excluded {
                let positioned = moves_on && member.positioned;
                self.receiver.outbox.push(fanout.frame(member.group, message, positioned));
                if positioned {
                    self.sent = message.offset;
                }
            }
        }
    }

    pub fn deliver_transient(&mut self, message: &Message, fanout: &mut Fanout) {
        if self.receiver.is_welcomed() && !self.receiver.is_excluded(message.meta.exclude_socket.as_ref()) {
            for member in &self.members {
                self.receiver.outbox.push(fanout.frame(member.group, message, false));
            }
        }
    }

    /// Messages up to `resume` that the live members had been promised are gone. Held and replaying members find the
    /// hole when they get there.
    pub fn lose(&mut self, resume: u64) {
        if self.live {
            self.signal_loss();
            self.advance(resume);
        }
    }

    /// A hole opened at `after` in what the members that have come so far are being sent.
    pub fn hole_in_replay(&mut self, after: u64) {
        for member in self.members.iter_mut().filter(|member| member.had == after) {
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

pub type GroupId = usize;

/// Everybody with the same identifier and encoding gets the same bytes.
struct Group {
    identifier: Arc<Identifier>,
    encoding: Encoding,
    members: usize,
    /// The frame of the message being sent, with and without position.
    positioned: Option<Bytes>,
    plain: Option<Bytes>,
    /// Which message the frames belong to.
    round: u64,
}

/// Encodes each message once per group.
pub struct Fanout {
    stream_json: String,
    epoch_json: String,
    groups: Slab<Group>,
    lookup: HashMap<(Arc<Identifier>, Encoding), GroupId>,
    round: u64,
}

impl Fanout {
    pub fn new(stream: &StreamName, epoch: &Epoch) -> Self {
        Self {
            stream_json: json_text(stream.as_str()),
            epoch_json: json_text(epoch.as_str()),
            groups: Slab::new(),
            lookup: HashMap::new(),
            round: 0,
        }
    }

    pub fn set_epoch(&mut self, epoch: &Epoch) {
        self.epoch_json = json_text(epoch.as_str());
    }

    pub fn join(&mut self, identifier: &Arc<Identifier>, encoding: Encoding) -> GroupId {
        let groups = &mut self.groups;
        let id = *self.lookup.entry((identifier.clone(), encoding)).or_insert_with(|| {
            groups.insert(Group {
                identifier: identifier.clone(),
                encoding,
                members: 0,
                positioned: None,
                plain: None,
                round: 0,
            })
        });
        self.groups[id].members += 1;
        id
    }

    pub fn leave(&mut self, id: GroupId) {
        let group = &mut self.groups[id];
        group.members -= 1;
        if group.members == 0 {
            let group = self.groups.remove(id);
            self.lookup.remove(&(group.identifier, group.encoding));
        }
    }

    /// Frames from here on belong to another message.
    pub fn begin(&mut self) {
        self.round += 1;
    }

    fn frame(&mut self, id: GroupId, message: &Message, positioned: bool) -> Bytes {
        let group = &mut self.groups[id];
        if group.round != self.round {
            group.round = self.round;
            group.positioned = None;
            group.plain = None;
        }
        let slot = if positioned { &mut group.positioned } else { &mut group.plain };
        slot.get_or_insert_with(|| {
            let position = positioned.then_some(EncodedPosition {
                stream_json: &self.stream_json,
                epoch_json: &self.epoch_json,
                offset: message.offset,
            });
            let kind = message.meta.broadcast_type.as_deref();
            group.encoding.delivery(&group.identifier.json, kind, &message.payload, position)
        })
        .clone()
    }
}
