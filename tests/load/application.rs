//! The application of a load run: a gRPC server that takes its time with newcomers and remembers who was asked about.
//!
//! Clients are told apart by the `client` parameter of their URL. Everybody may connect; a subscription follows the
//! stream that its identifier names.

use carrick::rpc::proto::rpc_server::{Rpc, RpcServer};
use carrick::rpc::proto::{
    CommandMessage, CommandResponse, ConnectionRequest, ConnectionResponse, DisconnectRequest, DisconnectResponse,
    EnvResponse, Status as Outcome,
};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tonic::{Request, Response, Status};
use tower_service::Service;

/// A client's number.
pub type Number = usize;

/// A Disconnect call: the client's subscriptions with their state.
pub type Farewell = BTreeMap<String, Value>;

/// What the application was asked.
#[derive(Debug, Default)]
pub struct Record {
    /// Connect calls as they came.
    pub connects: Vec<(Number, Instant)>,
    /// Connect calls that the server gave up.
    pub cancelled: u64,
    pub farewells: HashMap<Number, Vec<Farewell>>,
    running: usize,
    /// Calls of any kind at the same time.
    pub most_running: usize,
    /// Calls that made no sense.
    pub strange: Vec<String>,
}

impl Record {
    /// Forgets the clients of one burst.
    pub fn forget(&mut self) {
        *self = Self { running: self.running, ..Self::default() };
    }

    pub fn farewells(&self) -> usize {
        self.farewells.values().map(Vec::len).sum()
    }
}

pub struct Application {
    address: SocketAddr,
    record: Arc<Mutex<Record>>,
    /// Ends the application when it is dropped.
    _runtime: Runtime,
}

impl Application {
    /// Starts it on a free port; Connect calls are answered after `delay`.
    pub fn start(delay: Duration) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("application")
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let record = Arc::default();
        let serving = Serving { delay, record: Arc::clone(&record) };
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(connection(socket, serving.clone()));
            }
        });
        Ok(Self { address, record, _runtime: runtime })
    }

    /// The option that names it to the server.
    pub fn option(&self) -> String {
        format!("--rpc_host={}", self.address)
    }

    pub fn record(&self) -> MutexGuard<'_, Record> {
        locked(&self.record)
    }
}

fn locked(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn connection(socket: TcpStream, serving: Serving) {
    // Small answers, and somebody waits for each.
    let _ = socket.set_nodelay(true);
    let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
        let mut service = RpcServer::new(serving.clone());
        async move { service.call(request).await }
    });
    // The server under load closes it when it ends.
    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(socket), service)
        .await;
}

#[derive(Clone)]
struct Serving {
    delay: Duration,
    record: Arc<Mutex<Record>>,
}

/// A call under way. Dropped before it is answered, it was cancelled.
struct Running {
    record: Arc<Mutex<Record>>,
    answered: bool,
}

impl Running {
    fn begin(record: &Arc<Mutex<Record>>, note: impl FnOnce(&mut Record)) -> Self {
        let mut locked = locked(record);
        locked.running += 1;
        locked.most_running = locked.most_running.max(locked.running);
        note(&mut locked);
        Self { record: Arc::clone(record), answered: false }
    }

    fn answer<T>(mut self, answer: T) -> Result<Response<T>, Status> {
        self.answered = true;
        Ok(Response::new(answer))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut record = locked(&self.record);
        record.running -= 1;
        record.cancelled += u64::from(!self.answered);
    }
}

/// The client's number in the URL of its request.
fn number(url: &str) -> Option<Number> {
    let url = url::Url::parse(url).ok()?;
    url.query_pairs().find_map(|(name, value)| if name == "client" { value.parse().ok() } else { None })
}

#[tonic::async_trait]
impl Rpc for Serving {
    async fn connect(&self, request: Request<ConnectionRequest>) -> Result<Response<ConnectionResponse>, Status> {
        let sid = request.metadata().get("sid").and_then(|sid| sid.to_str().ok()).unwrap_or_default().to_owned();
        let url = request.into_inner().env.unwrap_or_default().url;
        let Some(client) = number(&url) else {
            locked(&self.record).strange.push(format!("Connect of {url}"));
            return Err(Status::invalid_argument("no client"));
        };
        let call = Running::begin(&self.record, |record| record.connects.push((client, Instant::now())));
        tokio::time::sleep(self.delay).await;
        call.answer(ConnectionResponse {
            status: Outcome::Success.into(),
            identifiers: json!({"client": client}).to_string(),
            transmissions: vec![json!({"type": "welcome", "sid": sid}).to_string()],
            ..ConnectionResponse::default()
        })
    }

    async fn command(&self, request: Request<CommandMessage>) -> Result<Response<CommandResponse>, Status> {
        let call = Running::begin(&self.record, |_| ());
        let command = request.into_inner();
        let channel: Value = serde_json::from_str(&command.identifier).unwrap_or_default();
        let Some(stream) = channel["stream"].as_str() else {
            locked(&self.record).strange.push(format!("Command of {}", command.identifier));
            return Err(Status::invalid_argument("no stream"));
        };
        let confirmation = json!({"type": "confirm_subscription", "identifier": command.identifier});
        let istate = BTreeMap::from([("owner".to_owned(), command.connection_identifiers)]);
        call.answer(CommandResponse {
            status: Outcome::Success.into(),
            streams: vec![stream.to_owned()],
            transmissions: vec![confirmation.to_string()],
            env: Some(EnvResponse { istate, ..EnvResponse::default() }),
            ..CommandResponse::default()
        })
    }

    async fn disconnect(&self, request: Request<DisconnectRequest>) -> Result<Response<DisconnectResponse>, Status> {
        let request = request.into_inner();
        let env = request.env.unwrap_or_default();
        let state = |identifier: &String| {
            let state = env.istate.get(identifier).and_then(|state| serde_json::from_str(state).ok());
            (identifier.clone(), state.unwrap_or_default())
        };
        let farewell: Farewell = request.subscriptions.iter().map(state).collect();
        let call = Running::begin(&self.record, |record| match number(&env.url) {
            Some(client) => record.farewells.entry(client).or_default().push(farewell),
            None => record.strange.push(format!("Disconnect of {}", env.url)),
        });
        call.answer(DisconnectResponse { status: Outcome::Success.into(), ..DisconnectResponse::default() })
    }

    async fn restore(&self, _: Request<DisconnectRequest>) -> Result<Response<DisconnectResponse>, Status> {
        Err(Status::unimplemented("Restore"))
    }
}
