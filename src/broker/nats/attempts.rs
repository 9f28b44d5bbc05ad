//! Requests that are repeated until they are answered.

use super::Core;
use super::api::ApiError;
use super::generation::Generation;
use crate::broker::Unavailable;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

impl Core {
    /// Asks within the broker timeout, over whichever connection there is, until there is an answer.
    pub(super) async fn asking<T, F>(&self, ask: impl Fn(Arc<Generation>) -> F) -> Result<T, Unavailable>
    where
        F: Future<Output = Result<T, ApiError>>,
    {
        let mut attempts = Attempts::new(self, self.config.broker_timeout);
        loop {
            match ask(attempts.next().await?).await {
                Ok(answer) => return Ok(answer),
                Err(error) => attempts.failed(error),
            }
        }
    }
}

/// Repeats a request over whichever connection there is, until a deadline.
pub(super) struct Attempts<'a> {
    core: &'a Core,
    deadline: Instant,
    pause: Duration,
    reason: Option<String>,
}

impl<'a> Attempts<'a> {
    pub(super) fn new(core: &'a Core, budget: Duration) -> Self {
        Self { core, deadline: Instant::now() + budget, pause: Duration::ZERO, reason: None }
    }

    /// The connection for the next attempt.
    pub(super) async fn next(&mut self) -> Result<Arc<Generation>, Unavailable> {
        if !self.pause.is_zero() {
            tokio::time::sleep(self.pause).await;
        }
        let found = match Instant::now() < self.deadline {
            true => timeout_at(self.deadline, self.core.wait_for_generation()).await.ok(),
            false => None,
        };
        found.ok_or_else(|| {
            Unavailable(self.reason.take().unwrap_or_else(|| self.core.status.borrow().reason.to_string()))
        })
    }

    pub(super) fn failed(&mut self, error: impl std::fmt::Display) {
        if self.reason.replace(error.to_string()).is_some() {
            // Once is a lagging replica; twice may be a log that is gone.
            self.core.nudge.notify_one();
        }
        self.pause = (self.pause * 2).clamp(Duration::from_millis(5), Duration::from_millis(200));
    }
}
