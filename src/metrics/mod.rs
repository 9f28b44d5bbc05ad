//! Counters and gauges of the process: plain atomics, a leaf that every part may use.
//!
//! Names follow the field's existing dashboards; `ops` shows them.

mod histogram;

pub use histogram::{BOUNDS, Histogram, Reading};

use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};

/// Only ever grows.
pub struct Counter(AtomicU64);

impl Counter {
    pub const fn at_zero() -> Self {
        Self(AtomicU64::new(0))
    }

    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn inc(&self) {
        self.add(1);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Goes up and down.
pub struct Gauge(AtomicI64);

impl Gauge {
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn set(&self, n: i64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Goes up and down, very often and on all cores at the same time: each thread changes a part of its own, so that no core
/// waits for a line of memory that another one has just written. Reading costs more.
pub struct SplitGauge([Part; PARTS]);

#[repr(align(64))]
struct Part(AtomicI64);

/// More than there are busy threads on most machines; threads may share a part.
const PARTS: usize = 16;

thread_local! {
    static PART: usize = {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        THREADS.fetch_add(1, Ordering::Relaxed) % PARTS
    };
}

impl SplitGauge {
    const fn new() -> Self {
        Self([const { Part(AtomicI64::new(0)) }; PARTS])
    }

    pub fn add(&self, n: i64) {
        // A thread that ends may be past its own variables.
        let part = PART.try_with(|part| *part).unwrap_or_default();
        self.0[part].0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> i64 {
        self.0.iter().map(|part| part.0.load(Ordering::Relaxed)).sum()
    }
}

/// One definition per metric: the static, its public name and its meaning.
macro_rules! metrics {
    ($($kind:ident $ident:ident = $name:literal, $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $ident: $kind = metrics!(@zero $kind);
        )*

        /// Every metric with its present value, for a page, a log line or a test.
        pub fn snapshot() -> Vec<Sample> {
            vec![$(Sample { name: $name, help: $help, value: $ident.get() as i64, kind: metrics!(@kind $kind), label: None },)*]
        }
    };
    (@zero Counter) => { Counter(AtomicU64::new(0)) };
    (@zero Gauge) => { Gauge(AtomicI64::new(0)) };
    (@zero SplitGauge) => { SplitGauge::new() };
    (@kind SplitGauge) => { "Gauge" };
    (@kind $kind:ident) => { stringify!($kind) };
}

/// A metric's name, meaning and value.
pub struct Sample {
    pub name: &'static str,
    pub help: &'static str,
    pub value: i64,
    /// `Counter` or `Gauge`.
    pub kind: &'static str,
    /// Name and value, where several samples share the metric's name: they follow one another.
    pub label: Option<(&'static str, &'static str)>,
}

metrics! {
    Gauge CLIENTS = "clients_num", "authenticated sessions";
    Gauge STREAMS = "broadcast_streams_num", "streams open on this node";
    Counter STREAMS_REFUSED = "refused_streams_total", "openings of a stream refused because max_streams were open";
    Gauge STREAMS_QUEUED = "broadcast_streams_queued_num", "open streams that wait to be opened at the store or compared with it";
    Gauge SNAPSHOT_BYTES = "snapshot_bytes", "bytes of messages held in the in-memory tails of open streams";
    Gauge HELD_BACK_BYTES = "feed_held_back_bytes", "bytes of live messages that wait behind holes which are being read from the store";
    Gauge MEMORY_HISTORY = "memory_history_bytes", "bytes of memory that the history of the memory broker holds, overhead included";
    Counter FAILED_AUTHS = "failed_auths_total", "refused connections";
    Counter CLIENT_MSG = "client_msg_total", "decoded client commands";
    Counter FAILED_CLIENT_MSG = "failed_client_msg_total", "undecodable or failed client commands";
    Counter SUBSCRIPTIONS_REFUSED = "refused_subscriptions_total", "subscriptions rejected because the connection had max_subscriptions, the identifier was too long or subscriptions_budget was used up";
    Gauge SUBSCRIPTION_BYTES = "subscriptions_bytes", "bytes of memory that the subscriptions of all clients hold, overhead included";
    Counter SUBSCRIPTIONS_FULL = "subscriptions_full_total", "subscriptions rejected, and restores of sessions put off, because subscriptions_budget was used up";
    Counter COMMANDS_PACED = "paced_client_msg_total", "client commands after which a connection was not read for a while because of max_commands_rate";
    Counter SERVER_MSG = "server_msg_total", "frames written to clients";
    Counter DATA_SENT = "data_sent_total", "bytes written to clients";
    Counter DATA_RCVD = "data_rcvd_total", "bytes of client messages";
    Counter SLOW_CLIENTS = "disconnected_slow_clients_total", "clients dropped because more than their limit was queued for too long, or far more at once";
    SplitGauge PENDING_BYTES = "client_pending_bytes", "bytes of memory that messages queued for clients hold; a message that many clients get counts once";
    Gauge REPLAY_FRAMES = "replay_frames_bytes", "bytes of memory that finished messages hold which are kept for a moment for clients that catch up together; part of client_pending_bytes";
    Counter PACED = "paced_total", "times that a client's stored messages began to wait in the log because enough was queued for it";
    Counter UNSTORED_DROPPED = "unstored_dropped_total", "whispers and other unstored messages that a client missed because it did not keep up";
    Counter WHISPERS_DROPPED = "whispers_dropped_total", "whispers of clients that sent more than max_whisper_rate";
    Counter WRITE_TIMEOUTS = "timeout_server_msg_total", "writes to clients that hit the deadline";
    Counter PUBLICATIONS = "publications_total", "well-formed payloads from publishers (a batch counts once)";
    Counter MALFORMED_PUBLICATIONS = "failed_broadcast_msg_total", "malformed payloads from publishers";
    Counter BROADCASTS = "broadcast_msg_total", "stream messages distributed to local clients";
    Counter REAUTHENTICATED = "reauthenticated_clients_total", "clients closed within reauth_spread because remote disconnects may have been missed";
    Counter REMOTE_COMMANDS = "remote_commands_total", "remote commands executed";
    Counter GAPS = "feed_gaps_total", "holes of the live feed found by the gap check or a head check";
    Counter GAPS_REPAIRED = "feed_gaps_repaired_total", "holes of the live feed repaired from the log";
    Gauge GAPS_OPEN = "feed_gaps_open_num", "holes of the live feed that are being repaired or wait for it; at most one per open stream";
    Counter GAPS_TOGETHER = "feed_gaps_read_together_total", "holes of the live feed that were read together with others";
    Counter HELD_BACK_DROPPED = "feed_held_back_dropped_total", "live messages that found no room behind a hole while it was repaired; they are read from the log";
    Counter GAPS_LOST = "feed_gaps_lost_total", "holes of the live feed that could not be repaired and were signalled";
    Counter SLOW_CONSUMER = "feed_slow_consumer_total", "times the live feed dropped messages on this node's side";
    Gauge FEED_BROKEN = "feed_broken", "1 while the live feed does not bring messages by itself, so that they come by polling only";
    Gauge FEED_MARKER_MICROS = "feed_marker_micros", "microseconds that the newest marker, a message that tests the live feed, took to come back";
    Counter FEED_LATE = "feed_late_total", "streams whose newest message did not come live and was found by a head check";
    Counter LEADERS_MOVED = "leaders_moved_total", "JetStream streams whose leadership this node moved to the server that leads the log";
    Counter STORE_DENIALS = "store_denials_total", "subscriptions and publications that NATS permissions or limits refused";
    Counter EMBEDDED_NATS_RESTARTS = "embedded_nats_restarts_total", "restarts of the embedded nats-server";
    Gauge EMBEDDED_NATS_STORE_LIMIT = "embedded_nats_store_limit_bytes", "bytes that the store of the embedded nats-server may take; follows what is free on its disk";
    Counter HISTORY_PAGES = "history_pages_read_total", "pages of history read from the store; clients that catch up together share them";
    Counter HISTORY_CONFIRMED = "history_confirmed_total", "history requests answered completely";
    Counter HISTORY_REJECTED = "history_rejected_total", "history requests rejected, or gaps signalled";
    Counter SESSIONS_RESTORED = "sessions_restored_total", "sessions restored";
    Counter SESSIONS_NOT_RESTORED = "sessions_not_restored_total", "restore attempts that ended in ordinary authentication";
    Counter RESTORES_REFUSED = "session_restores_refused_total", "restores refused because a session was restored too often without a sign of its client, or goes on elsewhere";
    Counter SESSIONS_SUPERSEDED = "sessions_superseded_total", "connections closed because another one had gone on with their session";
    Counter SESSIONS_TOO_LARGE = "sessions_too_large_total", "session writes left out because of max_session_size, or refused because the store takes no message of that size; the session was not resumable, or not as it was then";
    Counter SESSIONS_FULL = "sessions_full_total", "session writes refused because the sessions' share of the store, or the store, was full; the session was not resumable, or not as it was then";
    Counter SESSION_SAVE_FAILED = "session_save_failed_total", "session writes that failed; the session was no longer resumable";
    Counter EPOCH_CHANGES = "epoch_changes_total", "changes of the log's epoch seen";
    Gauge FAREWELLS = "disconnect_queue_size", "application calls about left or restored clients that wait";
    Counter FAREWELLS_DROPPED = "disconnects_dropped_total", "application calls about left or restored clients that were dropped because too many waited";
    Counter FAREWELLS_SPARED = "disconnects_spared_total", "Disconnect calls that were not made because the session was restored within the grace period";
    Counter MEMORY_GIVEN_BACK = "given_back_memory_bytes_total", "bytes of memory that were given back to the system because a burst was over";
    Gauge OPEN_FILES = "open_files_num", "open file descriptors of the process";
    Gauge OPEN_FILES_LIMIT = "open_files_limit_num", "file descriptors that the process may have open";
    Gauge CONNECTIONS = "connections_num", "open connections of clients, publishers and others, of all listeners";
    Gauge CONNECTIONS_RESERVED = "connections_reserved_num", "connections beyond max_conn, which are answered unless they want a WebSocket";
    Counter CONNECTIONS_REFUSED = "connections_refused_total", "connections refused because max_conn was reached";
    Counter CONNECTIONS_RESERVE_FULL = "connections_reserve_full_total", "connections that found the reserve of their listener used up: one that waited was closed for them, or they were refused";
    Counter CONNECTIONS_DISPLACED = "connections_displaced_total", "HTTP connections closed while they waited for their clients, to make room for others";
    Counter CONNECTIONS_REFUSED_ADDRESS = "connections_refused_address_total", "connections refused because max_conn_per_address was reached";
    Counter HTTP_WRITE_TIMEOUTS = "timeout_http_write_total", "HTTP connections cut off because their answers were not read";
    Counter AUTH_TIMEOUTS = "auth_timeout_total", "connections closed because they were not let in in time";
    Gauge QUEUED_COMMANDS = "queued_commands_bytes", "bytes of client commands that wait for their turn";
    Counter QUEUED_COMMANDS_FULL = "queued_commands_full_total", "times that reading from a client stopped because too many bytes of commands waited";
    Gauge PUBLISHING = "http_broadcast_pending_bytes", "bytes of publications over HTTP being read or published";
    Counter PUBLISHING_FULL = "http_broadcast_refused_total", "publications over HTTP refused because too many bytes were being read or published";
    Counter PAGES_REFUSED = "http_broadcast_pages_refused_total", "publications without a key refused because a web page sent them";
    Counter PANICS = "panics_total", "panics: faults of the program, each with a line in the log";
    Gauge STORE_CLOCK_SKEW = "store_clock_skew_milliseconds", "how far the clocks of the servers that led a log may differ, at most, as measured";
    Counter STORE_CONNECTS = "store_connects_total", "connections made to the store";
    Counter RPC_CALLS = "rpc_call_total", "calls made to the application (retries not counted)";
    Counter RPC_ERRORS = "rpc_error_total", "calls to the application that failed";
    Counter RPC_RETRIES = "rpc_retries_total", "further attempts of calls to the application";
    Counter RPC_UNCERTAIN_RETRIES = "rpc_uncertain_retries_total", "further attempts of calls that the application may have executed before their connection broke";
    Counter RPC_TIMEOUTS = "rpc_timeout_total", "calls to the application that hit a time limit";
    Counter RPC_CANCELED = "rpc_canceled_total", "calls to the application dropped because their session closed";
    Gauge RPC_PENDING = "rpc_pending_num", "calls to the application that wait for a slot";
    Gauge RPC_CAPACITY = "rpc_capacity_num", "calls to the application that may be in flight at the same time";
    Gauge GRPC_CONNECTIONS = "grpc_active_conn_num", "open gRPC connections to the application";
    Gauge GRPC_UNHEALTHY = "grpc_unhealthy_conn_num", "open gRPC connections whose server says that it does not serve";
}

/// How long calls to the application take, from the moment they need not wait for a slot any more, retries included.
pub static RPC_DURATION: Histogram = Histogram::new();

/// Every histogram: name, meaning, and the thing itself.
pub fn histograms() -> [(&'static str, &'static str, &'static Histogram); 1] {
    [("rpc_call_duration_seconds", "time from a call's start to its end, retries included", &RPC_DURATION)]
}
