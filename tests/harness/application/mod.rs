//! The user's application: a real gRPC or HTTP server that answers by a script and records every call.
//!
//! It stands on threads of its own, so that it answers while a test waits for a server to start or to end:
//!
//! ```ignore
//! let app = Application::start(wire, |call| match call.action().as_str() {
//!     "tick" => Reply::success().say(call, json!("tock")),
//!     _ => Reply::usual(call),
//! });
//! let server = app.server().start();
//! ```

mod call;
mod grpc;
mod http;
mod record;
mod reply;
mod serve;

pub use call::{Call, Method};
pub use reply::{Fault, Reply};

use super::SECRET;
use super::carrick::Builder;
use super::patience::{PATIENCE, eventually};
use record::Record;
use serve::Controls;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How the application is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    Grpc,
    Http,
}

pub struct Application {
    wire: Wire,
    address: SocketAddr,
    record: Arc<Record>,
    frozen: watch::Sender<bool>,
    run: Option<Run>,
    /// Taken when it is dropped.
    runtime: Option<Runtime>,
}

/// From one start to the next stop.
struct Run {
    controls: Controls,
    task: JoinHandle<()>,
}

impl Application {
    /// Starts an application that answers by this script.
    pub fn start(wire: Wire, script: impl Fn(&Call) -> Reply + Send + Sync + 'static) -> Self {
        let mut application = Self::prepare(wire, script);
        application.restart();
        application
    }

    /// Starts an application that answers as most do, see [`Reply::usual`].
    pub fn usual(wire: Wire) -> Self {
        Self::start(wire, Reply::usual)
    }

    /// An application that is not there yet, but will be at its [`host`](Self::host).
    pub fn absent(wire: Wire, script: impl Fn(&Call) -> Reply + Send + Sync + 'static) -> Self {
        let mut application = Self::start(wire, script);
        application.kill();
        application
    }

    fn prepare(wire: Wire, script: impl Fn(&Call) -> Reply + Send + Sync + 'static) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("application")
            .enable_all()
            .build()
            .expect("threads can be started");
        Self {
            wire,
            address: SocketAddr::from(([127, 0, 0, 1], super::ports::free_port())),
            record: Record::new(Arc::new(script)),
            frozen: watch::channel(false).0,
            run: None,
            runtime: Some(runtime),
        }
    }

    /// Starts it again, at the same address.
    pub fn restart(&mut self) {
        assert!(self.run.is_none(), "it runs");
        let (sender, bound) = std::sync::mpsc::channel();
        let controls = Controls {
            frozen: self.frozen.subscribe(),
            stopping: CancellationToken::new(),
            killed: CancellationToken::new(),
        };
        let (wire, address, record, run) = (self.wire, self.address, self.record.clone(), controls.clone());
        let task = self.runtime().spawn(async move {
            let listener = serve::bind(address).await.unwrap_or_else(|error| panic!("cannot bind {address}: {error}"));
            sender.send(listener.local_addr().expect("it is bound")).expect("it is waited for");
            serve::serve(listener, wire, record, run).await;
        });
        self.address = bound.recv().expect("the application's port can be bound");
        self.run = Some(Run { controls, task });
    }

    /// Stops it as a deploy does: running calls are answered, the port is free afterwards.
    pub async fn stop(&mut self) {
        let Run { controls, task } = self.run.take().expect("it runs");
        controls.stopping.cancel();
        task.await.expect("the application ends by itself");
    }

    /// Ends it as a crash does: every connection is cut, the port is free afterwards.
    pub fn kill(&mut self) {
        let Run { controls, task } = self.run.take().expect("it runs");
        controls.killed.cancel();
        while !task.is_finished() {
            std::thread::yield_now();
        }
    }

    /// Its connections stand, but nothing is read or answered.
    pub fn freeze(&self) {
        self.frozen.send_replace(true);
    }

    pub fn thaw(&self) {
        self.frozen.send_replace(false);
    }

    /// From now on it answers by another script.
    pub fn answer(&self, script: impl Fn(&Call) -> Reply + Send + Sync + 'static) {
        *self.record.script() = Arc::new(script);
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("it is there until the end")
    }

    // --- who calls it ------------------------------------------------------------------------------------------------

    /// Value of `--rpc_host`.
    pub fn host(&self) -> String {
        match self.wire {
            Wire::Grpc => self.address.to_string(),
            Wire::Http => format!("http://{}{}", self.address, http::BASE),
        }
    }

    /// Options of a server in front of it, with `--broker=memory`.
    pub fn server(&self) -> Builder {
        self.behind(Builder::closed().option("secret", SECRET).option("jwt_secret", "none").option("broker", "memory"))
    }

    /// The same options, in front of it: nobody is let in without it. Calls have as much time as anything else that must
    /// happen, unless a test is about that time.
    pub fn behind(&self, builder: Builder) -> Builder {
        let builder = builder.without("norpc").without("noauth").replace("rpc_host", self.host());
        let builder = builder.replace("rpc_command_timeout", PATIENCE.as_millis());
        builder.replace("rpc_request_timeout", PATIENCE.as_millis()).replace("metrics_http", "/metrics")
    }

    // --- what was called ---------------------------------------------------------------------------------------------

    /// All calls so far, in the order in which they came.
    pub fn calls(&self) -> Vec<Call> {
        self.record.calls().clone()
    }

    pub fn calls_of(&self, method: Method) -> Vec<Call> {
        let mut calls = self.calls();
        calls.retain(|call| call.method == method);
        calls
    }

    pub fn count(&self, method: Method) -> usize {
        self.record.count(method)
    }

    /// The commands' names, in the order in which they came.
    pub fn commands(&self) -> Vec<String> {
        self.calls_of(Method::Command).iter().map(|call| call.command().to_owned()).collect()
    }

    /// Waits until it was called so many times by this method; those calls.
    pub async fn called(&self, method: Method, times: usize) -> Vec<Call> {
        eventually(&format!("{times} calls of {method:?}"), async || {
            let calls = self.calls_of(method);
            (calls.len() >= times).then_some(calls)
        })
        .await
    }

    /// Forgets the calls so far.
    pub fn forget(&self) {
        self.record.calls().clear();
    }

    /// Connections that were made to it.
    pub fn connections(&self) -> usize {
        self.record.connections()
    }

    /// Calls that are being answered.
    pub fn running(&self) -> usize {
        self.record.running()
    }

    /// The most that were being answered at the same time.
    pub fn most_at_once(&self) -> usize {
        self.record.most_at_once()
    }

    /// Calls that were given up before they were answered.
    pub fn cancelled(&self) -> usize {
        self.record.cancelled()
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for call in self.calls() {
                eprintln!("--- the application was called: {:?} {}", call.method, call.body);
            }
        }
        if let Some(run) = &self.run {
            run.controls.killed.cancel();
        }
        // Waiting for it is forbidden within a test's own runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Runs each of these tests, `async fn(Wire)`, with an application over gRPC and over HTTP: `over_grpc::…`,
/// `over_http::…`.
macro_rules! over_every_wire {
    ($($test:ident),+ $(,)?) => {
        over_wire!(over_grpc, Grpc, $($test),+);
        over_wire!(over_http, Http, $($test),+);
    };
}

macro_rules! over_wire {
    ($module:ident, $wire:ident, $($test:ident),+) => {
        mod $module {
            $(#[tokio::test]
            async fn $test() {
                super::$test($crate::harness::application::Wire::$wire).await;
            })+
        }
    };
}
