//! What the log says about itself, and the newest offsets of many streams.

use super::api::{ApiError, StreamInfo, StreamState};
use super::generation::{Connection, Generation};
use super::headers;
use super::layout::{META_RAISED_AT, META_REVISION};
use super::logs::Log;
use super::mux::RequestError;
use super::read::nothing_kept;
use super::skew::Clocks;
use super::token::Token;
use super::{Core, clock};
use crate::broker::{Facts, Head, Look, Looked, StoreTime};
use crate::protocol::StreamName;
use async_nats::header::{NATS_SEQUENCE, NATS_SUBJECT};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Subjects of one request, where the server takes one of that size (`max_payload`). The answer carries whole messages;
/// more subjects gain little.
const CHUNK: usize = 256;
/// Bytes of a request beside its subjects, at most.
const FRAME: usize = 128;
/// Bytes that a list takes for each of its texts: quotes and comma.
const LISTED: usize = 3;
/// Requests of one call under way at once.
const CONCURRENT: usize = 3;
/// Bytes of one answer; the server sends the rest on a further request.
const MAX_BYTES: usize = 1024 * 1024;
/// A replica that has not answered by then may be frozen; another one is asked.
const SILENCE: Duration = Duration::from_secs(1);
/// Questions waiting for the next look at the log; askers wait when it is full.
const QUESTIONS: usize = 1024;

/// The log as its leader sees it.
#[derive(Clone, Debug)]
pub(super) struct Top {
    pub facts: Facts,
    pub messages: u64,
    /// A subject that has a message: with it a replica's answer is never empty, and an empty one says nothing.
    pub sentinel: Option<String>,
}

type Question = oneshot::Sender<Result<Top, ApiError>>;

/// Where to ask for the [`Top`] of a log or bucket: questions that wait together share one answer, taken after all of them
/// were asked.
pub(super) struct Asks {
    questions: mpsc::Sender<Question>,
    sentinel: Arc<Sentinel>,
}

/// The other end of [`Asks`].
pub(super) struct Asked {
    questions: mpsc::Receiver<Question>,
    sentinel: Arc<Sentinel>,
}

/// A subject that had a message, and its sequence then.
#[derive(Default)]
struct Sentinel(Mutex<Option<(String, u64)>>);

impl Sentinel {
    fn lock(&self) -> MutexGuard<'_, Option<(String, u64)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn asks() -> (Asks, Asked) {
    let (sender, questions) = mpsc::channel(QUESTIONS);
    let sentinel = Arc::<Sentinel>::default();
    (Asks { questions: sender, sentinel: sentinel.clone() }, Asked { questions, sentinel })
}

impl Asks {
    pub async fn top(&self) -> Result<Top, ApiError> {
        let lost = || ApiError::from(RequestError::NoAnswer("connection to NATS lost"));
        let (sender, answer) = oneshot::channel();
        self.questions.send(sender).await.map_err(|_| lost())?;
        answer.await.map_err(|_| lost())?
    }

    /// A subject that had a message when it was last looked for one.
    pub fn sentinel(&self) -> Option<String> {
        self.sentinel.lock().as_ref().map(|(subject, _)| subject.clone())
    }

    /// This subject had a message at a sequence that the log has come to.
    #[cfg(test)]
    pub fn remember(&self, subject: &str, seq: u64) {
        *self.sentinel.lock() = Some((subject.to_owned(), seq));
    }

    /// This subject has no message any more: the next look finds another one.
    pub fn forget(&self, subject: &str) {
        self.sentinel.lock().take_if(|(known, _)| known == subject);
    }
}

/// Answers questions until the connection ends.
pub(super) async fn answer(connection: Arc<Connection>, log: String, clocks: Arc<Clocks>, asked: Asked) {
    let Asked { mut questions, sentinel } = asked;
    let mut waiting = Vec::new();
    loop {
        let count = tokio::select! {
            count = questions.recv_many(&mut waiting, QUESTIONS) => count,
            () = connection.link.dead.cancelled() => 0,
        };
        if count == 0 {
            return;
        }
        let top = look(&connection, &log, &clocks, &sentinel).await;
        for question in waiting.drain(..) {
            // The asker may have given up.
            let _ = question.send(top.clone());
        }
    }
}

async fn look(connection: &Connection, log: &str, clocks: &Clocks, sentinel: &Sentinel) -> Result<Top, ApiError> {
    let asked = clocks.own();
    let info = connection.api.led(log, &Value::Null).await?;
    let millis = clock::parse(&info.ts).unwrap_or_default() / 1_000_000;
    let (clock, skew) = clocks.compare(&info.cluster.leader, asked, millis);
    // Messages leave from a log's front, so a subject keeps one as long as the message we know of it would be kept. In a
    // bucket it may leave sooner: who finds out says so.
    let mut known = sentinel.lock().clone();
    if known.as_ref().is_none_or(|(_, seq)| *seq < info.state.first_seq) {
        known = match info.state.messages {
            0 => None,
            _ => any_message(connection, log, &info.state).await?,
        };
        sentinel.lock().clone_from(&known);
    }
    let facts = facts(&info, StoreTime { millis, clock }, skew);
    Ok(Top { messages: info.state.messages, facts, sentinel: known.map(|(subject, _)| subject) })
}

/// Subject and sequence of a message: the newest, or the oldest where the newest has a life of its own that is over.
async fn any_message(
    connection: &Connection,
    log: &str,
    state: &StreamState,
) -> Result<Option<(String, u64)>, ApiError> {
    let newest = connection.api.message(log, &json!({"seq": state.last_seq})).await?;
    let found = match newest {
        Some(newest) => Some(newest),
        None => connection.api.message(log, &json!({"seq": state.first_seq.max(1), "next_by_subj": ">"})).await?,
    };
    Ok(found.map(|kept| (kept.subject, kept.seq)))
}

/// When the log's newest message was stored: by the present leader's clock, if it has led since.
fn stored(info: &StreamInfo, leader: u64) -> StoreTime {
    let Some(stored) = clock::parse(&info.state.last_ts) else { return StoreTime::default() };
    let cluster = &info.cluster;
    let by_leader =
        cluster.replicas.is_empty() || clock::parse(&cluster.leader_since).is_some_and(|since| since <= stored);
    StoreTime { millis: stored / 1_000_000, clock: if by_leader { leader } else { 0 } }
}

fn facts(info: &StreamInfo, now: StoreTime, skew: Duration) -> Facts {
    let meta = |name: &str| info.config.metadata.get(name).and_then(|text| text.parse().ok()).unwrap_or(0);
    Facts {
        first_seq: info.state.first_seq.max(1),
        last_seq: info.state.last_seq,
        limit: u64::try_from(info.config.max_msgs_per_subject).ok().filter(|l| *l > 0).unwrap_or(u64::MAX),
        ttl: match info.config.max_age {
            0 => Duration::MAX,
            age => Duration::from_nanos(age),
        },
        revision: meta(META_REVISION),
        raised_at: meta(META_RAISED_AT),
        now,
        stored: stored(info, now.clock),
        skew,
    }
}

impl Core {
    /// Heads of the streams as of this call, each log asked for its own.
    pub(super) async fn try_heads(
        &self,
        generation: &Generation,
        streams: &[StreamName],
    ) -> Result<Vec<Looked>, ApiError> {
        let mut by_log: Vec<Vec<usize>> = vec![Vec::new(); generation.logs.len()];
        for (index, stream) in streams.iter().enumerate() {
            by_log[generation.table.place(stream)].push(index);
        }
        let mut heads = vec![Looked::at_once(Head::default(), nothing_kept()); streams.len()];
        for (place, indexes) in by_log.into_iter().enumerate().filter(|(_, indexes)| !indexes.is_empty()) {
            let Some(log) = &generation.logs[place] else { continue };
            let of_log: Vec<&StreamName> = indexes.iter().map(|index| &streams[*index]).collect();
            for (index, head) in indexes.iter().zip(self.heads_of_log(generation, log, &of_log).await?) {
                heads[*index] = head;
            }
        }
        Ok(heads)
    }

    async fn heads_of_log(
        &self,
        generation: &Generation,
        log: &Log,
        streams: &[&StreamName],
    ) -> Result<Vec<Looked>, ApiError> {
        let top = log.asks.top().await?;
        if top.messages == 0 {
            let head = Head { newest: 0, up_to: top.facts.last_seq };
            return Ok(vec![Looked::at_once(head, top.facts); streams.len()]);
        }
        let Some(sentinel) = top.sentinel else {
            return Err(ApiError::Unreadable("the log's newest message aged out meanwhile".into()));
        };
        let last = top.facts.last_seq;
        let subject = |stream: &&StreamName| self.names.log_subject(&log.policy, &Token::of(stream).text);
        let subjects: Vec<String> = streams.iter().map(subject).collect();
        let room = generation.connection.client.max_payload().saturating_sub(FRAME + sentinel.len() + LISTED);
        let requests: Vec<_> = chunks(&subjects, room)
            .into_iter()
            .map(|chunk| self.chunk_of_heads(generation, log, chunk, &sentinel, last))
            .collect();
        let chunks: Vec<(Vec<u64>, u64)> = stream::iter(requests).buffered(CONCURRENT).try_collect().await?;
        let up_to = chunks.iter().map(|(_, up_to)| *up_to).min().unwrap_or(last);
        let newest = chunks.into_iter().flat_map(|(heads, _)| heads);
        let look = Arc::new(Look { before: top.facts, after: log.asks.top().await?.facts });
        Ok(newest.map(|newest| Looked { head: Head { newest, up_to }, look: look.clone() }).collect())
    }

    /// One request and its continuations; any replica may answer, but only one that has come to `last` is believed.
    async fn chunk_of_heads(
        &self,
        generation: &Generation,
        log: &Log,
        subjects: &[String],
        sentinel: &str,
        last: u64,
    ) -> Result<(Vec<u64>, u64), ApiError> {
        let mut wanted: Vec<&str> = subjects.iter().map(String::as_str).chain([sentinel]).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let mut newest: HashMap<String, u64> = HashMap::with_capacity(wanted.len());
        let mut reached = u64::MAX;
        let mut from = 1;
        loop {
            let mut request = json!({"multi_last": wanted, "batch": CHUNK + 1, "max_bytes": MAX_BYTES});
            if from > 1 {
                // The rest of the same picture.
                request["seq"] = json!(from);
                request["up_to_seq"] = json!(reached);
            }
            let request = Bytes::from(serde_json::to_vec(&request).expect("requests are plain JSON"));
            let place = self.slots.heads().await;
            let subject = format!("$JS.API.DIRECT.GET.{}", log.name);
            let (messages, end) = generation.api().mux.batch(&place, subject, request, CHUNK + 2, SILENCE).await?;
            drop(place);
            let Some(up_to) = headers::number(&end, &headers::UP_TO_SEQUENCE).filter(|up_to| *up_to >= last) else {
                return Err(ApiError::Unreadable("a replica answered that lags behind".into()));
            };
            reached = reached.min(up_to);
            for message in &messages {
                if let (Some(subject), Some(seq)) =
                    (headers::text(message, &NATS_SUBJECT), headers::number(message, &NATS_SEQUENCE))
                {
                    from = from.max(seq + 1);
                    newest.insert(subject.to_owned(), seq);
                }
            }
            if headers::number(&end, &headers::NUM_PENDING).unwrap_or(0) == 0 || messages.is_empty() {
                break;
            }
        }
        if !newest.contains_key(sentinel) {
            // It has expired, or the log has lost a part: the next look finds another one.
            log.asks.forget(sentinel);
            return Err(ApiError::Unreadable("the log's state changed while it was read".into()));
        }
        Ok((subjects.iter().map(|s| newest.get(s).copied().unwrap_or(0)).collect(), reached))
    }
}

/// The subjects in requests of at most `room` bytes and [`CHUNK`] subjects, but of one subject each in any case. Subjects
/// need no escapes in JSON.
fn chunks(subjects: &[String], room: usize) -> Vec<&[String]> {
    let (mut chunks, mut begin, mut bytes) = (Vec::new(), 0, 0);
    for (at, subject) in subjects.iter().enumerate() {
        let more = subject.len() + LISTED;
        if at > begin && (at - begin == CHUNK || bytes + more > room) {
            chunks.push(&subjects[begin..at]);
            (begin, bytes) = (at, 0);
        }
        bytes += more;
    }
    if begin < subjects.len() {
        chunks.push(&subjects[begin..]);
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_as_large_as_the_server_takes() {
        let subjects: Vec<String> = (0..1_000).map(|number| format!("carrick.log.default.{number:0>280}")).collect();
        let sizes = |room: usize| -> Vec<usize> { chunks(&subjects, room).iter().map(|chunk| chunk.len()).collect() };
        assert_eq!(sizes(1 << 20), [256, 256, 256, 232]);
        let small = sizes(8 * 1024);
        assert_eq!((small.iter().sum::<usize>(), small[0]), (1_000, 27), "of 303 bytes each");
        assert_eq!(sizes(10), [1; 1_000]);
        assert!(chunks(&[], 10).is_empty());
        for chunk in chunks(&subjects, 8 * 1024) {
            let wanted: Vec<&str> = chunk.iter().map(String::as_str).collect();
            assert!(serde_json::to_vec(&wanted).unwrap().len() <= 8 * 1024);
        }
        let frame = json!({"multi_last": [], "batch": CHUNK + 1, "max_bytes": MAX_BYTES, "seq": u64::MAX,
            "up_to_seq": u64::MAX});
        assert!(serde_json::to_vec(&frame).unwrap().len() <= FRAME);
    }
}
