//! Catching up: history requests, the end of the hold, and the paced replay.

use super::client::{Client, Following};
use crate::broker::Unavailable;
use crate::hub::{From, HistoryJob, Hub, Identifier, Located, Pump, Start, Which};
use crate::metrics;
use crate::protocol::{HistoryRequest, Position, StreamName, encoding, reply};
use crate::session::{Ask, Plan};
use std::collections::{HashSet, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

/// Bytes that a replay lets wait for the client before it pauses, overhead included: of frames of some 250 bytes, which count
/// with 128 more, 64 KiB of their own. That is as many bytes as one write takes, and four times as many frames.
const REPLAY_BUDGET: usize = 96 << 10;

/// Pause before the log is asked again for a page that it could not give.
const RETRY: Duration = Duration::from_millis(50);

/// A subscription to these streams has a past: one of them is kept. (One without any stream takes the default's side.)
pub(super) fn asks_history(hub: &Hub, streams: &[StreamName]) -> bool {
    match streams {
        [] => hub.broker().features().history,
        streams => streams.iter().any(|stream| hub.keeps(stream)),
    }
}

/// A stream whose policy keeps nothing has no past that a time could name; beside streams that have one it is left out. A
/// position in it is from before the policy: what came after it is lost.
pub(super) fn is_without_past(hub: &Hub, ask: &Ask) -> bool {
    matches!(ask.from, From::Since(_)) && !hub.keeps(&ask.stream)
}

impl Client {
    /// Answers a history request, all or nothing: if the past of one of its streams cannot be proved complete, nothing is
    /// replayed.
    pub async fn history(self: &Arc<Self>, text: &str, request: &HistoryRequest) -> Result<(), Unavailable> {
        let plan = self.state().session.plan_history(text, request);
        let (identifier, asks) = match plan {
            Plan::Unknown => {
                metrics::HISTORY_REJECTED.inc();
                let json = encoding::json_text(text);
                self.outbox().push(reply::reject_history(self.receiver.encoding(), &json));
                return Ok(());
            }
            Plan::Replay(identifier, asks) => (identifier, asks),
        };
        let hub = &self.node.hub;
        let has_history = asks_history(hub, &self.streams_of(&identifier));
        let mut located = Vec::with_capacity(asks.len());
        for ask in asks {
            let Some(target) = self.following(&ask.stream, &identifier) else { continue };
            if has_history && is_without_past(hub, &ask) {
                continue;
            }
            let proof = self.state().saved_proofs.get(&ask.stream).cloned();
            let found = match hub.keeps(&ask.stream) {
                true => hub.locate(&target.cell, &ask.from, proof.as_ref()).await?,
                false => Located::Lost,
            };
            let lost = found == Located::Lost;
            located.push((ask, found));
            if lost {
                break;
            }
        }
        if !has_history && located.is_empty() && request.is_wanted() {
            self.receiver.reject_history(&identifier);
            self.let_go(&identifier, |_| true);
            return Ok(());
        }
        self.start_history(&identifier, located);
        Ok(())
    }

    /// Begins the replays of one request, or rejects it whole if one of its streams lost something.
    pub fn start_history(self: &Arc<Self>, identifier: &Arc<Identifier>, located: Vec<(Ask, Located)>) {
        if let Some((ask, _)) = located.iter().find(|(_, found)| *found == Located::Lost) {
            tracing::debug!(context = "node", stream = ?ask.stream, from = ?ask.from, "history rejected");
            self.receiver.reject_history(identifier);
            self.let_go(identifier, |_| true);
            return;
        }
        self.let_go(identifier, |stream| located.iter().all(|(ask, _)| ask.stream != *stream));
        let job = HistoryJob::new(self.receiver.clone(), identifier.clone(), located.len());
        if located.is_empty() {
            job.confirm();
        }
        for (ask, found) in located {
            match (self.following(&ask.stream, identifier), found) {
                (Some(target), Located::After(after)) => {
                    let start = Start { after, claimed: ask.claimed };
                    target.cell.lock().history(target.cursor, &identifier.text, start, job.clone());
                }
                _ => job.abandon(),
            }
        }
        self.want_replay();
    }

    /// The streams that a subscription follows.
    fn streams_of(&self, identifier: &Identifier) -> Vec<StreamName> {
        let state = self.state();
        let subscription = state.session.subscription(&identifier.text);
        subscription.map(|one| one.streams.iter().map(|f| f.stream.clone()).collect()).unwrap_or_default()
    }

    /// Streams that are not replayed for this identifier go on from where they were held.
    fn let_go(&self, identifier: &Identifier, which: impl Fn(&StreamName) -> bool) {
        for stream in self.streams_of(identifier).iter().filter(|stream| which(stream)) {
            if let Some(target) = self.following(stream, identifier) {
                target.cell.lock().reject(target.cursor, &identifier.text);
            }
        }
        self.want_replay();
    }

    /// The hold after a restore is over: what waited for a command that did not come goes out without positions.
    pub fn end_hold(&self) {
        for target in self.all_following() {
            target.cell.lock().release(target.cursor);
        }
        self.want_replay();
    }

    /// Sends cursors what they have not had, as fast as the client reads, in turns: so much as fits the budget, or a page that
    /// was read for one, and then the next cursor. Returns when all have caught up or are held.
    ///
    /// Cursors that were live and found no room go on at once. Those that catch up wait until [`Client::take_replay_due`] says
    /// that every command has been executed.
    pub async fn replay(self: &Arc<Self>) -> Result<(), Unavailable> {
        let outbox = self.outbox();
        let budget = match self.node.config.max_pending {
            0 => REPLAY_BUDGET,
            limit => REPLAY_BUDGET.min(limit / 4).max(1),
        };
        let mut which = Which::Paced;
        let mut turns: VecDeque<Following> = self.all_following().into();
        // The cursor in front has been read a page in this turn.
        let mut read = false;
        loop {
            if self.take_replay_due() {
                which = Which::All;
                turns = self.all_following().into();
                read = false;
            } else if self.take_stalled() {
                let known: HashSet<_> = turns.iter().map(Following::key).collect();
                turns.extend(self.all_following().into_iter().filter(|target| !known.contains(&target.key())));
            }
            let Some(target) = turns.front() else { return Ok(()) };
            if outbox.is_over() {
                return Ok(());
            }
            let pumped = target.cell.lock().pump(target.cursor, budget, which);
            let turn_is_over = match pumped {
                Pump::Live | Pump::Held => {
                    turns.pop_front();
                    read = false;
                    continue;
                }
                Pump::Paced { within_page } => {
                    poll_fn(|cx| outbox.poll_below(cx, budget / 2 + 1)).await;
                    !within_page
                }
                Pump::NeedPage { after, newest } if !read || turns.len() == 1 => {
                    self.fetch(target, &after, newest).await?;
                    read = true;
                    false
                }
                Pump::NeedPage { .. } => true,
            };
            if turn_is_over {
                turns.rotate_left(1);
                read = false;
            }
        }
    }

    /// Reads a page for a cursor; the store gets the broker timeout to answer.
    async fn fetch(self: &Arc<Self>, target: &Following, after: &Position, newest: u64) -> Result<(), Unavailable> {
        let hub = &self.node.hub;
        let name = target.cell.lock().name().clone();
        let saved = self.state().saved_proofs.get(&name).cloned();
        let reading = async {
            while hub.feed_page(&target.cell, target.cursor, after, newest, saved.as_ref()).await.is_err() {
                tokio::time::sleep(RETRY).await;
            }
        };
        tokio::time::timeout(self.node.config.broker_timeout, reading)
            .await
            .map_err(|_| Unavailable(hub.status().reason.to_string()))
    }
}
