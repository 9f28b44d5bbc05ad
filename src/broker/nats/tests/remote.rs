use super::*;
use crate::broker::SaveError;

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_shared_and_updated_by_revision() {
    let server = Server::start();
    let (one, two) = (Node::on(&server).await, Node::on(&server).await);
    let key = SessionKey::of("sid");
    assert!(one.broker.load_session(&key).await.unwrap().is_none());
    let first = one.broker.save_session(&key, "a".into(), Some(0), Life::Last).await.unwrap();
    let found = two.broker.load_session(&key).await.unwrap().unwrap();
    assert_eq!((&found.body[..], found.revision), (&b"a"[..], first));
    let second = two.broker.save_session(&key, "b".into(), Some(first), Life::Last).await.unwrap();
    assert!(second > first);
    for stale in [0, first] {
        let refused = one.broker.save_session(&key, "c".into(), Some(stale), Life::Last).await;
        assert!(matches!(refused, Err(SaveError::Conflict)), "{refused:?}");
    }
    one.broker.save_session(&key, "d".into(), None, Life::Last).await.unwrap();
    one.broker.delete_session(&key, None).await.unwrap();
    one.broker.delete_session(&key, None).await.unwrap();
    assert!(two.broker.load_session(&key).await.unwrap().is_none());
    let refused = one.broker.save_session(&key, "e".into(), Some(second), Life::Last).await;
    assert!(matches!(refused, Err(SaveError::Conflict)), "{refused:?}");
    one.broker.save_session(&key, "f".into(), Some(0), Life::Last).await.unwrap();
    assert_eq!(&two.broker.load_session(&key).await.unwrap().unwrap().body[..], b"f");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saved_session_dies_and_a_write_gives_it_a_new_life() {
    let server = Server::start();
    let mut config = config(&server);
    config.limits.sessions_ttl = Duration::from_secs(5);
    let node = Node::ready(config).await;
    let (kept, dies) = (SessionKey::of("kept"), SessionKey::of("dies"));
    node.broker.save_session(&dies, "x".into(), None, Life::Last).await.unwrap();
    let begin = std::time::Instant::now();
    loop {
        node.broker.save_session(&kept, "x".into(), None, Life::Last).await.unwrap();
        if node.broker.load_session(&dies).await.unwrap().is_none() {
            break;
        }
        assert!(begin.elapsed() < PATIENCE, "still there");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(begin.elapsed() > Duration::from_millis(4_500));
    assert!(node.broker.load_session(&kept).await.unwrap().is_some());
}

/// Lives are of whole seconds.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_connection_stands_outlives_one_that_was_left_and_what_belongs_to_it_outlives_both() {
    let server = Server::start();
    let mut config = config(&server);
    config.limits.sessions_ttl = Duration::from_secs(2);
    let node = Node::ready(config).await;
    let is_there = async |key: &SessionKey| node.broker.load_session(key).await.unwrap().is_some();
    // Where this machine stops for seconds it sees nothing of what goes on meanwhile: it looks at others.
    for round in 0..10 {
        let keys = ["left", "stands", "beside"].map(|name| SessionKey::of(&format!("{name} {round}")));
        let [left, stands, beside] = &keys;
        // What lives longest is written first, and all of it at nearly the same time.
        let writing = std::time::Instant::now();
        node.broker.save_beside(beside, "x".into(), None).await.unwrap();
        node.broker.save_session(stands, "x".into(), None, Life::Standing).await.unwrap();
        node.broker.save_session(left, "x".into(), None, Life::Last).await.unwrap();
        if writing.elapsed() > Duration::from_secs(1) {
            continue;
        }
        let (begin, mut seen) = (std::time::Instant::now(), [false; 2]);
        while is_there(beside).await && seen != [true; 2] {
            assert!(begin.elapsed() < PATIENCE, "still there");
            for (seen, pair) in seen.iter_mut().zip(keys.windows(2)) {
                *seen |= !is_there(&pair[0]).await && is_there(&pair[1]).await;
                let reverse = !is_there(&pair[1]).await && is_there(&pair[0]).await;
                assert!(!reverse, "what should live longer is gone first");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if seen == [true; 2] {
            return;
        }
    }
    panic!("none was seen to outlive another");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remote_disconnect_reaches_every_node_and_leaves_a_mark() {
    let server = Server::start();
    let (one, two) = (Node::on(&server).await, Node::on(&server).await);
    let command = RemoteDisconnect { identifiers: r#"{"user":"1"}"#.into(), reconnect: true };
    assert_eq!(one.broker.mark(&command.identifiers).await.unwrap(), 0);
    let mark = one.broker.disconnect(&command).await.unwrap();
    assert_eq!(two.broker.mark(&command.identifiers).await.unwrap(), mark);
    assert_eq!(two.broker.mark("other").await.unwrap(), 0);
    for node in [&one, &two] {
        eventually("heard", || node.feed.all() == [Told::Disconnect(mark, command.clone())]).await;
    }
    // A node that starts later hears only what comes later, and knows the mark.
    let three = Node::on(&server).await;
    let later = two.broker.disconnect(&RemoteDisconnect { identifiers: "2".into(), reconnect: false }).await.unwrap();
    eventually("heard", || three.feed.all().len() == 1).await;
    assert!(matches!(three.feed.all()[0], Told::Disconnect(seq, _) if seq == later && later > mark));
    assert_eq!(three.broker.mark(&command.identifiers).await.unwrap(), mark);
}

#[tokio::test(flavor = "multi_thread")]
async fn row_12_every_node_hears_which_session_is_over_and_why() {
    let server = Server::start();
    let (one, two) = (Node::on(&server).await, Node::on(&server).await);
    for (sid, over) in [("a", Over::Replaced), ("b", Over::Ended)] {
        let told = Told::Over(SessionKey::of(sid), over);
        // Whoever has just connected may not be subscribed to it yet.
        for node in [&one, &two] {
            let begin = std::time::Instant::now();
            while !node.feed.all().contains(&told) {
                assert!(begin.elapsed() < PATIENCE, "{told:?} is not heard");
                one.broker.announce_over(&SessionKey::of(sid), over).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_bucket_or_command_log_is_made_again() {
    let server = Server::start();
    let node = Node::on(&server).await;
    let command = RemoteDisconnect { identifiers: "1".into(), reconnect: false };
    let before = node.broker.disconnect(&command).await.unwrap();
    let commands = node.broker.core.generation().unwrap().commands.clone();
    let context = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
    context.delete_stream(&commands).await.unwrap();
    let after = node.broker.disconnect(&command).await.unwrap();
    assert!(after > before, "marks rise across re-creations");
    eventually("the node knows", || node.feed.all().contains(&Told::CommandsLost)).await;
    let key = SessionKey::of("sid");
    context.delete_stream("KV_carrick_sessions").await.unwrap();
    node.broker.save_session(&key, "x".into(), None, Life::Last).await.unwrap();
    context.delete_stream("KV_carrick_sessions").await.unwrap();
    assert!(node.broker.load_session(&key).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_record_of_the_log_changes_the_epoch_only_if_no_node_remembers_it() {
    let server = Server::start();
    let (node, other) = (Node::on(&server).await, Node::on(&server).await);
    let stream = StreamName::from("a");
    assert_eq!(node.publish(&stream, "1").await, 1);
    let context = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let epoch = node.epoch();
    let generation = node.generation();
    context.delete_stream("KV_carrick_meta").await.unwrap();
    node.broker.core.nudge.notify_one();
    node.until_generation_after(generation).await;
    assert_eq!((node.epoch(), other.epoch()), (epoch.clone(), epoch.clone()));
    assert_eq!((node.publish(&stream, "2").await, other.publish(&stream, "3").await), (2, 3));

    node.broker.shutdown().await;
    other.broker.shutdown().await;
    context.delete_stream("KV_carrick_meta").await.unwrap();
    let stranger = Node::on(&server).await;
    assert_ne!(stranger.epoch(), epoch);
    assert_eq!(stranger.publish(&stream, "4").await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_cut_off_hears_the_remote_commands_it_missed() {
    let server = Server::start();
    let proxy = super::faults::Proxy::to(server.port).await;
    let mut cut_off = config(&server);
    cut_off.client = ClientConfig::for_servers(&format!("nats://127.0.0.1:{}", proxy.port));
    let (one, two) = (Node::on(&server).await, Node::ready(cut_off).await);
    proxy.cut();
    eventually("cut off", || !two.broker.status().borrow().ready).await;
    let mut marks = Vec::new();
    for i in 0..500 {
        let command = RemoteDisconnect { identifiers: i.to_string(), reconnect: false };
        marks.push(one.broker.disconnect(&command).await.unwrap());
    }
    assert!(two.feed.all().is_empty());
    proxy.join();
    eventually("all heard", || two.feed.all().len() >= 500).await;
    let heard: Vec<u64> = two
        .feed
        .all()
        .into_iter()
        .map(|told| match told {
            Told::Disconnect(mark, _) => mark,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(heard, marks);
}

#[tokio::test(flavor = "multi_thread")]
async fn row_07_an_older_copy_of_the_command_log_is_noticed_also_when_it_has_grown_again() {
    let mut server = Server::start();
    let copies = tempfile::tempdir().unwrap();
    let copy = copies.path().join("copy");
    let proxy = super::faults::Proxy::to(server.port).await;
    let mut cut_off = config(&server);
    cut_off.client = ClientConfig::for_servers(&format!("nats://127.0.0.1:{}", proxy.port));
    let (one, two) = (Node::on(&server).await, Node::ready(cut_off).await);
    let disconnect = async |node: &Node, who: &str| {
        node.broker.disconnect(&RemoteDisconnect { identifiers: who.into(), reconnect: false }).await.unwrap()
    };
    disconnect(&one, "1").await;
    server.kill();
    server.copy_store(&copy);
    server.run();
    eventually("ready again", || one.broker.status().borrow().ready && two.broker.status().borrow().ready).await;
    let newest = disconnect(&one, "2").await;
    eventually("both heard", || two.feed.all().len() == 2).await;
    proxy.cut();
    server.kill();
    server.put_back(&copy);
    server.run();
    let stranger = Node::on(&server).await;
    assert_eq!(disconnect(&stranger, "3").await, newest, "the same place in the log");
    proxy.join();
    eventually("the node knows", || two.feed.all().contains(&Told::CommandsLost)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_12_a_full_share_of_the_sessions_leaves_publishing_alone_and_lets_sessions_end() {
    let server = Server::start();
    let mut config = config(&server);
    config.limits.sessions_budget = 64 << 10;
    let node = Node::ready(config).await;
    let body = Bytes::from(vec![b'x'; 8 << 10]);
    let mut saved = Vec::new();
    let full = loop {
        let key = SessionKey::of(&saved.len().to_string());
        match node.broker.save_session(&key, body.clone(), Some(0), Life::Last).await {
            Ok(_) => saved.push(key),
            Err(error) => break error,
        }
        assert!(saved.len() < 9, "no limit");
    };
    assert!(matches!(full, SaveError::Full(_)), "{full}");
    assert!(full.to_string().contains("see sessions_budget"), "{full}");
    assert!(saved.len() >= 6, "{}", saved.len());
    // The rest goes to entries that are smaller than the marker of a deletion.
    let core = node.broker.core.clone();
    let mut small = Vec::new();
    loop {
        let key = SessionKey::of(&format!("small {}", small.len()));
        match node.broker.save_session(&key, Bytes::new(), None, Life::Last).await {
            Ok(revision) => small.push((key, revision)),
            Err(SaveError::Full(_)) => break,
            Err(error) => panic!("{error}"),
        }
        assert!(small.len() < 200, "no limit");
    }
    assert_eq!(node.publish(&StreamName::from("a"), "goes on").await, 1);
    assert!(!core.storage_full.load(std::sync::atomic::Ordering::Relaxed), "the store is not full, only this share");
    // A write that was not seen stays.
    let (key, revision) = small.pop().unwrap();
    assert!(!core.purge(&key, Some(revision - 1)).await.unwrap());
    assert!(!core.purge(&key, Some(0)).await.unwrap());
    assert!(node.broker.load_session(&key).await.unwrap().is_some());
    // There is no room for a marker: the entry goes without.
    let bucket = core.names.sessions_bucket();
    assert!(node.broker.delete_session(&key, Some(revision)).await.unwrap());
    let left = core.generation().unwrap().api().entry(&bucket, &key.0).await.unwrap();
    assert!(left.is_none(), "{left:?}");
    assert!(node.broker.delete_session(&key, Some(revision)).await.unwrap(), "there is none");
    for key in small.iter().map(|(key, _)| key).chain(&saved) {
        node.broker.delete_session(key, None).await.unwrap();
        assert!(node.broker.load_session(key).await.unwrap().is_none());
    }
    node.broker.save_session(&SessionKey::of("again"), body, Some(0), Life::Last).await.unwrap();
}

/// Of what refuses a session only the limit of the sessions' bucket leaves publishing alone.
#[tokio::test]
async fn row_12_a_full_disk_and_an_account_at_its_limit_are_noticed_by_writes_of_sessions() {
    use crate::broker::nats::api::ApiError;
    use crate::broker::nats::publish::{Write, WriteError};
    use std::sync::atomic::Ordering;
    let refusals = [
        (10077, "maximum bytes exceeded", false),
        (10077, "write /data/1.blk: no space left on device", true),
        (10002, "resource limits exceeded for account", true),
        (10047, "insufficient storage resources available", true),
        (10023, "insufficient resources", true),
    ];
    let limits = Limits::plain(100, Duration::from_secs(300), Duration::from_secs(300));
    for (err_code, description, everywhere) in refusals {
        let config = NatsBrokerConfig::new(ClientConfig::for_servers("nats://127.0.0.1:1"), limits.clone());
        let core = super::super::Core::new(config, Arc::new(Recorder::default()));
        let refused = || ApiError::Refused { err_code, description: description.into() };
        let outcome = Write::patient(&core, Duration::from_secs(1)).of_sessions().failed(refused()).await;
        assert!(matches!(outcome, Err(WriteError::StorageFull(_))), "{description}");
        assert_eq!(core.storage_full.load(Ordering::Relaxed), everywhere, "{description}");
        let _ = Write::new(&core, Duration::from_secs(1)).failed(refused()).await;
        assert!(core.storage_full.load(Ordering::Relaxed), "a publication was refused: {description}");
    }
}

/// Whichever copy answers: the head has named the write.
#[tokio::test(flavor = "multi_thread")]
async fn a_part_is_the_write_that_was_named() {
    let server = Server::start();
    let node = Node::on(&server).await;
    let (part, other) = (SessionKey::of("part"), SessionKey::of("other"));
    let first = node.broker.save_beside(&part, "1".into(), None).await.unwrap();
    let elsewhere = node.broker.save_beside(&other, "2".into(), None).await.unwrap();
    let body = async |revision| node.broker.load_part(&part, revision).await.unwrap().map(|stored| stored.body);
    assert_eq!(body(first).await.as_deref(), Some(&b"1"[..]));
    assert_eq!(body(elsewhere).await, None, "it is of another key");
    let second = node.broker.save_beside(&part, "3".into(), None).await.unwrap();
    assert_eq!((body(first).await, body(second).await.as_deref()), (None, Some(&b"3"[..])));
    node.broker.delete_session(&part, None).await.unwrap();
    assert_eq!(body(second).await, None);
    assert_eq!(body(second + 1).await, None, "the marker of its deletion");
}

#[tokio::test(flavor = "multi_thread")]
async fn row_07_what_comes_behind_a_command_that_is_gone_is_passed_on() {
    use crate::broker::nats::followed::Followed;
    let server = Server::start();
    let node = Node::on(&server).await;
    let (core, generation) = (&node.broker.core, node.broker.core.generation().unwrap());
    let mut marks = Vec::new();
    for who in ["1", "2"] {
        let command = RemoteDisconnect { identifiers: who.into(), reconnect: false };
        marks.push(node.broker.disconnect(&command).await.unwrap());
    }
    eventually("both heard", || node.feed.all().len() == 2).await;
    // The log begins with the first one: what came before it is not there.
    let missing = Followed::to(&generation.commands, marks[0] - 2, None);
    let next = core.read_commands(&generation.connection, missing).await.unwrap();
    assert_eq!(next.held, marks[0] - 1);
    core.catch_up(&generation.connection, &generation.commands).await.unwrap();
    let told = node.feed.all();
    let lost = told.iter().position(|told| *told == Told::CommandsLost).expect("somebody may have been meant by it");
    for mark in marks {
        let passed_on = |told: &Told| matches!(told, Told::Disconnect(of, _) if *of == mark);
        assert!(told[lost..].iter().any(passed_on), "{told:?}");
    }
}

/// A lag that has passed has nothing to do with the next one, hours later.
#[tokio::test(flavor = "multi_thread")]
async fn row_02_a_lag_of_the_remote_commands_is_forgotten_when_it_is_over() {
    use crate::broker::nats::followed::Doubt;
    let server = Server::start();
    let node = Node::on(&server).await;
    let (core, generation) = (&node.broker.core, node.broker.core.generation().unwrap());
    let doubt = || {
        let mut followed = core.commands.lock().unwrap();
        let followed = followed.as_mut().unwrap();
        Doubt::lasts(&mut followed.short, &Default::default(), Duration::ZERO, tokio::time::Instant::now());
        assert!(followed.short.is_some());
    };
    let is_doubted = || core.commands.lock().unwrap().as_ref().unwrap().short.is_some();
    doubt();
    core.catch_up(&generation.connection, &generation.commands).await.unwrap();
    assert!(!is_doubted(), "the log reaches as far as was heard");
    doubt();
    node.broker.disconnect(&RemoteDisconnect { identifiers: "1".into(), reconnect: false }).await.unwrap();
    eventually("heard", || node.feed.all().len() == 1).await;
    eventually("a command that comes live ends it", || !is_doubted()).await;
}

/// All answers that are on their way have room in the inbox.
#[tokio::test(flavor = "multi_thread")]
async fn row_06_small_batches_take_the_places_of_their_answers() {
    use futures_util::{FutureExt, StreamExt};
    let server = Server::start();
    let node = Node::on(&server).await;
    let generation = node.broker.core.generation().unwrap();
    let mux = &generation.api().mux;
    let client = &generation.connection.client;
    let mut asked = client.subscribe("slow").await.unwrap();
    client.flush().await.unwrap();
    // The node's own checks ask, too.
    let most = 1_000;
    let free = mux.places();
    let mut asking = std::pin::pin!(mux.few("slow".into(), Bytes::new(), most, PATIENCE));
    assert!(asking.as_mut().now_or_never().is_none(), "nobody has answered");
    assert!(mux.places() <= free - most + 10, "{} of {free}", mux.places());
    let reply = asked.next().await.unwrap().reply.unwrap();
    // Nobody is there, says the server to whoever answers so.
    assert!(asking.as_mut().now_or_never().is_none());
    client.publish_with_reply("nobody", reply, Bytes::new()).await.unwrap();
    assert!(asking.await.unwrap().1.status.is_some());
    assert!(mux.places() > free - most, "{} of {free}", mux.places());
}
