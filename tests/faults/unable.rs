//! What cannot be checked ends with 2 and words that say what to do.

use crate::checker::{Checked, Checker};
use crate::harness::{BROADCAST_KEY, Backend, Server};
use std::time::Duration;

fn verify(arguments: &[String]) -> Checked {
    Checker::with(arguments).wait(Duration::from_secs(60))
}

fn against(server: &Server, more: &[&str]) -> Checked {
    let url = format!("--url=ws://{}/cable", server.address());
    let publish = format!("--publish-url=http://{}/_broadcast", server.broadcast_address());
    let mut arguments = vec![url, publish, "--duration=5".to_owned(), "--clients=10".to_owned()];
    arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
    verify(&arguments)
}

fn assert_unable(checked: &Checked, words: &str) {
    assert_eq!(checked.status, Some(2), "{checked:?}");
    assert!(checked.errors.contains(words), "{words} expected: {checked:?}");
    assert!(checked.report.is_null(), "{checked:?}");
}

#[test]
fn nobody_at_the_address() {
    let port = crate::harness::free_port();
    assert_unable(&verify(&[format!("--url=ws://127.0.0.1:{port}/cable")]), "is the server running? check --url");
}

#[test]
fn wrong_paths() {
    let server = Backend::Memory.builder().start();
    let url = format!("ws://{}", server.address());
    assert_unable(&verify(&[format!("--url={url}/nowhere")]), "nothing answers WebSockets at this path: check --url");
    let publish = format!("--publish-url=http://{}/nowhere", server.address());
    let checked = verify(&[format!("--url={url}/cable"), publish]);
    assert_unable(&checked, "nothing is published at this path: check --publish-url");
}

#[test]
fn wrong_credentials() {
    let server = Backend::Memory.builder().start();
    assert_unable(&against(&server, &[]), "the key is wrong or missing");
    assert_unable(&against(&server, &["--key=wrong"]), "the key is wrong or missing");
    assert_unable(&against(&server, &["--secret=wrong"]), "the server rejected the subscription");
    let closed = Backend::Memory.builder().replace("noauth", "false").start();
    assert_unable(&against(&closed, &["--key=any"]), "the server refused the connection");
}

#[test]
fn a_server_without_a_broker() {
    let server = Backend::Memory.builder().replace("broker", "none").start();
    let key = format!("--key={BROADCAST_KEY}");
    assert_unable(&against(&server, &[&key, "--public-streams"]), "the server keeps no history");
    let connected = against(&server, &[&key, "--public-streams", "--drop=none"]);
    assert_eq!(connected.status, Some(0), "{connected:?}");
    assert_eq!(connected.report["features"]["history"], false);
    assert_eq!(connected.count("removals"), 0, "nobody is thrown out where that costs messages: {connected:?}");
    assert!(connected.count("delivered") > 0 && connected.count("lost") == 0, "{connected:?}");
}

#[test]
fn wrong_arguments() {
    assert_unable(&verify(&["--drop=sometimes".to_owned()]), "invalid value 'sometimes'");
}

#[test]
fn a_healthy_server_passes_with_every_pattern() {
    let server = Backend::Memory.builder().option("history_limit", 10_000).start();
    for pattern in ["random", "none", "all-at-once"] {
        let drop = format!("--drop={pattern}");
        let checked = against(&server, &["--secret=orchid-lantern-42", &drop, "--away=0.1-0.5", "--stay=0.2-0.6"]);
        assert_eq!(checked.status, Some(0), "{pattern}: {checked:?}");
        assert_eq!(checked.count("drops") > 0, pattern != "none", "{pattern}: {checked:?}");
        assert!(checked.count("delivered") > 100, "{pattern}: {checked:?}");
    }
}

/// Eight seconds of few clients on a healthy server.
fn passes(options: &[&str]) -> Checked {
    let server = Backend::Memory.builder().option("history_limit", 10_000).start();
    let mut all = vec![
        format!("--url=ws://{}/cable", server.address()),
        format!("--publish-url=http://{}/_broadcast", server.broadcast_address()),
    ];
    let common = ["--secret=orchid-lantern-42", "--clients=12", "--duration=8", "--away=0.1-0.5"];
    all.extend(common.iter().chain(options).map(|option| (*option).to_owned()));
    let checked = verify(&all);
    assert_eq!(checked.status, Some(0), "{checked:?}");
    checked
}

/// The turn is shorter than a third of the time, after which they jump.
#[test]
fn clocks_that_jump_cost_nothing_on_a_healthy_server_however_short_the_turns_are() {
    for turn in ["--turn=300", "--turn=1"] {
        let checked = passes(&["--clock-jump=7200", "--stay=0.2-0.6", turn]);
        assert!(checked.count("skewed_returns") > 4 && checked.count("lost") == 0, "{turn}: {checked:?}");
    }
}

#[test]
fn all_drop_at_once_although_they_stay_for_longer_than_a_turn() {
    let checked = passes(&["--drop=all-at-once", "--stay=1.5-1.6", "--turn=1"]);
    assert!(checked.count("drops") >= 12, "{checked:?}");
}
