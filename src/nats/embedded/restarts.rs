//! One process of the server after another, until a stop is asked for.

use super::ending::Stop;
use super::full_disk::{Patience, SPACE_PERIOD};
use super::server::State;
use super::supervisor::{End, Process, Supervisor};
use crate::log_limit::limited;
use crate::metrics;
use std::time::Duration;

/// Pause before the first restart; doubled for each that follows.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A server that ran this long was healthy: its end starts a new series of pauses.
const HEALTHY: Duration = Duration::from_secs(30);

impl Supervisor {
    /// Watches `first` and its successors until a stop.
    pub(super) async fn run(mut self, first: Process, stop: Stop) {
        if self.keep_running(first, &stop).await {
            self.close_store().await;
        }
        // The lock goes with `self`: whoever sees the end can start another server on the store.
        let Self { status, lock, .. } = self;
        drop(lock);
        status.send_modify(|status| {
            status.state = State::Stopped;
            status.pid = None;
        });
    }

    /// Returns when a stop was asked for and no process is left. True: the last one ended by itself as it was asked to, so
    /// the store is in order.
    async fn keep_running(&mut self, first: Process, stop: &Stop) -> bool {
        let mut limit = first.told.limit;
        let mut process = Some(first);
        let mut pause = FIRST_PAUSE;
        let mut patience = Patience::new(self.first_patience);
        // How the last process has left the store, and its disk.
        let (mut in_order, mut filled) = (false, false);
        let mut no_room = false;
        loop {
            if let Some(mut running) = process.take() {
                let end = self.watch(&mut running, stop, patience.now()).await;
                let healthy = running.since.elapsed();
                limit = running.told.limit;
                if healthy >= HEALTHY {
                    pause = FIRST_PAUSE;
                }
                filled = running.heard.borrow().out_of_space;
                in_order = match end {
                    End::Stop => return self.finish(running, stop).await,
                    End::SpaceIsBack => {
                        tracing::info!(
                            context = "enats",
                            "nats-server met a full disk, and there is room on it again: it is restarted"
                        );
                        patience.restore();
                        let in_order = self.finish(running, stop).await;
                        self.status.send_modify(|status| status.disk_full = false);
                        in_order
                    }
                    End::StillFull => {
                        tracing::warn!(
                            context = "enats",
                            "the store's disk is still full: nats-server is restarted, so that it removes expired messages"
                        );
                        patience.lose(healthy.saturating_sub(patience.now()) >= HEALTHY);
                        pause = FIRST_PAUSE;
                        self.finish(running, stop).await
                    }
                    End::Died(status) => {
                        let said = running.output.await.unwrap_or_default();
                        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
                        tracing::error!(
                            context = "enats",
                            pid = running.pid,
                            status,
                            said = said.join("; "),
                            pause_ms = pause.as_millis() as u64,
                            "nats-server ended, it is restarted"
                        );
                        false
                    }
                };
            }
            self.status.send_modify(|status| {
                status.state = if no_room { State::StorageFull } else { State::Restarting };
                status.disk_full |= no_room;
                status.pid = None;
            });
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = stop.asked() => return in_order,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
            limit = tokio::select! {
                limit = self.limit_at_restart(limit, filled) => limit,
                _ = stop.asked() => return in_order,
            };
            match self.launch(limit).await {
                Ok(started) => {
                    metrics::EMBEDDED_NATS_RESTARTS.inc();
                    self.status.send_modify(|status| status.restarts += 1);
                    process = Some(started);
                    no_room = false;
                }
                Err(error) if error.is_out_of_space() => {
                    (no_room, filled, pause) = (true, true, SPACE_PERIOD);
                    limited!(ERROR, DiskFull, %error, "nats-server cannot be restarted before there is room");
                }
                Err(error) => {
                    no_room = false;
                    tracing::error!(context = "enats", %error, pause_ms = pause.as_millis() as u64, "nats-server cannot be restarted");
                }
            }
        }
    }
}
