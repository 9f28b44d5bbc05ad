//! Clients of the base protocol: what they miss while they are away is nobody's business, but a connection that stands
//! must bring everything, once and in order.

use super::member::{Habits, OPEN_TIMEOUT, PAUSE, SILENCE, Surroundings, read_id, stopped};
use super::record::{Arrival, Record, Stay};
use super::roster::{Dice, Follower};
use super::{Drops, Phase};
use crate::client::{BASE_JSON, Connection, Frame, Received, command};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// One client of a run.
pub struct BaseMember {
    surroundings: Surroundings,
    habits: Habits,
    dice: Dice,
    record: Record,
}

enum End {
    Dropped,
    Lost,
    Stop,
}

impl BaseMember {
    pub fn new(follower: Follower, habits: Habits, surroundings: Surroundings) -> Self {
        let dice = Dice::new(follower.seed);
        Self { surroundings, habits, dice, record: Record::new(follower) }
    }

    /// Lives until the run stops.
    pub async fn run(mut self) -> Record {
        let mut phase = self.surroundings.phase.clone();
        loop {
            let mut turns = self.surroundings.turns.clone();
            let link = tokio::select! {
                link = self.open() => link,
                () = stopped(&mut phase) => return self.record,
                Ok(()) = turns.changed() => {
                    self.hand_over(None).await;
                    continue;
                }
            };
            let mut stood = None;
            let end = self.stay(link, &mut stood).await;
            self.surroundings.progress.settled.store(false, Ordering::Release);
            let (by_client, away) = match end {
                End::Stop => (None, None),
                End::Dropped => (Some(true), Some(self.dice.within(&self.habits.away))),
                End::Lost => (Some(false), Some(self.dice.within(&(PAUSE.0..PAUSE.1)))),
            };
            self.record.stays.push(stay(stood, by_client));
            let Some(away) = away else { return self.record };
            let back = Instant::now() + away;
            loop {
                let mut turns = self.surroundings.turns.clone();
                tokio::select! {
                    () = tokio::time::sleep_until(back) => break,
                    () = stopped(&mut phase) => return self.record,
                    Ok(()) = turns.changed() => self.hand_over(None).await,
                }
            }
        }
    }

    /// Hands over what was written down so far, and goes on with an empty record; on this connection, if there is one.
    async fn hand_over(&mut self, connected: Option<Option<Instant>>) {
        self.surroundings.turns.mark_unchanged();
        self.record.stays.extend(connected.map(|stood| stay(stood, None)));
        let next = self.record.next(connected.is_some());
        let record = std::mem::replace(&mut self.record, next);
        // Nobody takes it once the run has ended.
        let _ = self.surroundings.records.send(record).await;
    }

    async fn open(&mut self) -> Connection {
        let Surroundings { urls, trust, .. } = &self.surroundings;
        loop {
            let url = &urls[self.dice.below(urls.len() as u64) as usize];
            match Connection::open_trusting(url, &[BASE_JSON], trust.as_ref(), OPEN_TIMEOUT).await {
                Ok(link) => return link,
                Err(_) => tokio::time::sleep(self.dice.within(&(PAUSE.0..PAUSE.1))).await,
            }
        }
    }

    async fn stay(&mut self, mut link: Connection, stood: &mut Option<Instant>) -> End {
        let mut turns = self.surroundings.turns.clone();
        let span = self.dice.within(&self.habits.stay);
        let mut phase = self.surroundings.phase.clone();
        let drops = self.habits.drops != Drops::Never;
        let leave_if = |phase: Phase| (phase == Phase::Run && drops).then(|| Instant::now() + span);
        let mut leave_at = leave_if(*phase.borrow_and_update());
        let mut awaited: BTreeSet<String> =
            self.record.follower.follows.iter().map(|follow| follow.identifier.clone()).collect();
        let (mut heard, mut tick) = (Instant::now(), Instant::now());
        loop {
            let leave = async move {
                match leave_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let text = tokio::select! {
                received = link.next() => {
                    heard = Instant::now();
                    match received {
                        Some(Ok(Received::Text(text))) => text,
                        _ => return End::Lost,
                    }
                }
                () = tokio::time::sleep_until(tick) => {
                    tick += Duration::from_secs(1);
                    if heard.elapsed() > SILENCE {
                        self.record.silences += 1;
                        return End::Lost;
                    }
                    continue;
                }
                () = leave => return End::Dropped,
                Ok(()) = turns.changed() => {
                    self.hand_over(Some(*stood)).await;
                    continue;
                }
                changed = phase.changed() => {
                    match (changed.is_ok(), *phase.borrow_and_update()) {
                        (false, _) | (_, Phase::Stop) => return End::Stop,
                        (_, now) => leave_at = leave_if(now),
                    }
                    continue;
                }
            };
            match Frame::parse(&text) {
                Ok(Frame::Welcome { .. }) => {
                    for follow in &self.record.follower.follows {
                        if link.send(command::subscribe(&follow.identifier, None)).await.is_err() {
                            return End::Lost;
                        }
                    }
                }
                Ok(Frame::ConfirmSubscription(identifier)) => {
                    awaited.remove(&identifier);
                    if awaited.is_empty() {
                        stood.get_or_insert_with(Instant::now);
                        self.surroundings.progress.settled.store(true, Ordering::Release);
                    }
                }
                // Clients of this protocol are told when a server stops, and come back.
                Ok(Frame::Disconnect { reconnect: Some(true), .. }) => return End::Lost,
                Ok(Frame::Ping(_)) => {}
                // Positions mean nothing to this client.
                Ok(Frame::Data(data)) => {
                    let follow = self.record.follower.follows.iter().position(|one| one.identifier == data.identifier);
                    match (follow, read_id(&data.message)) {
                        (Some(follow), Some(id)) => {
                            let at = Instant::now();
                            let connection = u32::try_from(self.record.stays.len()).unwrap_or(u32::MAX - 1) + 1;
                            self.record.arrivals.push(Arrival { follow, id, position: None, connection, at });
                        }
                        _ => self.record.surprises.push("a message that nobody published".to_owned()),
                    }
                }
                _ => {
                    let text: String = text.chars().take(200).collect();
                    self.record.surprises.push(format!("to a client of the base protocol: {text}"));
                }
            }
        }
    }
}

fn stay(stood: Option<Instant>, by_client: Option<bool>) -> Stay {
    let (ended, positions) = (Instant::now(), BTreeMap::new());
    // Clients of this protocol have no sessions.
    Stay { welcomed: None, stood, ended, fresh: false, session: 0, sid: 0, by_client, positions }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::check::progress::Progress;
    use crate::client::check::roster::{Follow, Kind};
    use futures_util::{SinkExt, StreamExt};
    use std::sync::Arc;
    use tokio::net::TcpListener;
    use tokio::sync::{mpsc, watch};
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};

    #[expect(clippy::result_large_err, reason = "the library's callback type")]
    fn choose_protocol(_: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
        response.headers_mut().insert("sec-websocket-protocol", BASE_JSON.parse().unwrap());
        Ok(response)
    }

    #[tokio::test]
    async fn a_connection_that_falls_silent_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}/cable", listener.local_addr().unwrap()).parse().unwrap();
        let follow = Follow { identifier: "i".to_owned(), stream: "s".to_owned() };
        let follower = Follower { id: 0, kind: Kind::Base, follows: vec![follow], seed: 1 };
        let progress = Arc::new(Progress::of(&follower));
        let (phase, watching) = watch::channel(Phase::Setup);
        let ((_waves, waving), (_skew, clocks), (_turns, turning)) =
            (watch::channel(0), watch::channel(0), watch::channel(0));
        let surroundings = Surroundings {
            urls: vec![url],
            trust: None,
            phase: watching,
            waves: waving,
            skew: clocks,
            silent: None,
            progress: Arc::clone(&progress),
            turns: turning,
            records: mpsc::channel(1).0,
        };
        let second = Duration::from_secs(1);
        let (stay, away) = (second..second, second..second);
        let habits = Habits { drops: Drops::Never, stay, away, history: true, whispers: false };
        let member = tokio::spawn(BaseMember::new(follower, habits, surroundings).run());
        let (tcp, _) = listener.accept().await.unwrap();
        let mut ws = tokio_tungstenite::accept_hdr_async(tcp, choose_protocol).await.unwrap();
        ws.send(Message::text(r#"{"type":"welcome"}"#)).await.unwrap();
        ws.next().await.unwrap().unwrap();
        ws.send(Message::text(r#"{"type":"confirm_subscription","identifier":"i"}"#)).await.unwrap();
        while !progress.settled.load(Ordering::Acquire) {
            tokio::task::yield_now().await;
        }
        // From here on seconds pass at once.
        tokio::time::pause();
        let end = tokio::time::timeout(second * 60, ws.next()).await.expect("it does not stay on a dead connection");
        assert!(!matches!(end, Some(Ok(_))), "{end:?}");
        phase.send_replace(Phase::Stop);
        assert_eq!(member.await.unwrap().silences, 1);
    }
}
