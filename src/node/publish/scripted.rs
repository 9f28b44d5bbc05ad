//! A broker for tests of publishing alone: the data says how storing it ends, so that every failure can be had.

use crate::broker::{
    AppendError, Appended, Behind, Broker, Durability, Facts, Features, Life, LogState, Logs, Looked, Over, Page,
    ReadFrom, RemoteDisconnect, SaveError, SessionKey, Status, StoredSession, Table, Unavailable,
};
use crate::protocol::{Epoch, Message, MessageId, Meta, Publication, StreamName};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Mutex;
use tokio::sync::watch;

pub(crate) fn item(stream: &str, data: &str) -> Publication {
    Publication {
        stream: StreamName::from(stream),
        data: Bytes::from(data.to_owned()),
        meta: Meta::default(),
        transient: false,
        id: MessageId::random(),
    }
}

/// Data `not stored`, `unknown`, `too large` and `full` fail that way; everything else is stored.
pub(crate) struct ScriptedBroker {
    state: Mutex<State>,
    status: watch::Sender<Status>,
}

#[derive(Default)]
struct State {
    /// What was handed over, in order.
    appended: Vec<Publication>,
    offset_of: HashMap<MessageId, u64>,
    in_flight: HashMap<StreamName, usize>,
    most_in_flight: usize,
    most_in_flight_per_stream: usize,
    commands: Vec<RemoteDisconnect>,
}

impl Default for ScriptedBroker {
    fn default() -> Self {
        let ttl = std::time::Duration::from_secs(300);
        let state = LogState { epoch: Epoch::from("e1"), limit: 100, ttl };
        let logs = Logs::new(Table::new(Vec::new(), 100, ttl), vec![state]);
        let status = Status { ready: true, readable: true, generation: 1, logs, reason: "".into() };
        Self { state: Mutex::default(), status: watch::Sender::new(status) }
    }
}

impl ScriptedBroker {
    pub(crate) fn data_of(&self, stream: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let of_stream = state.appended.iter().filter(|item| item.stream.as_str() == stream);
        of_stream.map(|item| String::from_utf8(item.data.to_vec()).unwrap()).collect()
    }

    pub(crate) fn appended(&self) -> Vec<Publication> {
        self.state.lock().unwrap().appended.clone()
    }

    pub(crate) fn commands(&self) -> Vec<RemoteDisconnect> {
        self.state.lock().unwrap().commands.clone()
    }

    pub(crate) fn most_in_flight(&self) -> usize {
        self.state.lock().unwrap().most_in_flight
    }

    pub(crate) fn most_in_flight_per_stream(&self) -> usize {
        self.state.lock().unwrap().most_in_flight_per_stream
    }

    pub(crate) fn set_ready(&self, ready: bool, reason: &str) {
        self.status.send_modify(|status| {
            status.ready = ready;
            status.reason = reason.into();
        });
    }
}

#[async_trait]
impl Broker for ScriptedBroker {
    fn features(&self) -> Features {
        Features { history: true, sessions: false, shared: false }
    }

    fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    async fn append(&self, publication: Publication) -> Result<Appended, AppendError> {
        let stream = publication.stream.clone();
        {
            let mut state = self.state.lock().unwrap();
            let here = state.in_flight.entry(stream.clone()).or_default();
            *here += 1;
            let here = *here;
            state.most_in_flight_per_stream = state.most_in_flight_per_stream.max(here);
            let all = state.in_flight.values().sum();
            state.most_in_flight = state.most_in_flight.max(all);
            state.appended.push(publication.clone());
        }
        tokio::task::yield_now().await;
        let mut state = self.state.lock().unwrap();
        *state.in_flight.get_mut(&stream).unwrap() -= 1;
        match &publication.data[..] {
            b"not stored" => Err(AppendError::NotStored("no connection".to_owned())),
            b"unknown" => Err(AppendError::Unknown("10 s passed".to_owned())),
            b"too large" => Err(AppendError::TooLarge { size: 2048, limit: 1024 }),
            b"full" => Err(AppendError::StorageFull("no space left on device".to_owned())),
            _ if publication.transient => {
                Ok(Appended { epoch: Epoch::from("e1"), offset: 0, duplicate: false, durability: Durability::None })
            }
            _ => {
                let next = state.offset_of.len() as u64 + 1;
                let offset = *state.offset_of.entry(publication.id).or_insert(next);
                Ok(Appended {
                    epoch: Epoch::from("e1"),
                    offset,
                    duplicate: offset != next,
                    durability: Durability::Memory,
                })
            }
        }
    }

    async fn disconnect(&self, command: &RemoteDisconnect) -> Result<u64, AppendError> {
        if command.identifiers == "not stored" {
            return Err(AppendError::NotStored("no connection".to_owned()));
        }
        let mut state = self.state.lock().unwrap();
        state.commands.push(command.clone());
        Ok(state.commands.len() as u64)
    }

    async fn transient(&self, _: &StreamName, _: Message) -> Result<(), Unavailable> {
        unreachable!("publishing hands transient messages to append")
    }

    async fn open(&self, _: &[StreamName]) -> Result<Vec<Looked>, Unavailable> {
        unreachable!("publishing opens nothing")
    }

    fn close(&self, _: &StreamName) {
        unreachable!("publishing opens nothing")
    }

    async fn heads(&self, _: &[StreamName]) -> Result<Vec<Looked>, Unavailable> {
        unreachable!("publishing reads nothing")
    }

    async fn read(&self, _: &StreamName, _: ReadFrom, _: u64, _: usize, _: usize) -> Result<Page, Unavailable> {
        unreachable!("publishing reads nothing")
    }

    async fn behind(&self, _: &StreamName, _: u64) -> Result<Behind, Unavailable> {
        unreachable!("publishing reads nothing")
    }

    async fn facts(&self, _: &StreamName) -> Result<Facts, Unavailable> {
        unreachable!("publishing reads nothing")
    }

    async fn load_session(&self, _: &SessionKey) -> Result<Option<StoredSession>, Unavailable> {
        unreachable!("publishing knows no sessions")
    }

    async fn save_session(&self, _: &SessionKey, _: Bytes, _: Option<u64>, _: Life) -> Result<u64, SaveError> {
        unreachable!("publishing knows no sessions")
    }

    async fn save_beside(&self, _: &SessionKey, _: Bytes, _: Option<u64>) -> Result<u64, SaveError> {
        unreachable!("publishing knows no sessions")
    }

    async fn announce_over(&self, _: &SessionKey, _: Over) {
        unreachable!("publishing knows no sessions")
    }

    async fn delete_session(&self, _: &SessionKey, _: Option<u64>) -> Result<bool, Unavailable> {
        unreachable!("publishing knows no sessions")
    }

    async fn mark(&self, _: &str) -> Result<u64, Unavailable> {
        unreachable!("publishing knows no sessions")
    }
}
