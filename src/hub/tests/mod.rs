//! A hub without clients, before a store that comes and goes. Time is virtual.

mod store;

use super::*;
use crate::protocol::Position;
use futures_util::future::join_all;
use store::Store;
use tokio::time::timeout;

const SECOND: Duration = Duration::from_secs(1);
const BROKER_TIMEOUT: Duration = Duration::from_secs(8);

/// More streams than any fixed queue of openings has held.
const MANY: usize = 20_000;

struct Nobody;

impl Commands for Nobody {
    fn disconnect(&self, _: u64, _: RemoteDisconnect) {}
    fn commands_lost(&self) {}
    fn session_over(&self, _: &SessionKey, _: Over) {}
}

fn hub(store: &Arc<Store>) -> Arc<Hub> {
    hub_of(store, 0)
}

fn hub_of(store: &Arc<Store>, max_streams: usize) -> Arc<Hub> {
    hub_with(store, HubConfig { max_streams, ..config() })
}

fn config() -> HubConfig {
    HubConfig {
        snapshot_budget: 1 << 20,
        linger: 3 * SECOND,
        head_check: 5 * SECOND,
        broker_timeout: BROKER_TIMEOUT,
        max_streams: 0,
    }
}

fn hub_with(store: &Arc<Store>, config: HubConfig) -> Arc<Hub> {
    let hub = Hub::new(config);
    hub.start(store.clone(), Arc::new(Nobody));
    hub
}

fn streams(count: usize) -> Vec<StreamName> {
    (0..count).map(|number| StreamName::from(format!("s{number}"))).collect()
}

/// Waits until something holds; virtual time passes meanwhile.
async fn eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..1_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("100 s have passed without: {what}");
}

#[tokio::test(start_paused = true)]
async fn row_05_every_opener_is_answered_in_time_however_many_there_are() {
    let store = Store::new(false);
    let hub = hub(&store);
    let names = streams(MANY);
    let openings = join_all(names.iter().map(|name| hub.open(name)));
    let answers = timeout(BROKER_TIMEOUT + SECOND, openings).await.expect("all are answered within the broker timeout");
    assert!(answers.iter().all(Result::is_err));
}

#[tokio::test(start_paused = true)]
async fn the_number_of_open_streams_is_limited_and_those_that_are_open_stay_so() {
    let store = Store::new(true);
    let hub = hub_of(&store, 3);
    let names = streams(4);
    let mut open = Vec::new();
    for name in &names[..3] {
        open.push(hub.open(name).await.expect("there is room"));
    }
    let refused = timeout(SECOND, hub.open(&names[3])).await.expect("nobody waits").err().expect("there is no room");
    assert_eq!(refused.close(), Close::StreamsFull, "{refused:?}");
    let _another_follower = hub.open(&names[0]).await.expect("it is open already");
    open.pop();
    eventually("the one without a follower is closed", || hub.open_streams() == 2).await;
    hub.open(&names[3]).await.expect("there is room again");
    assert_eq!(hub.open_streams(), 3);
}

/// Clients that give up while their streams are queued, and come back.
#[tokio::test(start_paused = true)]
async fn row_05_a_stream_whose_opener_gave_up_can_be_opened_later() {
    let store = Store::new(false);
    let hub = hub(&store);
    let names = streams(MANY);
    let impatient = join_all(names.iter().map(|name| hub.open(name)));
    assert!(timeout(SECOND, impatient).await.is_err(), "the store is away");
    // They come back before anything is closed, and stay.
    let returned = join_all(names.iter().map(|name| hub.open(name)));
    let thaw = async {
        tokio::time::sleep(SECOND).await;
        store.set_there(true);
    };
    let (answers, ()) = tokio::join!(timeout(2 * BROKER_TIMEOUT, returned), thaw);
    let refused = answers.expect("all are answered").iter().filter(|answer| answer.is_err()).count();
    assert_eq!(refused, 0, "of {MANY} streams");
    assert_eq!(store.fed().len(), MANY);
}

#[tokio::test(start_paused = true)]
async fn row_05_streams_asked_for_while_the_store_was_away_do_not_stay_subscribed() {
    let store = Store::new(false);
    let hub = hub(&store);
    let names = streams(300);
    let openings = join_all(names.iter().map(|name| hub.open(name)));
    assert!(openings.await.iter().all(Result::is_err));
    eventually("nobody wants them any more", || hub.open_streams() == 0).await;
    store.set_there(true);
    eventually("the store was asked", || store.openings.load(Ordering::SeqCst) > 0).await;
    eventually("no feed runs", || store.fed().is_empty()).await;
    // One that is wanted again is opened as ever.
    let open = hub.open(&names[0]).await.expect("the store is there");
    assert_eq!(store.fed(), [names[0].clone()].into());
    drop(open);
}

#[tokio::test(start_paused = true)]
async fn row_05_an_open_stream_without_follower_is_opened_on_the_new_connection() {
    let store = Store::new(true);
    let hub = hub(&store);
    let name = StreamName::from("lonely");
    drop(hub.open(&name).await.expect("the store is there"));
    store.reconnect(1);
    // The question of the new connection fails once; somebody comes while the stream lingers.
    eventually("it was tried", || store.openings.load(Ordering::SeqCst) > 1).await;
    let _open = hub.open(&name).await.expect("the store is there");
    assert!(store.fed().contains(&name), "open means that the feed runs on this connection");
}

/// Whoever comes right after a reconnect gets what the new connection says, not what held before.
#[tokio::test(start_paused = true)]
async fn row_05_a_stream_is_open_only_on_the_present_connection() {
    let store = Store::new(true);
    let hub = hub(&store);
    let name = StreamName::from("a");
    let _follower = hub.open(&name).await.expect("the store is there");
    store.set_there(false);
    store.reconnect(0);
    assert!(hub.open(&name).await.is_err(), "nothing is known of the new connection");
    store.set_there(true);
    let _open = hub.open(&name).await.expect("the store is there");
    assert!(store.fed().contains(&name));
}

#[tokio::test(start_paused = true)]
async fn openings_do_not_starve_comparisons_and_come_first() {
    let store = Store::new(true);
    let hub = hub(&store);
    let names = streams(3 * queue::BATCH);
    let cells: Vec<_> = names.iter().map(|name| hub.enter(name).expect("there is no limit")).collect();
    let (doubted, awaited) = cells.split_at(queue::BATCH);
    let line = Queue::default();
    doubted.iter().for_each(|cell| line.doubt(cell));
    awaited.iter().for_each(|cell| line.await_opening(cell));
    // Twice is once.
    awaited.iter().for_each(|cell| line.await_opening(cell));
    awaited.iter().for_each(|cell| line.doubt(cell));
    let mut sizes = Vec::new();
    for _ in 0..3 {
        let batch = line.take().await;
        let opened = batch.iter().filter(|cell| awaited.iter().any(|other| Arc::ptr_eq(&other.0, cell))).count();
        sizes.push((opened, batch.len() - opened));
    }
    assert_eq!(sizes, [(750, 250), (750, 250), (500, 500)]);
}

/// A message that follows the one before it, stored as many seconds after the epoch.
fn live(feed: &HubFeed, stream: &StreamName, offset: u64) {
    let payload = crate::protocol::Payload::from_json("1".into());
    let message = Message { offset, time: offset * 1_000, payload, meta: crate::protocol::Meta::default() };
    crate::broker::Feed::live(feed, stream, offset - 1, Arc::new(message));
}

/// A stream that holds three messages, and where a client stands that has had them.
async fn three(hub: &Arc<Hub>) -> (Open, Position) {
    let open = hub.open(&StreamName::from("a")).await.expect("the store is there");
    let feed = HubFeed(hub.clone());
    (1..=3).for_each(|offset| live(&feed, &StreamName::from("a"), offset));
    let position = open.lock().position(3);
    (open, position)
}

/// A client comes while a hole is read, as after a reconnect.
#[tokio::test(start_paused = true)]
async fn row_02_a_position_before_a_hole_is_confirmed_only_where_the_log_has_what_follows() {
    let store = Store::new(true);
    let hub = hub(&store);
    let (open, position) = three(&hub).await;
    let from = From::Position(position.clone());
    live(&HubFeed(hub.clone()), &StreamName::from("a"), 200);
    assert!(open.lock().has_hole());
    assert_eq!(hub.locate(&open, &from, None).await.unwrap(), Located::After(position), "it is only late");
    eventually("it has come", || !open.lock().has_hole()).await;

    store.overrun.store(true, Ordering::SeqCst);
    let position = open.lock().position(200);
    live(&HubFeed(hub.clone()), &StreamName::from("a"), 400);
    assert!(open.lock().has_hole());
    assert_eq!(hub.locate(&open, &From::Position(position), None).await.unwrap(), Located::Lost);
}

/// A store that was put back has less than clients have had.
#[tokio::test(start_paused = true)]
async fn row_03_a_position_of_the_future_is_answered_within_the_broker_timeout_however_short() {
    for broker_timeout in [SECOND / 10, SECOND, BROKER_TIMEOUT] {
        let store = Store::new(true);
        let hub = hub_with(&store, HubConfig { broker_timeout, ..config() });
        let (open, Position { epoch, .. }) = three(&hub).await;
        let future = From::Position(Position { epoch, offset: 1_000 });
        assert_eq!(hub.locate(&open, &future, None).await.unwrap(), Located::Lost);
    }
}

/// A time is no promise about what is gone: what is kept follows, once the node knows where that begins.
#[tokio::test(start_paused = true)]
async fn row_02_a_time_before_a_hole_is_found_where_the_log_goes_on() {
    let store = Store::new(true);
    let hub = hub(&store);
    let (open, _) = three(&hub).await;
    store.overrun.store(true, Ordering::SeqCst);
    live(&HubFeed(hub.clone()), &StreamName::from("a"), 200);
    assert!(open.lock().has_hole());
    let located = hub.locate(&open, &From::Since(2), None).await.unwrap();
    assert_eq!(located, Located::After(open.lock().position(199)));
}

/// Its connection to the store may have ended, and nobody has noticed yet.
#[tokio::test(start_paused = true)]
async fn row_02_a_node_that_stood_still_confirms_nothing_before_it_has_asked() {
    let store = Store::new(true);
    let hub = hub(&store);
    let (open, position) = three(&hub).await;
    let from = From::Position(position.clone());
    let found = Ok(Located::After(position));
    let locate = || async { hub.locate(&open, &from, None).await.map_err(|error| error.to_string()) };
    store.set_there(false);
    assert_eq!(timeout(SECOND, locate()).await.expect("nobody is asked"), found);
    tokio::time::advance(3 * SECOND).await;
    assert!(timeout(SECOND, locate()).await.is_err(), "the store has not answered");
    store.set_there(true);
    assert_eq!(timeout(SECOND, locate()).await.expect("it answers"), found);
}

/// Nothing would reveal the last of them before the next look at the heads.
#[tokio::test(start_paused = true)]
async fn row_06_a_stream_whose_live_messages_were_left_out_is_compared_at_once() {
    let store = Store::new(true);
    let hub = hub(&store);
    let name = StreamName::from("a");
    let open = hub.open(&name).await.expect("the store is there");
    let opened = store.openings.load(Ordering::SeqCst);
    store.set_there(false);
    let feed = HubFeed(hub.clone());
    let before = metrics::HELD_BACK_DROPPED.get();
    // 1 to 5 are missing, and more than may wait come behind them.
    for offset in 6..=10_100 {
        live(&feed, &name, offset);
    }
    assert!(metrics::HELD_BACK_DROPPED.get() > before);
    store.set_there(true);
    eventually("the hole is closed", || open.lock().complete_to() > 5).await;
    let closed = tokio::time::Instant::now();
    eventually("it is compared", || store.openings.load(Ordering::SeqCst) > opened).await;
    assert!(closed.elapsed() < SECOND, "{:?}: a periodic comparison does as much", closed.elapsed());
}
