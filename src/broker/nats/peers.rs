//! A node that starts remembers nothing; its peers do. It asks them for their witnesses before it trusts the log.

use super::epoch::{log_key, read_record};
use super::generation::Connection;
use super::logs::Found;
use super::witness::Mark;
use super::{Core, SetupError};
use crate::broker::Table;
use bytes::Bytes;
use futures_util::StreamExt;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Time for the peers' answers. A peer that does not answer in time compares the log itself, at its own connection.
const PATIENCE: Duration = Duration::from_millis(250);

impl Core {
    /// Takes over the highest witness that other nodes have of each log of which this node has none of its own.
    pub(super) async fn ask_peers(
        &self,
        connection: &Connection,
        table: &Table,
        logs: &[Option<Found>],
    ) -> Result<(), SetupError> {
        // Log and epoch.
        let mut wanted: Vec<(String, String)> = Vec::new();
        for (policy, found) in table.policies().iter().zip(logs) {
            let Some(found) = found else { continue };
            let record = read_record(connection, &self.names.meta_bucket(), &log_key(&policy.name)).await?;
            let Some((record, _)) = record else { continue };
            let held = self.witness(&found.name).get();
            if held.is_none_or(|mark| mark.log != found.name || mark.epoch != record.epoch) {
                wanted.push((found.name.clone(), record.epoch));
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        for (log, mark) in self.highest_of_peers(connection, &wanted).await? {
            tracing::debug!(log, seq = mark.seq, "witness of the log from a peer");
            self.witness(&log).set(mark);
        }
        Ok(())
    }

    /// The highest witness that other nodes have of each of these logs in this epoch, of those that answer in time.
    pub(super) async fn highest_of_peers(
        &self,
        connection: &Connection,
        wanted: &[(String, String)],
    ) -> Result<HashMap<String, Mark>, SetupError> {
        let inbox = connection.client.new_inbox();
        let mut answers = connection.subscribe(inbox.clone()).await?;
        let question = connection.client.publish_with_reply(self.names.witness_subject(), inbox, Bytes::new());
        question.await.map_err(|e| SetupError::retry(e.to_string()))?;
        let deadline = Instant::now() + PATIENCE;
        let mut highest: HashMap<String, Mark> = HashMap::new();
        while let Ok(Some(answer)) = timeout_at(deadline, answers.next()).await {
            // Nobody listens: this node is the first.
            if answer.status.is_some() {
                break;
            }
            let Ok(mark) = serde_json::from_slice::<Mark>(&answer.payload) else { continue };
            let fits = wanted.iter().any(|(log, epoch)| *log == mark.log && *epoch == mark.epoch);
            if fits && highest.get(&mark.log).is_none_or(|held| held.seq < mark.seq) {
                highest.insert(mark.log.clone(), mark);
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
            let Some(reply) = question.reply else { continue };
            for mark in self.witnesses().iter().filter_map(|witness| witness.get()) {
                let text = serde_json::to_vec(&mark).expect("a mark is plain JSON");
                // An asker that hears nothing goes on without.
                let _ = connection.client.publish(reply.clone(), Bytes::from(text)).await;
            }
        }
    }
}
