//! Thousands leave at once, and the application wants to know of each: what the others notice of it.

use crate::application::{Application, Farewell, Number};
use crate::crowd::{Brought, Crowd, stamp};
use crate::memory::{Memory, Peak};
use crate::metrics::{self, metric};
use crate::report::Report;
use crate::socket::{Wish, fulfil};
use crate::spread::Spread;
use crate::steady::Steady;
use crate::target::Target;
use crate::{broker_options, count, of};
use clap::ArgMatches;
use serde_json::json;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const STREAM: &str = "live";

/// For farewells behind the time that the rate allows for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Nothing has come for so long after publishing ended: it was all.
const QUIET: Duration = Duration::from_millis(500);
/// How often the backlog is looked at.
const LOOK: Duration = Duration::from_millis(50);

pub fn run(options: &ArgMatches) -> Result<Report, String> {
    let (leavers, others) = (count(options, "leavers"), count(options, "others"));
    let (rate, farewells) = (of(options, "rate"), of(options, "farewells").max(1));
    let (payload, seconds) = (count(options, "payload"), Duration::from_secs(of(options, "seconds")));
    let application = Application::start(Duration::ZERO).map_err(|error| format!("no application: {error}"))?;
    let mut arguments = broker_options(options);
    arguments.extend([
        "--public=false".into(),
        "--broadcast_key=none".into(),
        application.option(),
        format!("--disconnect_rate={farewells}"),
        format!("--disconnect_backlog_size={}", leavers + others + 1),
        metrics::OPTION.into(),
    ]);
    let target = Target::own(options, &arguments)?;
    let channel = |stream: String, room: usize| json!({"channel": "Load", "stream": stream, "room": room}).to_string();
    // A stream of its own, and one that it shares.
    let shared = if options.get_flag("together") { STREAM } else { "lobby" };
    let rooms = |leaver: usize| vec![channel(format!("leaver/{leaver}"), 1), channel(shared.to_owned(), leaver)];
    let leaving: Vec<_> =
        (0..leavers).map(|number| Wish { query: format!("?client={number}"), identifiers: rooms(number) }).collect();
    let staying: Vec<_> = (leavers..leavers + others)
        .map(|number| Wish { query: format!("?client={number}"), identifiers: vec![channel(STREAM.to_owned(), 0)] })
        .collect();
    let gone = fulfil(target.http(), &leaving)?;
    let stay = Crowd::of(target.http(), fulfil(target.http(), &staying)?).map_err(|error| error.to_string())?;
    let before = Memory::of(&target);
    let peak = Peak::watch(&target);

    let began = Instant::now();
    let ended = AtomicBool::new(false);
    let steady = Steady::start(target.broadcast(), STREAM, rate, payload, move |_, due| {
        u64::try_from(due.saturating_duration_since(began).as_micros()).unwrap_or(u64::MAX)
    });
    let mut backlog = 0;
    let (arrivals, phases, published, farewells_told) = std::thread::scope(|scope| {
        let listening = scope.spawn(|| listen(stay, began, &ended));
        let reading = scope.spawn(|| drop_after(gone, &target, seconds));
        let watch = || -> Result<Phases, String> {
            std::thread::sleep(seconds);
            let dropped = reading.join().map_err(|_| "a thread panicked".to_owned())??;
            let deadline = dropped + PATIENCE + Duration::from_secs(leavers as u64 / farewells);
            while application.record().farewells() < leavers && Instant::now() < deadline {
                backlog = backlog.max(metric(target.http(), "disconnect_queue_size")?);
                std::thread::sleep(LOOK);
            }
            let told = Instant::now();
            // Late doubles would come now, too.
            std::thread::sleep(seconds);
            Ok(Phases { dropped: dropped - began, told: told - began })
        };
        let phases = watch();
        let published = steady.stop();
        // Those who stay leave now, too.
        let told = std::mem::take(&mut application.record().farewells);
        ended.store(true, Ordering::Release);
        let arrivals = listening.join().map_err(|_| "the listening thread panicked".to_owned())??;
        Ok::<_, String>((arrivals, phases?, published?, told))
    })?;
    let left = metric(target.http(), "disconnect_queue_size")?;
    let dropped_calls = metric(target.http(), "disconnects_dropped_total")?;
    let (reached, after) = (peak.reached(), Memory::of(&target));

    let mut report = Report::new(format!(
        "leavers: {leavers} of {} clients leave at once, {rate} messages/s to the others, {farewells} farewells/s",
        leavers + others
    ));
    for (name, from, to) in [
        ("before", Duration::ZERO, phases.dropped),
        ("during", phases.dropped, phases.told),
        ("first_second", phases.dropped, phases.dropped + Duration::from_secs(1)),
        ("after", phases.told, Duration::MAX),
    ] {
        let times = arrivals.latencies.iter().filter(|(due, _)| *due >= from && *due < to);
        let spread = Spread::of(times.map(|(_, latency)| *latency).collect());
        spread.describe(&mut report, name, &format!("delivery, {}", name.replace('_', " ")));
    }
    report.count("delivered", "delivered to those who stay", arrivals.latencies.len() as u64);
    report.time("farewells_us", "until the application knew of all", phases.told - phases.dropped);
    report.count("backlog", "farewells that waited, at most", backlog.unsigned_abs());
    report.bytes("carrick_before", "carrick before", before.carrick);
    report.bytes("carrick_peak", "carrick at most", reached);
    report.bytes("carrick_after", "carrick after", after.carrick);
    if arrivals.latencies.len() as u64 != published * others as u64 || arrivals.closed > 0 {
        let (got, closed) = (arrivals.latencies.len(), arrivals.closed);
        report.broken(format!("{got} of {} deliveries, {closed} closed", published * others as u64));
    }
    if left != 0 || dropped_calls != 0 {
        report.broken(format!("{left} farewells still wait, {dropped_calls} were dropped"));
    }
    judge(&mut report, &farewells_told, leavers, rooms);
    report.broken_all(&application.record().strange);
    target.stop()?;
    Ok(report)
}

/// When the leavers left, and when the application knew of all of them; since the beginning.
struct Phases {
    dropped: Duration,
    told: Duration,
}

/// Closes them all at once. Until then what comes for them is read away.
fn drop_after(gone: Vec<crate::socket::Subscribed>, target: &Target, seconds: Duration) -> Result<Instant, String> {
    let mut crowd = Crowd::of(target.http(), gone).map_err(|error| error.to_string())?;
    let until = Instant::now() + seconds;
    let mut closed = 0;
    while Instant::now() < until {
        let turned = crowd.turn(Duration::from_millis(5), |_, _, brought| {
            closed += usize::from(matches!(brought, Brought::End));
            Ok(())
        });
        turned.map_err(|error| error.to_string())?;
    }
    if closed > 0 {
        return Err(format!("{closed} clients were closed by the server before they left"));
    }
    let dropped = Instant::now();
    drop(crowd);
    Ok(dropped)
}

/// Deliveries to those who stay: when due, since the beginning, and how late.
#[derive(Default)]
struct Arrivals {
    latencies: Vec<(Duration, Duration)>,
    closed: usize,
}

fn listen(mut crowd: Crowd, began: Instant, ended: &AtomicBool) -> Result<Arrivals, String> {
    let mut arrivals = Arrivals::default();
    let mut last = None;
    loop {
        let turned = crowd.turn(Duration::from_millis(20), |_, _, brought| {
            match brought {
                Brought::Text(text) => {
                    if let Some(micros) = stamp(text) {
                        let due = Duration::from_micros(micros);
                        arrivals.latencies.push((due, began.elapsed().saturating_sub(due)));
                        last = Some(Instant::now());
                    }
                }
                Brought::End => arrivals.closed += 1,
            }
            Ok(())
        });
        turned.map_err(|error| error.to_string())?;
        let quiet = last.is_none_or(|at: Instant| at.elapsed() > QUIET);
        if ended.load(Ordering::Acquire) && quiet {
            return Ok(arrivals);
        }
    }
}

/// Each leaver was told of exactly once, with all that it had, and nobody else.
fn judge(
    report: &mut Report,
    farewells: &HashMap<Number, Vec<Farewell>>,
    leavers: usize,
    rooms: impl Fn(usize) -> Vec<String>,
) {
    let state = |number: Number| json!({"owner": json!({"client": number}).to_string()});
    let expected = |number| rooms(number).into_iter().map(|room| (room, state(number))).collect::<Farewell>();
    let told = |number: &Number| farewells.get(number).map_or(&[][..], Vec::as_slice);
    let missing = (0..leavers).filter(|number| told(number).is_empty()).count();
    let double = farewells.values().filter(|calls| calls.len() > 1).count();
    let strange = farewells.keys().filter(|number| **number >= leavers).count();
    let wrong = (0..leavers).filter(|number| told(number).first().is_some_and(|one| *one != expected(*number))).count();
    for (key, label, count) in [
        ("missing", "farewells missing", missing),
        ("double", "clients with more than one", double),
        ("wrong", "with other subscriptions or state", wrong),
        ("strange", "of clients that stayed", strange),
    ] {
        report.count(key, label, count as u64);
        if count > 0 {
            report.broken(format!("{label}: {count}"));
        }
    }
}
