//! One connection per address of the application, used in turn. The connections belong to a task ([`Owner`]); calls read
//! its view.

use super::Target;
use super::channel::Channel;
use super::owner::Owner;
use crate::critical::critical;
use crate::log_limit::limited;
use crate::rpc::RpcError;
use crate::rpc::calls::Failed;
use crate::rpc::dial::Dialer;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

/// Finds a connection for each call. Dropping it closes all connections.
pub struct Balancer {
    view: watch::Receiver<Arc<View>>,
    /// Tells the owning task that a call wants a connection now.
    wanted: Arc<Notify>,
    /// Counts calls, for taking turns.
    turn: AtomicUsize,
    /// A call has found no connection, and none has been found since.
    recovering: AtomicBool,
    owner: AbortHandle,
}

/// What calls need to know.
pub struct View {
    pub ready: Vec<Channel>,
    pub phase: Phase,
}

pub enum Phase {
    /// A connection is being made, or will be on demand: worth waiting for.
    Connecting,
    /// No address can be reached, and why.
    Failed(String),
}

impl Balancer {
    /// Starts the owning task; needs a Tokio runtime. `health`: the origin of questions for the application's health,
    /// if it is to be asked.
    pub fn start(target: Target, dialer: Dialer, health: Option<http::Uri>) -> Self {
        let wanted = Arc::new(Notify::new());
        let (publish, view) = watch::channel(Arc::new(View { ready: Vec::new(), phase: Phase::Connecting }));
        let owner = Owner::new(target, dialer, health, publish).run(wanted.clone());
        let owner = tokio::spawn(critical("rpc.connections", owner)).abort_handle();
        Self { view, wanted, turn: AtomicUsize::new(0), recovering: AtomicBool::new(false), owner }
    }

    /// The connection whose turn it is. Waits for the first one to be made, or remade; where every address has failed
    /// it does not wait: a new call fails for good, one that was already tried before may try again.
    pub async fn pick(&self, new: bool) -> Result<Channel, Failed> {
        let mut updates = self.view.clone();
        loop {
            let view = updates.borrow_and_update().clone();
            if let Some(channel) = self.next(&view.ready) {
                if self.recovering.swap(false, Ordering::Relaxed) {
                    limited!(INFO, ApplicationFound, "connection is restored");
                }
                return Ok(channel);
            }
            match &view.phase {
                Phase::Failed(reason) if !self.recovering.swap(true, Ordering::Relaxed) => {
                    limited!(WARN, ApplicationLost, %reason, "connection is lost, trying to reconnect immediately");
                    self.wanted.notify_one();
                    return Err(Failed::Unreached(reason.clone()));
                }
                Phase::Failed(reason) if new => {
                    let reason = format!("grpc connection is not ready: {reason}");
                    return Err(Failed::Final(RpcError::Unreachable(reason)));
                }
                Phase::Failed(reason) => return Err(Failed::Unreached(reason.clone())),
                Phase::Connecting => {
                    self.wanted.notify_one();
                    if updates.changed().await.is_err() {
                        return Err(Failed::Final(RpcError::Unreachable("shutting down".to_owned())));
                    }
                }
            }
        }
    }

    fn next(&self, ready: &[Channel]) -> Option<Channel> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut in_turn = (0..ready.len()).map(|step| &ready[turn.wrapping_add(step) % ready.len()]);
        in_turn.find(|channel| !channel.is_closed()).cloned()
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // The owner's tasks, and with them the connections, end with it.
        self.owner.abort();
    }
}
