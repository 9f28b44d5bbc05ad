//! The three backends that share one contract, and the servers that many tests share.

use super::carrick::{Builder, Server};
use super::nats::NatsServer;
use std::ops::Deref;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// `--broker=memory`.
    Memory,
    /// `--broker=nats --embed_nats`.
    EmbeddedNats,
    /// `--broker=nats` with a nats-server of the test run's own.
    ExternalNats,
}

/// A client that comes back asks for its history in time, also where this machine stands still for a while.
fn patient() -> Builder {
    Builder::open().option("history_hold", 6)
}

impl Backend {
    /// Options of a server with a store of its own.
    pub fn builder(self) -> Builder {
        match self {
            Self::Memory => patient().option("broker", "memory"),
            // The store lies in the server's folder, so that it survives a restart and goes away with the test.
            Self::EmbeddedNats => patient()
                .option("broker", "nats")
                .option("embed_nats", "true")
                .option("enats_addr", "nats://127.0.0.1:-1")
                .option("enats_store_dir", "store"),
            Self::ExternalNats => Self::on_nats(&shared_nats().url(), &unused_prefix()),
        }
    }

    /// Options of a node on this nats-server; nodes with the same prefix form one deployment.
    pub fn on_nats(url: &str, prefix: &str) -> Builder {
        let builder = patient().option("broker", "nats");
        builder.option("nats_servers", url).option("nats_prefix", prefix)
    }

    /// The server with default limits that most tests of this backend share. Tests use streams of their own.
    pub fn shared(self) -> SharedServer {
        static SERVERS: [OnceLock<Server>; 3] = [const { OnceLock::new() }; 3];
        SharedServer { server: SERVERS[self as usize].get_or_init(|| self.builder().start()) }
    }
}

/// A deployment's name that no other test uses.
pub fn unused_prefix() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("t{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// The nats-server that tests share which do not harm it.
pub fn shared_nats() -> &'static NatsServer {
    static SHARED: OnceLock<NatsServer> = OnceLock::new();
    SHARED.get_or_init(NatsServer::start)
}

/// A test's view of a shared server: reports its log if the test fails.
pub struct SharedServer {
    server: &'static Server,
}

impl Deref for SharedServer {
    type Target = Server;

    fn deref(&self) -> &Server {
        self.server
    }
}

impl Drop for SharedServer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.server.report();
        }
    }
}

/// One module of tests.
macro_rules! on_backend {
    ($module:ident, $backend:ident, shared, $($test:ident),+) => {
        mod $module {
            $(#[tokio::test]
            async fn $test() {
                super::$test($crate::harness::Backend::$backend.shared()).await;
            })+
        }
    };
    ($module:ident, $backend:ident, own, $($test:ident),+) => {
        mod $module {
            $(#[tokio::test]
            async fn $test() {
                super::$test($crate::harness::Backend::$backend).await;
            })+
        }
    };
}

/// Runs each of these tests, `async fn(SharedServer)`, on every backend: `on_memory::…`,
/// `on_embedded_nats::…`, `on_external_nats::…`.
macro_rules! on_every_backend {
    ($($test:ident),+ $(,)?) => {
        on_backend!(on_memory, Memory, shared, $($test),+);
        on_backend!(on_embedded_nats, EmbeddedNats, shared, $($test),+);
        on_backend!(on_external_nats, ExternalNats, shared, $($test),+);
    };
}

/// Runs each of these tests, `async fn(Backend)`, on every backend; each starts servers of its own.
macro_rules! with_own_server_on_every_backend {
    ($($test:ident),+ $(,)?) => {
        on_backend!(alone_on_memory, Memory, own, $($test),+);
        on_backend!(alone_on_embedded_nats, EmbeddedNats, own, $($test),+);
        on_backend!(alone_on_external_nats, ExternalNats, own, $($test),+);
    };
}

/// The same for the two backends whose store survives the process.
macro_rules! with_own_server_on_durable_backends {
    ($($test:ident),+ $(,)?) => {
        on_backend!(alone_on_embedded_nats, EmbeddedNats, own, $($test),+);
        on_backend!(alone_on_external_nats, ExternalNats, own, $($test),+);
    };
}
