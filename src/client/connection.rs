//! One WebSocket to a server, from the handshake to its end.

use super::wire::{self, Route, Trust, Wire};
use crate::secret::bare_url;
use futures_util::{SinkExt, StreamExt};
use std::time::Duration;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};
use url::Url;

/// Read buffer per connection: small, because tests hold hundreds.
const READ_BUFFER: usize = 8 * 1024;

/// An open connection. Dropping it cuts the TCP connection without a close frame, as a lost network does.
pub struct Connection {
    ws: WebSocketStream<Wire>,
    subprotocol: Option<String>,
}

/// What came from the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    Text(String),
    Binary(Vec<u8>),
    /// The server's close frame: code (1005 if it gave none) and reason.
    Close {
        code: u16,
        reason: String,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{} is no WebSocket address, use ws://HOST[:PORT]/PATH or wss://…", bare_url(.0.as_str()))]
    Address(Url),
    #[error("cannot connect to {address}: {source}")]
    Tcp { address: String, source: std::io::Error },
    #[error("the server refused the WebSocket handshake: {0}")]
    Handshake(#[source] Box<tungstenite::Error>),
    #[error("no connection within {0:?}")]
    Timeout(Duration),
}

impl ConnectError {
    /// The HTTP status that a handshake was refused with.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Handshake(error) => match &**error {
                tungstenite::Error::Http(response) => Some(response.status().as_u16()),
                _ => None,
            },
            _ => None,
        }
    }
}

/// The connection ended or broke.
#[derive(Debug, thiserror::Error)]
#[error("connection lost: {0}")]
pub struct Lost(#[from] Box<tungstenite::Error>);

/// `url` with `sid` set, as the stock client comes back; unchanged without one.
pub fn url_with_sid(url: &Url, sid: Option<&str>) -> Url {
    let Some(sid) = sid else { return url.clone() };
    let mut out = url.clone();
    out.query_pairs_mut()
        .clear()
        .extend_pairs(url.query_pairs().filter(|(name, _)| name != "sid"))
        .append_pair("sid", sid);
    out
}

impl Connection {
    /// Connects and shakes hands, offering these subprotocols in this order.
    ///
    /// # Errors
    /// No `ws://` or `wss://` URL, nobody listening, a certificate that the system does not trust, a refused handshake, or no end of it within `timeout`.
    pub async fn open(url: &Url, subprotocols: &[&str], timeout: Duration) -> Result<Self, ConnectError> {
        Self::open_trusting(url, subprotocols, None, timeout).await
    }

    /// Like [`Connection::open`], trusting these authorities instead of the system's.
    ///
    /// # Errors
    /// As [`Connection::open`].
    pub async fn open_trusting(
        url: &Url,
        subprotocols: &[&str],
        trust: Option<&Trust>,
        timeout: Duration,
    ) -> Result<Self, ConnectError> {
        tokio::time::timeout(timeout, Self::handshake(url, subprotocols, &[], trust))
            .await
            .map_err(|_| ConnectError::Timeout(timeout))?
    }

    /// Like [`Connection::open`], with extra request headers.
    ///
    /// # Errors
    /// As [`Connection::open`]; a header that HTTP does not allow counts as a refused handshake.
    pub async fn open_with_headers(
        url: &Url,
        subprotocols: &[&str],
        headers: &[(&'static str, &str)],
        timeout: Duration,
    ) -> Result<Self, ConnectError> {
        tokio::time::timeout(timeout, Self::handshake(url, subprotocols, headers, None))
            .await
            .map_err(|_| ConnectError::Timeout(timeout))?
    }

    async fn handshake(
        url: &Url,
        subprotocols: &[&str],
        headers: &[(&'static str, &str)],
        trust: Option<&Trust>,
    ) -> Result<Self, ConnectError> {
        let (Some(host), Some(port), scheme @ ("ws" | "wss")) =
            (url.host_str(), url.port_or_known_default(), url.scheme())
        else {
            return Err(ConnectError::Address(url.clone()));
        };
        let refused = |error: tungstenite::Error| ConnectError::Handshake(Box::new(error));
        let mut request = url.as_str().into_client_request().map_err(refused)?;
        let value =
            |text: &str| HeaderValue::from_str(text).map_err(|e| refused(tungstenite::Error::HttpFormat(e.into())));
        if !subprotocols.is_empty() {
            request.headers_mut().insert("sec-websocket-protocol", value(&subprotocols.join(", "))?);
        }
        for (name, text) in headers {
            request.headers_mut().insert(*name, value(text)?);
        }
        let unreachable = |source| ConnectError::Tcp { address: format!("{host}:{port}"), source };
        let route = Route { host, port, encrypted: scheme == "wss", trust };
        let wire = wire::dial(route).await.map_err(unreachable)?;
        let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER);
        let (ws, response) =
            tokio_tungstenite::client_async_with_config(request, wire, Some(config)).await.map_err(refused)?;
        let subprotocol = response.headers().get("sec-websocket-protocol");
        let subprotocol = subprotocol.and_then(|value| value.to_str().ok()).map(str::to_owned);
        Ok(Self { ws, subprotocol })
    }

    /// The subprotocol that the server chose.
    pub fn subprotocol(&self) -> Option<&str> {
        self.subprotocol.as_deref()
    }

    /// Sends one text frame.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn send(&mut self, text: impl Into<String>) -> Result<(), Lost> {
        self.ws.send(Message::text(text.into())).await.map_err(|error| Lost(Box::new(error)))
    }

    /// The next frame; `None` after the end. May be cancelled without losing a frame.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn next(&mut self) -> Option<Result<Received, Lost>> {
        loop {
            return match self.ws.next().await? {
                Ok(Message::Text(text)) => Some(Ok(Received::Text(text.as_str().to_owned()))),
                Ok(Message::Binary(bytes)) => Some(Ok(Received::Binary(bytes.to_vec()))),
                Ok(Message::Close(frame)) => {
                    let (code, reason) =
                        frame.map_or((1005, String::new()), |f| (u16::from(f.code), f.reason.as_str().to_owned()));
                    Some(Ok(Received::Close { code, reason }))
                }
                // Pings are answered by the library with the next read or write.
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => continue,
                Err(error) => Some(Err(Lost(Box::new(error)))),
            };
        }
    }

    /// Says goodbye with code 1000.
    ///
    /// # Errors
    /// The connection was gone already.
    pub async fn close(mut self) -> Result<(), Lost> {
        self.ws.close(None).await.map_err(|error| Lost(Box::new(error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sid_replaces_an_earlier_one_and_keeps_the_rest() {
        let url = Url::parse("ws://h:1/cable?jid=x&sid=old").unwrap();
        assert_eq!(url_with_sid(&url, Some("new_-1")).as_str(), "ws://h:1/cable?jid=x&sid=new_-1");
        assert_eq!(url_with_sid(&url, Some("")).as_str(), "ws://h:1/cable?jid=x&sid=");
        assert_eq!(url_with_sid(&url, None), url);
    }

    #[tokio::test]
    async fn only_ws_addresses_are_taken() {
        let url = Url::parse("http://127.0.0.1:1/").unwrap();
        let error = Connection::open(&url, &[], Duration::from_secs(1)).await.err().unwrap();
        assert!(error.to_string().contains("use ws://"), "{error}");
    }
}
