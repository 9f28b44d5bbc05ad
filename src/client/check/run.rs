//! A run: everybody connects, sources publish while members drop and return, everybody comes back, all is compared.

use super::judge::{Rules, Verdict, judge};
use super::member::{Habits, Member, Progress, Record, Silent, Surroundings};
use super::roster::{Follower, Kind, Roster, SILENT_STREAMS};
use super::source::{Outlet, Published, Source};
use super::{Drops, Phase};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use url::Url;

/// Without a delivery for so long, nothing more comes.
const AFTERGLOW: Duration = Duration::from_secs(1);
/// A silent stream is not worth more than a trickle.
const SILENT_INTERVAL: Duration = Duration::from_millis(200);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(10);

/// How fast sources publish.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Sources per stream, each with one message in flight.
    pub lanes: u16,
    /// Messages per second over all busy streams.
    pub rate: u32,
}

/// All tasks of a run. They end with it: dropped early, it aborts them.
pub struct Check {
    phase: watch::Sender<Phase>,
    waves: watch::Sender<u64>,
    skew: watch::Sender<i64>,
    members: Vec<JoinHandle<Record>>,
    progress: Vec<Arc<Progress>>,
    /// Streams of each member's subscriptions, as in its plan.
    follows: Vec<Vec<String>>,
    sources: Vec<JoinHandle<Published>>,
    acknowledged: Arc<AtomicU64>,
    published: Vec<Published>,
    longest_absence: Duration,
    rules: Rules,
}

impl Drop for Check {
    fn drop(&mut self) {
        self.members.iter().for_each(JoinHandle::abort);
        self.sources.iter().for_each(JoinHandle::abort);
    }
}

impl Check {
    /// Starts all tasks on the present runtime; members begin to connect.
    pub fn start(roster: &Roster, pace: &Pace, habits: &Habits, urls: &[Url], outlet: &Outlet) -> Self {
        let (phase, watching) = watch::channel(Phase::Setup);
        let (waves, waving) = watch::channel(0);
        let (skew, clocks) = watch::channel(0);
        let followers = roster.followers();
        let silents = silent_streams(&followers);
        let mut check = Self {
            phase,
            waves,
            skew,
            members: Vec::new(),
            progress: Vec::new(),
            follows: Vec::new(),
            sources: Vec::new(),
            acknowledged: Arc::default(),
            published: Vec::new(),
            longest_absence: if habits.drops == Drops::Never { Duration::ZERO } else { habits.away.end },
            rules: Rules::default(),
        };
        for follower in followers {
            let progress = Arc::new(Progress {
                arrived: follower.follows.iter().map(|_| AtomicU64::new(0)).collect(),
                ..Progress::default()
            });
            let silent = (follower.kind == Kind::Silent).then(|| Arc::clone(&silents[follower.id % SILENT_STREAMS]));
            check.follows.push(follower.follows.iter().map(|follow| follow.stream.clone()).collect());
            check.progress.push(Arc::clone(&progress));
            let (phase, waves, skew) = (watching.clone(), waving.clone(), clocks.clone());
            let surroundings =
                Surroundings { urls: urls.to_vec(), trust: outlet.trust.clone(), phase, waves, skew, silent, progress };
            check.members.push(tokio::spawn(Member::new(follower, habits.clone(), surroundings).run()));
        }
        let count = roster.streams * usize::from(pace.lanes);
        let interval = Duration::from_secs(1) * u32::try_from(count).unwrap_or(u32::MAX) / pace.rate.max(1);
        let busy = (0..count).map(|index| {
            let (index, lane) = (index % roster.streams, index / roster.streams);
            (roster.stream_name(index), u16::try_from(lane).expect("below the number of lanes"), interval, None)
        });
        let quiet = silents.iter().enumerate().filter(|(_, silent)| silent.followers > 0);
        let quiet = quiet.map(|(i, silent)| (roster.silent_name(i), 0, SILENT_INTERVAL, Some(Arc::clone(silent))));
        for (index, (stream, lane, interval, silent)) in busy.chain(quiet).enumerate() {
            let source = Source {
                outlet: outlet.clone(),
                stream,
                lane,
                interval,
                delay: interval.mul_f64((index % count.max(1)) as f64 / count.max(1) as f64),
                phase: watching.clone(),
                silent,
                acknowledged: Arc::clone(&check.acknowledged),
            };
            check.sources.push(tokio::spawn(source.run()));
        }
        check
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
        let settled = || self.progress.iter().filter(|progress| progress.settled.load(Ordering::Acquire)).count();
        until(patience, || settled() == self.progress.len()).await.map_err(|()| {
            format!("only {} of {} clients subscribed within {patience:?}", settled(), self.progress.len())
        })
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

    /// Ends publishing, waits until members have everything (or nothing more comes within `patience` after the longest
    /// absence), and compares. The first error says what was still missing then; the verdict knows it more precisely.
    ///
    /// # Errors
    /// A task failed, which is a bug here.
    pub async fn finish(mut self, patience: Duration) -> Result<(Outcome, Option<String>), String> {
        self.phase.send_replace(Phase::Finish);
        for source in std::mem::take(&mut self.sources) {
            self.published.push(source.await.map_err(|error| format!("a source failed: {error}"))?);
        }
        let behind = self.catch_up(self.longest_absence + patience).await.err();
        self.phase.send_replace(Phase::Stop);
        let mut records = Vec::new();
        for member in std::mem::take(&mut self.members) {
            records.push(member.await.map_err(|error| format!("a member failed: {error}"))?);
        }
        let published = std::mem::take(&mut self.published);
        Ok((Outcome { verdict: judge(&published, &records, &self.rules), published, records }, behind))
    }

    /// As many messages at every subscription as its stream has, and then nothing more.
    async fn catch_up(&self, patience: Duration) -> Result<(), String> {
        let mut acknowledged: HashMap<&str, u64> = HashMap::new();
        for source in &self.published {
            *acknowledged.entry(&source.stream).or_default() += source.acks.len() as u64;
        }
        let behind = || {
            let mut behind = Vec::new();
            for (id, (streams, progress)) in self.follows.iter().zip(&self.progress).enumerate() {
                let excusable = progress.excusable.load(Ordering::Acquire);
                for (stream, arrived) in streams.iter().zip(&progress.arrived) {
                    let all = acknowledged.get(stream.as_str()).copied().unwrap_or(0);
                    if arrived.load(Ordering::Acquire) + excusable < all {
                        behind.push(format!("client {id} on {stream}"));
                    }
                }
            }
            behind
        };
        until(patience, || behind().is_empty()).await.map_err(|()| {
            let behind = behind();
            let some = &behind[..behind.len().min(5)];
            format!("{} subscriptions still behind after {patience:?}, such as {some:?}", behind.len())
        })?;
        let arrived = || self.progress.iter().flat_map(|p| &p.arrived).map(|n| n.load(Ordering::Acquire)).sum::<u64>();
        let mut last = (arrived(), Instant::now());
        let ended = || {
            let now = arrived();
            if now != last.0 {
                last = (now, Instant::now());
            }
            last.1.elapsed() > AFTERGLOW
        };
        until(patience, ended).await.map_err(|()| "deliveries do not end".to_owned())
    }
}

/// What a run has shown.
#[derive(Debug)]
pub struct Outcome {
    pub verdict: Verdict,
    pub published: Vec<Published>,
    pub records: Vec<Record>,
}

impl Outcome {
    /// Longest time without any acknowledgement.
    pub fn longest_ack_gap(&self) -> Duration {
        let mut times: Vec<_> = self.published.iter().flat_map(|source| &source.acks).map(|ack| ack.at).collect();
        times.sort_unstable();
        times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// All times that coming back took, shortest first.
    pub fn resumes(&self) -> Vec<Duration> {
        let mut all: Vec<_> = self.records.iter().flat_map(|record| record.resumes.iter().copied()).collect();
        all.sort_unstable();
        all
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
