//! One more publisher, who publishes one small message after another all the time: how long could nobody publish?

use crate::deployment::Deployment;
use crate::harness::BROADCAST_KEY;
use carrick::client::publisher::OutgoingMeta;
use carrick::client::{Outgoing, Publisher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two messages, and before another node is asked.
const REST: Duration = Duration::from_millis(10);

/// Begun, and acknowledged.
type Ack = (Instant, Instant);

pub struct Pulse {
    acks: Arc<Mutex<Vec<Ack>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pulse {
    /// Publishes through all nodes of a deployment, the next one after each failure, with the same key.
    pub fn start(deployment: &Deployment) -> Self {
        let urls: Vec<String> =
            deployment.nodes().iter().map(|node| format!("http://{}/_broadcast", node.broadcast_address())).collect();
        let (acks, stop) = (Arc::<Mutex<Vec<Ack>>>::default(), Arc::<AtomicBool>::default());
        let (noted, stopped) = (acks.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime can be started").block_on(beat(&urls, &noted, &stopped));
        });
        Self { acks, stop, thread: Some(thread) }
    }

    /// The longest time without an acknowledgement that began or ended between these moments.
    pub fn longest_pause(&self, from: Instant, to: Instant) -> Duration {
        let acks = self.acks.lock().expect("the publisher does not panic");
        let times = || acks.iter().map(|(_, at)| *at);
        let before = times().rev().find(|at| *at < from).unwrap_or(from);
        let after = times().find(|at| *at > to).unwrap_or(to);
        let within = times().filter(|at| (from..=to).contains(at));
        let times: Vec<Instant> = std::iter::once(before).chain(within).chain([after]).collect();
        times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// What half of the messages acknowledged between these moments took at most; `None` if there are none.
    pub fn median(&self, from: Instant, to: Instant) -> Option<Duration> {
        let acks = self.acks.lock().expect("the publisher does not panic");
        let within = acks.iter().filter(|(_, at)| (from..=to).contains(at));
        let mut times: Vec<Duration> = within.map(|(begun, at)| *at - *begun).collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied()
    }

    /// Waits until a message is acknowledged that was begun after now.
    pub fn wait(&self, patience: Duration) -> Result<(), String> {
        let before = self.acks.lock().expect("the publisher does not panic").len();
        // The one after the next was certainly begun later.
        crate::proc::eventually(patience, "an acknowledgement", || {
            (self.acks.lock().expect("the publisher does not panic").len() >= before + 2).then_some(())
        })
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of it shows as missing acknowledgements.
            let _ = thread.join();
        }
    }
}

async fn beat(urls: &[String], acks: &Mutex<Vec<Ack>>, stop: &AtomicBool) {
    let publisher = |url: &String| Publisher::new(url, Some(BROADCAST_KEY), Duration::ZERO);
    let all: Result<Vec<_>, _> = urls.iter().map(publisher).collect();
    let mut all = all.expect("addresses are good");
    let body = Outgoing { stream: "pulse", data: "1", meta: OutgoingMeta::default() }.to_body();
    let mut turn = 0;
    for number in 0_u64.. {
        let key = format!("pulse-{number}");
        let begun = Instant::now();
        loop {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let count = all.len();
            if all[turn % count].publish(body.clone(), &key).await.is_ok() {
                break;
            }
            turn += 1;
            tokio::time::sleep(REST).await;
        }
        acks.lock().expect("nobody panics with the lock").push((begun, Instant::now()));
        tokio::time::sleep(REST).await;
    }
}
