//! A server that was frozen goes on as the leader it was, beside its successor.
//!
//! How long it does, and whose answer comes first, is a matter of luck. So it is played: by a client that hears the same
//! requests as the servers and answers them, from what there was before, on the server that the node is connected to.
//! Answers of a real one come from another server, and later.

use super::cluster::{everywhere, leader};
use super::*;
use crate::broker::ReadFrom;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Messages that a stream keeps.
const LIMIT: u64 = 5;

/// What the frozen server has of one log or bucket: sequences, subjects and data.
struct Past {
    stream: String,
    kept: Vec<(u64, String, String)>,
}

/// The frozen server, and how many questions it has answered.
struct Stale(Arc<AtomicUsize>, tokio::task::JoinHandle<()>);

impl Drop for Stale {
    fn drop(&mut self) {
        self.1.abort();
    }
}

impl Stale {
    /// As a leader it answers what it is asked, as a copy it has nothing of it. Only by turns: else nobody else would ever be
    /// the first.
    async fn on(server: &Server, past: Past) -> Self {
        let mut socket = BufReader::new(TcpStream::connect(("127.0.0.1", server.port)).await.unwrap());
        let (leaders, copies) =
            (format!("$JS.API.STREAM.MSG.GET.{}", past.stream), format!("$JS.API.DIRECT.GET.{}", past.stream));
        let hello = format!(
            "CONNECT {{\"verbose\":false,\"headers\":true,\"no_responders\":true}}\r\nSUB {leaders} 1\r\nSUB {copies} 2\r\nPING\r\n"
        );
        socket.write_all(hello.as_bytes()).await.unwrap();
        let mut line = String::new();
        while line != "PONG\r\n" {
            line.clear();
            assert!(socket.read_line(&mut line).await.unwrap() > 0, "no server");
        }
        let answered = Arc::new(AtomicUsize::new(0));
        let count = answered.clone();
        let answering = async move {
            let (mut asked, mut asked_leaders) = (0, 0);
            while let Some((subject, reply, request)) = next_request(&mut socket).await {
                let (headers, data) = if subject == leaders {
                    asked_leaders += 1;
                    if asked_leaders / 6 % 2 == 1 {
                        continue;
                    }
                    ("NATS/1.0\r\n\r\n", past.leader(&request).to_string())
                } else {
                    asked += 1;
                    if asked % 2 == 0 {
                        continue;
                    }
                    ("NATS/1.0 404 Message Not Found\r\n\r\n", String::new())
                };
                let (head, all) = (headers.len(), headers.len() + data.len());
                let frame = format!("HPUB {reply} {head} {all}\r\n{headers}{data}\r\n");
                if socket.write_all(frame.as_bytes()).await.is_err() {
                    return;
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
        };
        Self(answered, tokio::spawn(answering))
    }

    fn answered(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// Subject, reply and body of what comes next.
async fn next_request(socket: &mut BufReader<TcpStream>) -> Option<(String, String, Value)> {
    loop {
        let mut line = String::new();
        if socket.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let head = match words[..] {
            ["PING"] => {
                socket.write_all(b"PONG\r\n").await.ok()?;
                continue;
            }
            ["MSG", ..] => 0,
            ["HMSG", .., head, _] => head.parse().ok()?,
            _ => continue,
        };
        let mut body = vec![0; words.last()?.parse::<usize>().ok()? + 2];
        socket.read_exact(&mut body).await.ok()?;
        let request = serde_json::from_slice(&body[head..body.len() - 2]).unwrap_or_default();
        return Some((words[1].to_owned(), words[3].to_owned(), request));
    }
}

impl Past {
    /// From a sequence on, those of a subject, or of all that begin like it.
    fn behind(&self, request: &Value) -> impl Iterator<Item = &(u64, String, String)> {
        let (from, of) =
            (request["seq"].as_u64().unwrap_or(1), request["next_by_subj"].as_str().unwrap_or(">").to_owned());
        let is_of = move |subject: &str| match of.strip_suffix('>') {
            Some(prefix) => subject.starts_with(prefix),
            None => subject == of,
        };
        self.kept.iter().filter(move |(seq, subject, _)| *seq >= from && is_of(subject))
    }

    fn leader(&self, request: &Value) -> Value {
        let found = match request["last_by_subj"].as_str() {
            Some(wanted) => self.kept.iter().rfind(|(_, subject, _)| subject == wanted),
            None if request["next_by_subj"].is_string() => self.behind(request).next(),
            None => self.kept.iter().find(|(seq, ..)| request["seq"].as_u64() == Some(*seq)),
        };
        match found {
            Some((seq, subject, data)) => json!({"message": {
                "subject": subject, "seq": seq, "data": STANDARD.encode(data), "time": "2026-01-01T00:00:00Z",
            }}),
            None => json!({"error": {"code": 404, "err_code": 10037, "description": "no message found"}}),
        }
    }
}

/// A cluster, a node in it, and the server where a frozen one's answers are the first.
async fn cluster() -> (Vec<Server>, Node, usize) {
    let servers = Server::cluster(3);
    let limits = Limits::plain(LIMIT, Duration::from_secs(300), Duration::from_secs(300));
    let of =
        |servers: &[Server]| NatsBrokerConfig { limits: limits.clone(), gather_leaders: None, ..everywhere(servers) };
    let first = Node::ready(of(&servers)).await;
    let led = leader(&first).await;
    let away = (led + 1) % 3;
    let node = Node::ready(of(&servers[away..=away])).await;
    (servers, node, away)
}

/// Asks until there were `wanted` answers, of which a frozen server may give some.
async fn ask(wanted: usize, stale: &Stale, mut ask: impl AsyncFnMut() -> bool) {
    let (deadline, mut answers) = (tokio::time::Instant::now() + PATIENCE, 0);
    while answers < wanted {
        answers += usize::from(ask().await);
        assert!(tokio::time::Instant::now() < deadline, "{answers} answers only");
    }
    assert!(stale.answered() > 15, "{} of the frozen server", stale.answered());
}

#[tokio::test(flavor = "multi_thread")]
async fn row_02_a_leader_that_was_frozen_ends_no_page_and_keeps_no_message() {
    let (servers, node, away) = cluster().await;
    let (stream, other) = (&StreamName::from("a"), &StreamName::from("b"));
    let before = node.publish(stream, "before").await;
    let aside = node.publish(other, "aside").await;
    let subject = |stream: &StreamName| {
        let token = super::super::token::Token::of(stream).text;
        node.broker.core.names.log_subject("default", &token)
    };
    let kept = vec![(before, subject(stream), "before".to_owned()), (aside, subject(other), "aside".to_owned())];
    let mut offsets = Vec::new();
    for number in 0..2 * LIMIT {
        offsets.push(node.publish(stream, &number.to_string()).await);
    }
    let (kept_now, last) = (&offsets[LIMIT as usize..], *offsets.last().unwrap());
    let stale = Stale::on(&servers[away], Past { stream: node.log(), kept }).await;
    let broker = &node.broker;
    ask(150, &stale, async || {
        let page = broker.read(stream, ReadFrom::Offset(before + 1), last, 100, 1 << 20).await;
        let page = page.ok().map(|page| page.messages.iter().map(|message| message.offset).collect::<Vec<_>>());
        assert!(page.as_ref().is_none_or(|page| page == kept_now), "{page:?} instead of {kept_now:?}");
        let behind = broker.behind(stream, before).await.ok();
        assert!(behind.as_ref().is_none_or(|behind| !behind.kept), "{behind:?}, although {LIMIT} came after it");
        assert!(behind.as_ref().is_none_or(|behind| behind.after == LIMIT), "{behind:?}");
        page.is_some() && behind.is_some()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_02_a_leader_that_was_frozen_hides_no_session_that_was_saved_meanwhile() {
    let (servers, node, away) = cluster().await;
    let broker = &node.broker;
    let [early, late, absent] = ["early", "late", "absent"].map(SessionKey::of);
    let first = broker.save_session(&early, "x".into(), None, Life::Last).await.unwrap();
    let bucket = broker.core.names.sessions_bucket();
    let kept = vec![(first, super::super::config::key_subject(&bucket, &early.0), "x".to_owned())];
    let revision = broker.save_session(&late, "x".into(), None, Life::Last).await.unwrap();
    let past = Past { stream: super::super::config::bucket_stream(&bucket), kept };
    let stale = Stale::on(&servers[away], past).await;
    ask(150, &stale, async || {
        let found = broker.load_session(&late).await;
        assert!(!matches!(found, Ok(None)), "a session that is stored is not there");
        let deleted = broker.delete_session(&late, Some(revision - 1)).await;
        assert!(!matches!(deleted, Ok(true)), "a session that stays counts as deleted");
        let saved = broker.save_session(&late, "y".into(), Some(0), Life::Last).await;
        assert!(saved.is_err(), "a session that is there was written over");
        let nothing = broker.load_session(&absent).await;
        assert!(!matches!(nothing, Ok(Some(_))));
        found.is_ok() && nothing.is_ok()
    })
    .await;
}

/// Heard by a node that missed them: every one, and no alarm.
#[tokio::test(flavor = "multi_thread")]
async fn row_02_a_leader_that_was_frozen_loses_no_remote_disconnect() {
    let (servers, node, away) = cluster().await;
    let core = &node.broker.core;
    let disconnect = async |who: &str| {
        node.broker.disconnect(&RemoteDisconnect { identifiers: who.into(), reconnect: false }).await.unwrap()
    };
    let first = disconnect("1").await;
    let second = disconnect("2").await;
    eventually("both heard", || node.feed.all().len() == 2).await;
    let generation = core.generation().unwrap();
    let past = Past { stream: generation.commands.clone(), kept: Vec::new() };
    let stale = Stale::on(&servers[away], past).await;
    for _ in 0..100 {
        // It has heard the first one only.
        *core.commands.lock().unwrap() = Some(super::super::followed::Followed::to(&generation.commands, first, None));
        let _ = core.compare_newest(&generation.connection, &generation.commands).await;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while core.catch_up(&generation.connection, &generation.commands).await.is_err() {
            assert!(tokio::time::Instant::now() < deadline, "the command is not found");
        }
        assert_eq!(core.commands.lock().unwrap().as_ref().map(|followed| followed.held), Some(second));
    }
    assert!(stale.answered() > 15, "{} of the frozen server", stale.answered());
    assert!(!node.feed.all().contains(&Told::CommandsLost));
}
