//! The end of a process of the server, and of the store's use.

use super::supervisor::{Process, Supervisor};
use rustix::process::{Pid, Signal};
use std::pin::pin;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

/// How long an end takes that nobody set a limit for: of a process that another one follows, or as the handle was dropped.
pub(super) const DEFAULT_STOP: Duration = Duration::from_secs(5);

/// Told by the handle: when the server must have stopped.
#[derive(Clone)]
pub(super) struct Stop(watch::Receiver<Option<Instant>>);

impl Stop {
    /// Nobody asks for a stop yet. The first one who does says by when.
    pub fn new() -> (watch::Sender<Option<Instant>>, Self) {
        let (ask, asked) = watch::channel(None);
        (ask, Self(asked))
    }

    /// Returns when a stop is asked for, with when it must be over.
    pub async fn asked(&self) -> Instant {
        let mut asked = self.0.clone();
        let by = asked.wait_for(Option::is_some).await.ok().and_then(|by| *by);
        by.unwrap_or_else(|| Instant::now() + DEFAULT_STOP)
    }

    /// Waits for an `end` until `deadline`; from when a stop is asked for that long as this part (one in `parts`) of the time
    /// that it leaves. False: the time is over.
    async fn allows(&self, end: impl Future, deadline: Instant, parts: u32) -> bool {
        let mut end = pin!(end);
        let by = tokio::select! {
            biased;
            _ = &mut end => return true,
            by = self.asked() => by,
            () = sleep_until(deadline) => return false,
        };
        let now = Instant::now();
        timeout_at(now + by.saturating_duration_since(now) / parts, end).await.is_ok()
    }
}

/// Asks for a stop. Who asked first has said by when.
pub(super) fn ask(stop: &watch::Sender<Option<Instant>>, timeout: Duration) {
    stop.send_if_modified(|by| {
        let is_first = by.is_none();
        by.get_or_insert_with(|| Instant::now() + timeout);
        is_first
    });
}

impl Supervisor {
    /// Ends a process: asks, and kills it when its time is over. That is [`DEFAULT_STOP`], or what a stop leaves, also one
    /// that is asked for meanwhile. True if it ended by itself.
    pub(super) async fn finish(&self, mut process: Process, stop: &Stop) -> bool {
        let begun = Instant::now();
        let mut ended = false;
        if self.config.cluster.is_some() {
            // Lame duck: leadership and clients move on first. What takes too long is cut short.
            signal(process.pid, Signal::USR2);
            ended = stop.allows(process.child.wait(), begun + DEFAULT_STOP / 2, 2).await;
        }
        if !ended {
            signal(process.pid, Signal::TERM);
            ended = stop.allows(process.child.wait(), begun + DEFAULT_STOP, 1).await;
        }
        if !ended {
            tracing::warn!(
                context = "enats",
                pid = process.pid,
                seconds = begun.elapsed().as_secs(),
                "nats-server did not stop in time, it is killed"
            );
            if let Err(error) = process.child.kill().await {
                tracing::error!(context = "enats", pid = process.pid, %error, "nats-server cannot be killed");
            }
        }
        // Its log has ended with it.
        let _ = process.output.await;
        ended
    }

    /// Notes that the store was left in order. Whoever is cut short before that leaves it suspect, should the machine be
    /// started anew.
    pub(super) async fn close_store(&self) {
        let mark = self.mark.clone();
        let closed = tokio::task::spawn_blocking(move || mark.close()).await;
        let closed = closed.unwrap_or_else(|panicked| Err(std::io::Error::other(panicked)));
        if let Err(error) = closed {
            tracing::warn!(context = "enats", %error, "cannot flush the store and note its clean end");
        }
    }
}

/// To a child that was not waited for, so the id cannot belong to another process.
pub(super) fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid as i32).expect("a process id is positive");
    if let Err(error) = rustix::process::kill_process(pid, signal) {
        tracing::warn!(context = "enats", %error, "nats-server cannot be signalled");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::sleep;

    const SECOND: Duration = Duration::from_secs(1);

    /// How long an end is waited for that does not come, where a stop is asked for after 2 s, which leaves it so much.
    async fn waits(left: Duration, parts: u32) -> Duration {
        let (asker, stop) = Stop::new();
        let begun = Instant::now();
        let asking = async {
            sleep(2 * SECOND).await;
            ask(&asker, left);
            // Another one changes nothing.
            ask(&asker, 1_000 * SECOND);
        };
        let (allowed, ()) =
            tokio::join!(stop.allows(std::future::pending::<()>(), begun + DEFAULT_STOP, parts), asking);
        assert!(!allowed);
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_says_how_long_an_end_may_take_that_was_begun_before_it() {
        assert_eq!(waits(SECOND, 1).await.as_secs(), 3, "less");
        assert_eq!(waits(30 * SECOND, 1).await.as_secs(), 32, "more");
        assert_eq!(waits(30 * SECOND, 2).await.as_secs(), 17, "half of it");
        assert_eq!(waits(Duration::ZERO, 1).await.as_secs(), 2);
        let (_asker, stop) = Stop::new();
        let begun = Instant::now();
        assert!(!stop.allows(std::future::pending::<()>(), begun + DEFAULT_STOP, 1).await);
        assert_eq!(begun.elapsed().as_secs(), 5, "without a stop");
        assert!(stop.allows(sleep(SECOND), Instant::now() + DEFAULT_STOP, 1).await);
    }
}
