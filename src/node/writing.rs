//! One write of a session, from its plan to its end: new parts first, then the head that names them, then the deletion of
//! parts that it does not name. Or a deletion of all, where what is stored must not be resumed.

use super::client::Client;
use super::save::unix_ms;
use super::saver::{NotSaved, Stored};
use super::stored::{PARTS_AT_ONCE, discard, place};
use super::supersede;
use crate::broker::{Life, SaveError, SessionKey};
use crate::protocol::Close;
use crate::session::{NewHead, SavePlan, Split};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use tokio::time::Instant;

/// A head beyond this is not written before what it holds itself is in parts, too, unless more has come again and again.
const LARGE_HEAD: usize = 64 << 10;
const ROUNDS: u32 = 3;

/// What a write is for; what comes later in this list includes what comes before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Write {
    /// What has changed; nothing if nothing has.
    Changes,
    /// A new life, and fresh proofs.
    Touch,
    /// The same, when the connection is over.
    Last,
}

/// How much of a session is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// The head, and what has changed.
    Changes,
    /// The same and one part, anew. It takes the place of the one before, so that it needs little room.
    Piece,
    /// Everything, beside what is stored.
    All,
}

/// What a commit does until its head is written.
#[derive(Clone, Copy)]
pub struct Course {
    pub write: Write,
    /// The connection goes on.
    pub open: bool,
    /// What it was begun with.
    pub extent: Extent,
    /// Nothing stays as it was written.
    pub renews: bool,
    /// Times that parts were written.
    pub rounds: u32,
}

/// A write that is under way. It goes on when it is waited for, and does not refer to the client.
pub struct Writing {
    pub course: Course,
    pub end: BoxFuture<'static, Written>,
}

/// How it ended.
pub enum Written {
    /// New parts, with their revisions: a head that names them comes next.
    Parts(Split, Result<Vec<u64>, SaveError>),
    Head {
        version: u64,
        /// Something may have been stored before.
        held: bool,
        revision: Result<u64, SaveError>,
    },
    /// What was stored must not be resumed.
    Deleted,
}

impl Client {
    /// Begins a write of the session's present state.
    pub(super) fn begin(&self, key: &SessionKey, course: Course, mut extent: Extent) -> Result<Writing, NotSaved> {
        let limit = self.node.config.max_session_size;
        let refused = self.saver.stored().lately_refused();
        // What is stored then goes if this is not offered.
        let refused = refused.filter(|_| course.write == Write::Changes && !self.holds_too_much());
        let (plan, renews) = {
            let mut state = self.state();
            let (session, look) = state.to_save();
            let plan = loop {
                if !session.has_parts() {
                    extent = Extent::All;
                }
                let all = extent == Extent::All;
                // A session that is far too large is not written out to see that it is.
                let least = if all { session.least_size() } else { 0 };
                if least > limit {
                    return Err(NotSaved::TooLarge { size: least, limit });
                }
                let plan = match extent {
                    Extent::Piece => session.plan_piece(&look, unix_ms(), course.open),
                    Extent::Changes | Extent::All => session.plan(&look, all, unix_ms(), course.open),
                };
                match plan.size() {
                    size if size <= limit => break plan,
                    size if all => return Err(NotSaved::TooLarge { size, limit }),
                    // Of the parts that are stored much may be gone.
                    _ => extent = Extent::All,
                }
            };
            if let (Some(refusal), SavePlan::Split(_)) = (refused, &plan) {
                return Err(NotSaved::Lately(refusal));
            }
            session.begin(&plan);
            (plan, course.renews || extent == Extent::All)
        };
        let course = Course { renews, ..course };
        Ok(match plan {
            SavePlan::Head(head) => self.write_head(key, course, head),
            SavePlan::Split(split) => self.write_parts(key, course, split),
        })
    }

    fn write_parts(&self, key: &SessionKey, course: Course, split: Split) -> Writing {
        let parts = split.parts.iter().map(|part| (place(key, part.number), part.body.clone()));
        let (broker, parts) = (self.node.hub.broker().clone(), parts.collect::<Vec<_>>());
        let writing = async move {
            let writes = parts.into_iter().map(|(place, body)| {
                let broker = broker.clone();
                async move { broker.save_beside(&place, body, Some(0)).await }
            });
            let revisions = futures_util::stream::iter(writes).buffered(PARTS_AT_ONCE).try_collect().await;
            Written::Parts(split, revisions)
        };
        Writing { course, end: writing.boxed() }
    }

    fn write_head(&self, key: &SessionKey, course: Course, head: NewHead) -> Writing {
        let (broker, key) = (self.node.hub.broker().clone(), key.clone());
        let NewHead { body, version, .. } = head;
        let life = if course.open { Life::Standing } else { Life::Last };
        self.state().session.note_offered();
        let (last, held) = {
            let mut stored = self.saver.stored();
            (stored.revision, std::mem::replace(&mut stored.held, true))
        };
        let writing = async move {
            let revision = broker.save_session(&key, body, Some(last), life).await;
            Written::Head { version, held, revision }
        };
        Writing { course, end: writing.boxed() }
    }

    /// A write has ended. What comes next: a further write of this commit, or the reason why there is none.
    pub(super) async fn ended(
        &self,
        key: &SessionKey,
        course: Course,
        end: Written,
    ) -> Result<Option<Result<Writing, NotSaved>>, NotSaved> {
        match end {
            Written::Deleted => Ok(None),
            Written::Parts(split, Ok(revisions)) => Ok(Some(self.name_parts(key, course, split, &revisions))),
            Written::Parts(split, Err(error)) => {
                let parts = self.state().session.abandon();
                Ok(Some(self.instead(key, course, split.version(), error, parts).await))
            }
            Written::Head { version, revision: Ok(revision), .. } => {
                let (parts, is_anew) = {
                    let session = &mut self.state().session;
                    session.note_named();
                    (session.take_obsolete(version), !session.has_stale())
                };
                self.note_stored(course, version, revision, is_anew);
                let deletion = discard(&self.node, key, parts);
                if course.extent == Extent::Piece
                    && let Some(deletion) = deletion
                {
                    // The next part takes its room. The deletion goes on if nobody waits for it.
                    let _ = deletion.await;
                }
                Ok(None)
            }
            Written::Head { revision: Err(SaveError::Conflict), .. } => {
                self.state().session.note_named();
                self.settle_conflict(key).await.map(|()| None)
            }
            Written::Head { held, version, revision: Err(error @ (SaveError::Full(_) | SaveError::TooLarge)) } => {
                self.saver.stored().held = held;
                // They would take the room that is missing.
                let parts = self.state().session.take_unnamed();
                Ok(Some(self.instead(key, course, version, error, parts).await))
            }
            Written::Head { revision: Err(error), .. } => {
                // It may be stored all the same.
                self.state().session.note_named();
                Ok(Some(Err(error.into())))
            }
        }
    }

    /// A head was stored. `is_anew`: what it names was all written since the session began to be written anew.
    fn note_stored(&self, course: Course, version: u64, revision: u64, is_anew: bool) {
        let mut stored = self.saver.stored();
        let now = Some(Instant::now());
        let Stored { renewed, renewing, refused, .. } = *stored;
        let (renewed, renewing) = match renewing {
            _ if course.renews => (now, None),
            Some(_) if is_anew => (renewing, None),
            _ => (renewed, renewing),
        };
        // The head alone was written because there was no room for more.
        let is_less = course.write != Write::Changes && course.extent == Extent::Changes && !course.renews;
        let refused = refused.filter(|_| is_less);
        *stored = Stored { revision, version, held: true, written: now, renewed, renewing, outgrown: None, refused };
    }

    /// New parts are written: the head comes that names them. First further parts, if much has changed meanwhile.
    fn name_parts(
        &self,
        key: &SessionKey,
        course: Course,
        split: Split,
        revisions: &[u64],
    ) -> Result<Writing, NotSaved> {
        let limit = self.node.config.max_session_size;
        let head = {
            let mut state = self.state();
            let (session, look) = state.to_save();
            session.adopt(split, revisions, &look, unix_ms(), course.open)
        };
        let next = Course { rounds: course.rounds + 1, ..course };
        match head.size() {
            size if size > limit && next.rounds >= ROUNDS => Err(NotSaved::TooLarge { size, limit }),
            // Of what was written much may be gone already.
            size if size > limit => self.begin(key, next, Extent::All),
            _ if head.body.len() > LARGE_HEAD && next.rounds < ROUNDS => self.begin(key, next, Extent::Changes),
            _ => Ok(self.write_head(key, course, head)),
        }
    }

    /// The entry is not as this connection left it: it was deleted by a remote disconnect or by whoever went on with the
    /// session, it expired while the store was away, or an earlier write arrived whose answer did not.
    async fn settle_conflict(&self, key: &SessionKey) -> Result<(), NotSaved> {
        let broker = self.node.hub.broker();
        let (identifiers, mark) = {
            let state = self.state();
            (state.session.identifiers.clone(), state.session.mark)
        };
        if broker.mark(&identifiers).await.map_err(SaveError::from)? > mark {
            // Whether it may come back is said by the command itself, which has not come yet.
            self.handle.revoke(Close::StoreUnavailable);
            return Err(NotSaved::Revoked);
        }
        if let Some(entry) = broker.load_session(key).await.map_err(SaveError::from)? {
            self.saver.stored().revision = entry.revision;
            return Ok(());
        }
        if let Some(over) = supersede::over(&self.node, key).await.map_err(SaveError::from)? {
            self.handle.close_over(over);
            return Err(NotSaved::Revoked);
        }
        // Its parts are of no use any more.
        self.saver.stored().note_gone();
        let parts = self.state().session.scatter();
        drop(discard(&self.node, key, parts));
        Ok(())
    }
}
