//! Nodes on one nats-server: one order, sessions that move, gaps that are repaired.
//!
//! Live messages get lost in a proxy between a node and its nats-server, not by a switch in the product.

use crate::harness::backend::{shared_nats, unused_prefix};
use crate::harness::carrick::Builder;
use crate::harness::client::messages;
use crate::harness::proxy::NatsProxy;
use crate::harness::stock::StockClient;
use crate::harness::*;
use futures_util::future::join_all;
use serde_json::json;
use std::time::Duration;

/// Nodes of one deployment.
fn nodes<const N: usize>() -> [Server; N] {
    let prefix = unused_prefix();
    std::array::from_fn(|_| Backend::on_nats(&shared_nats().url(), &prefix).start())
}

#[tokio::test]
async fn all_nodes_deliver_in_one_order_with_equal_positions() {
    let servers = nodes::<3>();
    let mut clients = Vec::new();
    for server in &servers {
        clients.push(server.subscriber("chat").await);
    }
    join_all((0..60).map(|number| servers[number % 3].publish("chat", json!(number)))).await;
    let mut seen = Vec::new();
    for client in &mut clients {
        let mut deliveries = Vec::new();
        for _ in 0..60 {
            deliveries.push(Delivery::of(&client.next().await).expect("a data message"));
        }
        assert!(client::offsets(&deliveries).is_sorted_by(|a, b| a < b));
        seen.push(deliveries);
    }
    assert!(seen[0] == seen[1] && seen[1] == seen[2]);
}

#[tokio::test]
async fn ruling_15_order_across_nodes() {
    let [one, two] = nodes();
    let mut last = 0;
    for number in 0..20 {
        let position = if number % 2 == 0 { &one } else { &two }.publish("chat", json!(number)).await;
        assert!(position.offset > last);
        last = position.offset;
    }
}

#[tokio::test]
async fn a_position_of_one_node_is_good_on_the_other() {
    let [one, two] = nodes();
    let positions = one.publish_numbers("chat", 1..=5).await;
    let mut client = two.subscriber("chat").await;
    let replayed = client.history(&public("chat"), after(&positions[1])).await;
    assert_eq!(replayed.iter().map(Delivery::at).collect::<Vec<_>>(), positions[2..]);
}

#[tokio::test]
async fn a_session_moves_to_the_other_node_and_back() {
    let [one, two] = nodes();
    let mut client = one.subscriber("chat").await;
    let mut position = one.publish("chat", json!(0)).await;
    client.expect_message(&public("chat"), json!(0)).await;
    for (round, (here, there)) in [(&two, &one), (&one, &two), (&two, &one)].into_iter().enumerate() {
        let sid = client.drop_hard();
        there.publish("chat", json!({"missed": round})).await;
        client = here.resume(&sid).await;
        assert_eq!(client.restored(), [public("chat")]);
        let replayed = client.history(&public("chat"), after(&position)).await;
        assert_eq!(messages(&replayed), [json!({"missed": round})]);
        position = there.publish("chat", json!(round)).await;
        assert_eq!(client.expect_message(&public("chat"), json!(round)).await.at(), position);
    }
}

/// What a client with the stock client's state has received that hops between nodes while both publish 0..100.
async fn hop(identifiers: &[String]) -> StockClient {
    let servers = nodes::<2>();
    let mut client = StockClient::new(identifiers);
    client.connect(&servers[0]).await;
    let publishing = async {
        for number in 0..100 {
            servers[number % 2].publish("chat", json!(number)).await;
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
        servers[0].publish("chat", json!("end")).await;
    };
    let hopping = async {
        for round in 0..HOPS {
            client.listen(Duration::from_millis(20 + 13 * round)).await;
            client.drop_connection();
            client.connect(&servers[usize::from(round % 2 == 0)]).await;
        }
        client.listen_for(&json!("end")).await;
    };
    tokio::join!(publishing, hopping);
    assert_eq!((client.rejected, client.restored), (0, usize::try_from(HOPS).expect("few")));
    client
}

const HOPS: u64 = 8;

#[tokio::test]
async fn hopping_clients_get_every_message_once_and_in_order() {
    let client = hop(&[public("chat")]).await;
    let expected = (0..100).map(|number| json!(number)).chain([json!("end")]);
    assert_eq!(client.received[&public("chat")], expected.collect::<Vec<_>>());
}

/// The client keeps one position per stream: a drop between the two copies of one message costs the second copy, and
/// nothing else.
#[tokio::test]
async fn ruling_01_a_drop_costs_at_most_the_second_copy_of_one_message() {
    let (page, component) = (public("chat"), public_again("chat"));
    let client = hop(&[page.clone(), component.clone()]).await;
    let numbers = |identifier: &String| -> Vec<u64> {
        let received = &client.received[identifier];
        received.iter().filter_map(|message| message.as_u64()).collect()
    };
    let (page, component) = (numbers(&page), numbers(&component));
    let mut lost = 0;
    for number in 0..100 {
        let copies = usize::from(page.contains(&number)) + usize::from(component.contains(&number));
        assert!(copies > 0, "{number} is lost altogether");
        lost += 2 - u64::try_from(copies).expect("two at most");
    }
    assert!(lost <= HOPS, "{lost} copies lost in {HOPS} drops");
    assert!(page.is_sorted_by(|a, b| a < b) && component.is_sorted_by(|a, b| a < b), "each once and in order");
}

#[tokio::test]
async fn a_remote_disconnect_reaches_every_node() {
    let [one, two] = nodes();
    let mut first = one.subscriber("chat").await;
    let mut second = two.resume(&first.sid).await;
    assert!(second.is_restored());
    one.disconnect(&first.identifiers(), true).await;
    for client in [&mut first, &mut second] {
        client.expect(disconnect("remote", true)).await;
        client.expect_close(1000, "Closed remotely").await;
    }
    for sid in [&first.sid, &second.sid] {
        assert!(!one.resume(sid).await.is_restored());
        assert!(!two.resume(sid).await.is_restored());
    }
}

#[tokio::test]
async fn ruling_22_an_offline_session_is_dead_on_every_node() {
    let [one, two] = nodes();
    let client = one.subscriber("chat").await;
    let identifiers = client.identifiers();
    let sid = client.drop_hard();
    two.disconnect(&identifiers, true).await;
    assert!(!one.resume(&sid).await.is_restored());
    assert!(!two.resume(&sid).await.is_restored());
}

#[tokio::test]
async fn whispers_and_transient_messages_cross_nodes() {
    let [one, two] = nodes();
    let (mut here, mut there) = (one.subscriber("chat").await, two.subscriber("chat").await);
    // The nodes have heard of each other's subscriptions once a stored message has come through.
    one.publish("chat", json!("stored")).await;
    here.expect_message(&public("chat"), json!("stored")).await;
    there.expect_message(&public("chat"), json!("stored")).await;
    here.whisper(&public("chat"), json!("psst")).await;
    there.expect_message(&public("chat"), json!("psst")).await;
    let meta = json!({"transient": true, "exclude_socket": here.sid});
    two.accepted(json!({"stream": "chat", "data": "1", "meta": meta})).await;
    there.expect_message(&public("chat"), json!(1)).await;
    here.expect_silence().await;
}

#[tokio::test]
async fn a_retry_on_the_other_node_is_not_a_second_message() {
    let [one, two] = nodes();
    let item = json!({"stream": "chat", "data": "1", "meta": {"id": "order-9"}});
    let (first, second) = (one.accepted(item.clone()).await, two.accepted(item).await);
    assert_eq!((Position::of(&first), &second["duplicate"]), (Position::of(&second), &json!(true)));
}

/// What is kept of a stream must not hold what came over the same connection and was not for it.
#[tokio::test]
async fn row_15_memory_depends_on_what_is_kept_and_not_on_what_passed() {
    const STREAMS: usize = 500;
    let (nats, prefix) = (NatsServer::start(), unused_prefix());
    let server = Backend::on_nats(&nats.url(), &prefix).start();
    let mut client = server.connect().await;
    for number in 0..STREAMS {
        client.subscribe(&public(&format!("s{number}"))).await;
    }
    let operator = nats.operator().await;
    let before = server.resident();
    for number in 0..STREAMS {
        let stream = format!("s{number}");
        server.publish(&stream, json!(number)).await;
        client.expect_message(&public(&stream), json!(number)).await;
        // The node reads it and has no use for it.
        operator.publish(format!("{prefix}.peer.witness"), vec![b'x'; 60_000].into()).await.expect("published");
        operator.flush().await.expect("flushed");
    }
    let grown = server.resident().saturating_sub(before) >> 10;
    println!("{STREAMS} small messages were kept: {grown} KiB");
    assert!(grown < 12_000, "{STREAMS} small messages hold {grown} KiB");
}

#[tokio::test]
async fn two_deployments_on_one_nats_do_not_meet() {
    let ([one], [two]) = (nodes(), nodes());
    let mut client = two.subscriber("chat").await;
    let sid = one.subscriber("chat").await.drop_hard();
    one.publish("chat", json!(1)).await;
    client.expect_silence().await;
    assert!(!two.resume(&sid).await.is_restored());
}

// --- lost live messages ----------------------------------------------------------------------------------------------

/// A node behind a lossy proxy, and another one with a whole connection.
fn lossy(change: impl FnOnce(Builder) -> Builder) -> (NatsProxy, Server, Server) {
    let (proxy, prefix) = (NatsProxy::start(shared_nats().address()), unused_prefix());
    let options = |url: &str| Backend::on_nats(url, &prefix);
    // Both nodes share the limits; only the first one's connection is lossy.
    let deaf = change(options(&proxy.url()));
    let whole = deaf.clone().replace("nats_servers", shared_nats().url());
    (proxy, deaf.start(), whole.start())
}

#[tokio::test]
async fn a_gap_is_repaired_before_what_follows_is_released() {
    let (proxy, deaf, whole) = lossy(|options| options);
    let mut client = deaf.subscriber("chat").await;
    let mut positions = whole.publish_numbers("chat", 1..=3).await;
    proxy.lose_live(2, 3);
    positions.extend(whole.publish_numbers("chat", 4..=12).await);
    let deliveries = client.expect_numbers(&public("chat"), 1..=12).await;
    assert_eq!(deliveries.iter().map(Delivery::at).collect::<Vec<_>>(), positions);
    assert_eq!(proxy.lost(), 3, "the fault acted");
    client.expect_silence().await;
}

#[tokio::test]
async fn gaps_of_several_streams_are_repaired() {
    let (proxy, deaf, whole) = lossy(|options| options);
    let streams: Vec<_> = (0..5).map(|number| format!("chat/{number}")).collect();
    let mut clients = Vec::new();
    for stream in &streams {
        clients.push(deaf.subscriber(stream).await);
    }
    proxy.lose_live(20, 30);
    join_all(streams.iter().map(|stream| whole.publish_numbers(stream, 1..=20))).await;
    for (client, stream) in clients.iter_mut().zip(&streams) {
        client.expect_numbers(&public(stream), 1..=20).await;
    }
    assert_eq!(proxy.lost(), 30, "the fault acted");
}

/// Nothing follows that would show the loss: only comparing heads does.
#[tokio::test]
async fn ruling_07_the_lost_end_of_a_burst_is_found_by_the_head_check() {
    let (proxy, deaf, whole) = lossy(|options| options.option("head_check_interval", 1));
    let mut client = deaf.subscriber("chat").await;
    proxy.lose_live(3, 2);
    whole.publish_numbers("chat", 1..=5).await;
    client.expect_numbers(&public("chat"), 1..=5).await;
    assert_eq!(proxy.lost(), 2, "the fault acted");
}

/// The first message after the last one expired says that nothing preceded it: that alone is no gap.
#[tokio::test]
async fn ruling_07_a_message_after_everything_expired_is_no_false_alarm() {
    let server = Server::on(Backend::ExternalNats).option("history_ttl", 6).option("head_check_interval", 1).start();
    let mut client = server.subscriber("chat").await;
    server.publish("chat", json!(1)).await;
    client.expect_message(&public("chat"), json!(1)).await;
    patience::let_pass(Duration::from_millis(7_600)).await;
    server.publish("chat", json!(2)).await;
    client.expect_message(&public("chat"), json!(2)).await;
    client.expect_silence().await;
}

/// The lost ones were trimmed before they could be read again.
#[tokio::test]
async fn ruling_06_a_gap_that_cannot_be_repaired_is_told() {
    let (proxy, deaf, whole) = lossy(|options| options.option("history_limit", 5).option("head_check_interval", 60));
    let mut extended = deaf.subscriber("chat").await;
    let mut base = deaf.connect_base().await;
    base.subscribe(&public("chat")).await;
    whole.publish("chat", json!(0)).await;
    extended.expect_message(&public("chat"), json!(0)).await;
    base.expect_message(&public("chat"), json!(0)).await;
    proxy.lose_live(0, 20);
    whole.publish_numbers("chat", 1..=21).await;
    extended.expect(reject_history(&public("chat"))).await;
    for client in [&mut extended, &mut base] {
        let mut last = 0;
        while last < 21 {
            let frame = client.next().await;
            let number = frame["message"].as_u64().unwrap_or_else(|| panic!("not a data message: {frame}"));
            assert!(number > last, "{frame}");
            last = number;
        }
    }
    assert_eq!(proxy.lost(), 20, "the fault acted");
}

#[tokio::test]
async fn a_cut_connection_loses_nothing() {
    let (proxy, deaf, whole) = lossy(|options| options);
    let mut client = deaf.subscriber("chat").await;
    for round in 0..3 {
        whole.publish_numbers("chat", round * 20 + 1..=round * 20 + 10).await;
        proxy.cut();
        whole.publish_numbers("chat", round * 20 + 11..=round * 20 + 20).await;
        client.expect_numbers(&public("chat"), round * 20 + 1..=round * 20 + 20).await;
    }
}

/// Replay and a lossy live feed at once.
#[tokio::test]
async fn a_replay_during_losses_is_complete() {
    let (proxy, deaf, whole) = lossy(|options| options.option("head_check_interval", 1));
    let first = whole.publish("chat", json!(0)).await;
    let mut keeper = deaf.subscriber("chat").await;
    proxy.lose_live(5, 40);
    let following = async {
        for _ in 0..4 {
            let mut client = deaf.connect().await;
            client.subscribe_with(&public("chat"), after(&first)).await;
            client.expect(confirm(&public("chat"))).await;
            let mut next = 1;
            while next <= 60 {
                let frame = client.next().await;
                if frame != confirm_history(&public("chat")) {
                    assert_eq!(frame["message"], next, "{frame}");
                    next += 1;
                }
            }
        }
    };
    tokio::join!(whole.publish_numbers("chat", 1..=60), following);
    keeper.expect_numbers(&public("chat"), 1..=60).await;
    assert_eq!(proxy.lost(), 40, "the fault acted");
}

/// A stopped node finds a message on its way that is as old as the stop; what was lost behind it has aged out meanwhile.
/// It must not take the one for fresh and the other for nothing.
#[tokio::test]
async fn row_02_a_node_that_was_stopped_does_not_take_old_evidence_for_fresh() {
    let (nats, prefix) = (shared_nats(), unused_prefix());
    let proxy = NatsProxy::start(nats.address());
    let node = |url: &str| Backend::on_nats(url, &prefix).option("history_ttl", 2).option("dedup_window", 1).start();
    let (stopped, other) = (node(&proxy.url()), node(&nats.url()));
    let mut open = stopped.subscriber("chat").await;
    let mut at = other.publish("chat", json!(0)).await;
    open.expect_message(&public("chat"), json!(0)).await;

    process::signal(stopped.pid(), "STOP");
    other.publish("chat", json!(1)).await;
    // What the kernel has taken for the stopped node is there when it goes on, the end of its connection, too.
    patience::let_pass(Duration::from_millis(300)).await;
    assert!(proxy.cut() > 0);
    other.publish("chat", json!(2)).await;
    patience::let_pass(Duration::from_secs(4)).await;
    process::signal(stopped.pid(), "CONT");

    // Whatever of it still reaches the client, in the end it is told that something is lost.
    loop {
        let frame = open.next().await;
        if frame["type"] == "reject_history" {
            break;
        }
        let delivery = Delivery::of(&frame).expect("a message or a rejection");
        assert_eq!(delivery.message, json!(1), "2 is lost");
        at = delivery.at();
    }
    // Both nodes say the same of the position before the hole.
    for server in [&stopped, &other] {
        let mut late = server.subscriber("chat").await;
        late.ask_history(&public("chat"), after(&at)).await;
        late.expect(json!({"type": "reject_history", "identifier": public("chat")})).await;
    }
    let position = other.publish("chat", json!(3)).await;
    assert_eq!(open.expect_message(&public("chat"), json!(3)).await.at(), position);
}
