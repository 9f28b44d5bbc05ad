//! One connection as the hub's streams see it, and a history request that it waits for.

use super::held::{Held, SubscriptionBudget};
use super::outbox::Outbox;
use super::sabotage::{Safeguard, off};
use crate::metrics;
use crate::protocol::{Encoding, Sid, encoding, reply};
use std::borrow::Cow;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of the longest identifier whose JSON text, which every delivery needs, is kept. That of a longer one would double
/// what it holds; it is made for each frame, into which it is copied anyway.
const KEPT_JSON: usize = 512;

/// What a subscription takes beside the bytes of its identifier, of its streams' names and of its state: its places in the
/// tables of the session, of the stream and of what is saved, and the allocator's share.
const SUBSCRIPTION: usize = 1_280;

/// An identifier of a subscription. It counts as what it holds of the process's memory, for as long as anybody has it.
#[derive(Debug)]
pub struct Identifier {
    pub text: Arc<str>,
    json: Option<Box<str>>,
    held: Held,
}

impl Identifier {
    /// `None`: subscriptions hold as much as they may.
    pub fn within(text: &Arc<str>, budget: &Arc<SubscriptionBudget>) -> Option<Arc<Self>> {
        Some(Self::holding(text.clone(), budget.take(Self::cost(text))?))
    }

    /// The same with room that is there already.
    pub fn restored(text: Arc<str>, room: &mut Held) -> Arc<Self> {
        let held = room.split(Self::cost(&text));
        Self::holding(text, held)
    }

    /// Of a budget of its own.
    #[cfg(test)]
    pub fn new(text: Arc<str>) -> Arc<Self> {
        Self::within(&text, &SubscriptionBudget::new(usize::MAX)).expect("no limit")
    }

    fn holding(text: Arc<str>, held: Held) -> Arc<Self> {
        let json = (text.len() <= KEPT_JSON).then(|| encoding::json_text(&text).into_boxed_str());
        Arc::new(Self { text, json, held })
    }

    /// Bytes that a subscription with this identifier holds, but for its streams and its state.
    pub fn cost(text: &str) -> usize {
        let json = if text.len() <= KEPT_JSON { text.len() } else { 0 };
        SUBSCRIPTION + text.len() + json
    }

    /// Its JSON text, quotes included.
    pub fn json(&self) -> Cow<'_, str> {
        match &self.json {
            Some(json) => Cow::Borrowed(json),
            None => Cow::Owned(encoding::json_text(&self.text)),
        }
    }

    /// What it counts in.
    pub fn held(&self) -> &Held {
        &self.held
    }
}

impl PartialEq for Identifier {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Identifier {}

impl Hash for Identifier {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

/// A connection that receives messages.
pub struct Receiver {
    pub outbox: Arc<Outbox>,
    /// Every sid this session had within the history's life: a message that excludes one of them is not for it.
    pub sids: Box<[Sid]>,
    /// Speaks the extended protocol: may be told of a hole with an unsolicited `reject_history`.
    pub extended: bool,
    /// `welcome` is queued: unstored messages may follow. (Stored ones are held by their cursors.)
    welcomed: AtomicBool,
}

impl Receiver {
    pub fn new(outbox: Arc<Outbox>, sids: Vec<Sid>, extended: bool) -> Arc<Self> {
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

    pub fn is_excluded(&self, sid: Option<&Sid>) -> bool {
        // The present one is first.
        let known = if off(Safeguard::EarlierSids) { &self.sids[..self.sids.len().min(1)] } else { &self.sids };
        sid.is_some_and(|sid| known.contains(sid))
    }

    /// Tells of a loss that nobody has asked about: only the extended protocol has a word for it.
    pub fn signal_loss(&self, identifier: &Identifier) {
        if self.extended {
            self.reject_history(identifier);
        }
    }

    pub fn reject_history(&self, identifier: &Identifier) {
        metrics::HISTORY_REJECTED.inc();
        self.outbox.push(reply::reject_history(self.encoding(), &identifier.json()));
    }
}

/// How a history request ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Confirm,
    Reject,
    /// The subscription is gone; nobody waits for an answer.
    Nothing,
}

/// One `history` request: confirmed when the last of its streams has caught up, rejected when one cannot.
pub struct HistoryJob {
    receiver: Arc<Receiver>,
    identifier: Arc<Identifier>,
    /// Streams still replaying.
    streams: AtomicUsize,
    answered: AtomicBool,
    /// Requests of the same subscription that this one overtook: they are answered with it.
    overtaken: Mutex<Vec<Arc<HistoryJob>>>,
}

/// Unanswered requests of one subscription; more are a client's fault and get no answer.
const MAX_OVERTAKEN: usize = 64;

impl HistoryJob {
    pub fn new(receiver: Arc<Receiver>, identifier: Arc<Identifier>, streams: usize) -> Arc<Self> {
        Arc::new(Self {
            receiver,
            identifier,
            streams: AtomicUsize::new(streams),
            answered: AtomicBool::new(false),
            overtaken: Mutex::default(),
        })
    }

    /// One stream has caught up.
    pub fn caught_up(&self) {
        if self.streams.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.confirm();
        }
    }

    /// Answers `confirm_history`, if nothing was answered yet.
    pub fn confirm(&self) {
        self.answer(Answer::Confirm);
    }

    /// A hole opened in the middle of the replay.
    pub fn reject(&self) {
        self.answer(Answer::Reject);
    }

    /// The subscription is gone.
    pub fn abandon(&self) {
        self.answer(Answer::Nothing);
    }

    /// This request starts over what `earlier` was doing.
    pub fn overtake(&self, earlier: Arc<HistoryJob>) {
        let mut overtaken = self.overtaken.lock().unwrap_or_else(PoisonError::into_inner);
        overtaken.append(&mut earlier.overtaken.lock().unwrap_or_else(PoisonError::into_inner));
        if overtaken.len() < MAX_OVERTAKEN {
            overtaken.push(earlier);
        }
    }

    fn answer(&self, answer: Answer) {
        if self.answered.swap(true, Ordering::AcqRel) {
            return;
        }
        for earlier in self.overtaken.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            earlier.answer(answer);
        }
        match answer {
            Answer::Confirm => {
                metrics::HISTORY_CONFIRMED.inc();
                let receiver = &self.receiver;
                receiver.outbox.push(reply::confirm_history(receiver.encoding(), &self.identifier.json()));
            }
            Answer::Reject => self.receiver.reject_history(&self.identifier),
            Answer::Nothing => {}
        }
    }
}
