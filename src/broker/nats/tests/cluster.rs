//! Three servers, three copies of everything.

use super::*;
use crate::broker::ReadFrom;
use serde_json::Value;

fn everywhere(servers: &[Server]) -> NatsBrokerConfig {
    let urls: Vec<String> = servers.iter().map(Server::url).collect();
    NatsBrokerConfig { client: ClientConfig::for_servers(&urls.join(",")), ..config(&servers[0]) }
}

/// Number of the server that leads the log.
async fn leader(node: &Node) -> usize {
    loop {
        if let Some(generation) = node.broker.core.generation() {
            let info = generation
                .api()
                .call::<Value>(&format!("STREAM.INFO.{}", generation.logs[0].as_ref().unwrap().name), &Value::Null)
                .await;
            if let Some(name) = info.ok().as_ref().and_then(|info| info["cluster"]["leader"].as_str()) {
                return name.trim_start_matches('n').parse().unwrap();
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ruling_21a_lagging_replicas_and_a_lost_leader_cost_no_message_and_no_epoch() {
    let mut servers = Server::cluster(3);
    let mut config = everywhere(&servers);
    config.limits = Limits::plain(100_000, Duration::from_secs(300), Duration::from_secs(300));
    let node = Node::start(config.clone()).await;
    node.until_ready().await;
    let other = Node::ready(config).await;
    let epoch = node.epoch();
    let replicas = {
        let generation = node.broker.core.generation().unwrap();
        let info: Value = generation
            .api()
            .call(&format!("STREAM.INFO.{}", generation.logs[0].as_ref().unwrap().name), &Value::Null)
            .await
            .unwrap();
        info["config"]["num_replicas"].as_u64()
    };
    assert_eq!(replicas, Some(3));
    let stream = StreamName::from("a");
    other.broker.open(std::slice::from_ref(&stream)).await.unwrap();
    eventually("the heads are compared once more", || other.feed.all().contains(&Told::Lagged(stream.clone()))).await;

    let stop = std::sync::atomic::AtomicBool::new(false);
    let faults = async {
        eventually("publishing", || other.feed.live(&stream).len() > 100).await;
        let led = leader(&node).await;
        servers[led].kill();
        // Until somebody else leads.
        while leader(&other).await == led {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        servers[led].run();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let (offsets, ()) = tokio::join!(super::faults::keep_publishing(&node, &stream, &stop), faults);
    assert!(offsets.is_sorted_by(|a, b| a < b));
    let last = *offsets.last().unwrap();
    for node in [&node, &other] {
        node.until_ready().await;
        assert_eq!(node.epoch(), epoch);
        assert_eq!(node.broker.open(std::slice::from_ref(&stream)).await.unwrap()[0].newest, last);
        let mut stored: Vec<u64> = Vec::new();
        while stored.last() != Some(&last) {
            let from = ReadFrom::Offset(stored.last().map_or(0, |offset| offset + 1));
            let page = node.broker.read(&stream, from, last, 1000, 1 << 20).await.unwrap();
            assert!(!page.messages.is_empty());
            stored.extend(page.messages.iter().map(|m| m.offset));
        }
        assert_eq!(stored, offsets);
    }
    // Reading one's own write, whichever replica answers.
    for i in 0..200 {
        let offset = node.publish(&stream, &i.to_string()).await;
        assert_eq!(other.broker.heads(std::slice::from_ref(&stream)).await.unwrap()[0].newest, offset);
        let page = other.broker.read(&stream, ReadFrom::Offset(offset), offset, 10, 1 << 20).await.unwrap();
        assert_eq!(page.messages.len(), 1);
    }
}

/// Copies of everything that this node made.
async fn copies(node: &Node) -> Vec<u64> {
    let generation = node.broker.core.generation().unwrap();
    let list: Value = generation.api().call("STREAM.LIST", &Value::Null).await.unwrap();
    let streams = list["streams"].as_array().unwrap();
    let mut copies: Vec<u64> =
        streams.iter().map(|stream| stream["config"]["num_replicas"].as_u64().unwrap()).collect();
    copies.dedup();
    copies
}

#[tokio::test(flavor = "multi_thread")]
async fn three_servers_that_advertise_nobody_keep_three_copies() {
    let mut servers = Server::members(3, &["--no_advertise"]);
    servers.iter_mut().for_each(Server::run);
    let node = Node::start(config(&servers[0])).await;
    node.until_ready().await;
    let advertised = node.broker.core.generation().unwrap().connection.server.connect_urls.clone();
    assert!(advertised.len() <= 1, "{advertised:?}");
    assert_eq!(copies(&node).await, [3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_keep_one_copy() {
    let servers = Server::cluster(2);
    let node = Node::start(config(&servers[0])).await;
    node.until_ready().await;
    assert_eq!(copies(&node).await, [1]);
    // Also at the next connection, which finds the bucket there already.
    let epoch = node.epoch();
    let again = Node::ready(config(&servers[1])).await;
    assert_eq!((copies(&again).await, again.epoch()), (vec![1], epoch));
}
