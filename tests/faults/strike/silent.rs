//! Packets vanish on a path, nothing is closed, and the path heals: what the kernels hold is then delivered.

use super::{PATIENCE, Scene};
use crate::deployment::number_of;
use crate::paths::{WAYS, address_of, way_in_use};
use crate::proc::eventually;
use std::net::IpAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Longer than it takes to give a connection up.
const SILENCE: Duration = Duration::from_secs(7);
/// What is left of the window, or what goes beyond it.
const MARGIN: Duration = Duration::from_secs(3);

impl Scene<'_> {
    pub(super) fn silence_within(&mut self) -> Result<(), String> {
        self.silence(SILENCE.min(self.deployment.window().saturating_sub(MARGIN)))
    }

    pub(super) fn silence_beyond(&mut self) -> Result<(), String> {
        self.silence(self.deployment.window() + MARGIN)
    }

    /// Between a Carrick and NATS: first on the path that it uses, so that it goes on by another one, then on all.
    /// Between the members of a cluster: on all paths of the one that leads the log.
    fn silence(&mut self, time: Duration) -> Result<(), String> {
        match (self.deployment.nats.is_some(), self.deployment.is_cluster()) {
            (true, _) => {
                let way = eventually(PATIENCE, "a path in use", way_in_use)?;
                let dropped = self.drop_packets(&[way.into()], time);
                let seconds = time.as_secs();
                let what = format!("{dropped} packets of node 0 on one of two paths vanished in {seconds} s");
                self.proof.require(dropped > 0, what);
                self.require_rise(0, "store_connects_total", "connected to NATS again");
                self.silence_node(time)
            }
            (false, false) => self.silence_node(time),
            (false, true) => self.silence_leader(time),
        }
    }

    fn silence_node(&mut self, time: Duration) -> Result<(), String> {
        let connects = self.rises("store_connects_total")[0];
        let dropped = self.drop_packets(&WAYS.map(IpAddr::from), time);
        let what = format!("{dropped} packets between node 0 and NATS vanished in {} s", time.as_secs());
        self.proof.require(dropped > 0, what);
        let again = || (self.rises("store_connects_total")[0] > connects).then_some(());
        let again = eventually(PATIENCE, "another connection to NATS", again);
        self.proof.require(again.is_ok(), "and connected again");
        self.pulse.wait(PATIENCE)
    }

    fn silence_leader(&mut self, time: Duration) -> Result<(), String> {
        let heal_at = Instant::now() + time;
        let leader = self.deployment.jetstream().wait_leader(None);
        self.deployment.paths().silence(&[address_of(number_of(&leader)).into()]);
        let next = eventually(time, "another leader", || self.deployment.jetstream().leadership_besides(&leader));
        sleep(heal_at.saturating_duration_since(Instant::now()));
        let dropped = self.deployment.paths().heal();
        let what = format!("{dropped} packets between {leader} and the other members vanished in {} s", time.as_secs());
        self.proof.require(dropped > 0, what);
        match next {
            Ok(next) => self.proof.note(format!("leader {leader} ⇒ {next}")),
            Err(_) => self.proof.note(format!("{leader} stayed leader")),
        }
        self.pulse.wait(PATIENCE)
    }

    fn drop_packets(&self, addresses: &[IpAddr], time: Duration) -> u64 {
        self.deployment.paths().silence(addresses);
        sleep(time);
        self.deployment.paths().heal()
    }
}
