//! Commands that Carrick decides about alone and that came together: their streams open at the same time, they share one
//! commit, and they are answered in their order.

use super::client::Client;
use super::command::Prepared;
use crate::auth::Resolution;
use crate::broker::Unavailable;
use crate::hub::Identifier;
use crate::metrics;
use crate::protocol::{Command, HistoryRequest, StreamName};
use crate::session::{PRESENCE_KEY, State, Subscribe, WHISPER_KEY};
use std::sync::Arc;

/// A command that may share its commit with those beside it.
pub(super) enum Joined {
    Subscribe {
        identifier: Arc<str>,
        history: Option<HistoryRequest>,
        /// `None`: not allowed.
        stream: Option<(StreamName, State)>,
    },
    Unsubscribe {
        identifier: Arc<str>,
    },
}

/// What an answer takes of the client's queue beside the identifier, about.
const ANSWER: usize = 256;

impl Joined {
    /// Bytes that its answers take of the client's queue, about.
    pub fn answers(&self) -> usize {
        match self {
            Self::Subscribe { identifier, history, .. } => {
                (1 + usize::from(history.is_some())) * (identifier.len() + ANSWER)
            }
            Self::Unsubscribe { .. } => 0,
        }
    }

    pub fn identifier(&self) -> &Arc<str> {
        match self {
            Self::Subscribe { identifier, .. } | Self::Unsubscribe { identifier } => identifier,
        }
    }
}

impl From<Joined> for Command {
    fn from(joined: Joined) -> Self {
        match joined {
            Joined::Subscribe { identifier, history, .. } => Self::Subscribe { identifier, history },
            Joined::Unsubscribe { identifier } => Self::Unsubscribe { identifier },
        }
    }
}

/// What becomes of a command.
enum Step {
    ConfirmRestored(Arc<Identifier>, Option<HistoryRequest>),
    Reject(Arc<Identifier>),
    /// Beyond a limit.
    Refuse(Arc<str>),
    Follow(Follow),
}

struct Follow {
    identifier: Arc<Identifier>,
    stream: StreamName,
    istate: State,
    history: Option<HistoryRequest>,
}

/// A step whose streams are open.
enum Ready {
    ConfirmRestored(Arc<Identifier>, Option<HistoryRequest>),
    Reject(Arc<Identifier>),
    Refuse(Arc<str>),
    Follow(Arc<Identifier>, Prepared),
}

impl Client {
    /// A command that may share its commit, or the same command if the application has a say in it.
    pub(super) fn joined(&self, command: Command) -> Result<Joined, Command> {
        match command {
            Command::Subscribe { identifier, history } => {
                let resolution = self.node.access.resolve(&identifier);
                let stream = match resolution {
                    Resolution::Stream { name, whisper, presence } => {
                        let keys = [(WHISPER_KEY, whisper), (PRESENCE_KEY, presence)];
                        let on = keys.into_iter().filter(|(_, on)| *on);
                        Some((name.clone(), on.map(|(key, _)| (key.into(), name.as_str().into())).collect()))
                    }
                    Resolution::NotOurs if self.node.application.is_some() => {
                        return Err(Command::Subscribe { identifier, history });
                    }
                    Resolution::NotOurs => None,
                    Resolution::Rejected(reason) => {
                        tracing::debug!(context = "streams", reason, "subscription rejected");
                        None
                    }
                };
                Ok(Joined::Subscribe { identifier, history, stream })
            }
            Command::Unsubscribe { identifier } if self.decider(&identifier).is_none() => {
                Ok(Joined::Unsubscribe { identifier })
            }
            other => Err(other),
        }
    }

    /// Executes commands with different identifiers; their replies are queued when this returns. An error means that the
    /// store could not be asked in time, as with [`Self::execute`].
    pub(super) async fn execute_joined(self: &Arc<Self>, commands: Vec<Joined>) -> Result<(), Unavailable> {
        let mut steps = Vec::with_capacity(commands.len());
        let mut deciding = 0;
        let mut removed = false;
        for command in commands {
            match command {
                Joined::Subscribe { identifier, history, stream } => {
                    let step = self.decide(&identifier, history, stream, deciding);
                    deciding += usize::from(matches!(step, Some(Step::Follow(_))));
                    steps.extend(step);
                }
                // Before anything is waited for: it must not come back if the connection ends meanwhile.
                Joined::Unsubscribe { identifier } if self.drop_subscription(&identifier) => removed = true,
                Joined::Unsubscribe { .. } => metrics::FAILED_CLIENT_MSG.inc(),
            }
        }
        let readying = futures_util::future::try_join_all(steps.into_iter().map(|step| self.ready(step)));
        let ready = self.beside_removal(removed, readying).await?;
        // A commit that fails costs resumability, not the subscriptions.
        let _ = if removed { self.commit_removal().await } else { self.commit().await };
        for step in ready {
            match step {
                Ready::ConfirmRestored(identifier, history) => self.confirm_restored(&identifier, history).await?,
                Ready::Reject(identifier) => self.reject_subscription(&identifier),
                Ready::Refuse(identifier) => self.refuse_subscription(&identifier),
                Ready::Follow(identifier, prepared) => {
                    self.confirm(&identifier);
                    self.stand(&identifier, prepared);
                }
            }
        }
        Ok(())
    }

    fn decide(
        &self,
        identifier: &Arc<str>,
        history: Option<HistoryRequest>,
        stream: Option<(StreamName, State)>,
        deciding: usize,
    ) -> Option<Step> {
        let Self { node, .. } = self;
        let limits = &node.config.subscriptions;
        let decision = self.state().session.subscribe(identifier, limits, &node.subscriptions, deciding);
        Some(match (decision, stream) {
            (Subscribe::Ignore, _) => {
                metrics::FAILED_CLIENT_MSG.inc();
                return None;
            }
            (Subscribe::ConfirmRestored(identifier), _) => Step::ConfirmRestored(identifier, history),
            (Subscribe::Refuse, _) => Step::Refuse(identifier.clone()),
            (Subscribe::Authorize(identifier), None) => Step::Reject(identifier),
            (Subscribe::Authorize(identifier), Some((stream, istate))) => {
                Step::Follow(Follow { identifier, stream, istate, history })
            }
        })
    }

    /// Opens what a step needs, and records it.
    async fn ready(self: &Arc<Self>, step: Step) -> Result<Ready, Unavailable> {
        Ok(match step {
            Step::ConfirmRestored(identifier, history) => Ready::ConfirmRestored(identifier, history),
            Step::Reject(identifier) => Ready::Reject(identifier),
            Step::Refuse(identifier) => Ready::Refuse(identifier),
            Step::Follow(Follow { identifier, stream, istate, history }) => {
                let prepared = self.prepare(&[stream], history).await?;
                self.state().session.subscribed(&identifier, prepared.followed(), istate);
                Ready::Follow(identifier, prepared)
            }
        })
    }
}
