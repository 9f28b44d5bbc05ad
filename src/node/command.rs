//! Executing one client command.

use super::client::Client;
use super::history::{asks_history, is_without_past};
use crate::auth::Resolution;
use crate::broker::Unavailable;
use crate::hub::{Identifier, Located, Open};
use crate::metrics;
use crate::protocol::command::{self, Skipped};
use crate::protocol::{Command, Epoch, HistoryRequest, Message, Meta, Payload, Position, StreamName, reply};
use crate::rpc::Application;
use crate::session::{Ask, Followed, PRESENCE_KEY, Session, State, Subscribe, WHISPER_KEY};
use std::sync::Arc;
use tokio::time::Instant;

/// An open stream that a subscription is about to follow.
pub(super) struct Opened {
    pub stream: StreamName,
    pub cell: Open,
    pub epoch: Epoch,
    /// Where it stood when it was opened.
    pub head: u64,
}

impl Opened {
    /// What the session records of it. `located`: where the client wants it from.
    pub fn followed(&self, located: Option<Located>) -> Followed {
        let offset = if let Some(Located::After(after)) = located { after.min(self.head) } else { self.head };
        Followed { stream: self.stream.clone(), began: Position { epoch: self.epoch.clone(), offset } }
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

    /// Executes a command; its replies are queued when this returns. An error means that the store could not be asked
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
                let json = crate::protocol::encoding::json_text(&identifier);
                self.outbox().push(reply::presence_error(self.receiver.encoding(), &json));
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
            tracing::debug!(context = "node", identifier = text, "command for an unknown identifier skipped");
            return None;
        }
        self.decider(text)
    }

    /// The application, if this identifier names one of its channels.
    fn decider(&self, text: &str) -> Option<Arc<dyn Application>> {
        let application = self.node.application.as_ref()?;
        matches!(self.node.access.resolve(text), Resolution::NotOurs).then(|| application.clone())
    }

    async fn subscribe(self: &Arc<Self>, text: &Arc<str>, history: Option<HistoryRequest>) -> Result<(), Unavailable> {
        let decision = self.state().session.subscribe(text);
        let identifier = match decision {
            Subscribe::Ignore => {
                metrics::FAILED_CLIENT_MSG.inc();
                return Ok(());
            }
            Subscribe::ConfirmRestored(identifier) => {
                self.confirm(&identifier);
                return match history {
                    Some(history) => self.history(&identifier.text, &history).await,
                    None => Ok(()),
                };
            }
            Subscribe::Authorize(identifier) => identifier,
        };
        match self.node.access.resolve(text) {
            Resolution::Stream { name, whisper, presence } => {
                let mut istate = State::new();
                if whisper {
                    istate.insert(WHISPER_KEY.into(), name.as_str().into());
                }
                if presence {
                    istate.insert(PRESENCE_KEY.into(), name.as_str().into());
                }
                let record = |session: &mut Session, followed| session.subscribed(&identifier, followed, istate);
                let confirm = || self.confirm(&identifier);
                self.follow(&identifier, &[name], record, confirm, history.as_ref()).await
            }
            Resolution::Rejected(reason) => {
                tracing::debug!(context = "streams", reason, "subscription rejected");
                self.reject_subscription(&identifier)
            }
            Resolution::NotOurs => match &self.node.application {
                Some(application) => self.subscribe_by_application(application, &identifier, history.as_ref()).await,
                None => self.reject_subscription(&identifier),
            },
        }
    }

    fn confirm(&self, identifier: &Identifier) {
        self.outbox().push(reply::confirm_subscription(self.receiver.encoding(), &identifier.json));
    }

    fn reject_subscription(&self, identifier: &Identifier) -> Result<(), Unavailable> {
        self.outbox().push(reply::reject_subscription(self.receiver.encoding(), &identifier.json));
        Ok(())
    }

    /// Opens streams for a subscription, or finds them open.
    pub(super) async fn open_streams(&self, streams: &[StreamName]) -> Result<Vec<Opened>, Unavailable> {
        let opening = streams.iter().map(|stream| async move {
            let cell = self.node.hub.open(stream).await?;
            let (epoch, head) = {
                let core = cell.lock();
                (core.epoch().clone(), core.complete_to())
            };
            Ok(Opened { stream: stream.clone(), cell, epoch, head })
        });
        futures_util::future::try_join_all(opening).await
    }

    /// Subscribes to streams: opened first, committed, confirmed, and only then followed, from where they stood when they
    /// were opened (or from where the client wants its history), so that nothing stored in between is missed and nothing
    /// precedes the confirmation.
    pub(super) async fn follow(
        self: &Arc<Self>,
        identifier: &Arc<Identifier>,
        streams: &[StreamName],
        record: impl FnOnce(&mut Session, Vec<Followed>),
        confirm: impl FnOnce(),
        history: Option<&HistoryRequest>,
    ) -> Result<(), Unavailable> {
        let hub = &self.node.hub;
        let has_history = asks_history(hub, streams);
        let opened = self.open_streams(streams).await?;
        let mut asks: Vec<Option<(Ask, Located)>> = Vec::with_capacity(opened.len());
        for one in &opened {
            let ask = history.and_then(|request| Ask::of(&one.stream, request));
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
        // What the client asked for is part of what it must get, also if it drops before it has received any of it.
        let located = |ask: &Option<(Ask, Located)>| ask.as_ref().map(|(_, located)| *located);
        let followed = opened.iter().zip(&asks).map(|(one, ask)| one.followed(located(ask))).collect();
        record(&mut self.state().session, followed);
        // A commit that fails costs resumability, not the subscription.
        let _ = self.commit().await;
        confirm();
        for (one, ask) in opened.iter().zip(&asks) {
            self.attach(&one.cell, &one.stream, identifier, one.head, ask.is_some());
        }
        let Some(request) = history else { return Ok(()) };
        let located: Vec<_> = asks.into_iter().flatten().collect();
        // Nothing to look for where there is history is done; where there is none it is refused.
        if located.is_empty() && !has_history && request.is_wanted() {
            self.receiver.reject_history(identifier);
            return Ok(());
        }
        self.start_history(identifier, located);
        Ok(())
    }

    async fn unsubscribe(self: &Arc<Self>, text: &str) {
        if self.state().session.subscription(text).is_none() {
            metrics::FAILED_CLIENT_MSG.inc();
            return;
        }
        match self.decider(text) {
            Some(application) => self.unsubscribe_by_application(&application, text).await,
            None => self.leave_subscription(text).await,
        }
    }

    /// Ends a subscription; what is stored of it must not come back.
    pub(super) async fn leave_subscription(self: &Arc<Self>, text: &str) {
        let removed = self.state().session.unsubscribe(text);
        let Some(subscription) = removed else { return };
        for followed in &subscription.streams {
            self.detach(&followed.stream, &subscription.identifier);
        }
        let _ = self.commit_removal().await;
    }

    async fn whisper(self: &Arc<Self>, text: &str, data: bytes::Bytes) -> Result<(), Unavailable> {
        let (stream, sid) = {
            let mut state = self.state();
            let Some(stream) = state.session.whisper_stream(text) else { return Ok(()) };
            if !state.whispers.take(Instant::now()) {
                metrics::WHISPERS_DROPPED.inc();
                return Ok(());
            }
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
