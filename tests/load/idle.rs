//! Memory per idle connection.

use crate::memory::Memory;
use crate::report::Report;
use crate::swarm::Counters;
use crate::target::Target;
use crate::{count, of, socket, swarm};
use carrick::client::signed::public_identifier;
use clap::ArgMatches;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

pub fn run(options: &ArgMatches) -> Result<Report, String> {
    let (connections, streams, settle) = (count(options, "connections"), of(options, "streams"), of(options, "settle"));
    let target = Target::from_options(options)?;
    let before = Memory::of(&target);
    let streams = if streams == 0 { connections as u64 } else { streams };
    let identifiers: Vec<_> =
        (0..connections as u64).map(|index| public_identifier(&format!("idle/{}", index % streams))).collect();
    let started = Instant::now();
    let sockets = socket::subscribe_all(target.http(), &identifiers)?;
    let connecting = started.elapsed();
    let counters = Arc::new(Counters::default());
    let threads = swarm::start(sockets, 1, &counters).map_err(|error| error.to_string())?;
    std::thread::sleep(Duration::from_secs(settle));
    let after = Memory::of(&target);
    counters.stop.store(true, Ordering::Relaxed);
    let mut report = Report::new(format!("idle: {connections} connections, one subscription each, {streams} streams"));
    report.rate("connects_per_second", "connected and subscribed", connections as f64 / connecting.as_secs_f64());
    report.bytes("carrick_before", "carrick before", before.carrick);
    report.bytes("carrick_after", "carrick after", after.carrick);
    let each =
        |before: Option<u64>, after: Option<u64>| Some(after?.saturating_sub(before?) / connections.max(1) as u64);
    report.bytes("carrick_per_connection", "carrick per connection", each(before.carrick, after.carrick));
    report.bytes("nats_before", "nats-server before", before.nats);
    report.bytes("nats_after", "nats-server after", after.nats);
    report.bytes("nats_per_connection", "nats-server per connection", each(before.nats, after.nats));
    for thread in threads {
        let findings = thread.join().map_err(|_| "a receiving thread panicked".to_owned())?;
        report.count("pings", "pings received", findings.others);
        if findings.closed > 0 {
            report.broken(format!("{} connections were closed by the server", findings.closed));
        }
    }
    target.stop()?;
    Ok(report)
}
