//! The subscriptions of one connection on one stream.

use super::fanout::GroupId;
use super::receiver::{HistoryJob, Identifier};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// One subscription of the connection on the stream.
pub struct Member {
    pub identifier: Arc<Identifier>,
    pub group: GroupId,
    /// Everything up to here was sent or is not wanted. Not kept up to date while the cursor is live.
    pub had: u64,
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
