//! Commands of one client that wait for their turn, bounded in number and bytes, and in bytes over all clients.

use crate::metrics::{QUEUED_COMMANDS, QUEUED_COMMANDS_FULL};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Commands of one client that may wait behind one that executes.
const MAX_QUEUED: usize = 64;

/// What a waiting command takes besides its text.
const OVERHEAD: usize = 64;

/// Bytes that wait for all clients.
#[derive(Debug)]
pub struct CommandBudget {
    used: AtomicUsize,
    limit: usize,
}

impl CommandBudget {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), limit })
    }

    fn has_room(&self) -> bool {
        self.used.load(Ordering::Relaxed) < self.limit
    }
}

/// The commands of one client. When they are too many or too large the client's socket is not read: it is slowed down.
pub struct Backlog {
    frames: VecDeque<String>,
    bytes: usize,
    /// Bytes that may wait.
    limit: usize,
    budget: Arc<CommandBudget>,
    /// Reading has stopped, which was counted.
    stopped: bool,
}

impl Backlog {
    pub fn new(limit: usize, budget: Arc<CommandBudget>) -> Self {
        Self { frames: VecDeque::new(), bytes: 0, limit, budget, stopped: false }
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Another command may be read. A client that was let in may always have one, so that everybody goes on where all
    /// clients together have used up their budget; one that was not waits until it is.
    pub fn wants_more(&mut self, let_in: bool) -> bool {
        let own = self.frames.len() < MAX_QUEUED && self.bytes < self.limit;
        let wants = own && (self.budget.has_room() || (let_in && self.frames.is_empty()));
        if self.stopped == wants {
            self.stopped = !wants;
            QUEUED_COMMANDS_FULL.add(u64::from(self.stopped));
        }
        wants
    }

    pub fn push(&mut self, frame: String) {
        self.count(frame.len() + OVERHEAD);
        self.frames.push_back(frame);
    }

    pub fn pop(&mut self) -> Option<String> {
        let frame = self.frames.pop_front()?;
        self.uncount(frame.len() + OVERHEAD);
        if self.frames.is_empty() && self.frames.capacity() > 4 {
            self.frames = VecDeque::new();
        }
        Some(frame)
    }

    fn count(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.budget.used.fetch_add(bytes, Ordering::Relaxed);
        QUEUED_COMMANDS.add(bytes as i64);
    }

    fn uncount(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
        QUEUED_COMMANDS.add(-(bytes as i64));
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        self.uncount(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_number_are_limited() {
        let budget = CommandBudget::new(1 << 20);
        let mut large = Backlog::new(1_000, budget.clone());
        for _ in 0..2 {
            assert!(large.wants_more(false));
            large.push("x".repeat(900));
        }
        assert!(!large.wants_more(true), "over its limit");
        large.pop();
        assert!(large.wants_more(false));
        let mut many = Backlog::new(1 << 20, budget.clone());
        (0..MAX_QUEUED).for_each(|_| many.push(String::new()));
        assert!(!many.wants_more(true));
        drop((large, many));
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn beyond_the_budget_of_all_only_those_who_are_let_in_go_on() {
        let budget = CommandBudget::new(1_000);
        let mut greedy = Backlog::new(1 << 20, budget.clone());
        greedy.push("x".repeat(1_000));
        let mut other = Backlog::new(1 << 20, budget);
        assert!(!other.wants_more(false) && !greedy.wants_more(true));
        assert!(other.wants_more(true));
        other.push("x".repeat(10));
        assert!(!other.wants_more(true), "one at a time");
        assert_eq!(other.pop().map(|frame| frame.len()), Some(10));
        greedy.pop();
        assert!(other.wants_more(false));
    }
}
