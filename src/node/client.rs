//! A connected client: its session and its cursors, shared by what runs on its connection.

use super::registry::{Handle, Registration};
use super::saver::Saver;
use super::supersede::Predecessor;
use super::{Asked, Hello, Node};
use crate::hub::sabotage::{Safeguard, off};
use crate::hub::{Cell, CursorId, Identifier, Outbox, Receiver, SavedProof};
use crate::protocol::{Close, Position, StreamName};
use crate::session::{CommandRate, Session};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;

/// A stream that this connection follows.
#[derive(Clone)]
pub struct Following {
    pub cell: Arc<Cell>,
    pub cursor: CursorId,
}

impl Following {
    /// Names the cursor on this node.
    pub fn key(&self) -> (*const Cell, CursorId) {
        (Arc::as_ptr(&self.cell), self.cursor)
    }
}

/// What changes while the connection lives. Locked for moments, never across a wait.
pub struct State {
    pub session: Session,
    /// One cursor per stream, whatever the number of subscriptions on it.
    pub cursors: HashMap<(StreamName, Option<Arc<str>>), Following>,
    /// Proofs that came with the restored session.
    pub saved_proofs: HashMap<StreamName, SavedProof>,
    /// How often it may whisper.
    pub whispers: CommandRate,
}

impl State {
    /// The session, and how to find what is known of the head of a stream that it follows: by this connection, or else by
    /// the one before.
    pub fn to_save(&mut self) -> (&mut Session, impl Fn(&StreamName, &Identifier) -> Option<SavedProof>) {
        let Self { session, cursors, saved_proofs, .. } = self;
        let look = |stream: &StreamName, identifier: &Identifier| {
            let held = cursors.get(&Client::key(stream, identifier)).map(|following| {
                let core = following.cell.lock();
                SavedProof { epoch: core.epoch().clone(), proof: core.proof() }
            });
            match held {
                Some(held) if held.proof.revision > 0 => Some(held),
                held => saved_proofs.get(stream).cloned().or(held),
            }
        };
        (session, look)
    }
}

pub struct Client {
    pub node: Arc<Node>,
    pub receiver: Arc<Receiver>,
    pub handle: Arc<Handle>,
    _registration: Registration,
    pub saver: Saver,
    /// What the application is told of the connection's request.
    pub asked: Option<Arc<Asked>>,
    state: Mutex<State>,
    /// The session that this one was restored from, until that is over.
    predecessor: Mutex<Option<Box<Predecessor>>>,
    /// Some cursor has something to send, once the commands that have come are executed.
    replay: AtomicBool,
    /// They are: cursors that catch up may go on.
    due: AtomicBool,
    /// Some cursor that was live found no room.
    stalled: AtomicBool,
    /// It has left everything that it was part of.
    departed: AtomicBool,
}

impl Client {
    pub fn new(
        node: &Arc<Node>,
        hello: &Hello,
        session: Session,
        saved_proofs: HashMap<StreamName, SavedProof>,
        receiver: Arc<Receiver>,
        registration: Registration,
    ) -> Arc<Self> {
        let rate = node.config.max_whisper_rate;
        let whispers = CommandRate::new(rate, rate.saturating_mul(2), Instant::now());
        let resumable = hello.subprotocol.extended() && node.hub.broker().features().sessions;
        Arc::new(Self {
            node: node.clone(),
            receiver,
            handle: registration.handle.clone(),
            _registration: registration,
            saver: Saver::new(&session.sid, resumable),
            asked: hello.asked.clone(),
            state: Mutex::new(State { session, cursors: HashMap::new(), saved_proofs, whispers }),
            predecessor: Mutex::new(None),
            replay: AtomicBool::new(false),
            due: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            departed: AtomicBool::new(false),
        })
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn predecessor(&self) -> MutexGuard<'_, Option<Box<Predecessor>>> {
        self.predecessor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn outbox(&self) -> &Outbox {
        &self.receiver.outbox
    }

    pub fn close(&self, close: Close) {
        self.outbox().close(close);
    }

    /// A cursor may have something to send: the connection looks after it when it has nothing else to do.
    pub fn want_replay(&self) {
        self.replay.store(true, Ordering::Release);
    }

    /// Every command that has come is executed: cursors that wait for that may go on. Returns whether there are any.
    pub fn release_replay(&self) -> bool {
        let wanted = self.replay.swap(false, Ordering::AcqRel);
        if wanted {
            self.due.store(true, Ordering::Release);
        }
        wanted
    }

    pub fn take_replay_due(&self) -> bool {
        self.due.swap(false, Ordering::AcqRel)
    }

    /// A cursor that was live has found no room in the outbox.
    pub fn note_stalled(&self) {
        self.stalled.store(true, Ordering::Release);
    }

    pub fn take_stalled(&self) -> bool {
        self.stalled.swap(false, Ordering::AcqRel)
    }

    fn key(stream: &StreamName, identifier: &Identifier) -> (StreamName, Option<Arc<str>>) {
        (stream.clone(), off(Safeguard::SharedCursor).then(|| identifier.text.clone()))
    }

    /// Lets an identifier follow a stream from a position on.
    pub fn attach(
        &self,
        cell: &Arc<Cell>,
        stream: &StreamName,
        identifier: &Arc<Identifier>,
        from: &Position,
        held: bool,
    ) {
        let mut state = self.state();
        let key = Self::key(stream, identifier);
        let known = state.cursors.get(&key).map(|following| following.cursor);
        let mut core = cell.lock();
        let cursor = core.attach(known, &self.receiver, identifier, from, held);
        let live = core.is_live(cursor);
        drop(core);
        state.cursors.insert(key, Following { cell: cell.clone(), cursor });
        if !live {
            self.want_replay();
        }
    }

    pub fn detach(&self, stream: &StreamName, identifier: &Identifier) {
        let mut state = self.state();
        let key = Self::key(stream, identifier);
        let Some(following) = state.cursors.get(&key) else { return };
        if !following.cell.lock().detach(following.cursor, &identifier.text) {
            state.cursors.remove(&key);
        }
        // What waited for this identifier may go on.
        self.want_replay();
    }

    pub fn following(&self, stream: &StreamName, identifier: &Identifier) -> Option<Following> {
        self.state().cursors.get(&Self::key(stream, identifier)).cloned()
    }

    pub fn all_following(&self) -> Vec<Following> {
        self.state().cursors.values().cloned().collect()
    }

    /// The connection is over: nothing is delivered any more, nobody can reach it, and the application is told. Once.
    pub fn depart(&self) {
        if self.withdraw()
            // It goes on elsewhere: nobody has left.
            && !self.handle.is_superseded()
            && let Some(farewells) = &self.node.farewells
        {
            farewells.left(self);
        }
    }

    /// The same for a client that was never let in: nobody is told. False: it has left before.
    pub fn withdraw(&self) -> bool {
        if self.departed.swap(true, Ordering::AcqRel) {
            return false;
        }
        let cursors = std::mem::take(&mut self.state().cursors);
        for following in cursors.into_values() {
            following.cell.lock().remove(following.cursor);
        }
        self.node.registry.remove(&self.handle);
        true
    }
}

/// Whatever ends the task of a connection, a panic included: what it has registered goes with it.
impl Drop for Client {
    fn drop(&mut self) {
        if !*self.departed.get_mut() {
            self.depart();
            self.outbox().kill();
        }
    }
}
