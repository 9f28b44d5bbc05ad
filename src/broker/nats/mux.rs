//! Requests over one connection: one inbox subscription, answers told apart by the last token of their subject.
//!
//! The library's own multiplexer keeps an entry for ever when an answer never comes, and lets requests in flight wait
//! for their timeout when the connection is gone. Here both end at once.

use super::generation::Link;
use super::permissions::{Denials, subject_key};
use super::read::MAX_BATCH;
use super::slots;
use crate::nats::connect::SUBSCRIPTION_CAPACITY;
use async_nats::client::{PublishError, PublishErrorKind};
use async_nats::{Client, HeaderMap, Message};
use bytes::Bytes;
use futures_util::StreamExt;
use slab::Slab;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

/// Answers outstanding at once, those of batches with a place of their own ([`slots`]) apart; beyond it requests wait. More
/// buys no throughput (256 in flight saturate a server), and together with those batches it stays below the inbox's capacity.
const MAX_SINGLE: usize = 4096;
const _: () = assert!(MAX_SINGLE + (slots::READS + slots::HEADS) * (MAX_BATCH + 1) < SUBSCRIPTION_CAPACITY);

#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// Known not to have reached the server.
    #[error("not sent: {0}")]
    NotSent(&'static str),
    /// The client library refuses to send it, now and whenever it is tried again.
    #[error("refused by the NATS client: {0}")]
    Refused(String),
    /// It may have reached the server.
    #[error("no answer: {0}")]
    NoAnswer(&'static str),
    /// NATS refuses this node the subject. An earlier request to it may have been granted.
    #[error("{0}")]
    Denied(String),
}

impl From<PublishError> for RequestError {
    fn from(error: PublishError) -> Self {
        match error.kind() {
            PublishErrorKind::Send => Self::NotSent("connection to NATS lost"),
            PublishErrorKind::MaxPayloadExceeded | PublishErrorKind::InvalidSubject => Self::Refused(error.to_string()),
        }
    }
}

pub(super) struct Mux {
    client: Client,
    /// `_INBOX.<unique>`.
    inbox: String,
    slots: Mutex<Slots>,
    singles: Semaphore,
    denials: Arc<Denials>,
}

struct Slots {
    waiting: Slab<Slot>,
    /// Tells a late answer for a former holder of a slot from one for the present holder.
    nonce: u32,
    closed: bool,
}

struct Slot {
    nonce: u32,
    /// What was asked, see [`subject_key`].
    subject: u64,
    waiter: Waiter,
}

enum Waiter {
    One(oneshot::Sender<Message>),
    /// Bounded by what was asked for; a surplus is dropped and ends the batch as incomplete.
    Many(mpsc::Sender<Message>),
}

/// Gives the slot back when its request is over, however it ends.
struct Held<'a> {
    mux: &'a Mux,
    key: usize,
    nonce: u32,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut slots = self.mux.lock();
        if slots.waiting.get(self.key).is_some_and(|slot| slot.nonce == self.nonce) {
            slots.waiting.remove(self.key);
        }
    }
}

impl Mux {
    pub fn new(client: Client, denials: Arc<Denials>) -> Self {
        let inbox = client.new_inbox();
        Self {
            client,
            inbox,
            slots: Mutex::new(Slots { waiting: Slab::new(), nonce: 0, closed: false }),
            singles: Semaphore::new(MAX_SINGLE),
            denials,
        }
    }

    /// Answers that may be asked for now.
    #[cfg(test)]
    pub fn places(&self) -> usize {
        self.singles.available_permits()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Slots> {
        // Every critical section leaves the table consistent, also if it panics.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands answers to their waiters until the connection ends.
    pub async fn run(&self, mut answers: async_nats::Subscriber, link: &Link) {
        loop {
            let answer = tokio::select! {
                answer = answers.next() => answer,
                () = link.dead.cancelled() => None,
            };
            match answer {
                Some(message) => self.answer(message),
                None => break,
            }
        }
        link.dead.cancel();
        self.close();
    }

    /// Ends requests that NATS has refused: they get no answer. Until the connection ends.
    pub async fn end_refused(&self, link: &Link) {
        let mut changes = self.denials.changes();
        loop {
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = link.dead.cancelled() => return,
            }
            let refused = self.denials.unpublishable();
            self.lock().waiting.retain(|_, slot| !refused.contains(&slot.subject));
        }
    }

    fn unanswered(&self, subject: u64, why: &'static str) -> RequestError {
        self.denials.why_not(subject).map_or(RequestError::NoAnswer(why), RequestError::Denied)
    }

    /// What to subscribe to before [`Mux::run`].
    pub fn subject(&self) -> String {
        format!("{}.*", self.inbox)
    }

    fn close(&self) {
        let mut slots = self.lock();
        slots.closed = true;
        slots.waiting.clear();
    }

    fn answer(&self, message: Message) {
        let Some((key, nonce)) = message.subject.rsplit_once('.').and_then(|(_, token)| {
            let (key, nonce) = token.split_once('-')?;
            Some((key.parse::<usize>().ok()?, nonce.parse::<u32>().ok()?))
        }) else {
            return;
        };
        let mut slots = self.lock();
        match slots.waiting.get(key) {
            Some(Slot { nonce: held, waiter: Waiter::Many(waiter), .. }) if *held == nonce => {
                let _ = waiter.try_send(message);
            }
            Some(Slot { nonce: held, waiter: Waiter::One(_), .. }) if *held == nonce => {
                if let Waiter::One(waiter) = slots.waiting.remove(key).waiter {
                    drop(slots);
                    let _ = waiter.send(message);
                }
            }
            // A late answer: its request has given up.
            _ => {}
        }
    }

    fn register(&self, subject: u64, waiter: Waiter) -> Result<(Held<'_>, String), RequestError> {
        let mut slots = self.lock();
        if slots.closed {
            return Err(RequestError::NotSent("connection to NATS lost"));
        }
        slots.nonce = slots.nonce.wrapping_add(1);
        let nonce = slots.nonce;
        let key = slots.waiting.insert(Slot { nonce, subject, waiter });
        drop(slots);
        Ok((Held { mux: self, key, nonce }, format!("{}.{key}-{nonce}", self.inbox)))
    }

    /// One request, one answer.
    pub async fn request(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Message, RequestError> {
        let deadline = Instant::now() + timeout;
        let asked = subject_key(&subject);
        let mut handed_over = false;
        let exchange = async {
            let _permit = self.singles.acquire().await.expect("the semaphore is never closed");
            let (sender, answer) = oneshot::channel();
            let (_held, reply) = self.register(asked, Waiter::One(sender))?;
            self.client.publish_with_reply_and_headers(subject, reply, headers, payload).await?;
            handed_over = true;
            answer.await.map_err(|_| self.unanswered(asked, "connection to NATS lost"))
        };
        match timeout_at(deadline, exchange).await {
            Ok(result) => result,
            Err(_) if handed_over => Err(self.unanswered(asked, "timeout")),
            Err(_) => Err(RequestError::NotSent("timeout before sending")),
        }
    }

    /// One request, up to `most` answers, ended by one with a status (end of batch, nothing found, error) that is the
    /// last element. `pause` is the longest silence between two answers. `_place` is one for [`MAX_BATCH`] messages.
    pub async fn batch(
        &self,
        _place: &SemaphorePermit<'_>,
        subject: String,
        payload: Bytes,
        most: usize,
        pause: Duration,
    ) -> Result<(Vec<Message>, Message), RequestError> {
        self.many(subject, payload, most, pause).await
    }

    /// The same without a place, for a few answers.
    pub async fn few(
        &self,
        subject: String,
        payload: Bytes,
        most: usize,
        pause: Duration,
    ) -> Result<(Vec<Message>, Message), RequestError> {
        let permits = self.singles.acquire_many(u32::try_from(most).unwrap_or(u32::MAX));
        let Ok(permits) = timeout_at(Instant::now() + pause, permits).await else {
            return Err(RequestError::NotSent("timeout before sending"));
        };
        let _permits = permits.expect("the semaphore is never closed");
        self.many(subject, payload, most, pause).await
    }

    async fn many(
        &self,
        subject: String,
        payload: Bytes,
        most: usize,
        pause: Duration,
    ) -> Result<(Vec<Message>, Message), RequestError> {
        let asked = subject_key(&subject);
        let (sender, mut answers) = mpsc::channel(most + 1);
        let (_held, reply) = self.register(asked, Waiter::Many(sender))?;
        let send = self.client.publish_with_reply(subject, reply, payload);
        match timeout_at(Instant::now() + pause, send).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => return Err(RequestError::NotSent("timeout before sending")),
        }
        let mut messages = Vec::new();
        loop {
            match timeout_at(Instant::now() + pause, answers.recv()).await {
                Ok(Some(message)) if message.status.is_some() => return Ok((messages, message)),
                Ok(Some(message)) => messages.push(message),
                Ok(None) => return Err(self.unanswered(asked, "connection to NATS lost")),
                Err(_) => return Err(self.unanswered(asked, "timeout within a batch")),
            }
        }
    }

    /// A message without an answer.
    pub async fn publish(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<(), RequestError> {
        if self.lock().closed {
            return Err(RequestError::NotSent("connection to NATS lost"));
        }
        match timeout_at(Instant::now() + timeout, self.client.publish_with_headers(subject, headers, payload)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(RequestError::NotSent("timeout before sending")),
        }
    }
}
