//! Interleavings that once broke a promise, by the bug that they found.

use super::Op::*;
use super::run;
use super::world::Shape;

fn holds(shape: Shape, ops: &[super::Op]) {
    if let Err(faults) = run(shape, ops) {
        panic!("{faults}");
    }
}

/// What was kept behind a hole was counted inside the hole only, so that messages dropped to make room went unnoticed.
#[test]
fn messages_dropped_for_room_inside_a_hole_are_missed() {
    let ops = [
        Connect { client: 2, node: 1 },
        Read { client: 2, count: 1 },
        Wait { ms: 5 },
        Publish { stream: 1, count: 3 },
        Feed { node: 1, count: 1 },
        Publish { stream: 1, count: 3 },
        Lose { node: 1, count: 1 },
    ];
    holds(Shape::TIGHT, &ops);
}

/// The only message between what a slow client had and what the node still held was gone.
#[test]
fn a_message_at_the_end_of_an_empty_page_is_missed() {
    let ops = [
        Connect { client: 2, node: 0 },
        Publish { stream: 0, count: 2 },
        Publish { stream: 0, count: 2 },
        Read { client: 2, count: 1 },
        Read { client: 0, count: 1 },
        Publish { stream: 0, count: 2 },
        Publish { stream: 0, count: 2 },
        Publish { stream: 1, count: 1 },
    ];
    holds(Shape::TIGHT, &ops);
}

/// One of the messages of a hole was in the second page, and all had expired before that was read. The loss was told in
/// front of the first page.
#[test]
fn messages_that_expire_between_two_pages_of_a_hole_are_missed() {
    let ops = [
        Connect { client: 2, node: 1 },
        Read { client: 2, count: 1 },
        Turns { count: 6 },
        Publish { stream: 1, count: 1 },
        Publish { stream: 1, count: 3 },
        Reconnect { node: 1 },
        Turns { count: 4 },
        Freeze { node: 1, ms: 16_000 },
        Publish { stream: 1, count: 1 },
    ];
    holds(Shape::TIGHT, &ops);
}

/// The count was bounded by a sequence that publications had already left behind.
#[test]
fn messages_dropped_while_a_hole_is_read_are_missed() {
    let ops = [
        Connect { client: 2, node: 1 },
        Wait { ms: 7000 },
        Read { client: 2, count: 1 },
        Wait { ms: 7000 },
        Publish { stream: 0, count: 1 },
        Feed { node: 1, count: 1 },
        Publish { stream: 0, count: 2 },
        Publish { stream: 0, count: 3 },
        Read { client: 0, count: 1 },
        Publish { stream: 0, count: 1 },
    ];
    holds(Shape::TIGHT, &ops);
}

/// Opening a stream whose messages had all expired was taken for a proof that it never had any.
#[test]
fn an_empty_stream_proves_nothing_about_its_past() {
    let ops = [
        Connect { client: 0, node: 0 },
        Read { client: 0, count: 1 },
        Read { client: 0, count: 1 },
        Publish { stream: 0, count: 1 },
        Wait { ms: 7000 },
        Drop { client: 0 },
        Wait { ms: 7000 },
    ];
    holds(Shape::TIGHT, &ops);
}

/// A position was proved by what the node held, which did not reach as far as what the log had dropped.
#[test]
fn a_position_is_judged_by_what_the_log_keeps_now() {
    let ops = [
        Connect { client: 1, node: 1 },
        Publish { stream: 0, count: 3 },
        Read { client: 1, count: 1 },
        Turns { count: 1 },
        Read { client: 1, count: 3 },
        Publish { stream: 0, count: 2 },
        Drop { client: 1 },
        Connect { client: 1, node: 0 },
        Turns { count: 3 },
        Publish { stream: 0, count: 1 },
        Read { client: 1, count: 1 },
    ];
    holds(Shape::TIGHT, &ops);
}

/// The hold ran out before a slow client had been sent its `welcome`.
#[test]
fn the_hold_starts_when_welcome_is_written() {
    let ops = [
        Connect { client: 1, node: 1 },
        Read { client: 1, count: 1 },
        Drop { client: 1 },
        Publish { stream: 0, count: 1 },
        Connect { client: 1, node: 0 },
        Turns { count: 4 },
        Publish { stream: 0, count: 1 },
    ];
    holds(Shape::TIGHT, &ops);
}

/// A client that restores twice before it speaks.
#[test]
fn a_restore_that_nobody_heard_of_costs_nothing() {
    let ops = [
        Publish { stream: 0, count: 1 },
        Connect { client: 3, node: 0 },
        Read { client: 3, count: 1 },
        Read { client: 0, count: 1 },
        Read { client: 3, count: 2 },
        Drop { client: 3 },
        Connect { client: 3, node: 1 },
        Publish { stream: 0, count: 3 },
        Drop { client: 3 },
    ];
    holds(Shape::TIGHT, &ops);
}

/// A node that had been stopped dated what it found on its way by the moment at which it came to look at it: the message
/// lost behind it had aged out meanwhile, and the hole was taken for nothing.
#[test]
fn row_02_what_waited_while_the_node_was_stopped_is_as_old_as_the_store_says() {
    let ops = [
        Connect { client: 0, node: 0 },
        Connect { client: 1, node: 0 },
        Read { client: 1, count: 1 },
        Read { client: 0, count: 1 },
        Publish { stream: 0, count: 1 },
        Connect { client: 0, node: 0 },
        Read { client: 0, count: 1 },
        Publish { stream: 0, count: 1 },
        Connect { client: 0, node: 0 },
        Publish { stream: 0, count: 1 },
        Drop { client: 0 },
        Freeze { node: 0, ms: 16_000 },
    ];
    holds(Shape::TIGHT, &ops);
}
