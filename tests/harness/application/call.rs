//! A call as the application saw it.

use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    Connect,
    Command,
    Disconnect,
    Restore,
}

impl Method {
    /// Of the last part of the path, in whichever form.
    pub fn of(path: &str) -> Option<Self> {
        match path.rsplit('/').next()? {
            "Connect" | "connect" => Some(Self::Connect),
            "Command" | "command" => Some(Self::Command),
            "Disconnect" | "disconnect" => Some(Self::Disconnect),
            "Restore" | "restore" => Some(Self::Restore),
            _ => None,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Call {
    pub method: Method,
    /// Metadata over gRPC, headers over HTTP; names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The message by its field names, empty fields left out: over HTTP as it came, over gRPC translated.
    pub body: Value,
    pub at: Instant,
}

impl Call {
    /// The session that it is about.
    pub fn sid(&self) -> &str {
        let sid = self.headers.get("sid").or_else(|| self.headers.get("x-anycable-meta-sid"));
        sid.unwrap_or_else(|| panic!("every call names its session: {self:?}"))
    }

    /// `subscribe`, `unsubscribe` or `message`; empty for other methods.
    pub fn command(&self) -> &str {
        self.text("command")
    }

    pub fn identifier(&self) -> &str {
        self.text("identifier")
    }

    /// A parameter of the channel, from the identifier.
    pub fn param(&self, name: &str) -> Value {
        let params: Value = serde_json::from_str(self.identifier()).unwrap_or_default();
        params[name].clone()
    }

    /// What the client said, of a `message`.
    pub fn data(&self) -> Value {
        serde_json::from_str(self.text("data")).unwrap_or_default()
    }

    /// The client's action; empty for everything else.
    pub fn action(&self) -> String {
        self.data()["action"].as_str().unwrap_or_default().to_owned()
    }

    /// Of the client's request.
    pub fn url(&self) -> &str {
        self.body["env"]["url"].as_str().unwrap_or_default()
    }

    /// A header of the client's request.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.body["env"]["headers"][name].as_str()
    }

    pub fn cstate(&self) -> &Value {
        &self.body["env"]["cstate"]
    }

    pub fn istate(&self) -> &Value {
        &self.body["env"]["istate"]
    }

    /// Identifiers of all subscriptions, of a disconnect or restore call.
    pub fn subscriptions(&self) -> Vec<String> {
        let subscriptions = self.body["subscriptions"].as_array().cloned().unwrap_or_default();
        subscriptions.iter().map(|one| one.as_str().expect("identifiers are text").to_owned()).collect()
    }

    /// Identifiers of the connection, whatever the method.
    pub fn connection(&self) -> &str {
        match self.method {
            Method::Command => self.text("connection_identifiers"),
            _ => self.text("identifiers"),
        }
    }

    fn text(&self, field: &str) -> &str {
        self.body[field].as_str().unwrap_or_default()
    }
}
