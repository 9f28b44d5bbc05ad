//! Publishing a batch: streams side by side, the items of one stream one after another.

use crate::broker::{AppendError, Appended, Broker};
use crate::protocol::{Publication, StreamName};
use futures_util::{StreamExt, stream};
use std::collections::HashMap;

/// Streams of one batch that are published to at the same time. More wait their turn: a batch over thousands of streams
/// must not fill the broker's pipeline at the expense of other publishers.
const STREAMS_AT_ONCE: usize = 256;

/// Publishes all items and answers one result per item, in the batch's order.
///
/// Of each stream one item is in flight at a time, so that the order survives an election. After a failure the later
/// items of the same stream are not sent and answer [`AppendError::NotStored`]: stored ones would stand before the
/// failed one's retry.
pub async fn publish_all(broker: &dyn Broker, items: Vec<Publication>) -> Vec<Result<Appended, AppendError>> {
    let mut results: Vec<Option<Result<Appended, AppendError>>> = Vec::new();
    results.resize_with(items.len(), || None);

    let lanes = stream::iter(lanes(items)).map(|lane| publish_lane(broker, lane)).buffer_unordered(STREAMS_AT_ONCE);
    let mut lanes = std::pin::pin!(lanes);
    while let Some(done) = lanes.next().await {
        for (index, result) in done {
            results[index] = Some(result);
        }
    }
    results.into_iter().map(|result| result.expect("every item is in exactly one lane")).collect()
}

/// The items of one stream, each with its place in the batch.
type Lane = Vec<(usize, Publication)>;

fn lanes(items: Vec<Publication>) -> Vec<Lane> {
    let mut lanes: Vec<Lane> = Vec::new();
    let mut lane_of: HashMap<StreamName, usize> = HashMap::new();
    for (index, item) in items.into_iter().enumerate() {
        let lane = *lane_of.entry(item.stream.clone()).or_insert_with(|| {
            lanes.push(Vec::new());
            lanes.len() - 1
        });
        lanes[lane].push((index, item));
    }
    lanes
}

async fn publish_lane(broker: &dyn Broker, lane: Lane) -> Vec<(usize, Result<Appended, AppendError>)> {
    let mut results = Vec::with_capacity(lane.len());
    let mut failed = None;
    for (index, item) in lane {
        let result = match failed {
            None => broker.append(item).await,
            Some(earlier) => {
                Err(AppendError::NotStored(format!("item {earlier} of this stream failed before it, order is kept")))
            }
        };
        if result.is_err() {
            failed.get_or_insert(index);
        }
        results.push((index, result));
    }
    results
}

#[cfg(test)]
pub(crate) mod scripted;

#[cfg(test)]
mod tests {
    use super::scripted::{ScriptedBroker, item};
    use super::*;

    fn offsets(results: &[Result<Appended, AppendError>]) -> Vec<Option<u64>> {
        results.iter().map(|result| result.as_ref().ok().map(|appended| appended.offset)).collect()
    }

    /// Decision: items of one batch on one stream keep their order, one in flight per batch and stream.
    #[tokio::test]
    async fn items_of_a_stream_go_one_after_another_and_streams_side_by_side() {
        let broker = ScriptedBroker::default();
        let items = (0..60).map(|n| item(&format!("s{}", n % 3), &n.to_string())).collect();
        let results = publish_all(&broker, items).await;
        assert!(results.iter().all(Result::is_ok));
        for stream in 0..3 {
            let expected: Vec<_> = (0..60).filter(|n| n % 3 == stream).map(|n| n.to_string()).collect();
            assert_eq!(broker.data_of(&format!("s{stream}")), expected);
        }
        assert_eq!(broker.most_in_flight_per_stream(), 1);
        assert_eq!(broker.most_in_flight(), 3);
    }

    #[tokio::test]
    async fn after_a_failure_the_rest_of_that_stream_is_not_sent() {
        let broker = ScriptedBroker::default();
        let items = [("a", "1"), ("b", "1"), ("a", "unknown"), ("a", "3"), ("b", "2"), ("a", "4")];
        let results = publish_all(&broker, items.map(|(stream, data)| item(stream, data)).into()).await;
        assert_eq!(broker.data_of("a"), ["1", "unknown"]);
        assert_eq!(broker.data_of("b"), ["1", "2"]);
        let failed: Vec<_> = offsets(&results).iter().map(Option::is_none).collect();
        assert_eq!(failed, [false, false, true, true, false, true]);
        assert!(matches!(results[2], Err(AppendError::Unknown(_))));
        assert!(matches!(&results[5], Err(AppendError::NotStored(why)) if why.contains("item 2")));
    }

    #[tokio::test]
    async fn a_batch_over_many_streams_leaves_room_for_others() {
        let broker = ScriptedBroker::default();
        let items = (0..2_000).map(|n| item(&n.to_string(), "1")).collect();
        assert!(publish_all(&broker, items).await.iter().all(Result::is_ok));
        assert_eq!(broker.most_in_flight(), STREAMS_AT_ONCE);
    }
}
