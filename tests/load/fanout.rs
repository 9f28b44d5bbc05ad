//! Saturated fan-out: as many messages as the subscribers take, a bounded number outstanding.

use crate::memory::Memory;
use crate::post::{Line, data, message, request};
use crate::report::Report;
use crate::swarm::{Counters, DIGITS, MARK};
use crate::target::Target;
use crate::{count, of, socket, swarm};
use carrick::client::signed::public_identifier;
use clap::ArgMatches;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const STREAM: &str = "fanout";
/// Not measured: buffers grow, caches fill.
const WARM_UP: Duration = Duration::from_secs(1);
/// For what is outstanding at the end.
const DRAIN: Duration = Duration::from_secs(20);

pub fn run(options: &ArgMatches) -> Result<Report, String> {
    let (clients, threads) = (count(options, "clients"), count(options, "threads"));
    let seconds = Duration::from_secs(of(options, "seconds"));
    let target = Target::from_options(options)?;
    let identifiers = vec![public_identifier(STREAM); clients];
    let sockets = socket::subscribe_all(target.http(), &identifiers)?;
    let counters = Arc::new(Counters::default());
    let receivers = swarm::start(sockets, threads, &counters).map_err(|error| error.to_string())?;
    let mut publisher = Publisher {
        line: Line::connect(target.broadcast()).map_err(|error| error.to_string())?,
        address: target.broadcast().to_owned(),
        payload: count(options, "payload"),
        batch: of(options, "batch").max(1),
        window: of(options, "outstanding").max(1),
        clients: clients as u64,
        published: 0,
    };
    let delivered = || counters.delivered.load(Ordering::Acquire);

    publisher.publish_for(WARM_UP, &delivered)?;
    let (from, published_from, started) = (delivered(), publisher.published, Instant::now());
    publisher.publish_for(seconds, &delivered)?;
    let (to, elapsed) = (delivered(), started.elapsed());
    let measured = publisher.published - published_from;
    let all = publisher.published * publisher.clients;
    let draining = Instant::now();
    while delivered() < all && draining.elapsed() < DRAIN {
        std::thread::sleep(Duration::from_millis(5));
    }
    let memory = Memory::of(&target);
    // Copies too many would come now.
    std::thread::sleep(Duration::from_millis(300));
    counters.stop.store(true, Ordering::Relaxed);

    let mut report = Report::new(format!(
        "fanout: {} bytes to {clients} clients, {} outstanding",
        publisher.payload, publisher.window
    ));
    report.rate("deliveries_per_second", "deliveries", (to - from) as f64 / elapsed.as_secs_f64());
    report.rate("messages_per_second", "messages", measured as f64 / elapsed.as_secs_f64());
    report.count("published", "published in all", publisher.published);
    report.count("delivered", "delivered in all", delivered());
    report.row(
        "bytes",
        "received",
        format!("{} MB", counters.bytes.load(Ordering::Relaxed) / 1_000_000),
        counters.bytes.load(Ordering::Relaxed),
    );
    report.bytes("carrick", "carrick memory", memory.carrick);
    report.bytes("nats", "nats-server memory", memory.nats);
    let (mut missing, mut repeated, mut closed) = (0, 0, 0);
    for receiver in receivers {
        let findings = receiver.join().map_err(|_| "a receiving thread panicked".to_owned())?;
        missing += findings.missing;
        repeated += findings.repeated;
        closed += findings.closed;
        if let Some((low, high)) = findings.ended_at
            && (low, high) != (publisher.published, publisher.published)
        {
            report.broken(format!("clients ended at messages {low} to {high}, published were {}", publisher.published));
        }
    }
    report.count("missing", "missing", missing);
    report.count("repeated", "repeated or out of order", repeated);
    report.count("closed", "closed by the server", closed);
    if missing + repeated + closed > 0 || delivered() != all {
        report.broken(format!(
            "{} of {all} deliveries, {missing} missing, {repeated} repeated, {closed} closed",
            delivered()
        ));
    }
    target.stop()?;
    Ok(report)
}

/// One connection, so that the order of publishing is known.
struct Publisher {
    line: Line,
    address: String,
    payload: usize,
    batch: u64,
    window: u64,
    clients: u64,
    published: u64,
}

impl Publisher {
    fn publish_for(&mut self, span: Duration, delivered: &impl Fn() -> u64) -> Result<(), String> {
        let started = Instant::now();
        while started.elapsed() < span {
            let outstanding = self.published.saturating_sub(delivered() / self.clients.max(1));
            match self.window.saturating_sub(outstanding).min(self.batch) {
                0 => std::thread::sleep(Duration::from_micros(200)),
                room => self.publish(room)?,
            }
        }
        Ok(())
    }

    fn publish(&mut self, messages: u64) -> Result<(), String> {
        let mark = String::from_utf8_lossy(MARK);
        let bodies: Vec<_> = (self.published + 1..=self.published + messages)
            .map(|number| message(STREAM, &data(&format!("{mark}{number:0DIGITS$}"), self.payload)))
            .collect();
        let body = match bodies.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(",")),
        };
        match self.line.send(&request(&self.address, &body)) {
            Ok(201) => {
                self.published += messages;
                Ok(())
            }
            Ok(status) => Err(format!("publishing was answered with status {status}")),
            Err(error) => Err(format!("publishing failed: {error}")),
        }
    }
}
