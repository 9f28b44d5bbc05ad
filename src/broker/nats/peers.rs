//! A node that starts remembers nothing; its peers do. It asks them for their witnesses before it trusts the log.

use super::epoch::{LOG_KEY, read_record};
use super::generation::Connection;
use super::witness::Mark;
use super::{Core, SetupError};
use bytes::Bytes;
use futures_util::StreamExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Time for the peers' answers. A peer that does not answer in time compares the log itself, at its own connection.
const PATIENCE: Duration = Duration::from_millis(250);

impl Core {
    /// Takes over the highest witness of the other nodes, unless this node has one of its own.
    pub(super) async fn ask_peers(&self, connection: &Connection, log: &str) -> Result<(), SetupError> {
        let Some((record, _)) = read_record(connection, &self.names.meta_bucket(), LOG_KEY).await? else {
            return Ok(());
        };
        let fits = |mark: &Mark| mark.log == log && mark.epoch == record.epoch;
        if self.witness.get().as_ref().is_some_and(fits) {
            return Ok(());
        }
        if let Some(mark) = self.highest_of_peers(connection, fits).await? {
            tracing::debug!(seq = mark.seq, "witness of the log from a peer");
            self.witness.set(mark);
        }
        Ok(())
    }

    /// The highest witness of other nodes that `fits`, of those that answer in time.
    pub(super) async fn highest_of_peers(
        &self,
        connection: &Connection,
        fits: impl Fn(&Mark) -> bool,
    ) -> Result<Option<Mark>, SetupError> {
        let inbox = connection.client.new_inbox();
        let mut answers = connection.subscribe(inbox.clone()).await?;
        let question = connection.client.publish_with_reply(self.names.witness_subject(), inbox, Bytes::new());
        question.await.map_err(|e| SetupError::retry(e.to_string()))?;
        let deadline = Instant::now() + PATIENCE;
        let mut highest: Option<Mark> = None;
        while let Ok(Some(answer)) = timeout_at(deadline, answers.next()).await {
            // Nobody listens: this node is the first.
            if answer.status.is_some() {
                break;
            }
            let mark = serde_json::from_slice::<Mark>(&answer.payload).ok().filter(&fits);
            if let Some(mark) = mark.filter(|m| highest.as_ref().is_none_or(|h| h.seq < m.seq)) {
                highest = Some(mark);
            }
        }
        Ok(highest)
    }

    /// Answers other nodes until the connection ends.
    pub(super) async fn answer_peers(self: Arc<Self>, connection: Arc<Connection>) {
        let Ok(mut questions) = connection.subscribe(self.names.witness_subject()).await else { return };
        loop {
            let question = tokio::select! {
                question = questions.next() => question,
                () = connection.link.dead.cancelled() => None,
            };
            let Some(question) = question else { return };
            if let (Some(reply), Some(mark)) = (question.reply, self.witness.get()) {
                let text = serde_json::to_vec(&mark).expect("a mark is plain JSON");
                // An asker that hears nothing goes on without.
                let _ = connection.client.publish(reply, Bytes::from(text)).await;
            }
        }
    }
}
