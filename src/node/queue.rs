//! Commands that have come and are not executed yet: bounded in number, bytes and rate. Beyond either the connection is not
//! read: the client is slowed down, nobody is closed.

use super::backlog::Backlog;
use super::client::Client;
use super::drive::Work;
use super::joined::Joined;
use super::{Node, NodeConfig};
use crate::broker::Unavailable;
use crate::metrics;
use crate::protocol::Command;
use crate::session::{CommandRate, Timers};
use std::sync::Arc;
use tokio::time::Instant;

/// A handle: it is moved from one future to the next, and each of them has room for it as long as it lives.
pub(super) struct Commands(Box<Waiting>);

struct Waiting {
    frames: Backlog,
    /// Decoded, and next after those that execute now.
    ahead: Option<Command>,
    rate: CommandRate,
    /// Too many came: the connection is not read before then.
    paced: Option<Instant>,
}

/// Commands that may come at once: a page that comes back anew subscribes to everything and asks for its history.
fn burst(config: &NodeConfig) -> u32 {
    u32::try_from(2 * config.subscriptions.number + 100).unwrap_or(u32::MAX)
}

impl Commands {
    pub fn new(node: &Node) -> Self {
        let rate = CommandRate::new(node.config.max_commands_rate, burst(&node.config), Instant::now());
        let frames = Backlog::new(node.config.max_queued, node.queued.clone());
        Self(Box::new(Waiting { frames, ahead: None, rate, paced: None }))
    }

    pub fn push(&mut self, frame: String) {
        let now = Instant::now();
        if self.0.rate.take(now) {
            metrics::COMMANDS_PACED.inc();
            self.0.paced = self.0.rate.wait_until(now);
        }
        self.0.frames.push(frame);
    }

    pub fn is_empty(&self) -> bool {
        self.0.frames.is_empty() && self.0.ahead.is_none()
    }

    /// The connection may be read now. `let_in`: see [`Backlog::wants_more`].
    pub fn has_room(&mut self, let_in: bool) -> bool {
        self.paced_until().is_none() && self.0.frames.wants_more(let_in)
    }

    /// Too many came: the connection is not read before then.
    pub fn paced_until(&mut self) -> Option<Instant> {
        // Asked each time that a connection does anything: the clock only where it matters.
        if self.0.paced.is_some_and(|until| until <= Instant::now()) {
            self.0.paced = None;
        }
        self.0.paced
    }

    /// The next command, pongs and faulty frames left out.
    fn next(&mut self, client: &Client, timers: &mut Timers) -> Option<Command> {
        if let Some(command) = self.0.ahead.take() {
            return Some(command);
        }
        while let Some(frame) = self.0.frames.pop() {
            let Some(command) = client.decode(&frame) else { continue };
            timers.on_command();
            // Who may have been disconnected remotely does nothing any more.
            if command != Command::Pong && client.handle.suspended_since().is_none() {
                return Some(command);
            }
        }
        None
    }

    /// Takes what is to be executed next: one command, or as many neighbours as may share a commit. Those have different
    /// identifiers, so that their order among each other does not matter, and their answers fit into `room`.
    pub fn start(
        &mut self,
        client: &Arc<Client>,
        timers: &mut Timers,
        mut room: usize,
    ) -> Option<Work<Result<(), Unavailable>>> {
        let mut joined: Vec<Joined> = Vec::new();
        while room > 0
            && let Some(command) = self.next(client, timers)
        {
            match client.joined(command) {
                Ok(next) if joined.iter().all(|one| one.identifier() != next.identifier()) => {
                    room = room.saturating_sub(next.answers());
                    joined.push(next);
                }
                Ok(next) => {
                    self.0.ahead = Some(next.into());
                    break;
                }
                Err(command) if joined.is_empty() => {
                    let client = client.clone();
                    return Some(Box::pin(async move { client.execute(command).await }));
                }
                Err(command) => {
                    self.0.ahead = Some(command);
                    break;
                }
            }
        }
        if joined.is_empty() {
            return None;
        }
        let client = client.clone();
        Some(Box::pin(async move { client.execute_joined(joined).await }))
    }
}
