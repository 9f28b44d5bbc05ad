//! Executing one client command.

use super::client::Client;
use super::history::{asks_history, is_without_past};
use crate::auth::Resolution;
use crate::broker::Unavailable;
use crate::hub::{Identifier, Located, Open};
use crate::metrics;
use crate::protocol::command::{self, Skipped};
use crate::protocol::encoding::json_text;
use crate::protocol::{Command, HistoryRequest, Message, Meta, Payload, Position, ShownIdentifier, StreamName, reply};
use crate::rpc::Application;
use crate::session::{Ask, Followed, Subscribe};
use std::sync::Arc;
use tokio::time::Instant;

/// A subscription whose streams are open, so that nothing stored from now on is missed, and which follows none of them
/// yet: nothing precedes its confirmation.
pub(super) struct Prepared {
    opened: Vec<Opened>,
    asks: Vec<Option<(Ask, Located)>>,
    history: Option<HistoryRequest>,
    /// One of the streams has a past.
    has_history: bool,
}

impl Prepared {
    /// What the session records. What the client asked for is part of what it must get, also if it drops before it has
    /// received any of it.
    pub fn followed(&self) -> Vec<Followed> {
        let located = |ask: &'_ Option<(Ask, Located)>| ask.as_ref().map(|(_, located)| located.clone());
        self.opened.iter().zip(&self.asks).map(|(one, ask)| one.followed(located(ask).as_ref())).collect()
    }
}

/// An open stream that a subscription is about to follow.
pub(super) struct Opened {
    pub stream: StreamName,
    pub cell: Open,
    /// Where it stood when it was opened.
    pub head: Position,
}

impl Opened {
    /// What the session records of it. `located`: where the client wants it from.
    pub fn followed(&self, located: Option<&Located>) -> Followed {
        let began = match located {
            Some(Located::After(after)) if after.epoch != self.head.epoch || after.offset < self.head.offset => after,
            _ => &self.head,
        };
        Followed { stream: self.stream.clone(), began: began.clone() }
    }
}

impl Client {
    /// Decodes a frame; faulty ones are counted, logged and skipped.
    pub fn decode(&self, frame: &str) -> Option<Command> {
        match command::decode(frame) {
            Ok(command) => {
                metrics::CLIENT_MSG.inc();
                Some(command)
            }
            Err(Skipped::Null) => None,
            Err(reason) => {
                metrics::FAILED_CLIENT_MSG.inc();
                tracing::debug!(context = "node", %reason, "client frame skipped");
                None
            }
        }
    }

    /// Executes a command that shares nothing with others (see [`Joined`](super::joined::Joined)); its replies are queued when this returns. An error means that the store could not be asked
    /// in time: the connection is closed without a message, so that nothing the client knows is lost.
    pub async fn execute(self: &Arc<Self>, command: Command) -> Result<(), Unavailable> {
        match command {
            Command::Subscribe { identifier, history } => self.subscribe(&identifier, history).await,
            Command::Unsubscribe { identifier } => {
                self.unsubscribe(&identifier).await;
                Ok(())
            }
            Command::History { identifier, history } => self.history(&identifier, &history).await,
            Command::Whisper { identifier, data } => self.whisper(&identifier, data).await,
            Command::Presence { identifier } => {
                self.outbox().push(reply::presence_error(self.receiver.encoding(), &json_text(&identifier)));
                Ok(())
            }
            Command::Ping => {
                self.outbox().push(reply::pong(self.receiver.encoding()));
                Ok(())
            }
            Command::Perform { identifier, data } => match self.decider_of_known(&identifier) {
                Some(application) => self.perform(&application, &identifier, data).await,
                None => Ok(()),
            },
            // Presence is not kept yet; a pong has done its work by arriving.
            Command::Join { .. } | Command::Leave { .. } | Command::Pong => Ok(()),
        }
    }

    /// The application, if this subscription is there and one of its channels.
    fn decider_of_known(&self, text: &str) -> Option<Arc<dyn Application>> {
        if self.state().session.subscription(text).is_none() {
            metrics::FAILED_CLIENT_MSG.inc();
            tracing::debug!(context = "node", identifier = %ShownIdentifier(text), "command for an unknown identifier skipped");
            return None;
        }
        self.decider(text)
    }

    /// The application, if this identifier names one of its channels.
    pub(super) fn decider(&self, text: &str) -> Option<Arc<dyn Application>> {
        let application = self.node.application.as_ref()?;
        matches!(self.node.access.resolve(text), Resolution::NotOurs).then(|| application.clone())
    }

    /// A subscription that the application decides about.
    async fn subscribe(self: &Arc<Self>, text: &Arc<str>, history: Option<HistoryRequest>) -> Result<(), Unavailable> {
        let limits = &self.node.config.subscriptions;
        let decision = self.state().session.subscribe(text, limits, &self.node.subscriptions, 0);
        let identifier = match decision {
            Subscribe::Ignore => {
                metrics::FAILED_CLIENT_MSG.inc();
                return Ok(());
            }
            Subscribe::ConfirmRestored(identifier) => return self.confirm_restored(&identifier, history).await,
            Subscribe::Refuse => {
                self.refuse_subscription(text);
                return Ok(());
            }
            Subscribe::Authorize(identifier) => identifier,
        };
        match &self.node.application {
            Some(application) => self.subscribe_by_application(application, &identifier, history.as_ref()).await,
            None => {
                self.reject_subscription(&identifier);
                Ok(())
            }
        }
    }

    /// The subscription came with the restored session, and the client asks for it anew.
    pub(super) async fn confirm_restored(
        self: &Arc<Self>,
        identifier: &Arc<Identifier>,
        history: Option<HistoryRequest>,
    ) -> Result<(), Unavailable> {
        self.confirm(identifier);
        match history {
            Some(history) => self.history(&identifier.text, &history).await,
            None => Ok(()),
        }
    }

    pub(super) fn confirm(&self, identifier: &Identifier) {
        self.outbox().push(reply::confirm_subscription(self.receiver.encoding(), &identifier.json()));
    }

    pub(super) fn reject_subscription(&self, identifier: &Identifier) {
        self.outbox().push(reply::reject_subscription(self.receiver.encoding(), &identifier.json()));
    }

    /// Rejects what is beyond a limit.
    pub(super) fn refuse_subscription(&self, identifier: &str) {
        metrics::SUBSCRIPTIONS_REFUSED.inc();
        self.outbox().push(reply::reject_subscription(self.receiver.encoding(), &json_text(identifier)));
    }

    /// Opens streams for a subscription, or finds them open.
    pub(super) async fn open_streams(&self, streams: &[StreamName]) -> Result<Vec<Opened>, Unavailable> {
        let opening = streams.iter().map(|stream| async move {
            let cell = self.node.hub.open(stream).await.map_err(|error| {
                // The client is told which limit it was; whoever gets the error closes it otherwise.
                self.outbox().close(error.close());
                Unavailable::from(error)
            })?;
            let head = {
                let core = cell.lock();
                core.position(core.complete_to())
            };
            Ok(Opened { stream: stream.clone(), cell, head })
        });
        futures_util::future::try_join_all(opening).await
    }

    /// Opens the streams of a subscription and finds what the client wants of their past.
    pub(super) async fn prepare(
        &self,
        streams: &[StreamName],
        history: Option<HistoryRequest>,
    ) -> Result<Prepared, Unavailable> {
        let hub = &self.node.hub;
        let has_history = asks_history(hub, streams);
        let opened = self.open_streams(streams).await?;
        let mut asks: Vec<Option<(Ask, Located)>> = Vec::with_capacity(opened.len());
        for one in &opened {
            let ask = history.as_ref().and_then(|request| Ask::of(&one.stream, request));
            let ask = ask.filter(|ask| !has_history || !is_without_past(hub, ask));
            asks.push(match ask {
                Some(ask) if hub.keeps(&one.stream) => {
                    let located = hub.locate(&one.cell, &ask.from, None).await?;
                    Some((ask, located))
                }
                Some(ask) => Some((ask, Located::Lost)),
                None => None,
            });
        }
        Ok(Prepared { opened, asks, history, has_history })
    }

    /// Lets a subscription that is confirmed follow its streams, from where they stood when they were opened (or from
    /// where the client wants its history).
    pub(super) fn stand(self: &Arc<Self>, identifier: &Arc<Identifier>, prepared: Prepared) {
        let Prepared { opened, asks, history, has_history } = prepared;
        for (one, ask) in opened.iter().zip(&asks) {
            self.attach(&one.cell, &one.stream, identifier, &one.head, ask.is_some());
        }
        let Some(request) = history else { return };
        let located: Vec<_> = asks.into_iter().flatten().collect();
        // Nothing to look for where there is history is done; where there is none it is refused.
        if located.is_empty() && !has_history && request.is_wanted() {
            self.receiver.reject_history(identifier);
            return;
        }
        self.start_history(identifier, located);
    }

    /// Ends a subscription that the application decides about.
    async fn unsubscribe(self: &Arc<Self>, text: &str) {
        if let Some(application) = self.decider_of_known(text) {
            self.unsubscribe_by_application(&application, text).await;
        }
    }

    /// Ends a subscription here. What is stored of it must not come back: a removal is to be committed. False: it is unknown.
    pub(super) fn drop_subscription(&self, text: &str) -> bool {
        let removed = self.state().session.unsubscribe(text);
        let Some(subscription) = removed else { return false };
        for followed in &subscription.streams {
            self.detach(&followed.stream, &subscription.identifier);
        }
        true
    }

    async fn whisper(self: &Arc<Self>, text: &str, data: bytes::Bytes) -> Result<(), Unavailable> {
        let (stream, sid) = {
            let mut state = self.state();
            let Some(stream) = state.session.whisper_stream(text) else { return Ok(()) };
            let now = Instant::now();
            if state.whispers.wait_until(now).is_some() {
                metrics::WHISPERS_DROPPED.inc();
                return Ok(());
            }
            state.whispers.take(now);
            (stream, state.session.sid.clone())
        };
        let meta = Meta { exclude_socket: Some(sid), broadcast_type: None };
        let message = Message { offset: 0, time: 0, payload: Payload::from_json(data), meta };
        if let Err(error) = self.node.hub.broker().transient(&stream, message).await {
            // A whisper is not kept anywhere: it is lost like one sent while offline.
            tracing::debug!(context = "node", %error, "whisper lost");
        }
        Ok(())
    }
}
