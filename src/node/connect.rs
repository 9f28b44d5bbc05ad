//! Letting a client in: resuming its session, or authenticating it.

use super::admit::{Admitted, admit, may_go_on};
use super::client::Client;
use super::registry::{Handle, Registration};
use super::save::unix_ms;
use super::supersede::{Known, Predecessor};
use super::{Node, stored, supersede};
use crate::auth::jwt::Token;
use crate::broker::{SaveError, SessionKey, Unavailable, life};
use crate::critical::critical;
use crate::hub::{Open, Outbox, Receiver, SavedProof};
use crate::metrics;
use crate::protocol::{Close, Position, Sid, StreamName, Subprotocol, random_text, reply};
use crate::rpc::Env;
use crate::session::Session;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A publication may name a sid so long before it is stored, by the last of its attempts.
const NAMED_FOR: Duration = Duration::from_secs(30);

/// What a client's request says to others than ourselves. `Debug` leaves out what may be credentials, as [`Env`]'s does.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// Absolute URL, `http://` or `https://`.
    pub url: String,
    /// Headers that the application gets, in lower case, and `REMOTE_ADDR`.
    pub headers: BTreeMap<String, String>,
    /// The token (JWT), wherever it was.
    pub token: Option<Token>,
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked").field("env", &self.env()).field("token", &self.token).finish()
    }
}

impl Asked {
    pub fn env(&self) -> Env {
        Env { url: self.url.clone(), headers: self.headers.clone(), ..Env::default() }
    }
}

/// What a client says when it connects.
#[derive(Clone, Debug)]
pub struct Hello {
    pub subprotocol: Subprotocol,
    /// Sid of the session that it wants to go on with.
    pub restore: Option<Sid>,
    /// Its own ping interval; zero: none.
    pub ping_interval: Option<Duration>,
    pub ping_precision: Option<super::PingPrecision>,
    /// There where an application or tokens decide: an idle connection holds it all the time.
    pub asked: Option<Arc<Asked>>,
}

/// Characters of a session id.
const SID_LENGTH: usize = 21;

/// A client that wants to go on: what is stored of its session and whether it still may.
struct Restored {
    session: Session,
    proofs: HashMap<StreamName, SavedProof>,
    registration: Registration,
    before: Predecessor,
    /// What became of the session before until now.
    known: Known,
}

/// Lets a client in and queues its `welcome`, or closes it. `None`: it was closed.
pub async fn connect(node: &Arc<Node>, hello: &Hello, outbox: &Arc<Outbox>) -> Option<Arc<Client>> {
    let sid = Sid::from(random_text(SID_LENGTH));
    let wait = node.config.broker_timeout;
    let restored = match &hello.restore {
        Some(old) if hello.subprotocol.extended() && node.hub.broker().features().sessions => {
            match tokio::time::timeout(wait, restore(node, hello, old, &sid, outbox)).await {
                Ok(Ok(restored)) => restored,
                Ok(Err(_)) | Err(_) => {
                    // Missing is not unavailable: without a message the client keeps its sid and tries again.
                    outbox.close(Close::StoreUnavailable);
                    return None;
                }
            }
        }
        _ => None,
    };
    let Some(restored) = restored else { return authenticate(node, hello, &sid, outbox).await };
    let before = restored.before.key.clone();
    let client = resume(node, hello, restored, outbox).await?;
    if let Some(farewells) = &node.farewells {
        farewells.restored(&client);
        // Nothing is waited for once `welcome` is queued: what comes from the client then is its first sign.
        let farewells = farewells.clone();
        node.tasks.spawn(critical("node.restores", async move { farewells.goes_on(&before).await }));
    }
    Some(client)
}

async fn restore(
    node: &Arc<Node>,
    hello: &Hello,
    old_sid: &Sid,
    sid: &Sid,
    outbox: &Arc<Outbox>,
) -> Result<Option<Restored>, Unavailable> {
    let broker = node.hub.broker();
    let (old, new) = (SessionKey::of(old_sid.expose()), SessionKey::of(sid.expose()));
    let answering = broker.answering().await?;
    let (stored, mut known) = tokio::try_join!(broker.load_session(&old), supersede::succession(node, &old))?;
    let Some(stored) = stored else {
        broker.vouch(&answering).await?;
        metrics::SESSIONS_NOT_RESTORED.inc();
        return Ok(None);
    };
    if !known.succession.may_restore() {
        supersede::refused();
        return Ok(None);
    }
    let Some(mut saved) = stored::complete(node, &old, stored).await? else {
        metrics::SESSIONS_NOT_RESTORED.inc();
        return Ok(None);
    };
    let before = Predecessor::new(old.clone(), saved.was_open());
    // Nothing changes where it may not: its connection may still be there, and outlives its token; and the client may come
    // again with a fresh one.
    if !may_go_on(node, hello, &mut saved) {
        metrics::SESSIONS_NOT_RESTORED.inc();
        return Ok(None);
    }
    // Its subscriptions have their room, or nothing changes: the client keeps its sid, and comes again, here or elsewhere.
    let Some(room) = node.subscriptions.take(saved.held()) else {
        outbox.close(Close::SubscriptionsFull);
        return Err(Unavailable("there is no room for its subscriptions".into()));
    };
    // Who knows this sid has received the welcome that named it: the session before it is over.
    if let Some(earlier) = saved.take_unproved().map(SessionKey) {
        match supersede::end(node, &earlier, &old, None).await {
            Ok(None) => supersede::clear(node, Predecessor::new(earlier, true)),
            Ok(Some(_)) => {
                supersede::refused();
                return Ok(None);
            }
            Err(SaveError::Unavailable(error)) => return Err(error),
            // It lives on a while, no more.
            Err(SaveError::Full(_) | SaveError::TooLarge | SaveError::Conflict) => {}
        }
        // It may have been noted there that its client was heard of.
        known = supersede::succession(node, &old).await?;
        if !known.succession.may_restore() {
            supersede::refused();
            return Ok(None);
        }
    }
    // Registered before the mark is read: a disconnect that comes in between is either seen in it or heard.
    let registration = node.registry.add(Handle::new(saved.identifiers().into(), outbox.clone(), Some(&new)));
    let mark = broker.mark(saved.identifiers()).await?;
    if mark > saved.mark() {
        metrics::SESSIONS_NOT_RESTORED.inc();
        return Ok(None);
    }
    // Neither a newer session nor a newer disconnect is known to anybody else.
    broker.vouch(&answering).await?;
    registration.handle.set_mark(saved.mark());
    let proofs = saved.proofs();
    let longest = node.hub.table().longest_ttl() + life::longest(node.config.sessions_ttl) + NAMED_FOR;
    let now = unix_ms();
    let oldest = now.saturating_sub(u64::try_from(longest.as_millis()).unwrap_or(u64::MAX));
    let mut session = saved.restore(sid.clone(), hello.subprotocol, now, oldest, room);
    session.unproved = Some(old.0);
    Ok(Some(Restored { session, proofs, registration, before, known }))
}

/// Goes on with a session: streams open, state committed under the new sid, `welcome` queued, and only then followed —
/// stored messages wait for the client's history commands.
/// `None`: it was closed, and nothing of it stays.
async fn resume(node: &Arc<Node>, hello: &Hello, restored: Restored, outbox: &Arc<Outbox>) -> Option<Arc<Client>> {
    let Restored { session, proofs, registration, mut before, known } = restored;
    let receiver = Receiver::new(outbox.clone(), session.sids(), true);
    let sid = session.sid.clone();
    let client = Client::new(node, hello, session, proofs, receiver, registration);
    let turn_away = |close| {
        outbox.close(close);
        client.withdraw();
    };
    // It has gone, and may be back already, on another connection: that one must not be taken for the older one. Or it may
    // have been disconnected remotely, and would wait for its welcome until its turn to authenticate anew comes.
    let is_over = || outbox.is_over() || client.handle.suspended_since().is_some();
    let followed: Vec<_> = {
        let state = client.state();
        let subscriptions = state.session.subscriptions();
        subscriptions
            .flat_map(|one| one.streams.iter().map(|followed| (one.identifier.clone(), followed.stream.clone())))
            .collect()
    };
    let mut open: HashMap<StreamName, Open> = HashMap::new();
    let opening = followed.iter().map(|(_, stream)| async { (stream.clone(), node.hub.open(stream).await) });
    for (stream, opened) in futures_util::future::join_all(opening).await {
        match opened {
            Ok(cell) => open.insert(stream, cell),
            Err(error) => {
                turn_away(error.close());
                return None;
            }
        };
    }
    let position = |cell: &Open| {
        let core = cell.lock();
        core.position(core.complete_to())
    };
    let from: HashMap<&StreamName, Position> = open.iter().map(|(name, cell)| (name, position(cell))).collect();
    if is_over() {
        turn_away(Close::StoreUnavailable);
        return None;
    }
    // If the commit fails the new sid cannot be resumed; the old one still can, also after the client has spoken.
    let new = SessionKey::of(sid.expose());
    let (claimed, _) = tokio::join!(supersede::claim(node, &before.key, &new, known), client.commit());
    match claimed {
        // Both take their time.
        Ok(claim) if is_over() => {
            claim.give_back(node);
            client.take_back().await;
            turn_away(Close::StoreUnavailable);
            return None;
        }
        Ok(claim) => before.known = Some(claim.keep(node)),
        // There is no room to note it: nobody's place is taken, and what was saved before can still be resumed.
        Err(SaveError::Full(_) | SaveError::TooLarge) if !is_over() => {}
        // After a conflict, too, the client comes again: with luck alone, if it is not the one that was faster.
        Err(_) => {
            client.take_back().await;
            turn_away(Close::StoreUnavailable);
            return None;
        }
    }
    *client.predecessor() = Some(Box::new(before));
    {
        let state = client.state();
        let ids = state.session.identifiers_of_subscriptions();
        outbox.push(reply::welcome(outbox.encoding(), &sid, Some(&ids)));
    }
    for (identifier, stream) in &followed {
        client.attach(&open[stream], stream, identifier, &from[stream], true);
    }
    client.receiver.set_welcomed();
    metrics::SESSIONS_RESTORED.inc();
    Some(client)
}

async fn authenticate(node: &Arc<Node>, hello: &Hello, sid: &Sid, outbox: &Arc<Outbox>) -> Option<Arc<Client>> {
    let heard = node.registry.heard();
    let Admitted { identifiers, exp, cstate, transmissions } = admit(node, hello, sid, outbox).await?;
    let identifiers: Arc<str> = identifiers.into();
    let resumable = hello.subprotocol.extended() && node.hub.broker().features().sessions;
    let key = resumable.then(|| SessionKey::of(sid.expose()));
    let registration = node.registry.add(Handle::new(identifiers.clone(), outbox.clone(), key.as_ref()));
    let mark = mark_of(node, &identifiers, sid, resumable).await;
    registration.handle.set_mark(*mark.as_ref().unwrap_or(&0));
    let mut session = Session::new(sid.clone(), identifiers.clone(), hello.subprotocol, *mark.as_ref().unwrap_or(&0));
    session.exp = exp;
    session.merge_cstate(cstate);
    if transmissions.is_some() {
        session.express_interest();
    }
    let receiver = Receiver::new(outbox.clone(), session.sids(), hello.subprotocol.extended());
    let client = Client::new(node, hello, session, HashMap::new(), receiver, registration);
    // Who it is was known only when the application had answered: a disconnect that came meanwhile is meant for it.
    let refused = match mark {
        Err(_) => Some(Close::StoreUnavailable),
        Ok(_) => node.registry.disconnected_since(&identifiers, heard),
    };
    if let Some(close) = refused {
        client.handle.revoke(close);
        client.depart();
        return None;
    }
    // A sid that is not stored yet is not given away as one that can be resumed: bounded wait, then it is a plain one.
    let _ = client.commit().await;
    match &transmissions {
        Some(transmissions) => client.transmit(transmissions),
        None => outbox.push(reply::welcome(outbox.encoding(), sid, None)),
    }
    client.receiver.set_welcomed();
    Some(client)
}

/// The newest remote disconnect of the identifiers, where it matters: identifiers that hold the fresh sid cannot have
/// been disconnected before.
async fn mark_of(node: &Node, identifiers: &str, sid: &Sid, resumable: bool) -> Result<u64, Unavailable> {
    if !resumable || identifiers.contains(sid.expose()) {
        return Ok(0);
    }
    let reading = node.hub.broker().mark(identifiers);
    let answer = tokio::time::timeout(node.config.broker_timeout, reading).await;
    answer.unwrap_or_else(|_| Err(Unavailable("no answer in time".into())))
}
