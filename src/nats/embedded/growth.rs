//! A running server gets more room when others give back some of its disk.

use super::output::Heard;
use super::room;
use super::supervisor::{Supervisor, Told, signal, write_new};
use crate::metrics;
use rustix::process::Signal;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long the server may take to read its configuration again.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(10);

/// In the metric.
pub(super) fn show(limit: u64) {
    metrics::EMBEDDED_NATS_STORE_LIMIT.set(i64::try_from(limit).unwrap_or(i64::MAX));
}

impl Supervisor {
    /// Bytes that JetStream may take now.
    pub(super) async fn measure(&self) -> std::io::Result<u64> {
        let store = self.config.store_dir.clone();
        let measured = tokio::task::spawn_blocking(move || room::limit(&store)).await;
        measured.unwrap_or_else(|panicked| Err(std::io::Error::other(panicked)))
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
    async fn reload(&self, pid: u32, told: &Told, heard: &mut watch::Receiver<Heard>) -> std::io::Result<()> {
        let next = told.file.with_extension("next");
        match std::fs::remove_file(&next) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        write_new(&next, &self.configuration(told))?;
        std::fs::rename(&next, &told.file)?;
        let before = heard.borrow_and_update().reloads;
        signal(pid, Signal::HUP);
        let done = heard.wait_for(|heard| heard.reloads > before);
        match tokio::time::timeout(RELOAD_TIMEOUT, done).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(std::io::Error::other("nats-server does not say that it has read its configuration again")),
        }
    }
}
