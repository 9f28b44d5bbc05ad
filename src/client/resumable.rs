//! A [`StockClient`] on a real socket: connects, comes back after every loss, and yields what happened.

use super::connection::{Connection, Received, url_with_sid};
use super::stock::{StockClient, StockEvent};
use super::wire::Trust;
use super::{EXT_JSON, now_secs};
use std::time::Duration;
use tokio::time::Instant;
use url::Url;

/// A handshake that takes longer has failed.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Two of the default ping intervals without a frame: the stock client takes the connection for dead.
const SILENCE: Duration = Duration::from_secs(6);
/// Pauses between attempts double from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// What a [`Resumable`] reports.
#[derive(Debug)]
pub enum Update {
    /// A socket is open; `welcome` is next.
    Opened,
    /// The connection is gone or could not be made; the next attempt follows after `retry_in`.
    Lost {
        reason: String,
        retry_in: Duration,
        /// HTTP status that the handshake was refused with.
        status: Option<u16>,
    },
    Event(StockEvent),
}

/// Drives a stock client. It does nothing by itself: everything happens within [`Resumable::next`].
pub struct Resumable {
    url: Url,
    /// `None`: the system's authorities.
    trust: Option<Trust>,
    stock: StockClient,
    link: Option<Connection>,
    /// Failed attempts in a row.
    failures: u32,
    /// Not before this time.
    retry_at: Instant,
    /// When the last frame came.
    heard_at: Instant,
    next_tick: Instant,
}

impl Resumable {
    pub fn new(url: Url, stock: StockClient) -> Self {
        let now = Instant::now();
        Self { url, trust: None, stock, link: None, failures: 0, retry_at: now, heard_at: now, next_tick: now }
    }

    /// Trusts these authorities instead of the system's.
    #[must_use]
    pub fn trusting(mut self, trust: Option<Trust>) -> Self {
        self.trust = trust;
        self
    }

    pub fn stock(&self) -> &StockClient {
        &self.stock
    }

    /// Cuts the connection, as a lost network does.
    pub fn cut(&mut self) {
        self.link = None;
        self.stock.on_close();
    }

    /// Sends a command as it is, if there is a connection; answers whether there was one.
    pub async fn send(&mut self, command: String) -> bool {
        match &mut self.link {
            Some(link) => link.send(command).await.is_ok(),
            None => false,
        }
    }

    /// Waits for the next thing that happens; `None` once the server said not to come back. Cancelling it while it
    /// connects starts that attempt anew; nothing else is lost.
    pub async fn next(&mut self) -> Option<Update> {
        loop {
            if let Some(event) = self.stock.poll_event() {
                return Some(Update::Event(event));
            }
            if self.stock.is_terminal() {
                self.link = None;
                return None;
            }
            let update = if self.link.is_some() { self.listen().await } else { self.connect().await };
            if update.is_some() {
                return update;
            }
        }
    }

    async fn connect(&mut self) -> Option<Update> {
        tokio::time::sleep_until(self.retry_at).await;
        let url = url_with_sid(&self.url, self.stock.url_sid());
        match Connection::open_trusting(&url, &[EXT_JSON], self.trust.as_ref(), OPEN_TIMEOUT).await {
            Ok(link) => {
                self.link = Some(link);
                self.heard_at = Instant::now();
                self.next_tick = self.heard_at;
                self.stock.on_open(now_secs());
                Some(Update::Opened)
            }
            Err(error) => {
                let refused = error.status();
                let mut update = self.lost(error.to_string());
                if let Update::Lost { status, .. } = &mut update {
                    *status = refused;
                }
                Some(update)
            }
        }
    }

    /// Takes one frame or one tick.
    async fn listen(&mut self) -> Option<Update> {
        let link = self.link.as_mut()?;
        let received = tokio::select! {
            received = link.next() => received,
            () = tokio::time::sleep_until(self.next_tick) => return self.tick().await,
        };
        self.heard_at = Instant::now();
        let answers = match received {
            Some(Ok(Received::Text(text))) => self.stock.on_frame(&text, now_secs()),
            Some(Ok(Received::Binary(_))) => Vec::new(),
            Some(Ok(Received::Close { code, reason })) => {
                return Some(self.lost(format!("closed by the server ({code} {reason})")));
            }
            Some(Err(error)) => return Some(self.lost(error.to_string())),
            None => return Some(self.lost("closed by the server".to_owned())),
        };
        if self.stock.is_connected() {
            self.failures = 0;
        }
        self.send_all(answers).await
    }

    async fn tick(&mut self) -> Option<Update> {
        self.next_tick = Instant::now() + Duration::from_secs(1);
        if self.heard_at.elapsed() > SILENCE {
            return Some(self.lost(format!("nothing heard for {} s", SILENCE.as_secs())));
        }
        let repeats = self.stock.on_tick(now_secs());
        self.send_all(repeats).await
    }

    async fn send_all(&mut self, commands: Vec<String>) -> Option<Update> {
        for command in commands {
            if let Some(Err(error)) = match &mut self.link {
                Some(link) => Some(link.send(command).await),
                None => None,
            } {
                return Some(self.lost(error.to_string()));
            }
        }
        None
    }

    fn lost(&mut self, reason: String) -> Update {
        self.cut();
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(8)).min(LAST_PAUSE);
        // Spread over half the pause, so that the clients of a restarted server do not come back in one moment.
        let spread = u32::try_from(pause.as_millis() / 2).unwrap_or(u32::MAX).max(1);
        let retry_in = pause / 2 + Duration::from_millis(u64::from(getrandom::u32().unwrap_or(0) % spread));
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Instant::now() + retry_in;
        Update::Lost { reason, retry_in, status: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Connection;
    use futures_util::{SinkExt, StreamExt};
    use tokio::net::TcpListener;
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};

    #[expect(clippy::result_large_err, reason = "the library's callback type")]
    async fn accept(listener: &TcpListener) -> (WebSocketStream<tokio::net::TcpStream>, String) {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut query = String::new();
        let callback = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
            query = request.uri().query().unwrap_or_default().to_owned();
            response.headers_mut().insert("sec-websocket-protocol", EXT_JSON.parse().unwrap());
            Ok(response)
        };
        let ws = tokio_tungstenite::accept_hdr_async(tcp, callback).await.unwrap();
        (ws, query)
    }

    #[tokio::test]
    async fn a_cut_connection_is_resumed_with_its_session_and_position() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("ws://{}/cable", listener.local_addr().unwrap())).unwrap();
        let server = tokio::spawn(async move {
            let (mut ws, query) = accept(&listener).await;
            assert_eq!(query, "");
            ws.send(Message::text(r#"{"type":"welcome","sid":"s1"}"#)).await.unwrap();
            let subscribe = ws.next().await.unwrap().unwrap();
            assert!(subscribe.to_text().unwrap().contains(r#""command":"subscribe""#));
            ws.send(Message::text(r#"{"type":"confirm_subscription","identifier":"a"}"#)).await.unwrap();
            let text = r#"{"identifier":"a","message":1,"stream_id":"s","epoch":"e","offset":4}"#;
            ws.send(Message::text(text)).await.unwrap();
            drop(ws);
            let (mut ws, query) = accept(&listener).await;
            assert_eq!(query, "sid=s1");
            let text = r#"{"type":"welcome","sid":"s2","restored":true,"restored_ids":["a"]}"#;
            ws.send(Message::text(text)).await.unwrap();
            let history = ws.next().await.unwrap().unwrap();
            ws.send(Message::text(r#"{"type":"disconnect","reason":"remote","reconnect":false}"#)).await.unwrap();
            history.to_text().unwrap().to_owned()
        });
        let mut client = Resumable::new(url, StockClient::new(["a"]));
        let mut lost = 0;
        let mut events = Vec::new();
        while let Some(update) = client.next().await {
            match update {
                Update::Lost { .. } => lost += 1,
                Update::Event(event) => events.push(event),
                Update::Opened => {}
            }
        }
        assert!(server.await.unwrap().contains(r#""streams":{"s":{"epoch":"e","offset":4}}"#));
        assert_eq!(lost, 1);
        assert!(events.contains(&StockEvent::Restored("a".into())), "{events:?}");
    }

    #[tokio::test]
    async fn a_frozen_peer_does_not_hold_a_connection_attempt() {
        // Accepts in the kernel and never answers.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("ws://{}/cable", listener.local_addr().unwrap())).unwrap();
        let attempt = Connection::open(&url, &[EXT_JSON], Duration::from_millis(50)).await;
        assert!(matches!(attempt.err().unwrap(), crate::client::connection::ConnectError::Timeout(_)));
    }
}
