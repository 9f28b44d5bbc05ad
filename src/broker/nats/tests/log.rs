use super::*;
use crate::broker::{AppendError, ReadFrom};

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledged_publication_has_a_position_and_a_retry_is_the_same_message() {
    let server = Server::start();
    let node = Node::on(&server).await;
    let stream = StreamName::from("chat/42");
    let first = node.broker.append(publication(&stream, "1")).await.unwrap();
    let again = publication(&stream, "2");
    let second = node.broker.append(again.clone()).await.unwrap();
    assert_eq!((first.offset, second.offset, second.duplicate), (1, 2, false));
    assert_eq!(first.epoch.as_str(), node.epoch());
    let third = node.broker.append(Publication { data: "other".into(), ..again }).await.unwrap();
    assert_eq!((third.offset, third.duplicate), (2, true));
    node.broker.shutdown().await;
}

/// What is too large stays too large: it is neither tried again nor called a lost connection.
#[tokio::test(flavor = "multi_thread")]
async fn row_24_what_nats_cannot_take_is_refused_at_once_by_its_kind() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "max_payload: 100000").unwrap();
    let server = Server::with(&["-c", file.path().to_str().unwrap()]);
    let node = Node::on(&server).await;
    let begin = std::time::Instant::now();
    let stream = StreamName::from("chat");
    let long = |len: usize| Meta { exclude_socket: Some("x".repeat(len).into()), broadcast_type: None };
    for transient in [false, true] {
        for len in [70_000, 200_000] {
            let publication = Publication { meta: long(len), transient, ..publication(&stream, "1") };
            let error = node.broker.append(publication).await.unwrap_err();
            assert!(matches!(error, AppendError::HeadersTooLarge { limit: 65_535, .. }), "{error}");
        }
        let publication = Publication { meta: long(60_000), transient, ..publication(&stream, &"x".repeat(60_000)) };
        let error = node.broker.append(publication).await.unwrap_err();
        assert!(matches!(error, AppendError::TooLarge { limit: ..40_000, .. }), "{error}");
    }
    let command = RemoteDisconnect { identifiers: "x".repeat(200_000), reconnect: true };
    let error = node.broker.disconnect(&command).await.unwrap_err();
    assert!(matches!(error, AppendError::TooLarge { limit: ..100_000, .. }), "{error}");
    let key = crate::broker::SessionKey::of("x");
    let error = node.broker.save_session(&key, vec![b'x'; 200_000].into(), None, Life::Last).await.unwrap_err();
    assert!(error.to_string().contains("larger than the store takes"), "{error}");
    // None of them has used up the time that it has for the store.
    assert!(begin.elapsed() < Duration::from_secs(6), "{:?}", begin.elapsed());
    assert_eq!(node.publish(&stream, "1").await, 1, "and the connection stands");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_stream_hears_each_message_and_its_predecessor_on_every_node() {
    let server = Server::start();
    let (one, two) = (Node::on(&server).await, Node::on(&server).await);
    let (a, b) = (StreamName::from("a"), StreamName::from("b"));
    one.publish(&a, "0").await;
    for node in [&one, &two] {
        let heads = heads_of(node.broker.open(&[a.clone(), b.clone()]).await);
        assert_eq!(heads, [Head { newest: 1, up_to: 1 }, Head { newest: 0, up_to: 1 }]);
    }
    one.publish(&b, "1").await;
    two.publish(&a, "2").await;
    one.publish(&a, "\"x\"").await;
    for node in [&one, &two] {
        eventually("all live", || node.feed.all().len() >= 3).await;
        let text = |s: &str| s.to_owned();
        assert_eq!(node.feed.live(&a), [(1, 3, text("2")), (3, 4, text("\"x\""))]);
        assert_eq!(node.feed.live(&b), [(0, 2, text("1"))]);
    }
    one.broker.close(&a);
    one.publish(&b, "5").await;
    one.publish(&a, "6").await;
    two.publish(&b, "7").await;
    eventually("b goes on", || one.feed.live(&b).len() == 3).await;
    eventually("a goes on at two", || two.feed.live(&a).len() == 3).await;
    assert_eq!(one.feed.live(&a).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_of_many_streams() {
    let server = Server::start();
    let node = Node::on(&server).await;
    let streams: Vec<StreamName> = (0..1200).map(|i| StreamName::from(format!("s{i}"))).collect();
    assert_eq!(heads_of(node.broker.heads(&streams).await), vec![Head::default(); 1200]);
    let big = format!("\"{}\"", "x".repeat(20_000));
    let mut expected = vec![(0, 400); 1200];
    for (i, stream) in streams.iter().enumerate().filter(|(i, _)| i % 3 == 0) {
        // Large messages make the server split its answers.
        expected[i].0 = node.publish(stream, if i < 600 { &big } else { "1" }).await;
    }
    let heads = heads_of(node.broker.open(&streams).await);
    assert_eq!(heads.iter().map(|head| (head.newest, head.up_to)).collect::<Vec<_>>(), expected);
    assert_eq!(node.broker.heads(&[StreamName::from("none")]).await.unwrap()[0].head.newest, 0);
}

/// A question for the heads of many streams is larger than that.
#[tokio::test(flavor = "multi_thread")]
async fn heads_of_many_streams_where_the_server_takes_small_messages_only() {
    let (mut server, settings) = (Server::stopped(), tempfile::NamedTempFile::new().unwrap());
    std::fs::write(settings.path(), "max_payload: 8KB\n").unwrap();
    server.configured(settings.path());
    server.run();
    let node = Node::on(&server).await;
    let streams: Vec<StreamName> = (0..600).map(|i| StreamName::from(format!("{i:0>200}"))).collect();
    let mut expected = vec![(0, 20); 600];
    for (i, stream) in streams.iter().enumerate().filter(|(i, _)| i % 30 == 0) {
        expected[i].0 = node.publish(stream, "1").await;
    }
    let heads = heads_of(node.broker.open(&streams).await);
    assert_eq!(heads.iter().map(|head| (head.newest, head.up_to)).collect::<Vec<_>>(), expected);
}

/// The one that every question names, so that no answer is empty.
#[tokio::test(flavor = "multi_thread")]
async fn row_02_a_log_that_has_lost_the_message_of_one_stream_tells_of_the_others() {
    let server = Server::start();
    let node = Node::on(&server).await;
    let stream = StreamName::from("a");
    let newest = node.publish(&stream, "1").await;
    let gone = node.broker.core.names.log_subject("default", "gone");
    let generation = node.broker.core.generation().unwrap();
    generation.of(&stream).1.unwrap().asks.remember(&gone, newest);
    assert_eq!(heads_of(node.broker.heads(&[stream]).await), [Head { newest, up_to: newest }]);
}

/// When the newest message of a stream was stored.
async fn page_time(node: &Node, stream: &StreamName) -> u64 {
    let end = node.broker.facts(stream).await.unwrap().last_seq;
    let page = node.broker.read(stream, ReadFrom::Offset(0), end, 100, 1 << 20).await.unwrap();
    page.messages.last().unwrap().time
}

/// Of an empty log, too: whoever was asked when the last message was stored must be able to say.
#[tokio::test(flavor = "multi_thread")]
async fn row_03_the_log_knows_when_its_newest_message_was_stored_after_it_has_gone() {
    let server = Server::start();
    let mut config = config(&server);
    config.limits = Limits::plain(100, Duration::from_secs(1), Duration::from_secs(1));
    let node = Node::ready(config).await;
    let stream = StreamName::from("a");
    let offset = node.publish(&stream, "1").await;
    let stored = page_time(&node, &stream).await;
    let look = || async { node.broker.facts(&stream).await.unwrap() };
    let gone = async {
        while look().await.first_seq <= offset {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("it ages out");
    assert_eq!(look().await.stored.millis, stored);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_by_offset() {
    let server = Server::start();
    let node = Node::on(&server).await;
    let (a, b) = (StreamName::from("a"), StreamName::from("b"));
    for i in 0..40 {
        node.publish(if i % 2 == 0 { &a } else { &b }, &i.to_string()).await;
    }
    let offsets = |page: &crate::broker::Page| page.messages.iter().map(|m| m.offset).collect::<Vec<_>>();
    let read = |from, up_to, most, bytes| node.broker.read(&a, ReadFrom::Offset(from), up_to, most, bytes);

    let page = read(0, 39, 5, 1 << 20).await.unwrap();
    assert_eq!((offsets(&page), page.remaining), (vec![1, 3, 5, 7, 9], 15));
    let facts = node.broker.facts(&a).await.unwrap();
    assert_eq!((facts.first_seq, facts.last_seq, facts.limit), (1, 40, 100));
    assert_eq!(facts.ttl, Duration::from_secs(300));
    assert!(facts.now.millis > 1_700_000_000_000 && facts.now.clock != 0);
    assert!(page.messages[0].time.abs_diff(facts.now.millis) < 60_000);
    assert_eq!((facts.stored.millis, facts.stored.clock), (page_time(&node, &b).await, facts.now.clock));

    let page = read(30, 35, 100, 1 << 20).await.unwrap();
    assert_eq!((offsets(&page), page.remaining), (vec![31, 33, 35], 0));
    // Nothing of the stream at the end of the range, or in it at all.
    let page = read(38, 40, 100, 1 << 20).await.unwrap();
    assert_eq!((offsets(&page), page.remaining), (vec![39], 0));
    assert_eq!(offsets(&read(40, 40, 100, 1 << 20).await.unwrap()), Vec::<u64>::new());
    assert_eq!(offsets(&read(50, 40, 100, 1 << 20).await.unwrap()), Vec::<u64>::new());
    // At least one message, however few bytes are wanted.
    let page = read(1, 39, 100, 1).await.unwrap();
    assert_eq!((offsets(&page), page.remaining), (vec![1], 19));
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_by_time() {
    let server = Server::start();
    let node = Node::on(&server).await;
    let stream = StreamName::from("a");
    node.publish(&stream, "1").await;
    node.publish(&stream, "2").await;
    let now = node.broker.facts(&"a".into()).await.unwrap().now.millis / 1000;
    let read = |from| node.broker.read(&stream, ReadFrom::Time(from), 2, 10, 1 << 20);
    assert_eq!(read(now - 60).await.unwrap().messages.len(), 2);
    assert_eq!(read(now + 60).await.unwrap().messages.len(), 0);
    assert_eq!(read(0).await.unwrap().messages.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_keeps_its_limit() {
    let server = Server::start();
    let mut config = config(&server);
    config.limits = Limits::plain(3, Duration::from_secs(300), Duration::from_secs(300));
    let node = Node::ready(config).await;
    let stream = StreamName::from("a");
    for i in 0..10 {
        node.publish(&stream, &i.to_string()).await;
    }
    let page = node.broker.read(&stream, ReadFrom::Offset(0), 10, 100, 1 << 20).await.unwrap();
    assert_eq!(page.messages.iter().map(|m| m.offset).collect::<Vec<_>>(), [8, 9, 10]);
    assert_eq!(node.broker.facts(&stream).await.unwrap().limit, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_name_is_a_stream_of_its_own() {
    let server = Server::start();
    let node = Node::on(&server).await;
    let names = [
        "",
        ".",
        "*",
        ">",
        "a.b",
        "a.*",
        "a/b",
        " ",
        "a b",
        "a\tb",
        "\r\n",
        "🪢",
        "~",
        "$JS.API.>",
        "ä",
        "carrick.log.>",
        "Content-Type: x\r\nNats-Sequence: 7",
    ];
    let mut streams: Vec<StreamName> = names.iter().map(|n| StreamName::from(*n)).collect();
    streams.push(StreamName::from("ж".repeat(2000)));
    streams.push(StreamName::from("x".repeat(2000)));
    node.broker.open(&streams).await.unwrap();
    for (i, stream) in streams.iter().enumerate() {
        assert_eq!(node.publish(stream, &i.to_string()).await, i as u64 + 1);
    }
    for (i, stream) in streams.iter().enumerate() {
        let expected = [(0, i as u64 + 1, i.to_string())];
        eventually("live", || node.feed.live(stream) == expected).await;
        let page = node.broker.read(stream, ReadFrom::Offset(0), i as u64 + 1, 9, 1 << 20).await.unwrap();
        assert_eq!(page.messages.len(), 1, "{stream:?}");
    }
    let heads = node.broker.heads(&streams).await.unwrap();
    assert!(heads.iter().map(|head| head.head.newest).eq(1..=streams.len() as u64));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_publisher_says_besides_the_data_comes_back() {
    let server = Server::start();
    let node = Node::on(&server).await;
    let stream = StreamName::from("x".repeat(300));
    node.broker.open(std::slice::from_ref(&stream)).await.unwrap();
    let meta = Meta { exclude_socket: Some("sid-_21".into()), broadcast_type: Some(" odd\r\ntype: % ü ".into()) };
    let stored = Publication { meta: meta.clone(), ..publication(&stream, "not json") };
    node.broker.append(stored).await.unwrap();
    eventually("live", || node.feed.all().len() == 1).await;
    let Told::Live(_, 0, live) = node.feed.all()[0].clone() else { panic!() };
    assert_eq!((&live.meta, &live.payload.json()[..]), (&meta, &b"\"not json\""[..]));
    let page = node.broker.read(&stream, ReadFrom::Offset(0), 1, 10, 1 << 20).await.unwrap();
    assert_eq!(page.messages, [live]);
}

#[tokio::test(flavor = "multi_thread")]
async fn transient_messages_are_heard_but_not_kept() {
    let server = Server::start();
    let (one, two) = (Node::on(&server).await, Node::on(&server).await);
    let stream = StreamName::from("a");
    two.broker.open(std::slice::from_ref(&stream)).await.unwrap();
    let unstored = Publication { transient: true, ..publication(&stream, "1") };
    assert_eq!(one.broker.append(unstored).await.unwrap().offset, 0);
    let whisper = Message {
        offset: 0,
        time: 0,
        payload: crate::protocol::Payload::from_json("null".into()),
        meta: Meta { exclude_socket: Some("me".into()), ..Meta::default() },
    };
    one.broker.transient(&stream, whisper.clone()).await.unwrap();
    eventually("both heard", || two.feed.all().len() == 2).await;
    assert_eq!(two.feed.all()[1], Told::Transient(stream.clone(), Arc::new(whisper), Overflow::Drop));
    assert_eq!(one.broker.heads(&[stream]).await.unwrap()[0].head.newest, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_larger_than_the_store_takes_is_refused_before_it_is_sent() {
    let server = Server::start();
    let node = Node::on(&server).await;
    let stream = StreamName::from("a");
    let data = format!("\"{}\"", "x".repeat(1 << 20));
    let error = node.broker.append(publication(&stream, &data)).await.unwrap_err();
    let AppendError::TooLarge { size, limit } = error else { panic!("{error}") };
    assert_eq!(size, data.len());
    // Exactly the limit fits.
    let fits = format!("\"{}\"", "x".repeat(limit - 2));
    assert_eq!(node.publish(&stream, &fits).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn row_18_without_history_everything_is_transient_and_may_be_dropped() {
    let server = Server::start();
    let mut config = config(&server);
    config.limits = Limits::plain(0, Duration::from_secs(300), Duration::from_secs(300));
    let node = Node::ready(config).await;
    assert!(!node.broker.features().history);
    let stream = StreamName::from("a");
    assert_eq!(node.broker.open(std::slice::from_ref(&stream)).await.unwrap()[0].head.newest, 0);
    assert_eq!(node.publish(&stream, "1").await, 0);
    eventually("heard", || matches!(node.feed.all().as_slice(), [Told::Transient(_, _, Overflow::Drop)])).await;
    assert_eq!(node.broker.facts(&"a".into()).await.unwrap().last_seq, 0);
    assert!(node.broker.read(&stream, ReadFrom::Offset(0), 0, 1, 1).await.unwrap().messages.is_empty());
}
