//! The subscriptions of one connection on one stream.

use super::fanout::GroupId;
use super::receiver::{HistoryJob, Identifier};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// How far somebody has come in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Had {
    /// Everything up to here was sent or is not wanted.
    pub up_to: u64,
    /// The stream has no message in `(newest, up_to]`. Where the log has come further than the stream, no message is at
    /// `up_to`; as long as the one at `newest` is kept, nothing behind it has been dropped.
    pub newest: u64,
}

impl Had {
    /// Up to a message, or up to where nothing is known of what came before.
    pub fn at(offset: u64) -> Self {
        Self { up_to: offset, newest: offset }
    }

    /// The same for an offset of a stream that has come so far.
    pub fn of(self, offset: u64) -> Self {
        let within = (self.newest..=self.up_to).contains(&offset);
        Self { up_to: offset, newest: if within { self.newest } else { offset } }
    }

    /// The next message, unless it has been had.
    pub fn take(&mut self, offset: u64) {
        if offset > self.up_to {
            *self = Self::at(offset);
        }
    }

    /// There is no message between what has been had and `up_to`.
    pub fn advance(&mut self, up_to: u64) {
        self.up_to = self.up_to.max(up_to);
    }
}

/// One subscription of the connection on the stream.
pub struct Member {
    pub identifier: Arc<Identifier>,
    pub group: GroupId,
    /// Not kept up to date while the cursor is live.
    pub had: Had,
    /// Waits for its history command.
    pub held: bool,
    /// Its copies carry positions.
    pub positioned: bool,
    /// Of a member that was released, which few are.
    pub released: Option<Box<Released>>,
    pub job: Option<Arc<HistoryJob>>,
}

/// What became of a member whose hold ended without a command.
#[derive(Default)]
pub struct Released {
    /// From here on its messages went out without positions; `None`: a command has come.
    pub at: Option<u64>,
    /// Offsets in `(.0, .1]` went out already, without positions.
    pub skip: (u64, u64),
}

/// The members of a cursor. Most cursors have one: it lies in the cursor, because a message that goes to thousands of
/// clients costs little more than the memory that is touched for each.
pub enum Members {
    One(Member),
    Many(Vec<Member>),
}

impl Members {
    pub fn none() -> Self {
        Self::Many(Vec::new())
    }

    pub fn push(&mut self, member: Member) {
        match std::mem::replace(self, Self::none()) {
            Self::One(first) => *self = Self::Many(vec![first, member]),
            Self::Many(members) if members.is_empty() => *self = Self::One(member),
            Self::Many(mut members) => {
                members.push(member);
                *self = Self::Many(members);
            }
        }
    }

    pub fn retain_mut(&mut self, mut stays: impl FnMut(&mut Member) -> bool) {
        match self {
            Self::One(member) => {
                if !stays(member) {
                    *self = Self::none();
                }
            }
            Self::Many(members) => members.retain_mut(stays),
        }
    }
}

impl Deref for Members {
    type Target = [Member];

    fn deref(&self) -> &[Member] {
        match self {
            Self::One(member) => std::slice::from_ref(member),
            Self::Many(members) => members,
        }
    }
}

impl DerefMut for Members {
    fn deref_mut(&mut self) -> &mut [Member] {
        match self {
            Self::One(member) => std::slice::from_mut(member),
            Self::Many(members) => members,
        }
    }
}
