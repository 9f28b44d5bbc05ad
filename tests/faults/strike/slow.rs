//! A disk that is slow, and one that stands still: the store answers pings, and stores little or nothing.

use super::{PATIENCE, Scene};
use crate::deployment::number_of;
use std::ops::Range;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Writes in a second, and for how long.
const WRITES: u32 = 15;
const SLOW: Duration = Duration::from_secs(5);
/// How long an acknowledgement takes is seen in the time before.
const BEFORE: Duration = Duration::from_secs(5);
/// Times of standing still, and between them.
const STOPS: usize = 4;
const STOP: Range<Duration> = Duration::from_millis(300)..Duration::from_secs(4);
const BETWEEN: Range<Duration> = Duration::from_millis(300)..Duration::from_millis(1_500);
/// The slowest acknowledgement takes so many times as long as half of them did before.
const SLOWER: u32 = 10;

impl Scene<'_> {
    pub(super) fn slow_disk(&mut self) -> Result<(), String> {
        let leader = self.deployment.jetstream().wait_leader(None);
        let number = number_of(&leader);
        let pid = self.deployment.nats_pid(&leader);
        self.pulse.wait(PATIENCE)?;
        let calm = self.pulse.median(self.began - BEFORE, Instant::now());
        let calm = calm.ok_or("nothing was acknowledged before")?;

        let begun = Instant::now();
        let device = self.deployment.disk(number).device();
        if let Some(limit) = device.limit(pid, WRITES)? {
            sleep(SLOW);
            let (slow, passed) = (self.pulse.longest_pause(begun, Instant::now()), limit.end());
            let (before, after) = (calm.as_secs_f64() * 1e3, slow.as_secs_f64());
            let rate = passed as f64 / SLOW.as_secs_f64();
            let what =
                format!("disk of {leader}: {rate:.0} writes/s, acks took {before:.1} ms, then up to {after:.1} s");
            self.proof.require(slow > calm * SLOWER, what);
        } else {
            self.proof.note("writes cannot be limited on this system (cgroups of version 1 can)");
        }

        let mut times = Vec::new();
        for _ in 0..STOPS {
            let time = self.dice.within(&STOP);
            times.push(self.deployment.disk(number).device().stand_still(time)?);
            sleep(self.dice.within(&BETWEEN));
        }
        let longest = times.iter().max().copied().unwrap_or_default();
        let told: Vec<String> = times.iter().map(|time| format!("{:.1}", time.as_secs_f64())).collect();
        self.pulse.wait(PATIENCE)?;
        let pause = self.pause();
        let what = format!("stood still for {} s, publishing paused for {:.1} s", told.join(", "), pause.as_secs_f64());
        self.proof.require(pause > longest.mul_f64(0.5), what);
        Ok(())
    }
}
