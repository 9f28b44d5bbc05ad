//! Who follows a stream: attaching, catching up, and what the replay of each is sent next.

use super::{CursorId, Pump, Stream, Which};
use crate::hub::cursor::{Cursor, Start};
use crate::hub::fanout::insert_tightly;
use crate::hub::members::Had;
use crate::hub::pages::SharedPage;
use crate::hub::receiver::{HistoryJob, Identifier, Receiver};
use crate::hub::sabotage::{Safeguard, off};
use crate::protocol::Position;
use std::sync::Arc;

impl Stream {
    /// Adds an identifier to a connection's cursor (or makes the cursor), beginning after `from`. Held: nothing stored goes
    /// out until [`Self::history`], [`Self::reject`] or [`Self::release`].
    pub fn attach(
        &mut self,
        cursor: Option<CursorId>,
        receiver: &Arc<Receiver>,
        identifier: &Arc<Identifier>,
        from: &Position,
        held: bool,
    ) -> CursorId {
        let held = held && !off(Safeguard::Barrier);
        let group = self.fanout.join(identifier, receiver.encoding());
        let id = cursor.unwrap_or_else(|| insert_tightly(&mut self.cursors, Cursor::new(receiver.clone())));
        let reached = self.reached();
        let cursor = &mut self.cursors[id];
        cursor.pause(reached);
        // The log may have begun a new life since the caller opened the stream: what it has had of that life is nothing.
        let in_time = from.epoch == self.epoch;
        cursor.join(identifier, group, if in_time { reached.of(from.offset) } else { reached }, held);
        if !self.opened {
            cursor.reset();
        } else {
            if !in_time && !held {
                receiver.signal_loss(identifier);
            }
            cursor.resume_if_caught_up(self.complete_to);
        }
        id
    }

    /// Takes an identifier off a cursor. Answers whether the cursor is still there.
    pub fn detach(&mut self, id: CursorId, identifier: &str) -> bool {
        let Some(cursor) = self.cursors.get_mut(id) else { return false };
        for group in cursor.leave(identifier) {
            self.fanout.leave(group);
        }
        let cursor = &mut self.cursors[id];
        if !cursor.is_empty() {
            return true;
        }
        self.cursors.remove(id);
        false
    }

    /// The cursor's connection is gone.
    pub fn remove(&mut self, id: CursorId) {
        if let Some(mut cursor) = self.cursors.try_remove(id) {
            for group in cursor.leave_all() {
                self.fanout.leave(group);
            }
        }
    }

    /// An identifier catches up from a position that is known to be complete. The job is told when it has.
    pub fn history(&mut self, id: CursorId, identifier: &str, start: Start, job: Arc<HistoryJob>) {
        let reached = self.reached();
        let opened = self.opened;
        match self.cursors.get_mut(id) {
            Some(cursor) if opened && start.after.epoch == self.epoch => {
                cursor.pause(reached);
                cursor.begin_history(identifier, start, reached, job);
            }
            // The log began a new life since the position was proved.
            Some(cursor) => {
                job.reject();
                cursor.pause(reached);
                cursor.end_hold(identifier);
                if opened {
                    cursor.resume_if_caught_up(reached.up_to);
                }
            }
            None => job.abandon(),
        }
    }

    /// An identifier's request was refused: what was held follows.
    pub fn reject(&mut self, id: CursorId, identifier: &str) {
        let reached = self.reached();
        if let Some(cursor) = self.cursors.get_mut(id) {
            cursor.pause(reached);
            cursor.end_hold(identifier);
            if self.opened {
                cursor.resume_if_caught_up(self.complete_to);
            }
        }
    }

    /// The hold ended without a command: what was held follows without positions.
    pub fn release(&mut self, id: CursorId) {
        if let Some(cursor) = self.cursors.get_mut(id) {
            cursor.release();
            if self.opened {
                cursor.resume_if_caught_up(self.complete_to);
            }
        }
    }

    pub fn is_live(&self, id: CursorId) -> bool {
        self.cursors.get(id).is_none_or(Cursor::is_live)
    }

    /// Sends a cursor what it has not had, until its outbox holds `budget` bytes or it has caught up. `which`: a cursor that
    /// is not among those stays held.
    pub fn pump(&mut self, id: CursorId, budget: usize, which: Which) -> Pump {
        let Some(cursor) = self.cursors.get_mut(id) else { return Pump::Live };
        if cursor.is_live() {
            return Pump::Live;
        }
        if cursor.is_held() || !self.opened || (which == Which::Paced && !cursor.is_paced()) {
            return Pump::Held;
        }
        self.fanout.begin_replay(id);
        let pumped = self.catch_up(id, budget);
        self.fanout.end_replay();
        pumped
    }

    /// See [`Self::pump`].
    fn catch_up(&mut self, id: CursorId, budget: usize) -> Pump {
        let Some(cursor) = self.cursors.get_mut(id) else { return Pump::Live };
        if !cursor.send_backlog(budget, &mut self.fanout) {
            return Pump::Paced { within_page: true };
        }
        const PACED: Pump = Pump::Paced { within_page: false };
        let Some(after) = cursor.behind(self.complete_to) else {
            cursor.go_live();
            return Pump::Live;
        };
        if after.up_to < self.tail.floor() {
            if cursor.outbox().pending() >= budget {
                return PACED;
            }
            let position = Position { epoch: self.epoch.clone(), offset: after.up_to };
            return Pump::NeedPage { after: position, newest: after.newest };
        }
        let behind = self.tail.after(after.up_to);
        let wanted = behind.len();
        if cursor.replay(behind.map(|message| &**message), budget, &mut self.fanout) < wanted {
            return PACED;
        }
        cursor.advance(self.complete_to);
        cursor.go_live();
        Pump::Live
    }

    /// Hands a cursor what follows `after` from a shared page. `false`: there is none.
    pub fn supply_shared(&mut self, id: CursorId, after: u64) -> bool {
        let Some(page) = self.shared(after).cloned() else { return false };
        if let Some(cursor) = self.asking(id, after) {
            cursor.set_backlog(page, after);
        }
        true
    }

    /// The cursor, if it still needs what follows `after`. While the page was read another command may have begun to replay
    /// from further back, or the place may have gone to another connection.
    fn asking(&mut self, id: CursorId, after: u64) -> Option<&mut Cursor> {
        let complete_to = self.complete_to;
        let cursor = self.cursors.get_mut(id)?;
        let behind = cursor.behind(complete_to).is_some_and(|had| had.up_to == after);
        (behind && !cursor.is_live() && !cursor.is_held()).then_some(cursor)
    }

    /// Hands a cursor a page that follows `after`. `is_complete`: nothing is gone for good between what somebody has had and
    /// the page's first message, where that is further on.
    pub fn supply(&mut self, id: CursorId, after: u64, page: Arc<SharedPage>, is_complete: impl Fn(Had) -> bool) {
        let Some(cursor) = self.asking(id, after) else { return };
        let first = page.messages.first().map_or(page.to, |first| first.offset);
        cursor.hole_in_replay(first, is_complete);
        cursor.set_backlog(page, after);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{Facts, Head, LogState, Logs, Looked, StoreTime, Table};
    use crate::hub::{Frame, Outbox};
    use crate::protocol::{Encoding, Message, Meta, Payload};
    use bytes::Bytes;
    use std::task::{Context, Waker};
    use std::time::Duration;
    use tokio::time::Instant;

    fn message(offset: u64) -> Arc<Message> {
        let payload = Payload::from_json(Bytes::from_static(b"{}"));
        Arc::new(Message { offset, time: 1_000, payload, meta: Meta::default() })
    }

    fn facts() -> Facts {
        Facts {
            first_seq: 1,
            last_seq: 0,
            limit: 100,
            ttl: Duration::from_secs(60),
            revision: 1,
            raised_at: 0,
            now: StoreTime { millis: 1_000, clock: 1 },
            skew: Duration::ZERO,
        }
    }

    fn stream() -> Stream {
        let now = Instant::now();
        let logs = Logs::unknown(Table::new(Vec::new(), 5_000, Duration::from_secs(60)));
        let mut stream = Stream::new("chat".into(), logs, 1 << 20);
        stream.compare(&Looked::at_once(Head::default(), facts()), now);
        stream
    }

    /// `(identifier, offset)` of the frames that a client reads: up to so many.
    fn read(outbox: &Outbox, most: usize) -> Vec<(String, Option<u64>)> {
        let mut frames = std::collections::VecDeque::new();
        let _ = outbox.poll_take(&mut Context::from_waker(Waker::noop()), &mut frames, most);
        let text = |frame: &Frame| {
            let start = frame.iter().position(|byte| *byte == b'{').unwrap();
            serde_json::from_slice::<serde_json::Value>(&frame[start..]).unwrap()
        };
        frames.iter().map(text).map(|one| (one["identifier"].to_string(), one["offset"].as_u64())).collect()
    }

    /// However much is published while a restored client is held, nothing waits in its own queue.
    #[test]
    fn ruling_10_the_hold_is_a_cursor_not_a_buffer() {
        let now = Instant::now();
        let mut stream = stream();
        let outbox = Arc::new(Outbox::new(Encoding::Json, 0));
        let receiver = Receiver::new(outbox.clone(), Vec::new(), true);
        let cursor = stream.attach(None, &receiver, &Identifier::new("i".into()), &stream.position(0), true);
        for offset in 1..=1_000 {
            stream.live(offset - 1, message(offset), now);
        }
        assert_eq!((outbox.pending(), stream.pump(cursor, 1 << 20, Which::All)), (0, Pump::Held));
        stream.release(cursor);
        assert_eq!(stream.pump(cursor, 1_000, Which::All), Pump::Paced { within_page: false });
        assert!((1_000..2_000).contains(&outbox.pending()), "{} bytes wait", outbox.pending());
    }

    /// Live messages beyond the limit stay in the stream, between the copies of one message too; each copy comes once, in
    /// order, with its position.
    #[test]
    fn row_04_live_messages_wait_in_the_stream_between_copies_too() {
        let now = Instant::now();
        let mut stream = stream();
        let outbox = Arc::new(Outbox::new(Encoding::Json, 1_000));
        let receiver = Receiver::new(outbox.clone(), Vec::new(), true);
        let mut cursor = None;
        for name in ["a", "b", "c"] {
            cursor = Some(stream.attach(cursor, &receiver, &Identifier::new(name.into()), &stream.position(0), false));
        }
        let cursor = cursor.unwrap();
        for offset in 1..=100 {
            stream.live(offset - 1, message(offset), now);
        }
        assert!((1_000..1_300).contains(&outbox.pending()), "{} bytes wait", outbox.pending());
        assert!(!stream.is_live(cursor));
        let mut got = Vec::new();
        loop {
            let frames = read(&outbox, 2);
            if frames.is_empty() {
                break;
            }
            got.extend(frames);
            assert_ne!(stream.pump(cursor, 500, Which::Paced), Pump::Held);
            assert!(outbox.pending() < 1_300, "{} bytes wait", outbox.pending());
        }
        let wanted = (1..=100).flat_map(|offset| ["a", "b", "c"].map(|name| (format!("{name:?}"), Some(offset))));
        assert_eq!(got, wanted.collect::<Vec<_>>());
        assert!(stream.is_live(cursor));
    }

    /// What a client that begins at offset 0 is sent of 50 messages, each one with its identifier.
    fn catch_up(stream: &mut Stream, name: &str) -> (CursorId, Vec<Frame>) {
        let outbox = Arc::new(Outbox::new(Encoding::Json, 0));
        let receiver = Receiver::new(outbox.clone(), Vec::new(), true);
        let cursor = stream.attach(None, &receiver, &Identifier::new(name.into()), &stream.position(0), false);
        assert_eq!(stream.pump(cursor, 1 << 20, Which::All), Pump::Live);
        let mut frames = std::collections::VecDeque::new();
        let _ = outbox.poll_take(&mut Context::from_waker(Waker::noop()), &mut frames, 100);
        let named = |frame: &&Frame| String::from_utf8_lossy(frame).contains(&format!("{{\"identifier\":\"{name}\""));
        assert_eq!((frames.len(), frames.iter().filter(named).count()), (50, 50), "for {name}");
        (cursor, frames.into())
    }

    #[test]
    fn clients_that_catch_up_together_share_frames_and_nobody_gets_those_of_another_identifier() {
        let now = Instant::now();
        let mut stream = stream();
        for offset in 1..=50 {
            stream.live(offset - 1, message(offset), now);
        }
        let shared = |one: &[Frame], other: &[Frame]| {
            one.iter().zip(other).filter(|(one, other)| one.as_ptr() == other.as_ptr()).count()
        };
        let (_, first) = catch_up(&mut stream, "a");
        let (_, second) = catch_up(&mut stream, "a");
        let (_, third) = catch_up(&mut stream, "a");
        assert_eq!(shared(&first, &second), 0, "the first was alone");
        // Some take each other's places.
        let found = shared(&second, &third);
        assert!(found > 40, "{found} of 50");
        let (cursor, _) = catch_up(&mut stream, "b");
        stream.remove(cursor);
        // It gets the number of the group that has just ended.
        catch_up(&mut stream, "c");
        let (_, fourth) = catch_up(&mut stream, "a");
        stream.expire_pages(now);
        stream.expire_pages(now);
        let (_, fifth) = catch_up(&mut stream, "a");
        assert_eq!(shared(&fourth, &fifth), 0, "the herd has passed");
    }

    /// The rejections that wait for the client, and the rest.
    fn rejections(outbox: &Outbox) -> usize {
        let mut frames = std::collections::VecDeque::new();
        let _ = outbox.poll_take(&mut std::task::Context::from_waker(std::task::Waker::noop()), &mut frames, 100);
        frames.iter().filter(|frame| String::from_utf8_lossy(frame).contains("reject_history")).count()
    }

    /// A stream that is open in another life of its log than the position was proved in.
    fn reopened() -> (Stream, Position) {
        let table = Table::new(Vec::new(), 100, Duration::from_secs(60));
        let life = |epoch: &str| {
            let state = LogState { epoch: epoch.into(), limit: 100, ttl: Duration::from_secs(60) };
            Logs::new(table.clone(), vec![state])
        };
        let now = Instant::now();
        let mut stream = Stream::new("chat".into(), life("e1"), 1 << 20);
        stream.compare(&Looked::at_once(Head { newest: 7, up_to: 9 }, facts()), now);
        let proved = stream.position(7);
        stream.settle(&life("e2"));
        stream.compare(&Looked::at_once(Head { newest: 3, up_to: 4 }, facts()), now);
        (stream, proved)
    }

    #[test]
    fn row_03_a_position_that_was_proved_in_one_life_of_the_log_starts_nothing_in_the_next() {
        let (mut stream, proved) = reopened();
        let outbox = Arc::new(Outbox::new(Encoding::Json, 0));
        let receiver = Receiver::new(outbox.clone(), Vec::new(), true);
        let identifier = Identifier::new("i".into());
        let cursor = stream.attach(None, &receiver, &identifier, &stream.position(4), true);
        let job = HistoryJob::new(receiver.clone(), identifier.clone(), 1);
        stream.history(cursor, "i", Start { after: proved, claimed: None }, job);
        assert_eq!(
            (stream.pump(cursor, 1 << 20, Which::All), rejections(&outbox)),
            (Pump::Live, 1),
            "told, not confirmed"
        );
        stream.live(3, message(5), Instant::now());
        assert!(outbox.pending() > 0, "and live from now on");
    }

    #[test]
    fn row_03_whoever_begins_in_a_life_of_the_log_that_is_over_is_told() {
        let (mut stream, proved) = reopened();
        let outbox = Arc::new(Outbox::new(Encoding::Json, 0));
        let receiver = Receiver::new(outbox.clone(), Vec::new(), true);
        let cursor = stream.attach(None, &receiver, &Identifier::new("i".into()), &proved, false);
        assert_eq!((stream.is_live(cursor), rejections(&outbox)), (true, 1));
        stream.live(3, message(5), Instant::now());
        assert!(outbox.pending() > 0, "an offset of the former life holds nothing back");
    }

    /// A page that is read for one command must not be taken for what another one needs.
    #[test]
    fn row_05_a_page_comes_too_late_for_a_replay_that_has_begun_further_back() {
        let now = Instant::now();
        let logs = Logs::unknown(Table::new(Vec::new(), 5_000, Duration::from_secs(60)));
        let mut stream = Stream::new("chat".into(), logs, 1 << 20);
        stream.compare(&Looked::at_once(Head { newest: 20, up_to: 20 }, facts()), now);
        let receiver = Receiver::new(Arc::new(Outbox::new(Encoding::Json, 0)), Vec::new(), true);
        let identifier = Identifier::new("i".into());
        let cursor = stream.attach(None, &receiver, &identifier, &stream.position(20), true);
        let at = |stream: &Stream, after| Start { after: stream.position(after), claimed: None };
        let job = || HistoryJob::new(receiver.clone(), identifier.clone(), 1);
        stream.history(cursor, "i", at(&stream, 10), job());
        let needs = |stream: &Stream, after| Pump::NeedPage { after: stream.position(after), newest: after };
        assert_eq!(stream.pump(cursor, 1_000, Which::All), needs(&stream, 10));
        // Meanwhile the client asks for more.
        stream.history(cursor, "i", at(&stream, 5), job());
        let page = SharedPage { from: 10, to: 20, messages: vec![message(15)], since: None };
        stream.supply(cursor, 10, page.into(), |_| true);
        assert_eq!(stream.pump(cursor, 1_000, Which::All), needs(&stream, 5), "6 to 10 are not skipped");
    }

    /// A stream of which this node holds nothing below its newest message.
    fn trimmed(newest: u64) -> Stream {
        let logs = Logs::unknown(Table::new(Vec::new(), 5_000, Duration::from_secs(60)));
        let mut stream = Stream::new("chat".into(), logs, 1 << 20);
        stream.compare(&Looked::at_once(Head { newest, up_to: newest }, facts()), Instant::now());
        stream
    }

    /// What the log keeps behind `from`, all of it.
    fn page(from: u64, to: u64) -> Arc<SharedPage> {
        Arc::new(SharedPage { from, to, messages: (from + 1..=to).map(message).collect(), since: None })
    }

    /// Its head was taken before another one was sent half a page, and it joins after that.
    #[test]
    fn row_03_whoever_joins_behind_a_page_that_is_half_sent_gets_what_lies_between() {
        for (held, released) in [(false, false), (true, false), (true, true)] {
            let mut stream = trimmed(20);
            let outbox = Arc::new(Outbox::new(Encoding::Json, 0));
            let receiver = Receiver::new(outbox.clone(), Vec::new(), true);
            let (a, b) = (Identifier::new("a".into()), Identifier::new("b".into()));
            let cursor = stream.attach(None, &receiver, &a, &stream.position(20), true);
            let start = Start { after: stream.position(8), claimed: None };
            stream.history(cursor, "a", start, HistoryJob::new(receiver.clone(), a.clone(), 1));
            assert!(matches!(stream.pump(cursor, 1_000, Which::All), Pump::NeedPage { .. }));
            stream.supply(cursor, 8, page(8, 20), |_| true);
            assert_eq!(stream.pump(cursor, 1_000, Which::All), Pump::Paced { within_page: true });
            let mut got = read(&outbox, 100);
            assert!((4..12).contains(&got.len()), "half a page: {got:?}");
            stream.attach(Some(cursor), &receiver, &b, &stream.position(10), held);
            match (held, released) {
                (true, true) => stream.release(cursor),
                (true, false) => stream.reject(cursor, "b"),
                _ => {}
            }
            while let Pump::NeedPage { after, .. } = stream.pump(cursor, 1 << 20, Which::All) {
                stream.supply(cursor, after.offset, page(after.offset, 20), |_| true);
            }
            got.extend(read(&outbox, 100));
            let of = |name: &str| got.iter().filter(|(one, _)| *one == format!("{name:?}")).count();
            assert_eq!((of("a"), of("b")), (12 + 1, 10), "9 to 20 and the answer, 11 to 20: {got:?}");
            assert!(stream.is_live(cursor));
        }
    }

    /// The hole reaches beyond where the first of them stands.
    #[test]
    fn row_03_everybody_before_the_end_of_a_hole_is_told() {
        let mut stream = trimmed(20);
        let outbox = Arc::new(Outbox::new(Encoding::Json, 0));
        let receiver = Receiver::new(outbox.clone(), Vec::new(), true);
        let cursor = ["a", "b", "c"].into_iter().fold(None, |cursor, name| {
            Some(stream.attach(cursor, &receiver, &Identifier::new(name.into()), &stream.position(20), true))
        });
        let cursor = cursor.unwrap();
        for (name, after) in [("a", 8), ("b", 11), ("c", 16)] {
            let start = Start { after: stream.position(after), claimed: None };
            let job = HistoryJob::new(receiver.clone(), Identifier::new(name.into()), 1);
            stream.history(cursor, name, start, job);
        }
        assert!(matches!(stream.pump(cursor, 1_000, Which::All), Pump::NeedPage { .. }));
        stream.supply(cursor, 8, page(14, 20), |_| false);
        assert_eq!(rejections(&outbox), 2, "a and b");
        assert_eq!(stream.pump(cursor, 1 << 20, Which::All), Pump::Live);
    }

    /// The log has come further than the stream's newest message when a client's queue is full.
    #[test]
    fn row_04_whoever_waits_for_room_stands_at_a_message_of_the_stream() {
        let now = Instant::now();
        let mut stream = stream();
        let outbox = Arc::new(Outbox::new(Encoding::Json, 300));
        let receiver = Receiver::new(outbox.clone(), Vec::new(), true);
        let cursor = stream.attach(None, &receiver, &Identifier::new("i".into()), &stream.position(0), false);
        for offset in 1..=5 {
            stream.live(offset - 1, message(offset), now);
            read(&outbox, 100);
        }
        assert!(stream.is_live(cursor));
        stream.compare(&Looked::at_once(Head { newest: 5, up_to: 10 }, facts()), now);
        // Without room at all.
        while outbox.pending() < 300 {
            outbox.push(Bytes::from_static(b"{}"));
        }
        stream.live(5, message(11), now);
        stream.live(11, message(12), now);
        stream.tail_mut().trim(0, 0);
        read(&outbox, 100);
        let needs = Pump::NeedPage { after: stream.position(10), newest: 5 };
        assert_eq!(stream.pump(cursor, 1 << 20, Which::Paced), needs);
    }

    /// The log begins a new life while a client is held, and the hold ends before the stream is open again.
    #[test]
    fn row_03_a_hold_that_ends_between_two_lives_of_the_log_skips_nothing_of_the_next() {
        let life = |epoch: &str| {
            let table = Table::new(Vec::new(), 100, Duration::from_secs(60));
            let state = LogState { epoch: epoch.into(), limit: 100, ttl: Duration::from_secs(60) };
            Logs::new(table, vec![state])
        };
        let now = Instant::now();
        let logs = life("e1");
        let mut stream = Stream::new("chat".into(), logs.clone(), 1 << 20);
        stream.compare(&Looked::at_once(Head { newest: 5, up_to: 5 }, facts()), now);
        let outbox = Arc::new(Outbox::new(Encoding::Json, 0));
        let receiver = Receiver::new(outbox.clone(), Vec::new(), true);
        let identifier = Identifier::new("i".into());
        let cursor = stream.attach(None, &receiver, &identifier, &stream.position(5), true);
        let state = LogState { epoch: "e2".into(), limit: 100, ttl: Duration::from_secs(60) };
        stream.settle(&Logs::new(logs.table().clone(), vec![state]));
        stream.release(cursor);
        stream.compare(&Looked::at_once(Head { newest: 18, up_to: 18 }, facts()), now);
        stream.live(18, message(19), now);
        let said: Vec<_> = read(&outbox, 100).into_iter().map(|(_, offset)| offset).collect();
        assert_eq!(said, [None, None], "told of the loss, and 19 without its position");
        let start = Start { after: stream.position(10), claimed: None };
        stream.history(cursor, "i", start, HistoryJob::new(receiver.clone(), identifier, 1));
        assert!(matches!(stream.pump(cursor, 1 << 20, Which::All), Pump::NeedPage { .. }));
        stream.supply(cursor, 10, page(10, 18), |_| true);
        assert_eq!(stream.pump(cursor, 1 << 20, Which::All), Pump::Live);
        let offsets: Vec<_> = read(&outbox, 100).into_iter().filter_map(|(_, offset)| offset).collect();
        assert_eq!(offsets, (11..=18).collect::<Vec<_>>());
    }

    /// A message that had no predecessor, where the last look at the log is too old to tell whether others have come and
    /// gone before it.
    #[test]
    fn row_06_a_hole_that_was_filled_is_not_filled_again() {
        let now = Instant::now();
        let late = |offset| {
            let payload = Payload::from_json(Bytes::from_static(b"{}"));
            Arc::new(Message { offset, time: 600_000, payload, meta: Meta::default() })
        };
        let mut stream = stream();
        let gap = stream.live(0, late(10), now).expect("the last look was 10 minutes ago");
        let behind = crate::broker::Behind { kept: false, after: 1, next: Some(10), facts: facts() };
        assert_eq!(stream.repaired(gap, &[], &behind, now), None);
        assert_eq!(stream.complete_to(), 10);
    }

    /// What has been released makes room for what arrives behind the next hole.
    #[test]
    fn row_06_only_what_waits_behind_a_hole_counts() {
        let now = Instant::now();
        let large = |offset: u64| {
            let payload = Payload::from_json(Bytes::from(vec![b'1'; 1 << 20]));
            Arc::new(Message { offset, time: 1_000, payload, meta: Meta::default() })
        };
        let hear = |stream: &mut Stream, offsets: std::ops::RangeInclusive<u64>| {
            for offset in offsets {
                assert_eq!(stream.live(offset - 1, large(offset), now), None);
            }
        };
        let mut stream = stream();
        let behind = crate::broker::Behind { kept: true, after: 0, next: None, facts: facts() };
        let first = stream.live(1, large(2), now).expect("1 is missing");
        hear(&mut stream, 3..=4);
        // 5 is missing, too.
        stream.live(5, message(6), now);
        let second = stream.repaired(first, &[message(1)], &behind, now).expect("a second hole");
        assert_eq!(stream.complete_to(), 4);
        hear(&mut stream, 7..=8);
        assert_eq!(stream.repaired(second, &[message(5)], &behind, now), None);
        assert_eq!((stream.complete_to(), stream.take_left_out()), (8, false));
        // More than may wait.
        let third = stream.live(9, large(10), now).expect("9 is missing");
        hear(&mut stream, 11..=15);
        assert!(!stream.take_left_out(), "not before the hole is closed");
        assert_eq!(stream.repaired(third, &[message(9)], &behind, now), None);
        let left_out = 15 - stream.complete_to();
        assert!((1..5).contains(&left_out), "{left_out} were left out");
        assert_eq!([stream.take_left_out(), stream.take_left_out()], [true, false]);
    }
}
