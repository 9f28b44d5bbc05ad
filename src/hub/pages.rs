//! Pages read from the log a moment ago, shared by cursors that catch up on the same part of a stream: a herd of
//! returning clients costs one reading, not one for each of them.

use crate::metrics;
use crate::protocol::Message;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Pages of one stream; beyond them the oldest is dropped and read again when somebody asks. With the bytes of a page
/// this bounds them to what a tail may hold.
const MOST: usize = 16;

/// A herd has passed by then; what comes later reads anew.
const LIFE: Duration = Duration::from_secs(5);

/// Everything ever stored in `(from, to]`.
pub struct SharedPage {
    pub from: u64,
    pub to: u64,
    pub messages: Vec<Arc<Message>>,
    /// It begins with the first message kept that was stored in this second (Unix) or later.
    pub since: Option<u64>,
}

impl SharedPage {
    /// Place of the first message behind an offset within the page.
    pub fn place_after(&self, offset: u64) -> usize {
        self.messages.partition_point(|message| message.offset <= offset)
    }

    /// The position after which everything stored at `since` or later follows, if this page can tell.
    fn position_at(&self, since: u64) -> Option<u64> {
        let second = |message: &Arc<Message>| message.time / 1000;
        let reaches_back = self.since.is_some_and(|from| from <= since)
            || self.messages.first().is_some_and(|first| second(first) < since);
        let at = self.messages.partition_point(|message| second(message) < since);
        (reaches_back && at < self.messages.len())
            .then(|| if at == 0 { self.from } else { self.messages[at - 1].offset })
    }

    fn bytes(&self) -> usize {
        self.messages.iter().map(|message| message.footprint()).sum()
    }
}

struct Entry {
    page: Arc<SharedPage>,
    bytes: usize,
    read: Instant,
}

#[derive(Default)]
pub struct Pages {
    entries: VecDeque<Entry>,
    bytes: usize,
}

impl Pages {
    pub fn share(&mut self, page: Arc<SharedPage>, now: Instant) {
        if self.entries.len() == MOST {
            self.entries.pop_front();
        }
        self.entries.push_back(Entry { bytes: page.bytes(), page, read: now });
        self.count();
    }

    /// A page with what follows an offset. The one that reaches farthest, so that cursors behind one another meet.
    pub fn after(&self, offset: u64) -> Option<&Arc<SharedPage>> {
        let pages = self.entries.iter().map(|entry| &entry.page);
        pages.filter(|page| page.from <= offset && offset < page.to).max_by_key(|page| page.to)
    }

    /// The position after which everything stored at `since` (Unix seconds) or later follows.
    pub fn position_at(&self, since: u64) -> Option<u64> {
        self.entries.iter().find_map(|entry| entry.page.position_at(since))
    }

    /// Drops what was read a while ago. Answers whether nothing is left.
    pub fn expire(&mut self, now: Instant) -> bool {
        let before = self.entries.len();
        self.entries.retain(|entry| now.duration_since(entry.read) < LIFE);
        if self.entries.len() < before {
            self.count();
        }
        self.entries.is_empty()
    }

    fn count(&mut self) {
        let bytes = self.entries.iter().map(|entry| entry.bytes).sum();
        metrics::SNAPSHOT_BYTES.add(bytes as i64 - self.bytes as i64);
        self.bytes = bytes;
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        metrics::SNAPSHOT_BYTES.add(-(self.bytes as i64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Meta, Payload};
    use bytes::Bytes;

    fn page(from: u64, to: u64, offsets: &[u64], since: Option<u64>) -> Arc<SharedPage> {
        let message = |offset: &u64| {
            let payload = Payload::from_json(Bytes::from_static(b"1234"));
            Arc::new(Message { offset: *offset, time: *offset * 1000, payload, meta: Meta::default() })
        };
        Arc::new(SharedPage { from, to, messages: offsets.iter().map(message).collect(), since })
    }

    fn behind(pages: &Pages, offset: u64) -> Vec<u64> {
        let page = pages.after(offset).unwrap();
        page.messages[page.place_after(offset)..].iter().map(|message| message.offset).collect()
    }

    #[test]
    fn a_position_within_a_page_is_served_from_it() {
        let mut pages = Pages::default();
        pages.share(page(10, 20, &[12, 15, 20], None), Instant::now());
        assert!(pages.after(9).is_none(), "what lies before the page is unknown");
        assert_eq!(behind(&pages, 10), [12, 15, 20]);
        assert_eq!(behind(&pages, 13), [15, 20]);
        assert!(pages.after(20).is_none(), "what lies behind the page is unknown");
    }

    #[test]
    fn a_time_is_found_only_within_what_the_page_reaches() {
        let mut pages = Pages::default();
        pages.share(page(10, 20, &[12, 15, 20], None), Instant::now());
        assert_eq!(pages.position_at(12), None, "there may be more in that second");
        assert_eq!(pages.position_at(13), Some(12));
        assert_eq!(pages.position_at(20), Some(15));
        assert_eq!(pages.position_at(21), None, "it lies behind the page");
        pages.share(page(10, 20, &[12, 15, 20], Some(11)), Instant::now());
        assert_eq!(pages.position_at(11), Some(10));
    }

    #[test]
    fn pages_are_few_and_short_lived() {
        let mut pages = Pages::default();
        let now = Instant::now();
        for n in 0..20 {
            pages.share(page(n * 10, n * 10 + 10, &[n * 10 + 5], None), now);
        }
        assert!(pages.after(35).is_none());
        assert!(pages.after(45).is_some());
        assert!(!pages.expire(now + LIFE / 2));
        assert!(pages.expire(now + LIFE));
    }
}
