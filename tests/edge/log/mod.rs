//! Whatever is sent, the log stays short: of each kind of event one line in ten seconds, and one that says how many more.

mod clients;
mod outages;

use crate::harness::*;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_secs(10);

/// What the log of a server holds about one event.
struct Told {
    /// Lines with what the event says.
    lines: u64,
    /// How many events further lines speak of.
    counted: u64,
}

impl Told {
    fn of(server: &Server, event: &str, says: &str) -> Self {
        let log = server.log();
        let lines = log.lines().filter(|line| line.contains(says)).count() as u64;
        let name = format!("event={event}");
        let of_event = log.lines().filter(|line| line.contains(&name) && line.contains("more of these in the last"));
        let number = |line: &str| line.split_once("num=")?.1.split(' ').next()?.parse::<u64>().ok();
        let counted = of_event.map(|line| number(line).unwrap_or_else(|| panic!("no number in {line}"))).sum();
        Self { lines, counted }
    }
}

/// Ends the server and looks at what it has logged of `number` events since `begun`: nothing is lost, and little is said.
#[track_caller]
fn told_once(server: Server, begun: Instant, number: u64, event: &str, says: &str) {
    let told = told_seldom(server, begun, number, event, says);
    assert_eq!(told, number, "lines and events counted");
}

/// The same for an unknown number of events, `least` at least. Returns how many are told of.
#[track_caller]
fn told_seldom(mut server: Server, begun: Instant, least: u64, event: &str, says: &str) -> u64 {
    server.stop();
    let told = Told::of(&server, event, says);
    println!("{event}: {} lines, {} more counted", told.lines, told.counted);
    let periods = begun.elapsed().as_secs() / PERIOD.as_secs() + 1;
    assert!((1..=periods).contains(&told.lines), "{} lines in {periods} periods", told.lines);
    let all = told.lines + told.counted;
    assert!(all >= least, "{all} of {least} or more");
    all
}

async fn events(server: &Server, event: &str) -> u64 {
    server.metric(&format!("log_events_total{{event=\"{event}\"}}")).await.unsigned_abs()
}

fn server() -> carrick::Builder {
    Server::on(Backend::Memory).option("metrics_http", "/metrics")
}

async fn until_end(mut client: Client) {
    while matches!(client.event().await, client::Event::Frame(_)) {}
}

fn action(identifier: &str) -> Value {
    json!({"command": "message", "identifier": identifier, "data": "{}"})
}
