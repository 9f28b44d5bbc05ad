//! The table of events, and what was counted of each.

use super::window::{Counted, Verdict, Window};
use crate::metrics::{Counter, Sample};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::Level;

/// How long events of a kind are counted before their number is told. Short enough for somebody who watches the log, long
/// enough that no flood fills a disk: two lines of each kind and level in this time.
pub const PERIOD: Duration = Duration::from_secs(10);

/// One definition per event: the variant, its name (a label of the metric, and a field of its lines), the component that
/// speaks, and what it is.
macro_rules! events {
    ($($event:ident = $name:literal, $context:literal, $help:literal;)*) => {
        /// What somebody outside can cause at will and is worth a line.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Event {
            $(#[doc = $help] $event,)*
        }

        impl Event {
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$event),*];

            pub fn name(self) -> &'static str {
                match self { $(Self::$event => $name,)* }
            }

            /// The component, as log lines name it.
            pub fn context(self) -> &'static str {
                match self { $(Self::$event => $context,)* }
            }
        }
    };
}

events! {
    PingInterval = "ping_interval", "ws", "a client asked for pings by something that is no number";
    UnknownConnection = "unknown_connection", "ws", "a WebSocket came over a connection that is not ours";
    ClientNotReading = "client_not_reading", "ws", "a client was closed because it took nothing of what it was sent";
    AcceptFailed = "accept_failed", "http", "a connection could not be accepted";
    ConnectionsFull = "connections_full", "http", "a connection was refused, or closed for another one, because there are as many as there may be";
    RequestCutOff = "request_cut_off", "http", "a request did not end in time at the shutdown";
    MalformedPublication = "malformed_publication", "broadcast", "a publication was refused because of its form";
    UnknownRemoteCommand = "unknown_remote_command", "broadcast", "a publisher sent a command that does not exist";
    AuthenticationFailed = "authentication_failed", "node", "the application could not say who a client is";
    UnusableSession = "unusable_session", "node", "a saved session could not be read";
    SessionsFull = "sessions_full", "node", "a session could not be saved because its share of the store, or the store, is full";
    CommandFailed = "command_failed", "node", "the application could not carry out a client's command";
    PresenceWithoutStream = "presence_without_stream", "node", "a subscription has presence, but no stream for it";
    RestoreNotNoted = "restore_not_noted", "disconnector", "other nodes could not be told of a restore";
    DisconnectNotTold = "disconnect_not_told", "disconnector", "the application could not be told who left or came back";
    DisconnectPageFull = "disconnect_page_full", "disconnector", "more clients leave than the store is to remember";
    ApplicationUnreached = "application_unreached", "disconnector", "the application is not there to be told who left";
    ApplicationReached = "application_reached", "disconnector", "the application is there again to be told who left";
    ApplicationLost = "application_lost", "rpc", "a call found no connection to the application";
    ApplicationFound = "application_found", "rpc", "calls find a connection to the application again";
    CallRepeated = "call_repeated", "rpc", "a call that may have been executed was made again";
    StreamsFull = "streams_full", "broker", "a stream was not opened because as many are open as may be";
    SubscriptionsFull = "subscriptions_full", "node", "a subscription or a saved session found no room in the memory for subscriptions";
    MessagesLost = "messages_lost", "broker", "messages of a stream were gone before they could be read";
    PublicationElsewhere = "publication_elsewhere", "broker", "a log that is not ours any more took a publication";
    UnreadableCommand = "unreadable_command", "broker", "a stored remote command could not be read";
    MemoryFull = "memory_full", "broker", "the memory for history is full";
    NatsConnection = "nats_connection", "enats", "the embedded nats-server complains about one of its connections";
    StoreFull = "store_full", "enats", "the embedded nats-server refused to store because its limit is reached";
    DiskFull = "disk_full", "enats", "the embedded nats-server could not write because its disk is full";
    Panic = "panic", "node", "a panic at a place where one was logged before";
}

static WINDOWS: [Mutex<Window>; Event::ALL.len()] = [const { Mutex::new(Window::new()) }; Event::ALL.len()];
static COUNTS: [Counter; Event::ALL.len()] = [const { Counter::at_zero() }; Event::ALL.len()];

/// Something has been counted that must be told in time.
static COUNTED: Notify = Notify::const_new();

impl Event {
    fn window(self) -> MutexGuard<'static, Window> {
        WINDOWS[self as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one. True: it is to be logged, at this level; false: it is told of later.
    pub fn admit(self, level: Level) -> bool {
        COUNTS[self as usize].inc();
        let verdict = self.window().admit(level, Instant::now(), PERIOD);
        match verdict {
            Verdict::Log(before) => {
                self.tell(before);
                true
            }
            Verdict::Count { is_first } => {
                if is_first {
                    COUNTED.notify_one();
                }
                false
            }
        }
    }

    fn tell(self, counted: Option<Counted>) {
        let Some(Counted { number, level, time }) = counted else { return };
        let seconds = time.as_millis().div_ceil(1_000) as u64;
        macro_rules! line {
            ($level:ident) => {
                tracing::event!(
                    Level::$level,
                    context = self.context(),
                    event = self.name(),
                    num = number,
                    seconds,
                    "{number} more of these in the last {seconds} s, not logged one by one"
                )
            };
        }
        match level {
            Level::ERROR => line!(ERROR),
            Level::WARN => line!(WARN),
            _ => line!(INFO),
        }
    }

    fn tell_if_due(self, now: Instant) -> Option<Instant> {
        let mut window = self.window();
        let due = window.due(PERIOD)?;
        if now < due {
            return Some(due);
        }
        let counted = window.close(now);
        drop(window);
        self.tell(counted);
        None
    }
}

/// Tells what was counted when its period ends. Sleeps while nothing is.
pub(super) async fn tell_in_time() {
    loop {
        let now = Instant::now();
        let next = Event::ALL.iter().filter_map(|event| event.tell_if_due(now)).min();
        tokio::select! {
            () = COUNTED.notified() => {}
            () = tokio::time::sleep_until(next.unwrap_or(now)), if next.is_some() => {}
        }
    }
}

/// Tells what was counted, now.
pub(super) fn tell_all() {
    let now = Instant::now();
    for event in Event::ALL {
        let counted = event.window().close(now);
        event.tell(counted);
    }
}

/// The metric, by event.
pub fn samples() -> impl Iterator<Item = Sample> {
    Event::ALL.into_iter().map(|event| Sample {
        name: "log_events_total",
        help: "events that are logged once in 10 s and counted besides, by kind",
        value: COUNTS[event as usize].get() as i64,
        kind: "Counter",
        label: Some(("event", event.name())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_event_is_documented() {
        let limits = include_str!("../../docs/limits.md");
        for event in Event::ALL {
            assert!(limits.contains(&format!("`{}`", event.name())), "{}", event.name());
        }
    }

    #[test]
    fn names_are_labels_and_differ() {
        let names: BTreeSet<_> = Event::ALL.iter().map(|event| event.name()).collect();
        assert_eq!(names.len(), Event::ALL.len());
        for name in names {
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
        }
    }
}
