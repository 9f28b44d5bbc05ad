//! What this node knows about the log's newest message, to notice when the log's past has changed.
//!
//! A store can come back older than it was (a backup put back, blocks lost) under the same name and with the same
//! creation time. The proof is a remembered message: if the log no longer reaches it, or keeps another message in its
//! place, positions taken since are worth nothing and the epoch must change.

use super::api::{Kept, StreamInfo};
use super::headers;
use crate::nats::private;
use crate::protocol::MessageId;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One remembered message, and the life of the log it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    pub log: String,
    pub epoch: String,
    /// 0: the log was empty.
    pub seq: u64,
    /// Hexadecimal message id, empty if not known.
    pub id: String,
    /// When the store took it, Unix nanoseconds; 0 if not known (an acknowledgement does not tell).
    pub time: u64,
}

/// How the log compares with a mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Unchanged,
    /// Why the past is not what it was.
    Regressed(String),
}

impl Mark {
    /// A mark of the log's newest message.
    pub fn of(log: &str, epoch: &str, last_seq: u64, newest: Option<&Kept>) -> Self {
        Self {
            log: log.into(),
            epoch: epoch.into(),
            seq: last_seq,
            id: newest.and_then(|kept| kept.header("Nats-Msg-Id")).unwrap_or_default(),
            time: newest.map(Kept::stored_at).unwrap_or_default(),
        }
    }

    /// `kept` is what the leader has at this mark's sequence; `None` says nothing, messages age out.
    pub fn compare(&self, info: &StreamInfo, kept: Option<&Kept>) -> Comparison {
        if info.state.last_seq < self.seq {
            let last = info.state.last_seq;
            return Comparison::Regressed(format!("its last sequence is {last}, it had reached {}", self.seq));
        }
        let Some(kept) = kept else { return Comparison::Unchanged };
        let id = kept.header("Nats-Msg-Id").unwrap_or_default();
        let other_id = headers::parse_id(&self.id).is_some() && id != self.id;
        let other_time = self.time != 0 && kept.stored_at() != self.time;
        if other_id || other_time {
            return Comparison::Regressed(format!("sequence {} is another message than it was", self.seq));
        }
        Comparison::Unchanged
    }
}

/// The highest mark of this node.
#[derive(Default)]
pub(super) struct Witness {
    /// The mark's sequence, so that most messages need no lock.
    seq: AtomicU64,
    mark: Mutex<Option<Mark>>,
}

impl Witness {
    fn lock(&self) -> MutexGuard<'_, Option<Mark>> {
        self.mark.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self) -> Option<Mark> {
        self.lock().clone()
    }

    pub fn set(&self, mark: Mark) {
        let mut held = self.lock();
        self.seq.store(mark.seq, Ordering::Release);
        *held = Some(mark);
    }

    /// Notes a message that was seen or acknowledged. One of another life of the log is no evidence for this one.
    pub fn note(&self, log: &str, epoch: &str, seq: u64, id: Option<MessageId>, time: u64) {
        if seq <= self.seq.load(Ordering::Acquire) {
            return;
        }
        let mut held = self.lock();
        if let Some(mark) = held.as_mut().filter(|m| m.log == log && m.epoch == epoch && m.seq < seq) {
            mark.seq = seq;
            mark.id = id.map(MessageId::to_hex).unwrap_or_default();
            mark.time = time;
            self.seq.store(seq, Ordering::Release);
        }
    }
}

/// Reads the marks written by [`write_file`]. A missing file is a first start; an unreadable one is reported.
pub(super) fn read_file(path: &Path) -> Vec<Mark> {
    let open = private::file(std::fs::File::options().read(true), path).map_err(std::io::Error::from);
    let text = match open.and_then(std::io::read_to_string) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot read the witness of the log");
            return Vec::new();
        }
    };
    let marks = serde_json::Deserializer::from_str(&text).into_iter().collect::<Result<_, _>>();
    marks
        .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "unreadable witness of the log"))
        .unwrap_or_default()
}

/// Writes marks, one per line, so that a reader sees the old ones or the new ones, never half of them.
pub(super) fn write_file(path: &Path, marks: &[Mark]) -> std::io::Result<()> {
    use std::io::Write;
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    let lines: Vec<String> =
        marks.iter().map(|mark| serde_json::to_string(mark).expect("a mark is plain JSON")).collect();
    file.write_all(lines.join("\n").as_bytes())?;
    file.as_file().sync_data()?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}
