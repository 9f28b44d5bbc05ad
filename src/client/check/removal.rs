//! Remote disconnects: now and then one client is thrown out by its identifiers, and its session must be dead everywhere.
//!
//! By which identifiers the server knows a client: see [`Credentials`].

use super::Phase;
use super::credentials::Credentials;
use super::member::OPEN_TIMEOUT;
use super::progress::Progress;
use super::record::{Disconnect, Record};
use super::roster::Dice;
use super::source::Outlet;
use super::verdict::Verdict;
use crate::client::connection::url_with_sid;
use crate::client::{Connection, EXT_JSON, Frame, Publisher, Received};
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use url::Url;

/// Between two of them.
const PAUSE: Range<Duration> = Duration::from_millis(1_500)..Duration::from_secs(5);
/// Before the first: a short run has one, too.
const FIRST_PAUSE: Range<Duration> = Duration::from_millis(200)..Duration::from_secs(1);
/// For the answer to a client that comes with a dead session.
const WELCOME: Duration = Duration::from_secs(10);
/// The way of what a server sent before it knew.
const ON_ITS_WAY: Duration = Duration::from_secs(1);

/// A remote disconnect.
#[derive(Clone, Debug)]
pub struct Removal {
    pub client: usize,
    /// Number of the session that was to end.
    pub session: u32,
    pub begun: Instant,
    /// When it was acknowledged, or given up.
    pub ended: Instant,
    /// Otherwise it may have happened or not.
    pub acknowledged: bool,
    /// Addresses at which the dead session was restored.
    pub restored_at: Vec<String>,
    /// Of an earlier turn of the run: it is counted, and what it causes may come only now.
    pub counted: bool,
}

impl Removal {
    /// The server may have sent the client away for it.
    fn explains(&self, disconnect: &Disconnect, record: &Record, within: Duration) -> bool {
        // Identifiers may name a client: then a session that it got before the answer is meant, too.
        let began =
            record.stays.iter().filter(|stay| stay.session == disconnect.session).find_map(|stay| stay.welcomed);
        let is_meant = disconnect.session == self.session || began.is_some_and(|began| began <= self.ended);
        is_meant && (self.begun..=self.ended + within).contains(&disconnect.at)
    }

    /// Beyond this time nothing more is to be seen of it.
    pub(super) fn is_over(&self, now: Instant, within: Duration) -> bool {
        now > self.ended + within.max(WELCOME)
    }
}

/// The command that throws out whoever has these identifiers.
pub(super) fn command(identifier: &str) -> Bytes {
    let command =
        serde_json::json!({"command": "disconnect", "payload": {"identifier": identifier, "reconnect": true}});
    Bytes::from(command.to_string())
}

pub(super) struct Remover {
    pub outlet: Outlet,
    pub urls: Vec<Url>,
    pub credentials: Credentials,
    pub dice: Dice,
    pub phase: watch::Receiver<Phase>,
    pub members: Vec<(usize, Arc<Progress>)>,
}

impl Remover {
    /// Through the run's [`Phase::Run`].
    pub async fn run(mut self) -> Vec<Removal> {
        let mut all = Vec::new();
        let url = &self.outlet.urls[self.outlet.urls.len() - 1];
        let publisher = Publisher::new(url, self.outlet.key.as_deref(), self.outlet.retry_for);
        let Ok(publisher) = publisher else { return all };
        let mut publisher = publisher.trusting(self.outlet.trust.clone());
        if self.members.is_empty() || self.phase.wait_for(|phase| *phase >= Phase::Run).await.is_err() {
            return all;
        }
        loop {
            let pause = self.dice.within(if all.is_empty() { &FIRST_PAUSE } else { &PAUSE });
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = self.phase.wait_for(|phase| *phase > Phase::Run) => return all,
            }
            let (client, progress) = &self.members[self.dice.below(self.members.len() as u64) as usize];
            let Some(session) = progress.session() else { continue };
            let begun = Instant::now();
            let key = format!("{}-removal-{}", self.outlet.run, all.len());
            let identifiers = self.credentials.identifiers(*client, &session.first);
            let done = publisher.publish(command(&identifiers), &key).await.is_ok();
            let ended = Instant::now();
            let mut restored_at = Vec::new();
            if done {
                for url in &self.urls {
                    let url = url_with_sid(&self.credentials.url(url, *client), Some(&session.sid));
                    if is_restored(&url, &self.outlet).await {
                        restored_at.push(format!("{}:{}", url.host_str().unwrap_or_default(), url.port().unwrap_or(0)));
                    }
                }
            }
            all.push(Removal {
                client: *client,
                session: session.number,
                begun,
                ended,
                acknowledged: done,
                restored_at,
                counted: false,
            });
        }
    }
}

/// The welcome at this address says so. A server that is away says nothing.
async fn is_restored(url: &Url, outlet: &Outlet) -> bool {
    let asked = async {
        let mut link = Connection::open_trusting(url, &[EXT_JSON], outlet.trust.as_ref(), OPEN_TIMEOUT).await.ok()?;
        while let Some(Ok(Received::Text(text))) = link.next().await {
            if let Ok(Frame::Welcome { restored, .. }) = Frame::parse(&text) {
                return Some(restored);
            }
        }
        None
    };
    tokio::time::timeout(WELCOME, asked).await.ok().flatten().unwrap_or(false)
}

/// Holds what one member saw against the removals of it.
pub(super) fn judge_removals(record: &Record, removals: &[Removal], within: Duration, verdict: &mut Verdict) {
    let client = record.follower.id;
    let of_client = || removals.iter().filter(|removal| removal.client == client);
    for removal in of_client().filter(|removal| removal.acknowledged) {
        // Before its welcome a connection belongs to no session.
        let welcomes = || {
            let of_session = record.stays.iter().filter(|stay| stay.session == removal.session);
            of_session.filter_map(|stay| Some((stay.welcomed?, stay)))
        };
        let at = removal.ended;
        if !removal.counted {
            verdict.removals += 1;
            if !removal.restored_at.is_empty() {
                verdict
                    .revived
                    .add(|| format!("client {client}: a dead session was restored at {:?}", removal.restored_at));
            }
        }
        if welcomes().any(|(_, stay)| stay.ended > at + within) {
            verdict
                .revived
                .add(|| format!("client {client} was still connected {within:?} after its remote disconnect"));
        }
        if welcomes().any(|(welcomed, _)| welcomed > at + ON_ITS_WAY) {
            verdict.revived.add(|| format!("client {client} came back with a session that had ended"));
        }
        // Its next session is new, as it must be.
        let anew = record.stays.iter().filter(|stay| stay.fresh && stay.session == removal.session + 1).count();
        verdict.fresh = verdict.fresh.saturating_sub(anew as u64);
    }
    let asked_for = |at: &&Disconnect| of_client().any(|removal| removal.explains(at, record, within));
    let nobodys = record.disconnects.iter().filter(|disconnect| !asked_for(disconnect)).count();
    verdict.disconnects += u32::try_from(nobodys).unwrap_or(u32::MAX);
}
