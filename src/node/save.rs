//! Keeping what is stored of a session up to date: one [write](super::writing) at a time, the newest state wins.
//!
//! A write belongs to the connection, not to the command that waits for it: who gives up waiting leaves it to the next one,
//! and the connection itself goes on with it ([`Client::catch_up`]).

use super::client::Client;
use super::saver::NotSaved;
use super::stored::{discard, forget_with};
use super::supersede;
use super::writing::{Course, Extent, Write, Written};
use crate::broker::SessionKey;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// How long a command waits for its commit before it goes on without.
const COMMIT_WAIT: Duration = Duration::from_secs(2);

/// How long an unsubscription waits for its commit.
const REMOVAL_WAIT: Duration = Duration::from_secs(1);

/// How long a removal waits for what its command needs besides, before it is committed alone.
const BESIDE_WAIT: Duration = Duration::from_millis(50);

/// Pause before a removal that could not be written is tried again.
const RETRY: Duration = Duration::from_millis(500);

impl Client {
    /// Commits the session's present state, unless it is stored already. Waits a bounded time; a session that could not
    /// be stored cannot be resumed until a later commit succeeds.
    pub async fn commit(&self) -> Result<(), NotSaved> {
        self.save_within(COMMIT_WAIT, Write::Changes).await
    }

    /// Commits a state that takes something away. If that fails, or whoever waits for it is dropped, the older, larger
    /// state must not be resumed: [`Session::shrunk`] tells, and it is replaced or deleted as soon as the store answers,
    /// by [`Self::catch_up`] or, when the connection is over, by [`Self::finish`].
    ///
    /// [`Session::shrunk`]: crate::session::Session::shrunk
    pub async fn commit_removal(&self) -> Result<(), NotSaved> {
        self.save_within(REMOVAL_WAIT, Write::Changes).await
    }

    /// Waits for what a command needs before its commit. If that takes its time, what the command has `removed` already is
    /// committed meanwhile: it waits for nobody.
    pub async fn beside_removal<T>(&self, removed: bool, work: impl Future<Output = T>) -> T {
        if !removed {
            return work.await;
        }
        let mut work = std::pin::pin!(work);
        if let Ok(done) = tokio::time::timeout(BESIDE_WAIT, &mut work).await {
            return done;
        }
        tokio::select! {
            biased;
            // The command goes on with the commit.
            done = &mut work => return done,
            _ = self.commit_removal() => {}
        }
        work.await
    }

    /// Half of `sessions_ttl` has passed since all of it was written ([`Life::Standing`]), or its proofs have grown old: they are worth something as long as what came
    /// after them cannot have expired. `again`: until it is asked the next time.
    ///
    /// [`Life::Standing`]: crate::broker::Life::Standing
    pub fn wants_touch(&self, again: Duration) -> bool {
        let written = self.saver.stored().renewed;
        let following = self.all_following();
        let proofs = following.iter().filter_map(|following| {
            let core = following.cell.lock();
            core.keeps().then(|| core.tail().ttl() / 4)
        });
        let every = proofs.fold(self.node.config.sessions_ttl / 2, Duration::min);
        written.is_none_or(|written| written.elapsed() + again > every)
    }

    /// Gives what is stored a new life, with fresh proofs: at once, or part by part where there is not the room for that.
    pub async fn touch(&self) -> Result<(), NotSaved> {
        self.save_within(COMMIT_WAIT, Write::Touch).await?;
        while self.saver.is_renewing() {
            self.save_within(COMMIT_WAIT, Write::Touch).await?;
        }
        Ok(())
    }

    /// The same when the connection is over. All of it together takes as long as one write may.
    async fn touch_last(&self) -> Result<(), NotSaved> {
        let until = Instant::now() + COMMIT_WAIT;
        self.save_within(COMMIT_WAIT, Write::Last).await?;
        while self.saver.is_renewing() && Instant::now() < until {
            self.save_within(until - Instant::now(), Write::Last).await?;
        }
        Ok(())
    }

    /// The store holds this session.
    pub fn is_stored(&self) -> bool {
        let has_parts = self.state().session.has_parts();
        self.saver.is_stored(self.node.config.sessions_ttl, has_parts)
    }

    /// A write was not waited for until its end, or must be tried again: the connection is to [catch up](Self::catch_up).
    pub fn is_behind(&self) -> bool {
        self.saver.behind.load(Ordering::Acquire)
    }

    /// Goes on with what nobody waits for any more. Does not rest until nothing is stored that the client may not have.
    pub async fn catch_up(&self) {
        self.saver.behind.store(false, Ordering::Release);
        while let Err(error) = self.save(Write::Changes).await {
            error.count();
            if !self.holds_too_much() {
                return;
            }
            tokio::time::sleep(RETRY).await;
        }
        // What is written anew part by part is so until its end.
        while self.saver.is_renewing() {
            if let Err(error) = self.save(Write::Touch).await {
                error.count();
                return;
            }
        }
    }

    /// What is stored is of a time when the client had more.
    pub(super) fn holds_too_much(&self) -> bool {
        let shrunk = self.state().session.shrunk();
        let stored = self.saver.stored();
        stored.held && stored.version < shrunk && !self.handle.is_revoked()
    }

    async fn save_within(&self, wait: Duration, write: Write) -> Result<(), NotSaved> {
        if self.saver.key.is_none() {
            return Ok(());
        }
        let saved = tokio::time::timeout(wait, self.save(write)).await.unwrap_or(Err(NotSaved::Timeout(wait)));
        if let Err(error) = &saved {
            error.count();
            if matches!(error, NotSaved::Timeout(_)) || self.holds_too_much() {
                self.saver.behind.store(true, Ordering::Release);
            }
        }
        saved
    }

    /// Whoever waits for it may be dropped at any await: what is under way stays in `turn`.
    async fn save(&self, mut write: Write) -> Result<(), NotSaved> {
        let Some(key) = &self.saver.key else { return Ok(()) };
        let open = write != Write::Last;
        let mut turn = self.saver.turn.lock().await;
        loop {
            if self.handle.is_revoked() {
                return Err(NotSaved::Revoked);
            }
            if write == Write::Changes && self.saver.stored().lately_outgrown() {
                return Err(NotSaved::Outgrown);
            }
            let next = match &mut *turn {
                None if write == Write::Changes && self.is_committed() => return Ok(()),
                None => {
                    let extent = match write {
                        Write::Changes => Extent::Changes,
                        _ if self.saver.stored().renewing.is_some() => Extent::Piece,
                        _ => Extent::All,
                    };
                    Some(self.begin(key, Course { write, open, extent, renews: false, rounds: 0 }, extent))
                }
                Some(writing) => {
                    let course = Course { open, ..writing.course };
                    let end = writing.end.as_mut().await;
                    *turn = None;
                    if course.write >= write && matches!(end, Written::Head { revision: Ok(_), .. }) {
                        // What has changed meanwhile comes next.
                        write = Write::Changes;
                    }
                    self.ended(key, course, end).await?
                }
            };
            match next {
                None => {}
                Some(Ok(writing)) => *turn = Some(writing),
                Some(Err(error)) => {
                    *turn = self.refused(key, &error);
                    return Err(error);
                }
            }
        }
    }

    fn is_committed(&self) -> bool {
        let version = self.state().session.version();
        self.saver.stored().version == version
    }

    /// The connection is over: what is stored gets its last life, or is removed if it must not be resumed.
    pub async fn finish(self: &Arc<Self>) {
        let Some(key) = &self.saver.key else { return };
        if !self.handle.is_revoked() {
            let _ = self.touch_last().await;
        }
        // Nothing of it is written any more. A deletion goes on.
        drop(self.saver.turn.lock().await.take());
        if self.handle.is_ended() && !self.handle.is_superseded() {
            supersede::end_for_good(&self.node, key.clone());
        }
        self.leave_predecessor();
        if self.handle.is_revoked() || self.holds_too_much() {
            self.forget_all(key);
            return;
        }
        // Without a head none of its parts is worth anything.
        let has_head = self.saver.stored().held;
        let parts = {
            let session = &mut self.state().session;
            if has_head { session.take_unoffered() } else { session.scatter() }
        };
        drop(discard(&self.node, key, parts));
    }

    /// The client is not let in after all: nothing stays of what was written of it.
    pub async fn take_back(&self) {
        let Some(key) = &self.saver.key else { return };
        drop(self.saver.turn.lock().await.take());
        self.forget_all(key);
    }

    /// Deletes what may be stored, parts that no head names included.
    fn forget_all(&self, key: &SessionKey) {
        let parts = self.state().session.scatter();
        drop(forget_with(&self.node, key.clone(), parts));
    }
}

/// Unix milliseconds by this machine's clock.
pub fn unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
