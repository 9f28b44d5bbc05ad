//! A run: everybody connects, sources publish while members drop and return, everybody comes back, all is compared.

use super::base::BaseMember;
pub use super::desk::Extras;
use super::desk::{Desk, Person};
use super::judge::{Rules, judge};
use super::live::Times;
use super::member::{Habits, Member, Progress, Record, Silent, Surroundings};
use super::removal::Removal;
use super::roster::{Follower, Kind, Roster, SILENT_STREAMS};
use super::source::{Outlet, Published};
use super::verdict::Verdict;
use super::{Drops, Phase};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use url::Url;

/// Without a delivery for so long, nothing more comes.
const AFTERGLOW: Duration = Duration::from_secs(1);
/// The same where messages may be lost, with everybody connected: reads of a store that limps take so long at most.
const NOTHING_MORE: Duration = Duration::from_secs(6);
/// For a member to hand over what it wrote down.
const HANDING_OVER: Duration = Duration::from_secs(30);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(10);

/// How fast sources publish, and what.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Sources per stream, each with one request in flight.
    pub lanes: u16,
    /// Messages per second over all busy streams.
    pub rate: u32,
    pub extras: Extras,
}

/// All tasks of a run. They end with it: dropped early, it aborts them.
pub struct Check {
    phase: watch::Sender<Phase>,
    waves: watch::Sender<u64>,
    skew: watch::Sender<i64>,
    turns: watch::Sender<u64>,
    records: mpsc::Receiver<Record>,
    members: Vec<JoinHandle<Record>>,
    people: Vec<Person>,
    desk: Desk,
    sources: Vec<JoinHandle<Published>>,
    remover: Option<JoinHandle<Vec<Removal>>>,
    acknowledged: Arc<AtomicU64>,
    longest_absence: Duration,
    rules: Rules,
    /// Of the turns before this one.
    sum: Outcome,
}

impl Drop for Check {
    fn drop(&mut self) {
        self.members.iter().for_each(JoinHandle::abort);
        self.sources.iter().for_each(JoinHandle::abort);
        self.remover.iter().for_each(JoinHandle::abort);
    }
}

impl Check {
    /// Starts all tasks on the present runtime; members begin to connect.
    pub fn start(roster: &Roster, pace: &Pace, habits: &Habits, urls: &[Url], outlet: &Outlet) -> Self {
        let (phase, watching) = watch::channel(Phase::Setup);
        let (waves, waving) = watch::channel(0);
        let (skew, clocks) = watch::channel(0);
        let (turns, turning) = watch::channel(0);
        let followers = roster.followers();
        let (taking, records) = mpsc::channel(followers.len().max(1));
        let silents = silent_streams(&followers);
        let habits = Habits { whispers: habits.whispers || pace.extras.whispers, ..habits.clone() };
        let mut people = Vec::new();
        let mut members = Vec::new();
        for follower in followers {
            let progress = Arc::new(Progress::of(&follower));
            let silent = (follower.kind == Kind::Silent).then(|| Arc::clone(&silents[follower.id % SILENT_STREAMS]));
            let surroundings = Surroundings {
                urls: urls.iter().map(|url| roster.credentials.url(url, follower.id)).collect(),
                trust: outlet.trust.clone(),
                phase: watching.clone(),
                waves: waving.clone(),
                skew: clocks.clone(),
                silent,
                progress: Arc::clone(&progress),
                turns: turning.clone(),
                records: taking.clone(),
            };
            people.push(Person { follower: follower.clone(), progress });
            members.push(match follower.kind {
                Kind::Base => tokio::spawn(BaseMember::new(follower, habits.clone(), surroundings).run()),
                _ => tokio::spawn(Member::new(follower, habits.clone(), surroundings).run()),
            });
        }
        let desk = Desk::new(roster, pace, outlet, urls, &people, silents);
        let mut check = Self {
            phase,
            waves,
            skew,
            turns,
            records,
            members,
            people,
            desk,
            sources: Vec::new(),
            remover: None,
            acknowledged: Arc::default(),
            longest_absence: if habits.drops == Drops::Never { Duration::ZERO } else { habits.away.end },
            rules: Rules::default(),
            sum: Outcome::default(),
        };
        check.open_sources();
        check
    }

    fn open_sources(&mut self) {
        let phase = self.phase.subscribe();
        let sources = self.desk.sources(&phase, &self.acknowledged);
        self.sources = sources.into_iter().map(|source| tokio::spawn(source.run())).collect();
        self.remover = self.desk.remover(&phase, &self.people).map(|remover| tokio::spawn(remover.run()));
    }

    /// Judges by these rules.
    #[must_use]
    pub fn by_rules(mut self, rules: Rules) -> Self {
        self.rules = rules;
        self
    }

    /// Waits until every subscription of every member stands.
    ///
    /// # Errors
    /// How many do not, after that time.
    pub async fn settle(&self, patience: Duration) -> Result<(), String> {
        let settled = || self.settled();
        until(patience, || settled() == self.people.len())
            .await
            .map_err(|()| format!("only {} of {} clients subscribed within {patience:?}", settled(), self.people.len()))
    }

    fn settled(&self) -> usize {
        self.people.iter().filter(|person| person.progress.settled.load(Ordering::Acquire)).count()
    }

    /// Sources publish and members drop from now on.
    pub fn begin(&self) {
        self.phase.send_replace(Phase::Run);
    }

    /// All members drop now ([`Drops::AllAtOnce`]).
    pub fn drop_all(&self) {
        self.waves.send_modify(|wave| *wave += 1);
    }

    /// From their next connection on the clocks of some clients are ahead by so many seconds, of others behind.
    pub fn jump_clocks(&self, seconds: i64) {
        self.skew.send_replace(seconds);
    }

    /// Acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Publishing pauses, everybody gets everything (or nothing more comes within `patience` after the longest absence),
    /// all is compared and forgotten, and publishing goes on: what a run holds does not grow with its length.
    ///
    /// # Errors
    /// A task failed, which is a bug here.
    pub async fn turn(&mut self, patience: Duration) -> Result<(), String> {
        let (published, removals, _) = self.end_publishing(patience).await?;
        self.turns.send_modify(|turn| *turn += 1);
        let mut records = Vec::new();
        while records.len() < self.people.len() {
            let record = tokio::time::timeout(HANDING_OVER, self.records.recv()).await;
            let record = record.map_err(|_| "a member did not hand over its record".to_owned())?;
            records.push(record.ok_or("a member failed")?);
        }
        self.sum.add(&published, &records, &removals, &self.rules);
        for person in &self.people {
            person.progress.start_anew();
        }
        self.desk.note(&published);
        self.open_sources();
        self.begin();
        Ok(())
    }

    /// Ends publishing, waits until members have everything (or nothing more comes within `patience` after the longest
    /// absence), and compares. The error beside the outcome says what was still missing then; the verdict knows it more
    /// precisely.
    ///
    /// # Errors
    /// A task failed, which is a bug here.
    pub async fn finish(mut self, patience: Duration) -> Result<(Outcome, Option<String>), String> {
        let (published, removals, behind) = self.end_publishing(patience).await?;
        self.phase.send_replace(Phase::Stop);
        let mut records = Vec::new();
        for member in std::mem::take(&mut self.members) {
            records.push(member.await.map_err(|error| format!("a member failed: {error}"))?);
        }
        let mut outcome = std::mem::take(&mut self.sum);
        outcome.add(&published, &records, &removals, &self.rules);
        (outcome.published, outcome.records) = (published, records);
        Ok((outcome, behind))
    }

    async fn end_publishing(&mut self, patience: Duration) -> Result<Turn, String> {
        self.phase.send_replace(Phase::Finish);
        let mut published = Vec::new();
        for source in std::mem::take(&mut self.sources) {
            published.push(source.await.map_err(|error| format!("a source failed: {error}"))?);
        }
        let removals = match self.remover.take() {
            Some(remover) => remover.await.map_err(|error| format!("the remover failed: {error}"))?,
            None => Vec::new(),
        };
        let behind = self.catch_up(&published, self.longest_absence + patience).await.err();
        Ok((published, removals, behind))
    }

    /// As many messages at every subscription as its stream has, and then nothing more.
    async fn catch_up(&self, published: &[Published], patience: Duration) -> Result<(), String> {
        let mut due: HashMap<&str, u64> = HashMap::new();
        let mut excluded: HashMap<(&str, usize), u64> = HashMap::new();
        for source in published.iter().filter(|source| source.is_stored()) {
            *due.entry(&source.stream).or_default() += source.acks.len() as u64;
            for (client, _) in source.acks.iter().filter_map(|ack| ack.excluded) {
                *excluded.entry((&source.stream, client)).or_default() += 1;
            }
        }
        let behind = || {
            let mut behind = Vec::new();
            for Person { follower, progress } in self.people.iter().filter(|person| person.follower.kind != Kind::Base)
            {
                let excusable = progress.excusable.load(Ordering::Acquire);
                for (follow, arrived) in follower.follows.iter().zip(&progress.arrived) {
                    let all = due.get(follow.stream.as_str()).copied().unwrap_or(0);
                    let kept = excluded.get(&(follow.stream.as_str(), follower.id)).copied().unwrap_or(0);
                    if arrived.load(Ordering::Acquire) + excusable + kept < all {
                        behind.push(format!("client {} on {}", follower.id, follow.stream));
                    }
                }
            }
            behind
        };
        let arrived = || {
            let all = self.people.iter().flat_map(|person| &person.progress.arrived);
            all.map(|count| count.load(Ordering::Acquire)).sum::<u64>()
        };
        let mut last = (arrived(), Instant::now());
        let mut quiet = || {
            let now = arrived();
            if now != last.0 || self.settled() < self.people.len() {
                last = (now, Instant::now());
            }
            last.1.elapsed()
        };
        // Where the limits remove messages, somebody stays behind for ever.
        let may_lose = self.rules.limits.is_some();
        until(patience, || behind().is_empty() || may_lose && quiet() > NOTHING_MORE).await.map_err(|()| {
            let behind = behind();
            let some = &behind[..behind.len().min(5)];
            format!("{} subscriptions still behind after {patience:?}, such as {some:?}", behind.len())
        })?;
        until(patience, || quiet() > AFTERGLOW).await.map_err(|()| "deliveries do not end".to_owned())
    }
}

/// Sources' and remover's books, and who was behind at the end.
type Turn = (Vec<Published>, Vec<Removal>, Option<String>);

/// What a run has shown.
#[derive(Debug, Default)]
pub struct Outcome {
    pub verdict: Verdict,
    /// Longest time in which nothing that is to be stored was acknowledged.
    pub longest_ack_gap: Duration,
    /// How long coming back took.
    pub resumes: Times,
    /// Of the last turn.
    pub published: Vec<Published>,
    pub records: Vec<Record>,
}

impl Outcome {
    fn add(&mut self, published: &[Published], records: &[Record], removals: &[Removal], rules: &Rules) {
        self.verdict.merge(judge(published, records, removals, rules));
        // What is not stored is acknowledged also while nothing can be stored.
        let stored = published.iter().filter(|source| source.is_stored());
        let mut times: Vec<_> = stored.flat_map(|source| &source.acks).map(|ack| ack.at).collect();
        times.sort_unstable();
        let gap = times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
        self.longest_ack_gap = self.longest_ack_gap.max(gap);
        self.resumes.add_all(records.iter().flat_map(|record| record.resumes.iter().copied()));
    }

    pub fn longest_ack_gap(&self) -> Duration {
        self.longest_ack_gap
    }
}

fn silent_streams(followers: &[Follower]) -> Vec<Arc<Silent>> {
    let of_stream = |f: &Follower, index| f.kind == Kind::Silent && f.id % SILENT_STREAMS == index;
    (0..SILENT_STREAMS)
        .map(|index| {
            let followers = followers.iter().filter(|follower| of_stream(follower, index)).count();
            Arc::new(Silent { followers, away: 0.into(), published: watch::channel(false).0 })
        })
        .collect()
}

async fn until(patience: Duration, mut reached: impl FnMut() -> bool) -> Result<(), ()> {
    let deadline = Instant::now() + patience;
    while !reached() {
        if Instant::now() > deadline {
            return Err(());
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
