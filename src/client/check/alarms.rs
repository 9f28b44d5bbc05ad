//! Which rejections of history were false: the client's position was provably complete.

use super::log::StreamLog;
use super::record::{Arrival, Record, Reject};
use std::time::Duration;

/// For the way of a message and the resolution of expiry.
pub(super) const MARGIN: Duration = Duration::from_millis(500);

/// What a deployment keeps of each stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub messages: u64,
    pub ttl: Duration,
}

/// Why a rejection was false: the last message that the client had of this stream was kept when it was told.
pub(super) fn is_false_alarm(record: &Record, reject: &Reject, log: &StreamLog, limits: Limits) -> Option<String> {
    let stream = &record.follower.follows[reject.follow].stream;
    // What another subscription gets on the same connection came after this one had asked.
    let counts = |arrival: &&Arrival| {
        let same = arrival.follow == reject.follow;
        same || arrival.connection < reject.connection && record.follower.follows[arrival.follow].stream == *stream
    };
    let before = record.earlier.iter().chain(&record.arrivals[..reject.after]).rev().filter(counts);
    let (epoch, offset) = before.filter_map(|arrival| arrival.position.as_ref()).next()?;
    log.keeps(epoch, *offset, reject.at, limits)
}
