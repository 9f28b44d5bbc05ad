//! One stream without I/O: what it hears, and what those who follow it are sent.

mod followers;
mod holes;
mod lives;

use super::*;
use crate::broker::{Facts, LogState, Table};
use crate::hub::cursor::Start;
use crate::hub::receiver::{HistoryJob, Identifier, Receiver};
use crate::hub::{Frame, Outbox};
use crate::protocol::{Encoding, Meta, Payload};
use bytes::Bytes;
use std::task::{Context, Waker};

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
        stored: StoreTime { millis: 1_000, clock: 1 },
        skew: Duration::ZERO,
    }
}

fn stream() -> Stream {
    trimmed(0)
}

/// A stream of which this node holds nothing below its newest message.
fn trimmed(newest: u64) -> Stream {
    let logs = Logs::unknown(Table::new(Vec::new(), 5_000, Duration::from_secs(60)));
    let mut stream = Stream::new("chat".into(), logs, 1 << 20);
    stream.compare(&Looked::at_once(Head { newest, up_to: newest }, facts()), Instant::now());
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

/// The rejections that wait for the client, and the rest.
fn rejections(outbox: &Outbox) -> usize {
    let mut frames = std::collections::VecDeque::new();
    let _ = outbox.poll_take(&mut Context::from_waker(Waker::noop()), &mut frames, 100);
    frames.iter().filter(|frame| String::from_utf8_lossy(frame).contains("reject_history")).count()
}

/// What the log keeps behind `from`, all of it.
fn page(from: u64, to: u64) -> Arc<SharedPage> {
    Arc::new(SharedPage { from, to, messages: (from + 1..=to).map(message).collect(), since: None })
}
