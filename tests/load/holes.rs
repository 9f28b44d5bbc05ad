//! A node that loses its connection to the store and misses something of every open stream: how long until all clients have
//! it, and how long clients wait that come back meanwhile.

use crate::crowd::{Brought, Crowd, stamp};
use crate::cut::Path;
use crate::memory::{Memory, Peak};
use crate::metrics::{self, metric};
use crate::post::{Line, data, message, request};
use crate::proc::eventually;
use crate::replay::{first_positions, since};
use crate::report::Report;
use crate::socket::{Wish, fulfil};
use crate::spread::Spread;
use crate::target::Target;
use crate::{count, of};
use carrick::client::command::{history, subscribe};
use carrick::client::signed::public_identifier;
use carrick::client::{BASE_JSON, Frame};
use clap::ArgMatches;
use std::time::{Duration, Instant};

/// Subscriptions of a connection: there are fewer connections than descriptors.
const PER_CONNECTION: usize = 1_000;
/// Commands of a connection that wait for their answers.
const OUTSTANDING: usize = 32;
const PATIENCE: Duration = Duration::from_secs(180);
/// Messages that each returning client has missed.
const BEHIND: u64 = 20;
/// The first number of those who return, beyond all streams.
const RETURNING: u64 = 1_000_000;

pub fn run(options: &ArgMatches) -> Result<Report, String> {
    let (streams, missed) = (count(options, "streams"), of(options, "missed"));
    let (clients, rate) = (count(options, "clients"), of(options, "rate").max(1));
    let payload = count(options, "payload");
    let broken = |error: std::io::Error| format!("a client failed: {error}");
    let keep = ["--history_ttl=3600".to_owned(), metrics::OPTION.to_owned()];
    let store = Target::own(options, &keep)?;
    let url = store.nats_url().ok_or("there is no nats-server")?.to_owned();
    let (user, nats) = url.trim_start_matches("nats://").split_once('@').ok_or("a nats-server without a user")?;
    let path = Path::to(nats).map_err(|error| error.to_string())?;
    let through = format!("--nats_servers=nats://{user}@127.0.0.1:{}", path.port());
    let alone = ["--embed_nats=false".to_owned(), through, "--stream_linger=100ms".to_owned()];
    let node = Target::own(options, &[&keep[..], &alone[..]].concat())?;
    let mut report = Report::new(format!("holes: {streams} open streams, {missed} missed in each, {payload} bytes"));

    let began = Instant::now();
    let mut followers = follow(node.http(), streams)?;
    report.time("opened_us", "all streams opened, one after another on each connection", began.elapsed());
    publish(store.broadcast(), streams, 1, payload)?;
    let mut seen = vec![0_u64; streams];
    receive(&mut followers, &mut seen, 1, PATIENCE)?;

    // Those who will return have seen one message, and are gone.
    let identifiers: Vec<String> = (0..clients).map(|client| public_identifier(&format!("back/{client}"))).collect();
    let wish = |identifier: &String| Wish { query: String::new(), identifiers: vec![identifier.clone()] };
    let sockets = fulfil(node.http(), &identifiers.iter().map(wish).collect::<Vec<_>>())?;
    let sids: Vec<String> = sockets.iter().map(|socket| socket.sid.clone()).collect();
    let mut gone = Crowd::of(node.http(), sockets).map_err(broken)?;
    publish_to(store.broadcast(), (0..clients).map(|client| (format!("back/{client}"), RETURNING)), payload)?;
    let positions = first_positions(&mut gone)?;
    drop(gone);
    let closed = || (metric(node.http(), "broadcast_streams_num") == Ok(streams as i64)).then_some(());
    eventually(PATIENCE, "streams closed that nobody follows", closed)?;

    path.cut();
    let away = || (!metrics::is_ready(node.http())).then_some(());
    eventually(PATIENCE, "the node has noticed", away)?;
    publish(store.broadcast(), streams, missed, payload)?;
    for number in 1..=BEHIND {
        let items = (0..clients).map(|client| (format!("back/{client}"), RETURNING + number));
        publish_to(store.broadcast(), items, payload)?;
    }
    let before = Memory::of(&node);
    let peak = Peak::watch(&node);
    path.heal();
    let ready = || metrics::is_ready(node.http()).then_some(());
    eventually(PATIENCE, "the node is ready", ready)?;

    let began = Instant::now();
    let mut crowd = Crowd::connect(node.http(), clients).map_err(broken)?;
    let requests: Vec<String> =
        identifiers.iter().zip(positions).map(|(identifier, at)| history(identifier, Some(&since(at)))).collect();
    let mut waits: Vec<Wait> = (0..clients).map(|_| Wait::default()).collect();
    let mut knocked = 0;
    let mut healed = None;
    while (healed.is_none() || waits.iter().any(Wait::is_open)) && began.elapsed() < PATIENCE {
        let due = usize::try_from(began.elapsed().as_millis() as u64 * rate / 1_000).unwrap_or(usize::MAX);
        while knocked < due.min(clients) {
            waits[knocked].began = Some(Instant::now());
            crowd.knock(knocked, &format!("?sid={}", sids[knocked])).map_err(broken)?;
            knocked += 1;
        }
        turn(&mut followers, &mut seen)?;
        if healed.is_none() && seen.iter().all(|count| *count > missed) {
            healed = Some(began.elapsed());
        }
        let turned = crowd.turn(Duration::from_millis(1), |crowd, index, brought| match brought {
            Brought::Text(text) => match waits[index].take(text) {
                true => crowd.say(index, &requests[index]),
                false => Ok(()),
            },
            Brought::End => {
                waits[index].closed = true;
                Ok(())
            }
        });
        turned.map_err(broken)?;
    }
    report.time("healed_us", "every hole healed after", healed.unwrap_or(PATIENCE));
    Spread::of(waits.iter().filter_map(|wait| wait.done).collect()).describe(
        &mut report,
        "return",
        "back and complete",
    );
    for (key, name) in
        [("gaps", "feed_gaps_total"), ("repaired", "feed_gaps_repaired_total"), ("lost", "feed_gaps_lost_total")]
    {
        report.count(key, name, u64::try_from(metric(node.http(), name)?).unwrap_or(0));
    }
    report.bytes("carrick_before", "carrick before", before.carrick);
    report.bytes("carrick_peak", "carrick at most", peak.reached());
    let wrong = |of: fn(&Wait) -> bool| waits.iter().filter(|wait| of(wait)).count() as u64;
    let unhealed = seen.iter().filter(|count| **count <= missed).count() as u64;
    let twice = seen.iter().filter(|count| **count > missed + 1).count() as u64;
    for (key, what, count) in [
        ("unhealed", "streams that still lack something", unhealed),
        ("twice", "streams with too many messages", twice),
        ("closed", "returning clients closed", wrong(|wait| wait.closed)),
        ("rejected", "returning clients rejected", wrong(|wait| wait.rejected)),
        ("incomplete", "returning clients without everything", wrong(|wait| !wait.closed && wait.messages < BEHIND)),
    ] {
        report.number(key, count);
        if count > 0 {
            report.broken(format!("{what}: {count}"));
        }
    }
    node.stop()?;
    store.stop()?;
    Ok(report)
}

/// A client that has come back.
#[derive(Default)]
struct Wait {
    began: Option<Instant>,
    done: Option<Duration>,
    messages: u64,
    closed: bool,
    rejected: bool,
}

impl Wait {
    fn is_open(&self) -> bool {
        self.done.is_none() && !self.closed && !self.rejected
    }

    /// Takes a frame; `true`: the client asks for its history now.
    fn take(&mut self, text: &[u8]) -> bool {
        if stamp(text).is_some() {
            self.messages += 1;
            return false;
        }
        match Frame::parse(&String::from_utf8_lossy(text)) {
            Ok(Frame::Welcome { restored, .. }) => return restored,
            Ok(Frame::ConfirmHistory(_)) => self.done = self.began.map(|began| began.elapsed()),
            Ok(Frame::RejectHistory(_)) => self.rejected = true,
            _ => {}
        }
        false
    }
}

fn name(stream: usize) -> String {
    format!("holes/{stream}")
}

/// Clients of the base protocol that follow so many streams, each on one connection with others.
fn follow(http: &str, streams: usize) -> Result<Crowd, String> {
    let broken = |error: std::io::Error| format!("a client failed: {error}");
    let connections = streams.div_ceil(PER_CONNECTION);
    let mut crowd = Crowd::connect(http, connections).map_err(broken)?;
    for index in 0..connections {
        crowd.knock_as(index, "", BASE_JSON).map_err(broken)?;
    }
    let own = |index: usize| index * PER_CONNECTION..streams.min((index + 1) * PER_CONNECTION);
    let mut next: Vec<usize> = (0..connections).map(|index| own(index).start).collect();
    let mut confirmed = 0;
    let deadline = Instant::now() + PATIENCE;
    while confirmed < streams {
        if Instant::now() > deadline {
            return Err(format!("only {confirmed} of {streams} subscriptions were confirmed"));
        }
        let turned = crowd.turn(Duration::from_millis(20), |crowd, index, brought| {
            let Brought::Text(text) = brought else { return Err(std::io::Error::other("closed")) };
            let more = match Frame::parse(&String::from_utf8_lossy(text)) {
                Ok(Frame::Welcome { .. }) => OUTSTANDING,
                Ok(Frame::ConfirmSubscription(_)) => {
                    confirmed += 1;
                    1
                }
                _ => 0,
            };
            for _ in 0..more {
                if own(index).contains(&next[index]) {
                    crowd.say(index, &subscribe(&public_identifier(&name(next[index])), None))?;
                    next[index] += 1;
                }
            }
            Ok(())
        });
        turned.map_err(broken)?;
    }
    Ok(crowd)
}

/// Publishes so many messages to each of the streams, each with its stream's number.
fn publish(broadcast: &str, streams: usize, messages: u64, payload: usize) -> Result<(), String> {
    for _ in 0..messages {
        publish_to(broadcast, (0..streams).map(|stream| (name(stream), stream as u64)), payload)?;
    }
    Ok(())
}

fn publish_to(broadcast: &str, items: impl Iterator<Item = (String, u64)>, payload: usize) -> Result<(), String> {
    let mut line = Line::connect(broadcast).map_err(|error| format!("cannot publish: {error}"))?;
    let items: Vec<String> =
        items.map(|(stream, number)| message(&stream, &data(&format!("{number:012} "), payload))).collect();
    for batch in items.chunks(500) {
        match line.send(&request(broadcast, &format!("[{}]", batch.join(",")))) {
            Ok(201) => {}
            Ok(status) => return Err(format!("a batch was answered with status {status}")),
            Err(error) => return Err(format!("a batch failed: {error}")),
        }
    }
    Ok(())
}

/// Counts what has come, by stream.
fn turn(followers: &mut Crowd, seen: &mut [u64]) -> Result<(), String> {
    let turned = followers.turn(Duration::from_millis(1), |_, _, brought| {
        let Brought::Text(text) = brought else { return Err(std::io::Error::other("closed")) };
        if let Some(stream) = stamp(text).and_then(|number| usize::try_from(number).ok()) {
            seen[stream] += 1;
        }
        Ok(())
    });
    turned.map_err(|error| format!("a follower failed: {error}"))
}

/// Waits until every stream has brought so many messages.
fn receive(followers: &mut Crowd, seen: &mut [u64], messages: u64, patience: Duration) -> Result<(), String> {
    let deadline = Instant::now() + patience;
    while seen.iter().any(|count| *count < messages) {
        if Instant::now() > deadline {
            return Err("live messages did not reach every follower".to_owned());
        }
        turn(followers, seen)?;
    }
    Ok(())
}
