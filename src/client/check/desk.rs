//! Who publishes what: the sources of a run, turn after turn.

use super::Phase;
use super::progress::{Progress, Silent};
use super::removal::Remover;
use super::roster::{Dice, Follower, Kind, Roster};
use super::run::Pace;
use super::source::{Outlet, Past, Published, Sort, Source, TRANSIENT_LANE};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use url::Url;

/// A silent stream is not worth more than a trickle.
const SILENT_INTERVAL: Duration = Duration::from_millis(200);
/// What is published beside plain messages comes so much more rarely.
const RARELY: u32 = 5;

/// What is published beside plain messages, and done beside publishing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extras {
    /// Messages per request of one source of each stream; 0: all publish one by one.
    pub batch: u32,
    /// Messages that are not stored.
    pub transient: bool,
    /// Messages from which one follower is excluded.
    pub exclusion: bool,
    pub whispers: bool,
    /// Clients are thrown out by their identifiers.
    pub removals: bool,
    /// Bytes of data per message.
    pub payload: Range<usize>,
}

impl Default for Extras {
    fn default() -> Self {
        Self { batch: 0, transient: false, exclusion: false, whispers: false, removals: false, payload: 100..100 }
    }
}

/// A member as others see it.
pub(super) struct Person {
    pub follower: Follower,
    pub progress: Arc<Progress>,
}

pub(super) struct Desk {
    roster: Roster,
    pace: Pace,
    outlet: Outlet,
    urls: Vec<Url>,
    silents: Vec<Arc<Silent>>,
    /// Stream ⇒ those who may be excluded.
    excludable: HashMap<String, Vec<(usize, Arc<Progress>)>>,
    /// By stream and lane.
    books: HashMap<(String, u16), Past>,
    /// Removals are named by it.
    turn: u64,
}

impl Desk {
    pub fn new(
        roster: &Roster,
        pace: &Pace,
        outlet: &Outlet,
        urls: &[Url],
        people: &[Person],
        silents: Vec<Arc<Silent>>,
    ) -> Self {
        let mut excludable: HashMap<String, Vec<(usize, Arc<Progress>)>> = HashMap::new();
        for person in people.iter().filter(|person| matches!(person.follower.kind, Kind::Plain | Kind::Double)) {
            for follow in &person.follower.follows {
                let followers = excludable.entry(follow.stream.clone()).or_default();
                if followers.iter().all(|(client, _)| *client != person.follower.id) {
                    followers.push((person.follower.id, Arc::clone(&person.progress)));
                }
            }
        }
        let (roster, pace, outlet, urls) = (roster.clone(), pace.clone(), outlet.clone(), urls.to_vec());
        Self { roster, pace, outlet, urls, silents, excludable, books: HashMap::new(), turn: 0 }
    }

    /// What each source of the last turn has done: the next one goes on there.
    pub fn note(&mut self, published: &[Published]) {
        self.turn += 1;
        let now = Instant::now();
        for source in published {
            self.books.entry((source.stream.clone(), source.lane)).or_default().add(source, now);
        }
    }

    /// The sources of a turn.
    pub fn sources(&self, phase: &watch::Receiver<Phase>, acknowledged: &Arc<AtomicU64>) -> Vec<Source> {
        let Extras { batch, transient, exclusion, ref payload, .. } = self.pace.extras;
        let (streams, lanes) = (self.roster.streams, self.pace.lanes);
        let count = streams * usize::from(lanes);
        let interval = Duration::from_secs(1) * u32::try_from(count).unwrap_or(u32::MAX) / self.pace.rate.max(1);
        let mut all = Vec::new();
        let mut add = |stream: String, lane, sort, interval: Duration, silent: Option<Arc<Silent>>| {
            let past = self.books.get(&(stream.clone(), lane)).cloned().unwrap_or_default();
            let seed = self.roster.seed ^ (all.len() as u64) << 32 ^ past.begun;
            all.push(Source {
                outlet: self.outlet.clone(),
                stream,
                lane,
                sort,
                payload: payload.clone(),
                dice: Dice::new(seed),
                interval,
                delay: interval.mul_f64((all.len() % count.max(1)) as f64 / count.max(1) as f64),
                past,
                phase: phase.clone(),
                silent,
                acknowledged: Arc::clone(acknowledged),
            });
        };
        for index in 0..streams {
            let stream = self.roster.stream_name(index);
            for lane in 0..lanes {
                let batched = batch > 1 && lane + 1 == lanes;
                let sort = if batched { Sort::Batch(batch) } else { Sort::Plain };
                add(stream.clone(), lane, sort, interval, None);
            }
            if let (true, Some(followers)) = (exclusion, self.excludable.get(&stream)) {
                add(stream.clone(), lanes, Sort::Excluding(followers.clone()), interval * RARELY, None);
            }
            if transient {
                add(stream, TRANSIENT_LANE, Sort::Transient, interval * RARELY, None);
            }
        }
        for (index, silent) in self.silents.iter().enumerate().filter(|(_, silent)| silent.followers > 0) {
            // Its followers wait for the first message only once.
            let silent = (self.turn == 0).then(|| Arc::clone(silent));
            add(self.roster.silent_name(index), 0, Sort::Plain, SILENT_INTERVAL, silent);
        }
        all
    }

    /// Whoever throws clients out, if that is wanted. Silent clients wait for a first message, and are spared.
    pub fn remover(&self, phase: &watch::Receiver<Phase>, people: &[Person]) -> Option<Remover> {
        let spared = |person: &&Person| matches!(person.follower.kind, Kind::Plain | Kind::Double);
        let members = people.iter().filter(spared);
        self.pace.extras.removals.then(|| Remover {
            outlet: Outlet { run: format!("{}-{}", self.outlet.run, self.turn), ..self.outlet.clone() },
            urls: self.urls.clone(),
            credentials: self.roster.credentials.clone(),
            dice: Dice::new(self.roster.seed ^ 0x0d15_c0ec ^ self.turn),
            phase: phase.clone(),
            members: members.map(|person| (person.follower.id, Arc::clone(&person.progress))).collect(),
        })
    }
}
