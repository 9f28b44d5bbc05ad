//! What becomes of a session that the store refuses: less of it is offered, or only the present state of it, before what is
//! stored must go.

use super::client::Client;
use super::saver::{NotSaved, Refusal};
use super::stored::{discard, forget_with};
use super::writing::{Course, Extent, Write, Writing, Written};
use crate::broker::{SaveError, SessionKey};
use futures_util::FutureExt;
use tokio::time::Instant;

impl Client {
    /// A write of the session as of `version` has failed. If it was refused: what is tried instead, once the room that it took
    /// with these parts is free again.
    pub(super) async fn instead(
        &self,
        key: &SessionKey,
        course: Course,
        version: u64,
        error: SaveError,
        parts: Vec<u64>,
    ) -> Result<Writing, NotSaved> {
        let deletion = discard(&self.node, key, parts);
        let Some(refusal) = Refusal::of(&error) else { return Err(error.into()) };
        let Some(extent) = self.less(course, version, refusal) else { return Err(error.into()) };
        if let Some(deletion) = deletion {
            // It goes on if nobody waits for it.
            let _ = deletion.await;
        }
        match extent {
            Extent::Piece if course.extent != Extent::Piece => {
                self.saver.stored().renewing = Some(Instant::now());
                self.state().session.note_stale();
            }
            Extent::Changes if course.extent != Extent::Changes => {
                // Its parts keep the life that they have.
                self.saver.stored().refused = Some((Instant::now(), refusal));
                NotSaved::from(error).count();
            }
            _ => {}
        }
        self.begin(key, Course { extent, renews: false, rounds: 0, ..course }, extent)
    }

    /// How much of it may be taken although this write was not. Each is less than the one before, but where something was
    /// taken away since: what was refused was of a time when the client had more.
    fn less(&self, course: Course, version: u64, refusal: Refusal) -> Option<Extent> {
        let (has_parts, shrunk) = {
            let state = self.state();
            (state.session.has_parts(), state.session.shrunk())
        };
        let can_keep = has_parts && course.write != Write::Changes && self.saver.stored().held;
        match (course.extent, refusal) {
            (Extent::All, Refusal::NoRoom) if can_keep => Some(Extent::Piece),
            (Extent::All, Refusal::TooLarge) | (Extent::Piece, _) if can_keep => Some(Extent::Changes),
            (extent, _) if version < shrunk && self.holds_too_much() => Some(extent),
            _ => None,
        }
    }

    /// The session's state could not be stored. If what is stored must not be resumed, that is deleted: the next write waits
    /// for it.
    pub(super) fn refused(&self, key: &SessionKey, error: &NotSaved) -> Option<Writing> {
        let is_too_large = matches!(error, NotSaved::TooLarge { .. });
        let refusal = match error {
            NotSaved::Store(error) => Refusal::of(error),
            _ => None,
        };
        let shrunk = self.state().session.shrunk();
        let goes = {
            let mut stored = self.saver.stored();
            let now = Instant::now();
            if is_too_large {
                stored.outgrown = Some(now);
            }
            if let Some(refusal) = refusal {
                stored.refused = Some((now, refusal));
            }
            let goes = stored.held && (is_too_large || refusal.is_some() && stored.version < shrunk);
            if goes {
                stored.note_gone();
            }
            goes
        };
        if !goes && !is_too_large {
            return None;
        }
        let parts = self.state().session.scatter();
        if !goes {
            drop(discard(&self.node, key, parts));
            return None;
        }
        let deletion = forget_with(&self.node, key.clone(), parts);
        let deleting = async move {
            // It ends by itself, also if nobody waits for it.
            let _ = deletion.await;
            Written::Deleted
        };
        let course = Course { write: Write::Changes, open: true, extent: Extent::Changes, renews: false, rounds: 0 };
        Some(Writing { course, end: deleting.boxed() })
    }
}
