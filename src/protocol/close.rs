//! Every way a connection ends, in one table: the `disconnect` message before it, the close code, the reason text.

/// Why the server closes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// The client is not allowed to connect.
    Unauthorized,
    /// The application refused it, with messages of its own.
    Refused,
    /// Its token has expired.
    TokenExpired,
    /// Nobody could decide whether it may connect; it may try again.
    AuthError,
    /// The application asked to disconnect in its answer to a command.
    CommandFailed,
    /// An application disconnected these identifiers.
    Remote { reconnect: bool },
    /// Graceful shutdown; the client is told to come back.
    Restart,
    /// Graceful shutdown of a resumable session: no message, so that the client keeps its sid and resumes elsewhere.
    Handover,
    /// The store could not be reached in time: no message, so that sid and positions survive.
    StoreUnavailable,
    /// It needs a stream more than may be open on this node: it may try again, here or elsewhere. No message, as above.
    StreamsFull,
    /// The subscriptions of its session find no room on this node: as above.
    SubscriptionsFull,
    /// No sign of life within the pong timeout.
    NoPong,
    /// The client reads more slowly than it is sent to.
    TooSlow,
    /// Another connection has gone on with its session.
    Superseded,
    /// Its session was ended together with the one that it was restored from.
    Ended,
    /// A client message over the size limit.
    TooBig,
    /// The client broke the rules of WebSocket.
    ProtocolError,
    /// The client sent text that is not UTF-8.
    InvalidText,
    /// The client said goodbye.
    ClientClosed,
}

impl Close {
    /// `(reason, reconnect)` of the `disconnect` message that precedes the close frame, if there is one.
    pub fn disconnect(self) -> Option<(&'static str, bool)> {
        match self {
            Self::Unauthorized => Some(("unauthorized", false)),
            Self::TokenExpired => Some(("token_expired", false)),
            Self::Remote { reconnect } => Some(("remote", reconnect)),
            Self::Restart => Some(("server_restart", true)),
            Self::NoPong => Some(("no_pong", true)),
            Self::TooSlow => Some(("too_slow", true)),
            Self::Refused
            | Self::AuthError
            | Self::CommandFailed
            | Self::Handover
            | Self::StoreUnavailable
            | Self::StreamsFull
            | Self::SubscriptionsFull
            | Self::Superseded
            | Self::Ended
            | Self::TooBig
            | Self::ProtocolError
            | Self::InvalidText
            | Self::ClientClosed => None,
        }
    }

    /// WebSocket close code (RFC 6455 §7.4) and reason text. 1006 never appears on the wire.
    pub fn code(self) -> (u16, &'static str) {
        match self {
            Self::Unauthorized | Self::Refused | Self::TokenExpired => (1000, "Auth Failed"),
            Self::AuthError => (1011, "Auth Error"),
            Self::CommandFailed => (1011, "Command Failed"),
            Self::Remote { .. } => (1000, "Closed remotely"),
            Self::Restart | Self::Handover => (1001, "Server restart"),
            Self::StoreUnavailable => (1013, "Store unavailable"),
            Self::StreamsFull => (1013, "Too many streams: max_streams"),
            Self::SubscriptionsFull => (1013, "Too many subscriptions: subscriptions_budget"),
            Self::NoPong => (1000, "No Pong"),
            Self::TooSlow => (1000, ""),
            Self::Superseded => (1000, "Session resumed elsewhere"),
            Self::Ended => (1000, "Session ended"),
            Self::TooBig => (1009, ""),
            Self::ProtocolError => (1002, "Protocol error"),
            Self::InvalidText => (1007, "Invalid text"),
            Self::ClientClosed => (1000, "Read closed"),
        }
    }
}
