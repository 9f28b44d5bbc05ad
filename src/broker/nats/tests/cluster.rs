//! Three servers, three copies of everything.

use super::*;
use crate::broker::{Answering, ReadFrom, Unavailable};
use serde_json::{Value, json};

pub(super) fn everywhere(servers: &[Server]) -> NatsBrokerConfig {
    let urls: Vec<String> = servers.iter().map(Server::url).collect();
    NatsBrokerConfig { client: ClientConfig::for_servers(&urls.join(",")), ..config(&servers[0]) }
}

/// Number of the server that leads the log.
pub(super) async fn leader(node: &Node) -> usize {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        assert!(tokio::time::Instant::now() < deadline, "nobody leads the log");
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
        assert_eq!(node.broker.open(std::slice::from_ref(&stream)).await.unwrap()[0].head.newest, last);
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
        assert_eq!(other.broker.heads(std::slice::from_ref(&stream)).await.unwrap()[0].head.newest, offset);
        let page = other.broker.read(&stream, ReadFrom::Offset(offset), offset, 10, 1 << 20).await.unwrap();
        assert_eq!(page.messages.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn row_10_leaders_come_together_and_the_one_of_the_log_stays() {
    let servers = Server::cluster(3);
    // Checks are as frequent as messages are short-lived.
    let limits = Limits::plain(100, Duration::from_secs(2), Duration::from_secs(300));
    let gather_leaders = Some(Duration::from_millis(100));
    // The first by name decides, and this one is the last.
    let config = NatsBrokerConfig { limits, gather_leaders: None, node: "z".into(), ..everywhere(&servers) };
    let node = Node::start(config.clone()).await;
    node.until_ready().await;
    let generation = node.broker.core.generation().unwrap();
    let log = generation.logs[0].as_ref().unwrap().name.clone();
    let others = [generation.commands.clone(), "KV_carrick_meta".to_owned(), "KV_carrick_sessions".to_owned()];
    let leads = async |stream: &str| {
        let info = generation.api().call::<Value>(&format!("STREAM.INFO.{stream}"), &Value::Null).await;
        info.ok().and_then(|info| info["cluster"]["leader"].as_str().map(str::to_owned))
    };
    let first = leads(&log).await.unwrap();
    let away = if first == "n0" { "n1" } else { "n0" };
    for stream in &others {
        let preferred = serde_json::json!({"placement": {"preferred": away}});
        // It may be there already, which is refused.
        let _ = generation.api().call::<Value>(&format!("STREAM.LEADER.STEPDOWN.{stream}"), &preferred).await;
        while leads(stream).await.as_deref() != Some(away) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    // Two nodes: one of them moves the leaders.
    let [one, two] = ["a", "b"].map(|name| NatsBrokerConfig { node: name.into(), gather_leaders, ..config.clone() });
    let (one, two) = (Node::ready(one).await, Node::ready(two).await);
    for stream in &others {
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while leads(stream).await.as_deref() != Some(&*first) {
            assert!(std::time::Instant::now() < deadline, "{stream} stays where it is");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    assert_eq!(leads(&log).await.as_deref(), Some(&*first), "publishing was not disturbed");
    assert!(one.generation() + two.generation() > 0);
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
    let stored = node.broker.append(publication(&StreamName::from("a"), "1")).await.unwrap();
    assert_eq!(stored.durability, crate::broker::Durability::Replicated);
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_are_kept_where_the_tags_say_and_move_when_they_change() {
    let settings = tempfile::tempdir().unwrap();
    // Five servers: three have one tag, three the other.
    let tags = [r#"["old"]"#, r#"["old"]"#, r#"["old", "new"]"#, r#"["new"]"#, r#"["new"]"#];
    let mut servers = Server::members(5, &[]);
    for (number, (server, tags)) in servers.iter_mut().zip(tags).enumerate() {
        let file = settings.path().join(format!("n{number}.conf"));
        std::fs::write(&file, format!("server_tags: {tags}\n")).unwrap();
        server.configured(&file);
        server.run();
    }
    let tagged = |tag: &str| NatsBrokerConfig { placement_tags: vec![tag.into()], ..everywhere(&servers) };
    let members = async |node: &Node| {
        let generation = node.broker.core.generation().unwrap();
        let log = generation.logs[0].as_ref().unwrap().name.clone();
        loop {
            // While the members elect a leader nobody answers, or nobody is named.
            let info = generation.api().call::<Value>(&format!("STREAM.INFO.{log}"), &Value::Null).await;
            let cluster = info.map(|info| info["cluster"].clone()).unwrap_or_default();
            if let (Some(leader), Some(others)) = (cluster["leader"].as_str(), cluster["replicas"].as_array()) {
                let others = others.iter().filter_map(|other| other["name"].as_str());
                let mut names: Vec<_> = others.chain([leader]).map(str::to_owned).collect();
                names.sort();
                return names;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let stream = StreamName::from("a");
    let node = Node::start(tagged("old")).await;
    node.until_ready().await;
    assert_eq!(node.publish(&stream, "1").await, 1);
    assert_eq!(members(&node).await, ["n0", "n1", "n2"]);
    let epoch = node.epoch();
    node.broker.shutdown().await;

    let moved = Node::start(tagged("new")).await;
    moved.until_ready().await;
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while members(&moved).await != ["n2", "n3", "n4"] {
        assert!(std::time::Instant::now() < deadline, "{:?}", members(&moved).await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!((moved.publish(&stream, "2").await, moved.epoch()), (2, epoch));
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

#[tokio::test(flavor = "multi_thread")]
async fn policies_are_applied_to_nodes_of_a_cluster() {
    use crate::broker::policy::{Policy, Table};
    let servers = Server::cluster(3);
    let config = everywhere(&servers);
    let nodes = [Node::start(config.clone()).await, Node::start(config.clone()).await];
    for node in &nodes {
        node.until_ready().await;
    }
    let (chat, news) = (StreamName::from("chat/1"), StreamName::from("news"));
    let before = nodes[0].broker.append(publication(&news, "1")).await.unwrap();
    let mut wanted = NatsBrokerConfig { node: "operator".into(), ..config };
    let limits = Policy::default_with(5, Duration::from_secs(60));
    let policy = Policy { name: "chat".into(), pattern: "chat/*".parse().unwrap(), replicas: 1, ..limits };
    wanted.limits.table = Table::new(vec![policy], 100, Duration::from_secs(300));
    let admin = Admin::connect(wanted).await.unwrap();
    assert_eq!(admin.apply().await.unwrap().map(|change| change.revision), Some(2));
    let mut offsets = Vec::new();
    for node in &nodes {
        eventually("the node follows", || {
            let status = node.broker.status().borrow().clone();
            status.ready && status.logs.table().policies().len() == 2
        })
        .await;
        offsets.push(node.publish(&chat, "1").await);
        let after = node.broker.append(publication(&news, "2")).await.unwrap();
        assert_eq!(after.epoch, before.epoch);
    }
    assert_eq!(offsets, [1, 2]);
    let overview = admin.overview().await.unwrap();
    let copies = async |log: &str| {
        let generation = nodes[0].broker.core.generation().unwrap();
        let info: Value = generation.api().call(&format!("STREAM.INFO.{log}"), &Value::Null).await.unwrap();
        info["config"]["num_replicas"].as_u64().unwrap()
    };
    let logs: Vec<_> = overview.policies.iter().map(|shown| shown.log.as_ref().unwrap().0.clone()).collect();
    assert_eq!((copies(&logs[0]).await, copies(&logs[1]).await), (1, 3));
    admin.close().await;
}

/// A leader whose followers do not answer may have been replaced without knowing: its word about the log proves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn row_02_a_leader_is_believed_only_while_a_majority_follows_it() {
    let servers = Server::cluster(3);
    let first = Node::start(everywhere(&servers)).await;
    first.until_ready().await;
    let stream = StreamName::from("a");
    first.publish(&stream, "1").await;
    let led = leader(&first).await;
    // This one keeps its connection when the followers are stopped.
    let config = everywhere(&servers[led..=led]);
    let node = Node::start(NatsBrokerConfig { broker_timeout: Duration::from_millis(500), ..config }).await;
    node.until_ready().await;
    // Longer than a leader's word holds, without anything to store.
    tokio::time::sleep(Duration::from_secs(5)).await;
    eventually_asked(&node, &stream).await;
    assert_eq!(leader(&node).await, led, "an idle leader leads");
    lead_sessions(&node, led).await;

    for follower in (0..3).filter(|number| *number != led) {
        servers[follower].signal("STOP");
    }
    // It goes on to answer as the leader until it notices.
    let mut refused = None;
    for _ in 0..100 {
        if let Err(error) = node.broker.facts(&stream).await
            && error.to_string().contains("majority")
        {
            refused = Some(error);
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Nor is what it says of sessions and of remote disconnects.
    let mut disowned = None;
    for _ in 0..100 {
        if let Err(error) = vouched(&node).await
            && error.to_string().contains("majority")
        {
            disowned = Some(error);
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for follower in (0..3).filter(|number| *number != led) {
        servers[follower].signal("CONT");
    }
    assert!(refused.is_some(), "a leader without followers is not believed");
    assert!(disowned.is_some(), "a leader without followers does not vouch for a session");
    eventually_asked(&node, &stream).await;
    let answering = eventually_vouched(&node).await;
    // What this connection has answered another one cannot vouch for.
    let generation = node.generation();
    node.broker.core.generation().unwrap().dead().cancel();
    node.until_generation_after(generation).await;
    let error = node.broker.vouch(&answering).await.unwrap_err();
    assert!(error.to_string().contains("replaced"), "{error}");
    eventually_vouched(&node).await;
}

/// Lets a server lead the saved sessions: a stopped one would not answer at all.
async fn lead_sessions(node: &Node, wanted: usize) {
    let sessions = super::super::config::bucket_stream(&node.broker.core.names.sessions_bucket());
    let wanted = format!("n{wanted}");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let generation = node.broker.core.generation();
        let info = match &generation {
            Some(generation) => generation.api().info(&sessions).await.ok(),
            None => None,
        };
        match (generation, info) {
            (Some(_), Some(info)) if info.cluster.leader == wanted && info.cluster.is_led() => return,
            (Some(generation), Some(info)) if info.cluster.leader != wanted => {
                let what = format!("STREAM.LEADER.STEPDOWN.{sessions}");
                let place = json!({"placement": {"preferred": wanted}});
                let _ = generation.api().call::<Value>(&what, &place).await;
            }
            _ => {}
        }
        assert!(tokio::time::Instant::now() < deadline, "{wanted} does not lead the sessions");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The connection may be given up in between: then there is nobody to ask for a while.
async fn vouched(node: &Node) -> Result<Answering, Unavailable> {
    let answering = node.broker.answering().await?;
    node.broker.vouch(&answering).await.map(|()| answering)
}

async fn eventually_vouched(node: &Node) -> Answering {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        match vouched(node).await {
            Ok(answering) => return answering,
            Err(error) => assert!(tokio::time::Instant::now() < deadline, "nobody vouches: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn eventually_asked(node: &Node, stream: &StreamName) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while node.broker.facts(stream).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "the log's leader is not believed any more");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Number of the server that leads the log of remote commands, as the others see it.
async fn commands_leader(node: &Node) -> usize {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        assert!(tokio::time::Instant::now() < deadline, "nobody leads the remote commands");
        if let Some(generation) = node.broker.core.generation()
            && let Ok(info) = generation.api().info(&generation.commands).await
            && let Ok(number) = info.cluster.leader.trim_start_matches('n').parse()
        {
            return number;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// It goes on to answer as the leader it was, beside its successor, which vouches for it.
#[tokio::test(flavor = "multi_thread")]
async fn row_02_a_server_that_was_frozen_hides_no_remote_disconnect() {
    let servers = Server::cluster(3);
    let publisher = Node::ready(everywhere(&servers)).await;
    let command = RemoteDisconnect { identifiers: "gone".into(), reconnect: false };
    let disconnect = async || {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            match publisher.broker.disconnect(&command).await {
                Ok(mark) => return mark,
                Err(error) => assert!(tokio::time::Instant::now() < deadline, "no leader: {error}"),
            }
        }
    };
    disconnect().await;
    let led = commands_leader(&publisher).await;
    let others: Vec<String> = servers.iter().enumerate().filter(|(n, _)| *n != led).map(|(_, s)| s.url()).collect();
    let client = ClientConfig::for_servers(&others.join(","));
    let node = Node::ready(NatsBrokerConfig { client, ..config(&servers[0]) }).await;
    assert_eq!(node.broker.mark("somebody else").await.unwrap(), 0);
    servers[led].signal("STOP");
    let mark = disconnect().await;
    servers[led].signal("CONT");
    let begun = tokio::time::Instant::now();
    let (mut answered, mut errors) = (0, Vec::new());
    // Long enough for it to learn of its successor, and until so many answers were looked at.
    while begun.elapsed() < Duration::from_secs(3) || answered < 100 {
        let answers = (0..8).map(|_| node.broker.mark("gone"));
        for answer in futures_util::future::join_all(answers).await {
            match answer {
                Ok(known) => {
                    answered += 1;
                    assert!(known >= mark, "{known} instead of {mark}, {:?} after it went on", begun.elapsed());
                }
                Err(error) => errors.push(error),
            }
        }
        assert!(begun.elapsed() < PATIENCE, "{answered} answers only: {errors:?}");
    }
    assert_eq!(eventually_marked(&node, "gone").await, mark);
    assert_eq!(eventually_marked(&node, "somebody else").await, 0);
    // Whoever has not come as far as this node has heard is not believed.
    let generation = node.broker.core.generation().unwrap();
    let subject = node.broker.core.names.command_subject("nobody");
    assert_eq!(generation.newest_command(&subject, mark).await.unwrap(), 0);
    let error = generation.newest_command(&subject, mark + 1).await.unwrap_err();
    assert!(error.to_string().contains("lags"), "{error}");
}

async fn eventually_marked(node: &Node, identifiers: &str) -> u64 {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        match node.broker.mark(identifiers).await {
            Ok(mark) => return mark,
            Err(error) => assert!(tokio::time::Instant::now() < deadline, "nobody knows: {error}"),
        }
    }
}
