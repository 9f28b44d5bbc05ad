//! Saturated fan-out: as many messages as the subscribers take, a bounded number outstanding.

use crate::memory::Memory;
use crate::post::{Line, data, message, request};
use crate::report::Report;
use crate::swarm::Counters;
use crate::target::Target;
use crate::{count, of, socket, swarm};
use carrick::client::signed::public_identifier;
use clap::ArgMatches;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const STREAM: &str = "fanout";
/// Not measured: buffers grow, caches fill.
const WARM_UP: Duration = Duration::from_secs(1);
/// For what is outstanding at the end.
const DRAIN: Duration = Duration::from_secs(20);

pub fn run(options: &ArgMatches) -> Result<Report, String> {
    let (clients, threads) = (count(options, "clients"), count(options, "threads"));
    let (payload, window) = (count(options, "payload"), of(options, "outstanding").max(1));
    let seconds = Duration::from_secs(of(options, "seconds"));
    let target = Target::from_options(options)?;
    let identifiers = vec![public_identifier(STREAM); clients];
    let sockets = socket::subscribe_all(target.http(), &identifiers)?;
    let counters = Arc::new(Counters::default());
    let receivers = swarm::start(sockets, threads, &counters).map_err(|error| error.to_string())?;
    let delivered = || counters.delivered.load(Ordering::Acquire);
    let request = request(target.broadcast(), &message(STREAM, &data("", payload)));
    let flow = Flow { window, clients: clients.max(1) as u64, ..Flow::default() };

    let (from, to, elapsed) = std::thread::scope(|scope| {
        let lines = (0..of(options, "publishers").max(1))
            .map(|_| scope.spawn(|| flow.publish(target.broadcast(), &request, &delivered)))
            .collect::<Vec<_>>();
        let now = || (delivered(), flow.acknowledged.load(Ordering::Acquire));
        std::thread::sleep(WARM_UP);
        let (from, started) = (now(), Instant::now());
        std::thread::sleep(seconds);
        let (to, elapsed) = (now(), started.elapsed());
        flow.stop.store(true, Ordering::Release);
        for line in lines {
            line.join().map_err(|_| "a publishing thread panicked".to_owned())??;
        }
        Ok::<_, String>((from, to, elapsed.as_secs_f64()))
    })?;
    let published = flow.acknowledged.load(Ordering::Acquire);
    let all = published * clients as u64;
    let draining = Instant::now();
    while delivered() < all && draining.elapsed() < DRAIN {
        std::thread::sleep(Duration::from_millis(5));
    }
    let memory = Memory::of(&target);
    // Copies too many would come now.
    std::thread::sleep(Duration::from_millis(300));
    counters.stop.store(true, Ordering::Relaxed);

    let mut report = Report::new(format!("fanout: {payload} bytes to {clients} clients, {window} outstanding"));
    report.rate("deliveries_per_second", "deliveries", (to.0 - from.0) as f64 / elapsed);
    report.rate("messages_per_second", "messages", (to.1 - from.1) as f64 / elapsed);
    report.count("published", "published in all", published);
    report.count("delivered", "delivered in all", delivered());
    let bytes = counters.bytes.load(Ordering::Relaxed);
    report.row("bytes", "received", format!("{} MB", bytes / 1_000_000), bytes);
    report.bytes("carrick", "carrick memory", memory.carrick);
    report.bytes("nats", "nats-server memory", memory.nats);
    let (mut disordered, mut closed) = (0, 0);
    for receiver in receivers {
        let findings = receiver.join().map_err(|_| "a receiving thread panicked".to_owned())?;
        disordered += findings.disordered;
        closed += findings.closed;
        if let Some((least, most)) = findings.per_socket
            && (least, most) != (published, published)
        {
            report.broken(format!("clients got {least} to {most} of {published} messages"));
        }
    }
    report.count("disordered", "repeated or out of order", disordered);
    report.count("closed", "closed by the server", closed);
    if disordered + closed > 0 || delivered() != all {
        report.broken(format!("{} of {all} deliveries, {disordered} disordered, {closed} closed", delivered()));
    }
    target.stop()?;
    Ok(report)
}

/// Publishers that together keep a bounded number of messages outstanding.
#[derive(Debug, Default)]
struct Flow {
    window: u64,
    clients: u64,
    sent: AtomicU64,
    acknowledged: AtomicU64,
    stop: AtomicBool,
}

impl Flow {
    fn publish(&self, address: &str, request: &[u8], delivered: &impl Fn() -> u64) -> Result<(), String> {
        let mut line = Line::connect(address).map_err(|error| error.to_string())?;
        while !self.stop.load(Ordering::Acquire) {
            let outstanding = self.sent.load(Ordering::Acquire).saturating_sub(delivered() / self.clients);
            if outstanding >= self.window {
                std::thread::sleep(Duration::from_micros(200));
                continue;
            }
            self.sent.fetch_add(1, Ordering::AcqRel);
            match line.send(request) {
                Ok(201) => self.acknowledged.fetch_add(1, Ordering::AcqRel),
                Ok(status) => return Err(format!("publishing was answered with status {status}")),
                Err(error) => return Err(format!("publishing failed: {error}")),
            };
        }
        Ok(())
    }
}
