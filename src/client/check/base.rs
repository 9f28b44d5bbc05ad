//! Clients of the base protocol: what they miss while they are away is nobody's business, but a connection that stands
//! must bring everything, once and in order.

use super::member::{Arrival, Habits, OPEN_TIMEOUT, PAUSE, Record, Stay, Surroundings, read_id, stopped};
use super::roster::{Dice, Follower};
use super::{Drops, Phase};
use crate::client::{Connection, Frame, Received, command};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use tokio::time::Instant;

const BASE_JSON: &str = "actioncable-v1-json";

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
        let next = Record::new(self.record.follower.clone());
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
        loop {
            let leave = async move {
                match leave_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let text = tokio::select! {
                received = link.next() => match received {
                    Some(Ok(Received::Text(text))) => text,
                    _ => return End::Lost,
                },
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
    Stay { stood, ended: Instant::now(), fresh: false, session: 0, by_client, positions: BTreeMap::new() }
}
