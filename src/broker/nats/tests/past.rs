//! What a full stream can prove to those who stand where the log has come to, behind the stream's newest message. NATS counts
//! all that the stream keeps there.

use super::*;
use crate::broker::{Over, SessionKey};
use crate::hub::{
    Commands, CursorId, From, HistoryJob, Hub, HubConfig, HubFeed, Identifier, Located, Open, Outbox, Pump, Receiver,
    SavedProof, Start, Which,
};
use crate::protocol::{Encoding, Position};
use std::task::{Context, Waker};

/// Messages that a stream keeps.
const LIMIT: u64 = 5;

struct Nobody;

impl Commands for Nobody {
    fn disconnect(&self, _: u64, _: RemoteDisconnect) {}
    fn commands_lost(&self) {}
    fn session_over(&self, _: &SessionKey, _: Over) {}
}

struct Served {
    hub: Arc<Hub>,
    broker: Arc<NatsBroker>,
    _server: Server,
}

impl Served {
    async fn start() -> Self {
        let server = Server::start();
        let second = Duration::from_secs(1);
        let hub = Hub::new(HubConfig {
            snapshot_budget: 1 << 20,
            max_streams: 0,
            linger: 60 * second,
            head_check: second / 2,
            broker_timeout: PATIENCE,
        });
        let mut config = config(&server);
        config.limits = Limits::plain(LIMIT, 300 * second, 300 * second);
        let broker = NatsBroker::start(config, Arc::new(HubFeed(hub.clone()))).await.unwrap();
        hub.start(broker.clone(), Arc::new(Nobody));
        Self { hub, broker, _server: server }
    }

    async fn publish(&self, stream: &str) -> u64 {
        self.broker.append(publication(&stream.into(), "1")).await.unwrap().offset
    }

    /// A stream that keeps as many messages as it may and knows that the log has gone on since: to the offset in the answer.
    async fn full(&self) -> (Open, u64) {
        let mut newest = 0;
        for _ in 0..LIMIT {
            newest = self.publish("full").await;
        }
        let open = self.hub.open(&"full".into()).await.unwrap();
        let end = self.publish("other").await;
        eventually("a look at the heads has shown it", || open.lock().complete_to() == end).await;
        assert_eq!(open.lock().newest(), newest);
        (open, end)
    }

    /// More messages, not right behind the log's end, of which this node holds none any more.
    async fn go_on(&self, open: &Open, more: u64) {
        self.publish("other").await;
        let mut last = 0;
        for _ in 0..more {
            last = self.publish("full").await;
        }
        eventually("they have come", || open.lock().complete_to() >= last).await;
        open.lock().tail_mut().trim(0, 0);
    }
}

fn rejections(outbox: &Outbox) -> usize {
    let mut frames = std::collections::VecDeque::new();
    let _ = outbox.poll_take(&mut Context::from_waker(Waker::noop()), &mut frames, 100);
    frames.iter().filter(|frame| String::from_utf8_lossy(frame).contains("reject_history")).count()
}

/// Sends a cursor all that it has not had; answers how often its client is told of a loss.
async fn catch_up(node: &Served, open: &Open, cursor: CursorId, outbox: &Outbox, saved: Option<&SavedProof>) -> usize {
    let mut told = rejections(outbox);
    for _ in 0..100 {
        let pumped = open.lock().pump(cursor, 1 << 20, Which::All);
        told += rejections(outbox);
        match pumped {
            Pump::Live => return told,
            Pump::NeedPage { after, newest } => {
                node.hub.feed_page(open, cursor, &after, newest, saved).await.unwrap();
            }
            _ => {}
        }
    }
    panic!("it does not catch up");
}

/// How often a client is told of a loss whose queue is full before so many messages come.
async fn told_after(more: u64) -> usize {
    let node = Served::start().await;
    let (open, end) = node.full().await;
    let outbox = Arc::new(Outbox::new(Encoding::Json, 300));
    let receiver = Receiver::new(outbox.clone(), Vec::new(), true);
    let cursor = {
        let mut core = open.lock();
        let from = core.position(end);
        core.attach(None, &receiver, &Identifier::new("i".into()), &from, false)
    };
    while outbox.pending() < 300 {
        outbox.push(Bytes::from_static(b"{}"));
    }
    node.go_on(&open, more).await;
    catch_up(&node, &open, cursor, &outbox, None).await
}

#[tokio::test(flavor = "multi_thread")]
async fn row_04_a_client_that_waited_for_room_is_not_told_of_a_loss_that_was_none() {
    assert_eq!(told_after(LIMIT - 1).await, 0, "the message before them is kept");
    assert_eq!(told_after(LIMIT + 1).await, 1, "one of them is gone");
}

/// A subscription that had got nothing yet begins where the log stood.
#[tokio::test(flavor = "multi_thread")]
async fn row_04_a_saved_subscription_that_got_nothing_yet_goes_on_in_a_full_stream() {
    let node = Served::start().await;
    let (open, end) = node.full().await;
    let (epoch, proof) = {
        let core = open.lock();
        (core.epoch().clone(), core.proof())
    };
    let saved = SavedProof { epoch: epoch.clone(), proof };
    let from = From::Position(Position { epoch, offset: end });
    let located = async |more| {
        node.go_on(&open, more).await;
        node.hub.locate(&open, &from, Some(&saved)).await.unwrap()
    };
    assert_eq!(located(LIMIT - 1).await, Located::After(open.lock().position(end)));
    // What was read is in the tail.
    assert_eq!(located(2).await, Located::Lost, "the first one is gone");
}

/// The session's proof alone shows that nothing is missing; between the question and the replay the page that was read for
/// the answer has gone.
#[tokio::test(flavor = "multi_thread")]
async fn row_04_what_a_saved_proof_has_shown_is_not_asked_of_the_log_again() {
    let node = Served::start().await;
    let (open, end) = node.full().await;
    let (saved, from) = {
        let core = open.lock();
        (SavedProof { epoch: core.epoch().clone(), proof: core.proof() }, core.position(end))
    };
    node.go_on(&open, LIMIT - 1).await;
    let located = node.hub.locate(&open, &From::Position(from.clone()), Some(&saved)).await.unwrap();
    assert_eq!(located, Located::After(from.clone()));
    let outbox = Arc::new(Outbox::new(Encoding::Json, 0));
    let receiver = Receiver::new(outbox.clone(), Vec::new(), true);
    let identifier = Identifier::new("i".into());
    let cursor = {
        let mut core = open.lock();
        core.tail_mut().trim(0, 0);
        core.expire_pages(tokio::time::Instant::now() + Duration::from_secs(3_600));
        let cursor = core.attach(None, &receiver, &identifier, &from, true);
        let job = HistoryJob::new(receiver.clone(), identifier.clone(), 1);
        core.history(cursor, &identifier.text, Start { after: from, claimed: None }, job);
        cursor
    };
    assert_eq!(catch_up(&node, &open, cursor, &outbox, Some(&saved)).await, 0, "nothing is missing");
}
