//! The definition of every option. Flags, environment, file, help text, documentation, defaults and the typed
//! configuration all come from here.

use super::endpoint::{Endpoint, Gateway, Gateways, Listen, Peers, Sync, is_address, is_server};
use super::history::{HistoryPolicies, HistoryTables};
use super::kinds::{ANY_TIME, Choices, Hidden, Int, Kind, List, Location, Millis, Raw, SOME_TIME, Switch, Text};
use super::network::Network;
use super::row::{Category, Row, options, traits_of};
use super::values::*;
use super::{Loaded, Secret};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

const PORT: Int = Int { min: 0, max: 65_535, name: "PORT" };
const BYTES: Int = Int { min: 1, max: 1 << 40, name: "BYTES" };
const BYTES_OR_NONE: Int = Int { min: 0, max: 1 << 40, name: "BYTES" };
const MOST: Int = Int { min: 1, max: 1_000_000, name: "N" };
const COUNT: Int = Int { min: 0, max: 1_000_000_000, name: "N" };
const WORKERS: Int = Int { min: 1, max: 1024, name: "N" };
const PAYLOAD: Int = Int { min: 0, max: 64 * 1024 * 1024, name: "BYTES" };

const ANY: Text = Text { check: |_| true, allowed: "text", name: "TEXT" };
const HOST: Text = Text {
    check: |t| !t.is_empty() && !t.contains(char::is_whitespace),
    allowed: "a host name or an address",
    name: "HOST",
};
const PATH: Text = Text { check: is_path, allowed: "a path that starts with `/`", name: "PATH" };
const SUBJECT: Text = Text {
    check: is_subject,
    allowed: "a NATS subject: dot-separated words without blanks, `*` and `>`",
    name: "SUBJECT",
};
pub(super) const WORD: Text =
    Text { check: is_word, allowed: "1 to 64 of the characters `A-Z a-z 0-9 _ -`", name: "NAME" };
const NAME: Text = Text {
    check: |t| t.len() <= 200 && !t.chars().any(|c| c.is_whitespace() || c.is_control()),
    allowed: "a name of at most 200 bytes without blanks",
    name: "NAME",
};
const CLUSTER_NAME: Text = Text { check: |t| !t.is_empty() && (NAME.check)(t), ..NAME };
const ADDRESS: Text = Text { check: is_address, allowed: "an address as `host:port`", name: "HOST:PORT" };

const WS_PATHS: List = List {
    check: is_ws_path,
    allowed: "one or more paths that start with `/`, with `{name}` for a segment or `/*` at the end if wanted",
    min: 1,
    array: true,
    name: "PATHS",
};
const ORIGINS: List = List {
    check: is_origin,
    allowed: "`host[:port]` or `*suffix` separated by commas, without a scheme such as `https://`",
    min: 0,
    array: false,
    name: "HOSTS",
};
const NETWORKS: List = List {
    check: |t| Network::parse(t).is_some(),
    allowed: "addresses and networks as `10.0.0.0/8` or `::1`, separated by commas",
    min: 0,
    array: true,
    name: "NETWORKS",
};
const SERVERS: List = List {
    check: is_server,
    allowed: "one or more servers as `nats://host:port` or `tls://host:port`, separated by commas",
    min: 1,
    array: false,
    name: "URLS",
};
const RPC_HOST: Text = Text {
    check: |t| !t.is_empty() && !t.contains(|c: char| c.is_whitespace() || c.is_control()),
    allowed: "`host:port`, `dns:///host:port`, `grpc-list://host1:port,host2:port`, or a URL as `http://host:port/path`",
    name: "ADDRESS",
};
const HEADERS: List = List {
    check: |t| t.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')),
    allowed: "names of HTTP headers separated by commas",
    min: 0,
    array: true,
    name: "NAMES",
};
const COOKIES: List = List {
    check: |t| !t.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, ';' | '=')),
    allowed: "names of cookies separated by commas",
    min: 0,
    array: true,
    name: "NAMES",
};
const TAGS: List = List {
    check: |t| !t.contains(|c: char| c.is_whitespace() || c.is_control()),
    allowed: "tags of nats-servers separated by commas",
    min: 0,
    array: true,
    name: "TAGS",
};
const PEM: Text = Text { check: |_| true, allowed: "PEM text or the path of a PEM file", name: "PEM" };
const CALLS: Int = Int { min: 1, max: 1_000_000, name: "N" };
const RATE_OR_NONE: Int = Int { min: 0, max: 1_000_000, name: "N" };
const RATE: Int = Int { min: 1, max: 1_000_000, name: "N" };

options! {
    root {
        /// Application secret: the other secrets follow from it where they are not given. A comma list rotates it: the first signs, all verify
        secret: Option<Secret> [Hidden] = "", "secret", Access;
        /// Bearer token of publishers over HTTP; derived from the secret if not given, `none`: publishing is open
        broadcast_key: Option<Secret> [Hidden] = "", "broadcast_key", Access;
        /// Open everything: no authentication, public streams, publishing without a token
        public: bool [Switch] = "false", "public", Access;
        /// Accept every connection; its identifiers become `{"sid":"…"}`
        noauth: bool [Switch] = "false", "noauth", Access;
        /// Run without an application: the same as rpc_impl=none
        norpc: bool [Switch] = "false", "norpc", Rpc;
        /// This node's name in the logs; random if not given
        node_id: String [NAME] = "", "node_id", Server, hidden;
        /// Sets of defaults to apply; detected if not given, `none` for none
        presets: Vec<Preset> [Choices(PRESETS)] = "", "presets", Server;
        /// How applications publish
        broadcast_adapters: Vec<BroadcastAdapter> [Choices(BROADCAST_ADAPTERS)] = "http", "broadcast_adapter", Broadcasting;
        /// History of streams whose name matches a pattern, as `pattern=chat/*,limit=50,ttl=1h,storage=memory,replicas=1,name=chat`; may be given several times, the first that matches holds
        history: HistoryPolicies [HistoryTables] = "", "history", Broker, repeated;
        /// How nodes pass on what is not stored; chosen by the broker if not given
        pubsub_adapter: PubsubKind [PUBSUB_KINDS] = "", "pubsub", Broadcasting;
        derived {
            /// Where the settings came from
            loaded: Loaded;
        }
    }

    /// Listeners.
    server: Server {
        /// Address to bind every listener to (containers need `0.0.0.0`)
        host: String [HOST] = "localhost", "host", Server;
        /// Main port; 0 for any free one
        port: u16 [PORT] = "8080", "port", Server, alias("PORT");
        /// Path that answers while the process lives
        health_path: String [PATH] = "/health", "health-path", Server;
        /// Path that answers 503 while draining or while the store is away
        ready_path: String [PATH] = "/ready", "ready_path", Server;
        /// Most connections at a time, of all listeners together; beyond it WebSockets are answered 503, and other requests once per connection. 0: what the open file limit leaves after a reserve
        max_conn: usize [COUNT] = "0", "max-conn", Server;
        /// Most WebSockets from one address (one /64 network of IPv6), with its connections that have not asked for anything yet; beyond it 429. HTTP connections stay open for a next request while all of them together are fewer. 0: no limit
        max_conn_per_address: usize [COUNT] = "0", "max_conn_per_address", Server;
        /// Networks of proxies, as `10.0.0.0/8,::1`, whose X-Forwarded-For tells the address of a client
        trusted_proxies: Vec<String> [NETWORKS] = "", "trusted_proxies", Server;
        /// After so long a silence TCP asks whether a peer is still there, and gives it as long again; 0: never
        tcp_keepalive: Duration [ANY_TIME] = "60", "tcp_keepalive", Server;
        /// Browser origins that may connect, as `host[:port]` or `*suffix`; empty: all
        allowed_origins: Vec<String> [ORIGINS] = "", "allowed_origins", Server;
        /// Certificate chain in a PEM file; TLS is on if key and certificate are given
        ssl_cert_path: Option<PathBuf> [Location] = "", "ssl_cert", Server, key("ssl.cert_path");
        /// Private key in a PEM file
        ssl_key_path: Option<PathBuf> [Location] = "", "ssl_key", Server, key("ssl.key_path");
        /// File that gets the addresses really bound, as JSON, once the server listens
        port_file: Option<PathBuf> [Location] = "", "port_file", Server, hidden;
        derived {}
    }

    /// Logs.
    logging: Logging {
        /// Lowest level that is logged
        level: LogLevel [LOG_LEVELS] = "info", "log_level", Logging;
        /// Form of a log line
        format: LogFormat [LOG_FORMATS] = "text", "log_format", Logging;
        /// Log at level `debug`
        debug: bool [Switch] = "false", "debug", Logging;
        derived {}
    }

    /// The application, who decides about connections and channels.
    rpc: Rpc {
        /// Where the application is: `host:port`, `dns:///host:port` (all its addresses) or `grpc-list://h1:p,h2:p` over gRPC, `http(s)://host:port/path` over HTTP
        host: String [RPC_HOST] = "localhost:50051", "rpc_host", Rpc;
        /// How to speak to the application; by the scheme of rpc_host if not given
        implementation: RpcKind [RPC_KINDS] = "", "rpc_impl", Rpc, hidden;
        /// Calls to the application in flight at the same time; others wait their turn. 0: adapts to what the application can take
        concurrency: usize [COUNT] = "28", "rpc_concurrency", Rpc;
        /// Adaptive concurrency: calls in flight at the start
        concurrency_initial: usize [CALLS] = "25", "rpc_concurrency_initial", Rpc, hidden;
        /// Adaptive concurrency: fewest calls in flight
        concurrency_min: usize [CALLS] = "5", "rpc_concurrency_min", Rpc, hidden;
        /// Adaptive concurrency: most calls in flight
        concurrency_max: usize [CALLS] = "100", "rpc_concurrency_max", Rpc, hidden;
        /// Milliseconds for one attempt of a call; 0: no limit over gRPC, 3000 over HTTP
        request_timeout: Duration [Millis] = "0", "rpc_request_timeout", Rpc;
        /// Milliseconds for all attempts of a call, from the moment it need not wait any more; 0: no limit
        command_timeout: Duration [Millis] = "3000", "rpc_command_timeout", Rpc, hidden;
        /// Try a call again whose connection broke after it was sent, or that was answered UNAVAILABLE: the application may then execute it twice
        retry_sent: bool [Switch] = "true", "rpc_retry_sent", Rpc;
        /// Watch the health of applications over gRPC (grpc.health.v1) and call those that serve
        health_watch: bool [Switch] = "true", "rpc_health_watch", Rpc, hidden;
        /// Bearer token of calls over HTTP; derived from the secret if not given, `none`: no token
        secret: Option<Secret> [Hidden] = "", "http_rpc_secret", Rpc;
        /// Headers of the client's request that the application gets to see
        proxy_headers: Vec<String> [HEADERS] = "cookie", "headers", Rpc;
        /// Cookies that the application gets to see; all if not given
        proxy_cookies: Vec<String> [COOKIES] = "", "proxy-cookies", Rpc;
        /// Tell the application of sessions that go on after a lost connection (method Restore)
        restore: bool [Switch] = "false", "rpc_restore", Rpc;
        /// Use TLS over gRPC; over HTTP the URL decides
        enable_tls: bool [Switch] = "false", "rpc_enable_tls", Rpc, hidden;
        /// Check the application's certificate
        tls_verify: bool [Switch] = "true", "rpc_tls_verify", Rpc, hidden;
        /// Authorities that sign the application's certificate, as a PEM file or PEM text; the system's if not given. Switches TLS on
        tls_root_ca: Option<String> [PEM] = "", "rpc_tls_root_ca", Rpc, hidden, key("tls_root_ca_path");
        /// PEM file of the certificate we show the application
        tls_client_cert: Option<PathBuf> [Location] = "", "rpc_tls_client_cert", Rpc, hidden;
        /// PEM file of that certificate's key
        tls_client_key: Option<PathBuf> [Location] = "", "rpc_tls_client_key", Rpc, hidden;
        /// Largest answer of the application in bytes; 0: 4 MiB
        max_recv_size: usize [BYTES_OR_NONE] = "0", "rpc_max_call_recv_size", Rpc, hidden;
        /// Largest request to the application in bytes; 0: no limit
        max_send_size: usize [BYTES_OR_NONE] = "0", "rpc_max_call_send_size", Rpc, hidden;
        derived {
            /// The deprecated limit of one attempt that holds over HTTP alone; zero: not given
            http_request_timeout: Duration;
        }
    }

    /// Telling the application that clients have left.
    disconnector: Disconnector {
        /// Disconnect calls per second
        rate: u32 [RATE] = "100", "disconnect_rate", Rpc, hidden;
        /// Disconnect calls that may wait; when there are more, the oldest are dropped
        backlog: usize [RATE] = "4096", "disconnect_backlog_size", Rpc, hidden;
        /// How long a disconnect call waits for its client to come back, which makes it needless; at least 30 s below sessions_ttl. 0: not at all
        grace: Duration [ANY_TIME] = "0", "disconnect_grace", Rpc;
        derived {}
    }

    /// History and sessions.
    broker: Broker {
        /// Where history and sessions are kept
        adapter: BrokerKind [BROKER_KINDS] = "none", "broker", Broker;
        /// Messages kept per stream; 0: nothing is stored
        history_limit: u64 [COUNT] = "100", "history_limit", Broker;
        /// How long a message is kept; 0: nothing is stored
        history_ttl: Duration [ANY_TIME] = "300", "history_ttl", Broker;
        /// How long a session can be resumed after its connection is gone; half as long again, and 2 s, where its node died with it. 0: sessions are not saved
        sessions_ttl: Duration [ANY_TIME] = "300", "sessions_ttl", Broker;
        /// Bytes that are saved of one session, of a subscription 200 and its identifier three times or less; a larger one cannot be resumed
        max_session_size: usize [BYTES] = "2097152", "max_session_size", Broker;
        /// Bytes of the store that all saved sessions may take; when they do further ones cannot be resumed and publishing goes on. 0: 268435456 in memory; in NATS an eighth of what the embedded store (or the account, if it has a limit) may take when their bucket is made, and kept from then on; no limit of their own in an account without one
        sessions_budget: u64 [BYTES_OR_NONE] = "0", "sessions_budget", Broker;
        /// How long a presence record outlives its connection
        presence_ttl: Duration [ANY_TIME] = "15", "presence_ttl", Broker;
        /// How long a publisher waits for the store's acknowledgement; half the dedup window at most
        publish_timeout: Duration [SOME_TIME] = "10", "publish_timeout", Broker;
        /// How long a returning client waits for a store that is away before its connection is closed
        timeout: Duration [SOME_TIME] = "8", "broker_timeout", Broker;
        /// How long a publisher's retry is recognised; history_ttl at most. Costs memory: rate times window
        dedup_window: Duration [SOME_TIME] = "30", "dedup_window", Broker;
        /// Time over which connected clients are closed to authenticate anew, where this node may have missed remote disconnects
        reauth_spread: Duration [ANY_TIME] = "60", "reauth_spread", Broker;
        /// How long live messages of a resumed client wait for its history command
        history_hold: Duration [ANY_TIME] = "2", "history_hold", Broker;
        /// Bytes of recent messages held in memory for all streams of this node, with 200 for each message
        snapshot_budget: u64 [BYTES_OR_NONE] = "268435456", "snapshot_budget", Broker;
        /// Bytes of memory for the history of all streams where the broker is `memory`, with 200 for each message; beyond it publications are refused (503, storage full). 0: no limit
        memory_history_size: usize [BYTES_OR_NONE] = "536870912", "memory_history_size", Broker;
        /// How long a stream stays open after its last subscriber left
        stream_linger: Duration [ANY_TIME] = "5", "stream_linger", Broker;
        /// How often open streams are compared with the log; a quarter of history_ttl at most
        head_check_interval: Duration [SOME_TIME] = "5", "head_check_interval", Broker;
        derived {}
    }

    /// Tokens that say who a client is.
    jwt: Jwt {
        /// Secrets of tokens signed by HS256, HS384 or HS512, separated by commas; the application secret if not given, `none`: no such tokens
        secret: Option<Secret> [Hidden] = "", "jwt_secret", Access;
        /// Query parameter with the token; with `x-` before it, the header
        param: String [WORD] = "jid", "jwt_param", Access;
        /// Refuse clients without a token
        force: bool [Switch] = "false", "enforce_jwt", Access;
        /// PEM file with public keys of tokens signed by RS256, ES256 or EdDSA
        key_file: Option<PathBuf> [Location] = "", "jwt_key_file", Access;
        /// The same as a JWKS file; the `kid` of a token chooses its key
        jwks_file: Option<PathBuf> [Location] = "", "jwt_jwks_file", Access;
        /// Resume sessions whose token has expired
        restore_expired: bool [Switch] = "false", "jwt_restore_expired", Access;
        derived {}
    }

    /// Who may subscribe to streams.
    streams: Streams {
        /// Key that signs stream names; the application secret if not given, `none`: no signed streams
        secret: Option<Secret> [Hidden] = "", "streams_secret", Streams;
        /// Allow subscriptions to plain stream names
        public: bool [Switch] = "false", "public_streams", Streams;
        /// Allow whispers on signed streams
        whisper: bool [Switch] = "false", "streams_whisper", Streams;
        /// Whispers that a client may send per second, twice as many at once after a pause; beyond it they are dropped. 0: no limit
        max_whisper_rate: u32 [RATE_OR_NONE] = "100", "max_whisper_rate", Streams;
        /// Streams that may be open at a time on this node; who needs another one is told to try again (1013). 0: as many as half of the memory (of the machine or its control group) has room for, 16 KiB each
        max_streams: usize [COUNT] = "0", "max_streams", Streams;
        /// Allow presence on signed streams
        presence: bool [Switch] = "true", "streams_presence", Streams;
        /// Name of the channel for streams; empty switches it off
        pubsub_channel: String [ANY] = "$pubsub", "", Streams, file_only;
        /// Serve subscriptions to `Turbo::StreamsChannel`
        turbo: bool [Switch] = "false", "turbo_streams", Streams;
        /// Key that signs Turbo's stream names; the streams' key if not given
        turbo_secret: Option<Secret> [Hidden] = "", "turbo_streams_secret", Streams;
        /// Serve subscriptions to `CableReady::Stream`
        cable_ready: bool [Switch] = "false", "cable_ready", Streams;
        /// Key that signs CableReady's stream names; the streams' key if not given
        cable_ready_secret: Option<Secret> [Hidden] = "", "cable_ready_secret", Streams;
        derived {}
    }

    /// WebSocket connections.
    ws: Ws {
        /// Paths of WebSocket connections; `{name}` stands for a segment, a final `/*` for anything
        paths: Vec<String> [WS_PATHS] = "/cable", "path", WebSocket;
        /// Bytes of the read buffer of a connection
        read_buffer_size: usize [BYTES] = "1024", "read_buffer_size", WebSocket, hidden;
        /// Bytes of the write buffer of a connection
        write_buffer_size: usize [BYTES] = "1024", "write_buffer_size", WebSocket, hidden;
        /// Largest message from a client in bytes; a larger one closes the connection (1009)
        max_message_size: usize [BYTES] = "65536", "max_message_size", WebSocket, hidden;
        /// How long more than ws_max_pending_size may wait for a client; one that takes nothing at all is dropped after ten times as long
        write_timeout: Duration [SOME_TIME] = "2", "ws_write_timeout", WebSocket;
        /// Bytes queued for a client, with 128 for each message: stored messages beyond wait in the log; a client that has more queued for ws_write_timeout, or 8 times as much at once, is dropped as too slow. 0: no limit
        max_pending_size: usize [BYTES_OR_NONE] = "1048576", "ws_max_pending_size", WebSocket;
        /// Bytes queued for all clients together (a message that many get counts once): beyond, clients over ws_max_pending_size that would get more are dropped; 0: no limit
        max_pending_total: usize [BYTES_OR_NONE] = "268435456", "ws_max_pending_total", WebSocket;
        /// Bytes of commands that may wait for their turn, of all clients together; beyond it those who are not let in yet are not read, the others one command at a time. A single client may have twice max_message_size
        max_queued_size: usize [BYTES] = "67108864", "ws_max_queued_size", WebSocket;
        /// How long a connection may wait to be let in, its turn at the application included, before it is closed and may try again; 0: no limit
        auth_timeout: Duration [ANY_TIME] = "60", "auth_timeout", WebSocket;
        /// Subscriptions of one connection; further ones are rejected. Twice as many commands and 100 may come at once
        max_subscriptions: usize [MOST] = "2000", "max_subscriptions", WebSocket;
        /// Bytes of an identifier; subscriptions with a longer one are rejected
        max_identifier_size: usize [BYTES] = "4096", "max_identifier_size", WebSocket;
        /// Bytes of memory that the subscriptions of all connections may hold: identifiers, names of streams, state, and 1280 for each; further ones are rejected, and a session that does not fit is told to try again (1013). 0: a quarter of the memory (of the machine or its control group)
        subscriptions_budget: usize [BYTES_OR_NONE] = "0", "subscriptions_budget", WebSocket;
        /// Commands per second of one connection, after those that may come at once; beyond it the connection is read more slowly. 0: no limit
        max_commands_rate: u32 [COUNT] = "200", "max_commands_rate", WebSocket;
        /// Accepted for compatibility: messages are not compressed
        enable_compression: bool [Switch] = "false", "enable_ws_compression", WebSocket, hidden;
        derived {}
    }

    /// Connections to NATS.
    nats: Nats {
        /// NATS servers; the embedded one if that is on and nothing is given
        servers: Vec<String> [SERVERS] = "nats://127.0.0.1:4222", "nats_servers", Nats;
        /// Try the servers in the order given
        dont_randomize_servers: bool [Switch] = "false", "nats_dont_randomize_servers", Nats, hidden;
        /// First word of every subject, stream and bucket that is used
        prefix: String [WORD] = "carrick", "nats_prefix", Nats;
        /// Copies of log and sessions: 1, 3 or 5; 0: 1 on a single server, 3 in a cluster
        replicas: u16 [REPLICAS] = "0", "nats_replicas", Nats;
        /// Only servers with all of these tags (`server_tags` of their configuration) keep copies, separated by commas
        placement_tags: Vec<String> [TAGS] = "", "nats_placement_tags", Nats;
        /// In a cluster, let the server that leads the log lead sessions and records, too
        gather_leaders: bool [Switch] = "true", "nats_gather_leaders", Nats;
        /// User name
        user: Option<String> [ANY] = "", "nats_user", Nats;
        /// Password of the user
        password: Option<Secret> [Hidden] = "", "nats_password", Nats;
        /// Authentication token
        token: Option<Secret> [Hidden] = "", "nats_token", Nats;
        /// Credentials file (JWT and seed)
        creds: Option<PathBuf> [Location] = "", "nats_creds", Nats;
        /// File with the seed of an nkey
        nkey: Option<PathBuf> [Location] = "", "nats_nkey", Nats;
        /// PEM file of the authorities that sign the servers' certificates; the system's if not given
        tls_ca: Option<PathBuf> [Location] = "", "nats_tls_ca", Nats;
        /// PEM file of the client certificate
        tls_cert: Option<PathBuf> [Location] = "", "nats_tls_cert", Nats;
        /// PEM file of the client certificate's key
        tls_key: Option<PathBuf> [Location] = "", "nats_tls_key", Nats;
        derived {}
    }

    /// Publishing over HTTP.
    http_broadcast: HttpBroadcast {
        /// Port of publishing over HTTP; 0: the main port if a key guards it, else 8090
        port: u16 [PORT] = "0", "http_broadcast_port", Broadcasting;
        /// Path of publishing over HTTP
        path: String [PATH] = "/_broadcast", "http_broadcast_path", Broadcasting;
        /// Answer with CORS headers for the allowed origins
        cors_headers: bool [Switch] = "false", "http_broadcast_cors", Broadcasting, hidden;
        /// Largest body of a publication in bytes
        max_body: usize [BYTES] = "8388608", "http_broadcast_max_body", Broadcasting;
        /// Bytes of publications over HTTP that are being read or published at a time; further ones wait a second, then they are answered 503. At least http_broadcast_max_body
        max_pending: usize [BYTES] = "134217728", "http_broadcast_max_pending", Broadcasting;
        derived {
            /// Where to listen, by the rules of [`BroadcastListener`]
            listener: BroadcastListener;
            /// The key was derived from the application secret
            key_derived: bool;
        }
    }

    /// Publishing over NATS.
    nats_broadcast: NatsBroadcast {
        /// Subject of publishing over NATS
        channel: String [SUBJECT] = "__anycable__", "nats_channel", Broadcasting;
        derived {}
    }

    /// What nodes tell each other over NATS.
    nats_pubsub: NatsPubsub {
        /// Subject of commands between nodes
        channel: String [SUBJECT] = "__anycable_internal__", "", Broadcasting, file_only;
        derived {}
    }

    /// Pings and shutdown.
    app: App {
        /// Which clients' leaving the application is told of; `auto`: those it has met
        disconnect_mode: DisconnectMode [DISCONNECT_MODES] = "auto", "disconnect_mode", Rpc;
        /// Time between pings; 0: none
        ping_interval: Duration [ANY_TIME] = "3", "ping_interval", Ping;
        /// Precision of the time in pings
        ping_timestamp_precision: TimePrecision [TIME_PRECISIONS] = "s", "ping_timestamp_precision", Ping, hidden;
        /// How long a client may leave pings unanswered; 0: pongs are not required
        pong_timeout: Duration [ANY_TIME] = "0", "pong_timeout", Ping;
        /// Send WebSocket pings, too; their pongs count
        enable_native_ping: bool [Switch] = "false", "enable_native_pings", Ping;
        /// How long the whole graceful stop may take
        shutdown_timeout: Duration [ANY_TIME] = "30", "shutdown_timeout", Shutdown;
        /// Wait after the signal before anything is closed; part of the timeout
        shutdown_delay: Duration [ANY_TIME] = "0", "shutdown_delay", Shutdown;
        /// Clients closed at the same time
        shutdown_disconnect_gopool_size: usize [WORKERS] = "16", "shutdown_pool_size", Shutdown, hidden;
        /// Spread the closing of clients over the timeout
        shutdown_slowdrain: bool [Switch] = "false", "shutdown_slowdrain", Shutdown;
        /// What resumable clients are told: `resume` closes quietly so that they resume elsewhere, `disconnect` says server_restart, `auto` resumes where the store survives this process
        shutdown_mode: ShutdownMode [SHUTDOWN_MODES] = "auto", "shutdown_mode", Shutdown;
        /// Shards of the fan-out
        broadcast_gopool_size: usize [WORKERS] = "16", "hub_gopool_size", Server, hidden;
        derived {}
    }

    /// Counters and gauges for an operator.
    metrics: Metrics {
        /// Path of the metrics page (Prometheus text format) on the main port; empty: none
        http_path: Option<String> [PATH] = "", "metrics_http", Server;
        derived {}
    }

    /// The nats-server that Carrick runs itself.
    embedded_nats: EmbeddedNats {
        /// Run a nats-server as a part of this one
        enabled: bool [Switch] = "false", "embed_nats", EmbeddedNats;
        /// Where it listens for clients; port -1: any free one
        service_addr: Endpoint [Listen] = "nats://127.0.0.1:4222", "enats_addr", EmbeddedNats, hidden;
        /// Where it listens for the other servers of its cluster; empty: no cluster
        cluster_addr: Option<Endpoint> [Listen] = "", "enats_cluster", EmbeddedNats, hidden;
        /// Name of its cluster, and of its gateway
        cluster_name: String [CLUSTER_NAME] = "anycable-cluster", "enats_cluster_name", EmbeddedNats;
        /// Cluster addresses of the other servers
        routes: Vec<Endpoint> [Peers] = "", "enats_cluster_routes", EmbeddedNats;
        /// Where it listens for other clusters; empty: no gateway
        gateway_addr: Option<Endpoint> [Listen] = "", "enats_gateway", EmbeddedNats, hidden;
        /// Other clusters, as `nameA:url1,url2;nameB:url3`; their live messages are delivered here too
        gateways: Vec<Gateway> [Gateways] = "", "enats_gateways", EmbeddedNats;
        /// Address of this gateway as other clusters see it, `host:port`
        gateway_advertise: Option<String> [ADDRESS] = "", "enats_gateway_advertise", EmbeddedNats;
        /// Directory of its store
        jetstream_store_dir: PathBuf [Location] = "./carrick-data", "enats_store_dir", EmbeddedNats, hidden;
        /// Its name, different for each server of a cluster; made of its address if not given
        name: String [NAME] = "", "enats_server_name", EmbeddedNats;
        /// Show its log
        debug: bool [Switch] = "false", "enats_debug", EmbeddedNats, hidden;
        /// Show its protocol at log_level=debug, without payloads and passwords
        trace: bool [Switch] = "false", "enats_trace", EmbeddedNats, hidden;
        /// Largest message it takes, in bytes; 0: 1 MiB
        max_payload: u64 [PAYLOAD] = "0", "enats_max_payload", EmbeddedNats;
        /// Switch its store on; the NATS broker does
        jetstream: bool [Switch] = "false", "", EmbeddedNats, file_only;
        /// How long its store may take to become ready before a warning; never delays the start
        jetstream_ready_timeout: Duration [ANY_TIME] = "30", "", EmbeddedNats, file_only;
        /// nats-server program to run in place of the built-in one
        bin: Option<PathBuf> [Location] = "", "enats_bin", EmbeddedNats;
        /// When it writes to disk: `always` before it acknowledges a message, which survives a crash of the machine and costs most of the publishing rate (figures in nats/README.md), or at least every so often (`10s`); every two minutes if not given
        sync: SyncPolicy [Sync] = "", "enats_sync", EmbeddedNats;
        derived {}
    }
}

/// The rows in the order of the definition.
pub fn rows() -> &'static [Row] {
    static ROWS: OnceLock<Vec<Row>> = OnceLock::new();
    ROWS.get_or_init(build_rows)
}

#[cfg(test)]
mod tests {
    use super::super::deprecated::DEPRECATED;
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_explained() {
        let mut seen = HashSet::new();
        for row in rows() {
            assert!(seen.insert(row.key.clone()), "{}", row.key);
            assert!(row.flag.is_none_or(|flag| seen.insert(format!("--{flag}"))), "{}", row.key);
            assert!(!row.help.is_empty() && !row.help.ends_with('.'), "{}: {}", row.key, row.help);
        }
        for old in DEPRECATED {
            assert!(seen.insert(format!("--{}", old.flag)), "{}", old.flag);
        }
    }

    #[test]
    fn environment_names_follow_from_flags() {
        let env = |key: &str| rows().iter().find(|row| row.key == key).unwrap().env_names();
        assert_eq!(env("server.max_conn"), ["ANYCABLE_MAX_CONN"]);
        assert_eq!(env("server.port"), ["ANYCABLE_PORT", "PORT"]);
        assert_eq!(env("ws.max_pending_size"), ["ANYCABLE_WS_MAX_PENDING_SIZE"]);
        assert!(env("nats_pubsub.channel").is_empty());
    }
}
