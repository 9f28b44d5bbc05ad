//! The task that owns the connections: it resolves, dials, and dials again what broke. Nothing happens before the first
//! call, since the application may start after us.

use super::Target;
use super::balancer::{Phase, View};
use super::channel::{self, Channel, Ended};
use super::health::{Health, Question, Word};
use crate::critical::critical;
use crate::rpc::dial::{Dialer, HostPort};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

/// Time without a sign of life before a ping. Ruby's servers forbid less than 10 s, and timers jitter.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Servers that find 15 s too often get twice the time, up to this.
const LONGEST_KEEPALIVE: Duration = Duration::from_secs(600);
/// Delay after the first failure to connect, doubled with each one.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// The application is near: two seconds after it is back we know.
const LONGEST_BACKOFF: Duration = Duration::from_secs(2);
/// A connection that ends sooner counts as one that failed, lest we dial in a loop.
const SHORT_LIFE: Duration = Duration::from_secs(1);

/// One address and what is known of it.
struct Slot {
    id: u64,
    to: HostPort,
    /// Where the name was resolved to it.
    address: Option<SocketAddr>,
    state: State,
    /// In a row.
    failures: u32,
}

enum State {
    /// To be dialled.
    Idle,
    Dialling,
    Ready(Connection),
    /// To be dialled then.
    Waiting(Instant),
}

/// An open connection.
struct Connection {
    channel: Channel,
    since: Instant,
    health: Health,
    /// Tells it from earlier connections to the same address.
    number: u64,
}

impl Slot {
    fn fail(&mut self) {
        self.failures += 1;
        self.state = State::Waiting(Instant::now() + backoff(self.failures));
    }
}

fn backoff(failures: u32) -> Duration {
    let factor = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    FIRST_BACKOFF.saturating_mul(factor).min(LONGEST_BACKOFF)
}

/// What is known of the addresses behind the name.
#[derive(Clone, Copy, Debug)]
enum Resolution {
    /// To be asked for.
    Idle,
    Running,
    Current,
    /// To be asked for then.
    Waiting(Instant),
}

type Driven = Pin<Box<dyn Future<Output = Ended> + Send>>;

enum Event {
    Resolved(Result<Vec<SocketAddr>, String>),
    Dialled(u64, Result<(Channel, Driven), String>),
    Ended(u64, Ended),
    /// Slot and connection.
    Heard(u64, u64, Word, Box<Question>),
}

pub struct Owner {
    /// Resolved again and again; `None`: the slots are fixed.
    name: Option<HostPort>,
    resolution: Resolution,
    /// In a row.
    resolution_failures: u32,
    dialer: Arc<Dialer>,
    slots: Vec<Slot>,
    next_id: u64,
    /// At most one resolution, and per slot and open connection one task and one question for its health.
    tasks: JoinSet<Event>,
    publish: watch::Sender<Arc<View>>,
    keepalive: Duration,
    /// Origin of questions for the connections' health; `None`: they are not asked.
    health: Option<http::Uri>,
    connections: u64,
    /// The last one, for those who ask why there is no connection.
    error: String,
}

impl Owner {
    pub fn new(target: Target, dialer: Dialer, health: Option<http::Uri>, publish: watch::Sender<Arc<View>>) -> Self {
        let (name, list) = match target {
            Target::Name(name) => (Some(name), Vec::new()),
            Target::List(list) => (None, list),
        };
        let mut owner = Self {
            resolution: if name.is_some() { Resolution::Idle } else { Resolution::Current },
            resolution_failures: 0,
            name,
            dialer: Arc::new(dialer),
            slots: Vec::new(),
            next_id: 0,
            tasks: JoinSet::new(),
            publish,
            keepalive: KEEPALIVE,
            health,
            connections: 0,
            error: String::new(),
        };
        for to in list {
            owner.add(to, None);
        }
        owner
    }

    /// Runs until nobody reads the view any more, or until it is aborted.
    pub async fn run(mut self, wanted: Arc<Notify>) {
        wanted.notified().await;
        loop {
            self.start_due();
            self.publish();
            let due = self.next_due();
            tokio::select! {
                () = self.publish.closed() => return,
                () = wanted.notified() => self.hurry(),
                Some(event) = self.tasks.join_next() => match event {
                    Ok(event) => self.apply(event),
                    // A question for the health of a connection that is over.
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => warn!(%error, "a task of the connections to the application failed"),
                },
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
        }
    }

    fn add(&mut self, to: HostPort, address: Option<SocketAddr>) {
        let id = self.next_id;
        self.next_id += 1;
        self.slots.push(Slot { id, to, address, state: State::Idle, failures: 0 });
    }

    /// Starts everything whose time has come.
    fn start_due(&mut self) {
        let now = Instant::now();
        let resolve = match self.resolution {
            Resolution::Idle => true,
            Resolution::Waiting(then) => then <= now,
            Resolution::Running | Resolution::Current => false,
        };
        if let Some(name) = self.name.clone().filter(|_| resolve) {
            self.resolution = Resolution::Running;
            self.tasks.spawn(critical("rpc.connection", resolved(name)));
        }
        for slot in &mut self.slots {
            let dial = match slot.state {
                State::Idle => true,
                State::Waiting(then) => then <= now,
                State::Dialling | State::Ready(..) => false,
            };
            if dial {
                slot.state = State::Dialling;
                let (id, to, address) = (slot.id, slot.to.clone(), slot.address);
                let (dialer, keepalive) = (self.dialer.clone(), self.keepalive);
                self.tasks.spawn(critical("rpc.connection", async move {
                    let opened = channel::open(&dialer, &to, address, keepalive).await;
                    Event::Dialled(id, opened.map(|(channel, driven)| (channel, Box::pin(driven) as Driven)))
                }));
            }
        }
    }

    fn next_due(&self) -> Option<Instant> {
        let slots = self.slots.iter().filter_map(|slot| match slot.state {
            State::Waiting(then) => Some(then),
            _ => None,
        });
        let resolution = match self.resolution {
            Resolution::Waiting(then) => Some(then),
            _ => None,
        };
        slots.chain(resolution).min()
    }

    /// A call wants a connection now: delays start over.
    fn hurry(&mut self) {
        for slot in &mut self.slots {
            slot.failures = slot.failures.min(1);
            if let State::Waiting(_) = slot.state {
                slot.state = State::Idle;
            }
        }
        self.resolution_failures = self.resolution_failures.min(1);
        if let Resolution::Waiting(_) = self.resolution {
            self.resolution = Resolution::Idle;
        }
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Resolved(Ok(addresses)) => self.replace(addresses),
            Event::Resolved(Err(error)) => {
                self.resolution_failures += 1;
                self.resolution = Resolution::Waiting(Instant::now() + backoff(self.resolution_failures));
                self.error = error;
            }
            Event::Dialled(id, result) => self.dialled(id, result),
            Event::Ended(id, ended) => self.ended(id, ended),
            Event::Heard(id, number, word, question) => self.heard(id, number, word, question),
        }
    }

    /// Connections to addresses that are gone take no new calls and end with the running ones.
    fn replace(&mut self, addresses: Vec<SocketAddr>) {
        self.resolution = Resolution::Current;
        self.resolution_failures = 0;
        self.slots.retain(|slot| slot.address.is_some_and(|address| addresses.contains(&address)));
        let Some(name) = self.name.clone() else { return };
        for address in addresses {
            if !self.slots.iter().any(|slot| slot.address == Some(address)) {
                self.add(name.clone(), Some(address));
            }
        }
    }

    fn dialled(&mut self, id: u64, result: Result<(Channel, Driven), String>) {
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.id == id) else { return };
        match result {
            Ok((channel, driven)) => {
                debug!(address = %slot.to.authority(), "connected to the application");
                self.tasks.spawn(critical("rpc.connection", async move { Event::Ended(id, driven.await) }));
                self.connections += 1;
                let number = self.connections;
                let mut health = Health::default();
                if let Some(origin) = &self.health {
                    let question = Question::new(channel.clone(), origin.clone());
                    let listening = critical("rpc.connection", listen(id, number, Box::new(question)));
                    health.asking(self.tasks.spawn(listening));
                }
                slot.state = State::Ready(Connection { channel, since: Instant::now(), health, number });
            }
            Err(error) => {
                slot.fail();
                self.error = error;
                self.doubt_addresses();
            }
        }
    }

    /// The application behind a connection says how it is.
    fn heard(&mut self, id: u64, number: u64, word: Word, question: Box<Question>) {
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.id == id) else { return };
        let State::Ready(connection) = &mut slot.state else { return };
        if connection.number != number {
            return;
        }
        if connection.health.hear(word) {
            let address = slot.to.authority();
            match connection.health.is_unwell() {
                true => {
                    warn!(context = "rpc", address, "the application says that it does not serve; others are called")
                }
                false => info!(context = "rpc", address, "the application says that it serves again"),
            }
        }
        if word != Word::NoHealth {
            let listening = critical("rpc.connection", listen(id, number, question));
            connection.health.asking(self.tasks.spawn(listening));
        }
    }

    fn ended(&mut self, id: u64, ended: Ended) {
        if ended.too_many_pings {
            self.keepalive = (self.keepalive * 2).min(LONGEST_KEEPALIVE);
            warn!(seconds = self.keepalive.as_secs(), "the application finds keepalives too frequent, now less often");
        }
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.id == id) else { return };
        debug!(address = %slot.to.authority(), reason = %ended.reason, "connection to the application ended");
        match &slot.state {
            State::Ready(connection) if connection.since.elapsed() >= SHORT_LIFE => {
                slot.failures = 0;
                slot.state = State::Idle;
            }
            _ => slot.fail(),
        }
        self.error = ended.reason;
        self.doubt_addresses();
    }

    /// A lost or refused connection may mean that the application has moved.
    fn doubt_addresses(&mut self) {
        if self.name.is_some()
            && let Resolution::Current = self.resolution
        {
            self.resolution = Resolution::Idle;
        }
    }

    fn publish(&self) {
        let open = self.slots.iter().filter_map(|slot| match &slot.state {
            State::Ready(connection) => Some(connection),
            _ => None,
        });
        let (unwell, well): (Vec<_>, Vec<_>) = open.partition(|connection| connection.health.is_unwell());
        // Where all are unwell it is better to ask one of them than nobody.
        let called = if well.is_empty() { unwell } else { well };
        let ready = called.into_iter().map(|connection| connection.channel.clone()).collect();
        // Redialling what has failed before is no reason to wait: it may take long.
        let hopeful = |slot: &Slot| slot.failures == 0 || matches!(slot.state, State::Ready(..));
        let hopeful = self.slots.iter().any(hopeful) || (self.slots.is_empty() && self.resolution_failures == 0);
        let phase = if hopeful { Phase::Connecting } else { Phase::Failed(self.error.clone()) };
        self.publish.send_replace(Arc::new(View { ready, phase }));
    }
}

async fn listen(id: u64, number: u64, mut question: Box<Question>) -> Event {
    let word = question.next().await;
    Event::Heard(id, number, word, question)
}

async fn resolved(name: HostPort) -> Event {
    let found = tokio::net::lookup_host((name.host.as_str(), name.port)).await;
    let unknown = |why: String| Event::Resolved(Err(format!("cannot resolve {}: {why}", name.host)));
    match found.map(Iterator::collect::<Vec<_>>) {
        Ok(addresses) if addresses.is_empty() => unknown("no addresses".to_owned()),
        Ok(addresses) => Event::Resolved(Ok(addresses)),
        Err(error) => unknown(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner() -> (Owner, watch::Receiver<Arc<View>>) {
        let (publish, view) = watch::channel(Arc::new(View { ready: Vec::new(), phase: Phase::Connecting }));
        let target = Target::parse("app.test:50051").unwrap();
        (Owner::new(target, Dialer { tls: None }, None, publish), view)
    }

    fn addresses(last: &[u8]) -> Vec<SocketAddr> {
        last.iter().map(|last| SocketAddr::from(([127, 0, 0, *last], 50051))).collect()
    }

    #[tokio::test]
    async fn a_new_list_of_addresses_keeps_what_stays() {
        let (mut owner, _view) = owner();
        owner.apply(Event::Resolved(Ok(addresses(&[1, 2]))));
        let ids: Vec<_> = owner.slots.iter().map(|slot| slot.id).collect();
        owner.apply(Event::Resolved(Ok(addresses(&[2, 3]))));
        assert_eq!(owner.slots.iter().filter_map(|slot| slot.address).collect::<Vec<_>>(), addresses(&[2, 3]));
        assert_eq!(owner.slots[0].id, ids[1]);
    }

    #[tokio::test]
    async fn the_end_of_a_connection_asks_for_the_addresses_again() {
        let (mut owner, _view) = owner();
        owner.apply(Event::Resolved(Ok(addresses(&[1]))));
        assert!(matches!(owner.resolution, Resolution::Current));
        owner.apply(Event::Ended(0, Ended { reason: "age".into(), too_many_pings: false }));
        assert!(matches!(owner.resolution, Resolution::Idle));
    }

    #[tokio::test]
    async fn too_many_pings_double_the_time_between_them() {
        let (mut owner, _view) = owner();
        for expected in [30, 60, 120, 240, 480, 600, 600] {
            owner.apply(Event::Ended(9, Ended { reason: "calm".into(), too_many_pings: true }));
            assert_eq!(owner.keepalive, Duration::from_secs(expected));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn redials_wait_longer_each_time_and_start_over_on_demand() {
        let (mut owner, _view) = owner();
        owner.apply(Event::Resolved(Ok(addresses(&[1]))));
        for expected in [100, 200, 400, 800, 1600, 2000, 2000] {
            owner.apply(Event::Dialled(0, Err("refused".into())));
            assert_eq!(owner.next_due().map(|due| due - Instant::now()), Some(Duration::from_millis(expected)));
        }
        owner.hurry();
        assert!(matches!(owner.slots[0].state, State::Idle));
        owner.apply(Event::Dialled(0, Err("refused".into())));
        assert_eq!(owner.next_due().map(|due| due - Instant::now()), Some(Duration::from_millis(200)));
    }
}
