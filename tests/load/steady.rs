//! A publisher that keeps to a rate whatever the server does, so that a stall is seen in the latencies behind it.

use crate::post::{Line, data, message, request};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub struct Steady {
    stop: Arc<AtomicBool>,
    published: Arc<AtomicU64>,
    thread: JoinHandle<Result<(), String>>,
}

impl Steady {
    /// Publishes so many messages per second to a stream. The data of each starts with what `stamp` makes of its number
    /// (from 1 on) and of the moment at which it was due.
    pub fn start(
        address: &str,
        stream: &str,
        rate: u64,
        payload: usize,
        stamp: impl Fn(u64, Instant) -> u64 + Send + 'static,
    ) -> Self {
        let (stop, published) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&published));
        let (address, stream) = (address.to_owned(), stream.to_owned());
        let thread = std::thread::spawn(move || {
            let mut line = Line::connect(&address).map_err(|error| format!("cannot publish: {error}"))?;
            let began = Instant::now();
            let mut number = 0;
            while !stopped.load(Ordering::Acquire) {
                number += 1;
                let due = began + Duration::from_secs_f64(number as f64 / rate.max(1) as f64);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                let text = data(&format!("{:012} ", stamp(number, due)), payload);
                match line.send(&request(&address, &message(&stream, &text))) {
                    Ok(201) => count.fetch_add(1, Ordering::AcqRel),
                    Ok(status) => return Err(format!("publishing was answered with status {status}")),
                    Err(error) => return Err(format!("publishing failed: {error}")),
                };
            }
            Ok(())
        });
        Self { stop, published, thread }
    }

    /// Stops it; answers with the number of messages, all acknowledged.
    pub fn stop(self) -> Result<u64, String> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().map_err(|_| "the publishing thread panicked".to_owned())??;
        Ok(self.published.load(Ordering::Acquire))
    }
}

/// Publishes messages whose data starts with these numbers, in their order.
pub fn publish_numbers(
    address: &str,
    stream: &str,
    numbers: std::ops::RangeInclusive<u64>,
    payload: usize,
) -> Result<(), String> {
    /// Messages of one request: items of a batch keep their order.
    const BATCH: usize = 500;
    let mut line = Line::connect(address).map_err(|error| format!("cannot publish: {error}"))?;
    let numbers: Vec<u64> = numbers.collect();
    for batch in numbers.chunks(BATCH) {
        let items: Vec<_> =
            batch.iter().map(|number| message(stream, &data(&format!("{number:012} "), payload))).collect();
        match line.send(&request(address, &format!("[{}]", items.join(",")))) {
            Ok(201) => {}
            Ok(status) => return Err(format!("a batch was answered with status {status}")),
            Err(error) => return Err(format!("a batch failed: {error}")),
        }
    }
    Ok(())
}
