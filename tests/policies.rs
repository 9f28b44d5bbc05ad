//! History policies: a log each, with limits of its own; changed in place where that loses nothing, else aloud.

use crate::harness::backend::{shared_nats, unused_prefix};
use crate::harness::carrick::Builder;
use crate::harness::client::messages;
use crate::harness::*;
use serde_json::json;

const CHAT: &str = "pattern=chat/*,limit=3,ttl=1h";
const BRIEF: &str = "pattern=brief/*,ttl=6";
const TYPING: &str = "name=typing,pattern=*/typing,limit=0";

/// Three policies and the default one.
fn several(builder: Builder) -> Builder {
    builder.option("history", TYPING).option("history", CHAT).option("history", BRIEF)
}

with_own_server_on_every_backend!(
    each_stream_keeps_what_its_policy_says,
    a_policy_of_zero_stores_nothing,
    one_client_resumes_across_policies_in_one_go,
    the_offset_of_one_log_means_nothing_in_another,
);

mod changes {
    use super::*;

    with_own_server_on_durable_backends!(
        limits_change_on_restart_without_loss,
        a_stream_that_moves_starts_anew_and_its_clients_are_told,
        an_epoch_is_reset_by_an_operator,
    );
}

async fn each_stream_keeps_what_its_policy_says(backend: Backend) {
    let server = several(Server::on(backend)).start();
    for stream in ["chat/1", "brief/1", "news"] {
        let positions = server.publish_numbers(stream, 1..=5).await;
        assert_eq!(positions.iter().map(|at| at.offset).collect::<Vec<_>>(), [1, 2, 3, 4, 5], "{stream}");
    }
    let kept = async |stream: &str| {
        let mut client = server.subscriber(stream).await;
        messages(&client.history(&public(stream), since(unix_now() - 60)).await)
    };
    assert_eq!(kept("chat/1").await, [3, 4, 5], "the limit of its policy");
    assert_eq!(kept("news").await, [1, 2, 3, 4, 5], "the default's");
    eventually("they age out", async || kept("brief/1").await.is_empty().then_some(())).await;
    assert_eq!((kept("chat/1").await.len(), kept("news").await.len()), (3, 5));
}

/// The first match wins: `chat/1/typing` would be a chat otherwise.
async fn a_policy_of_zero_stores_nothing(backend: Backend) {
    let server = several(Server::on(backend)).start();
    let mut client = server.subscriber("chat/1/typing").await;
    let answer = server.accepted(json!({"stream": "chat/1/typing", "data": "1"})).await;
    assert_eq!(answer, json!({"stream": "chat/1/typing", "stored": false}));
    assert_eq!(client.expect_message(&public("chat/1/typing"), json!(1)).await.position, None);
    client.ask_history(&public("chat/1/typing"), since(unix_now() - 60)).await;
    client.expect(reject_history(&public("chat/1/typing"))).await;
    server.accepted(json!({"stream": "chat/1/typing", "data": "2"})).await;
    client.expect_message(&public("chat/1/typing"), json!(2)).await;
    assert_eq!(server.publish("chat/1", json!(1)).await.offset, 1);
}

const THREE: [&str; 3] = ["chat/1", "brief/1", "news"];

/// A client that follows streams of three logs, has had a message of each, and has gone.
async fn gone_client(server: &Server) -> (String, Vec<Position>) {
    let mut client = server.connect().await;
    for stream in THREE {
        client.subscribe(&public(stream)).await;
    }
    let mut had = Vec::new();
    for (number, stream) in THREE.into_iter().enumerate() {
        // Logs of different lengths.
        server.publish_numbers(&format!("{stream}/more"), 1..=3 * number as u64 + 1).await;
        had.push(server.publish(stream, json!("had")).await);
        client.expect_message(&public(stream), json!("had")).await;
    }
    (client.drop_hard(), had)
}

async fn comes_back(server: &Server, sid: &str, had: &[Position], missed: &[Vec<Position>]) {
    let mut client = server.resume(sid).await;
    assert_eq!(client.restored().len(), THREE.len());
    for (stream, at) in THREE.into_iter().zip(had) {
        client.ask_history(&public(stream), after(at)).await;
    }
    // In whatever order the three streams come, each is complete.
    let mut seen = vec![Vec::new(); THREE.len()];
    let mut confirmed = 0;
    while confirmed < THREE.len() {
        let frame = client.next().await;
        match Delivery::of(&frame) {
            Some(delivery) => {
                let at = delivery.at();
                let place = THREE.iter().position(|stream| *stream == at.stream).expect("one of the three");
                seen[place].push(at);
            }
            None => {
                assert_eq!(frame["type"], "confirm_history", "{frame}");
                confirmed += 1;
            }
        }
    }
    assert_eq!(seen, missed);
    server.publish("news", json!("live")).await;
    client.expect_message(&public("news"), json!("live")).await;
}

async fn one_client_resumes_across_policies_in_one_go(backend: Backend) {
    let server = several(Server::on(backend)).replace("history_ttl", 300).start();
    let (sid, had) = gone_client(&server).await;
    let mut missed = Vec::new();
    for stream in THREE {
        missed.push(server.publish_numbers(stream, 1..=2).await);
    }
    comes_back(&server, &sid, &had, &missed).await;
}

#[tokio::test]
async fn one_client_resumes_across_policies_on_another_node() {
    let prefix = unused_prefix();
    let [one, two]: [Server; 2] =
        std::array::from_fn(|_| several(Backend::on_nats(&shared_nats().url(), &prefix)).start());
    let (sid, had) = gone_client(&one).await;
    let mut missed = Vec::new();
    for stream in THREE {
        missed.push(two.publish_numbers(stream, 1..=2).await);
    }
    comes_back(&two, &sid, &had, &missed).await;
}

async fn the_offset_of_one_log_means_nothing_in_another(backend: Backend) {
    let server = several(Server::on(backend)).start();
    let chat = server.publish("chat/1", json!(1)).await;
    let news = server.publish("news", json!(1)).await;
    assert_ne!(chat.epoch, news.epoch);
    let mut client = server.subscriber("news").await;
    let position = Position { stream: "news".into(), ..chat };
    client.ask_history(&public("news"), after_offset(&position, 0)).await;
    client.expect(reject_history(&public("news"))).await;
}

async fn limits_change_on_restart_without_loss(backend: Backend) {
    let mut server = Server::on(backend).option("history", CHAT).start();
    let mut client = server.subscriber("chat/1").await;
    let positions = server.publish_numbers("chat/1", 1..=3).await;
    client.expect_numbers(&public("chat/1"), 1..=3).await;
    let sid = client.drop_hard();
    server.stop();
    server.set("history", "pattern=chat/*,limit=8,ttl=30m");
    server.start();
    let more = server.publish_numbers("chat/1", 4..=8).await;
    assert_eq!(more[0].epoch, positions[0].epoch);
    let mut client = server.resume(&sid).await;
    assert_eq!(client.restored(), [public("chat/1")]);
    let replayed = client.history(&public("chat/1"), after(&positions[2])).await;
    assert_eq!(replayed.iter().map(Delivery::at).collect::<Vec<_>>(), more);
}

async fn a_stream_that_moves_starts_anew_and_its_clients_are_told(backend: Backend) {
    let mut server = Server::on(backend).start();
    let mut client = server.subscriber("chat/1").await;
    client.subscribe(&public("news")).await;
    let chat = server.publish("chat/1", json!(1)).await;
    let news = server.publish("news", json!(1)).await;
    client.expect_message(&public("chat/1"), json!(1)).await;
    client.expect_message(&public("news"), json!(1)).await;
    let sid = client.drop_hard();
    server.stop();
    server.set("history", CHAT);
    server.start();
    let moved = server.publish("chat/1", json!(2)).await;
    assert_ne!(moved.epoch, chat.epoch);
    let stayed = server.publish("news", json!(2)).await;
    assert_eq!(stayed.epoch, news.epoch);
    let mut client = server.resume(&sid).await;
    client.ask_history(&public("chat/1"), after(&chat)).await;
    client.expect(reject_history(&public("chat/1"))).await;
    // What was held follows the signal.
    let replayed = client.history(&public("news"), after(&news)).await;
    assert_eq!(replayed.iter().map(Delivery::at).collect::<Vec<_>>(), vec![stayed]);

    // And back: positions from before the first move must not count again, though the log is the same.
    client.drop_hard();
    server.stop();
    server.set("history", "");
    server.start();
    let mut client = server.subscriber("chat/1").await;
    for position in [&chat, &moved] {
        client.ask_history(&public("chat/1"), after(position)).await;
        client.expect(reject_history(&public("chat/1"))).await;
    }
}

async fn an_epoch_is_reset_by_an_operator(backend: Backend) {
    let mut server = Server::on(backend).option("history", CHAT).start();
    let chat = server.publish("chat/1", json!(1)).await;
    let news = server.publish("news", json!(1)).await;
    if backend == Backend::EmbeddedNats {
        let (code, said) = server.tool(&["epoch", "reset"], &[]);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("stop the node"), "{said}");
        server.stop();
    }
    let (code, said) = server.tool(&["epoch", "reset"], &["--policy=chat"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(&chat.epoch) && said.contains("void"), "{said}");
    if backend == Backend::EmbeddedNats {
        server.start();
    }
    let fresh = server.publish("chat/1", json!(2)).await;
    assert!(fresh.epoch != chat.epoch || backend != Backend::EmbeddedNats);
    assert_eq!(server.publish("news", json!(2)).await.epoch, news.epoch, "the other log is as it was");
    let client = server.subscriber("chat/1").await;
    eventually("the node has adopted it", async || {
        (server.publish("chat/1", json!(3)).await.epoch != chat.epoch).then_some(())
    })
    .await;
    client.drop_hard();
    let mut client = server.subscriber("chat/1").await;
    client.ask_history(&public("chat/1"), after(&chat)).await;
    client.expect(reject_history(&public("chat/1"))).await;
}

#[tokio::test]
async fn a_reset_epoch_is_told_to_connected_clients() {
    let prefix = unused_prefix();
    let server = Backend::on_nats(&shared_nats().url(), &prefix).start();
    let mut client = server.subscriber("chat").await;
    let before = server.publish("chat", json!(1)).await;
    client.expect_message(&public("chat"), json!(1)).await;
    let (code, said) = server.tool(&["epoch", "reset"], &[]);
    assert_eq!(code, Some(0), "{said}");
    client.expect(reject_history(&public("chat"))).await;
    let after = server.publish_eventually("chat", json!(2)).await;
    assert_ne!(after.epoch, before.epoch);
    assert_eq!(client.expect_message(&public("chat"), json!(2)).await.at(), after);

    let (code, said) = server.tool(&["epoch", "reset"], &["--policy=none"]);
    assert_eq!((code, said.contains("there are: default")), (Some(1), true), "{said}");
    assert_eq!(server.tool(&["epoch", "reset"], &["--polcy=x"]).0, Some(2));
    assert_eq!(server.tool(&["epoch"], &[]).0, Some(2));
}

#[tokio::test]
async fn running_nodes_adopt_what_an_operator_applies() {
    let prefix = unused_prefix();
    let [one, two]: [Server; 2] = std::array::from_fn(|_| Backend::on_nats(&shared_nats().url(), &prefix).start());
    let mut chat = one.subscriber("chat/1").await;
    let mut news = two.subscriber("news").await;
    let before = one.publish("chat/1", json!(1)).await;
    chat.expect_message(&public("chat/1"), json!(1)).await;
    let kept = one.publish("news", json!(1)).await;
    news.expect_message(&public("news"), json!(1)).await;

    let wanted = format!("--history={CHAT}");
    let (code, said) = one.tool(&["policy", "show"], &[&wanted]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("revision 1") && said.contains("carrick policy apply"), "{said}");
    let (code, said) = one.tool(&["policy", "apply"], &[&wanted]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("revision 2 is in effect"), "{said}");
    // Moved: its clients are told. The others notice nothing.
    chat.expect(reject_history(&public("chat/1"))).await;
    let after = two.publish_eventually("chat/1", json!(2)).await;
    assert_ne!(after.epoch, before.epoch);
    assert_eq!(chat.expect_message(&public("chat/1"), json!(2)).await.at(), after);
    let more = one.publish_eventually("news", json!(2)).await;
    assert_eq!(more.epoch, kept.epoch);
    assert_eq!(news.expect_message(&public("news"), json!(2)).await.at(), more);

    let (code, said) = one.tool(&["policy", "apply"], &[&wanted]);
    assert_eq!((code, said.contains("nothing to change")), (Some(0), true), "{said}");
    // A node with the former settings has no place any more, one with the new ones has.
    let (code, said) = Backend::on_nats(&shared_nats().url(), &prefix).refused();
    assert_eq!(code, Some(1));
    assert!(said.contains("the store's policy chat (chat/*) keeps 3 messages"), "{said}");
    let three = Backend::on_nats(&shared_nats().url(), &prefix).option("history", CHAT).start();
    assert_eq!(three.publish("chat/1", json!(3)).await.epoch, after.epoch);
    // Removed again: its log stays, and the operator is told how to remove it.
    let (code, said) = one.tool(&["policy", "apply"], &["--history="]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("new epoch: default") && said.contains("nats stream rm"), "{said}");
    news.expect(reject_history(&public("news"))).await;
}

#[tokio::test]
async fn faulty_policies_are_named_before_anything_starts() {
    let options = || Builder::open().option("broker", "memory");
    for (policy, says) in [
        ("limit=5", "a pattern for each history policy"),
        ("pattern=chat/*,size=5", "\"size\" is none of them"),
        ("pattern=chat/*;pattern=chat-*", "\"chat\" is there twice"),
    ] {
        let (code, said) = options().option("history", policy).refused();
        assert_eq!(code, Some(1));
        assert!(said.contains("history (flag --history)") && said.contains(says), "{said}");
    }
    let server = Backend::on_nats(&shared_nats().url(), &unused_prefix()).start();
    let (code, said) = server.tool(&["policy", "apply"], &["--history=limit=5"]);
    assert_eq!((code, said.contains("a pattern for each")), (Some(2), true), "{said}");
    let memory = options().start();
    let (code, said) = memory.tool(&["policy", "show"], &[]);
    assert_eq!((code, said.contains("broker nats")), (Some(1), true), "{said}");
    tokio::time::timeout(PATIENCE, memory.publish("a", json!(1))).await.expect("it goes on");
}
