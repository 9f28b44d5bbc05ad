//! Executing one client command.

use super::client::Client;
use crate::auth::Resolution;
use crate::broker::Unavailable;
use crate::hub::{Identifier, Located};
use crate::metrics;
use crate::protocol::command::{self, Skipped};
use crate::protocol::{Command, HistoryRequest, Message, Meta, Payload, Position, StreamName, reply};
use crate::session::{Ask, Followed, PRESENCE_KEY, State, Subscribe, WHISPER_KEY};
use std::sync::Arc;

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
            // Streams without an application have no actions and no presence; a pong has done its work by arriving.
            Command::Perform { .. } | Command::Join { .. } | Command::Leave { .. } | Command::Pong => Ok(()),
        }
    }

    async fn subscribe(self: &Arc<Self>, text: &Arc<str>, history: Option<HistoryRequest>) -> Result<(), Unavailable> {
        let decision = self.state().session.subscribe(text);
        let identifier = match decision {
            Subscribe::Ignore => return Ok(()),
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
                self.follow(&identifier, &name, istate, history.as_ref()).await
            }
            Resolution::Rejected(reason) => {
                tracing::debug!(context = "streams", reason, "subscription rejected");
                self.reject_subscription(&identifier)
            }
            Resolution::NotOurs => self.reject_subscription(&identifier),
        }
    }

    fn confirm(&self, identifier: &Identifier) {
        self.outbox().push(reply::confirm_subscription(self.receiver.encoding(), &identifier.json));
    }

    fn reject_subscription(&self, identifier: &Identifier) -> Result<(), Unavailable> {
        self.outbox().push(reply::reject_subscription(self.receiver.encoding(), &identifier.json));
        Ok(())
    }

    /// Subscribes to a stream: opened first, committed, confirmed, and only then followed, from where it stood when it was
    /// opened (or from where the client wants its history), so that nothing stored in between is missed and nothing
    /// precedes the confirmation.
    async fn follow(
        self: &Arc<Self>,
        identifier: &Arc<Identifier>,
        stream: &StreamName,
        istate: State,
        history: Option<&HistoryRequest>,
    ) -> Result<(), Unavailable> {
        let hub = &self.node.hub;
        let cell = hub.open(stream).await?;
        let ask = history.and_then(|request| Ask::of(stream, request));
        let located = match &ask {
            Some(ask) if hub.broker().features().history => hub.locate(&cell, &ask.from, None).await?,
            _ => Located::Lost,
        };
        let (epoch, head) = {
            let core = cell.lock();
            (core.epoch().clone(), core.complete_to())
        };
        // What the client asked for is part of what it must get, also if it drops before it has received any of it.
        let offset = if let Located::After(after) = located { after.min(head) } else { head };
        let followed = Followed { stream: stream.clone(), began: Position { epoch, offset } };
        self.state().session.subscribed(identifier, vec![followed], istate);
        // A commit that fails costs resumability, not the subscription.
        let _ = self.commit().await;
        self.confirm(identifier);
        self.attach(&cell, stream, identifier, head, ask.is_some());
        let Some(request) = history else { return Ok(()) };
        let located = match ask {
            Some(ask) => Some((ask, located)),
            // Nothing to look for where there is history is done; where there is none it is refused.
            None if hub.broker().features().history || !request.is_wanted() => None,
            None => {
                self.receiver.reject_history(identifier);
                return Ok(());
            }
        };
        self.start_history(identifier, located.into_iter().collect());
        Ok(())
    }

    async fn unsubscribe(self: &Arc<Self>, text: &str) {
        let removed = self.state().session.unsubscribe(text);
        let Some(subscription) = removed else { return };
        for followed in &subscription.streams {
            self.detach(&followed.stream, &subscription.identifier);
        }
        let _ = self.commit_removal().await;
    }

    async fn whisper(self: &Arc<Self>, text: &str, data: bytes::Bytes) -> Result<(), Unavailable> {
        let (stream, sid) = {
            let state = self.state();
            let Some(stream) = state.session.whisper_stream(text) else { return Ok(()) };
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
