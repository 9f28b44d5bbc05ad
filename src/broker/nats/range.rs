//! Filling holes, one alone or many together.
//!
//! Reading one stream out of a log costs the server up to a thousand times what reading the log itself costs per message,
//! and the leader's word on what was dropped meanwhile comes on top for every stream. After a reconnect all open streams
//! have holes, and these lie in the same part of the log: it is read once, whole, and handed out.

use super::Core;
use super::api::ApiError;
use super::fresh::lags;
use super::generation::Generation;
use super::headers;
use super::logs::Log;
use super::read::{Batch, Limits, MAX_BATCH, MAX_BYTES, confirms_leader};
use super::slots::Class;
use super::token::Token;
use crate::broker::{Behind, Facts, Filled, Hole, ReadFrom, Unavailable};
use crate::protocol::{Message, StreamName};
use async_nats::header::NATS_SUBJECT;
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;

/// Messages of the log that may be read per hole: reading one hole alone costs the server as much as 200 to 10,000 of them,
/// the more the further its messages lie apart.
const WORTH: u64 = 500;
/// Bytes of messages that nobody asked for that may be read per hole, for the same reason, and in any case.
const WASTE_PER_HOLE: usize = 256 << 10;
const WASTE: usize = 4 << 20;
/// Bytes of messages held until the range is read. Streams whose messages do not fit are left out.
const HELD: usize = 32 << 20;
/// A range is read on to the end that the log has reached meanwhile, so that few messages are uncounted; at most so often.
const CATCH_UPS: usize = 4;
/// Bytes of one message beside its data, roughly.
const OVERHEAD: usize = 256;

/// A hole and what was found in it.
struct Part {
    /// Its place in what was asked for.
    index: usize,
    stream: StreamName,
    hashed: bool,
    after: u64,
    up_to: u64,
    messages: Vec<Arc<Message>>,
    bytes: usize,
    /// Messages of the stream behind `after`, also behind `up_to`.
    seen: u64,
    /// Its messages do not fit.
    left_out: bool,
}

impl Core {
    /// Reads one hole by its subject.
    pub(super) async fn fill_alone(&self, hole: &Hole) -> Result<Filled, Unavailable> {
        let limits = Limits { up_to: hole.up_to, max_messages: MAX_BATCH, max_bytes: MAX_BYTES, class: Class::Repair };
        let mut messages: Vec<Arc<Message>> = Vec::new();
        loop {
            let last = messages.last().map(|last| last.offset);
            let from = ReadFrom::Offset(last.unwrap_or(hole.after) + 1);
            let mut page = self.read_page(&hole.stream, from, limits).await?;
            let is_last = page.remaining == 0;
            if let Some(last) = last {
                self.behind(&hole.stream, last).await?.joins(&page, hole.up_to)?;
            }
            messages.append(&mut page.messages);
            if is_last {
                let behind = self.behind(&hole.stream, hole.newest).await?;
                behind.confirms(&messages, hole.up_to)?;
                behind.leave_whole(&mut messages);
                return Ok(Filled { messages, behind });
            }
        }
    }

    /// Reads the holes of each log together where that is worth it.
    pub(super) async fn fill_together(&self, holes: &[Hole]) -> Result<Vec<Option<Filled>>, Unavailable> {
        self.asking(|generation| async move { self.try_fill_together(&generation, holes).await }).await
    }

    async fn try_fill_together(
        &self,
        generation: &Generation,
        holes: &[Hole],
    ) -> Result<Vec<Option<Filled>>, ApiError> {
        let mut by_log: Vec<Vec<Part>> = Vec::new();
        by_log.resize_with(generation.logs.len(), Vec::new);
        for (index, hole) in holes.iter().enumerate() {
            by_log[generation.table.place(&hole.stream)].push(Part {
                index,
                stream: hole.stream.clone(),
                hashed: false,
                after: hole.after,
                up_to: hole.up_to,
                messages: Vec::new(),
                bytes: 0,
                seen: 0,
                left_out: false,
            });
        }
        let mut filled = vec![None; holes.len()];
        for (place, mut parts) in by_log.into_iter().enumerate() {
            let Some(log) = &generation.logs[place] else { continue };
            keep_what_is_worth_it(&mut parts);
            if parts.is_empty() {
                continue;
            }
            let mut range = Range::new(self, generation, log, parts);
            if let Some((facts, uncounted)) = range.read().await? {
                range.hand_out(&facts, uncounted, &mut filled);
            }
        }
        Ok(filled)
    }
}

/// Leaves out holes that reach so far back that the range between would cost more than it saves.
fn keep_what_is_worth_it(parts: &mut Vec<Part>) {
    parts.sort_unstable_by_key(|part| std::cmp::Reverse(part.after));
    let mut up_to = 0;
    let mut worth = 0;
    for (at, part) in parts.iter().enumerate() {
        up_to = part.up_to.max(up_to);
        if up_to - part.after.min(up_to) <= (at as u64 + 1) * WORTH {
            worth = at + 1;
        }
    }
    parts.truncate(if worth > 1 { worth } else { 0 });
}

/// A part of the log that is read whole.
struct Range<'a> {
    core: &'a Core,
    generation: &'a Generation,
    log: &'a Log,
    parts: Vec<Part>,
    by_token: HashMap<String, usize>,
    /// What precedes the token in a subject of this log.
    prefix: String,
    /// Where the range begins, and the first message that was read of it.
    start: u64,
    first: Option<u64>,
    next: u64,
    held: usize,
    wasted: usize,
}

impl<'a> Range<'a> {
    fn new(core: &'a Core, generation: &'a Generation, log: &'a Log, mut parts: Vec<Part>) -> Self {
        let mut by_token = HashMap::with_capacity(parts.len());
        for (at, part) in parts.iter_mut().enumerate() {
            let token = Token::of(&part.stream);
            part.hashed = token.hashed;
            by_token.insert(token.text, at);
        }
        let next = parts.iter().map(|part| part.after).min().unwrap_or(0) + 1;
        let prefix = core.names.log_subject(&log.policy, "");
        Self { core, generation, log, parts, by_token, prefix, start: next, first: None, next, held: 0, wasted: 0 }
    }

    /// Reads to the end of the log. Answers with the log's state after that, and how many messages may have come behind
    /// what was read; `None`: it is not worth going on.
    async fn read(&mut self) -> Result<Option<(Facts, u64)>, ApiError> {
        let wanted = self.parts.iter().map(|part| part.up_to).max().unwrap_or(0);
        let mut facts = self.log.asks.top().await?.facts;
        if facts.last_seq < wanted {
            // A leader that was just elected may still be applying what it has agreed to.
            return Err(ApiError::Unreadable("the leader has not come so far yet".into()));
        }
        for _ in 0..CATCH_UPS {
            let end = facts.last_seq;
            if !self.read_to(end).await? {
                return Ok(None);
            }
            self.confirm_start().await?;
            let former = std::mem::replace(&mut facts, self.log.asks.top().await?.facts);
            confirms_leader(&former, &facts)?;
            if (facts.last_seq - end).saturating_mul(8) <= facts.limit {
                break;
            }
        }
        let uncounted = facts.last_seq.saturating_add(1).saturating_sub(self.next);
        Ok(Some((facts, uncounted)))
    }

    /// False: too much of what was read is of no use.
    async fn read_to(&mut self, end: u64) -> Result<bool, ApiError> {
        while self.next <= end {
            let request = json!({"seq": self.next, "batch": MAX_BATCH, "max_bytes": MAX_BYTES});
            let batch = self.core.batch(self.generation, self.log, &request, Class::Repair);
            let Batch { messages, exhausted } = batch.await?;
            for (seq, raw) in &messages {
                self.take(*seq, raw);
            }
            if exhausted && self.next <= end {
                self.confirm_end(end).await?;
            }
            if self.wasted > WASTE + WASTE_PER_HOLE * self.parts.len() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The replica knows no more. The log has come to `end`, and its newest message is kept until all others are gone: so
    /// the replica lags, or all has aged out.
    async fn confirm_end(&mut self, end: u64) -> Result<(), ApiError> {
        let is_over = match self.generation.connection.clustered() {
            true => self.log.asks.top().await?.facts.first_seq > end,
            false => self.first_kept(self.next).await?.is_none_or(|kept| kept > end),
        };
        if !is_over {
            return Err(lags());
        }
        self.next = end + 1;
        Ok(())
    }

    /// A replica may have dropped, by its own clock, what the leader still keeps: the oldest first.
    async fn confirm_start(&self) -> Result<(), ApiError> {
        match (self.first_kept(self.start).await?, self.first) {
            (Some(kept), first) if kept < first.unwrap_or(self.next) => {
                Err(ApiError::Unreadable("a replica has dropped what the leader keeps".into()))
            }
            // Who does not have what was read cannot tell what precedes it.
            (None, Some(_)) => Err(lags()),
            _ => Ok(()),
        }
    }

    /// The first message from here on that the leader keeps, as far as it has come.
    async fn first_kept(&self, from: u64) -> Result<Option<u64>, ApiError> {
        let which = json!({"next_by_subj": format!("{}>", self.prefix), "seq": from.max(1)});
        Ok(self.generation.api().message(&self.log.name, &which).await?.map(|kept| kept.seq))
    }

    fn take(&mut self, seq: u64, raw: &async_nats::Message) {
        self.next = seq + 1;
        self.first.get_or_insert(seq);
        let token = headers::text(raw, &NATS_SUBJECT).and_then(|subject| subject.strip_prefix(&self.prefix));
        let part = token.and_then(|token| self.by_token.get(token)).map(|at| &mut self.parts[*at]);
        let Some(part) = part.filter(|part| seq > part.after && headers::is_of(raw, &part.stream, part.hashed)) else {
            self.wasted += raw.payload.len() + OVERHEAD;
            return;
        };
        part.seen += 1;
        if part.left_out || seq > part.up_to {
            return;
        }
        let bytes = raw.payload.len() + OVERHEAD;
        if self.held + bytes > HELD {
            part.left_out = true;
            part.messages = Vec::new();
            self.held -= std::mem::take(&mut part.bytes);
            return;
        }
        self.held += bytes;
        part.bytes += bytes;
        part.messages.push(headers::message(raw, seq, headers::stored_at(raw).unwrap_or_default()));
    }

    /// What a stream keeps behind a hole's beginning is at most what was seen of it, and all that was not looked at. Where
    /// that reaches the limit, or the limit was raised since, only the leader can tell what was dropped. Where the first message
    /// that was read has gone since, others may have gone while they were read: that part is read alone, too.
    fn hand_out(self, facts: &Facts, uncounted: u64, filled: &mut [Option<Filled>]) {
        for part in self.parts {
            let after = part.seen + uncounted;
            let torn = part.messages.first().is_some_and(|first| first.offset < facts.first_seq);
            if part.left_out || torn || after >= facts.limit || part.after < facts.raised_at {
                continue;
            }
            // What a replica kept when it was read, the leader may have dropped since.
            let behind = Behind { kept: false, after, next: None, facts: facts.clone() };
            filled[part.index] = Some(Filled { messages: part.messages, behind });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(holes: &[(u64, u64)]) -> Vec<usize> {
        let part = |(index, (after, up_to)): (usize, &(u64, u64))| Part {
            index,
            stream: StreamName::from("a"),
            hashed: false,
            after: *after,
            up_to: *up_to,
            messages: Vec::new(),
            bytes: 0,
            seen: 0,
            left_out: false,
        };
        let mut parts = holes.iter().enumerate().map(part).collect();
        keep_what_is_worth_it(&mut parts);
        let mut indexes: Vec<_> = parts.iter().map(|part| part.index).collect();
        indexes.sort_unstable();
        indexes
    }

    #[test]
    fn holes_that_lie_together_are_read_together() {
        assert_eq!(kept(&[(1_000, 1_100), (1_050, 1_200), (900, 1_300)]), [0, 1, 2]);
        assert_eq!(kept(&[(9_000, 9_100), (9_050, 9_200), (1, 9_300), (8_900, 9_000)]), [0, 1, 3], "one is far behind");
        assert_eq!(kept(&[(1_000, 9_000), (20_000, 29_000)]), [] as [usize; 0], "too far apart");
        assert_eq!(kept(&[(1, 2)]), [] as [usize; 0], "one alone is read by its subject");
    }
}
