//! One connection as the hub's streams see it, and a history request that it waits for.

use super::outbox::Outbox;
use crate::metrics;
use crate::protocol::{Encoding, encoding, reply};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::sync::Notify;

/// An identifier and its JSON text, made once.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Identifier {
    pub text: Arc<str>,
    pub json: String,
}

impl Identifier {
    pub fn new(text: Arc<str>) -> Arc<Self> {
        Arc::new(Self { json: encoding::json_text(&text), text })
    }
}

/// A connection that receives messages.
pub struct Receiver {
    pub outbox: Arc<Outbox>,
    /// Every sid this session had within the history's life: a message that excludes one of them is not for it.
    pub sids: Box<[Arc<str>]>,
    /// Speaks the extended protocol: may be told of a hole with an unsolicited `reject_history`.
    pub extended: bool,
    /// `welcome` is queued: unstored messages may follow. (Stored ones are held by their cursors.)
    welcomed: AtomicBool,
}

impl Receiver {
    pub fn new(outbox: Arc<Outbox>, sids: Vec<Arc<str>>, extended: bool) -> Arc<Self> {
        Arc::new(Self { outbox, sids: sids.into(), extended, welcomed: AtomicBool::new(false) })
    }

    pub fn encoding(&self) -> Encoding {
        self.outbox.encoding()
    }

    pub fn set_welcomed(&self) {
        self.welcomed.store(true, Ordering::Release);
    }

    pub fn is_welcomed(&self) -> bool {
        self.welcomed.load(Ordering::Acquire)
    }

    pub fn is_excluded(&self, sid: Option<&Arc<str>>) -> bool {
        sid.is_some_and(|sid| self.sids.contains(sid))
    }

    pub fn reject_history(&self, identifier: &Identifier) {
        metrics::HISTORY_REJECTED.inc();
        self.outbox.push(reply::reject_history(self.encoding(), &identifier.json));
    }
}

/// One `history` request: confirmed when the last of its streams has caught up, rejected when one cannot.
pub struct HistoryJob {
    receiver: Arc<Receiver>,
    identifier: Arc<Identifier>,
    /// Streams still replaying.
    streams: AtomicUsize,
    answered: AtomicBool,
    done: Notify,
}

impl HistoryJob {
    pub fn new(receiver: Arc<Receiver>, identifier: Arc<Identifier>, streams: usize) -> Arc<Self> {
        let job = Self {
            receiver,
            identifier,
            streams: AtomicUsize::new(streams),
            answered: AtomicBool::new(false),
            done: Notify::new(),
        };
        Arc::new(job)
    }

    /// One stream has caught up.
    pub fn caught_up(&self) {
        if self.streams.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.confirm();
        }
    }

    /// Answers `confirm_history`, if nothing was answered yet.
    pub fn confirm(&self) {
        self.answer(|job| {
            metrics::HISTORY_CONFIRMED.inc();
            let frame: Bytes = reply::confirm_history(job.receiver.encoding(), &job.identifier.json);
            job.receiver.outbox.push(frame);
        });
    }

    /// A hole opened in the middle of the replay.
    pub fn reject(&self) {
        self.answer(|job| job.receiver.reject_history(&job.identifier));
    }

    /// The subscription is gone; nobody waits for an answer.
    pub fn abandon(&self) {
        self.answer(|_| ());
    }

    fn answer(&self, say: impl FnOnce(&Self)) {
        if !self.answered.swap(true, Ordering::AcqRel) {
            say(self);
            self.done.notify_waiters();
        }
    }

    pub fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Acquire)
    }

    /// Waits for the answer to be queued.
    pub async fn finished(&self) {
        loop {
            let notified = self.done.notified();
            if self.is_answered() {
                return;
            }
            notified.await;
        }
    }
}
