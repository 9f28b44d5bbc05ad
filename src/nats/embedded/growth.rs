//! How much a server may store: at a restart, and a running one when others give back some of its disk.

use super::ending::signal;
use super::output::Heard;
use super::room::{self, Limit, Room};
use super::supervisor::{Supervisor, Told, write_new};
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

    /// What JetStream may take after a restart. Clients do not wait for a long look: the limit of `before` holds on, and
    /// [`Self::follow_room`] raises it. But where the server before had `filled` the disk, others may have taken what that
    /// limit was made of. It would be filled again, so the limit is brought down to what is free.
    pub(super) async fn limit_at_restart(&self, before: Limit, filled: bool) -> Limit {
        match tokio::time::timeout(self.look_patience, self.measure()).await {
            Ok(Ok(room)) => return Limit::of(room),
            Ok(Err(error)) => {
                tracing::warn!(context = "enats", %error, "the store cannot be measured, its limit stays")
            }
            Err(_) => {}
        }
        let kept = before.without_a_look();
        if !filled {
            return kept;
        }
        match (self.free)(&self.config.store_dir) {
            Ok(free) => kept.within(free),
            Err(error) => {
                tracing::warn!(context = "enats", %error, "the disk of the store cannot be measured, its limit stays");
                kept
            }
        }
    }

    /// Lets a running server use what others give back of the disk.
    pub(super) async fn follow_room(&self, pid: u32, told: &mut Told, mut heard: watch::Receiver<Heard>) {
        // A limit that was made without a look may be far too low.
        let mut pause = if told.limit.is_of_a_look() { room::pause_after(Duration::ZERO) } else { Duration::ZERO };
        loop {
            tokio::time::sleep(pause).await;
            let begun = Instant::now();
            let measured = self.measure().await;
            pause = room::pause_after(begun.elapsed());
            let now = match measured {
                Ok(now) => now,
                Err(error) => {
                    tracing::warn!(context = "enats", %error, "the store cannot be measured, its limit stays");
                    continue;
                }
            };
            let raised = told.limit.raised(now);
            told.limit.note(now);
            let Some(raised) = raised else { continue };
            let before = std::mem::replace(&mut told.limit, raised);
            let (was, now) = (before.bytes, raised.bytes);
            match self.reload(pid, told, &mut heard).await {
                Ok(()) => {
                    show(now);
                    tracing::info!(
                        context = "enats",
                        before = was,
                        now,
                        "there is more room on the store's disk: its limit is raised"
                    );
                }
                Err(error) => {
                    told.limit = before;
                    tracing::warn!(context = "enats", %error, before = was, now, "the limit of the store cannot be raised");
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
