//! Pages of one stream's history, by batch direct get.
//!
//! Any replica may answer, and it may lag; so may a leader that was frozen and does not know yet that it has a successor. A
//! page that ends before `up_to` is only believed when a copy that has come to `up_to` confirms that nothing follows. What
//! one answer holds follows one another in the log, whenever it was given; a further answer begins with the last message
//! of the one before.

use super::api::ApiError;
use super::fresh::lags;
use super::generation::Generation;
use super::headers;
use super::logs::Log;
use super::slots::Class;
use super::token::Token;
use super::{Attempts, Core, clock};
use crate::broker::{Behind, Facts, Page, ReadFrom, StoreTime, Unavailable};
use crate::protocol::{Message, StreamName};
use async_nats::StatusCode;
use async_nats::header::NATS_SEQUENCE;
use bytes::Bytes;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Messages of one request; the answer must fit the inbox of the connection.
pub(super) const MAX_BATCH: usize = 1000;
/// Bytes of one answer: a client that reads slowly is not cut off, others wait no longer than some milliseconds.
pub(super) const MAX_BYTES: usize = 512 * 1024;
/// A replica that has not answered by then may be frozen; another one is asked. Scans of scattered messages can take a
/// while on a busy server.
const SILENCE: Duration = Duration::from_millis(1500);

/// Where the next request begins.
#[derive(Clone, Copy)]
enum Start {
    Seq(u64),
    Time(u64),
}

impl Start {
    fn put_into(self, request: &mut Value) {
        match self {
            Self::Seq(seq) => request["seq"] = json!(seq.max(1)),
            Self::Time(second) => request["start_time"] = json!(clock::format(second)),
        }
    }
}

/// Messages read so far. Kept across attempts: what a replica gave is right, it only may not be all.
struct Collected {
    messages: Vec<Arc<Message>>,
    bytes: usize,
    next: Start,
    /// The last message that was read, and its bytes.
    last: Option<(u64, usize)>,
    /// Kept messages behind the last one, when the read was cut.
    remaining: u64,
}

impl Collected {
    fn nothing(next: Start) -> Self {
        Self { messages: Vec::new(), bytes: 0, next, last: None, remaining: 0 }
    }
}

impl Core {
    pub(super) async fn read_page(
        &self,
        stream: &StreamName,
        from: ReadFrom,
        limits: Limits,
    ) -> Result<Page, Unavailable> {
        let token = Token::of(stream);
        let next = match from {
            ReadFrom::Offset(offset) => Start::Seq(offset),
            ReadFrom::Time(second) => Start::Time(second),
        };
        let mut got = Collected::nothing(next);
        let limits = Limits { max_messages: limits.max_messages.max(1), ..limits };
        let mut attempts = Attempts::new(self, self.config.broker_timeout);
        let mut former = String::new();
        loop {
            let generation = attempts.next().await?;
            let Some(log) = generation.of(stream).1 else {
                return Ok(Page { messages: Vec::new(), remaining: 0 });
            };
            if former != log.name {
                // Another log: what came from the former one is void.
                former.clone_from(&log.name);
                got = Collected::nothing(next);
            }
            match self.fill(&generation, log, stream, &token, &limits, &mut got).await {
                Ok(Read::Whole) => return Ok(Page { messages: got.messages, remaining: got.remaining }),
                Ok(Read::Torn) => {
                    got = Collected::nothing(next);
                    attempts.failed("messages were dropped while they were read");
                }
                Err(error) => attempts.failed(error),
            }
        }
    }

    /// What the leader keeps at and behind an offset, and then the log's state. Where the message itself is gone the whole
    /// subject is counted.
    ///
    /// That one message follows another is true whoever says so, in one answer. That nothing follows is believed of a copy only
    /// that has come as far as the log.
    ///
    /// That a message is not kept is believed only of an answer which came after the same leader had shown a log that reaches
    /// it: one that was just elected, or is cut off, does not know of the newest messages.
    pub(super) async fn behind(&self, stream: &StreamName, x: u64) -> Result<Behind, Unavailable> {
        let token = Token::of(stream);
        let mut attempts = Attempts::new(self, self.config.broker_timeout);
        let mut shown = Shown::default();
        loop {
            let generation = attempts.next().await?;
            let Some(log) = generation.of(stream).1 else {
                return Ok(Behind { kept: false, after: 0, next: None, facts: nothing_kept() });
            };
            let subject = self.names.log_subject(&log.policy, &token.text);
            let (api, name) = (generation.api(), &log.name);
            let asked = async {
                let [at, second] = generation.first_two(log, &subject, x).await?;
                let kept = at == Some(x);
                let (next, after) = if kept {
                    (second, 0)
                } else {
                    let next = match generation.connection.clustered() {
                        // A copy may lag.
                        true => match api.message(name, &json!({"next_by_subj": subject, "seq": x.max(1)})).await? {
                            Some(at) if at.seq == x => return Err(lags()),
                            at => at.map(|at| at.seq),
                        },
                        false => at,
                    };
                    let which = json!({"subjects_filter": subject});
                    (next, api.led(name, &which).await?.state.subjects.values().sum())
                };
                // A question of its own: within one answer the server counts after it has looked at the log's state.
                let facts = log.asks.top().await?.facts;
                if kept && next.is_none() && generation.connection.clustered() {
                    let newest = generation.newest(name, &log.asks, &subject, facts.last_seq).await?;
                    if newest.is_none_or(|newest| newest.seq != x) {
                        return Err(lags());
                    }
                }
                Ok::<_, ApiError>(Behind { kept, after, next, facts })
            };
            match asked.await {
                Ok(behind) if behind.kept => return Ok(behind),
                Ok(behind) if behind.facts.last_seq < x => {
                    shown = Shown::default();
                    attempts.failed(NOT_SO_FAR);
                }
                // Nothing comes before the first message.
                Ok(behind) if shown.before(name, &behind.facts) || x == 0 => return Ok(behind),
                Ok(_) => {}
                Err(error) => {
                    shown = Shown::default();
                    attempts.failed(error);
                }
            }
        }
    }

    /// One batch direct get of a part of the log, of [`MAX_BATCH`] messages at most.
    pub(super) async fn batch(
        &self,
        generation: &Generation,
        log: &Log,
        request: &Value,
        class: Class,
    ) -> Result<Batch, ApiError> {
        let request = Bytes::from(serde_json::to_vec(request).expect("requests are plain JSON"));
        let subject = format!("$JS.API.DIRECT.GET.{}", log.name);
        let place = self.slots.read(class).await;
        let (messages, end) = generation.api().mux.batch(&place, subject, request, MAX_BATCH + 1, SILENCE).await?;
        drop(place);
        Batch::of(messages, &end)
    }

    /// Reads on until `up_to`, a limit, or the proof that there is no more.
    async fn fill(
        &self,
        generation: &Generation,
        log: &Log,
        stream: &StreamName,
        token: &Token,
        limits: &Limits,
        got: &mut Collected,
    ) -> Result<Read, ApiError> {
        let subject = self.names.log_subject(&log.policy, &token.text);
        loop {
            if matches!(got.next, Start::Seq(next) if next > limits.up_to) {
                got.remaining = 0;
                return Ok(Read::Whole);
            }
            if got.messages.len() >= limits.max_messages || (got.bytes >= limits.max_bytes && !got.messages.is_empty())
            {
                return Ok(Read::Whole);
            }
            // The last message once more: another copy may have dropped what follows it.
            let (from, again, room) = match got.last {
                Some((seq, bytes)) => (Start::Seq(seq), 1, bytes),
                None => (got.next, 0, 0),
            };
            let mut request = json!({
                "next_by_subj": subject,
                "batch": (limits.max_messages - got.messages.len() + again).min(MAX_BATCH),
                "max_bytes": (limits.max_bytes.saturating_sub(got.bytes) + room).clamp(1, MAX_BYTES),
            });
            from.put_into(&mut request);
            let Batch { messages, exhausted } = self.batch(generation, log, &request, limits.class).await?;
            let mut messages = messages.into_iter().peekable();
            if let Some((last, _)) = got.last {
                match messages.next_if(|(seq, _)| *seq == last) {
                    // No room for more beside it.
                    Some(_) if messages.peek().is_none() && !exhausted && !got.messages.is_empty() => {
                        return Ok(Read::Whole);
                    }
                    Some(_) => {}
                    // It has not come so far.
                    None if messages.peek().is_none() => return Err(lags()),
                    None => return Ok(Read::Torn),
                }
            }
            for (seq, raw) in messages {
                got.next = Start::Seq(seq + 1);
                got.last = Some((seq, raw.length));
                if seq > limits.up_to {
                    break;
                }
                got.remaining = headers::number(&raw, &headers::NUM_PENDING).unwrap_or(0);
                got.bytes += raw.payload.len();
                if headers::is_of(&raw, stream, token.hashed) {
                    got.messages.push(headers::message(&raw, seq, headers::stored_at(&raw).unwrap_or_default()));
                }
                if seq == limits.up_to {
                    break;
                }
            }
            if exhausted && !matches!(got.next, Start::Seq(next) if next > limits.up_to) {
                self.confirm_end(generation, log, &subject, limits.up_to, got).await?;
                got.remaining = 0;
                return Ok(Read::Whole);
            }
        }
    }

    /// The replica knows no more. Whether it lags is decided by the stream's newest message.
    async fn confirm_end(
        &self,
        generation: &Generation,
        log: &Log,
        subject: &str,
        up_to: u64,
        got: &Collected,
    ) -> Result<(), ApiError> {
        if !generation.connection.clustered() {
            return confirm_end_alone(generation, log, subject, up_to, got).await;
        }
        let Some(newest) = generation.newest(&log.name, &log.asks, subject, up_to).await? else {
            // A copy may have dropped, by its own clock, what the leader still keeps.
            let info = generation.api().led(&log.name, &json!({"subjects_filter": subject})).await?;
            let all_gone = info.state.last_seq >= up_to && info.state.subjects.is_empty();
            return if all_gone { Ok(()) } else { Err(lags()) };
        };
        let is_read = match got.next {
            Start::Seq(next) => newest.seq < next,
            Start::Time(second) => newest.stored_at / 1_000_000_000 < second,
        };
        if is_read { Ok(()) } else { Err(lags()) }
    }
}

impl Generation {
    /// The first two messages of a subject from an offset on, as one copy has them.
    async fn first_two(&self, log: &Log, subject: &str, from: u64) -> Result<[Option<u64>; 2], ApiError> {
        let request = json!({"next_by_subj": subject, "seq": from.max(1), "batch": 2});
        let request = Bytes::from(serde_json::to_vec(&request).expect("requests are plain JSON"));
        let what = format!("$JS.API.DIRECT.GET.{}", log.name);
        let (messages, end) = self.api().mux.few(what, request, 3, SILENCE).await?;
        let found = Batch::of(messages, &end)?.messages;
        Ok([0, 1].map(|at| found.get(at).map(|(seq, _)| *seq)))
    }
}

/// The only server there is decides.
async fn confirm_end_alone(
    generation: &Generation,
    log: &Log,
    subject: &str,
    up_to: u64,
    got: &Collected,
) -> Result<(), ApiError> {
    let before = log.asks.top().await?.facts;
    if before.last_seq < up_to {
        return Err(ApiError::Unreadable(NOT_SO_FAR.into()));
    }
    let mut which = json!({"next_by_subj": subject});
    match got.next {
        Start::Seq(seq) => which["seq"] = json!(seq.max(1)),
        Start::Time(second) => which["start_time"] = json!(clock::format(second)),
    }
    match generation.api().message(&log.name, &which).await? {
        Some(kept) if kept.seq <= up_to => Err(lags()),
        _ => confirms_leader(&before, &log.asks.top().await?.facts),
    }
}

/// What was read.
enum Read {
    /// All of it, or as much as the limits allow.
    Whole,
    /// Something may be missing in its midst.
    Torn,
}

const NOT_SO_FAR: &str = "the log's leader has not come so far yet";

/// What was asked between these two looks at the log was answered by one leader, which has come as far as the first one
/// shows. One that was elected meanwhile may not know of the newest messages yet.
pub(super) fn confirms_leader(before: &Facts, after: &Facts) -> Result<(), ApiError> {
    if before.now.clock != after.now.clock {
        return Err(ApiError::Unreadable("the log's leader changed while it was asked".into()));
    }
    if after.last_seq < before.last_seq {
        return Err(ApiError::Unreadable(NOT_SO_FAR.into()));
    }
    Ok(())
}

/// The log, and its leader by its clock, that have shown that they reach far enough.
#[derive(Default)]
struct Shown(Option<(String, u64)>);

impl Shown {
    /// This leader shows it now. Answers whether the same one of the same log had shown it before: then what was asked in
    /// between was answered by a leader that had come so far.
    fn before(&mut self, log: &str, facts: &Facts) -> bool {
        let known = self.0.as_ref().is_some_and(|(name, clock)| name == log && *clock == facts.now.clock);
        self.0 = Some((log.to_owned(), facts.now.clock));
        known
    }
}

/// The answer to one request.
pub(super) struct Batch {
    /// With their sequences.
    pub messages: Vec<(u64, async_nats::Message)>,
    /// The replica that has answered knows no more.
    pub exhausted: bool,
}

impl Batch {
    fn of(messages: Vec<async_nats::Message>, end: &async_nats::Message) -> Result<Self, ApiError> {
        let exhausted = match end.status {
            Some(StatusCode::NOT_FOUND) => true,
            Some(status) if status.as_u16() == 204 => headers::number(end, &headers::NUM_PENDING).unwrap_or(0) == 0,
            status => {
                let why = end.description.clone().unwrap_or_default();
                return Err(ApiError::Unreadable(format!("direct get refused: {status:?} {why}")));
            }
        };
        let numbered = |raw| match headers::number(&raw, &NATS_SEQUENCE) {
            Some(seq) => Ok((seq, raw)),
            None => Err(ApiError::Unreadable("a message without its sequence".into())),
        };
        let messages = messages.into_iter().map(numbered).collect::<Result<_, _>>()?;
        Ok(Self { messages, exhausted })
    }
}

/// How far a read goes, and for whom.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub up_to: u64,
    pub max_messages: usize,
    pub max_bytes: usize,
    pub class: Class,
}

/// The facts of a broker that stores nothing.
pub(super) fn nothing_kept() -> Facts {
    Facts {
        first_seq: 1,
        last_seq: 0,
        limit: 0,
        ttl: Duration::ZERO,
        revision: 0,
        raised_at: 0,
        now: StoreTime::default(),
        stored: StoreTime::default(),
        skew: Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(leader: u64, last_seq: u64) -> Facts {
        Facts { last_seq, now: StoreTime { millis: 1, clock: leader }, ..nothing_kept() }
    }

    /// One that was elected meanwhile may not know of the newest messages.
    #[test]
    fn row_02_a_leader_vouches_for_its_own_answers_only() {
        let mut shown = Shown::default();
        assert!(!shown.before("log", &facts(1, 5)), "nobody has shown anything");
        assert!(shown.before("log", &facts(1, 5)));
        assert!(!shown.before("log", &facts(2, 5)), "another leader");
        assert!(!shown.before("other", &facts(2, 5)), "another log");
        assert!(shown.before("other", &facts(2, 6)));
    }

    #[test]
    fn row_06_what_a_new_leader_says_while_a_range_is_read_is_asked_again() {
        assert!(confirms_leader(&facts(1, 5), &facts(1, 5)).is_ok());
        assert!(confirms_leader(&facts(1, 5), &facts(1, 9)).is_ok());
        assert!(confirms_leader(&facts(1, 5), &facts(2, 9)).is_err());
        assert!(confirms_leader(&facts(1, 5), &facts(1, 4)).is_err());
    }
}
