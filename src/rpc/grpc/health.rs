//! What the application behind a connection says of its health (grpc.health.v1): one standing question per connection,
//! about the service that we call. It is no call to the application: it takes no slot and counts nowhere.

use super::channel::Channel;
use crate::metrics;
use crate::rpc::proto::health::health_check_response::ServingStatus;
use crate::rpc::proto::health::health_client::HealthClient;
use crate::rpc::proto::health::{HealthCheckRequest, HealthCheckResponse};
use http::Uri;
use std::time::Duration;
use tokio::task::AbortHandle;
use tonic::{Code, Status, Streaming};

/// The service whose health is asked for.
const SERVICE: &str = "anycable.RPC";
/// Delay before the question is asked again after its stream has broken, doubled each time nothing was heard.
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_secs(60);

/// What was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    Serving,
    NotServing,
    /// The server has no such service: it counts as healthy, and is not asked again.
    NoHealth,
    /// The stream broke: what was heard last still holds.
    Nothing,
}

/// The standing question of one connection.
pub struct Question {
    channel: Channel,
    origin: Uri,
    stream: Option<Streaming<HealthCheckResponse>>,
    /// In a row.
    failures: u32,
}

impl Question {
    pub fn new(channel: Channel, origin: Uri) -> Self {
        Self { channel, origin, stream: None, failures: 0 }
    }

    /// Waits for the next word. The question goes on unless that was [`Word::NoHealth`].
    pub async fn next(&mut self) -> Word {
        if self.failures > 0 && self.stream.is_none() {
            tokio::time::sleep(delay(self.failures)).await;
        }
        let word = word(self.message().await);
        if matches!(word, Word::Nothing) {
            self.stream = None;
            self.failures += 1;
        } else {
            self.failures = 0;
        }
        word
    }

    async fn message(&mut self) -> Result<Option<HealthCheckResponse>, Status> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let mut client = HealthClient::with_origin(self.channel.clone(), self.origin.clone());
                let request = HealthCheckRequest { service: SERVICE.to_owned() };
                none.insert(client.watch(request).await?.into_inner())
            }
        };
        stream.message().await
    }
}

/// A server that does not know the service by name does not say that it is unwell.
fn word(message: Result<Option<HealthCheckResponse>, Status>) -> Word {
    match message {
        Ok(Some(response)) if response.status() == ServingStatus::NotServing => Word::NotServing,
        Ok(Some(_)) => Word::Serving,
        Err(status) if status.code() == Code::Unimplemented => Word::NoHealth,
        Ok(None) | Err(_) => Word::Nothing,
    }
}

fn delay(failures: u32) -> Duration {
    let factor = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    FIRST_DELAY.saturating_mul(factor).min(LONGEST_DELAY)
}

/// The health of one connection; its question ends with it.
#[derive(Default)]
pub struct Health {
    unwell: bool,
    asking: Option<AbortHandle>,
}

impl Health {
    /// The task that waits for the next word.
    pub fn asking(&mut self, task: AbortHandle) {
        self.asking = Some(task);
    }

    pub fn is_unwell(&self) -> bool {
        self.unwell
    }

    /// Whether the word changes anything.
    pub fn hear(&mut self, word: Word) -> bool {
        let unwell = match word {
            Word::NotServing => true,
            Word::Serving | Word::NoHealth => false,
            Word::Nothing => self.unwell,
        };
        let changed = unwell != self.unwell;
        if changed {
            metrics::GRPC_UNHEALTHY.add(if unwell { 1 } else { -1 });
        }
        self.unwell = unwell;
        changed
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        if self.unwell {
            metrics::GRPC_UNHEALTHY.add(-1);
        }
        if let Some(task) = self.asking.take() {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_explicit_word_is_taken_for_unwell() {
        let said = |status: ServingStatus| word(Ok(Some(HealthCheckResponse { status: status.into() })));
        assert_eq!(said(ServingStatus::NotServing), Word::NotServing);
        for status in [ServingStatus::Serving, ServingStatus::ServiceUnknown, ServingStatus::Unknown] {
            assert_eq!(said(status), Word::Serving, "{status:?}");
        }
        assert_eq!(word(Err(Status::unimplemented("no such service"))), Word::NoHealth);
        assert_eq!((word(Ok(None)), word(Err(Status::unavailable("gone")))), (Word::Nothing, Word::Nothing));
    }

    #[test]
    fn a_broken_stream_changes_nothing() {
        let mut health = Health::default();
        assert!(!health.hear(Word::Nothing) && !health.is_unwell());
        assert!(health.hear(Word::NotServing));
        assert!(!health.hear(Word::Nothing) && health.is_unwell());
        assert!(health.hear(Word::Serving) && !health.is_unwell());
    }

    #[test]
    fn questions_that_break_are_asked_less_and_less_often() {
        let seconds: Vec<_> = [1, 2, 3, 7, 40].iter().map(|failures| delay(*failures).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 60, 60]);
    }
}
