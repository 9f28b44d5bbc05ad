//! Long histories: one client that comes back far behind, and hundreds that come back at once; live messages arrive
//! meanwhile.

use crate::crowd::{Brought, Crowd, stamp};
use crate::memory::{Memory, Peak};
use crate::metrics::{self, metric};
use crate::proc::eventually;
use crate::report::Report;
use crate::socket::{Wish, fulfil};
use crate::spread::Spread;
use crate::steady::{Steady, publish_numbers};
use crate::target::Target;
use crate::{broker_options, count, of};
use carrick::client::command::{SeenPosition, history};
use carrick::client::signed::public_identifier;
use carrick::client::{Frame, HistoryRequest, Since, StreamPosition};
use clap::ArgMatches;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// For all messages to have come.
const PATIENCE: Duration = Duration::from_secs(120);
/// For a stream that nobody follows to be closed.
const CLOSING: Duration = Duration::from_secs(30);

pub fn run(options: &ArgMatches) -> Result<Report, String> {
    let (kept, behind) = (of(options, "kept"), of(options, "behind"));
    let (clients, clients_behind) = (count(options, "clients"), of(options, "clients-behind"));
    let (rate, payload) = (of(options, "rate"), count(options, "payload"));
    if behind >= kept || clients_behind >= kept {
        return Err("clients must be less behind than is kept".to_owned());
    }
    let follower = options.get_flag("follower");
    let mut arguments = broker_options(options);
    arguments.extend([
        format!("--history_limit={kept}"),
        "--history_ttl=3600".into(),
        // Somebody who comes back finds nothing in the node's memory but what a follower keeps there.
        "--stream_linger=100ms".into(),
        "--head_check_interval=1".into(),
        metrics::OPTION.into(),
    ]);
    let target = Target::own(options, &arguments)?;
    let broker = options.get_one::<String>("broker").expect("has a default");
    let mut report = Report::new(format!("replay: {kept} messages of {payload} bytes kept, broker {broker}"));
    let run = Run { target: &target, rate, payload, follower };

    let far = run.round("replay/far", 1, kept - behind - 1, behind)?;
    far.describe(&mut report, "far", &format!("1 client {behind} behind"), behind);
    let many = run.round("replay/many", clients, 100, clients_behind)?;
    many.describe(&mut report, "many", &format!("{clients} clients {clients_behind} behind"), clients_behind);
    target.stop()?;
    Ok(report)
}

struct Run<'a> {
    target: &'a Target,
    rate: u64,
    payload: usize,
    /// Another client stays, so that the node keeps what it can of the stream in memory.
    follower: bool,
}

/// How a round went.
struct Round {
    returned: Vec<Returned>,
    /// Live messages published while the clients caught up.
    live: u64,
    before: Memory,
    after: Memory,
    peak: Option<u64>,
}

/// A client that has come back.
struct Returned {
    began: Instant,
    restored: bool,
    /// The number that must come next.
    next: u64,
    /// Offset of the last message.
    offset: u64,
    /// When it had everything that was published while it was away.
    caught_up: Option<Duration>,
    confirmed: Option<Duration>,
    missing: u64,
    doubled: u64,
    disordered: u64,
    rejected: bool,
    closed: bool,
}

impl Run<'_> {
    /// `clients` follow a stream, see one message, lose their connections, miss `behind` messages, and return at once.
    fn round(&self, stream: &str, clients: usize, kept_before: u64, behind: u64) -> Result<Round, String> {
        let broken = |error: std::io::Error| format!("a client failed: {error}");
        let (http, broadcast) = (self.target.http(), self.target.broadcast());
        let identifier = public_identifier(stream);
        let wish = || Wish { query: String::new(), identifiers: vec![identifier.clone()] };
        let _follower = if self.follower { Some(follow(http, wish())?) } else { None };

        publish_numbers(broadcast, stream, 1..=kept_before, self.payload)?;
        let sockets = fulfil(http, &(0..clients).map(|_| wish()).collect::<Vec<_>>())?;
        let sids: Vec<String> = sockets.iter().map(|socket| socket.sid.clone()).collect();
        let mut crowd = Crowd::of(http, sockets).map_err(broken)?;
        let seen = kept_before + 1;
        publish_numbers(broadcast, stream, seen..=seen, self.payload)?;
        let positions = first_positions(&mut crowd)?;
        drop(crowd);
        let last = seen + behind;
        publish_numbers(broadcast, stream, seen + 1..=last, self.payload)?;
        if !self.follower {
            let closed = || (metric(http, "broadcast_streams_num") == Ok(0)).then_some(());
            eventually(CLOSING, "streams closed that nobody follows", closed)?;
        }

        let before = Memory::of(self.target);
        let peak = Peak::watch(self.target);
        let steady = Steady::start(broadcast, stream, self.rate, self.payload, move |number, _| last + number);
        let mut crowd = Crowd::connect(http, clients).map_err(broken)?;
        let mut returned = Vec::with_capacity(clients);
        for (index, sid) in sids.iter().enumerate() {
            returned.push(Returned::new(seen, &positions[index]));
            crowd.knock(index, &format!("?sid={sid}")).map_err(broken)?;
        }
        let requests: Vec<String> = positions.into_iter().map(|at| history(&identifier, Some(&since(at)))).collect();
        let deadline = Instant::now() + PATIENCE;
        let mut turn = |returned: &mut Vec<Returned>| {
            let turned = crowd.turn(Duration::from_millis(5), |crowd, index, brought| match brought {
                Brought::Text(text) => match returned[index].take(text, last) {
                    true => crowd.say(index, &requests[index]),
                    false => Ok(()),
                },
                Brought::End => {
                    returned[index].closed = true;
                    Ok(())
                }
            });
            turned.map_err(broken)
        };
        let lost = |one: &Returned| one.closed || one.rejected;
        let on_the_way = |one: &Returned| !lost(one) && (one.caught_up.is_none() || one.confirmed.is_none());
        while returned.iter().any(on_the_way) && Instant::now() < deadline {
            turn(&mut returned)?;
        }
        let live = steady.stop()?;
        while returned.iter().any(|one| !lost(one) && one.next <= last + live) && Instant::now() < deadline {
            turn(&mut returned)?;
        }
        // Copies too many would come now.
        let quiet = Instant::now() + Duration::from_millis(500);
        while Instant::now() < quiet {
            turn(&mut returned)?;
        }
        for one in &mut returned {
            one.missing += (last + live + 1).saturating_sub(one.next);
        }
        Ok(Round { returned, live, before, after: Memory::of(self.target), peak: peak.reached() })
    }
}

/// Somebody who follows the stream and reads it.
struct Follower {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

fn follow(http: &str, wish: Wish) -> Result<Follower, String> {
    use std::sync::atomic::Ordering;
    let mut crowd = Crowd::of(http, fulfil(http, &[wish])?).map_err(|error| error.to_string())?;
    let stop = std::sync::Arc::<std::sync::atomic::AtomicBool>::default();
    let stopped = std::sync::Arc::clone(&stop);
    let thread = std::thread::spawn(move || {
        while !stopped.load(Ordering::Acquire) && crowd.turn(Duration::from_millis(20), |_, _, _| Ok(())).is_ok() {}
    });
    Ok(Follower { stop, thread: Some(thread) })
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits until every client has seen a message; the positions that they have then.
pub fn first_positions(crowd: &mut Crowd) -> Result<Vec<StreamPosition>, String> {
    let mut positions: Vec<Option<StreamPosition>> = vec![None; crowd.len()];
    let deadline = Instant::now() + PATIENCE;
    while positions.iter().any(Option::is_none) {
        if Instant::now() > deadline {
            return Err("a live message did not reach every client".to_owned());
        }
        let turned = crowd.turn(Duration::from_millis(20), |_, index, brought| {
            if let Brought::Text(text) = brought
                && let Ok(Frame::Data(data)) = Frame::parse(&String::from_utf8_lossy(text))
            {
                positions[index] = data.position;
            }
            Ok(())
        });
        turned.map_err(|error| error.to_string())?;
    }
    Ok(positions.into_iter().flatten().collect())
}

/// A request for what came after a position.
pub fn since(at: StreamPosition) -> HistoryRequest {
    let position = SeenPosition { epoch: at.epoch, offset: at.offset };
    HistoryRequest { since: Since::Off, streams: BTreeMap::from([(at.stream, position)]) }
}

impl Returned {
    fn new(seen: u64, position: &StreamPosition) -> Self {
        Self {
            began: Instant::now(),
            restored: false,
            next: seen + 1,
            offset: position.offset,
            caught_up: None,
            confirmed: None,
            missing: 0,
            doubled: 0,
            disordered: 0,
            rejected: false,
            closed: false,
        }
    }

    /// Takes a frame; `true`: the client asks for its history now.
    fn take(&mut self, text: &[u8], last: u64) -> bool {
        if let Some(number) = stamp(text) {
            self.doubled += u64::from(number < self.next);
            self.missing += number.saturating_sub(self.next);
            self.next = self.next.max(number + 1);
            let offset = offset(text).unwrap_or(0);
            self.disordered += u64::from(offset <= self.offset);
            self.offset = offset;
            if number == last {
                self.caught_up.get_or_insert(self.began.elapsed());
            }
            return false;
        }
        match Frame::parse(&String::from_utf8_lossy(text)) {
            Ok(Frame::Welcome { restored, .. }) => {
                self.restored = restored;
                return true;
            }
            Ok(Frame::ConfirmHistory(_)) => self.confirmed = Some(self.began.elapsed()),
            Ok(Frame::RejectHistory(_)) => self.rejected = true,
            _ => {}
        }
        false
    }
}

/// Of a message, the last field.
fn offset(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let (_, rest) = text.rsplit_once("\"offset\":")?;
    rest.trim_end_matches('}').parse().ok()
}

impl Round {
    fn describe(&self, report: &mut Report, key: &str, label: &str, behind: u64) {
        let caught_up = Spread::of(self.returned.iter().filter_map(|one| one.caught_up).collect());
        caught_up.describe(report, &format!("{key}_caught_up"), &format!("{label}, caught up"));
        let all = behind * self.returned.len() as u64;
        let rate = all as f64 / caught_up.max().as_secs_f64().max(1e-6);
        report.rate(&format!("{key}_replayed_per_second"), "replayed", rate);
        report.count(&format!("{key}_live"), "live messages meanwhile", self.live);
        report.bytes(&format!("{key}_carrick_before"), "carrick before", self.before.carrick);
        report.bytes(&format!("{key}_carrick_peak"), "carrick at most", self.peak);
        let over = |peak: u64| peak.saturating_sub(self.before.carrick.unwrap_or(peak));
        report.bytes(&format!("{key}_carrick_over"), "that is more by", self.peak.map(over));
        report.bytes(&format!("{key}_nats_before"), "nats-server before", self.before.nats);
        report.bytes(&format!("{key}_nats_after"), "nats-server after", self.after.nats);
        // A line each only where something is wrong.
        let sum = |of: fn(&Returned) -> u64| self.returned.iter().map(of).sum::<u64>();
        for (name, what, count) in [
            ("missing", "messages missing", sum(|one| one.missing)),
            ("doubled", "messages doubled or late", sum(|one| one.doubled)),
            ("disordered", "offsets out of order", sum(|one| one.disordered)),
            ("rejected", "histories rejected", sum(|one| u64::from(one.rejected))),
            ("not_restored", "sessions not restored", sum(|one| u64::from(!one.restored))),
            ("not_confirmed", "histories not confirmed", sum(|one| u64::from(one.confirmed.is_none()))),
            ("closed", "closed by the server", sum(|one| u64::from(one.closed))),
        ] {
            report.number(&format!("{key}_{name}"), count);
            if count > 0 {
                report.broken(format!("{label}, {what}: {count}"));
            }
        }
    }
}
