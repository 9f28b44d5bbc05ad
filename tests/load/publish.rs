//! Acknowledged publications per second.

use crate::memory::Memory;
use crate::post::{Driven, data, drive, message, request};
use crate::report::Report;
use crate::target::Target;
use crate::{count, of};
use clap::ArgMatches;
use std::time::{Duration, Instant};

/// Not measured: connections are made, caches fill.
const WARM_UP: Duration = Duration::from_secs(1);

pub fn run(options: &ArgMatches) -> Result<Report, String> {
    let (connections, payload, streams) =
        (count(options, "connections"), count(options, "payload"), count(options, "streams"));
    let seconds = Duration::from_secs(of(options, "seconds"));
    let target = Target::from_options(options)?;
    let data = data("", payload);
    let requests: Vec<_> = (0..streams.max(1))
        .map(|index| request(target.broadcast(), &message(&format!("publish/{index}"), &data)))
        .collect();
    let drive_for = |span: Duration| {
        let started = Instant::now();
        let mut turn = requests.iter().cycle();
        drive(target.broadcast(), connections, || (started.elapsed() < span).then(|| turn.next().cloned())?)
            .map_err(|error| format!("publishing failed: {error}"))
    };
    drive_for(WARM_UP)?;
    let driven = drive_for(seconds)?;
    let memory = Memory::of(&target);
    let mut report = Report::new(format!("publish: {payload} bytes, {connections} connections, {streams} streams"));
    describe(&mut report, &driven);
    report.bytes("carrick", "carrick memory", memory.carrick);
    report.bytes("nats", "nats-server memory", memory.nats);
    target.stop()?;
    Ok(report)
}

pub fn describe(report: &mut Report, driven: &Driven) {
    report.rate("acknowledged_per_second", "acknowledged", driven.acknowledged as f64 / driven.elapsed.as_secs_f64());
    report.count("acknowledged", "acknowledged in all", driven.acknowledged);
    for (share, key, label) in
        [(0.5, "p50_us", "half within"), (0.99, "p99_us", "99 % within"), (1.0, "max_us", "all within")]
    {
        let micros = driven.percentile(share);
        report.row(key, label, format!("{:.2} ms", micros as f64 / 1000.0), micros);
    }
    if driven.refused > 0 {
        report.broken(format!("{} requests were refused, such as with {}", driven.refused, driven.example));
    }
}
