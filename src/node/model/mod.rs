//! Generated interleavings of everything that can happen between publishers, nodes, the feed and stock clients, over the
//! real node and hub, checked against the promises. Time is virtual: thousands of cases take seconds.

mod peer;
mod regressions;
mod world;

use crate::hub::sabotage::{Safeguard, without};
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestError, TestRunner};
use world::{Shape, World};

/// One step. Indexes are taken modulo what there is.
#[derive(Clone, Debug)]
pub enum Op {
    /// Messages are published to a stream.
    Publish {
        stream: usize,
        count: usize,
    },
    /// A publisher repeats its last message.
    Republish {
        stream: usize,
    },
    /// So many messages of the live feed arrive at a node.
    Feed {
        node: usize,
        count: usize,
    },
    /// So many messages of the live feed are lost on their way to a node.
    Lose {
        node: usize,
        count: usize,
    },
    /// A node loses its connection to the store, with all that was on its way, and gets a new one.
    Reconnect {
        node: usize,
    },
    Connect {
        client: usize,
        node: usize,
    },
    /// A client reads so many frames.
    Read {
        client: usize,
        count: usize,
    },
    /// A lazy client sends its history commands, and asks for everything once more.
    Speak {
        client: usize,
        again: bool,
    },
    /// A client's connection breaks; what it has not read is lost.
    Drop {
        client: usize,
    },
    /// Everybody gets so many turns.
    Turns {
        count: usize,
    },
    Wait {
        ms: u64,
    },
    /// A node is stopped for so long: it asks nothing, and what was on its way to it arrives when it goes on.
    Freeze {
        node: usize,
        ms: u64,
    },
    /// The log is lost and begins a new life.
    NewLife,
}

fn op(lives: bool) -> impl Strategy<Value = Op> {
    let small = 1..4usize;
    prop_oneof![
        6 => (0..3usize, small.clone()).prop_map(|(stream, count)| Op::Publish { stream, count }),
        1 => (0..3usize).prop_map(|stream| Op::Republish { stream }),
        6 => (0..2usize, 1..6usize).prop_map(|(node, count)| Op::Feed { node, count }),
        1 => (0..2usize, small.clone()).prop_map(|(node, count)| Op::Lose { node, count }),
        1 => (0..2usize).prop_map(|node| Op::Reconnect { node }),
        5 => (0..4usize, 0..2usize).prop_map(|(client, node)| Op::Connect { client, node }),
        6 => (0..4usize, 1..5usize).prop_map(|(client, count)| Op::Read { client, count }),
        3 => (0..4usize).prop_map(|client| Op::Drop { client }),
        2 => (3..4usize, any::<bool>()).prop_map(|(client, again)| Op::Speak { client, again }),
        4 => (1..20usize).prop_map(|count| Op::Turns { count }),
        2 => prop_oneof![Just(5u64), Just(400), Just(2_500), Just(7_000)].prop_map(|ms| Op::Wait { ms }),
        1 => (0..2usize, prop_oneof![Just(2_500u64), Just(9_000), Just(16_000)])
            .prop_map(|(node, ms)| Op::Freeze { node, ms }),
        1 => Just(if lives { Op::NewLife } else { Op::Turns { count: 1 } }),
    ]
}

fn run(shape: Shape, ops: &[Op]) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without I/O can always be built");
    runtime.block_on(async {
        let mut world = World::new(shape);
        for op in ops {
            world.apply(op).await;
        }
        world.finish().await
    })
}

/// Cases per property; `CARRICK_MODEL_CASES` asks for more.
fn cases() -> u32 {
    std::env::var("CARRICK_MODEL_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(1_500)
}

fn check(name: &'static str, shape: Shape, lives: bool) {
    let config = Config {
        cases: cases(),
        max_shrink_iters: 4_000,
        max_shrink_time: 60_000,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(name))),
        ..Config::default()
    };
    let outcome = TestRunner::new(config)
        .run(&prop::collection::vec(op(lives), 1..80), |ops| run(shape, &ops).map_err(TestCaseError::fail));
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(reason, ops)) => panic!("{reason}\n{ops:#?}"),
        Err(error) => panic!("{error}"),
    }
}

/// Nothing ages or is trimmed: nothing may be lost, and nothing may be called lost.
#[test]
fn with_room_nothing_is_lost_doubled_reordered_or_called_lost() {
    check("testdata/model/roomy.txt", Shape::ROOMY, false);
}

/// Short histories, expiry and new lives of the log: whatever is lost is signalled.
#[test]
fn without_room_every_loss_is_signalled() {
    check("testdata/model/tight.txt", Shape::TIGHT, true);
}

/// A safeguard that is taken out is missed: the properties above can fail.
fn finds(safeguard: Safeguard) {
    let mut runner = TestRunner::deterministic();
    let strategy = prop::collection::vec(op(false), 1..80);
    let found = (0..20_000).any(|_| {
        let tree = strategy.new_tree(&mut runner).expect("the strategy always makes a value");
        let ops = proptest::strategy::ValueTree::current(&tree);
        without(Some(safeguard), || run(Shape::ROOMY, &ops)).is_err()
    });
    assert!(found, "20,000 cases did not notice that {safeguard:?} is off");
}

#[test]
fn finds_a_missing_barrier() {
    finds(Safeguard::Barrier);
}

#[test]
fn finds_a_missing_gap_check() {
    finds(Safeguard::GapCheck);
}

#[test]
fn finds_separate_cursors() {
    finds(Safeguard::SharedCursor);
}

#[test]
fn finds_missing_deduplication() {
    finds(Safeguard::Dedup);
}
