//! Three Carricks whose embedded nats-servers form one cluster: members that restart, crash, lose their store, leave for
//! good; and what `/ready` and `carrick cluster` say meanwhile.

use crate::harness::carrick::Builder;
use crate::harness::client::messages;
use crate::harness::stock::StockClient;
use crate::harness::*;
use serde_json::{Value, json};
use std::fs;
use std::net::SocketAddr;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Longer than an orderly change of leaders takes, shorter than the loss of the majority during a restart.
const LONGEST_PAUSE: Duration = Duration::from_secs(6);

/// Client ports and options of members that know each other.
fn members(count: usize) -> Vec<(u16, Builder)> {
    let ports: Vec<(u16, u16)> = (0..count).map(|_| (free_port(), free_port())).collect();
    let routes: Vec<String> = ports.iter().map(|(_, route)| format!("nats://127.0.0.1:{route}")).collect();
    let member = |(number, (client, route)): (usize, &(u16, u16))| {
        let builder = Backend::EmbeddedNats
            .builder()
            .replace("enats_addr", format!("nats://127.0.0.1:{client}"))
            .option("enats_server_name", format!("n{number}"))
            .option("enats_cluster", format!("nats://127.0.0.1:{route}"))
            .option("enats_cluster_name", "c")
            .option("enats_cluster_routes", routes.join(","))
            .option("history_limit", 100_000);
        (*client, builder)
    };
    ports.iter().enumerate().map(member).collect()
}

struct Cluster {
    nodes: Vec<Server>,
    clients: Vec<u16>,
}

impl Cluster {
    /// Members are ready only together.
    fn start() -> Self {
        let (clients, builders): (Vec<u16>, Vec<Builder>) = members(3).into_iter().unzip();
        let nodes = std::thread::scope(|scope| {
            let starting: Vec<_> = builders.into_iter().map(|builder| scope.spawn(|| builder.start())).collect();
            starting.into_iter().map(|node| node.join().expect("a node starts")).collect()
        });
        Self { nodes, clients }
    }

    fn start_again(&mut self) {
        std::thread::scope(|scope| self.nodes.iter_mut().for_each(|node| drop(scope.spawn(|| node.start()))));
    }

    /// `carrick cluster …` through this member.
    fn command(&self, through: usize, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_carrick"));
        command.arg("cluster").args(arguments).arg("--secret").arg(SECRET);
        command.arg(format!("--enats_addr=nats://127.0.0.1:{}", self.clients[through]));
        command.current_dir(self.nodes[through].folder()).output().expect("carrick can be started")
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

fn wipe(node: &Server) {
    fs::remove_dir_all(node.folder().join("store")).expect("the store can be removed");
}

fn start_the_machine_anew(node: &Server) {
    let path = node.folder().join("store/boot");
    let mut note: Value = serde_json::from_slice(&fs::read(&path).expect("a note")).expect("JSON");
    note["boot"] = json!("00000000-0000-0000-0000-000000000000");
    fs::write(&path, note.to_string()).expect("it can be written");
}

/// An application that publishes numbers, one after the other, through whichever node takes them.
struct Publisher {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<(u64, Duration)>,
}

impl Publisher {
    fn start(nodes: &Arc<Mutex<Vec<SocketAddr>>>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, nodes) = (stop.clone(), nodes.clone());
        let task = tokio::spawn(async move {
            let (mut count, mut longest) = (0, Duration::ZERO);
            while !stopped.load(Ordering::Relaxed) {
                let body = json!({"stream": "chat", "data": count.to_string(), "meta": {"id": format!("n{count}")}});
                let begun = Instant::now();
                for turn in 0.. {
                    let to = {
                        let nodes = nodes.lock().expect("nobody panicked");
                        nodes[turn % nodes.len()]
                    };
                    let key = format!("Bearer {BROADCAST_KEY}");
                    let body = body.to_string();
                    let headers = [("Authorization", key.as_str())];
                    let answer = http::try_request(to, "POST", "/_broadcast", &headers, body.as_bytes()).await;
                    if answer.is_ok_and(|answer| answer.status == 201) {
                        break;
                    }
                    patience::let_pass(Duration::from_millis(20)).await;
                }
                longest = longest.max(begun.elapsed());
                count += 1;
                patience::let_pass(Duration::from_millis(5)).await;
            }
            (count, longest)
        });
        Self { stop, task }
    }

    /// How many it published, and the longest that one took.
    async fn end(self) -> (u64, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("the publisher does not panic")
    }
}

/// Only `/ready` is waited for between the steps, as an orchestrator does.
#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_that_waits_for_ready_never_loses_the_majority() {
    let mut cluster = Cluster::start();
    let addresses = |cluster: &Cluster| cluster.nodes.iter().map(Server::broadcast_address).collect::<Vec<_>>();
    let targets = Arc::new(Mutex::new(addresses(&cluster)));
    let publisher = Publisher::start(&targets);
    let mut client = StockClient::new(&[public("chat")]);
    client.connect(&cluster.nodes[1]).await;
    for number in 0..3 {
        client.drop_connection();
        client.connect(&cluster.nodes[(number + 1) % 3]).await;
        cluster.nodes[number].stop();
        cluster.nodes[number].start();
        *targets.lock().expect("nobody panicked") = addresses(&cluster);
        client.listen(Duration::from_millis(100)).await;
    }
    let (count, longest) = publisher.end().await;
    client.listen_for(&json!(count - 1)).await;
    assert!(longest < LONGEST_PAUSE, "a publication took {longest:?}");
    let expected: Vec<Value> = (0..count).map(|number| json!(number)).collect();
    assert_eq!(client.received[&public("chat")], expected);
    assert_eq!((client.rejected, client.restored), (0, 3));
}

/// While messages are published a leader calls a follower current, and not, many times a second.
const MOMENT: Duration = Duration::from_millis(200);

/// Which copies of this member are not up to date, in the words of each stream's leader.
async fn copies_behind(asked: &async_nats::Client, member: &str) -> Vec<String> {
    let list = asked.request("$JS.API.STREAM.LIST", "{}".into()).await.expect("the list of streams");
    let list: Value = serde_json::from_slice(&list.payload).expect("JSON");
    let streams = list["streams"].as_array().expect("streams");
    assert!(streams.len() >= 4, "log, commands, records, sessions: {list}");
    let behind = streams.iter().filter(|stream| {
        let mut replicas = stream["cluster"]["replicas"].as_array().into_iter().flatten();
        let own = replicas.find(|replica| replica["name"] == member);
        let leads = stream["cluster"]["leader"] == member;
        !leads && own.is_none_or(|own| own["current"] != true || own["offline"] == true)
    });
    behind.map(|stream| stream["config"]["name"].to_string()).collect()
}

/// Whoever restarts the next member when `/ready` says 200 must not take the second copy of anything away.
#[tokio::test(flavor = "multi_thread")]
async fn row_09_a_member_is_ready_when_every_copy_of_it_is_current() {
    let rounds: usize = std::env::var("CARRICK_RESTARTS").map_or(6, |text| text.parse().expect("a number"));
    let mut cluster = Cluster::start();
    let addresses = |cluster: &Cluster| cluster.nodes.iter().map(Server::broadcast_address).collect::<Vec<_>>();
    let targets = Arc::new(Mutex::new(addresses(&cluster)));
    let publisher = Publisher::start(&targets);
    // What a client of the cluster logs in with; members derive it from the secret.
    let password = ::carrick::secret::Secret::new(SECRET).derive("nats-cluster").derive("client");
    let mut wrong = Vec::new();
    for round in 0..rounds {
        let (number, other) = (round % 3, (round + 1) % 3);
        let asked = async_nats::ConnectOptions::new()
            .user_and_password("carrick".to_owned(), password.expose().to_owned())
            .connect(format!("nats://127.0.0.1:{}", cluster.clients[other]))
            .await
            .expect("another member takes connections");
        match round % 2 {
            0 => cluster.nodes[number].kill(),
            _ => cluster.nodes[number].stop(),
        }
        // It has something to catch up with.
        for batch in 0..4 {
            let item = json!({"stream": format!("other{batch}"), "data": json!("x".repeat(20_000)).to_string()});
            let items: Vec<Value> = (0..25).map(|_| item.clone()).collect();
            eventually("the others store it", async || {
                (cluster.nodes[other].post(&json!(items).to_string()).await.status < 300).then_some(())
            })
            .await;
        }
        cluster.nodes[number].start();
        let (mut ready, mut behind) = (Duration::ZERO, Vec::new());
        loop {
            let asking = Instant::now();
            let now = copies_behind(&asked, &format!("n{number}")).await;
            if now.is_empty() {
                break;
            }
            behind.extend(now);
            // A machine that stands still does not make one look a long time.
            ready += asking.elapsed().min(MOMENT / 4);
        }
        if ready > MOMENT {
            wrong.push((round, number, ready, behind.pop()));
        }
        *targets.lock().expect("nobody panicked") = addresses(&cluster);
    }
    publisher.end().await;
    println!("{} of {rounds} restarts were called ready too early: {wrong:?}", wrong.len());
    assert!(wrong.is_empty(), "called ready too early: {wrong:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_member_is_ready_when_it_has_everything_again() {
    let mut cluster = Cluster::start();
    let before = cluster.nodes[0].publish("chat", json!("first")).await;
    for batch in 0..20 {
        let item = json!({"stream": "other", "data": json!("x".repeat(20_000)).to_string()});
        let items: Vec<Value> = (0..25).map(|_| item.clone()).collect();
        assert!(cluster.nodes[batch % 3].post(&json!(items).to_string()).await.status < 300);
    }
    let last = cluster.nodes[0].publish("chat", json!("last")).await;
    cluster.nodes[2].kill();
    wipe(&cluster.nodes[2]);
    cluster.nodes[2].start();
    // From here on the majority is the member that was wiped and one of the others.
    cluster.nodes[0].kill();
    let after_loss = cluster.nodes[2].publish_eventually("chat", json!("after")).await;
    assert_eq!((&after_loss.epoch, &last.epoch), (&before.epoch, &before.epoch));
    let mut client = cluster.nodes[2].subscriber("chat").await;
    let replayed = client.history(&public("chat"), after_offset(&before, before.offset - 1)).await;
    assert_eq!(messages(&replayed), ["first", "last", "after"]);
    // The metadata may have lost its leader, too.
    eventually("the member that is away is listed", async || {
        let listed = cluster.command(2, &["members"]);
        (!listed.status.success() && said(&listed).contains("n0\taway")).then_some(())
    })
    .await;
    cluster.nodes[0].start();
    eventually("all members are up to date", async || cluster.command(0, &["members"]).status.success().then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_comes_back_under_another_name_takes_the_place_of_the_one_that_is_removed() {
    let mut cluster = Cluster::start();
    let first = cluster.nodes[0].publish("chat", json!("first")).await;
    let refused = cluster.command(0, &["remove", "n2"]);
    assert!(!refused.status.success() && said(&refused).contains("n2 is up"), "{}", said(&refused));
    let unknown = cluster.command(0, &["remove", "n7"]);
    assert!(!unknown.status.success() && said(&unknown).contains("n0, n1, n2"), "{}", said(&unknown));
    cluster.nodes[2].kill();
    wipe(&cluster.nodes[2]);
    cluster.nodes[2].set("enats_server_name", "n9");
    cluster.nodes[2].start();
    let removed = eventually("the cluster notices that n2 is away", async || {
        let output = cluster.command(0, &["remove", "n2"]);
        output.status.success().then(|| said(&output))
    })
    .await;
    assert!(removed.contains("all copies are up to date"), "{removed}");
    eventually("the new member is listed", async || {
        let listed = cluster.command(1, &["members"]);
        (listed.status.success() && said(&listed).contains("n9\tup to date")).then_some(())
    })
    .await;
    // From here on the new member makes the majority.
    cluster.nodes[0].kill();
    let after_loss = cluster.nodes[2].publish_eventually("chat", json!("after")).await;
    assert_eq!(after_loss.epoch, first.epoch);
    let mut client = cluster.nodes[2].subscriber("chat").await;
    let replayed = client.history(&public("chat"), after_offset(&first, first.offset - 1)).await;
    assert_eq!(messages(&replayed), ["first", "after"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn ruling_12_one_machine_that_crashed_is_vouched_for_and_three_are_not() {
    let mut cluster = Cluster::start();
    let first = cluster.nodes[0].publish("chat", json!(1)).await;
    cluster.nodes[2].kill();
    start_the_machine_anew(&cluster.nodes[2]);
    cluster.nodes[2].start();
    let second = cluster.nodes[2].publish_eventually("chat", json!(2)).await;
    assert_eq!(second.epoch, first.epoch);
    let log = cluster.nodes[2].log();
    assert!(log.contains("the other members kept the log's past"), "{log}");

    cluster.nodes.iter_mut().for_each(Server::kill);
    cluster.nodes.iter().for_each(start_the_machine_anew);
    cluster.start_again();
    let third = cluster.nodes[0].publish_eventually("chat", json!(3)).await;
    assert_ne!(third.epoch, first.epoch);
    for node in &cluster.nodes {
        assert_eq!(node.publish_eventually("chat", json!(4)).await.epoch, third.epoch, "all agree on one");
        let mut client = node.subscriber("chat").await;
        client.ask_history(&public("chat"), after(&second)).await;
        client.expect(reject_history(&public("chat"))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_another_secret_is_refused_and_said_so() {
    let mut builders: Vec<Builder> = members(2).into_iter().map(|(_, builder)| builder).collect();
    let stranger = builders.remove(1).replace("secret", "another").start_unready();
    let member = builders.remove(0).start_unready();
    eventually("the refusal is in the log", async || {
        let logs = format!("{}{}", member.log(), stranger.log());
        (logs.contains("Authorization Violation") || logs.contains("authentication error")).then_some(())
    })
    .await;
    assert!(!member.is_ready().await && !stranger.is_ready().await);
}
