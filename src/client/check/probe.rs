//! What a server can, found out before a run: nothing is assumed of it.

use super::credentials::Credentials;
use super::features::Features;
use super::removal;
use super::source::Outlet;
use crate::client::connection::ConnectError;
use crate::client::publisher::{OutgoingMeta, PublishError};
use crate::client::{
    Connection, EXT_JSON, Frame, Outgoing, Publisher, Received, Resumable, StockClient, StockEvent, Trust, Update,
    command,
};
use crate::secret::bare_url;
use bytes::Bytes;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use url::Url;

/// For everything that is to come: a healthy server takes milliseconds, one that is just starting takes seconds.
const STEP: Duration = Duration::from_secs(10);
/// What must not come follows something that came at once, if at all.
const SECOND_COPY: Duration = Duration::from_millis(700);
/// What may fail for reasons of its own is tried so often, and what may be lost is sent so often, at this distance.
const SENDINGS: usize = 5;
const NEXT_SENDING: Duration = Duration::from_secs(2);
/// Servers forget keys; some are told to do so after seconds.
const REPEATED_WITHIN: Duration = Duration::from_secs(1);

/// Numbers of the probe's clients, far from those of a run.
const ONE: usize = 1_000_000;
const OTHER: usize = ONE + 1;

/// The server cannot be checked; the text says why and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unable(String);

impl Unable {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// Tries everything, on a stream of its own with this identifier: every client address sees what is published
/// through every publishing address, a retry is one message, and a client that comes back gets what it missed.
///
/// # Errors
/// Something that no run could do without.
pub async fn probe(
    urls: &[Url],
    credentials: &Credentials,
    outlet: &Outlet,
    stream: &str,
    identifier: &str,
) -> Result<Features, Unable> {
    let mut features = Features::default();
    let own: Vec<Url> = urls.iter().map(|url| credentials.url(url, ONE)).collect();
    for url in &own {
        greet(url, outlet.trust.as_ref()).await?;
    }
    let mut watchers = Vec::new();
    for url in &own {
        let mut watcher = Watcher::new(url, identifier, outlet.trust.clone());
        watcher.subscribe().await?;
        watchers.push(watcher);
    }
    for (n, url) in outlet.urls.iter().enumerate() {
        features.publish_positions = publish(url, outlet, stream, n).await?;
        for watcher in &mut watchers {
            features.positions = watcher.receive(n, url).await?;
        }
    }
    let url = &outlet.urls[0];
    let watcher = &mut watchers[0];
    let repeated = outlet.urls.len();
    features.idempotency_keys = knows_keys(watcher, outlet, stream, repeated).await?;
    // A message while the client is away. A commit or a return may be slower than the server keeps things.
    for missed in (repeated + SENDINGS..).take(SENDINGS) {
        watcher.client.cut();
        publish(url, outlet, stream, missed).await?;
        let (restored, received) = watcher.come_back(missed).await?;
        features.restore |= restored;
        features.history |= received;
        if features.restore && features.history {
            break;
        }
    }
    let mut other = Watcher::new(&credentials.url(&urls[0], OTHER), identifier, outlet.trust.clone());
    other.subscribe().await?;
    probe_extras(&mut watchers[0], &mut other, outlet, (stream, identifier), &mut features).await?;
    if let Some(first) = other.first_sid.clone()
        && post(outlet, removal::command(&credentials.identifiers(OTHER, &first)), "removal").await
    {
        features.removals = other.is_sent_away(STEP).await?;
    }
    Ok(features)
}

/// A message is published twice in one moment, and comes once. Tried again where the moment was long.
async fn knows_keys(watcher: &mut Watcher, outlet: &Outlet, stream: &str, first: usize) -> Result<bool, Unable> {
    let url = &outlet.urls[0];
    for n in first..first + SENDINGS {
        let begun = Instant::now();
        publish(url, outlet, stream, n).await?;
        publish(url, outlet, stream, n).await?;
        let took = begun.elapsed();
        watcher.receive(n, url).await?;
        if !watcher.hears(n, SECOND_COPY).await? {
            return Ok(true);
        }
        if took < REPEATED_WITHIN {
            break;
        }
    }
    Ok(false)
}

/// What is nice to have: what fails here is not checked.
async fn probe_extras(
    one: &mut Watcher,
    other: &mut Watcher,
    outlet: &Outlet,
    (stream, identifier): (&str, &str),
    features: &mut Features,
) -> Result<(), Unable> {
    let data = |n: usize| format!(r#"{{"probe":{n}}}"#);
    let items: Vec<String> = [1_001, 1_002].map(data).into();
    let batch: Vec<Outgoing<'_>> =
        items.iter().map(|data| Outgoing { stream, data, meta: OutgoingMeta::default() }).collect();
    let batch = serde_json::to_vec(&batch).map_err(|error| Unable(error.to_string()))?;
    features.batches = post(outlet, batch.into(), "batch").await && other.hears(1_002, STEP).await?;

    let transient = OutgoingMeta { transient: true, ..OutgoingMeta::default() };
    for n in 1_100..1_100 + SENDINGS {
        let body = Outgoing { stream, data: &data(n), meta: transient.clone() }.to_body();
        if !post(outlet, body, &format!("transient-{n}")).await {
            break;
        }
        if let Some(positioned) = other.positioned(n, NEXT_SENDING).await? {
            features.transient = !positioned;
            break;
        }
    }

    if let Some(sid) = one.client.stock().url_sid().map(str::to_owned).filter(|sid| !sid.is_empty()) {
        let exclude = OutgoingMeta { exclude_socket: Some(&sid), ..OutgoingMeta::default() };
        let body = Outgoing { stream, data: &data(1_004), meta: exclude }.to_body();
        let heard = post(outlet, body, "exclusion").await && other.hears(1_004, STEP).await?;
        features.exclusion = heard && !one.hears(1_004, SECOND_COPY).await?;
    }
    for n in 1_200..1_200 + SENDINGS {
        // Without a connection nothing is sent, and there is one again at the next attempt.
        one.client.send(command::whisper(identifier, &serde_json::json!({"probe": n}))).await;
        if !one.whispered(SECOND_COPY / 4).await? {
            break;
        }
        if other.hears(n, NEXT_SENDING).await? {
            features.whispers = true;
            break;
        }
    }
    Ok(())
}

/// It is accepted, in the end.
async fn post(outlet: &Outlet, body: Bytes, name: &str) -> bool {
    let publisher = Publisher::new(&outlet.urls[0], outlet.key.as_deref(), STEP / 2);
    let Ok(publisher) = publisher else { return false };
    let key = format!("{}-probe-{name}", outlet.run);
    publisher.trusting(outlet.trust.clone()).publish(body, &key).await.is_ok()
}

/// Connects and waits for `welcome`.
async fn greet(url: &Url, trust: Option<&Trust>) -> Result<(), Unable> {
    let shown = bare_url(url.as_str());
    let mut link = Connection::open_trusting(url, &[EXT_JSON], trust, STEP).await.map_err(|error| {
        let hint = match error.status() {
            Some(404) => "nothing answers WebSockets at this path: check --url",
            Some(401 | 403) => "the server wants other credentials, or does not allow this origin",
            Some(_) => "is that an Action Cable server? check --url",
            None if matches!(error, ConnectError::Handshake(_)) => "does the server speak actioncable-v1-ext-json?",
            None if error.to_string().contains("certificate") => "give its authority's certificate with --ca-file",
            None => "is the server running? check --url",
        };
        Unable(format!("{shown}: {error}; {hint}"))
    })?;
    let deadline = Instant::now() + STEP;
    loop {
        let received = timeout_at(deadline, link.next()).await;
        match received.map_err(|_| Unable(format!("{shown}: no welcome within {STEP:?}")))? {
            Some(Ok(Received::Text(text))) => match Frame::parse(&text) {
                Ok(Frame::Welcome { .. }) => return Ok(()),
                Ok(Frame::Disconnect { reason, .. }) => {
                    return Err(Unable(format!(
                        "{shown}: the server refused the connection ({reason}): give a URL with valid credentials \
                         (such as ?jid=TOKEN), or allow connections without any (--noauth on Carrick)"
                    )));
                }
                Ok(_) => {}
                Err(error) => return Err(Unable(format!("{shown}: this is not Action Cable: {error}"))),
            },
            other => return Err(Unable(format!("{shown}: the connection ended before welcome ({other:?})"))),
        }
    }
}

/// Publishes message `n`; answers whether its position was told.
async fn publish(url: &str, outlet: &Outlet, stream: &str, n: usize) -> Result<bool, Unable> {
    let unable = |error: &PublishError| {
        let hint = match error {
            PublishError::Refused { status: 401 | 403, .. } => {
                "the key is wrong or missing: give --key, or --secret to derive it"
            }
            PublishError::Refused { status: 404, .. } => "nothing is published at this path: check --publish-url",
            PublishError::GaveUp { last, .. } if last.contains("cannot connect") => {
                "is the server running? check --publish-url: without a secret Carrick takes publications on port 8090, \
                 with one on its main port"
            }
            _ => "the server does not accept publications now",
        };
        Unable(format!("{}: {error}; {hint}", bare_url(url)))
    };
    let publisher = Publisher::new(url, outlet.key.as_deref(), STEP / 2).map_err(|error| unable(&error))?;
    let mut publisher = publisher.trusting(outlet.trust.clone());
    let data = format!(r#"{{"probe":{n}}}"#);
    let body = Outgoing { stream, data: &data, meta: OutgoingMeta::default() }.to_body();
    let key = format!("{}-probe-{n}", outlet.run);
    let answer = publisher.publish(body, &key).await.map_err(|error| unable(&error))?;
    Ok(answer.first().is_some_and(|one| one.epoch.is_some() && one.offset.is_some_and(|offset| offset > 0)))
}

/// A client on the probe's stream.
struct Watcher {
    /// Without credentials.
    shown: String,
    client: Resumable,
    /// The first id of its session.
    first_sid: Option<String>,
}

impl Watcher {
    fn new(url: &Url, identifier: &str, trust: Option<Trust>) -> Self {
        let client = Resumable::new(url.clone(), StockClient::new([identifier])).trusting(trust);
        Self { shown: bare_url(url.as_str()), client, first_sid: None }
    }

    /// The next event; `None` at the deadline.
    async fn event(&mut self, deadline: Instant) -> Result<Option<StockEvent>, Unable> {
        loop {
            match timeout_at(deadline, self.client.next()).await {
                Err(_) => return Ok(None),
                Ok(Some(Update::Event(event))) => {
                    if matches!(event, StockEvent::Welcome { restored: false }) {
                        self.first_sid = self.client.stock().url_sid().map(str::to_owned).filter(|sid| !sid.is_empty());
                    }
                    return Ok(Some(event));
                }
                Ok(Some(Update::Opened | Update::Lost { .. })) => {}
                Ok(None) => return Err(Unable(format!("{}: the server sent the client away", self.shown))),
            }
        }
    }

    async fn subscribe(&mut self) -> Result<(), Unable> {
        let deadline = Instant::now() + STEP;
        loop {
            match self.event(deadline).await? {
                Some(StockEvent::Confirmed(_)) => return Ok(()),
                Some(StockEvent::Rejected(_)) => {
                    return Err(Unable(format!(
                        "{}: the server rejected the subscription: give the application's --secret to sign stream names \
                         with (without one, the server must allow public streams)",
                        self.shown
                    )));
                }
                Some(_) => {}
                None => return Err(Unable(format!("{}: subscription unanswered for {STEP:?}", self.shown))),
            }
        }
    }

    /// Waits for message `n`; answers whether it has a position.
    async fn receive(&mut self, n: usize, published_at: &str) -> Result<bool, Unable> {
        if let Some(positioned) = self.positioned(n, STEP).await? {
            return Ok(positioned);
        }
        Err(Unable(format!(
            "{}: a message published at {} did not arrive within {STEP:?}: \
             do these addresses belong to one deployment?",
            self.shown,
            bare_url(published_at)
        )))
    }

    /// Message `n` comes within that time.
    async fn hears(&mut self, n: usize, time: Duration) -> Result<bool, Unable> {
        Ok(self.positioned(n, time).await?.is_some())
    }

    /// Whether message `n` has a position; `None` if it does not come within that time.
    async fn positioned(&mut self, n: usize, time: Duration) -> Result<Option<bool>, Unable> {
        let deadline = Instant::now() + time;
        while let Some(event) = self.event(deadline).await? {
            if let StockEvent::Delivery(data) = event
                && is_probe(&data.message, n)
            {
                return Ok(Some(data.position.is_some()));
            }
        }
        Ok(None)
    }

    /// Nothing refuses what was just whispered.
    async fn whispered(&mut self, time: Duration) -> Result<bool, Unable> {
        let deadline = Instant::now() + time;
        while let Some(event) = self.event(deadline).await? {
            if matches!(event, StockEvent::Rejected(_) | StockEvent::Disconnect { .. }) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn is_sent_away(&mut self, time: Duration) -> Result<bool, Unable> {
        let deadline = Instant::now() + time;
        while let Some(event) = self.event(deadline).await? {
            if matches!(event, StockEvent::Disconnect { .. }) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Comes back; answers whether the session was restored, and whether the missed message came.
    async fn come_back(&mut self, missed: usize) -> Result<(bool, bool), Unable> {
        let deadline = Instant::now() + STEP;
        let (mut restored, mut received, mut confirmed) = (false, false, false);
        while let Some(event) = self.event(deadline).await? {
            match event {
                StockEvent::Welcome { restored: now } => restored = now,
                StockEvent::Delivery(data) => received |= is_probe(&data.message, missed),
                StockEvent::HistoryReceived(_) if received => break,
                StockEvent::HistoryNotFound(_) => return Ok((restored, false)),
                StockEvent::Confirmed(_) => confirmed = true,
                _ => {}
            }
            // A server without the extended protocol answers no request for history.
            if confirmed && received {
                break;
            }
        }
        Ok((restored, received))
    }
}

fn is_probe(message: &str, n: usize) -> bool {
    serde_json::from_str::<serde_json::Value>(message).is_ok_and(|message| message["probe"] == n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn row_19_what_cannot_be_checked_is_told_without_credentials() {
        // Accepts in the kernel and never answers.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let url = format!("ws://{address}/cable?jid=s3cr3t").parse().unwrap();
        let mut watcher = Watcher::new(&url, "i", None);
        let subscribing = watcher.subscribe().await.unwrap_err().to_string();
        let publishing = format!("http://user:s3cr3t@{address}/_broadcast?key=s3cr3t");
        let receiving = watcher.receive(0, &publishing).await.unwrap_err().to_string();
        for error in [subscribing, receiving] {
            assert!(error.starts_with(&format!("ws://{address}/cable: ")) && !error.contains("s3cr3t"), "{error}");
        }
    }
}
