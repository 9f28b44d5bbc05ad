//! The exclusive lock on a store directory.

use super::{EmbeddedError, own};
use crate::nats::private;
use rustix::fs::FlockOperation;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// How often a held lock is tried again.
const RETRY: Duration = Duration::from_millis(20);

/// Held while this process or the nats-server that inherited its descriptor lives: `flock` belongs to the open file,
/// which both share, and is free only when both have closed it.
#[derive(Debug)]
pub(super) struct StoreLock {
    file: File,
}

impl StoreLock {
    /// Creates the directory if needed and locks it. Waits a little for a holder that is just dying: after a crash of
    /// Carrick its nats-server is gone within milliseconds.
    pub(super) async fn acquire(store: &Path, patience: Duration) -> Result<Self, EmbeddedError> {
        own::prepare_store(store)?;
        let path = store.join("carrick.lock");
        let mut file = private::file(File::options().read(true).write(true).create(true).truncate(false), &path)?;
        let deadline = Instant::now() + patience;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => tokio::time::sleep(RETRY).await,
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let mut holders = String::new();
                    // The text only helps; the lock itself has already decided.
                    let _ = file.read_to_string(&mut holders);
                    return Err(EmbeddedError::Locked { path: store.to_owned(), holders: holders.trim().to_owned() });
                }
                Err(errno) => return Err(EmbeddedError::store(&path, "locking it")(errno.into())),
            }
        }
        let mut lock = Self { file };
        lock.note(None).map_err(EmbeddedError::store(path, "writing it"))?;
        Ok(lock)
    }

    /// Writes down who holds the lock, for the error of whoever comes next.
    pub(super) fn note(&mut self, server: Option<u32>) -> std::io::Result<()> {
        let own = std::process::id();
        let text = match server {
            Some(server) => format!("carrick (pid {own}) and its nats-server (pid {server})\n"),
            None => format!("carrick (pid {own})\n"),
        };
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(text.as_bytes())
    }

    /// The descriptor that nats-server must inherit.
    pub(super) fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
