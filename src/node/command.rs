//! Executing one client command.

use super::client::Client;
use crate::auth::Resolution;
use crate::broker::Unavailable;
use crate::hub::Identifier;
use crate::metrics;
use crate::protocol::command::{self, Skipped};
use crate::protocol::{Command, HistoryRequest, Message, Meta, Payload, Position, StreamName, reply};
use crate::session::{Followed, PRESENCE_KEY, State, Subscribe, WHISPER_KEY};
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
                identifier
            }
            Subscribe::Authorize(identifier) => match self.node.access.resolve(text) {
                Resolution::Stream { name, whisper, presence } => {
                    let mut istate = State::new();
                    if whisper {
                        istate.insert(WHISPER_KEY.into(), name.as_str().into());
                    }
                    if presence {
                        istate.insert(PRESENCE_KEY.into(), name.as_str().into());
                    }
                    self.follow(&identifier, &name, istate, history.is_some()).await?;
                    identifier
                }
                Resolution::Rejected(reason) => {
                    tracing::debug!(context = "streams", reason, "subscription rejected");
                    return self.reject_subscription(&identifier);
                }
                Resolution::NotOurs => return self.reject_subscription(&identifier),
            },
        };
        match history {
            Some(history) => self.history(&identifier.text, &history).await,
            None => Ok(()),
        }
    }

    fn confirm(&self, identifier: &Identifier) {
        self.outbox().push(reply::confirm_subscription(self.receiver.encoding(), &identifier.json));
    }

    fn reject_subscription(&self, identifier: &Identifier) -> Result<(), Unavailable> {
        self.outbox().push(reply::reject_subscription(self.receiver.encoding(), &identifier.json));
        Ok(())
    }

    /// Subscribes to a stream: opened first, committed, confirmed, and then followed from where it stood when it was
    /// opened, so that nothing stored in between is missed and nothing precedes the confirmation.
    async fn follow(
        self: &Arc<Self>,
        identifier: &Arc<Identifier>,
        stream: &StreamName,
        istate: State,
        held: bool,
    ) -> Result<(), Unavailable> {
        let cell = self.node.hub.open(stream).await?;
        let began = {
            let core = cell.lock();
            Position { epoch: core.epoch().clone(), offset: core.complete_to() }
        };
        let from = began.offset;
        let followed = Followed { stream: stream.clone(), began };
        self.state().session.subscribed(identifier, vec![followed], istate);
        // A commit that fails costs resumability, not the subscription.
        let _ = self.commit().await;
        self.confirm(identifier);
        self.attach(&cell, stream, identifier, from, held);
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
