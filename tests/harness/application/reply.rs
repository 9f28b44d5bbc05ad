//! What the application answers.

use super::{Call, Method};
use serde_json::{Value, json};
use std::time::Duration;

/// An answer that is not one of the application's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// None ever comes.
    Hang,
    /// The connection is cut instead.
    Cut,
    /// Not a message: bytes that are no protocol buffer, text that is no JSON.
    Garbage,
    /// It does not know the method.
    Unimplemented,
    /// It is at its limit (`RESOURCE_EXHAUSTED`, 503).
    Busy,
    /// It broke (`INTERNAL`, 500).
    Broken,
}

#[derive(Clone, Debug)]
pub struct Reply {
    /// The message by its field names.
    pub body: Value,
    pub delay: Duration,
    pub fault: Option<Fault>,
}

impl From<Fault> for Reply {
    fn from(fault: Fault) -> Self {
        Self { fault: Some(fault), ..Self::message(json!({})) }
    }
}

impl Reply {
    /// Any message, by its field names.
    pub fn message(body: Value) -> Self {
        Self { body, delay: Duration::ZERO, fault: None }
    }

    pub fn success() -> Self {
        Self::message(json!({"status": 1}))
    }

    pub fn failure() -> Self {
        Self::message(json!({"status": 2}))
    }

    /// Status `ERROR`.
    pub fn error(message: &str) -> Self {
        Self::message(json!({"error_msg": message}))
    }

    /// What a simple application answers: everybody is welcome as the user that the query names (or else by the session
    /// id), every subscription is confirmed, follows the streams that its parameter `streams` lists, and actions do nothing.
    pub fn usual(call: &Call) -> Self {
        match (call.method, call.command()) {
            (Method::Connect, _) => {
                let user = call.url().split_once("user=").map_or(call.sid(), |(_, user)| user);
                Self::welcome(call, &json!({"user": user.split('&').next()}).to_string())
            }
            (Method::Command, "subscribe") => {
                let streams = call.param("streams").as_array().cloned().unwrap_or_default();
                streams.iter().fold(Self::confirm(call), |reply, stream| reply.stream(stream.as_str().expect("a name")))
            }
            _ => Self::success(),
        }
    }

    pub fn welcome(call: &Call, identifiers: &str) -> Self {
        let reply = Self::message(json!({"status": 1, "identifiers": identifiers}));
        reply.transmit(json!({"type": "welcome", "sid": call.sid()}))
    }

    /// Refuses a connection.
    pub fn unauthorized() -> Self {
        Self::failure().transmit(super::super::disconnect("unauthorized", false))
    }

    pub fn confirm(call: &Call) -> Self {
        Self::success().transmit(super::super::confirm(call.identifier()))
    }

    pub fn reject(call: &Call) -> Self {
        Self::failure().transmit(super::super::reject(call.identifier()))
    }

    /// Sends the client a frame.
    pub fn transmit(self, frame: Value) -> Self {
        self.append("transmissions", json!(frame.to_string()))
    }

    /// Sends the client a message of the call's subscription.
    pub fn say(self, call: &Call, message: Value) -> Self {
        self.transmit(json!({"identifier": call.identifier(), "message": message}))
    }

    pub fn stream(self, name: &str) -> Self {
        self.append("streams", json!(name))
    }

    pub fn stop(self, name: &str) -> Self {
        self.append("stopped_streams", json!(name))
    }

    pub fn stop_all(mut self) -> Self {
        self.body["stop_streams"] = json!(true);
        self
    }

    /// Closes the connection afterwards.
    pub fn disconnect(mut self) -> Self {
        self.body["disconnect"] = json!(true);
        self
    }

    /// Keeps this with the subscription.
    pub fn istate(mut self, key: &str, value: &str) -> Self {
        self.body["env"]["istate"][key] = json!(value);
        self
    }

    /// Keeps this with the connection.
    pub fn cstate(mut self, key: &str, value: &str) -> Self {
        self.body["env"]["cstate"][key] = json!(value);
        self
    }

    /// The answer takes so long.
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    fn append(mut self, field: &str, value: Value) -> Self {
        match self.body[field].as_array_mut() {
            Some(list) => list.push(value),
            None => self.body[field] = json!([value]),
        }
        self
    }
}
