//! What a log says about itself, and of one of its streams: the ground of every proof that nothing was lost.

use super::{Page, Unavailable};
use crate::protocol::Message;
use std::sync::Arc;
use std::time::Duration;

/// A moment by the store's clock. Evidence about the log is dated by it, never by the moment at which this process came to
/// look at the evidence: the process may have been stopped, suspended or late.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StoreTime {
    /// Unix milliseconds; 0: not known.
    pub millis: u64,
    /// Whose clock; 0: not known (a message does not say which server dated it).
    pub clock: u64,
}

impl StoreTime {
    /// A time of which it is not known whose clock said it.
    pub fn of_message(millis: u64) -> Self {
        Self { millis, clock: 0 }
    }
}

/// What the log says about itself; the ground of every proof that nothing was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Everything below has been removed by age (or was never there: 1 for a log that never lost any).
    pub first_seq: u64,
    /// The last sequence ever issued.
    pub last_seq: u64,
    /// Messages kept per stream; from the log itself, never from a flag.
    pub limit: u64,
    pub ttl: Duration,
    /// Changes with the history policy: proofs taken under another revision are void.
    pub revision: u64,
    /// Last sequence of the log when a limit was last raised: counting proves nothing for positions below.
    pub raised_at: u64,
    /// The store's clock when it answered. What has been agreed to by then need not be in `last_seq` yet: a leader that was
    /// just elected takes in what the one before left behind, with the times it had then.
    pub now: StoreTime,
    /// When the message at `last_seq` was stored: nothing behind it was stored earlier. Unknown where the log has had none.
    pub stored: StoreTime,
    /// How far the clocks of the servers that led the log may differ, as far as this node has measured it.
    pub skew: Duration,
}

/// The newest offset of a stream and how far the answer is known to reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Offset of its newest kept message, 0 if none is kept.
    pub newest: u64,
    /// The answer reflects the stream's log up to this sequence; the stream had no message in `(newest, up_to]`.
    pub up_to: u64,
}

/// A head, and when it was looked at.
#[derive(Clone, Debug)]
pub struct Looked {
    pub head: Head,
    /// Shared by all streams of the log that were looked at together.
    pub look: Arc<Look>,
}

/// The log's state around a look at heads.
#[derive(Clone, Debug)]
pub struct Look {
    /// Before the heads were asked for: what they say was true then or later.
    pub before: Facts,
    /// After they had been answered: what they say was true then or earlier.
    pub after: Facts,
}

impl Looked {
    /// A head that was seen in one moment.
    pub fn at_once(head: Head, facts: Facts) -> Self {
        Self { head, look: Arc::new(Look { before: facts.clone(), after: facts }) }
    }
}

/// What is kept of a stream at and behind an offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behind {
    /// The message at the offset itself is kept, or was when `next` followed it. Removal takes the oldest first, so everything
    /// after it is kept too: a page that begins with `next` lacks nothing in front.
    pub kept: bool,
    /// Messages kept after the offset, or more: never fewer. Only counted where the message itself is not kept.
    pub after: u64,
    /// Offset of the first message kept after it. A page that begins later was read from a replica that has dropped, by
    /// its own clock, what the leader still keeps.
    pub next: Option<u64>,
    /// The state of the stream's log, read *after* that: what has not aged out by then had not aged out before.
    pub facts: Facts,
}

impl Behind {
    /// The messages, read before from any replica up to `up_to`, are all that the leader still keeps there, and the leader
    /// itself has come so far.
    pub fn confirms(&self, messages: &[Arc<Message>], up_to: u64) -> Result<(), Unavailable> {
        if self.facts.last_seq < up_to {
            return Err(Unavailable("the log's leader has not come so far yet".into()));
        }
        let whole = match (self.next, messages.first().map(|first| first.offset)) {
            (None, None) => true,
            // What was read is gone meanwhile, all of it; or this is the word of one that had not heard of it yet.
            (None, Some(_)) => !self.kept && self.after == 0,
            (Some(next), None) => next > up_to,
            // Where everything is kept, nothing else is the first.
            (Some(next), Some(first)) => first == next || first < next && !self.kept,
        };
        whole
            .then_some(())
            .ok_or_else(|| Unavailable("a replica has dropped what the log's leader keeps, or the leader lags".into()))
    }

    /// Leaves of messages that were read before this was asked those that are known to follow one another: what is still kept.
    /// Where something behind the offset is gone, more may have gone while they were read, also in the midst of one answer:
    /// nats-server reads it message by message, and removes what has expired meanwhile.
    pub fn leave_whole(&self, messages: &mut Vec<Arc<Message>>) {
        if !self.kept {
            let gone = messages.partition_point(|message| self.next.is_none_or(|next| message.offset < next));
            messages.drain(..gone);
        }
    }

    /// This was asked about the last message of a page after the next one had been read, up to `up_to` or as far as its
    /// limits allowed: nothing was dropped between the two, which may be of two copies. An empty page shows that least of all.
    pub fn joins(&self, next: &Page, up_to: u64) -> Result<(), Unavailable> {
        let last = next.messages.last().filter(|_| next.remaining > 0);
        self.confirms(&next.messages, last.map_or(up_to, |last| last.offset))?;
        self.kept.then_some(()).ok_or_else(|| Unavailable("messages were dropped while they were read".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Meta, Payload};
    use bytes::Bytes;

    fn message(offset: u64) -> Arc<Message> {
        let payload = Payload::from_json(Bytes::from_static(b"{}"));
        Arc::new(Message { offset, time: 1_000, payload, meta: Meta::default() })
    }

    fn behind(kept: bool, after: u64, next: Option<u64>) -> Behind {
        let facts = Facts {
            first_seq: 1,
            last_seq: 110,
            limit: 10,
            ttl: Duration::from_secs(60),
            revision: 1,
            raised_at: 0,
            now: StoreTime::default(),
            stored: StoreTime::default(),
            skew: Duration::ZERO,
        };
        Behind { kept, after, next, facts }
    }

    fn confirms(kept: bool, after: u64, next: Option<u64>, page: &[u64]) -> bool {
        let messages: Vec<_> = page.iter().copied().map(message).collect();
        behind(kept, after, next).confirms(&messages, 110).is_ok()
    }

    #[test]
    fn row_02_of_what_was_read_only_that_counts_which_is_kept_once_something_is_gone() {
        let left = |behind: Behind| {
            let mut messages = [101, 105, 108].map(message).to_vec();
            behind.leave_whole(&mut messages);
            messages.iter().map(|message| message.offset).collect::<Vec<_>>()
        };
        assert_eq!(left(behind(true, 0, Some(101))), [101, 105, 108]);
        assert_eq!(left(behind(false, 3, Some(101))), [101, 105, 108], "nothing went");
        // What had stood between 101 and 105 may have gone with 101, while they were read.
        assert_eq!(left(behind(false, 2, Some(105))), [105, 108]);
        assert!(left(behind(false, 0, None)).is_empty());
    }

    #[test]
    fn row_02_a_page_begins_with_what_follows_a_message_that_is_kept() {
        assert!(confirms(true, 0, Some(101), &[101, 105]));
        assert!(confirms(true, 0, None, &[]) && confirms(true, 0, Some(111), &[]), "nothing follows");
        assert!(
            !confirms(true, 0, Some(101), &[105]) && !confirms(true, 0, Some(101), &[]),
            "the page lacks its first"
        );
        // Who says so has not heard of what the page holds: it may keep what its successor has dropped.
        assert!(!confirms(true, 0, None, &[105]) && !confirms(true, 0, Some(111), &[105]));
    }

    #[test]
    fn row_02_a_page_whose_beginning_is_gone_meanwhile_is_told_from_one_that_is_not_known_yet() {
        assert!(confirms(false, 3, Some(105), &[101, 105]) && confirms(false, 3, Some(111), &[101, 105]));
        assert!(confirms(false, 0, None, &[101]), "nothing is left");
        assert!(!confirms(false, 3, None, &[101]), "something is left, and older than what was read");
        assert!(!confirms(false, 3, Some(101), &[105]));
    }
}
