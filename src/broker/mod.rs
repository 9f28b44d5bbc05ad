//! The broker's contract: logs of many streams, saved sessions, remote commands.
//!
//! Backends only implement this contract; ordering, the gap check, cursors and proofs of completeness live once, in
//! the hub. One test suite runs on every backend.
//!
//! # The logs
//!
//! Each stream belongs to the first history policy whose pattern matches its name (`policy`), and all streams of a policy
//! share one log, which has an epoch of its own. Each stored message gets the log's next sequence number as its *offset*:
//! strictly increasing within a stream, not contiguous, never reused within an epoch, at most 2^53-1. A stream keeps at
//! most the policy's `limit` messages, none older than its `ttl`; removal takes a stream's oldest message first, and
//! removal by age takes the log's oldest first. Nothing else removes messages. Where a limit is 0 nothing is stored:
//! messages go out without positions.
//!
//! The policies may change while nodes run ([`Status::logs`]). A stream that moves to another log has another epoch there:
//! its former positions are void.
//!
//! # The feed
//!
//! Each stored message of an open stream reaches [`Feed::live`] in offset order, together with the offset of the
//! message that preceded it *in the same stream* (0 if none was kept). The feed may lose messages, never invent or
//! reorder them; what it lost shows in `previous`, or in [`Broker::heads`] where nothing follows.

mod facts;
pub mod life;
pub mod memory;
pub mod nats;
pub mod none;
pub mod policy;

pub use facts::{Behind, Facts, Head, Look, Looked, StoreTime};
pub use life::Life;
pub use policy::{LogState, Logs, Policy, Storage, Table};

use crate::protocol::{Epoch, Message, Publication, StreamName};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// No message has a higher offset: clients keep numbers exactly up to here.
pub const MAX_OFFSET: u64 = (1 << 53) - 1;

/// Limits of history and sessions, as configured.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The history policies.
    pub table: Arc<Table>,
    /// How long a session can be resumed, for [`Life`]. Zero: sessions are not saved.
    pub sessions_ttl: Duration,
    /// Bytes that all saved sessions may take; 0: no limit of their own.
    pub sessions_budget: u64,
}

impl Limits {
    /// The same history for all streams.
    pub fn plain(history_limit: u64, history_ttl: Duration, sessions_ttl: Duration) -> Self {
        Self { table: Table::new(Vec::new(), history_limit, history_ttl), sessions_ttl, sessions_budget: 0 }
    }
}

/// What a backend can do at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Messages of some streams are stored: they carry positions and can be replayed. [`Logs::keeps`] says which.
    pub history: bool,
    /// Sessions are saved and restored.
    pub sessions: bool,
    /// The store survives this process and other nodes see it.
    pub shared: bool,
}

/// The broker's state as the node sees it; watched through [`Broker::status`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Reads and writes can succeed now.
    pub ready: bool,
    /// Reads can succeed now, also where a full disk refuses writes.
    pub readable: bool,
    /// Counts connections to the store. A new value means: messages of the feed may have been lost, every open stream
    /// must be opened again and compared.
    pub generation: u64,
    /// The history policies in effect, and the life of each one's log.
    pub logs: Logs,
    /// Why it is not ready, for logs and the readiness answer. Empty when ready.
    pub reason: Arc<str>,
}

/// The store cannot be asked now. Missing is not unavailable: this is never the answer for "no such thing".
#[derive(Clone, Debug, thiserror::Error)]
#[error("store unavailable: {0}")]
pub struct Unavailable(pub String);

/// Where an accepted message stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Of the stream's log.
    pub epoch: Epoch,
    /// 0 for a message that was not stored (transient, or a broker without history).
    pub offset: u64,
    /// The log had a message with this id already; `offset` is that one's.
    pub duplicate: bool,
    pub durability: Durability,
}

/// Which faults an accepted message survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// None: it was only handed to who is connected.
    None,
    /// None of the process (or of the only nats-server) that holds it in memory.
    Memory,
    /// A crash of Carrick or nats-server; one of the machine before the next flush to the disk is noticed, not survived.
    Server,
    /// A crash of the machine, too: it is on the disk.
    Synced,
    /// The loss of one of the servers that have it.
    Replicated,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    /// Known not to be stored; retry later.
    #[error("not stored, store unavailable: {0}")]
    NotStored(String),
    /// Handed over without an answer in time: stored or not. Retry only with a key.
    #[error("no answer from the store in time: {0}")]
    Unknown(String),
    /// The message is larger than the store takes.
    #[error("message of {size} bytes exceeds the store's limit of {limit} bytes")]
    TooLarge { size: usize, limit: usize },
    /// What a message carries besides its data is larger than the store takes.
    #[error(
        "stream name, exclude_socket and broadcast_type take {size} bytes of headers, more than the store's limit of \
         {limit} bytes for headers"
    )]
    HeadersTooLarge { size: usize, limit: usize },
    /// The store's disk or quota is full; nothing is discarded to make room.
    #[error("storage full: {0}")]
    StorageFull(String),
}

/// First message wanted of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFrom {
    /// The first kept message with this offset or a higher one.
    Offset(u64),
    /// The first kept message stored in this second (Unix seconds, the store's clock) or later.
    Time(u64),
}

/// Part of a stream's history, ascending, as much as fits the limits of the read.
#[derive(Clone, Debug)]
pub struct Page {
    pub messages: Vec<Arc<Message>>,
    /// Messages of the stream up to `up_to` that are kept behind the last one of this page.
    pub remaining: u64,
}

/// What a stream lacks on this node: its messages in `(after, up_to]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hole {
    pub stream: StreamName,
    pub after: u64,
    /// Known to be in the log.
    pub up_to: u64,
    /// The newest message that the node has, or where the stream began for it. The stream had none in `(newest, after]`.
    pub newest: u64,
}

/// Everything that is kept in a hole.
#[derive(Clone, Debug)]
pub struct Filled {
    pub messages: Vec<Arc<Message>>,
    /// What was kept at and behind the hole's `newest` once the messages were read. It may say less than
    /// [`Broker::behind`]: where many holes were read at once, `kept` is false and `next` is unknown (`None`), whatever is
    /// kept, and `after` is counted from the hole's beginning. The messages were compared with the log's leader before.
    pub behind: Behind,
}

/// Key of a saved session: a hash, so that the client's text never becomes a key and the store reveals no credential.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionKey(pub String);

impl SessionKey {
    /// Lower-case hexadecimal SHA-256 of a fixed prefix and the sid.
    pub fn of(sid: &str) -> Self {
        use sha2::{Digest, Sha256};
        let digest = Sha256::new().chain_update(b"carrick-session:").chain_update(sid).finalize();
        Self(digest.iter().map(|b| format!("{b:02x}")).collect())
    }

    /// Key of something that belongs to this session.
    pub fn derived(&self, what: &str) -> Self {
        Self::of(&format!("{}/{what}", self.0))
    }

    /// Half of its hash, enough to find it among those of a process.
    pub fn short(&self) -> u128 {
        self.0.get(..32).and_then(|half| u128::from_str_radix(half, 16).ok()).unwrap_or_default()
    }
}

/// The connection to a store by which something is read. Another one may reach other servers: it cannot vouch for the
/// answers of this one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answering(pub String);

/// A saved session as the store keeps it.
#[derive(Clone, Debug)]
pub struct StoredSession {
    pub body: Bytes,
    /// Names this write; a conditional write or delete needs the last one.
    pub revision: u64,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum SaveError {
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The sessions' share of the store is full, or the store is: the text says which, and what to do.
    #[error("no room for saved sessions: {0}")]
    Full(String),
    /// Trying again does not help.
    #[error("larger than the store takes in one message (max_payload of nats-server)")]
    TooLarge,
    /// The entry was written or deleted by somebody else since `revision`.
    #[error("the saved session was changed or deleted meanwhile")]
    Conflict,
}

/// A remote disconnect, as every node hears of it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RemoteDisconnect {
    /// Connection identifiers, compared byte for byte.
    pub identifiers: String,
    pub reconnect: bool,
}

/// Why nobody goes on with a session under its sid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Over {
    /// It goes on under another sid.
    Replaced,
    /// It was ended for good.
    Ended,
}

/// What becomes of a message that is stored nowhere where a follower does not keep up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// The follower misses it: a whisper, a transient publication, a message of a policy that keeps nothing.
    Drop,
    /// The follower's connection ends: a message of a broker that keeps nothing at all, one of another cluster.
    Disconnect,
}

/// What the broker tells the node. Called in the feed's order from the broker's own tasks; implementations must not
/// block and must not call the broker back from within.
pub trait Feed: Send + Sync + 'static {
    /// A stored message of an open stream, and the offset that preceded it in its stream.
    fn live(&self, stream: &StreamName, previous: u64, message: Arc<Message>);
    /// A message that was not stored (transient publication, whisper). `message.offset` is 0. `overflow`: what becomes of
    /// it for a follower that does not keep up.
    fn transient(&self, stream: &StreamName, message: Arc<Message>, overflow: Overflow);
    /// Messages of this stream may have been dropped: compare its head.
    fn lagged(&self, stream: &StreamName);
    /// A remote disconnect; `mark` is its sequence in the command log.
    fn disconnect(&self, mark: u64, command: RemoteDisconnect);
    /// Remote commands may have been missed and cannot be read again: authenticate sessions anew.
    fn commands_lost(&self);
    /// The session with this key is over. A hint: it may be missed.
    fn session_over(&self, key: &SessionKey, over: Over);
}

#[async_trait]
pub trait Broker: Send + Sync + 'static {
    fn features(&self) -> Features;

    /// The present state and its changes.
    fn status(&self) -> watch::Receiver<Status>;

    /// Stores one publication (or fans it out, if it is transient) and answers with its position. Publications handed
    /// over one after another's success are stored in that order. The answer is a promise: the message is in the log.
    /// Waits for elections and short outages within the publish timeout, with the same message id.
    async fn append(&self, publication: Publication) -> Result<Appended, AppendError>;

    /// Fans out a message to all nodes without storing it.
    async fn transient(&self, stream: &StreamName, message: Message) -> Result<(), Unavailable>;

    /// Starts the feed of these streams, then learns their heads, in the order asked for: every message after the
    /// answered head reaches [`Feed::live`] (it may do so before this call returns). Opening an open stream compares it
    /// anew.
    async fn open(&self, streams: &[StreamName]) -> Result<Vec<Looked>, Unavailable>;

    /// Ends the feed of a stream.
    fn close(&self, stream: &StreamName);

    /// The newest offsets, in the order asked for, fresh as of this call: a message acknowledged before the call is in
    /// the answer.
    async fn heads(&self, streams: &[StreamName]) -> Result<Vec<Looked>, Unavailable>;

    /// Messages of one stream with offsets up to and including `up_to`, at most `max_messages` and about `max_bytes`
    /// (at least one message). `up_to` must be known to be in the log: an answer that does not reach it is not passed on.
    async fn read(
        &self,
        stream: &StreamName,
        from: ReadFrom,
        up_to: u64,
        max_messages: usize,
        max_bytes: usize,
    ) -> Result<Page, Unavailable>;

    /// What is kept at and behind offset `x`, see [`Behind::confirms`]. Asked after a page was read, it
    /// tells whether messages had been dropped to make room before the page was complete.
    async fn behind(&self, stream: &StreamName, x: u64) -> Result<Behind, Unavailable>;

    /// Reads what is kept in these holes, in the order asked for. This is work in the background: reads of clients go first.
    /// One hole is always filled. Of many, those that are not worth being read together, or do not fit, are `None`: they
    /// are to be asked for again, alone or with fewer.
    async fn fill(&self, holes: &[Hole]) -> Result<Vec<Option<Filled>>, Unavailable> {
        let mut filled = Vec::with_capacity(holes.len());
        for hole in holes {
            let mut messages: Vec<Arc<Message>> = Vec::new();
            loop {
                let last = messages.last().map(|last| last.offset);
                let from = ReadFrom::Offset(last.unwrap_or(hole.after) + 1);
                let mut page = self.read(&hole.stream, from, hole.up_to, 500, 256 << 10).await?;
                if let Some(last) = last {
                    self.behind(&hole.stream, last).await?.joins(&page, hole.up_to)?;
                }
                messages.append(&mut page.messages);
                if page.remaining == 0 {
                    break;
                }
            }
            let behind = self.behind(&hole.stream, hole.newest).await?;
            behind.confirms(&messages, hole.up_to)?;
            behind.leave_whole(&mut messages);
            filled.push(Some(Filled { messages, behind }));
        }
        Ok(filled)
    }

    /// The state of this stream's log, fresh as of this call (from the leader).
    async fn facts(&self, stream: &StreamName) -> Result<Facts, Unavailable>;

    /// Fresh as of this call, a miss too: what was acknowledged before the call is in the answer.
    async fn load_session(&self, key: &SessionKey) -> Result<Option<StoredSession>, Unavailable>;

    /// The write of this revision, of what [belongs](Self::save_beside) to a session. `None`: it is not there any more.
    async fn load_part(&self, key: &SessionKey, revision: u64) -> Result<Option<StoredSession>, Unavailable> {
        Ok(self.load_session(key).await?.filter(|stored| stored.revision == revision))
    }

    /// Names who answers from now on, for [`Self::vouch`]. Waits until there is somebody.
    async fn answering(&self) -> Result<Answering, Unavailable> {
        Ok(Answering::default())
    }

    /// Succeeds if those who have answered for sessions and marks since `answering` did so as their leaders. One that was
    /// cut off from the others goes on to answer for a while, as if nothing had been written since.
    async fn vouch(&self, _answering: &Answering) -> Result<(), Unavailable> {
        Ok(())
    }

    /// Writes a session, or a note about one, with a new life. With `revision`, only if that is the entry's last write
    /// (0: only if there is no entry). Answers with the new revision.
    async fn save_session(
        &self,
        key: &SessionKey,
        body: Bytes,
        revision: Option<u64>,
        life: Life,
    ) -> Result<u64, SaveError>;

    /// Writes what belongs to a session, with a life that [outlives](life::beside) it. Conditions as with
    /// [`Self::save_session`].
    async fn save_beside(&self, key: &SessionKey, body: Bytes, revision: Option<u64>) -> Result<u64, SaveError>;

    /// Tells all nodes, this one included, through [`Feed::session_over`]; unstored.
    async fn announce_over(&self, key: &SessionKey, over: Over);

    /// Removes a saved session, or what belongs to one: with a `revision` only if it is the last one. False: it is not.
    /// Succeeds if there is none.
    async fn delete_session(&self, key: &SessionKey, revision: Option<u64>) -> Result<bool, Unavailable>;

    /// Stores a remote disconnect; every node hears of it through [`Feed::disconnect`]. Answers, once it is stored, with
    /// its mark.
    async fn disconnect(&self, command: &RemoteDisconnect) -> Result<u64, AppendError>;

    /// The mark of the newest remote disconnect of these identifiers, 0 if there is none; fresh as of this call.
    async fn mark(&self, identifiers: &str) -> Result<u64, Unavailable>;
}
