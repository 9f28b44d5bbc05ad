//! Publishing over HTTP with retries that are safe: every attempt of one publication carries the same
//! `Idempotency-Key`, so a retry never becomes a second message.

use super::wire::{self, Route, Trust};
use crate::boottime;
use crate::secret::bare_url;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, RETRY_AFTER};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::task::JoinHandle;
use url::Url;

/// A server answers within its publish timeout (10 s by default); after this an attempt counts as lost.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// Answers are positions and reasons: longer ones are not ours.
const ANSWER_LIMIT: usize = 16 << 20;

/// One message to publish.
#[derive(Clone, Debug, Serialize)]
pub struct Outgoing<'a> {
    pub stream: &'a str,
    /// Text, usually JSON.
    pub data: &'a str,
    #[serde(skip_serializing_if = "OutgoingMeta::is_empty")]
    pub meta: OutgoingMeta<'a>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct OutgoingMeta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude_socket: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broadcast_type: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub transient: bool,
}

impl OutgoingMeta<'_> {
    fn is_empty(&self) -> bool {
        self.exclude_socket.is_none() && self.broadcast_type.is_none() && !self.transient
    }
}

impl Outgoing<'_> {
    /// The body of a request with this one message.
    pub fn to_body(&self) -> Bytes {
        Bytes::from(serde_json::to_vec(self).expect("strings and booleans are always JSON"))
    }
}

/// Where an accepted message stands.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Published {
    pub stream: String,
    /// Empty or missing for a message that was not stored.
    #[serde(default)]
    pub epoch: Option<String>,
    #[serde(default)]
    pub offset: Option<u64>,
    /// The server had it already: an earlier attempt succeeded.
    #[serde(default)]
    pub duplicate: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("{0} is no address to publish to, use http://HOST[:PORT]/PATH or https://…")]
    Address(String),
    #[error("the key cannot be sent in an HTTP header: it holds line breaks or other control characters")]
    Header,
    /// The server will not take this message, now or later.
    #[error("the server refused the message with status {status}{}", reason_suffix(.reason))]
    Refused { status: u16, reason: String },
    /// Tried again until the time was up.
    #[error(
        "{} after {attempts} attempts in {:.1} s; last: {last}",
        if *.unknown { "not acknowledged, it may or may not be stored" } else { "not stored" },
        .waited.as_secs_f64()
    )]
    GaveUp {
        attempts: u32,
        waited: Duration,
        /// An attempt reached the server and was not answered: the message may be stored.
        unknown: bool,
        last: String,
    },
    #[error("the server's answer is not what a publisher understands: {0}")]
    Answer(String),
}

fn reason_suffix(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

/// A publisher over one kept-alive connection; one publication at a time, so their order is the order of calls.
pub struct Publisher {
    host: String,
    port: u16,
    encrypted: bool,
    /// `None`: the system's authorities.
    trust: Option<Trust>,
    path: String,
    authorization: Option<HeaderValue>,
    retry_for: Duration,
    /// Goes on while the machine is suspended: the server forgets the key meanwhile.
    clock: fn() -> Duration,
    link: Option<Link>,
    retries: u64,
}

struct Link {
    sender: SendRequest<Full<Bytes>>,
    /// Moves the bytes; ends with the connection or with us.
    driver: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

enum Attempt {
    Done(Vec<Published>),
    Failed(PublishError),
    Again { why: String, after: Option<Duration>, unknown: bool },
}

impl Publisher {
    /// `key` is the bearer token of the broadcast endpoint. No attempt but the first is begun later than `retry_for` after
    /// the call; what the server does with one may take its publish timeout longer.
    ///
    /// # Errors
    /// No `http://` or `https://` URL, or a key that no header can carry.
    pub fn new(url: &str, key: Option<&str>, retry_for: Duration) -> Result<Self, PublishError> {
        let parsed = Url::parse(url).map_err(|_| PublishError::Address(bare_url(url)))?;
        let (Some(host), Some(port), scheme @ ("http" | "https")) =
            (parsed.host_str(), parsed.port_or_known_default(), parsed.scheme())
        else {
            return Err(PublishError::Address(bare_url(url)));
        };
        let path = match parsed.query() {
            Some(query) => format!("{}?{query}", parsed.path()),
            None => parsed.path().to_owned(),
        };
        let authorization = match key {
            Some(key) => {
                let mut value = HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| PublishError::Header)?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        let (host, encrypted) = (host.to_owned(), scheme == "https");
        Ok(Self {
            host,
            port,
            encrypted,
            trust: None,
            path,
            authorization,
            retry_for,
            clock: boottime::now,
            link: None,
            retries: 0,
        })
    }

    /// Trusts these authorities instead of the system's.
    #[must_use]
    pub fn trusting(mut self, trust: Option<Trust>) -> Self {
        self.trust = trust;
        self
    }

    fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Attempts so far that were not the first of their publication.
    pub fn retries(&self) -> u64 {
        self.retries
    }

    /// Publishes a request body (a message, a batch, or a remote command) and answers with the positions: one per
    /// message, none if the server's answer is empty.
    ///
    /// # Errors
    /// A refusal, or no acknowledgement within the time to retry: see [`PublishError`].
    pub async fn publish(&mut self, body: Bytes, idempotency_key: &str) -> Result<Vec<Published>, PublishError> {
        self.publish_until(body, idempotency_key, None).await
    }

    /// The same where others have tried before: by `until` the first attempt must be handed over, too.
    pub(super) async fn publish_until(
        &mut self,
        body: Bytes,
        idempotency_key: &str,
        until: Option<Duration>,
    ) -> Result<Vec<Published>, PublishError> {
        let key = HeaderValue::from_str(idempotency_key).map_err(|_| PublishError::Header)?;
        let started = (self.clock)();
        let mut pause = FIRST_PAUSE;
        let mut attempts = 0;
        let mut any_unknown = false;
        loop {
            // The very first goes out however long it takes to connect: no server has heard of the key.
            let until = if attempts > 0 { Some(started + self.retry_for) } else { until };
            attempts += 1;
            match self.attempt(body.clone(), &key, until).await {
                Attempt::Done(published) => return Ok(published),
                Attempt::Failed(error) => return Err(error),
                Attempt::Again { why, after, unknown } => {
                    any_unknown |= unknown;
                    let waited = || (self.clock)().saturating_sub(started);
                    let goes_on = waited() < self.retry_for && {
                        tokio::time::sleep(after.map_or(pause, |after| after.min(LAST_PAUSE).max(pause))).await;
                        // The pause may have outlasted the time, all the more if the machine was suspended.
                        waited() < self.retry_for
                    };
                    if !goes_on {
                        let waited = waited();
                        return Err(PublishError::GaveUp { attempts, waited, unknown: any_unknown, last: why });
                    }
                    self.retries += 1;
                    pause = (pause * 2).min(LAST_PAUSE);
                }
            }
        }
    }

    /// Hands over nothing after `until`.
    async fn attempt(&mut self, body: Bytes, key: &HeaderValue, until: Option<Duration>) -> Attempt {
        match tokio::time::timeout(ATTEMPT_TIMEOUT, self.exchange(body, key, until)).await {
            Ok(attempt) => attempt,
            Err(_) => {
                self.link = None;
                let why = format!("no answer within {} s", ATTEMPT_TIMEOUT.as_secs());
                Attempt::Again { why, after: None, unknown: true }
            }
        }
    }

    async fn exchange(&mut self, body: Bytes, key: &HeaderValue, until: Option<Duration>) -> Attempt {
        let again = |why: String| Attempt::Again { why, after: None, unknown: true };
        let mut link = match self.link.take() {
            Some(link) if !link.sender.is_closed() => link,
            _ => match self.connect().await {
                Ok(link) => link,
                Err(why) => return Attempt::Again { why, after: None, unknown: false },
            },
        };
        let mut request = Request::post(&self.path)
            .header(HOST, self.authority())
            .header(CONTENT_TYPE, "application/json")
            .header("idempotency-key", key);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = match request.body(Full::new(body)) {
            Ok(request) => request,
            Err(error) => return Attempt::Failed(PublishError::Address(error.to_string())),
        };
        if let Err(error) = link.sender.ready().await {
            return again(format!("connection lost: {error}"));
        }
        if until.is_some_and(|until| (self.clock)() >= until) {
            self.link = Some(link);
            let why = format!("connecting to {} took the rest of the time", self.authority());
            return Attempt::Again { why, after: None, unknown: false };
        }
        let response = match link.sender.send_request(request).await {
            Ok(response) => response,
            Err(error) => return again(format!("connection lost: {error}")),
        };
        let status = response.status();
        let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let answer = match Limited::new(response.into_body(), ANSWER_LIMIT).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return again(format!("answer cut off: {error}")),
        };
        self.link = Some(link);
        judge(status, &answer, after.map(Duration::from_secs))
    }

    async fn connect(&self) -> Result<Link, String> {
        let (authority, trust) = (self.authority(), self.trust.as_ref());
        let route = Route { host: &self.host, port: self.port, encrypted: self.encrypted, trust };
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, wire::dial(route)).await;
        let stream = connecting
            .map_err(|_| format!("cannot connect to {authority} within {CONNECT_TIMEOUT:?}"))?
            .map_err(|error| format!("cannot connect to {authority}: {error}"))?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| format!("connection to {authority} lost: {error}"))?;
        // Its error reaches us through the sender.
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok(Link { sender, driver })
    }
}

fn judge(status: StatusCode, answer: &[u8], after: Option<Duration>) -> Attempt {
    let text = || String::from_utf8_lossy(answer).trim().chars().take(500).collect::<String>();
    match status.as_u16() {
        200..=299 => match parse_answer(answer) {
            Ok(published) => Attempt::Done(published),
            Err(error) => Attempt::Failed(PublishError::Answer(format!("{error}: {}", text()))),
        },
        // Unavailable, or a proxy before it that says so.
        429 | 502 | 503 | 504 => {
            let why = format!("status {}{}", status.as_u16(), reason_suffix(&text()));
            Attempt::Again { why, after, unknown: !says_not_stored(answer) }
        }
        status => Attempt::Failed(PublishError::Refused { status, reason: text() }),
    }
}

/// `{"stored":false}`: nothing was handed over. Everything else leaves it open.
fn says_not_stored(answer: &[u8]) -> bool {
    let answer: Option<serde_json::Value> = serde_json::from_slice(answer).ok();
    answer.is_some_and(|answer| answer["stored"] == false)
}

/// An object for a single message, an array for a batch; empty from servers that tell no positions.
fn parse_answer(answer: &[u8]) -> Result<Vec<Published>, serde_json::Error> {
    let answer = answer.trim_ascii();
    match answer.first() {
        None => Ok(Vec::new()),
        Some(b'[') => serde_json::from_slice(answer),
        // A remote command's answer names no stream.
        Some(_) => Ok(serde_json::from_slice(answer).map_or_else(
            |error| {
                if serde_json::from_slice::<serde_json::Map<_, _>>(answer).is_ok() {
                    Ok(Vec::new())
                } else {
                    Err(error)
                }
            },
            |one| Ok(vec![one]),
        )?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    /// A peer that plays one script line per request: `""` cuts the connection without an answer. Answers with the
    /// requests it saw.
    async fn scripted(script: &'static [&'static str]) -> (String, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/_broadcast", listener.local_addr().unwrap());
        let seen = tokio::spawn(async move {
            let mut seen = Vec::new();
            let mut script = script.iter().peekable();
            while script.peek().is_some() {
                let (mut stream, _) = listener.accept().await.unwrap();
                for answer in script.by_ref() {
                    seen.push(read_request(&mut stream).await);
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    if answer.is_empty() {
                        break;
                    }
                }
            }
            seen
        });
        (url, seen)
    }

    async fn read_request(stream: &mut TcpStream) -> String {
        let mut text = String::new();
        let mut buffer = [0; 4096];
        while !text.contains("\r\n\r\n") || !text.ends_with('}') {
            let n = stream.read(&mut buffer).await.unwrap();
            assert!(n > 0, "request cut off: {text}");
            text.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
        }
        text
    }

    const CREATED: &str = "HTTP/1.1 201 Created\r\ncontent-length: 54\r\n\r\n{\"stream\":\"a\",\"epoch\":\"e\",\"offset\":7,\"duplicate\":true}";

    fn body() -> Bytes {
        Outgoing { stream: "a", data: "1", meta: OutgoingMeta::default() }.to_body()
    }

    #[tokio::test]
    async fn a_lost_connection_and_an_unavailable_server_are_tried_again_with_the_same_key() {
        let (url, seen) =
            scripted(&["", "HTTP/1.1 503 Service Unavailable\r\nretry-after: 0\r\ncontent-length: 0\r\n\r\n", CREATED])
                .await;
        let mut publisher = Publisher::new(&url, Some("k"), Duration::from_secs(20)).unwrap();
        let published = publisher.publish(body(), "key-1").await.unwrap();
        let expected = Published { stream: "a".into(), epoch: Some("e".into()), offset: Some(7), duplicate: true };
        assert_eq!((published, publisher.retries()), (vec![expected], 2));
        let seen = seen.await.unwrap();
        assert_eq!(seen.len(), 3);
        for request in seen {
            assert!(request.contains("idempotency-key: key-1\r\n"), "{request}");
            assert!(request.contains("authorization: Bearer k\r\n"), "{request}");
            assert!(request.ends_with(r#"{"stream":"a","data":"1"}"#), "{request}");
        }
    }

    /// An hour passes between any two looks at it.
    fn clock_of_a_laptop() -> Duration {
        static HOURS: AtomicU64 = AtomicU64::new(0);
        Duration::from_secs(3_600 * HOURS.fetch_add(1, Ordering::Relaxed))
    }

    #[tokio::test]
    async fn row_01_a_publication_is_not_repeated_after_a_suspension() {
        let (url, seen) = scripted(&["HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"]).await;
        let mut publisher = Publisher::new(&url, None, Duration::from_secs(5_400)).unwrap();
        publisher.clock = clock_of_a_laptop;
        let error = publisher.publish(body(), "k").await.unwrap_err();
        // One hour at the first look, which leaves some time; two at the second.
        assert!(matches!(error, PublishError::GaveUp { attempts: 1, unknown: true, .. }), "{error}");
        assert_eq!(seen.await.unwrap().len(), 1);
    }

    /// Ten seconds pass between any two looks at it.
    fn slow_clock() -> Duration {
        static TENS: AtomicU64 = AtomicU64::new(0);
        Duration::from_secs(10 * TENS.fetch_add(1, Ordering::Relaxed))
    }

    #[tokio::test]
    async fn no_request_is_sent_once_the_time_is_over() {
        const NOT_STORED: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 16\r\n\r\n{\"stored\":false}";
        // Ten seconds have passed once the first attempt has failed, and twenty after the pause. Where that leaves some
        // time for a second attempt, thirty have passed once it has its connection.
        for (retry_for, begun) in [(19, 1), (25, 2)] {
            let (url, seen) = scripted(&[NOT_STORED]).await;
            let mut publisher = Publisher::new(&url, None, Duration::from_secs(retry_for)).unwrap();
            publisher.clock = slow_clock;
            let error = publisher.publish(body(), "k").await.unwrap_err();
            let PublishError::GaveUp { attempts, unknown, .. } = error else { panic!("{error}") };
            // A second request would have been cut off: its message might be stored.
            assert_eq!((attempts, unknown, seen.await.unwrap().len()), (begun, false, 1), "for {retry_for} s");
        }
    }

    #[tokio::test]
    async fn a_refusal_is_final_and_says_why() {
        let (url, seen) = scripted(&["HTTP/1.1 422 Unprocessable Entity\r\ncontent-length: 9\r\n\r\nno stream"]).await;
        let mut publisher = Publisher::new(&url, None, Duration::from_secs(20)).unwrap();
        let error = publisher.publish(body(), "k").await.unwrap_err();
        assert_eq!(error.to_string(), "the server refused the message with status 422: no stream");
        assert_eq!(seen.await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn nobody_listening_ends_with_the_time_to_retry() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", free.local_addr().unwrap());
        drop(free);
        let mut publisher = Publisher::new(&url, None, Duration::from_millis(200)).unwrap();
        let error = publisher.publish(body(), "k").await.unwrap_err();
        assert!(matches!(error, PublishError::GaveUp { attempts: 2.., unknown: false, .. }), "{error}");
        assert!(error.to_string().starts_with("not stored after"), "{error}");
    }

    #[test]
    fn a_message_that_may_be_stored_is_called_so() {
        for (answer, unknown) in [("", true), (r#"{"stored":"unknown"}"#, true), (r#"{"stored":false}"#, false)] {
            let Attempt::Again { unknown: found, .. } = judge(StatusCode::SERVICE_UNAVAILABLE, answer.as_bytes(), None)
            else {
                panic!("503 is tried again")
            };
            assert_eq!(found, unknown, "{answer}");
        }
    }

    #[test]
    fn answers_come_single_in_batches_and_empty() {
        let one = r#"{"stream":"a","epoch":"e","offset":3,"duplicate":false}"#;
        assert_eq!(parse_answer(one.as_bytes()).unwrap().len(), 1);
        assert_eq!(parse_answer(format!("[{one},{one}]").as_bytes()).unwrap().len(), 2);
        assert!(parse_answer(b"").unwrap().is_empty());
        assert!(parse_answer(br#"{"command":"disconnect"}"#).unwrap().is_empty());
        assert!(parse_answer(b"<html>").is_err());
    }
}
