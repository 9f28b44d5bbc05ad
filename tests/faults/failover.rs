//! How long a death of the log's leader stops publishing, and how long until every client has everything: rounds with
//! figures. `scripts/faults --failover N` runs them.

use crate::deployment::{Deployment, Setup, number_of};
use crate::harness::BROADCAST_KEY;
use crate::proc::{self, eventually};
use crate::table::number;
use carrick::client::check::member::Habits;
use carrick::client::check::run::Outcome;
use carrick::client::check::source::Outlet;
use carrick::client::check::{Check, Credentials, Drops, Pace, RETRY_FOR, Roster};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};
use url::Url;

const STREAMS: usize = 10;
/// Traffic before the kill, and after publishing is possible again.
const BEFORE: Duration = Duration::from_secs(2);
const AFTER: Duration = Duration::from_secs(2);
const SETTLE: Duration = Duration::from_secs(60);
/// For an election, and for the last messages.
const PATIENCE: Duration = Duration::from_secs(60);
/// A client that comes back in a round would measure itself.
const NEVER: Duration = Duration::from_secs(3_600);

pub const HEADER: &str = "\
| Set-up | Round | Leader killed | Publishing again after | Everyone has everything after | Acked | Deliveries | Subscribed anew | Verdict |\n\
|---|---|---|---|---|---|---|---|---|";

pub struct Round {
    pub line: String,
    pub publishing: Duration,
    pub complete: Duration,
    pub failures: Vec<String>,
}

/// Kills the leader of the log under load: an external nats-server, or the whole Carrick whose embedded one leads.
pub fn round(deployment: &mut Deployment, setup: Setup, index: u64, seed: u64) -> Result<Round, String> {
    let key = Some(BROADCAST_KEY.to_owned());
    let nodes = deployment.nodes();
    let parse = |text: String| Url::parse(&text).map_err(|error| error.to_string());
    let urls: Result<Vec<Url>, String> =
        nodes.iter().map(|node| parse(format!("ws://{}/cable", node.address()))).collect();
    let outlet = Outlet {
        urls: nodes.iter().map(|node| format!("http://{}/_broadcast", node.broadcast_address())).collect(),
        key,
        trust: None,
        run: format!("failover-{seed}-{index}"),
        retry_for: RETRY_FOR,
    };
    let roster = Roster {
        prefix: format!("failover/{index}/"),
        seed: seed + index,
        streams: STREAMS,
        members: number("CLIENTS", 80),
        doubles: 0,
        silents: 0,
        bases: 0,
        secret: None,
        credentials: Credentials::Common,
    };
    let pace = Pace { lanes: 2, rate: number("RATE", 400), extras: carrick::client::check::Extras::default() };
    let habits = Habits {
        drops: Drops::Never,
        stay: NEVER..NEVER,
        away: Duration::ZERO..Duration::ZERO,
        history: true,
        whispers: false,
    };
    let check = {
        let urls = urls?;
        deployment.block_on(async { Check::start(&roster, &pace, &habits, &urls, &outlet) })
    };
    deployment.block_on(check.settle(SETTLE))?;
    check.begin();
    sleep(BEFORE);

    let leader = deployment.jetstream().wait_leader(None);
    let number = number_of(&leader);
    let pid = deployment.nats_pid(&leader);
    match &mut deployment.nats {
        Some(nats) => nats.members[number].kill(),
        None => deployment.kill_nodes(&[number]),
    }
    let gone = eventually(PATIENCE, "the leader's end", || (!proc::is_alive(pid)).then_some(()));
    // Until its last moment it may have acknowledged what was begun after the signal.
    let killed = Instant::now();
    let next = deployment.jetstream().wait_leader(Some(&leader));
    let acknowledged = AtomicU64::new(check.acknowledged());
    eventually(PATIENCE, "publishing again", || {
        (check.acknowledged() > acknowledged.load(Ordering::Relaxed) + STREAMS as u64).then_some(())
    })?;
    sleep(AFTER);
    let (outcome, behind) = deployment.block_on(check.finish(PATIENCE))?;
    match &mut deployment.nats {
        Some(nats) => nats.members[number].start(),
        None => deployment.start_nodes(&[number]),
    }
    deployment.jetstream().wait_whole();

    let (publishing, complete) = times(&outcome, killed)?;
    let verdict = &outcome.verdict;
    let mut failures = verdict.failures();
    failures.extend(gone.err());
    failures.extend(behind);
    let line = format!(
        "| {setup} | {} | {leader} ⇒ {next} | {:.2} s | {:.2} s | {} | {} | {} | {} |",
        index + 1,
        publishing.as_secs_f64(),
        complete.as_secs_f64(),
        verdict.acknowledged,
        verdict.arrived,
        verdict.fresh,
        if failures.is_empty() { "pass".to_owned() } else { format!("**FAIL**: {}", failures.join("; ")) },
    );
    Ok(Round { line, publishing, complete, failures })
}

/// From the kill to the first acknowledgement of a message that was begun after it; and to the moment when every
/// subscription had all that was acknowledged by then.
fn times(outcome: &Outcome, killed: Instant) -> Result<(Duration, Duration), String> {
    let acks = || outcome.published.iter().flat_map(|source| source.acks.iter().map(move |ack| (&source.stream, ack)));
    let later = acks().filter(|(_, ack)| ack.begun.into_std() > killed).map(|(_, ack)| ack.at.into_std());
    let again = later.min().ok_or("nothing that was begun after the kill was acknowledged")?;
    // Stream ⇒ messages that must have arrived.
    let mut due: HashMap<(&str, u16, u64), ()> = HashMap::new();
    for (stream, ack) in acks().filter(|(_, ack)| ack.at.into_std() <= again) {
        due.insert((stream.as_str(), ack.id.lane, ack.id.n), ());
    }
    let arrivals = outcome.records.iter().flat_map(|record| {
        let stream =
            |arrival: &carrick::client::check::record::Arrival| &record.follower.follows[arrival.follow].stream;
        record.arrivals.iter().map(move |arrival| (stream(arrival), arrival))
    });
    let due_arrivals =
        arrivals.filter(|(stream, arrival)| due.contains_key(&(stream.as_str(), arrival.id.lane, arrival.id.n)));
    let last = due_arrivals.map(|(_, arrival)| arrival.at.into_std()).max().ok_or("nothing arrived")?;
    Ok((again - killed, last.max(again) - killed))
}

/// p50 and maximum in seconds.
pub fn summary(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let p50 = times.get(times.len().saturating_sub(1) / 2).copied().unwrap_or_default().as_secs_f64();
    let max = times.last().copied().unwrap_or_default().as_secs_f64();
    format!("p50 {p50:.2} s, max {max:.2} s")
}
