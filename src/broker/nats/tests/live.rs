//! Subscriptions of the live feed that are given up, or closed, while they are being made.

use super::super::live::{LiveSet, LiveStream};
use super::*;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Nobody takes a subscription from the set until [`take`] does.
async fn idle_set() -> (Server, Node, LiveSet, Vec<mpsc::Receiver<LiveStream>>) {
    let server = Server::start();
    let mut config = config(&server);
    // Three subscriptions per stream: one that does not fit any more is not the first of its stream.
    config.peers = vec!["east".into(), "west".into()];
    let node = Node::ready(config).await;
    let (set, inputs) = LiveSet::new();
    (server, node, set, inputs)
}

/// Subscribes streams until one has to wait, which is then given up.
async fn fill(node: &Node, set: &LiveSet) -> StreamName {
    let core = &node.broker.core;
    let generation = core.generation().unwrap();
    for number in 0.. {
        let stream = StreamName::from(format!("s{number}"));
        let opening = set.open(&generation, std::slice::from_ref(&stream), &core.names);
        match timeout(Duration::from_secs(2), opening).await {
            Ok(opened) => opened.unwrap(),
            Err(_) => return stream,
        }
    }
    unreachable!("there is room for a few hundred")
}

/// Subscriptions that were handed over: `(ended, running)`.
fn take(inputs: &mut [mpsc::Receiver<LiveStream>]) -> (usize, usize) {
    let handed_over = inputs.iter_mut().flat_map(|input| std::iter::from_fn(|| input.try_recv().ok()));
    let (ended, running): (Vec<_>, Vec<_>) =
        handed_over.map(|mut stream| stream.next().now_or_never()).partition(|next| matches!(next, Some(None)));
    (ended.len(), running.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn row_05_a_subscription_whose_opening_is_given_up_ends() {
    let (_server, node, set, mut inputs) = idle_set().await;
    let given_up = fill(&node, &set).await;
    assert!(!set.is_open(&given_up));
    let (ended, running) = take(&mut inputs);
    assert_eq!((ended, running % 3), (1, 0), "the one that was handed over before the next had to wait");
}

#[tokio::test(flavor = "multi_thread")]
async fn row_05_a_stream_that_is_closed_while_it_is_opened_is_not_open() {
    let (_server, node, set, mut inputs) = idle_set().await;
    let stream = fill(&node, &set).await;
    let core = &node.broker.core;
    let generation = core.generation().unwrap();
    let mut opening = Box::pin(set.open(&generation, std::slice::from_ref(&stream), &core.names));
    assert!(timeout(Duration::from_secs(1), &mut opening).await.is_err(), "it waits");
    set.close(&stream);
    take(&mut inputs);
    opening.await.unwrap();
    assert!(!set.is_open(&stream));
    let (_, running) = take(&mut inputs);
    assert_eq!(running, 0);
}
