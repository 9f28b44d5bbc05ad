//! Calls in their grace period, kept in the store, so that another node makes them when this one is gone.
//!
//! The book has a few pages, each an entry of the store with the life of a saved session; changes are gathered and
//! written page by page, conditionally. Every node reads the book and takes over what stands in it for longer than its
//! grace. That is measured by the reader from when it first saw it: no two machines' clocks are compared.

use crate::broker::{Life, SaveError, SessionKey, Unavailable};
use crate::hub::Hub;
use crate::log_limit::limited;
use crate::protocol::Sid;
use crate::rpc::{DisconnectCall, Env, State};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Few, so that reading all of them costs little; several, so that nodes seldom get in each other's way.
const PAGES: u8 = 16;

/// A page stays well below the size that the store takes. What does not fit is only in this node's memory.
const PAGE_BYTES: usize = 512 << 10;

/// Attempts to write a page that other nodes write, too.
const ATTEMPTS: usize = 32;

/// One call in the book.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    identifiers: String,
    subscriptions: Vec<String>,
    url: String,
    headers: State,
    cstate: State,
    istate: State,
}

impl From<DisconnectCall> for Entry {
    fn from(call: DisconnectCall) -> Self {
        let DisconnectCall { identifiers, subscriptions, env: Env { url, headers, cstate, istate } } = call;
        Self { identifiers, subscriptions, url, headers, cstate, istate }
    }
}

impl From<Entry> for DisconnectCall {
    fn from(entry: Entry) -> Self {
        let Entry { identifiers, subscriptions, url, headers, cstate, istate } = entry;
        Self { identifiers, subscriptions, env: Env { url, headers, cstate, istate } }
    }
}

type Page = BTreeMap<String, Entry>;

#[derive(Default)]
struct Changes {
    /// By sid; `None`: to be removed. Bounded by the backlog of calls: each of them is in here at most once.
    changes: BTreeMap<Sid, Option<Entry>>,
    /// Calls that this node makes itself.
    own: HashSet<Sid>,
}

pub struct Book {
    hub: Arc<Hub>,
    changes: Mutex<Changes>,
    /// One writer at a time.
    writing: tokio::sync::Mutex<()>,
}

impl Book {
    pub fn new(hub: Arc<Hub>) -> Self {
        Self { hub, changes: Mutex::default(), writing: tokio::sync::Mutex::default() }
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This node will make the call.
    pub fn add(&self, sid: &Sid, call: DisconnectCall) {
        let mut changes = self.changes();
        changes.own.insert(sid.clone());
        changes.changes.insert(sid.clone(), Some(call.into()));
    }

    /// The call was made, or is not needed.
    pub fn remove(&self, sid: &Sid) {
        let mut changes = self.changes();
        changes.own.remove(sid);
        // What was not written yet need not be removed.
        if !matches!(changes.changes.remove(sid), Some(Some(_))) {
            changes.changes.insert(sid.clone(), None);
        }
    }

    /// Another node makes the call.
    pub fn leave_to_others(&self, sid: &Sid) {
        self.changes().own.remove(sid);
    }

    /// Writes what was changed. What the store did not take is kept for the next time.
    pub async fn write(&self) -> Result<(), Unavailable> {
        let _writing = self.writing.lock().await;
        let taken = std::mem::take(&mut self.changes().changes);
        let mut pages: BTreeMap<u8, BTreeMap<Sid, Option<Entry>>> = BTreeMap::new();
        for (sid, change) in taken {
            pages.entry(page_of(&sid)).or_default().insert(sid, change);
        }
        let mut outcome = Ok(());
        for (page, changes) in pages {
            if let Err(error) = self.write_page(page, &changes).await {
                let mut kept = self.changes();
                for (sid, change) in changes {
                    kept.changes.entry(sid).or_insert(change);
                }
                outcome = Err(error);
            }
        }
        outcome
    }

    async fn write_page(&self, number: u8, changes: &BTreeMap<Sid, Option<Entry>>) -> Result<(), Unavailable> {
        let broker = self.hub.broker();
        let mut room = true;
        for _ in 0..ATTEMPTS {
            let (mut page, revision) = self.read_page(number).await?;
            for (sid, change) in changes {
                match change {
                    Some(entry) if room => page.insert(sid.expose().to_owned(), entry.clone()),
                    Some(_) => None,
                    None => page.remove(sid.expose()),
                };
            }
            let body = serde_json::to_vec(&page).expect("maps with text keys are always JSON");
            let saved = match room && body.len() > PAGE_BYTES {
                true => Err(SaveError::TooLarge),
                false => broker.save_session(&key(number), Bytes::from(body), Some(revision), Life::Last).await,
            };
            match saved {
                Ok(_) => return Ok(()),
                // What was done must leave the page in any case.
                Err(SaveError::TooLarge) if room => {
                    limited!(
                        WARN,
                        DisconnectPageFull,
                        "a page of waiting calls is full; what does not fit is lost if this node dies"
                    );
                    room = false;
                }
                Err(error @ SaveError::TooLarge) => return Err(Unavailable(error.to_string())),
                Err(SaveError::Conflict) => tokio::task::yield_now().await,
                Err(SaveError::Unavailable(error)) => return Err(error),
                Err(SaveError::Full(reason)) => return Err(Unavailable(reason)),
            }
        }
        Err(Unavailable("too many nodes write the same page".into()))
    }

    async fn read_page(&self, number: u8) -> Result<(Page, u64), Unavailable> {
        let Some(stored) = self.hub.broker().load_session(&key(number)).await? else { return Ok((Page::new(), 0)) };
        // A page that cannot be read is replaced: what it held cannot be carried out anyway.
        Ok((serde_json::from_slice(&stored.body).unwrap_or_default(), stored.revision))
    }

    /// Calls that other nodes said they would make.
    pub async fn foreign(&self) -> Result<Vec<(Sid, DisconnectCall)>, Unavailable> {
        let mut all = Vec::new();
        for number in 0..PAGES {
            let (page, _) = self.read_page(number).await?;
            let changes = self.changes();
            let ours = |sid: &Sid| changes.own.contains(sid) || changes.changes.contains_key(sid);
            let entries = page.into_iter().map(|(sid, entry)| (Sid::from(sid), entry));
            all.extend(entries.filter(|(sid, _)| !ours(sid)).map(|(sid, entry)| (sid, entry.into())));
        }
        Ok(all)
    }
}

fn page_of(sid: &Sid) -> u8 {
    sid.expose().bytes().fold(0u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte)) % PAGES
}

fn key(number: u8) -> SessionKey {
    SessionKey::of(&format!("leaving/{number}"))
}

/// How long changes are gathered before they are written.
pub const GATHER: Duration = Duration::from_millis(200);
