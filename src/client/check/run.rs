//! A run: everybody connects, sources publish while members drop and return, everybody comes back, all is compared.

use super::awaited::{Awaited, Copies};
use super::base::BaseMember;
use super::desk::{Desk, Extras, Person};
use super::judge::{Rules, judge};
use super::live::Times;
use super::member::{Habits, Member, Surroundings};
use super::progress::{Arrived, Progress, Silent};
use super::record::Record;
use super::removal::Removal;
use super::roster::{Follower, Kind, Roster, SILENT_STREAMS};
use super::source::{Outlet, Published};
use super::unsettled::Unsettled;
use super::verdict::Verdict;
use super::{Drops, Phase};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use url::Url;

/// Without a delivery for so long, nothing more comes.
const AFTERGLOW: Duration = Duration::from_secs(1);
/// The same where a message that is missing may never come, with everybody connected: the last one of a burst is found by
/// the server's check of heads (5 s), and read from a store that limps (8 s).
const NOTHING_MORE: Duration = Duration::from_secs(15);
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

/// Tells clients what to do beside a run's phases.
#[derive(Clone)]
pub struct Conductor {
    waves: watch::Sender<u64>,
    skew: watch::Sender<i64>,
}

impl Conductor {
    /// All members drop now ([`Drops::AllAtOnce`]).
    pub fn drop_all(&self) {
        self.waves.send_modify(|wave| *wave += 1);
    }

    /// From their next connection on the clocks of some clients are ahead by so many seconds, of others behind.
    pub fn jump_clocks(&self, seconds: i64) {
        self.skew.send_replace(seconds);
    }
}

/// All tasks of a run. They end with it: dropped early, it aborts them.
pub struct Check {
    phase: watch::Sender<Phase>,
    conductor: Conductor,
    turns: watch::Sender<u64>,
    records: mpsc::Receiver<Record>,
    members: Vec<JoinHandle<Record>>,
    people: Vec<Person>,
    desk: Desk,
    sources: Vec<JoinHandle<Published>>,
    remover: Option<JoinHandle<Vec<Removal>>>,
    /// Of the turns before this one.
    removals: Vec<Removal>,
    unsettled: Unsettled,
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
            conductor: Conductor { waves, skew },
            turns,
            records,
            members,
            people,
            desk,
            sources: Vec::new(),
            remover: None,
            removals: Vec::new(),
            unsettled: Unsettled::default(),
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

    /// May be used all through the run, also while a turn of it ends.
    pub fn conductor(&self) -> Conductor {
        self.conductor.clone()
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
        self.unsettled.remind(&mut records);
        self.sum.add(&published, &records, &removals, &self.rules);
        self.unsettled.note(&published, &records, &self.rules);
        self.note_removals(removals);
        for person in &self.people {
            person.progress.start_anew();
        }
        self.desk.note(&published);
        // First: who starts in the phase that ends publishing takes it for the end.
        self.begin();
        self.open_sources();
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
        self.unsettled.remind(&mut records);
        let mut outcome = std::mem::take(&mut self.sum);
        outcome.add(&published, &records, &removals, &self.rules);
        (outcome.published, outcome.records) = (published, records);
        Ok((outcome, behind))
    }

    /// What comes of them may be seen only in the next turn.
    fn note_removals(&mut self, removals: Vec<Removal>) {
        let (now, within) = (Instant::now(), self.rules.live_within);
        let going_on = removals.into_iter().filter(|removal| !removal.is_over(now, within));
        self.removals = going_on.map(|removal| Removal { counted: true, ..removal }).collect();
    }

    async fn end_publishing(&mut self, patience: Duration) -> Result<Turn, String> {
        self.phase.send_replace(Phase::Finish);
        let mut published = Vec::new();
        for source in std::mem::take(&mut self.sources) {
            published.push(source.await.map_err(|error| format!("a source failed: {error}"))?);
        }
        let mut removals = std::mem::take(&mut self.removals);
        if let Some(remover) = self.remover.take() {
            removals.extend(remover.await.map_err(|error| format!("the remover failed: {error}"))?);
        }
        let behind = self.catch_up(&published, self.longest_absence + patience).await.err();
        Ok((published, removals, behind))
    }

    /// Every acknowledged message at every subscription of its stream, and then nothing more.
    async fn catch_up(&self, published: &[Published], patience: Duration) -> Result<(), String> {
        let mut awaited = Awaited::of(published, &self.people);
        let arrived = || {
            let all = self.people.iter().flat_map(|person| &person.progress.arrived);
            all.map(Arrived::count).sum::<u64>()
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
        let mut is_done = || awaited.behind(Copies::MayBeCut).is_empty();
        until(patience, || is_done() || may_lose && quiet() > NOTHING_MORE).await.map_err(|()| {
            let behind = awaited.behind(Copies::MayBeCut);
            let some = &behind[..behind.len().min(5)];
            format!("{} subscriptions still behind after {patience:?}, such as {some:?}", behind.len())
        })?;
        // What a cut would excuse may also be on its way.
        let mut afterglow = || if awaited.behind(Copies::Wanted).is_empty() { AFTERGLOW } else { NOTHING_MORE };
        until(patience + NOTHING_MORE, || quiet() > afterglow()).await.map_err(|()| "deliveries do not end".to_owned())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::check::Limits;
    use crate::client::check::credentials::Credentials;
    use crate::client::check::judge::Rules;
    use crate::client::check::roster::Follow;
    use crate::client::check::source::{Ack, Id};

    const SECOND: Duration = Duration::from_secs(1);
    /// Of each stream.
    const LAST: Id = Id { lane: 0, n: 3 };

    /// One client that has this much of three messages to each of its streams, `a` twice and `b` once, and whose
    /// connection was cut twice.
    fn check(arrived: [u64; 3], rules: Rules) -> (Check, Arc<Progress>) {
        let roster = Roster {
            prefix: String::new(),
            seed: 1,
            streams: 1,
            members: 0,
            doubles: 0,
            silents: 0,
            bases: 0,
            secret: None,
            credentials: Credentials::Common,
        };
        let pace = Pace { lanes: 1, rate: 1, extras: Extras::default() };
        let habits =
            Habits { drops: Drops::Never, stay: SECOND..SECOND, away: SECOND..SECOND, history: true, whispers: false };
        let urls = vec!["http://127.0.0.1:1/".to_owned()];
        let outlet = Outlet { urls, key: None, trust: None, run: "r".to_owned(), retry_for: SECOND };
        let mut check = Check::start(&roster, &pace, &habits, &[], &outlet).by_rules(rules);
        let follow = |stream: &str| Follow { identifier: String::new(), stream: stream.to_owned() };
        let follows = vec![follow("a"), follow("a"), follow("b")];
        let follower = Follower { id: 0, kind: Kind::Double, follows, seed: 0 };
        let progress = Arc::new(Progress::of(&follower));
        progress.settled.store(true, Ordering::Release);
        progress.cuts.store(2, Ordering::Release);
        for (one, arrived) in progress.arrived.iter().zip(arrived) {
            (1..=arrived).for_each(|n| one.note(Id { lane: 0, n }));
        }
        check.people.push(Person { follower, progress: Arc::clone(&progress) });
        (check, progress)
    }

    fn published() -> Vec<Published> {
        let now = Instant::now();
        let ack =
            |n| Ack { id: Id { lane: 0, n }, position: None, duplicate: false, excluded: None, begun: now, at: now };
        let acks: Vec<_> = (1..=3).map(ack).collect();
        ["a", "b"].map(|stream| Published::acknowledged(stream, 0, acks.clone())).into()
    }

    /// The last message of this subscription comes after so many seconds; answers whether it was waited for.
    async fn waits(arrived: [u64; 3], late: usize, seconds: u32, rules: Rules) -> bool {
        waits_beside(&[], arrived, late, seconds, rules).await
    }

    /// The same where this has come to it, too.
    async fn waits_beside(surplus: &[Id], arrived: [u64; 3], late: usize, seconds: u32, rules: Rules) -> bool {
        let (check, progress) = check(arrived, rules);
        surplus.iter().for_each(|id| progress.arrived[late].note(*id));
        let coming = Arc::clone(&progress);
        let tail = tokio::spawn(async move {
            tokio::time::sleep(SECOND * seconds).await;
            coming.arrived[late].note(LAST);
        });
        check.catch_up(&published(), SECOND * 60).await.unwrap();
        tail.abort();
        let mut missing = vec![LAST];
        progress.arrived[late].strike_out(&mut missing);
        missing.is_empty()
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_that_a_cut_would_excuse_is_waited_for_as_long_as_the_server_may_take() {
        assert!(waits([3, 2, 3], 1, 13, Rules::default()).await);
        assert!(!waits([3, 2, 3], 1, 20, Rules::default()).await, "not for ever: it may have been cut off");
    }

    #[tokio::test(start_paused = true)]
    async fn neither_a_second_copy_nor_what_nobody_acknowledged_stands_for_a_message_that_is_missing() {
        for surplus in [Id { lane: 0, n: 1 }, Id { lane: 1, n: 1 }] {
            assert!(waits_beside(&[surplus], [3, 3, 2], 2, 40, Rules::default()).await, "{surplus:?}");
            assert!(waits_beside(&[surplus], [3, 2, 3], 1, 13, Rules::default()).await, "{surplus:?}, excusable");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_excuses_nothing_on_a_stream_that_is_followed_once() {
        assert!(waits([3, 3, 2], 2, 40, Rules::default()).await);
    }

    #[tokio::test(start_paused = true)]
    async fn where_messages_may_be_lost_the_last_one_is_waited_for_as_long_as_the_server_may_take() {
        let rules = Rules { limits: Some(Limits { messages: 1, ttl: SECOND }), ..Rules::default() };
        assert!(waits([3, 3, 2], 2, 13, rules).await);
        assert!(!waits([3, 3, 2], 2, 20, rules).await, "not for ever: it may be lost");
    }
}
