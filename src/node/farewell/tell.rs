//! One call about who left or came back: claimed where others may make it, too, made, and put off where the application is
//! not reached.

use super::{Farewells, Kind, LEFT, NOTE_WAIT, Notice, note};
use crate::broker::{Life, SaveError, Unavailable};
use crate::log_limit::limited;
use crate::metrics;
use crate::protocol::Sid;
use crate::rpc::RpcError;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// Where the application cannot be reached, calls wait this long at first, twice as long each time, and so long at most.
/// Below [`super::MARGIN`]: other nodes see that a claimed call is not forgotten.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Whose it is to say that a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    /// With this revision of the note.
    Ours(u64),
    Anothers,
    /// It did not end.
    Restored,
}

impl Farewells {
    pub(super) async fn tell(self: Arc<Self>, notice: Notice) -> Sid {
        let Notice { kind, sid, call } = notice;
        // As it is tried again where the application is not reached.
        let mut again = kind;
        let told = match kind {
            Kind::Restored if self.knows_no_restores.load(Ordering::Relaxed) => return sid,
            Kind::Restored => self.application.restore(&sid, call.clone()).await,
            Kind::Left => self.application.disconnect(&sid, call.clone()).await,
            Kind::LeftUnlessRestored | Kind::Claimed(_) => {
                let revision = if let Kind::Claimed(revision) = kind { revision } else { 0 };
                match self.claim(&sid, revision).await {
                    Claim::Ours(revision) => {
                        again = Kind::Claimed(revision);
                        self.application.disconnect(&sid, call.clone()).await
                    }
                    Claim::Restored => {
                        metrics::FAREWELLS_SPARED.inc();
                        if let Some(book) = &self.book {
                            book.remove(&sid);
                        }
                        return sid;
                    }
                    Claim::Anothers => {
                        if let Some(book) = &self.book {
                            book.leave_to_others(&sid);
                        }
                        return sid;
                    }
                }
            }
        };
        let unreached = matches!(told, Err(RpcError::Unreachable(_)));
        if !unreached {
            self.reached();
        }
        if let Some(book) = self.book.as_ref().filter(|_| matches!(again, Kind::Claimed(_))) {
            match unreached {
                // At the end of this process it is left to the other nodes, or to the next one.
                true if self.queue().end.is_some() => book.leave_to_others(&sid),
                true => {}
                false => book.remove(&sid),
            }
        }
        match told {
            Ok(()) => {}
            Err(RpcError::Unimplemented(method)) if kind == Kind::Restored => {
                if !self.knows_no_restores.swap(true, Ordering::Relaxed) {
                    tracing::info!(
                        context = "disconnector",
                        method,
                        "the application has no such method and is not told of restores"
                    );
                }
            }
            Err(error) if unreached && self.postpone(Notice { kind: again, sid: sid.clone(), call }) => {
                tracing::debug!(context = "disconnector", %error, ?kind, "a call waits until the application is reached");
            }
            Err(error) => limited!(WARN, DisconnectNotTold, %error, ?kind, "the application could not be told"),
        }
        sid
    }

    /// The application is not there: the call goes back to where it was taken from, and all of them wait. False at the end
    /// of this process.
    fn postpone(&self, notice: Notice) -> bool {
        let mut queue = self.queue();
        if queue.end.is_some() {
            return false;
        }
        let now = Instant::now();
        // Calls that were under way together failed together.
        if queue.resume_at.is_none_or(|at| at <= now) {
            let pause = FIRST_PAUSE.saturating_mul(1_u32.checked_shl(queue.outages).unwrap_or(u32::MAX));
            queue.resume_at = Some(now + pause.min(LONGEST_PAUSE));
            queue.outages += 1;
            if queue.outages == 1 {
                limited!(WARN, ApplicationUnreached, "the application is not reached; calls about who left wait");
            }
        }
        metrics::FAREWELLS.add(1);
        if queue.ready.len() >= self.config.backlog {
            // It is the oldest one.
            self.dropped(Some(notice));
        } else {
            queue.ready.push_front(notice);
        }
        true
    }

    /// The application has answered, whatever it was.
    fn reached(&self) {
        let mut queue = self.queue();
        if queue.outages > 0 {
            (queue.outages, queue.resume_at) = (0, None);
            limited!(INFO, ApplicationReached, "the application is reached again");
        }
    }

    /// Claims the right to say that this session ended; a note is in the way if it was restored, or somebody else has
    /// claimed it (since `revision`). A store that cannot be asked leaves it open: rather one call too many than none.
    async fn claim(&self, sid: &Sid, revision: u64) -> Claim {
        let unknown = Claim::Ours(revision);
        let (broker, key) = (self.hub.broker(), note(sid));
        let claiming = async {
            match broker.save_session(&key, Bytes::from_static(LEFT), Some(revision), Life::Last).await {
                Ok(revision) => Claim::Ours(revision),
                Err(SaveError::Unavailable(_) | SaveError::Full(_) | SaveError::TooLarge) => unknown,
                Err(SaveError::Conflict) => match broker.load_session(&key).await {
                    Ok(Some(note)) if note.body == LEFT => Claim::Anothers,
                    Ok(Some(_)) => Claim::Restored,
                    Ok(None) | Err(Unavailable(_)) => unknown,
                },
            }
        };
        tokio::time::timeout(NOTE_WAIT, claiming).await.unwrap_or(unknown)
    }
}
