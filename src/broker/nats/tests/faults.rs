use super::*;
use crate::broker::{AppendError, ReadFrom};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Forwards connections to a server until it is told to cut them.
pub(super) struct Proxy {
    pub port: u16,
    joined: watch::Sender<bool>,
}

impl Proxy {
    pub async fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let joined = watch::Sender::new(true);
        let state = joined.subscribe();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut state = state.clone();
                tokio::spawn(async move {
                    if !*state.borrow() {
                        return;
                    }
                    let Ok(mut far) = TcpStream::connect(("127.0.0.1", server)).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = state.wait_for(|joined| !joined) => {}
                    }
                });
            }
        });
        Self { port, joined }
    }

    pub fn cut(&self) {
        self.joined.send_replace(false);
    }

    pub fn join(&self) {
        self.joined.send_replace(true);
    }
}

/// Publishes numbers one after another until told to stop; answers with the offsets.
pub(super) async fn keep_publishing(
    node: &Node,
    stream: &StreamName,
    stop: &std::sync::atomic::AtomicBool,
) -> Vec<u64> {
    let mut offsets = Vec::new();
    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
        offsets.push(node.publish(stream, &offsets.len().to_string()).await);
    }
    offsets
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_server_is_a_new_generation_of_the_same_epoch() {
    let mut server = Server::start();
    let mut config = config(&server);
    config.limits = Limits::plain(100_000, Duration::from_secs(300), Duration::from_secs(300));
    let node = Node::ready(config).await;
    let (epoch, generation) = (node.epoch(), node.generation());
    let stream = StreamName::from("a");
    let stop = std::sync::atomic::AtomicBool::new(false);
    let faults = async {
        for _ in 0..3 {
            let before = node.generation();
            tokio::time::sleep(Duration::from_millis(100)).await;
            server.kill();
            server.run();
            node.until_generation_after(before).await;
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let (offsets, ()) = tokio::join!(keep_publishing(&node, &stream, &stop), faults);
    assert!(node.generation() >= generation + 3);
    assert_eq!(node.epoch(), epoch);
    // Every publication succeeded, is there once, and in order.
    let last = *offsets.last().unwrap();
    let mut stored = Vec::new();
    while stored.len() < offsets.len() {
        let from = stored.last().map_or(0, |o| o + 1);
        let page = node.broker.read(&stream, ReadFrom::Offset(from), last, 5000, 1 << 20).await.unwrap();
        assert!(!page.messages.is_empty());
        stored.extend(page.messages.iter().map(|m| m.offset));
        if page.remaining == 0 {
            break;
        }
    }
    assert_eq!(stored, offsets);
    let heads = node.broker.heads(&[stream]).await.unwrap();
    assert_eq!(heads[0].head.newest, last);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_is_noticed_and_publications_wait_for_it() {
    let server = Server::start();
    let node = Node::on(&server).await;
    let (epoch, generation) = (node.epoch(), node.generation());
    let stream = StreamName::from("a");
    node.publish(&stream, "1").await;
    server.signal("STOP");
    let waiting = async { node.publish(&stream, "2").await };
    let thaw = async {
        let mut status = node.broker.status();
        let gone = status.wait_for(|s| !s.ready);
        tokio::time::timeout(Duration::from_secs(6), gone).await.expect("the freeze is noticed").unwrap();
        // It may be said not to be ready before its connection is given up.
        eventually("the connection is given up", || node.broker.core.generation().is_none()).await;
        server.signal("CONT");
    };
    let (offset, ()) = tokio::join!(waiting, thaw);
    assert_eq!(offset, 2);
    // The status says so a moment after the connection is there.
    node.until_generation_after(generation).await;
    assert_eq!(node.epoch(), epoch);
    assert_eq!(node.broker.heads(&[stream]).await.unwrap()[0].head.up_to, 2, "stored once");
}

/// A leader that was just elected, or was cut off, does not know of a position that a client got from another one.
#[tokio::test(flavor = "multi_thread")]
async fn row_02_a_log_that_does_not_reach_a_position_proves_nothing_about_it() {
    let server = Server::start();
    let mut config = config(&server);
    config.broker_timeout = Duration::from_secs(1);
    let node = Node::ready(config).await;
    let stream = StreamName::from("a");
    let last = node.publish(&stream, "1").await;
    node.broker.behind(&stream, last + 1).await.unwrap_err();
    let late = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        node.publish(&stream, "2").await
    };
    let (behind, offset) = tokio::join!(node.broker.behind(&stream, last + 1), late);
    assert_eq!(offset, last + 1);
    assert!(behind.unwrap().kept, "it waits for the leader to come so far");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_answer_in_time_it_is_unknown_whether_it_was_stored() {
    let server = Server::start();
    let mut config = config(&server);
    config.publish_timeout = Duration::from_secs(1);
    let node = Node::ready(config).await;
    let stream = StreamName::from("a");
    node.publish(&stream, "1").await;
    server.signal("STOP");
    let error = node.broker.append(publication(&stream, "2")).await.unwrap_err();
    server.signal("CONT");
    assert!(matches!(error, AppendError::Unknown(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_store_has_a_new_epoch() {
    let mut server = Server::start();
    let node = Node::on(&server).await;
    let stream = StreamName::from("a");
    node.publish(&stream, "1").await;
    let (epoch, generation) = (node.epoch(), node.generation());
    server.kill();
    server.wipe();
    server.run();
    node.until_generation_after(generation).await;
    assert_ne!(node.epoch(), epoch);
    let appended = node.broker.append(publication(&stream, "1")).await.unwrap();
    assert_eq!((appended.offset, appended.epoch.as_str()), (1, node.epoch().as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_copy_of_the_store_has_a_new_epoch() {
    let mut server = Server::start();
    let node = Node::on(&server).await;
    let stream = StreamName::from("a");
    node.publish(&stream, "1").await;
    let (epoch, generation) = (node.epoch(), node.generation());
    server.kill();
    let copies = tempfile::tempdir().unwrap();
    let copy = copies.path().join("copy");
    server.copy_store(&copy);
    server.run();
    node.until_generation_after(generation).await;
    assert_eq!(node.epoch(), epoch);
    node.publish(&stream, "2").await;

    let generation = node.generation();
    server.kill();
    server.put_back(&copy);
    server.run();
    node.until_generation_after(generation).await;
    let second = node.epoch();
    assert_ne!(second, epoch);
    assert_eq!(node.broker.heads(std::slice::from_ref(&stream)).await.unwrap()[0].head.up_to, 1);
    // A second node learns it too, and the next restart changes nothing.
    let other = Node::on(&server).await;
    assert_eq!(other.epoch(), second);
    let generation = node.generation();
    server.kill();
    server.run();
    node.until_generation_after(generation).await;
    assert_eq!(node.epoch(), second);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_tail_that_was_written_over_is_seen() {
    let mut server = Server::start();
    let proxy = Proxy::to(server.port).await;
    let mut behind_proxy = config(&server);
    behind_proxy.client = ClientConfig::for_servers(&format!("nats://127.0.0.1:{}", proxy.port));
    let node = Node::ready(behind_proxy).await;
    let stream = StreamName::from("a");
    let epoch = node.epoch();
    server.kill();
    let copies = tempfile::tempdir().unwrap();
    let copy = copies.path().join("copy");
    server.copy_store(&copy);
    server.run();
    node.until_ready().await;
    node.publish(&stream, "1").await;
    // While the witness is cut off, the store goes back and is written over by a node that knows nothing.
    proxy.cut();
    server.kill();
    server.put_back(&copy);
    server.run();
    let other = Node::on(&server).await;
    assert_eq!(other.publish(&stream, "another").await, 1);
    assert_eq!(other.publish(&stream, "yet another").await, 2);
    let generation = node.generation();
    proxy.join();
    node.until_generation_after(generation).await;
    assert_ne!(node.epoch(), epoch);
    eventually("the other node learns the new epoch", || other.epoch() == node.epoch()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_witness_beside_the_store_outlives_the_node() {
    let mut server = Server::start();
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(&server);
    config.witness_file = Some(directory.path().join("witness.json"));
    let stream = StreamName::from("a");
    let node = Node::ready(config.clone()).await;
    let epoch = node.epoch();
    node.broker.shutdown().await;
    server.kill();
    let copies = tempfile::tempdir().unwrap();
    let copy = copies.path().join("copy");
    server.copy_store(&copy);
    server.run();
    let node = Node::ready(config.clone()).await;
    assert_eq!(node.epoch(), epoch);
    node.publish(&stream, "1").await;
    node.broker.shutdown().await;
    server.kill();
    server.put_back(&copy);
    server.run();
    let node = Node::ready(config).await;
    assert_ne!(node.epoch(), epoch);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_starting_node_learns_from_its_peers_how_far_the_log_had_come() {
    let server = Server::start();
    let node = Node::on(&server).await;
    // An acknowledgement does not tell the time; reading the log would, and a check that is under way does.
    let mark = loop {
        node.publish(&StreamName::from("a"), "1").await;
        let mark = node.broker.core.witness(&node.log()).get().unwrap();
        if mark.time == 0 {
            break mark;
        }
    };
    let other = Node::on(&server).await;
    let (told, now) = (other.broker.core.witness(&other.log()).get(), node.broker.core.witness(&node.log()).get());
    assert!(told == Some(mark.clone()) || told == now, "{told:?} instead of {mark:?} or {now:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_refuses_and_keeps_what_it_has() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "jetstream { max_file_store: 2MB }").unwrap();
    let server = Server::with(&["-c", file.path().to_str().unwrap()]);
    let node = Node::on(&server).await;
    let stream = StreamName::from("a");
    let data = format!("\"{}\"", "x".repeat(100_000));
    let mut stored = 0;
    let error = loop {
        match node.broker.append(publication(&stream, &data)).await {
            Ok(appended) => stored = appended.offset,
            Err(error) => break error,
        }
        assert!(stored < 100, "never full");
    };
    assert!(matches!(error, AppendError::StorageFull(_)), "{error}");
    assert!(stored > 5);
    eventually("not ready", || !node.broker.status().borrow().ready).await;
    assert_eq!(&*node.broker.status().borrow().reason, "storage full");
    let page = node.broker.read(&stream, ReadFrom::Offset(1), stored, 1, 1 << 20).await.unwrap();
    let facts = node.broker.facts(&stream).await.unwrap();
    assert_eq!((page.messages[0].offset, facts.first_seq), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_log_is_created_anew_with_a_new_epoch() {
    let server = Server::start();
    let (node, other) = (Node::on(&server).await, Node::on(&server).await);
    let stream = StreamName::from("a");
    node.publish(&stream, "1").await;
    let epoch = node.epoch();
    let log = node.log();
    let context = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
    context.delete_stream(&log).await.unwrap();
    // A publication finds out, waits, and is stored in the new log.
    let appended = node.broker.append(publication(&stream, "2")).await.unwrap();
    assert_eq!(appended.offset, 1);
    assert_ne!(appended.epoch.as_str(), epoch);
    eventually("the other node follows", || other.epoch() == node.epoch()).await;
    assert_eq!(other.publish(&stream, "3").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn ruling_21c_a_new_epoch_is_noticed_by_every_node_without_a_consumer() {
    let server = Server::start();
    let (node, other) = (Node::on(&server).await, Node::on(&server).await);
    let epoch = node.epoch();
    let admin = Admin::connect(NatsBrokerConfig { node: "operator".into(), ..config(&server) }).await.unwrap();
    let (former, reset) = admin.reset_epoch("default").await.unwrap();
    admin.close().await;
    assert_eq!(former.as_str(), epoch);
    assert_ne!(reset.as_str(), epoch);
    eventually("all nodes know", || other.epoch() == reset.as_str() && node.epoch() == reset.as_str()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_wait_for_nats_and_then_say_unavailable() {
    let mut server = Server::start();
    let mut config = config(&server);
    config.broker_timeout = Duration::from_secs(1);
    let node = Node::ready(config).await;
    server.kill();
    let key = crate::broker::SessionKey::of("x");
    assert!(node.broker.load_session(&key).await.is_err());
    assert!(node.broker.open(&[StreamName::from("a")]).await.is_err());
    assert!(node.broker.mark("x").await.is_err());
    server.run();
    node.until_ready().await;
    assert!(node.broker.load_session(&key).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_works_without_a_pause_after_the_connection_was_cut() {
    let server = Server::start();
    let proxy = Proxy::to(server.port).await;
    let mut config = config(&server);
    config.client = ClientConfig::for_servers(&format!("nats://127.0.0.1:{}", proxy.port));
    let node = Node::ready(config).await;
    let stream = StreamName::from("a");
    for i in 0..5 {
        let generation = node.generation();
        proxy.cut();
        eventually("cut", || !node.broker.status().borrow().ready).await;
        let publish = node.publish(&stream, "1");
        let heal = async { proxy.join() };
        assert_eq!(tokio::join!(publish, heal).0, i + 1);
        node.until_generation_after(generation).await;
    }
}

/// So long that every window of ids is over.
const SUSPENDED: Duration = Duration::from_secs(3_600);

/// It waited for the store when the machine was suspended: no timer of the process knows how long that was.
#[tokio::test(flavor = "multi_thread")]
async fn row_01_a_write_that_waits_across_a_suspension_is_not_handed_over() {
    let mut server = Server::start();
    let node = Node::on(&server).await;
    let stream = StreamName::from("a");
    server.kill();
    eventually("NATS is away", || node.broker.core.generation().is_none()).await;
    let mut publishing = node.broker.append(publication(&stream, "1"));
    assert!(futures_util::poll!(&mut publishing).is_pending(), "it waits for NATS");
    node.broker.core.clocks.suspend(SUSPENDED);
    server.run();
    let outcome = publishing.await;
    assert!(matches!(outcome, Err(AppendError::NotStored(_))), "{outcome:?}");
    node.until_ready().await;
    assert_eq!(heads_of(node.broker.heads(std::slice::from_ref(&stream)).await)[0].newest, 0, "nothing was stored");
    assert_eq!(node.publish(&stream, "2").await, 1);
}

/// The first try was handed over before; whether it was stored is not known, and it is not tried again.
#[tokio::test(flavor = "multi_thread")]
async fn row_01_a_write_is_not_repeated_after_a_suspension() {
    let server = Server::start();
    let node = Node::on(&server).await;
    let stream = StreamName::from("a");
    server.signal("STOP");
    let begun = std::time::Instant::now();
    let mut publishing = node.broker.append(publication(&stream, "1"));
    let early = tokio::time::timeout(Duration::from_millis(200), &mut publishing).await;
    assert!(early.is_err(), "{early:?}");
    node.broker.core.clocks.suspend(SUSPENDED);
    let outcome = publishing.await;
    assert!(matches!(outcome, Err(AppendError::Unknown(_))), "{outcome:?}");
    let budget = Duration::from_secs(10);
    assert!(begun.elapsed() < budget * 3 / 4, "it ended with its attempt: {:?}", begun.elapsed());
    server.signal("CONT");
}
