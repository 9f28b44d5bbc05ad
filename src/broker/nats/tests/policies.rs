//! History policies: a log each, changed while nodes run.

use super::*;
use crate::broker::ReadFrom;
use crate::broker::policy::{Policy, Storage, Table};
use tokio::time::Instant;

fn policy(name: &str, pattern: &str, limit: u64) -> Policy {
    let ttl = Duration::from_secs(60);
    Policy { name: name.into(), pattern: pattern.parse().unwrap(), ..Policy::default_with(limit, ttl) }
}

fn with(server: &Server, policies: Vec<Policy>) -> NatsBrokerConfig {
    let mut config = config(server);
    config.limits.table = Table::new(policies, 100, Duration::from_secs(300));
    config
}

async fn operator(config: NatsBrokerConfig) -> Admin {
    Admin::connect(NatsBrokerConfig { node: "operator".into(), ..config }).await.unwrap()
}

async fn refused(config: NatsBrokerConfig) -> String {
    match NatsBroker::start(config, Arc::new(Recorder::default())).await {
        Ok(_) => panic!("started"),
        Err(error) => error.to_string(),
    }
}

impl Node {
    fn epoch_of(&self, stream: &str) -> String {
        self.broker.status().borrow().logs.of(&stream.into()).epoch.as_str().into()
    }

    async fn kept(&self, stream: &str) -> Vec<u64> {
        let stream = StreamName::from(stream);
        let head = self.broker.heads(std::slice::from_ref(&stream)).await.unwrap()[0].head;
        let mut kept: Vec<u64> = Vec::new();
        loop {
            let from = ReadFrom::Offset(kept.last().map_or(0, |last| last + 1));
            let page = self.broker.read(&stream, from, head.up_to, 1000, 1 << 20).await.unwrap();
            kept.extend(page.messages.iter().map(|message| message.offset));
            if page.remaining == 0 {
                return kept;
            }
        }
    }

    async fn until_policies(&self, count: usize) {
        eventually("the node follows", || {
            let status = self.broker.status().borrow().clone();
            status.ready && status.logs.table().policies().len() == count
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_policy_is_a_log_of_its_own_and_the_first_match_wins() {
    let server = Server::start();
    let memory = Policy { storage: Storage::Memory, ttl: Duration::from_secs(20), ..policy("chat", "chat/*", 2) };
    let config = with(&server, vec![policy("typing", "*/typing", 0), memory]);
    let node = Node::ready(config.clone()).await;
    let names = ["chat/1", "chat/1/typing", "news"].map(StreamName::from);
    let heads = heads_of(node.broker.open(&names).await);
    assert_eq!(heads, [Head::default(); 3]);
    let mut offsets = Vec::new();
    for round in 0..3 {
        for stream in &names {
            offsets.push(node.publish(stream, &round.to_string()).await);
        }
    }
    assert_eq!(
        offsets,
        [1, 0, 1, 2, 0, 2, 3, 0, 3],
        "each log counts for itself, and nothing is stored for the second"
    );
    assert_eq!((node.kept("chat/1").await, node.kept("news").await), (vec![2, 3], vec![1, 2, 3]));
    assert_eq!(node.kept("chat/1/typing").await, Vec::<u64>::new());
    assert_ne!(node.epoch_of("chat/1"), node.epoch_of("news"));
    assert_eq!(node.epoch_of("chat/1/typing"), "");
    eventually("all are heard", || node.feed.all().len() == 9).await;
    let typing =
        node.feed.all().into_iter().filter(|told| matches!(told, Told::Transient(name, ..) if *name == names[1]));
    assert_eq!(typing.count(), 3);
    let facts = [node.broker.facts(&names[0]).await.unwrap(), node.broker.facts(&names[2]).await.unwrap()];
    assert_eq!(facts.map(|facts| (facts.limit, facts.ttl.as_secs())), [(2, 20), (100, 300)]);
    let heads = heads_of(node.broker.heads(&names).await);
    assert_eq!(heads, [Head { newest: 3, up_to: 3 }, Head::default(), Head { newest: 3, up_to: 3 }]);
    // The same on another node, and after a restart.
    let epochs = (node.epoch_of("chat/1"), node.epoch_of("news"));
    let other = Node::ready(config.clone()).await;
    node.broker.shutdown().await;
    other.broker.shutdown().await;
    let node = Node::ready(config).await;
    assert_eq!((node.epoch_of("chat/1"), node.epoch_of("news")), epochs);
    assert_eq!(node.kept("chat/1").await, [2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_policies_are_refused_beside_running_nodes_and_applied_by_a_sole_one() {
    let server = Server::start();
    let node = Node::on(&server).await;
    node.publish(&"chat/1".into(), "1").await;
    let chat = with(&server, vec![policy("chat", "chat/*", 5)]);
    let error = refused(chat.clone()).await;
    for word in ["chat (chat/*) keeps 5 messages for 60 s", "other nodes are running", "carrick policy apply"] {
        assert!(error.contains(word), "{word}: {error}");
    }
    let epoch = node.epoch_of("chat/1");
    node.broker.shutdown().await;
    let node = Node::ready(chat).await;
    assert_ne!(node.epoch_of("chat/1"), epoch, "it has moved");
    assert_eq!(node.epoch_of("news"), epoch, "the others have not");
    assert_eq!(node.publish(&"chat/1".into(), "2").await, 1);
    // An earlier version, which knows of no policies, does not start.
    let bucket = node.broker.core.names.meta_bucket();
    let generation = node.broker.core.generation().unwrap();
    let ctl = super::super::epoch::read_record(&generation.connection, &bucket, "ctl").await.unwrap().unwrap().0;
    assert_eq!(ctl.format, 2);
    node.broker.shutdown().await;
    // Back to one policy: positions from before the move must not count.
    let node = Node::on(&server).await;
    assert_ne!(node.epoch_of("chat/1"), epoch, "a log that streams come back to has another epoch");
    assert_eq!(node.kept("chat/1").await, [1], "the log itself is the same");
    let generation = node.broker.core.generation().unwrap();
    let ctl = super::super::epoch::read_record(&generation.connection, &bucket, "ctl").await.unwrap().unwrap().0;
    assert_eq!(ctl.format, 1);
    let overview = operator(config(&server)).await.overview().await.unwrap();
    assert_eq!(overview.unused.iter().map(|(name, _, kept)| (name.as_str(), *kept)).collect::<Vec<_>>(), [("chat", 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn running_nodes_adopt_what_is_applied_and_no_publication_goes_astray() {
    let server = Server::start();
    let (one, two) = (Node::on(&server).await, Node::on(&server).await);
    let (chat, news) = (StreamName::from("chat/1"), StreamName::from("news"));
    let before = [one.epoch_of("chat/1"), one.epoch_of("news")];
    let admin = operator(with(&server, vec![policy("chat", "chat/*", 1_000_000)])).await;
    assert_eq!(admin.overview().await.unwrap().differences.len(), 1);

    let stop = std::sync::atomic::AtomicBool::new(false);
    let stored_so_far = std::sync::atomic::AtomicUsize::new(0);
    let publish = |node: Arc<NatsBroker>, stream: StreamName| {
        let (stop, stored_so_far) = (&stop, &stored_so_far);
        async move {
            let mut stored = Vec::new();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                stored.push(node.append(publication(&stream, &stored.len().to_string())).await.unwrap());
                stored_so_far.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
            stored
        }
    };
    let apply = async {
        // Let some be stored under the former policies, and some under the new ones.
        eventually("publishing", || stored_so_far.load(std::sync::atomic::Ordering::Relaxed) > 30).await;
        let change = admin.apply().await.unwrap().unwrap();
        assert_eq!((change.revision, change.new_epochs.len()), (2, 0));
        one.until_policies(2).await;
        two.until_policies(2).await;
        let so_far = stored_so_far.load(std::sync::atomic::Ordering::Relaxed);
        eventually("publishing goes on", || stored_so_far.load(std::sync::atomic::Ordering::Relaxed) > so_far + 30)
            .await;
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let (a, b, c, ()) = tokio::join!(
        publish(one.broker.clone(), chat.clone()),
        publish(two.broker.clone(), chat.clone()),
        publish(one.broker.clone(), news.clone()),
        apply
    );
    assert_eq!(one.epoch_of("news"), before[1]);
    assert_ne!(one.epoch_of("chat/1"), before[0]);
    assert_eq!(one.epoch_of("chat/1"), two.epoch_of("chat/1"));
    let former = one.epoch_of("news");
    for node in [&a, &b] {
        let split = node.iter().position(|appended| appended.epoch.as_str() != former);
        let split = split.expect("some were stored after the change");
        assert!(split > 0, "some were stored before it");
        assert!(node[split..].iter().all(|appended| appended.epoch.as_str() == one.epoch_of("chat/1")));
    }
    assert!(c.iter().all(|appended| appended.epoch.as_str() == former));
    // What is in the new log is what was acknowledged there.
    let mut acknowledged: Vec<u64> = [&a, &b]
        .into_iter()
        .flatten()
        .filter(|appended| appended.epoch.as_str() != former)
        .map(|appended| appended.offset)
        .collect();
    acknowledged.sort_unstable();
    assert_eq!(one.kept("chat/1").await, acknowledged);

    assert_eq!(admin.apply().await.unwrap(), None, "it is in effect already");
    let overview = admin.overview().await.unwrap();
    assert_eq!((overview.revision, overview.differences.len(), overview.nodes.len()), (2, 0, 2));
    admin.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_change_in_place_under_running_nodes() {
    let server = Server::start();
    let node = Node::ready(with(&server, vec![policy("chat", "chat/*", 5)])).await;
    let stream = StreamName::from("chat/1");
    for i in 0..5 {
        node.publish(&stream, &i.to_string()).await;
    }
    let epochs = (node.epoch_of("chat/1"), node.epoch_of("news"));
    let wider = Policy { ttl: Duration::from_secs(600), ..policy("chat", "chat/*", 8) };
    let admin = operator(with(&server, vec![wider])).await;
    admin.apply().await.unwrap().unwrap();
    eventually("the node follows", || {
        let logs = node.broker.status().borrow().logs.clone();
        let state = logs.of(&stream);
        (state.limit, state.ttl.as_secs()) == (8, 600)
    })
    .await;
    assert_eq!(node.kept("chat/1").await, [1, 2, 3, 4, 5]);
    let facts = node.broker.facts(&stream).await.unwrap();
    assert_eq!((facts.limit, facts.revision, facts.raised_at), (8, 2, 5));
    assert_eq!((node.epoch_of("chat/1"), node.epoch_of("news")), epochs);
    admin.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_cannot_change_and_the_error_says_so() {
    let server = Server::start();
    let node = Node::ready(with(&server, vec![policy("chat", "chat/*", 5)])).await;
    let memory = Policy { storage: Storage::Memory, ..policy("chat", "chat/*", 5) };
    let admin = operator(with(&server, vec![memory.clone()])).await;
    let error = admin.apply().await.unwrap_err().to_string();
    assert!(error.contains("storage = \"file\"") && error.contains("another name"), "{error}");
    admin.close().await;
    node.publish(&"chat/1".into(), "1").await;
    node.broker.shutdown().await;
    let error = refused(with(&server, vec![memory])).await;
    assert!(error.contains("storage = \"file\"") && error.contains("another name"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_in_memory_that_is_gone_with_its_server_begins_a_new_life() {
    let mut server = Server::start();
    let memory = Policy { storage: Storage::Memory, ..policy("chat", "chat/*", 5) };
    let node = Node::ready(with(&server, vec![memory])).await;
    let stream = StreamName::from("chat/1");
    let before =
        (node.broker.append(publication(&stream, "1")).await.unwrap(), node.publish(&"news".into(), "1").await);
    let generation = node.generation();
    server.kill();
    server.run();
    node.until_generation_after(generation).await;
    let after = node.broker.append(publication(&stream, "2")).await.unwrap();
    assert_ne!(after.epoch, before.0.epoch);
    assert_eq!((after.offset, node.kept("chat/1").await, node.kept("news").await), (1, vec![1], vec![before.1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_whose_author_is_gone_is_withdrawn() {
    let server = Server::start();
    let config_of = with(&server, vec![policy("chat", "chat/*", 5)]);
    let node = Node::on(&server).await;
    let generation = node.broker.core.generation().unwrap();
    let bucket = node.broker.core.names.meta_bucket();
    let (text, revision) = generation.api().value(&bucket, "policies").await.unwrap().unwrap();
    // As if somebody had proposed it and died.
    let mut record: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let mut proposed = record["policies"].clone();
    let row = serde_json::json!({"name": "chat", "pattern": "chat/*", "limit": 5, "ttl_ms": 60_000});
    proposed.as_array_mut().unwrap().insert(0, row);
    record["next"] = serde_json::json!({"policies": proposed, "by": "node.nobody"});
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Expected-Last-Subject-Sequence", revision.to_string());
    let text = Bytes::from(record.to_string());
    let subject = format!("$KV.{bucket}.policies");
    generation.api().publish(subject, headers, text, Duration::from_secs(2)).await.unwrap();
    let admin = operator(config_of).await;
    let proposed = async || {
        let (text, _) = node.broker.core.generation()?.api().value(&bucket, "policies").await.ok()??;
        Some(String::from_utf8_lossy(&text).contains("nobody"))
    };
    let withdrawn = async {
        while proposed().await != Some(false) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), withdrawn).await.expect("the proposal still stands");
    assert_eq!(node.publish(&"chat/1".into(), "1").await, 1);
    // And the way is free for another one.
    assert_eq!(admin.apply().await.unwrap().unwrap().revision, 2);
    node.until_policies(2).await;
    admin.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_start_together_with_new_policies_agree() {
    let server = Server::start();
    Node::on(&server).await.broker.shutdown().await;
    let configs: Vec<_> = (0..4).map(|_| with(&server, vec![policy("chat", "chat/*", 5)])).collect();
    let nodes = futures_util::future::join_all(configs.into_iter().map(Node::ready)).await;
    for node in &nodes {
        assert_eq!(node.epoch_of("chat/1"), nodes[0].epoch_of("chat/1"));
    }
    let overview = operator(with(&server, vec![policy("chat", "chat/*", 5)])).await.overview().await.unwrap();
    assert_eq!((overview.revision, overview.differences.len()), (2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_from_before_there_were_policies_opens_without_a_new_epoch() {
    let server = Server::start();
    let node = Node::on(&server).await;
    node.publish(&"a".into(), "1").await;
    let (epoch, log) = (node.epoch(), node.log());
    assert!(log.starts_with("carrick_log_default_"));
    let generation = node.broker.core.generation().unwrap();
    node.broker.shutdown().await;
    drop(generation);
    // Such a store has no record of policies.
    let context = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let bucket = context.get_key_value("carrick_meta").await.unwrap();
    bucket.purge("policies").await.unwrap();
    let node = Node::on(&server).await;
    assert_eq!((node.epoch(), node.log(), node.kept("a").await), (epoch, log, vec![1]));
}

/// A publisher that begins after a log's new epoch was written is never answered with the former one.
async fn no_answer_is_over(server: &Server, node: Arc<NatsBroker>, policy: &str, change: impl Future<Output = ()>) {
    let meta = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let meta = meta.get_key_value("carrick_meta").await.unwrap();
    let key = format!("log.{policy}");
    let recorded = async || {
        let record = meta.get(&key).await.unwrap().unwrap();
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        record["epoch"].as_str().unwrap().to_owned()
    };
    let former = recorded().await;
    let (renewed, stop) = (std::sync::OnceLock::new(), std::sync::atomic::AtomicBool::new(false));
    let watch = async {
        while recorded().await == former {}
        renewed.set(Instant::now()).unwrap();
    };
    let publish = |stream: String| {
        let (node, stop) = (&node, &stop);
        async move {
            let mut answers = Vec::new();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let begun = Instant::now();
                let appended = node.append(publication(&StreamName::from(stream.as_str()), "1")).await.unwrap();
                answers.push((begun, appended.epoch.as_str().to_owned()));
            }
            answers
        }
    };
    let apply = async {
        change.await;
        // Long enough for the answers that matter: those in the moments after the change.
        tokio::time::sleep(Duration::from_millis(300)).await;
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let (answers, (), ()) =
        tokio::join!(futures_util::future::join_all((0..8).map(|n| publish(format!("news/{n}")))), watch, apply);
    let renewed = *renewed.get().unwrap();
    let after: Vec<_> = answers.iter().flatten().filter(|(begun, _)| *begun > renewed).collect();
    let over = after.iter().filter(|(_, epoch)| *epoch == former).count();
    assert!(!after.is_empty() && over == 0, "{over} of {} answers carry an epoch that is over", after.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn row_03_no_answer_carries_an_epoch_that_is_over_while_policies_change() {
    let server = Server::start();
    let node = Node::ready(with(&server, vec![policy("chat", "chat/*", 1000)])).await;
    // Without its policy the streams of the chat come back to the default log, which the news are in.
    let admin = operator(with(&server, Vec::new())).await;
    no_answer_is_over(&server, node.broker.clone(), "default", async {
        admin.apply().await.unwrap().unwrap();
    })
    .await;
    admin.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_03_no_answer_carries_an_epoch_that_was_reset() {
    let server = Server::start();
    let node = Node::on(&server).await;
    let admin = operator(config(&server)).await;
    no_answer_is_over(&server, node.broker.clone(), "default", async {
        admin.reset_epoch("default").await.unwrap();
    })
    .await;
    admin.close().await;
}
