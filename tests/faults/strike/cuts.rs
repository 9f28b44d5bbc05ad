//! Networks cut, by proxies of ours: between a node and NATS, and between nats-servers.

use super::{PATIENCE, Scene};
use crate::proc::eventually;
use std::thread::sleep;
use std::time::{Duration, Instant};

const CUT: Duration = Duration::from_secs(5);
/// A cut connection is cut again as soon as it is made.
const CUT_AGAIN: Duration = Duration::from_millis(50);
/// Servers are cut off from each other for longer than their election timeouts.
const ISOLATION: Duration = Duration::from_secs(9);
/// Live messages dropped in a row, after some that pass, and how often.
const PASS: u64 = 20;
const DROP: u64 = 30;
const DROPS: usize = 4;

impl Scene<'_> {
    pub(super) fn cut_node(&mut self) -> Result<(), String> {
        let until = Instant::now() + CUT;
        let mut cut = 0;
        while Instant::now() < until {
            cut += self.deployment.proxies.iter().map(|proxy| proxy.cut()).sum::<usize>();
            sleep(CUT_AGAIN);
        }
        self.proof.require(cut > 0, format!("{cut} connections cut in {} s", CUT.as_secs()));
        self.require_rise(0, "store_connects_total", "connected to NATS again");
        Ok(())
    }

    pub(super) fn drop_live(&mut self) -> Result<(), String> {
        let mut dropped = 0;
        for _ in 0..DROPS {
            let proxies = &self.deployment.proxies;
            proxies.iter().for_each(|proxy| proxy.lose_live(PASS, DROP));
            let lost = || proxies.iter().map(|proxy| proxy.lost()).sum::<u64>();
            // The node listens through one of them.
            let acted = eventually(PATIENCE, "dropped messages", || (lost() >= DROP).then_some(()));
            dropped += lost();
            acted.map_err(|error| format!("{error}: {dropped}"))?;
        }
        self.proof.require(dropped >= DROP * DROPS as u64, format!("{dropped} live messages dropped"));
        self.require_rise(0, "feed_gaps_repaired_total", "gaps repaired");
        let lost = self.rises("feed_gaps_lost_total")[0];
        self.proof.require(lost == 0, format!("gaps given up: {lost}"));
        Ok(())
    }

    pub(super) fn isolate_leader(&mut self) -> Result<(), String> {
        let leader = self.deployment.jetstream().wait_leader(None);
        self.isolate(&leader, true)?;
        self.require_election();
        Ok(())
    }

    pub(super) fn isolate_follower(&mut self) -> Result<(), String> {
        let follower = self.follower();
        self.isolate(&follower, false)
    }

    fn isolate(&mut self, name: &str, leads: bool) -> Result<(), String> {
        let heal_at = Instant::now() + ISOLATION;
        let refused = self.deployment.network().refused();
        let cut = self.deployment.network().isolate(name);
        self.proof.require(cut > 0, format!("{cut} routes of {name} cut"));
        if leads {
            let next = self.deployment.jetstream().wait_leader(Some(name));
            self.proof.note(format!("leader {name} ⇒ {next}"));
        } else {
            let missed = || self.deployment.jetstream().misses(name).then_some(());
            let missed = eventually(ISOLATION, "the leader misses it", missed);
            self.proof.require(missed.is_ok(), format!("the others miss {name}"));
        }
        sleep(heal_at.saturating_duration_since(Instant::now()));
        let refused = self.deployment.network().refused() - refused;
        self.proof.require(refused > 0, format!("{refused} new routes refused in {} s", ISOLATION.as_secs()));
        self.deployment.network().heal();
        Ok(())
    }
}
