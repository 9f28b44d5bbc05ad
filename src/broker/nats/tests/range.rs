//! Holes of many streams, read together.

use super::*;
use crate::broker::{Filled, Hole};

/// Messages that a stream keeps.
const LIMIT: u64 = 10;

/// Streams that were published to in turn, and the offsets of each.
async fn published(node: &Node, streams: usize, rounds: usize) -> Vec<(StreamName, Vec<u64>)> {
    let name = |number: usize| match number % 5 {
        // Its token is a hash.
        0 => format!("{}{number}", "long".repeat(80)),
        _ => format!("s{number}"),
    };
    let mut all: Vec<_> = (0..streams).map(|number| (StreamName::from(name(number)), Vec::new())).collect();
    for round in 0..rounds {
        for (stream, offsets) in &mut all {
            offsets.push(node.publish(stream, &round.to_string()).await);
        }
    }
    all
}

fn offsets(filled: &Filled) -> Vec<u64> {
    filled.messages.iter().map(|message| message.offset).collect()
}

async fn node() -> (Server, Node) {
    let server = Server::start();
    let mut config = config(&server);
    config.limits = Limits::plain(LIMIT, Duration::from_secs(300), Duration::from_secs(300));
    let node = Node::ready(config).await;
    (server, node)
}

#[tokio::test(flavor = "multi_thread")]
async fn row_06_what_is_read_together_is_what_is_read_alone() {
    let (_server, node) = node().await;
    let all = published(&node, 40, 6).await;
    let last = *all[39].1.last().unwrap();
    let hole = |(number, (stream, offsets)): (usize, &(StreamName, Vec<u64>))| {
        let after = offsets[number % 5];
        // Some end before the newest message, some where no message of the stream is.
        let up_to = if number % 3 == 0 { offsets[5] - 1 } else { last };
        Hole { stream: stream.clone(), after, up_to, newest: after }
    };
    let holes: Vec<Hole> = all.iter().enumerate().map(hole).collect();
    let together = node.broker.fill(&holes).await.unwrap();
    assert_eq!(together.iter().flatten().count(), holes.len(), "all are worth it, and none is full");
    for (hole, filled) in holes.iter().zip(&together) {
        let filled = filled.as_ref().unwrap();
        let alone = node.broker.fill(std::slice::from_ref(hole)).await.unwrap().pop().flatten().unwrap();
        assert_eq!(filled.messages, alone.messages, "{hole:?}");
        assert_eq!(filled.behind.facts.limit, LIMIT);
        let kept = node.broker.read(&hole.stream, crate::broker::ReadFrom::Offset(hole.after + 1), last, 99, 9_999);
        let kept = kept.await.unwrap().messages.len() as u64;
        assert!((kept..LIMIT).contains(&filled.behind.after), "never fewer than the {kept} kept: {filled:?}");
    }
}

/// What was dropped to make room shows in the count, or the stream is left to be asked for alone.
#[tokio::test(flavor = "multi_thread")]
async fn row_06_a_stream_that_may_have_dropped_messages_is_left_out() {
    let (_server, node) = node().await;
    let quiet = published(&node, 20, 2).await;
    let busy = StreamName::from("busy");
    let first = node.publish(&busy, "0").await;
    for number in 1..=LIMIT + 5 {
        node.publish(&busy, &number.to_string()).await;
    }
    let last = node.publish(&quiet[0].0, "last").await;
    let hole = |stream: &StreamName, after| Hole { stream: stream.clone(), after, up_to: last, newest: after };
    let mut holes: Vec<Hole> = quiet.iter().map(|(stream, offsets)| hole(stream, offsets[0])).collect();
    holes.push(hole(&busy, first));
    let filled = node.broker.fill(&holes).await.unwrap();
    assert!(filled.last().unwrap().is_none(), "{filled:?}");
    assert!(filled[..20].iter().all(Option::is_some));
    assert_eq!(offsets(filled[0].as_ref().unwrap()), [quiet[0].1[1], last]);
    let alone = node.broker.fill(&holes[20..]).await.unwrap().pop().flatten().unwrap();
    assert_eq!((offsets(&alone).len() as u64, alone.behind.kept), (LIMIT, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn row_06_a_hole_far_behind_the_others_does_not_make_them_slow() {
    let (_server, node) = node().await;
    let lonely = StreamName::from("lonely");
    let early = node.publish(&lonely, "early").await;
    let filler = StreamName::from("filler");
    for batch in 0..50 {
        let publish = (0..300).map(|number| node.publish(&filler, if batch + number == 0 { "a" } else { "b" }));
        futures_util::future::join_all(publish).await;
    }
    let quiet = published(&node, 20, 2).await;
    let last = quiet[19].1[1];
    let hole = |stream: &StreamName, after| Hole { stream: stream.clone(), after, up_to: last, newest: after };
    let mut holes: Vec<Hole> = quiet.iter().map(|(stream, offsets)| hole(stream, offsets[0])).collect();
    holes.push(hole(&lonely, early));
    let filled = node.broker.fill(&holes).await.unwrap();
    assert!(filled[20].is_none(), "15,000 messages for one hole");
    assert!(filled[..20].iter().all(|one| one.as_ref().is_some_and(|one| one.messages.len() == 1)));
}
