//! A running server gets more room when others give back some of its disk.

use super::output::Heard;
use super::room::{self, Room};
use super::supervisor::{Supervisor, Told, signal, write_new};
use crate::metrics;
use rustix::process::Signal;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long the server may take to read its configuration again.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(10);

/// In the metric.
pub(super) fn show(limit: u64) {
    metrics::EMBEDDED_NATS_STORE_LIMIT.set(i64::try_from(limit).unwrap_or(i64::MAX));
}

impl Supervisor {
    /// The room that JetStream has now. The look at a large store takes long; it ends when this is dropped.
    pub(super) async fn measure(&self) -> std::io::Result<Room> {
        let (store, look) = (self.config.store_dir.clone(), self.look);
        let given_up = CancellationToken::new();
        let _ends = given_up.clone().drop_guard();
        let measured = tokio::task::spawn_blocking(move || look(&store, &given_up)).await;
        measured.unwrap_or_else(|panicked| Err(std::io::Error::other(panicked)))
    }

    /// Bytes that JetStream may take after a restart. Clients do not wait for a long look: the limit of `before` holds on,
    /// and [`Self::follow_room`] raises it.
    pub(super) async fn limit_at_restart(&self, before: u64) -> u64 {
        match tokio::time::timeout(self.look_patience, self.measure()).await {
            Ok(Ok(measured)) => measured.limit,
            Ok(Err(error)) => {
                tracing::warn!(context = "enats", %error, "the store cannot be measured, its limit stays");
                before
            }
            Err(_) => before,
        }
    }

    /// Lets a running server use what others give back of the disk.
    pub(super) async fn follow_room(&self, pid: u32, told: &mut Told, mut heard: watch::Receiver<Heard>) {
        let mut pause = room::pause_after(Duration::ZERO);
        loop {
            tokio::time::sleep(pause).await;
            let begun = Instant::now();
            let now = match self.measure().await {
                Ok(now) => now,
                Err(error) => {
                    tracing::warn!(context = "enats", %error, "the store cannot be measured, its limit stays");
                    continue;
                }
            };
            pause = room::pause_after(begun.elapsed());
            if !room::is_worth_raising(told.max_store, now) {
                continue;
            }
            let now = now.limit;
            let before = std::mem::replace(&mut told.max_store, now);
            match self.reload(pid, told, &mut heard).await {
                Ok(()) => {
                    show(now);
                    tracing::info!(
                        context = "enats",
                        before,
                        now,
                        "there is more room on the store's disk: its limit is raised"
                    );
                }
                Err(error) => {
                    told.max_store = before;
                    tracing::warn!(context = "enats", %error, before, now, "the limit of the store cannot be raised");
                }
            }
        }
    }

    /// Has the server read a configuration that differs from the one before.
    pub(super) async fn reload(
        &self,
        pid: u32,
        told: &Told,
        heard: &mut watch::Receiver<Heard>,
    ) -> std::io::Result<()> {
        let file = told.file();
        let next = file.with_extension("next");
        match std::fs::remove_file(&next) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        write_new(&next, &self.configuration(told))?;
        std::fs::rename(&next, &file)?;
        told.run.check()?;
        let before = heard.borrow_and_update().reloads;
        signal(pid, Signal::HUP);
        let done = heard.wait_for(|heard| heard.reloads > before);
        match tokio::time::timeout(RELOAD_TIMEOUT, done).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(std::io::Error::other("nats-server does not say that it has read its configuration again")),
        }
    }
}
