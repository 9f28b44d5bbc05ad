use super::*;
use crate::broker::{AppendError, ReadFrom};
use crate::secret::Secret;

async fn refused(config: NatsBrokerConfig) -> String {
    match NatsBroker::start(config, Arc::new(Recorder::default())).await {
        Ok(_) => panic!("started"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_away_at_start() {
    let mut server = Server::stopped();
    let node = Node::start(config(&server)).await;
    let status = node.broker.status().borrow().clone();
    assert!(!status.ready && status.reason.contains("cannot connect"), "{status:?}");
    let stream = StreamName::from("a");
    // After the first second publications fail at once.
    eventually("refused", || node.broker.core.away_for() > Duration::from_millis(1100)).await;
    let mut quickest = Duration::MAX;
    for _ in 0..10 {
        let begin = std::time::Instant::now();
        let error = node.broker.append(publication(&stream, "1")).await.unwrap_err();
        assert!(matches!(error, AppendError::NotStored(_)), "{error}");
        quickest = quickest.min(begin.elapsed());
    }
    assert!(quickest < Duration::from_millis(200), "{quickest:?}");
    server.run();
    node.until_ready().await;
    assert_eq!(node.publish(&stream, "1").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_jetstream_is_a_start_error() {
    let server = Server::with(&["--no-js"]);
    let error = refused(config(&server)).await;
    assert!(error.contains("JetStream is not enabled"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials() {
    let server = Server::with(&["--user", "me", "--pass", "s3cret"]);
    let with = |url: &str| {
        let mut config = config(&server);
        config.client = ClientConfig::for_servers(url);
        config
    };
    let good = with(&format!("nats://me:s3cret@127.0.0.1:{}", server.port));
    Node::ready(good).await.broker.shutdown().await;
    let node = Node::start(with(&server.url())).await;
    let status = node.broker.status().borrow().clone();
    assert!(!status.ready && status.reason.contains("authorization violation"), "{status:?}");
    node.broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nkeys_and_tokens() {
    let user = nkeys::KeyPair::new_user();
    for (authorization, token, seed) in [
        ("token: t0ken".to_owned(), Some("t0ken"), None),
        (format!("users: [{{nkey: {}}}]", user.public_key()), None, Some(user.seed().unwrap())),
    ] {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("authorization {{ {authorization} }}")).unwrap();
        let server = Server::with(&["-c", file.path().to_str().unwrap()]);
        let mut config = config(&server);
        config.client.token = token.map(Secret::new);
        config.client.nkey_seed = seed.map(Secret::new);
        Node::ready(config).await.broker.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_updated_in_place() {
    let server = Server::start();
    let stream = StreamName::from("a");
    let before = config(&server);
    let node = Node::ready(before.clone()).await;
    for i in 0..20 {
        node.publish(&stream, &i.to_string()).await;
    }
    let (epoch, facts) = (node.epoch(), node.broker.facts(&"a".into()).await.unwrap());
    assert_eq!((facts.revision, facts.raised_at), (1, 0));
    node.broker.shutdown().await;

    let mut lower = before.clone();
    lower.limits = Limits::plain(5, Duration::from_secs(20), Duration::from_secs(300));
    let node = Node::ready(lower).await;
    assert_eq!(node.epoch(), epoch);
    let page = node.broker.read(&stream, ReadFrom::Offset(0), 20, 100, 1 << 20).await.unwrap();
    let facts = node.broker.facts(&stream).await.unwrap();
    assert_eq!((page.messages.len(), facts.limit, facts.ttl), (5, 5, Duration::from_secs(20)));
    assert_eq!((facts.revision, facts.raised_at), (2, 0));
    node.broker.shutdown().await;

    let node = Node::ready(before.clone()).await;
    let facts = node.broker.facts(&"a".into()).await.unwrap();
    assert_eq!((facts.limit, facts.revision, facts.raised_at), (100, 3, 20));
    assert_eq!(node.publish(&stream, "x").await, 21);
    node.broker.shutdown().await;

    let node = Node::ready(before).await;
    assert_eq!(node.broker.facts(&"a".into()).await.unwrap().revision, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_other_limits_does_not_start_beside_running_ones() {
    let server = Server::start();
    let node = Node::on(&server).await;
    let mut other = config(&server);
    other.limits = Limits::plain(7, Duration::from_secs(300), Duration::from_secs(300));
    let error = refused(other.clone()).await;
    assert!(error.contains("100 messages") && error.contains("7 messages"), "{error}");
    assert_eq!(node.broker.facts(&"a".into()).await.unwrap().limit, 100);
    node.broker.shutdown().await;
    let node = Node::ready(other).await;
    assert_eq!(node.broker.facts(&"a".into()).await.unwrap().limit, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_settings_are_a_start_error_that_names_them() {
    let server = Server::start();
    let client = async_nats::connect(server.url()).await.unwrap();
    let context = async_nats::jetstream::new(client);
    context
        .create_stream(async_nats::jetstream::stream::Config {
            name: "mine".into(),
            subjects: vec!["carrick.log.>".into()],
            ..Default::default()
        })
        .await
        .unwrap();
    let error = refused(config(&server)).await;
    assert!(error.contains("\"mine\"") && error.contains("nats_prefix"), "{error}");
    context.delete_stream("mine").await.unwrap();

    let node = Node::on(&server).await;
    let log = node.log();
    node.broker.shutdown().await;
    let mut stream = context.get_stream(&log).await.unwrap();
    let mut settings = stream.info().await.unwrap().config.clone();
    settings.max_bytes = 1 << 30;
    context.update_stream(settings).await.unwrap();
    let error = refused(config(&server)).await;
    assert!(error.contains("max_bytes") && error.contains(&log), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_prefix_is_a_start_error() {
    let server = Server::stopped();
    for prefix in ["", "a.b", "a b", ">", "ä"] {
        let error = refused(NatsBrokerConfig { prefix: prefix.into(), ..config(&server) }).await;
        assert!(error.contains("nats_prefix"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_start_together_share_one_log() {
    let server = Server::start();
    let configs: Vec<_> = (0..6).map(|_| config(&server)).collect();
    let nodes = futures_util::future::join_all(configs.into_iter().map(Node::ready)).await;
    let logs: Vec<_> = nodes.iter().map(|n| n.log()).collect();
    assert!(logs.iter().all(|log| *log == logs[0]), "{logs:?}");
    assert!(nodes.iter().all(|n| n.epoch() == nodes[0].epoch()));
}
