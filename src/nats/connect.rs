//! Client connections to NATS: where the servers are, how we prove who we are, and a connection that never comes back.
//!
//! The client library reconnects by itself and then sends what waited in its buffer. The log must not be written that
//! way: after a loss the log's identity is checked *before* anything else is sent (decision: "one connection per
//! publishing generation"). [`ClientConfig::connect_once`] therefore makes clients that live for one connection only, and
//! whose bytes end with it, in the kernel too (see [`super::socket`]).

use super::socket::{self, Socket};
use crate::secret::Secret;
use async_nats::{Auth, AuthError, Client, ConnectErrorKind, ConnectOptions, Event, ServerAddr};
use std::error::Error;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Servers and credentials. Credentials in a server's URL (`nats://user:password@host`, `nats://token@host`) are used
/// for that server when none are given here.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// URLs (`nats://host:4222`, `tls://host:4222`); the scheme may be missing.
    pub servers: Vec<Secret>,
    /// How the connection shows in the server's monitoring.
    pub name: String,
    pub user: Option<String>,
    pub password: Option<Secret>,
    pub token: Option<Secret>,
    /// File with a user JWT and its seed, as `nsc` writes it.
    pub creds_file: Option<PathBuf>,
    pub nkey_seed: Option<Secret>,
    /// PEM file with the authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM files of our own certificate; both or none.
    pub client_cert: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
    /// Refuse to talk without TLS, whatever the URL says.
    pub tls: bool,
    /// Time for one server to answer the handshake. A frozen server's kernel still accepts connections.
    pub connect_timeout: Duration,
    /// A connection is given up after about three of these without a sign of life.
    pub ping_interval: Duration,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            servers: vec![Secret::new("nats://127.0.0.1:4222")],
            name: "carrick".into(),
            user: None,
            password: None,
            token: None,
            creds_file: None,
            nkey_seed: None,
            ca_file: None,
            client_cert: None,
            client_key: None,
            tls: false,
            connect_timeout: Duration::from_secs(2),
            ping_interval: Duration::from_secs(1),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing a retry could mend: fix the configuration.
    #[error("{0}")]
    Config(String),
    #[error("cannot connect to NATS at {server}: {source}")]
    Connect {
        server: String,
        #[source]
        source: async_nats::ConnectError,
    },
}

/// Messages a subscription may hold before the client library drops what follows; more than any batch we ask for.
pub const SUBSCRIPTION_CAPACITY: usize = 16 * 1024;

/// Free local ports that are tried: between being found and being used another program may take them.
const PORT_TRIES: usize = 3;
const LONG_HANDSHAKE: Duration = Duration::from_millis(100);

impl ClientConfig {
    /// A configuration for these servers (comma-separated URLs), everything else by default.
    pub fn for_servers(servers: &str) -> Self {
        let servers = servers.split(',').map(str::trim).filter(|s| !s.is_empty()).map(Secret::new).collect();
        Self { servers, ..Self::default() }
    }

    /// The configured servers.
    pub fn addresses(&self) -> Result<Vec<ServerAddr>, ConnectError> {
        if self.servers.is_empty() {
            return Err(ConnectError::Config("no NATS server given: set nats_servers".into()));
        }
        self.servers.iter().map(|s| parse_server(s.expose())).collect()
    }

    /// Connects to one server for the life of one connection: when it is lost, the client's task ends and what it still
    /// held is discarded, never sent. `unacknowledged`: how long the server may leave what was sent without an
    /// acknowledgement of its kernel, see [`Socket::limit`]. `on_event` must not block.
    pub async fn connect_once(
        &self,
        server: &ServerAddr,
        unacknowledged: Duration,
        on_event: impl Fn(Event) + Send + Sync + 'static,
    ) -> Result<(Client, Socket), ConnectError> {
        let identity = Arc::new(self.identity(server).await?);
        let on_event: Arc<dyn Fn(Event) + Send + Sync> = Arc::new(on_event);
        let mut outcome = None;
        for ipv6 in families(server).await {
            for _ in 0..PORT_TRIES {
                // An error: the library finds a port itself, or says why there is none.
                let local = socket::free_port(ipv6).ok();
                match self.dial(server, local, &identity, &on_event).await {
                    Ok(client) => return Ok((client, Socket::of(local, unacknowledged).await)),
                    // Somebody else was faster.
                    Err(error) if local.is_some() && is_in_use(&error) => outcome = Some(error),
                    Err(error) => {
                        outcome = Some(error);
                        break;
                    }
                }
            }
        }
        let source = outcome.unwrap_or_else(|| ConnectErrorKind::Dns.into());
        Err(ConnectError::Connect { server: shown(server), source })
    }

    async fn dial(
        &self,
        server: &ServerAddr,
        local: Option<SocketAddr>,
        identity: &Arc<Identity>,
        on_event: &Arc<dyn Fn(Event) + Send + Sync>,
    ) -> Result<Client, async_nats::ConnectError> {
        let (identity, on_event) = (identity.clone(), on_event.clone());
        let used = AtomicBool::new(false);
        // The library cannot be told not to reconnect: its attempt counter is reset by success, and 0 means for ever.
        // A second attempt cannot have the local port, which the first socket still holds. Where there is none, the second
        // handshake is refused here, before CONNECT is sent. Either way the attempt exceeds the limit.
        let options = ConnectOptions::with_auth_callback(move |nonce| {
            let first = !used.swap(true, Ordering::SeqCst);
            let answer = if first {
                identity.prove(&nonce)
            } else {
                Err(AuthError::new("this connection is not to be resumed"))
            };
            std::future::ready(answer)
        });
        let mut options = self
            .common(options)
            .max_reconnects(1)
            .reconnect_delay_callback(|_| Duration::ZERO)
            .ignore_discovered_servers()
            .event_callback(move |event| {
                on_event(event);
                std::future::ready(())
            });
        let Some(local) = local else { return options.connect(server.clone()).await };
        options = options.local_address(local);
        tokio::select! {
            client = options.connect(server.clone()) => client,
            never = let_go_quickly(local.port()) => match never {},
        }
    }

    fn common(&self, options: ConnectOptions) -> ConnectOptions {
        let mut options = options
            .name(&self.name)
            .connection_timeout(self.connect_timeout)
            .ping_interval(self.ping_interval)
            .subscription_capacity(SUBSCRIPTION_CAPACITY)
            .skip_subject_validation(true)
            .read_buffer_capacity(u16::MAX)
            .require_tls(self.tls);
        if let Some(ca) = &self.ca_file {
            options = options.add_root_certificates(ca.clone());
        }
        if let (Some(cert), Some(key)) = (&self.client_cert, &self.client_key) {
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
        options
    }

    async fn identity(&self, server: &ServerAddr) -> Result<Identity, ConnectError> {
        if let Some(path) = &self.creds_file {
            let text = tokio::fs::read_to_string(path)
                .await
                .map_err(|e| ConnectError::Config(format!("cannot read NATS credentials {}: {e}", path.display())))?;
            let jwt = armoured(&text, "NATS USER JWT").ok_or_else(|| incomplete(path, "user JWT"))?;
            let seed = armoured(&text, "USER NKEY SEED").ok_or_else(|| incomplete(path, "user seed"))?;
            return Ok(Identity { jwt: Some(jwt), key: Some(key_pair(&seed)?), ..Identity::default() });
        }
        if let Some(seed) = &self.nkey_seed {
            return Ok(Identity { key: Some(key_pair(seed.expose())?), ..Identity::default() });
        }
        if let Some(token) = &self.token {
            return Ok(Identity { token: Some(token.expose().into()), ..Identity::default() });
        }
        if let Some(user) = &self.user {
            let password = self.password.as_ref().map(|p| p.expose().to_owned());
            return Ok(Identity { user: Some(user.clone()), password, ..Identity::default() });
        }
        // From this server's URL, else from the first configured one (discovered servers come without).
        let configured = self.addresses()?;
        let source = if server.has_user_pass() { server } else { &configured[0] };
        Ok(match (source.username().map(percent_decoded), source.password().map(percent_decoded)) {
            (Some(user), Some(password)) => {
                Identity { user: Some(user), password: Some(password), ..Identity::default() }
            }
            (Some(token), None) => Identity { token: Some(token), ..Identity::default() },
            (None, _) => Identity::default(),
        })
    }
}

#[derive(Default)]
struct Identity {
    user: Option<String>,
    password: Option<String>,
    token: Option<String>,
    jwt: Option<String>,
    key: Option<nkeys::KeyPair>,
}

impl Identity {
    fn prove(&self, nonce: &[u8]) -> Result<Auth, AuthError> {
        let mut auth = Auth::new();
        auth.username = self.user.clone();
        auth.password = self.password.clone();
        auth.token = self.token.clone();
        auth.jwt = self.jwt.clone();
        if let Some(key) = &self.key {
            auth.signature = Some(key.sign(nonce).map_err(|e| AuthError::new(format!("cannot sign the nonce: {e}")))?);
            if self.jwt.is_none() {
                auth.nkey = Some(key.public_key());
            }
        }
        Ok(auth)
    }
}

/// Whether a server has addresses of IPv4 (false) and of IPv6 (true), in the order of the system's resolver. A socket that
/// is bound serves one family.
async fn families(server: &ServerAddr) -> Vec<bool> {
    let mut families = Vec::new();
    match tokio::net::lookup_host((server.host(), server.port())).await {
        Ok(addresses) => addresses.for_each(|address| families.push(address.is_ipv6())),
        // The library asks again, and says what is wrong.
        Err(error) => tracing::debug!(server = shown(server), %error, "cannot resolve a NATS server's name"),
    }
    let first = *families.first().unwrap_or(&false);
    let both = families.contains(&!first);
    if both { vec![first, !first] } else { vec![first] }
}

fn is_in_use(error: &async_nats::ConnectError) -> bool {
    let source = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
    source.is_some_and(|source| source.kind() == std::io::ErrorKind::AddrInUse)
}

/// Looks after a handshake that takes long: of a name with several addresses the library tries one after another from the
/// same local port, which a socket that is closed politely would keep.
async fn let_go_quickly(port: u16) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(LONG_HANDSHAKE).await;
        // It reads a list of all descriptors. A panic there is the runtime's to report.
        let _ = tokio::task::spawn_blocking(move || socket::end_abruptly(port)).await;
    }
}

/// A server's address without its credentials, for logs.
pub fn shown(server: &ServerAddr) -> String {
    format!("{}:{}", server.host(), server.port())
}

/// Parses one server URL; a missing scheme means `nats://`.
pub fn parse_server(text: &str) -> Result<ServerAddr, ConnectError> {
    // The text may hold a password: the error does not repeat it.
    text.parse().map_err(|e| ConnectError::Config(format!("bad NATS server URL, expected nats://host:port: {e}")))
}

fn key_pair(seed: &str) -> Result<nkeys::KeyPair, ConnectError> {
    nkeys::KeyPair::from_seed(seed.trim()).map_err(|e| ConnectError::Config(format!("bad NATS nkey seed: {e}")))
}

fn incomplete(path: &Path, what: &str) -> ConnectError {
    ConnectError::Config(format!("NATS credentials {} contain no {what}", path.display()))
}

/// The block between `-----BEGIN label-----` and the next line of dashes.
fn armoured(text: &str, label: &str) -> Option<String> {
    let begin = format!("BEGIN {label}");
    let mut lines = text.lines().map(str::trim).skip_while(|line| !(line.starts_with("---") && line.contains(&begin)));
    lines.next()?;
    let block: String = lines.take_while(|line| !line.starts_with("---")).collect();
    (!block.is_empty()).then_some(block)
}

fn percent_decoded(text: &str) -> String {
    url::form_urlencoded::parse(format!("x={}", text.replace('+', "%2B")).as_bytes())
        .next()
        .map(|(_, value)| value.into_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    #[test]
    fn secrets_are_not_shown() {
        let config = ClientConfig {
            password: Some(Secret::new("hunter2")),
            ..ClientConfig::for_servers("nats://me:hunter2@localhost, nats://b:1")
        };
        assert_eq!(config.servers.len(), 2);
        assert!(!format!("{config:?}").contains("hunter2"));
        let bad = parse_server("gopher://me:hunter2@localhost").unwrap_err().to_string();
        assert!(!bad.contains("hunter2"), "{bad}");
    }

    #[tokio::test]
    async fn credentials_in_the_url_are_decoded() {
        let config = ClientConfig::for_servers("nats://me:p%40ss+1@localhost:4222");
        let identity = config.identity(&config.addresses().unwrap()[0]).await.unwrap();
        let auth = identity.prove(b"").unwrap();
        assert_eq!((auth.username.as_deref(), auth.password.as_deref()), (Some("me"), Some("p@ss+1")));

        let config = ClientConfig::for_servers("nats://t0ken@localhost");
        let identity = config.identity(&config.addresses().unwrap()[0]).await.unwrap();
        assert_eq!(identity.prove(b"").unwrap().token.as_deref(), Some("t0ken"));
    }

    const INFO: &[u8] = b"INFO {\"server_id\":\"x\",\"version\":\"2.15.1\",\"max_payload\":1048576}\r\n";
    const PATIENCE: Duration = Duration::from_secs(10);

    /// A server that has room for little, and a client of it.
    async fn pair(config: ClientConfig, unacknowledged: Duration) -> (TcpListener, TcpStream, Client, Socket) {
        let listener = tokio::net::TcpSocket::new_v4().unwrap();
        listener.set_recv_buffer_size(4096).unwrap();
        listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = listener.listen(8).unwrap();
        // A name that may have an IPv6 address too, where nobody listens.
        let server = parse_server(&format!("localhost:{}", listener.local_addr().unwrap().port())).unwrap();
        let connecting =
            tokio::spawn(async move { config.connect_once(&server, unacknowledged, |_| {}).await.unwrap() });
        let mut peer = listener.accept().await.unwrap().0;
        peer.write_all(INFO).await.unwrap();
        let mut said = String::new();
        while !said.ends_with("PING\r\n") {
            said.push(char::from(peer.read_u8().await.unwrap()));
        }
        assert!(said.starts_with("CONNECT"), "{said}");
        peer.write_all(b"PONG\r\n").await.unwrap();
        let (client, socket) = connecting.await.unwrap();
        (listener, peer, client, socket)
    }

    /// Sends more than the peer's kernel takes, and waits until it takes no more.
    async fn clog(client: &Client, peer: &TcpStream) -> u64 {
        for _ in 0..64 {
            client.publish("a", vec![b'x'; 65_536].into()).await.unwrap();
        }
        let waiting = || rustix::io::ioctl_fionread(peer).unwrap();
        let mut before = 0;
        for _ in 0..200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let now = waiting();
            if now > 0 && now == before {
                return now;
            }
            before = now;
        }
        panic!("the peer's queue grows for ever");
    }

    async fn ends(client: Client) {
        let ended = async { while client.publish("a", "b".into()).await.is_ok() {} };
        tokio::time::timeout(PATIENCE, ended).await.expect("the client's task ends");
    }

    /// What a client held when its connection was lost is never sent, and no second connection is made.
    #[tokio::test]
    async fn a_lost_connection_is_not_resumed() {
        let (listener, peer, client, _socket) = pair(ClientConfig::default(), PATIENCE).await;
        drop(peer);
        ends(client).await;
        let second = tokio::time::timeout(Duration::from_millis(100), listener.accept()).await;
        assert!(second.is_err(), "it was dialled again: {second:?}");
    }

    /// The library still holds its descriptor, and the peer reads only afterwards.
    #[tokio::test]
    async fn row_01_what_the_peer_had_no_room_for_is_forgotten_with_an_aborted_connection() {
        let (_listener, mut peer, client, socket) = pair(ClientConfig::default(), PATIENCE).await;
        let taken = clog(&client, &peer).await;
        socket.abort();
        let mut read = Vec::new();
        let outcome = tokio::time::timeout(PATIENCE, peer.read_to_end(&mut read)).await.expect("the connection ends");
        assert_eq!(outcome.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(read.len() as u64, taken, "nothing came after the abort");
        ends(client).await;
    }

    /// No ping of the library's is missed here: the kernel ends it.
    #[tokio::test]
    async fn row_01_a_peer_that_takes_nothing_is_given_up_by_the_kernel() {
        let config = ClientConfig { ping_interval: Duration::from_secs(600), ..ClientConfig::default() };
        let (_listener, mut peer, client, _socket) = pair(config, Duration::from_millis(500)).await;
        let taken = clog(&client, &peer).await;
        ends(client).await;
        let mut read = Vec::new();
        let outcome = tokio::time::timeout(PATIENCE, peer.read_to_end(&mut read)).await.expect("the connection ends");
        assert_eq!(outcome.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(read.len() as u64, taken);
    }

    #[tokio::test]
    async fn credentials_file_signs_with_its_seed() {
        let user = nkeys::KeyPair::new_user();
        let file = tempfile::NamedTempFile::new().unwrap();
        let seed = user.seed().unwrap();
        std::fs::write(
            file.path(),
            format!("-----BEGIN NATS USER JWT-----\nabc.def\n------END NATS USER JWT------\n\n****\n-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"),
        )
        .unwrap();
        let config = ClientConfig { creds_file: Some(file.path().into()), ..ClientConfig::default() };
        let identity = config.identity(&config.addresses().unwrap()[0]).await.unwrap();
        let auth = identity.prove(b"nonce").unwrap();
        assert_eq!(auth.jwt.as_deref(), Some("abc.def"));
        user.verify(b"nonce", &auth.signature.unwrap()).unwrap();
    }
}
