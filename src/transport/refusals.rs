//! Turning a connection away before anything of it is read.

use super::connections::Refusal;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

/// Connections that are turned away with a word at the same time; further ones are closed without.
const AT_ONCE: usize = 16;

/// How long a client may take to hear the word.
const PATIENCE: Duration = Duration::from_millis(500);

/// What else the client says meanwhile, at most.
const READ_AT_MOST: u64 = 64 * 1024;

const FULL: &str =
    "HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
const TOO_MANY: &str =
    "HTTP/1.1 429 Too Many Requests\r\nretry-after: 5\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

pub(super) struct Refusals {
    turns: Arc<Semaphore>,
    tracker: TaskTracker,
}

impl Refusals {
    pub fn new(tracker: TaskTracker) -> Self {
        Self { turns: Arc::new(Semaphore::new(AT_ONCE)), tracker }
    }

    /// Closes the connection, with an answer where one can be given: not before a TLS handshake.
    pub fn refuse(&self, mut tcp: TcpStream, refusal: Refusal, is_tls: bool) {
        let Ok(turn) = self.turns.clone().try_acquire_owned() else { return };
        if is_tls {
            return;
        }
        self.tracker.spawn(async move {
            let _turn = turn;
            let answer = match refusal {
                Refusal::Full => FULL,
                Refusal::Address => TOO_MANY,
            };
            let telling = async {
                tcp.write_all(answer.as_bytes()).await?;
                tcp.shutdown().await?;
                // A socket that is closed with something unread in it takes the answer back.
                tokio::io::copy(&mut tcp.take(READ_AT_MOST), &mut tokio::io::sink()).await
            };
            // Whoever does not listen is not told.
            let _ = tokio::time::timeout(PATIENCE, telling).await;
        });
    }
}
