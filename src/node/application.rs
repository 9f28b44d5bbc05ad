//! Subscriptions of the application's channels: what it is asked, and what its answers do.

use super::client::Client;
use crate::broker::Unavailable;
use crate::hub::Identifier;
use crate::log_limit::limited;
use crate::metrics;
use crate::protocol::{Close, HistoryRequest, ShownIdentifier, StreamName};
use crate::rpc::{Application, CommandCall, CommandEffects, CommandKind, Env, Outcome, PresenceChange};
use crate::session::Stop;
use std::sync::Arc;

impl Client {
    /// What every call carries: the connection's request and state.
    pub fn env(&self) -> Env {
        let mut env = self.asked.as_ref().map_or_else(Env::default, |asked| asked.env());
        env.cstate = self.state().session.cstate.clone();
        env
    }

    /// Asks the application. `None`: it brought nothing, the client is told nothing, and may try again.
    async fn ask(
        &self,
        application: &Arc<dyn Application>,
        kind: CommandKind,
        identifier: &str,
        data: String,
    ) -> Option<CommandEffects> {
        let mut env = self.env();
        let (sid, connection_identifiers) = {
            let state = self.state();
            if let Some(subscription) = state.session.subscription(identifier) {
                env.istate = subscription.istate.clone();
            }
            (state.session.sid.clone(), state.session.identifiers.to_string())
        };
        let call = CommandCall { kind, identifier: identifier.to_owned(), connection_identifiers, data, env };
        match application.command(&sid, call).await {
            Ok(effects) => Some(effects),
            Err(error) => {
                metrics::FAILED_CLIENT_MSG.inc();
                let identifier = ShownIdentifier(identifier);
                limited!(WARN, CommandFailed, %sid, %identifier, ?kind, %error, "a command failed");
                None
            }
        }
    }

    pub(super) async fn subscribe_by_application(
        self: &Arc<Self>,
        application: &Arc<dyn Application>,
        identifier: &Arc<Identifier>,
        history: Option<&HistoryRequest>,
    ) -> Result<(), Unavailable> {
        let text = &identifier.text;
        let Some(effects) = self.ask(application, CommandKind::Subscribe, text, String::new()).await else {
            return Ok(());
        };
        let CommandEffects { outcome, disconnect, streams, transmissions, istate, cstate, presence, .. } = effects;
        // It has nothing that could be stopped yet; `stop_streams` and `stopped_streams` precede `streams`.
        match outcome {
            _ if disconnect => {
                {
                    let mut state = self.state();
                    state.session.express_interest();
                    state.session.merge_cstate(cstate);
                    if outcome == Outcome::Success {
                        state.session.grant(text, istate);
                    }
                }
                self.end_session(&transmissions);
            }
            Outcome::Failure => {
                {
                    let mut state = self.state();
                    state.session.express_interest();
                    state.session.merge_cstate(cstate);
                }
                let _ = self.commit().await;
                self.transmit(&transmissions);
            }
            Outcome::Success => {
                {
                    // Before anything is waited for: the application counts the subscription in from now on.
                    let mut state = self.state();
                    state.session.express_interest();
                    state.session.merge_cstate(cstate);
                    state.session.grant(text, istate);
                }
                let prepared = self.prepare(&distinct(streams), history.cloned()).await?;
                self.state().session.subscribed_as_granted(identifier, prepared.followed());
                // A commit that fails costs resumability, not the subscription.
                let _ = self.commit().await;
                self.transmit(&transmissions);
                self.stand(identifier, prepared);
                self.keep_presence(text, presence);
            }
        }
        Ok(())
    }

    pub(super) async fn unsubscribe_by_application(self: &Arc<Self>, application: &Arc<dyn Application>, text: &str) {
        let Some(effects) = self.ask(application, CommandKind::Unsubscribe, text, String::new()).await else {
            // The application still counts it in, and will be told when the client leaves; the client does not.
            self.state().session.unconfirm(text);
            return;
        };
        let CommandEffects { disconnect, transmissions, cstate, .. } = effects;
        self.state().session.merge_cstate(cstate);
        let removed = self.drop_subscription(text);
        if disconnect {
            self.end_session(&transmissions);
            return;
        }
        if removed {
            let _ = self.commit_removal().await;
        }
        self.transmit(&transmissions);
    }

    /// An action of the client in a channel of the application.
    pub(super) async fn perform(
        self: &Arc<Self>,
        application: &Arc<dyn Application>,
        text: &str,
        data: String,
    ) -> Result<(), Unavailable> {
        let Some(effects) = self.ask(application, CommandKind::Message, text, data).await else { return Ok(()) };
        let Some(identifier) = self.state().session.subscription(text).map(|one| one.identifier.clone()) else {
            return Ok(());
        };
        let CommandEffects { disconnect, stop_streams, stopped_streams, streams, transmissions, .. } = effects;
        let stop = match stop_streams {
            true => Stop::All,
            false => Stop::These(distinct(stopped_streams)),
        };
        let stopped = self.state().session.stop(text, &stop);
        for stream in &stopped {
            self.detach(stream, &identifier);
        }
        let fresh = {
            // Before anything is waited for: if the connection ends meanwhile, the session goes on with all of it.
            let mut state = self.state();
            state.session.merge_istate(text, effects.istate);
            state.session.merge_cstate(effects.cstate);
            state.session.follow(text, distinct(streams))
        };
        if disconnect {
            self.end_session(&transmissions);
            return Ok(());
        }
        let opened = self.beside_removal(!stopped.is_empty(), self.open_streams(&fresh)).await?;
        self.state().session.opened(text, opened.iter().map(|one| one.followed(None)).collect());
        // What was taken away must not come back with a restore; what was added may, if the store is slow, not survive.
        let _ = if stopped.is_empty() { self.commit().await } else { self.commit_removal().await };
        self.transmit(&transmissions);
        for one in &opened {
            self.attach(&one.cell, &one.stream, &identifier, &one.head, false);
        }
        self.keep_presence(text, effects.presence);
        Ok(())
    }

    /// Complete protocol messages of the application, as they are.
    pub(super) fn transmit(&self, transmissions: &[String]) {
        for transmission in transmissions {
            self.outbox().push(self.receiver.encoding().text(transmission));
        }
    }

    /// The application has ended the session, not the connection alone. Nothing is waited for between its answer and this:
    /// however soon the connection ends by itself, the session is over. These are the last words to the client.
    fn end_session(&self, transmissions: &[String]) {
        self.transmit(transmissions);
        self.handle.revoke(Close::CommandFailed);
    }

    fn keep_presence(&self, identifier: &str, change: Option<PresenceChange>) {
        if let Some(change) = change
            && !self.state().session.set_presence(identifier, change)
        {
            let identifier = ShownIdentifier(identifier);
            limited!(WARN, PresenceWithoutStream, %identifier, "presence without a stream: its state has no `$p`");
        }
    }
}

fn distinct(names: Vec<String>) -> Vec<StreamName> {
    let mut streams: Vec<StreamName> = Vec::with_capacity(names.len());
    for name in names {
        let stream = StreamName::from(name);
        if !streams.contains(&stream) {
            streams.push(stream);
        }
    }
    streams
}
