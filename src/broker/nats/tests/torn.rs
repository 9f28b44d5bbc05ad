//! Messages that are dropped to make room while others of their stream are read.

use super::super::slots::Class;
use super::*;
use crate::broker::{Hole, ReadFrom};
use futures_util::{FutureExt, poll};
use std::pin::pin;

/// A node whose streams keep so many messages.
async fn node(limit: u64) -> (Server, Node) {
    let server = Server::start();
    let mut config = config(&server);
    config.limits = Limits::plain(limit, Duration::from_secs(300), Duration::from_secs(300));
    let node = Node::ready(config).await;
    (server, node)
}

/// Publishes as many messages as the stream keeps, each of so many bytes.
async fn fill(node: &Node, stream: &StreamName, limit: u64, bytes: usize) -> Vec<u64> {
    let data = format!("\"{}\"", "x".repeat(bytes));
    let mut offsets = Vec::new();
    for _ in 0..limit {
        offsets.push(node.publish(stream, &data).await);
    }
    offsets
}

/// Reads, and does something else once the log has given its first answer. It gives the next one after that only: there is
/// one place for both.
async fn after_the_first_answer<T>(
    node: &Node,
    class: Class,
    reading: impl Future<Output = T>,
    meanwhile: impl Future<Output = ()>,
) -> T {
    let slots = &node.broker.core.slots;
    let mut places: Vec<_> = std::iter::from_fn(|| slots.read(class).now_or_never()).collect();
    let (mut reading, mut next) = (pin!(reading), pin!(slots.read(class)));
    assert!(poll!(&mut reading).is_pending() && poll!(&mut next).is_pending(), "there is no place");
    // Who waits longest gets it.
    drop(places.remove(0));
    let change = async {
        let _place = next.await;
        meanwhile.await;
    };
    tokio::join!(reading, change).0
}

#[tokio::test(flavor = "multi_thread")]
async fn row_02_a_page_of_two_answers_begins_anew_where_messages_were_dropped_between_them() {
    const LIMIT: u64 = 10;
    let (_server, node) = node(LIMIT).await;
    let stream = StreamName::from("a");
    // One answer holds some of them.
    let before = fill(&node, &stream, LIMIT, 200_000).await;
    let (first, end) = (before[0], before[9] + LIMIT);
    let reading = node.broker.read(&stream, ReadFrom::Offset(first), end, 100, 16 << 20);
    let dropping = async { assert_eq!(fill(&node, &stream, LIMIT, 200_000).await.last(), Some(&end)) };
    let page = after_the_first_answer(&node, Class::Client, reading, dropping).await.unwrap();
    let offsets: Vec<u64> = page.messages.iter().map(|message| message.offset).collect();
    assert_eq!(offsets, (end - LIMIT + 1..=end).collect::<Vec<_>>(), "nothing is missing in its midst");
    assert_eq!(page.remaining, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn row_06_a_hole_of_two_pages_is_read_anew_where_messages_were_dropped_between_them() {
    const LIMIT: u64 = 3;
    let (_server, node) = node(LIMIT).await;
    // The second page begins with what came meanwhile, or is empty.
    for (name, more) in [("a", LIMIT), ("b", 0)] {
        let stream = StreamName::from(name);
        let after = node.publish(&stream, "early").await;
        // Each is a page.
        let before = fill(&node, &stream, LIMIT, 600_000).await;
        let (end, up_to) = (before[2] + LIMIT, before[2] + more);
        let hole = [Hole { stream: stream.clone(), after, up_to, newest: after }];
        let dropping = async { assert_eq!(fill(&node, &stream, LIMIT, 600_000).await.last(), Some(&end)) };
        let filled = after_the_first_answer(&node, Class::Repair, node.broker.fill(&hole), dropping).await;
        assert!(filled.is_err(), "{filled:?}");
        let filled = node.broker.fill(&hole).await.unwrap().pop().flatten().unwrap();
        let offsets: Vec<u64> = filled.messages.iter().map(|message| message.offset).collect();
        assert_eq!(offsets, (before[2] + 1..=up_to).collect::<Vec<_>>());
    }
}
