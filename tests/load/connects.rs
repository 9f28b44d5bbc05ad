//! Everybody connects at once while the application takes its time: who waits how long, in which order, and what is left
//! of those who give up.

use crate::application::{Application, Number};
use crate::crowd::{Brought, Crowd};
use crate::memory::{Memory, Peak};
use crate::metrics::{self, metric};
use crate::proc::eventually;
use crate::report::Report;
use crate::spread::Spread;
use crate::target::Target;
use crate::{broker_options, count, of};
use carrick::client::Frame;
use clap::ArgMatches;
use std::time::{Duration, Instant};

/// After the application's ideal time, for a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);
/// For a call that was on its way to the application when its client gave up.
const ON_ITS_WAY: Duration = Duration::from_millis(200);
/// Everything that a burst leaves behind must be gone by then.
const SETTLE: Duration = Duration::from_secs(30);

pub fn run(options: &ArgMatches) -> Result<Report, String> {
    let (clients, concurrency) = (count(options, "clients"), count(options, "concurrency").max(1));
    let delay = Duration::from_millis(of(options, "answer"));
    let give_up = Duration::from_millis(of(options, "give-up"));
    let application = Application::start(delay).map_err(|error| format!("no application: {error}"))?;
    let mut arguments = broker_options(options);
    arguments.extend([
        "--public=false".into(),
        "--broadcast_key=none".into(),
        application.option(),
        format!("--rpc_concurrency={concurrency}"),
        // Farewells are calls, too; those of a burst are over before the next one.
        "--disconnect_rate=10000".into(),
        metrics::OPTION.into(),
    ]);
    let target = Target::own(options, &arguments)?;
    let burst = Burst { target: &target, application: &application, clients, delay };
    let title = format!("connects: {clients} clients at once, answers after {delay:?}, {concurrency} calls at a time");
    let mut report = Report::new(title);

    // Connections to the application and buffers are there before memory is looked at.
    burst.run(concurrency, Plan::default())?;
    burst.settle()?;
    let before = Memory::of(&target);
    let peak = Peak::watch(&target);
    let stayed = burst.run(clients, Plan::default())?;
    let reached = peak.reached();
    describe_stay(&mut report, &burst, &stayed, concurrency);
    burst.settle()?;
    let after = Memory::of(&target);

    let canceled = metric(target.http(), "rpc_canceled_total")?;
    let gone = burst.run(clients, Plan { give_up: Some(give_up), ..Plan::default() })?;
    let canceled = metric(target.http(), "rpc_canceled_total")? - canceled;
    describe_leave(&mut report, &gone, canceled, give_up, concurrency);
    burst.settle()?;
    // Somewhat faster than they can be let in, so that a queue builds up whose order is known.
    let pace = delay / u32::try_from(concurrency * 2).unwrap_or(u32::MAX);
    let in_turn = burst.run(clients, Plan { pace, give_up: None })?;
    describe_order(&mut report, &in_turn, pace, concurrency);
    burst.settle()?;
    let again = Memory::of(&target);

    report.bytes("carrick_before", "carrick before", before.carrick);
    report.bytes("carrick_peak", "carrick at most, while all wait", reached);
    report.bytes("carrick_after", "carrick after the first burst", after.carrick);
    report.bytes("carrick_after_three", "carrick after three bursts", again.carrick);
    report.row("pending", "calls that wait at the end", "0", 0);
    if let (Some(after), Some(again)) = (after.carrick, again.carrick)
        && again > after + after / 4
    {
        report.broken("memory grows from burst to burst");
    }
    report.broken_all(&application.record().strange);
    target.stop()?;
    Ok(report)
}

fn describe_stay(report: &mut Report, burst: &Burst<'_>, stayed: &Outcome, concurrency: usize) {
    let welcomes = Spread::of(stayed.welcomes.iter().flatten().copied().collect());
    let ideal = |share: f64| {
        let place = (burst.clients as f64 * share).ceil() as usize;
        burst.delay * u32::try_from(place.div_ceil(concurrency)).unwrap_or(u32::MAX)
    };
    welcomes.describe(report, "welcome", "welcome");
    report.time("ideal_p50_us", "ideal, half within", ideal(0.5));
    report.time("ideal_p99_us", "ideal, 99 % within", ideal(0.99));
    report.time("ideal_max_us", "ideal, all within", ideal(1.0));
    // Within one rush the order of coming is up to the system as well, so that this is not judged.
    report.count("rush_places_lost_max", "places lost in the rush, at most", places_lost(&stayed.welcomed_order()).0);
    report.count("most_running", "calls at the same time, at most", stayed.most_running as u64);
    report.count("failures", "not let in", (burst.clients - welcomes.len()) as u64);
    if welcomes.len() != burst.clients {
        report.broken(format!("{} of {} clients were let in", welcomes.len(), burst.clients));
    }
    if stayed.most_running > concurrency {
        report.broken(format!("{} calls ran at the same time", stayed.most_running));
    }
    if welcomes.max() > ideal(1.0) * 3 / 2 + Duration::from_secs(1) {
        report.broken("the last client waited far longer than the application needs for all of them");
    }
}

/// Nobody is let in long after its turn.
fn describe_order(report: &mut Report, in_turn: &Outcome, pace: Duration, concurrency: usize) {
    report.time("pace_us", "one after another, each after", pace);
    let called: Vec<Number> = in_turn.calls.iter().map(|(client, _)| *client).collect();
    let lost = places_lost(&called);
    report.count("places_lost_p99", "places lost in the queue, 99 % at most", lost.1);
    report.count("places_lost_max", "places lost in the queue, all at most", lost.0);
    report.count("welcome_places_lost_max", "until welcome, all at most", places_lost(&in_turn.welcomed_order()).0);
    if lost.0 as usize > 2 * concurrency {
        report.broken(format!("the application was asked about a client {} places after its turn", lost.0));
    }
}

fn describe_leave(report: &mut Report, gone: &Outcome, canceled: i64, give_up: Duration, concurrency: usize) {
    let given_up = gone.left_at.iter().flatten().count();
    let in_time = gone.left_at.iter().zip(&gone.welcomes).filter(|(left, _)| left.is_some());
    let welcomed = in_time.filter(|(_, welcome)| welcome.is_some()).count();
    report.time("give_up_us", "half of the clients give up after", give_up);
    report.count("gave_up", "gave up", (given_up - welcomed) as u64);
    report.count("cancelled", "calls cancelled, as the server counts", canceled.unsigned_abs());
    report.count("cancelled_running", "of these already with the application", gone.cancelled);
    let late =
        gone.calls.iter().filter(|(client, at)| gone.left_at[*client].is_some_and(|left| *at > left + ON_ITS_WAY));
    let late = late.count();
    report.count("called_in_vain", "calls begun after their client gave up", late as u64);
    let stayed = gone.left_at.iter().zip(&gone.welcomes).filter(|(left, _)| left.is_none());
    let let_in: Vec<_> = stayed.clone().filter_map(|(_, welcome)| *welcome).collect();
    let missing = stayed.count() - let_in.len();
    Spread::of(let_in).describe(report, "welcome_others", "welcome of the others");
    if late > 0 {
        report.broken(format!("the application was asked about {late} clients that had given up"));
    }
    // Answers of calls that were under way may have crossed with their clients' end.
    let gave_up = (given_up - welcomed) as i64;
    if canceled > gave_up || canceled + (concurrency as i64) < gave_up {
        report.broken(format!("{gave_up} clients gave up, but {canceled} calls were cancelled"));
    }
    if missing > 0 {
        report.broken(format!("{missing} clients that waited were not let in"));
    }
}

/// The most, and what 99 % stay within, of places that a client lost to others who came later. Numbers are in the order
/// of coming.
fn places_lost(order: &[Number]) -> (u64, u64) {
    let mut lost: Vec<u64> =
        order.iter().enumerate().map(|(place, client)| place.saturating_sub(*client) as u64).collect();
    lost.sort_unstable();
    (lost.last().copied().unwrap_or(0), lost.get(lost.len() * 99 / 100).copied().unwrap_or(0))
}

struct Burst<'a> {
    target: &'a Target,
    application: &'a Application,
    clients: usize,
    delay: Duration,
}

/// How the clients of a burst behave.
#[derive(Clone, Copy, Default)]
struct Plan {
    /// Between one that comes and the next; zero: all at once.
    pace: Duration,
    /// Every other one leaves after that time.
    give_up: Option<Duration>,
}

/// What became of the clients of a burst, by number.
struct Outcome {
    /// When it asked to be let in.
    asked: Vec<Instant>,
    /// From the request to `welcome`.
    welcomes: Vec<Option<Duration>>,
    /// When it gave up, if it did.
    left_at: Vec<Option<Instant>>,
    calls: Vec<(Number, Instant)>,
    cancelled: u64,
    most_running: usize,
}

impl Outcome {
    /// Clients in the order in which they were let in.
    fn welcomed_order(&self) -> Vec<Number> {
        let let_in = |(index, (asked, took)): (usize, (&Instant, &Option<Duration>))| Some((*asked + (*took)?, index));
        let mut order: Vec<_> = self.asked.iter().zip(&self.welcomes).enumerate().filter_map(let_in).collect();
        order.sort_unstable();
        order.into_iter().map(|(_, client)| client).collect()
    }
}

impl Burst<'_> {
    /// Lets so many clients connect and waits for their `welcome`. All are gone afterwards.
    fn run(&self, clients: usize, plan: Plan) -> Result<Outcome, String> {
        let failed = |error: std::io::Error| format!("a client failed: {error}");
        self.application.record().forget();
        let mut crowd = Crowd::connect(self.target.http(), clients).map_err(failed)?;
        let began = Instant::now();
        let mut asked = Vec::with_capacity(clients);
        let (mut welcomes, mut left_at) = (vec![None; clients], vec![None; clients]);
        let (mut waiting, mut ended) = (clients, 0);
        let mut give_up = plan.give_up.map(|after| began + after);
        let deadline = began + PATIENCE + self.delay * u32::try_from(clients).unwrap_or(u32::MAX);
        while waiting > 0 && ended == 0 && Instant::now() < deadline {
            while asked.len() < clients && began.elapsed() >= plan.pace * u32::try_from(asked.len()).unwrap_or(u32::MAX)
            {
                let client = asked.len();
                asked.push(Instant::now());
                crowd.knock(client, &format!("?client={client}")).map_err(failed)?;
            }
            if give_up.take_if(|at| *at <= Instant::now()).is_some() {
                for client in (1..clients).step_by(2) {
                    crowd.leave(client);
                    left_at[client] = Some(Instant::now());
                    waiting -= usize::from(welcomes[client].is_none());
                }
            }
            let brought = |_: &mut Crowd, client: usize, brought: Brought<'_>| {
                match brought {
                    Brought::Text(text) => {
                        let is_welcome =
                            matches!(Frame::parse(&String::from_utf8_lossy(text)), Ok(Frame::Welcome { .. }));
                        if is_welcome && welcomes[client].is_none() {
                            welcomes[client] = Some(asked[client].elapsed());
                            waiting -= 1;
                        }
                    }
                    Brought::End => ended += 1,
                }
                Ok(())
            };
            crowd
                .turn(plan.pace.clamp(Duration::from_millis(1), Duration::from_millis(10)), brought)
                .map_err(failed)?;
        }
        drop(crowd);
        if ended > 0 {
            return Err(format!("the server turned {ended} clients away"));
        }
        let mut record = self.application.record();
        let calls = std::mem::take(&mut record.connects);
        Ok(Outcome { asked, welcomes, left_at, calls, cancelled: record.cancelled, most_running: record.most_running })
    }

    /// Waits until nothing of a burst is left in the server.
    fn settle(&self) -> Result<(), String> {
        let is_zero = |name| matches!(metric(self.target.http(), name), Ok(0));
        for name in ["rpc_pending_num", "clients_num", "disconnect_queue_size"] {
            eventually(SETTLE, &format!("{name} back to 0"), || is_zero(name).then_some(()))?;
        }
        Ok(())
    }
}
