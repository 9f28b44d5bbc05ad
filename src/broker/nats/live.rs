//! The live feed: which streams this node hears, and what each message means.
//!
//! One core subscription per open stream. A few feeder tasks own them all: a task for each of 100,000 streams would
//! cost more memory than the subscriptions themselves.

use super::config::Names;
use super::generation::{Connection, Generation};
use super::logs::Log;
use super::owed::{Owed, Round};
use super::token::Token;
use super::{Core, headers};
use crate::broker::{Feed, Looked, Overflow};
use crate::protocol::StreamName;
use async_nats::header::{NATS_LAST_SEQUENCE, NATS_SEQUENCE, NATS_STREAM};
use async_nats::{Message, Subscriber};
use futures_util::future::FutureExt;
use futures_util::stream::{AbortHandle, Abortable, SelectAll, Stream, StreamExt};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Feeder tasks. A stream always has the same one, so that its order holds across closing and opening again.
const FEEDERS: usize = 4;
/// Subscriptions on their way to a feeder; opening waits when it is full.
const HANDOVER: usize = 256;
/// Messages handed on before a feeder looks for new subscriptions.
const CHUNK: usize = 128;

/// The streams open on one connection.
pub(super) struct LiveSet {
    open: Mutex<HashMap<StreamName, Opened>>,
    /// By place of the policy.
    rounds: Mutex<HashMap<usize, Round>>,
    /// Held while subscribing: a second opener of a stream must not go on before its subscription is sent.
    opening: tokio::sync::Mutex<()>,
    feeders: Vec<mpsc::Sender<LiveStream>>,
}

struct Opened {
    /// Of its subscription, and of one per peer cluster. None while they are being made.
    subscriptions: Subscriptions,
    /// Place of its policy.
    place: usize,
    owed: Owed,
}

/// Ends its subscriptions when it is dropped, so that none is without an owner.
#[derive(Default)]
struct Subscriptions(Vec<AbortHandle>);

impl Drop for Subscriptions {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

/// A stream that is being subscribed. It stands in the set from the start, so that closing it meanwhile is seen, and leaves
/// it if it is not subscribed in the end.
struct Subscribing<'a> {
    set: &'a LiveSet,
    stream: &'a StreamName,
    subscriptions: Subscriptions,
    /// Offset of the newest message that came live.
    heard: Arc<AtomicU64>,
    done: bool,
}

impl<'a> Subscribing<'a> {
    /// `None`: it is open.
    fn begin(set: &'a LiveSet, stream: &'a StreamName, place: usize) -> Option<Self> {
        match set.lock().entry(stream.clone()) {
            Entry::Occupied(_) => None,
            Entry::Vacant(vacant) => {
                let subscriptions = Subscriptions(Vec::with_capacity(1));
                let (owed, none_yet) = (Owed::default(), Subscriptions::default());
                let heard = owed.heard();
                vacant.insert(Opened { subscriptions: none_yet, place, owed });
                Some(Self { set, stream, subscriptions, heard, done: false })
            }
        }
    }

    /// Hands the subscriptions over to the set. If the stream was closed meanwhile they end.
    fn finish(mut self) {
        self.done = true;
        if let Some(opened) = self.set.lock().get_mut(self.stream) {
            opened.subscriptions = std::mem::take(&mut self.subscriptions);
        }
    }
}

impl Drop for Subscribing<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.set.close(self.stream);
        }
    }
}

/// One subscription, and the stream its messages belong to.
pub(super) struct LiveStream {
    messages: Abortable<Subscriber>,
    name: Arc<Named>,
}

pub(super) struct Named {
    stream: StreamName,
    hashed: bool,
    /// `None`: nothing of the stream is stored.
    log: Option<Arc<Log>>,
    /// Another cluster's messages, which have no place in our log.
    peer: bool,
    /// Offset of the newest message that came.
    heard: Arc<AtomicU64>,
}

impl Stream for LiveStream {
    type Item = (Arc<Named>, Message);

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.messages.poll_next_unpin(cx).map(|next| next.map(|message| (self.name.clone(), message)))
    }
}

impl LiveSet {
    pub fn new() -> (Self, Vec<mpsc::Receiver<LiveStream>>) {
        let (feeders, inputs) = (0..FEEDERS).map(|_| mpsc::channel(HANDOVER)).unzip();
        (
            Self { open: Mutex::default(), rounds: Mutex::default(), opening: tokio::sync::Mutex::default(), feeders },
            inputs,
        )
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<StreamName, Opened>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Subscribes those that are not open yet. When it returns, the subscriptions are ahead of any later request on
    /// the same connection. It may be given up at any time: what is subscribed by then is in the set, or ends.
    pub async fn open(
        &self,
        generation: &Generation,
        streams: &[StreamName],
        names: &Names,
    ) -> Result<(), super::api::ApiError> {
        let _opening = self.opening.lock().await;
        for stream in streams {
            let place = generation.table.place(stream);
            let Some(mut subscribing) = Subscribing::begin(self, stream, place) else { continue };
            let token = Token::of(stream);
            let own = names.live_subject(&generation.table.policies()[place].name, &token.text);
            let subjects = std::iter::once((own, false));
            let subjects = subjects.chain(names.peer_live_subjects(&token.text).map(|subject| (subject, true)));
            let mut hasher = DefaultHasher::new();
            stream.hash(&mut hasher);
            let feeder = &self.feeders[hasher.finish() as usize % FEEDERS];
            for (subject, peer) in subjects {
                let subscriber = generation.connection.subscribe(subject).await?;
                let (handle, registration) = AbortHandle::new_pair();
                subscribing.subscriptions.0.push(handle);
                let log = generation.logs[place].clone();
                let heard = subscribing.heard.clone();
                let name = Arc::new(Named { stream: stream.clone(), hashed: token.hashed, log, peer, heard });
                // A feeder that has ended means that the connection is lost; the next request on it fails.
                let _ = feeder.send(LiveStream { messages: Abortable::new(subscriber, registration), name }).await;
            }
            subscribing.finish();
        }
        Ok(())
    }

    /// Ends the subscriptions of a stream, also those that are just being made.
    pub fn close(&self, stream: &StreamName) {
        drop(self.lock().remove(stream));
    }

    /// Messages of all open streams, or of those at this place of the table, may have been lost.
    pub fn all_lagged(&self, feed: &dyn Feed, place: Option<usize>) {
        let concerned = |opened: &Opened| place.is_none_or(|place| opened.place == place);
        let open: Vec<StreamName> =
            self.lock().iter().filter(|(_, opened)| concerned(opened)).map(|(stream, _)| stream.clone()).collect();
        open.iter().for_each(|stream| feed.lagged(stream));
    }

    /// Heads as a comparison found them: what they name has come live, or has to come.
    pub fn expect(&self, streams: &[StreamName], heads: &[Looked]) {
        let now = Instant::now();
        let (mut open, mut rounds) = (self.lock(), self.rounds.lock().unwrap_or_else(PoisonError::into_inner));
        for (stream, looked) in streams.iter().zip(heads) {
            if let Some(opened) = open.get_mut(stream) {
                opened.owed.compare(looked.head.newest, now, rounds.entry(opened.place).or_default());
            }
        }
    }

    /// What was counted since the last call.
    pub fn take_round(&self, place: usize) -> Round {
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner).remove(&place).unwrap_or_default()
    }

    pub fn is_open(&self, stream: &StreamName) -> bool {
        self.lock().contains_key(stream)
    }
}

/// Hands messages to the node in the order they came, until the connection ends.
pub(super) async fn feed(core: Arc<Core>, connection: Arc<Connection>, mut input: mpsc::Receiver<LiveStream>) {
    let dead = &connection.link.dead;
    let mut streams: SelectAll<LiveStream> = SelectAll::new();
    let mut stale = Vec::new();
    loop {
        tokio::select! {
            () = dead.cancelled() => return,
            new = input.recv() => match new {
                Some(stream) => streams.push(stream),
                // The generation is gone.
                None => return,
            },
            Some((name, message)) = streams.next(), if !streams.is_empty() => {
                let mut next = Some((name, message));
                for _ in 0..CHUNK {
                    let Some((name, message)) = next else { break };
                    if !deliver(&core, &connection, &mut stale, &name, &message).await {
                        return dead.cancel();
                    }
                    next = streams.next().now_or_never().flatten();
                }
                if let Some((name, message)) = next
                    && !deliver(&core, &connection, &mut stale, &name, &message).await
                {
                    return dead.cancel();
                }
            }
        }
    }
}

/// False: the message's epoch could not be checked; the connection must be given up rather than release it.
async fn deliver(core: &Core, connection: &Connection, stale: &mut Vec<String>, name: &Named, raw: &Message) -> bool {
    if !headers::is_of(raw, &name.stream, name.hashed) {
        return true;
    }
    let is_transient = headers::text(raw, &headers::TRANSIENT).is_some();
    if name.peer || is_transient {
        // What another cluster has stored cannot be read here, but is no less worth.
        let overflow = if is_transient { Overflow::Drop } else { Overflow::Disconnect };
        core.feed.transient(&name.stream, headers::message(raw, 0, 0), overflow);
        return true;
    }
    let (Some(source), Some(offset)) = (headers::text(raw, &NATS_STREAM), headers::number(raw, &NATS_SEQUENCE)) else {
        tracing::debug!(stream = ?name.stream, "a message on a live subject that is not from the log: ignored");
        return true;
    };
    let Some(log) = name.log.as_ref().filter(|log| log.name == source) else {
        // A log created anew by another node is for us to learn.
        tracing::debug!(source, "a live message of another log: ignored");
        core.nudge.notify_one();
        return true;
    };
    let epoch = log.epoch();
    if let Some(foreign) = headers::text(raw, &headers::EPOCH).filter(|e| *e != epoch.as_str())
        && !stale.iter().any(|known| known == foreign)
    {
        // The publisher knows another epoch: a newer one, or it has not yet learnt of ours.
        match core.record_of(connection, &log.policy, &log.name).await {
            Ok((record, _)) => core.adopt_epoch(log, &record.epoch.as_str().into()),
            Err(error) => {
                tracing::warn!(%error, "cannot check the epoch of a live message");
                return false;
            }
        }
        if log.epoch().as_str() != foreign {
            // Bounded: epochs are rare.
            stale.truncate(15);
            stale.insert(0, foreign.to_owned());
        }
    }
    let stored_at = headers::stored_at(raw).unwrap_or_default();
    name.heard.store(offset, Ordering::Relaxed);
    log.witness.note(&log.name, log.epoch().as_str(), offset, headers::message_id(raw), stored_at);
    let previous = headers::number(raw, &NATS_LAST_SEQUENCE).unwrap_or_default();
    core.feed.live(&name.stream, previous, headers::message(raw, offset, stored_at));
    true
}
