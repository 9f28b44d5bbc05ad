//! The log begins a new life while somebody follows.

use super::*;

/// One life of a log with one place.
fn life(table: &Arc<Table>, epoch: &str) -> Logs {
    let state = LogState { epoch: epoch.into(), limit: 100, ttl: Duration::from_secs(60) };
    Logs::new(table.clone(), vec![state])
}

/// A stream that is open in another life of its log than the position was proved in.
fn reopened() -> (Stream, Position) {
    let table = Table::new(Vec::new(), 100, Duration::from_secs(60));
    let now = Instant::now();
    let mut stream = Stream::new("chat".into(), life(&table, "e1"), 1 << 20);
    stream.compare(&Looked::at_once(Head { newest: 7, up_to: 9 }, facts()), now);
    let proved = stream.position(7);
    stream.settle(&life(&table, "e2"));
    stream.compare(&Looked::at_once(Head { newest: 3, up_to: 4 }, facts()), now);
    (stream, proved)
}

#[test]
fn row_03_a_position_that_was_proved_in_one_life_of_the_log_starts_nothing_in_the_next() {
    let (mut stream, proved) = reopened();
    let outbox = Arc::new(Outbox::new(Encoding::Json, 0));
    let receiver = Receiver::new(outbox.clone(), Vec::new(), true);
    let identifier = Identifier::new("i".into());
    let cursor = stream.attach(None, &receiver, &identifier, &stream.position(4), true);
    let job = HistoryJob::new(receiver.clone(), identifier.clone(), 1);
    stream.history(cursor, "i", Start { after: proved, claimed: None }, job);
    assert_eq!((stream.pump(cursor, 1 << 20, Which::All), rejections(&outbox)), (Pump::Live, 1), "told, not confirmed");
    stream.live(3, message(5), Instant::now());
    assert!(outbox.pending() > 0, "and live from now on");
}

#[test]
fn row_03_whoever_begins_in_a_life_of_the_log_that_is_over_is_told() {
    let (mut stream, proved) = reopened();
    let outbox = Arc::new(Outbox::new(Encoding::Json, 0));
    let receiver = Receiver::new(outbox.clone(), Vec::new(), true);
    let cursor = stream.attach(None, &receiver, &Identifier::new("i".into()), &proved, false);
    assert_eq!((stream.is_live(cursor), rejections(&outbox)), (true, 1));
    stream.live(3, message(5), Instant::now());
    assert!(outbox.pending() > 0, "an offset of the former life holds nothing back");
}

/// The log begins a new life while a client is held, and the hold ends before the stream is open again.
#[test]
fn row_03_a_hold_that_ends_between_two_lives_of_the_log_skips_nothing_of_the_next() {
    let table = Table::new(Vec::new(), 100, Duration::from_secs(60));
    let now = Instant::now();
    let mut stream = Stream::new("chat".into(), life(&table, "e1"), 1 << 20);
    stream.compare(&Looked::at_once(Head { newest: 5, up_to: 5 }, facts()), now);
    let outbox = Arc::new(Outbox::new(Encoding::Json, 0));
    let receiver = Receiver::new(outbox.clone(), Vec::new(), true);
    let identifier = Identifier::new("i".into());
    let cursor = stream.attach(None, &receiver, &identifier, &stream.position(5), true);
    stream.settle(&life(&table, "e2"));
    stream.release(cursor);
    stream.compare(&Looked::at_once(Head { newest: 18, up_to: 18 }, facts()), now);
    stream.live(18, message(19), now);
    let said: Vec<_> = read(&outbox, 100).into_iter().map(|(_, offset)| offset).collect();
    assert_eq!(said, [None, None], "told of the loss, and 19 without its position");
    let start = Start { after: stream.position(10), claimed: None };
    stream.history(cursor, "i", start, HistoryJob::new(receiver.clone(), identifier, 1));
    assert!(matches!(stream.pump(cursor, 1 << 20, Which::All), Pump::NeedPage { .. }));
    stream.supply(cursor, 10, page(10, 18), |_| true);
    assert_eq!(stream.pump(cursor, 1 << 20, Which::All), Pump::Live);
    let offsets: Vec<_> = read(&outbox, 100).into_iter().filter_map(|(_, offset)| offset).collect();
    assert_eq!(offsets, (11..=18).collect::<Vec<_>>());
}
