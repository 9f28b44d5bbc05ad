//! No broker: messages reach whoever is connected to this node now; no positions, no history, no sessions.

use super::Feed;
use super::memory::MemoryBroker;
use std::sync::Arc;

/// The log in memory with nothing to keep: publications take the unstored path.
pub fn new(feed: Arc<dyn Feed>) -> Arc<MemoryBroker> {
    MemoryBroker::without_log(feed)
}
