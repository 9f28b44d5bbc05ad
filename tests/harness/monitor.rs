//! What a nats-server counts, as its monitoring endpoint tells it.

use super::nats::NatsServer;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

impl NatsServer {
    /// Subscriptions of all its clients.
    pub async fn subscriptions(&self) -> u64 {
        self.monitored("/subsz", "num_subscriptions").await
    }

    /// Messages that its clients have sent it, requests among them.
    pub async fn received(&self) -> u64 {
        self.monitored("/varz", "in_msgs").await
    }

    /// Bytes that its clients have sent it in messages.
    pub async fn received_bytes(&self) -> u64 {
        self.monitored("/varz", "in_bytes").await
    }

    /// Bytes that JetStream keeps.
    pub async fn stored_bytes(&self) -> u64 {
        self.monitored("/jsz", "storage").await
    }

    /// Bytes of memory that the server has in use.
    pub async fn memory(&self) -> u64 {
        self.monitored("/varz", "mem").await
    }

    async fn monitored(&self, page: &str, field: &str) -> u64 {
        // In words of HTTP/1.0, so that the answer comes whole.
        let mut connection = tokio::net::TcpStream::connect(self.monitor).await.expect("it is monitored");
        connection.write_all(format!("GET {page} HTTP/1.0\r\n\r\n").as_bytes()).await.expect("it reads");
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.expect("it answers");
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let numbers: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error} in {answer}"));
        numbers[field].as_u64().unwrap_or_else(|| panic!("no {field} in {answer}"))
    }
}
