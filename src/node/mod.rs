//! Use cases, one file each. The session decides, the node carries out: it has the hub, the broker and the registry of
//! connected clients, and no protocol rule of its own.
//!
//! A command is dropped at any await when its client leaves. So what must hold then is recorded before anything is waited
//! for: what the application has granted, what was taken away ([`crate::session::Session::shrunk`]). What must be undone
//! then is held by a guard ([`registry::Registration`], [`crate::hub::Open`]). What was read of a stream before an await
//! is compared when it is used: where a replay stands, which life of the log a position is from.

mod admit;
mod application;
mod backlog;
pub mod client;
mod command;
mod connect;
mod disconnect;
mod drive;
pub mod farewell;
mod given_up;
mod history;
mod joined;
#[cfg(test)]
mod model;
pub mod publish;
mod queue;
mod refusal;
mod registry;
mod save;
mod saver;
mod stored;
mod supersede;
#[cfg(test)]
mod tests;
mod writing;

pub use connect::{Asked, Hello};
pub use drive::{Incoming, drive};
pub use farewell::{DisconnectMode, FarewellConfig, Farewells};
pub use registry::Registry;

use crate::auth::jwt::Jwt;
use crate::auth::{Access, Authenticator};
use crate::hub::{Hub, SubscriptionBudget};
use crate::rpc::Application;
use crate::session::SubscriptionLimits;
use backlog::CommandBudget;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

/// Unit of the timestamps in pings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PingPrecision {
    Seconds,
    Milliseconds,
    Nanoseconds,
}

#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Zero: no pings.
    pub ping_interval: Duration,
    pub ping_precision: PingPrecision,
    /// Zero: no pongs expected.
    pub pong_timeout: Duration,
    /// Also send WebSocket ping frames; a native pong is a sign of life.
    pub native_pings: bool,
    /// How long a session can be resumed, however its connection ended.
    pub sessions_ttl: Duration,
    /// How long stored messages wait for a restored client's `history` command.
    pub history_hold: Duration,
    /// How long restore, history and opening wait for the store.
    pub broker_timeout: Duration,
    /// Bytes that may wait for one client; 0: no limit.
    pub max_pending: usize,
    /// Bytes that may wait for all clients together; 0: no limit.
    pub max_pending_total: usize,
    /// Whispers that a client may send per second; beyond it they are dropped. 0: no limit.
    pub max_whisper_rate: u32,
    /// Bytes of commands of one client that may wait.
    pub max_queued: usize,
    /// The same for all clients together.
    pub max_queued_all: usize,
    /// How long a connection may wait to be let in; zero: no limit.
    pub auth_timeout: Duration,
    /// Bytes that are saved of one session; a larger one cannot be resumed.
    pub max_session_size: usize,
    pub subscriptions: SubscriptionLimits,
    /// Commands per second of a connection, beyond those that may come at once; 0: no limit.
    pub max_commands_rate: u32,
    /// On shutdown resumable clients are closed without a message, so that they resume elsewhere.
    pub handover: bool,
}

/// What decides about clients besides the node itself.
#[derive(Default)]
pub struct Deciders {
    pub application: Option<Arc<dyn Application>>,
    /// Tokens are asked for first.
    pub jwt: Option<Jwt>,
    pub farewells: FarewellConfig,
}

/// One running server's local clients and what they need.
pub struct Node {
    pub config: NodeConfig,
    pub hub: Arc<Hub>,
    pub access: Access,
    pub authenticator: Authenticator,
    pub registry: Arc<Registry>,
    pub application: Option<Arc<dyn Application>>,
    pub jwt: Option<Jwt>,
    /// Tells the application who has left; there where one is.
    pub farewells: Option<Arc<Farewells>>,
    /// What outlives connections: deletions of sessions that must not come back.
    pub tasks: TaskTracker,
    /// What the subscriptions of all clients hold.
    subscriptions: Arc<SubscriptionBudget>,
    /// What waits of all clients' commands.
    queued: Arc<CommandBudget>,
    /// Turns of clients that leave: what is delivered or published after thousands have left at once must not stand behind
    /// all of them, here or at the store.
    departures: Semaphore,
    draining: AtomicBool,
}

/// Clients that leave at the same time. Enough to keep the store busy; some milliseconds of its time.
const DEPARTURES: usize = 32;

/// How long a client waits for its turn to leave, where the store is slow.
const DEPARTURE_WAIT: Duration = Duration::from_secs(2);

impl Node {
    pub fn new(
        config: NodeConfig,
        hub: Arc<Hub>,
        access: Access,
        authenticator: Authenticator,
        registry: Arc<Registry>,
    ) -> Arc<Self> {
        Self::with(config, hub, access, authenticator, registry, Deciders::default())
    }

    /// A node with an application or tokens. Must be called within the runtime.
    pub fn with(
        config: NodeConfig,
        hub: Arc<Hub>,
        access: Access,
        authenticator: Authenticator,
        registry: Arc<Registry>,
        deciders: Deciders,
    ) -> Arc<Self> {
        let Deciders { application, jwt, farewells } = deciders;
        let farewells =
            application.as_ref().map(|application| Farewells::start(farewells, application.clone(), hub.clone()));
        Arc::new(Self {
            queued: CommandBudget::new(config.max_queued_all),
            subscriptions: SubscriptionBudget::new(config.subscriptions.total),
            config,
            hub,
            access,
            authenticator,
            registry,
            application,
            jwt,
            farewells,
            tasks: TaskTracker::new(),
            departures: Semaphore::new(DEPARTURES),
            draining: AtomicBool::new(false),
        })
    }

    /// Shutting down: new clients are turned away, so that they go elsewhere.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Closes every client: resumable ones silently where another node (or the next process) can go on with them.
    pub fn close_all(&self) {
        self.draining.store(true, Ordering::Release);
        self.registry.close_all(self.config.handover);
    }
}
