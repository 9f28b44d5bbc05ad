//! Looking after a ready connection: the logs, their epochs, our lease, the policies and the live feed, until the connection
//! is lost or must be given up.

use super::api::ApiError;
use super::config::{bucket_stream, key_subject};
use super::generation::Generation;
use super::policies::POLICIES_KEY;
use super::pulse::{Pulse, Verdict};
use super::{Core, SetupError};
use futures_util::StreamExt;
use futures_util::stream::{BoxStream, SelectAll, select};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::MissedTickBehavior;

/// How often the log, its epoch and our lease are looked after.
const CHECK_PERIOD: Duration = Duration::from_secs(5);
const MIN_CHECK: Duration = Duration::from_secs(2);
/// Checks that may fail in a row before the broker says it is not ready: one election is not an outage.
const TOLERATED_FAILURES: u32 = 2;

impl Core {
    /// Looks after a ready connection until it is lost or must be given up.
    pub(super) async fn maintain(&self, generation: &Generation, pulse: Pulse) {
        tokio::select! {
            () = self.look_after(generation, pulse) => {}
            // Beside it: a lease must not run out because handovers take their time.
            () = self.gather_leaders(generation) => {}
        }
    }

    async fn look_after(&self, generation: &Generation, mut pulse: Pulse) {
        let connection = &generation.connection;
        let shortest = generation.table.shortest_ttl().unwrap_or(CHECK_PERIOD * 4);
        let mut tick = tokio::time::interval(CHECK_PERIOD.min(shortest.max(MIN_CHECK) / 4));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Hints only: what they announce is read from the leader, and the timer finds what they miss.
        let bucket = self.names.meta_bucket();
        let (Ok(records), Ok(policies)) = (
            connection.subscribe(key_subject(&bucket, &super::epoch::log_key("*"))).await,
            connection.subscribe(key_subject(&bucket, POLICIES_KEY)).await,
        ) else {
            return;
        };
        let mut records = select(records, policies);
        let Ok(mut elected) = leaders(generation).await else { return };
        let mut failures = 0;
        loop {
            tokio::select! {
                () = generation.dead().cancelled() => return,
                _ = tick.tick() => {
                    if let Err(error) = self.renew_lease(connection).await {
                        tracing::debug!(%error, "cannot renew this node's lease");
                    } else {
                        self.storage_full.store(false, Ordering::Relaxed);
                    }
                }
                () = self.nudge.notified() => {}
                _ = records.next() => {}
                // What the old leader stored in its last moment may never have reached the live feed.
                Some(place) = elected.next() => generation.live.all_lagged(&*self.feed, place),
            }
            if connection.link.slow.swap(false, Ordering::Relaxed) {
                tracing::warn!("the live feed was faster than this node: comparing the heads of all open streams");
                generation.live.all_lagged(&*self.feed, None);
            }
            let outcome = tokio::select! {
                outcome = async {
                    self.check(generation).await?;
                    Ok(match self.keep_settings(generation).await? {
                        Some(reason) => Verdict::Broken(reason),
                        None => pulse.check(self, generation).await,
                    })
                } => outcome,
                () = generation.dead().cancelled() => return,
            };
            match outcome {
                Ok(Verdict::Renew) => return,
                Ok(verdict) => {
                    failures = 0;
                    let full = self.storage_full.load(Ordering::Relaxed) || *self.disk_full.borrow();
                    let reason = if full { "storage full" } else { broken(&verdict) };
                    self.set_ready(reason.is_empty(), true, reason);
                }
                Err(SetupError::PoliciesChanged) => {
                    tracing::info!("the history policies have changed: adopting them");
                    return;
                }
                Err(error @ (SetupError::LogGone(_) | SetupError::Fatal(_))) => {
                    tracing::error!(%error, "setting up logs and buckets again");
                    return;
                }
                Err(error) => {
                    failures += 1;
                    tracing::debug!(%error, failures, "cannot check the log");
                    if failures > TOLERATED_FAILURES {
                        self.set_ready(false, false, &error.to_string());
                        if connection.clustered() {
                            // This server may be cut off from the others.
                            return;
                        }
                    }
                }
            }
            // Nudges come in crowds.
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
                () = generation.dead().cancelled() => return,
            }
        }
    }

    /// Everything we need is there, and the logs are the ones we know.
    async fn check(&self, generation: &Generation) -> Result<(), SetupError> {
        let connection = &generation.connection;
        connection.api.info(&generation.commands).await?;
        if self.config.sessions() {
            connection.api.info(&bucket_stream(&self.names.sessions_bucket())).await?;
        }
        for log in generation.own_logs() {
            let epoch = self.verify(connection, &log.policy, &log.name, &log.witness).await?;
            self.adopt_epoch(log, &epoch);
        }
        self.follow_policies(connection, &generation.table).await
    }

    fn set_ready(&self, ready: bool, readable: bool, reason: &str) {
        let changed = self.status.send_if_modified(|status| {
            let changed = status.ready != ready || *status.reason != *reason;
            status.ready = ready;
            status.readable = readable;
            status.reason = Arc::from(reason);
            changed
        });
        match (changed, ready) {
            (true, true) => tracing::info!("NATS is ready"),
            (true, false) => tracing::warn!(reason, "NATS is not ready"),
            _ => {}
        }
    }
}

/// Why the live feed is not whole; empty if it is.
pub(super) fn broken(verdict: &Verdict) -> &str {
    match verdict {
        Verdict::Broken(reason) => reason,
        Verdict::Whole | Verdict::Renew => "",
    }
}

/// Elections of the logs' leaders, as the place of their policy; of the command log where nothing is stored.
async fn leaders(generation: &Generation) -> Result<SelectAll<BoxStream<'static, Option<usize>>>, ApiError> {
    let logs = generation.own_logs().map(|log| (log.name.clone(), Some(log.place)));
    let mut led: Vec<(String, Option<usize>)> = logs.collect();
    if led.is_empty() {
        led.push((generation.commands.clone(), None));
    }
    let mut elected = SelectAll::new();
    for (name, place) in led {
        let subject = format!("$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED.{name}");
        elected.push(generation.connection.subscribe(subject).await?.map(move |_| place).boxed());
    }
    Ok(elected)
}
