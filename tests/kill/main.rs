//! Kill tests: publishers publish, stock clients drop and return, and in the middle the server or its nats-server is
//! killed, frozen or stopped. Afterwards every acknowledged message has reached every follower, once and in order.
//!
//! One short round per fault. The long form is `scripts/kill-rounds`.

mod plan;
mod proc;
mod round;
mod server;

use plan::{Fault, Plan};
use std::sync::{Mutex, PoisonError};

/// Rounds share the machine badly.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn survives(fault: Fault) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let outcome =
        round::run(&Plan::short(fault, 7), &round::binary()).unwrap_or_else(|error| panic!("{fault}: {error}"));
    println!("{}\n{}\n{}", round::Outcome::HEADER, outcome.line(), outcome.proof());
    assert!(outcome.failures.is_empty(), "{}\n{}", outcome.line(), outcome.failures.join("\n"));
}

/// What is retried for longer may rightly be stored twice.
#[test]
fn the_last_attempt_ends_while_the_server_knows_its_key() {
    let server = carrick::config::Config::default().broker;
    assert!(carrick::client::check::RETRY_FOR + server.publish_timeout < server.dedup_window);
}

#[test]
fn killing_carrick_loses_nothing() {
    survives(Fault::KillCarrick);
}

#[test]
fn killing_its_nats_server_loses_nothing() {
    survives(Fault::KillNats);
}

#[test]
fn freezing_its_nats_server_loses_nothing() {
    survives(Fault::FreezeNats);
}

#[test]
fn stopping_carrick_loses_nothing() {
    survives(Fault::TermCarrick);
}
