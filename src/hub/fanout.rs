//! One encoding of each message for all who get the same bytes.

use super::frames::Frame;
use super::herd::{Herd, Key};
use super::receiver::Identifier;
use super::stream::CursorId;
use crate::protocol::encoding::{EncodedPosition, json_text};
use crate::protocol::{Encoding, Epoch, Message, StreamName};
use slab::Slab;
use std::collections::HashMap;
use std::sync::Arc;

pub type GroupId = u32;

/// Everybody with the same identifier and encoding gets the same bytes.
struct Group {
    identifier: Arc<Identifier>,
    encoding: Encoding,
    members: usize,
    /// The frame of the message being sent, with and without position.
    positioned: Option<Frame>,
    plain: Option<Frame>,
}

/// Inserts where most streams have one entry: nearly all places are used, of one and of thousands.
pub fn insert_tightly<T>(entries: &mut Slab<T>, entry: T) -> usize {
    if entries.len() == entries.capacity() {
        entries.reserve_exact(1 + entries.len() / 4);
    }
    entries.insert(entry)
}

/// Encodes each message once per group, and keeps the frames only while the message is being sent.
pub struct Fanout {
    /// Kept as long as the stream is open, in no more room than they need.
    stream_json: Box<str>,
    epoch_json: Box<str>,
    groups: Slab<Group>,
    lookup: HashMap<(Arc<Identifier>, Encoding), GroupId>,
    /// Groups that hold a frame.
    encoded: Vec<GroupId>,
    herd: Herd,
}

impl Fanout {
    pub fn new(stream: &StreamName, epoch: &Epoch) -> Self {
        Self {
            stream_json: json_text(stream.as_str()).into(),
            epoch_json: json_text(epoch.as_str()).into(),
            groups: Slab::new(),
            lookup: HashMap::new(),
            encoded: Vec::new(),
            herd: Herd::default(),
        }
    }

    pub fn set_epoch(&mut self, epoch: &Epoch) {
        self.epoch_json = json_text(epoch.as_str()).into();
        self.herd.clear();
    }

    /// A cursor is sent what it has not had, until [`Self::end_replay`].
    pub fn begin_replay(&mut self, id: CursorId) {
        self.herd.begin(id);
    }

    pub fn end_replay(&mut self) {
        self.herd.end();
    }

    /// Lets go of what was kept for cursors that catch up together, if none has for a while. Called from time to time.
    pub fn forget_herd(&mut self) {
        self.herd.forget();
    }

    pub fn join(&mut self, identifier: &Arc<Identifier>, encoding: Encoding) -> GroupId {
        let groups = &mut self.groups;
        let id = *self.lookup.entry((identifier.clone(), encoding)).or_insert_with(|| {
            let group = Group { identifier: identifier.clone(), encoding, members: 0, positioned: None, plain: None };
            GroupId::try_from(insert_tightly(groups, group)).expect("groups are fewer than bytes of memory by far")
        });
        self.groups[id as usize].members += 1;
        id
    }

    pub fn leave(&mut self, id: GroupId) {
        let group = &mut self.groups[id as usize];
        group.members -= 1;
        if group.members == 0 {
            let group = self.groups.remove(id as usize);
            // The next group gets its number.
            self.herd.clear();
            self.lookup.remove(&(group.identifier, group.encoding));
        }
    }

    /// The message has been sent to everybody it is for now.
    pub fn end(&mut self) {
        for id in self.encoded.drain(..) {
            if let Some(group) = self.groups.get_mut(id as usize) {
                (group.positioned, group.plain) = (None, None);
            }
        }
    }

    pub fn frame(&mut self, id: GroupId, message: &Message, positioned: bool) -> Frame {
        let group = &mut self.groups[id as usize];
        if group.positioned.is_none() && group.plain.is_none() {
            self.encoded.push(id);
        }
        let slot = if positioned { &mut group.positioned } else { &mut group.plain };
        let herd = &mut self.herd;
        slot.get_or_insert_with(|| {
            let key = Key { offset: message.offset, group: id, positioned };
            if let Some(frame) = herd.get(key) {
                return frame;
            }
            let position = positioned.then_some(EncodedPosition {
                stream_json: &self.stream_json,
                epoch_json: &self.epoch_json,
                offset: message.offset,
            });
            let kind = message.meta.broadcast_type.as_deref();
            let frame = Frame::new(group.encoding.delivery(&group.identifier.json(), kind, &message.payload, position));
            herd.keep(key, &frame);
            frame
        })
        .clone()
    }
}
