//! A page of the log on its way to a cursor that is far behind.

use super::pages::SharedPage;
use crate::protocol::Message;
use std::sync::Arc;

/// What is left of a page. Nothing of it may go to a member that has not had everything before it.
pub struct Backlog {
    page: Arc<SharedPage>,
    /// Place of the next message.
    next: usize,
    /// Everything between here and the next message has been sent, or was never there.
    from: u64,
}

impl Backlog {
    /// What a page has behind `after`, which lies within it.
    pub fn new(page: Arc<SharedPage>, after: u64) -> Self {
        Self { next: page.place_after(after), page, from: after }
    }

    /// Whoever has had everything up to `had` misses nothing if this follows.
    pub fn follows(&self, had: u64) -> bool {
        had >= self.from
    }

    pub fn messages(&self) -> &[Arc<Message>] {
        self.page.messages.get(self.next..).unwrap_or_default()
    }

    /// Whoever has had all of it has had everything up to here.
    pub fn to(&self) -> u64 {
        self.page.to
    }

    /// What remains when so many messages were sent to everybody. `None`: nothing.
    pub fn after(mut self, sent: usize) -> Option<Box<Self>> {
        let messages = self.messages();
        if sent >= messages.len() {
            return None;
        }
        if let Some(last) = messages[..sent].last() {
            self.from = last.offset;
        }
        self.next += sent;
        Some(Box::new(self))
    }
}
